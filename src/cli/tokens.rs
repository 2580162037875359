//! What a model reads and writes: characters, or bytes.

use anyhow::{Result, bail};
use elman::text::Vocabulary;

/// The tokens of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokens {
    Characters(Vocabulary),
    Bytes,
}

/// What becomes of a character that a model does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// An error that names it
    #[default]
    Error,
    /// It is left out
    Skip,
}

/// So many unknown characters are named.
const NAMED: usize = 5;

impl Tokens {
    pub fn len(&self) -> usize {
        match self {
            Self::Characters(vocabulary) => vocabulary.len(),
            Self::Bytes => 256,
        }
    }

    /// What one token is.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Characters(_) => "characters",
            Self::Bytes => "bytes",
        }
    }

    /// The token that no text has.
    pub fn never(&self) -> Option<u32> {
        matches!(self, Self::Characters(_)).then_some(Vocabulary::PADDING)
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str, unknown: Unknown) -> Result<Vec<u32>> {
        self.count(text.as_bytes(), unknown, 0)?;
        Ok(self.known(text.as_bytes()))
    }

    /// How many tokens a piece of text has, that starts at this place.
    pub fn count(&self, piece: &[u8], unknown: Unknown, start: usize) -> Result<usize> {
        let Self::Characters(vocabulary) = self else { return Ok(piece.len()) };
        let text = std::str::from_utf8(piece)?;
        let known = text.chars().filter(|&c| vocabulary.token(c).is_some()).count();
        if unknown == Unknown::Skip || known == text.chars().count() {
            return Ok(known);
        }
        let others = text.chars().enumerate().filter(|&(_, c)| vocabulary.token(c).is_none());
        let mut named: Vec<_> = others.map(|(at, c)| format!("{c:?} at position {}", start + at)).collect();
        if named.len() > NAMED {
            let more = named.split_off(NAMED).len();
            named.push(format!("{more} more"));
        }
        bail!("the model does not know {}; --unknown skip leaves such characters out", named.join(", "))
    }

    /// The tokens of a text, without those that are not known.
    pub fn known(&self, text: &[u8]) -> Vec<u32> {
        match self {
            Self::Bytes => text.iter().map(|&byte| byte.into()).collect(),
            Self::Characters(vocabulary) => {
                String::from_utf8_lossy(text).chars().filter_map(|c| vocabulary.token(c)).collect()
            }
        }
    }

    /// What the tokens stand for, as it is written to a file or a pipe.
    pub fn bytes(&self, tokens: &[u32]) -> Vec<u8> {
        match self {
            Self::Characters(vocabulary) => vocabulary.decode(tokens).into_bytes(),
            Self::Bytes => tokens.iter().map(|&token| token as u8).collect(),
        }
    }

    /// What the tokens stand for, to be shown.
    pub fn text(&self, tokens: &[u32]) -> String {
        String::from_utf8_lossy(&self.bytes(tokens)).into_owned()
    }
}
