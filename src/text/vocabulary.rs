//! Characters as tokens.

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// The characters of a text: sorted, each once, with `\0` (padding) as token 0.
///
/// ```
/// let vocabulary = elman::text::Vocabulary::of("hello");
/// assert_eq!(vocabulary.to_string(), "\0ehlo");
/// assert_eq!(vocabulary.encode("hole")?, [2, 4, 3, 1]);
/// assert_eq!(vocabulary.decode(&[2, 4, 3, 1]), "hole");
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    characters: Vec<char>,
    /// The token of each ASCII character: nearly all of most texts are ASCII.
    ascii: Box<[Option<u32>; 128]>,
}

/// The characters of a text, as they come. For ASCII a table is twenty times faster than a set.
pub(super) struct Characters {
    ascii: [bool; 128],
    others: BTreeSet<char>,
}

impl Default for Characters {
    fn default() -> Self {
        Self { ascii: [false; 128], others: BTreeSet::new() }
    }
}

impl Characters {
    pub fn add(&mut self, text: &str) {
        for character in text.chars() {
            match self.ascii.get_mut(character as usize) {
                Some(seen) => *seen = true,
                None => drop(self.others.insert(character)),
            }
        }
    }

    /// With padding first.
    pub fn vocabulary(mut self) -> Vocabulary {
        self.ascii[0] = true;
        let ascii = (0u8..128).filter(|&byte| self.ascii[usize::from(byte)]).map(char::from);
        Vocabulary::new(ascii.chain(self.others.iter().copied()).collect())
    }
}

impl Vocabulary {
    /// The token of `\0`, which the tutorials add for padding: no text has it, so that none should be drawn
    /// ([`crate::generate::Sampling::never`]).
    pub const PADDING: u32 = 0;

    fn new(characters: Vec<char>) -> Self {
        let mut ascii = Box::new([None; 128]);
        for (token, &character) in (0..).zip(&characters) {
            if let Some(slot) = ascii.get_mut(character as usize) {
                *slot = Some(token);
            }
        }
        Self { characters, ascii }
    }

    /// The characters of `text`: all of them, a byte-order mark and carriage returns too. ([`super::TextFile`] drops the
    /// mark that a file starts with.)
    pub fn of(text: &str) -> Self {
        let mut characters = Characters::default();
        characters.add(text);
        characters.vocabulary()
    }

    /// The number of tokens, padding included.
    #[allow(clippy::len_without_is_empty, reason = "it has at least the padding")]
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// The token of each character.
    ///
    /// # Errors
    /// [`Error::UnknownCharacter`] names the first one that is not in the vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = Vec::with_capacity(text.len());
        for (position, character) in text.chars().enumerate() {
            tokens.push(self.token(character).ok_or_else(|| {
                let known = self.characters[1..].iter().flat_map(|c| c.escape_debug()).collect();
                Error::UnknownCharacter { character, position, known }
            })?);
        }
        Ok(tokens)
    }

    /// The token of a character, if it has one.
    pub fn token(&self, character: char) -> Option<u32> {
        match self.ascii.get(character as usize) {
            Some(&token) => token,
            None => self.characters.binary_search(&character).ok().map(|token| token as u32),
        }
    }

    /// The character of each token; one outside the vocabulary becomes U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let character = |&token: &u32| self.characters.get(token as usize).unwrap_or(&char::REPLACEMENT_CHARACTER);
        tokens.iter().map(character).collect()
    }
}

impl std::fmt::Display for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.characters.iter().try_for_each(|c| write!(f, "{c}"))
    }
}

impl TryFrom<String> for Vocabulary {
    type Error = String;

    fn try_from(characters: String) -> Result<Self, String> {
        let characters: Vec<char> = characters.chars().collect();
        if characters.first() == Some(&'\0') && characters.is_sorted_by(|a, b| a < b) {
            Ok(Self::new(characters))
        } else {
            Err("a vocabulary is sorted characters, each once, and starts with \\0".into())
        }
    }
}
