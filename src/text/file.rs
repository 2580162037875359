//! A text in a file of any size, and windows drawn from it.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::vocabulary::{Characters, Vocabulary};
use super::windows::Batch;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::tensor::NO_TARGET;

/// A UTF-8 text in a file of any size, mapped into memory: it is read where windows are cut from it and never copied as a
/// whole. A byte-order mark at its start is no part of the text. The file must not change meanwhile.
#[derive(Clone, Debug)]
pub struct TextFile {
    path: Arc<Path>,
    map: Arc<memmap2::Mmap>,
    has_mark: bool,
    vocabulary: Vocabulary,
    characters: usize,
}

/// U+FEFF, which some editors put in front of a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Bytes that are looked at at once.
const PIECE: usize = 1 << 20;

impl TextFile {
    /// Maps a file, and reads it once for its characters. If it is cut off while it is mapped, the system ends the program.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, is empty or is not UTF-8.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: other programs may write what is mapped. It is only ever copied, as bytes, which have no invalid values;
        // what is looked at, and made text of, are the copies.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
        let has_mark = map[..map.len().min(BYTE_ORDER_MARK.len())].to_vec() == BYTE_ORDER_MARK;
        let vocabulary = Vocabulary::of("");
        let mut opened = Self { path: path.into(), map: Arc::new(map), has_mark, vocabulary, characters: 0 };
        if opened.len() == 0 {
            return Err(opened.refuse("it is empty; a corpus must be a UTF-8 text"));
        }
        let (mut characters, mut count) = (Characters::default(), 0);
        opened.read(|text| {
            characters.add(text);
            count += text.chars().count();
            Ok(())
        })?;
        (opened.vocabulary, opened.characters) = (characters.vocabulary(), count);
        Ok(opened)
    }

    fn refuse(&self, what: &str) -> Error {
        Error::io(&*self.path)(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
    }

    /// The mapped text. Copy from it before looking at it.
    fn bytes(&self) -> &[u8] {
        &self.map[if self.has_mark { BYTE_ORDER_MARK.len() } else { 0 }..]
    }

    /// Copies of the whole text, one after the other.
    fn read(&self, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let bytes = self.bytes();
        let mut block = Vec::new();
        let mut start = 0;
        while start < bytes.len() {
            block.clear();
            block.extend_from_slice(&bytes[start..bytes.len().min(start + PIECE)]);
            let text = match std::str::from_utf8(&block) {
                Ok(text) => text,
                // A character that goes on in the next block.
                Err(error) if error.error_len().is_none() && start + block.len() < bytes.len() => {
                    std::str::from_utf8(&block[..error.valid_up_to()]).unwrap_or_default()
                }
                Err(error) => {
                    let at = self.map.len() - bytes.len() + start + error.valid_up_to();
                    return Err(self.refuse(&format!("it is not UTF-8 text from byte {at} on")));
                }
            };
            each(text)?;
            start += text.len();
        }
        Ok(())
    }

    /// Its tokens, a piece after the other: as many in all as it has characters.
    pub(super) fn for_each_piece(&self, mut each: impl FnMut(&[u32]) -> Result<()>) -> Result<()> {
        let changed = || self.refuse("it has changed since it was opened");
        let mut left = self.characters;
        let mut tokens = Vec::new();
        self.read(|text| {
            tokens.clear();
            for character in text.chars() {
                tokens.push(self.vocabulary.token(character).ok_or_else(changed)?);
            }
            left = left.checked_sub(tokens.len()).ok_or_else(changed)?;
            each(&tokens)
        })?;
        if left == 0 { Ok(()) } else { Err(changed()) }
    }

    /// Its characters.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Whether the file starts with a byte-order mark, which is no part of the text.
    pub fn has_byte_order_mark(&self) -> bool {
        self.has_mark
    }

    /// The size of its text in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty file is refused")]
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Its length in characters.
    pub fn characters(&self) -> usize {
        self.characters
    }

    /// The text from the first character at or after a byte on, up to `most` characters.
    pub fn text_at(&self, byte: usize, most: usize) -> String {
        let rest = self.bytes().get(byte..).unwrap_or_default();
        // No character has more than four bytes, and three may belong to one that starts before.
        let copy = rest[..rest.len().min(most.saturating_mul(4).saturating_add(3))].to_vec();
        let start = copy.iter().position(|byte| byte & 0xc0 != 0x80).unwrap_or(copy.len());
        let text = copy[start..].utf8_chunks().next();
        text.map_or_else(String::new, |chunk| chunk.valid().chars().take(most).collect())
    }
}

/// Batches of windows drawn at random from a stretch of a [`TextFile`]: cut on the host, a batch at a time.
#[derive(Debug)]
pub struct FileWindows {
    file: TextFile,
    stretch: Range<usize>,
    batch: Batch,
    /// Draws where windows start; a [`crate::Checkpoint`] can keep it.
    pub rng: Rng,
}

impl FileWindows {
    /// Windows of `window` characters that start within these bytes, `batch` at a time, drawn by `rng`.
    ///
    /// # Errors
    /// A batch or window of 0, a stretch outside the file or too short for a window.
    pub fn new(
        file: &TextFile,
        device: &Device,
        stretch: Range<usize>,
        batch: usize,
        window: usize,
        rng: Rng,
    ) -> Result<Self> {
        if stretch.end > file.len() || batch == 0 || window == 0 {
            let expected = format!("within 0..{}, of at least one window of 1", file.len());
            return Err(Error::argument("FileWindows", "stretch", expected, format!("{stretch:?}, {batch}, {window}")));
        }
        // Room for a window and the character after it, whatever their bytes, from one start at least.
        let least = 4 * (window as u128 + 1) + 1;
        if (stretch.len() as u128) < least {
            let (length, stretch) = (file.len(), stretch.len());
            return Err(Error::TextTooShort { length, stretch, unit: "bytes", window, batch: 1, least });
        }
        let vocabulary = file.vocabulary.len();
        let tokens = device.tokens("tokens", &[window, batch], vocabulary)?;
        let targets = device.targets("targets", &[1, batch], vocabulary)?;
        Ok(Self { file: file.clone(), stretch, batch: Batch { tokens, targets }, rng })
    }

    /// The bytes that windows start within.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.stretch.len()
    }

    /// The tensors of a batch, which [`Self::draw`] fills.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Draws the next batch: to be called before each step.
    ///
    /// # Errors
    /// The device failed.
    pub fn draw(&mut self) -> Result<()> {
        let &[window, batch] = self.batch.tokens.shape() else { unreachable!("made as [T, B]") };
        let (mut tokens, mut targets) = (vec![0; window * batch], vec![0; batch]);
        for (entry, target) in targets.iter_mut().enumerate() {
            // Room for a window and the character after it, whatever their bytes.
            let starts = self.stretch.len() - 4 * (window + 1);
            let wide = u64::from(self.rng.next_u32()) << 32 | u64::from(self.rng.next_u32());
            let at = self.stretch.start + (wide % starts as u64) as usize;
            let text = self.file.text_at(at, window + 1);
            let mut row = text.chars().map(|character| self.file.vocabulary.token(character));
            for t in 0..window {
                tokens[t * batch + entry] = row.next().flatten().unwrap_or(0);
            }
            *target = row.next().flatten().unwrap_or(NO_TARGET);
        }
        self.batch.tokens.write_u32(&tokens)?;
        self.batch.targets.write_u32(&targets)
    }
}
