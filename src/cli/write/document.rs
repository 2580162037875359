//! The file of a text: as the model reads it, and back as it was.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::cli::tokens::{Tokens, Unknown};

const MARK: &[u8] = "\u{feff}".as_bytes();

/// A file, or none yet.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub path: Option<PathBuf>,
    /// Its lines end with CR LF, which the model does not know: it reads LF.
    crlf: bool,
    /// It begins with a byte-order mark, which the model does not know.
    mark: bool,
}

impl Document {
    /// What a file has, and how many characters the model does not know; nothing, of a file that is not there yet.
    pub fn open(path: Option<&Path>, tokens: &Tokens, unknown: Unknown) -> Result<(Self, Vec<u32>, usize)> {
        let mut document = Self { path: path.map(Into::into), ..Self::default() };
        let Some(path) = path else { return Ok((document, Vec::new(), 0)) };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        if *tokens == Tokens::Bytes {
            return Ok((document, tokens.known(&bytes), 0));
        }
        let is_unknown = |bytes: &[u8]| tokens.known(bytes).is_empty();
        document.mark = bytes.starts_with(MARK) && is_unknown(MARK);
        let bytes = if document.mark { &bytes[MARK.len()..] } else { &bytes[..] };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => bail!("{} is not UTF-8 text from byte {} on", path.display(), error.valid_up_to()),
        };
        let lines = text.matches('\n').count();
        document.crlf = lines > 0 && text.matches("\r\n").count() == lines && is_unknown(b"\r");
        let text = if document.crlf { text.replace("\r\n", "\n") } else { text.to_owned() };
        let read = tokens.encode(&text, unknown).with_context(|| path.display().to_string())?;
        let left_out = text.chars().count() - read.len();
        Ok((document, read, left_out))
    }

    /// What is written to the file.
    pub fn bytes(&self, text: &[u8]) -> Vec<u8> {
        let mut bytes = if self.mark { MARK.to_vec() } else { Vec::new() };
        for &byte in text {
            if self.crlf && byte == b'\n' {
                bytes.push(b'\r');
            }
            bytes.push(byte);
        }
        bytes
    }
}
