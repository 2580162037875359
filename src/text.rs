//! Text as tokens, and windows of it as batches.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernels;
use crate::rng::Rng;
use crate::tensor::{NO_TARGET, Tensor};

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
}

/// The characters of a text. Nearly all of most texts are ASCII: for them a table is twenty times faster than a set.
struct Characters {
    ascii: [bool; 128],
    others: BTreeSet<char>,
}

impl Default for Characters {
    fn default() -> Self {
        Self { ascii: [false; 128], others: BTreeSet::new() }
    }
}

impl Characters {
    fn add(&mut self, text: &str) {
        for character in text.chars() {
            match self.ascii.get_mut(character as usize) {
                Some(seen) => *seen = true,
                None => drop(self.others.insert(character)),
            }
        }
    }

    /// With padding first.
    fn vocabulary(mut self) -> Vocabulary {
        self.ascii[0] = true;
        let ascii = (0u8..128).filter(|&byte| self.ascii[usize::from(byte)]).map(char::from);
        Vocabulary { characters: ascii.chain(self.others.iter().copied()).collect() }
    }
}

impl Vocabulary {
    /// The token of `\0`, which the tutorials add for padding: no text has it, so that none should be drawn
    /// ([`crate::generate::Sampling::never`]).
    pub const PADDING: u32 = 0;

    /// The characters of `text`.
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
        let token = |(position, character)| match self.characters.binary_search(&character) {
            Ok(token) => Ok(token as u32),
            Err(_) => {
                let known = self.characters[1..].iter().flat_map(|c| c.escape_debug()).collect();
                Err(Error::UnknownCharacter { character, position, known })
            }
        };
        text.chars().enumerate().map(token).collect()
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
            Ok(Self { characters })
        } else {
            Err("a vocabulary is sorted characters, each once, and starts with \\0".into())
        }
    }
}

/// A text on the device, as tokens. Uploaded once; batches are cut from it there.
#[derive(Clone, Debug)]
pub struct Corpus {
    tokens: Tensor,
}

impl Corpus {
    /// Uploads tokens of a vocabulary.
    ///
    /// # Errors
    /// [`Error::Token`] for one outside the vocabulary; no tokens; more than the device can hold in one buffer.
    pub fn new(device: &Device, tokens: &[u32], vocabulary: usize) -> Result<Self> {
        let corpus = device.tokens("corpus", &[tokens.len()], vocabulary)?;
        corpus.write_u32(tokens)?;
        Ok(Self { tokens: corpus })
    }

    /// The number of tokens.
    #[allow(clippy::len_without_is_empty, reason = "a tensor has at least one element")]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// Windows of a [`Corpus`], each with the token after it, in an order that can be changed before each epoch.
///
/// Cutting happens on the device: the plan's clock says which batch it is.
#[derive(Debug)]
pub struct Windows {
    corpus: Corpus,
    starts: Vec<u32>,
    order: Tensor,
    window: usize,
}

/// One batch of windows: tensors that the plan fills.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[T, B]`
    pub tokens: Tensor,
    /// `[1, B]`: what follows each window; or `[T, B]`: what follows each token. Entries past the end of the last batch
    /// have a target that no loss counts.
    pub targets: Tensor,
}

impl Windows {
    /// Windows of `window` tokens that start at `starts`.
    ///
    /// # Errors
    /// No starts, a window of 0, or a window that does not end before the corpus.
    pub fn new(corpus: &Corpus, starts: Vec<u32>, window: usize) -> Result<Self> {
        if window == 0 {
            return Err(Error::argument("Windows", "window", "at least 1", 0));
        }
        if corpus.len() <= window {
            return Err(Error::TextTooShort { length: corpus.len(), window });
        }
        if let Some(last) = starts.iter().max()
            && *last as usize + window >= corpus.len()
        {
            let expected = format!("at most {}, for a token after the window", corpus.len() - window - 1);
            return Err(Error::argument("Windows", "starts", expected, last));
        }
        let order = corpus.tokens.device().tokens("order", &[starts.len()], corpus.len() - window)?;
        order.write_u32(&starts)?;
        Ok(Self { corpus: corpus.clone(), starts, order, window })
    }

    /// A stretch of the corpus as `batch` contiguous streams: each batch of windows goes on where the last one ended, for
    /// a state that is carried. What is left over at the end of the streams is not used.
    ///
    /// # Errors
    /// The stretch does not lie within the corpus, or is too short for one window in each stream.
    pub fn streams(corpus: &Corpus, stretch: Range<usize>, batch: usize, window: usize) -> Result<Self> {
        if stretch.end > corpus.len() || batch == 0 || window == 0 {
            let expected = format!("within 0..{}, of at least one stream and window of 1", corpus.len());
            return Err(Error::argument("Windows", "streams", expected, format!("{stretch:?}, {batch}, {window}")));
        }
        // The last token has none after it.
        let length = stretch.len().saturating_sub(1) / batch;
        if length < window {
            return Err(Error::TextTooShort { length: stretch.len(), window: batch.saturating_mul(window) });
        }
        let starts = (0..length / window)
            .flat_map(|step| (0..batch).map(move |stream| stream * length + step * window))
            .map(|offset| (stretch.start + offset) as u32);
        Self::new(corpus, starts.collect(), window)
    }

    /// How many windows there are.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// How many batches they make, the last one perhaps not full.
    pub fn batches(&self, batch: usize) -> usize {
        self.len().div_ceil(batch.max(1))
    }

    /// Puts window `order[i]` in place i for the epochs to come.
    ///
    /// # Errors
    /// `order` is not as long as the windows, or names one that is not there.
    pub fn set_order(&self, order: &[u32]) -> Result<()> {
        let start = |&i: &u32| {
            let expected = format!("below {}", self.len());
            self.starts.get(i as usize).copied().ok_or_else(|| Error::argument("set_order", "order", expected, i))
        };
        self.order.write_u32(&order.iter().map(start).collect::<Result<Vec<_>>>()?)
    }

    /// Records the cut of the next batch of an epoch: windows, and the token after each.
    ///
    /// # Errors
    /// A batch of 0, or one larger than the device allows.
    pub fn batch(&self, g: &mut Graph, batch: usize) -> Result<Batch> {
        self.cut(g, batch, 1)
    }

    /// [`Self::batch`] for a loss on all steps: windows, and the token after each of their tokens.
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub fn batch_of_every_step(&self, g: &mut Graph, batch: usize) -> Result<Batch> {
        self.cut(g, batch, self.window)
    }

    fn cut(&self, g: &mut Graph, batch: usize, targets: usize) -> Result<Batch> {
        if batch == 0 {
            return Err(Error::argument("Windows", "batch", "at least 1", 0));
        }
        let device = g.device().clone();
        let vocabulary = self.corpus.tokens.vocabulary().expect("a corpus is made of tokens");
        let tokens = device.tokens("tokens", &[self.window, batch], vocabulary)?;
        let targets = device.targets("targets", &[targets, batch], vocabulary)?;
        let clock = g.clock()?;
        kernels::windows::windows(g, &self.corpus.tokens, &self.order, &clock, &tokens, &targets)?;
        Ok(Batch { tokens, targets })
    }

    /// The mean over all windows from the mean of each batch.
    pub fn mean(&self, losses: &[f32], batch: usize) -> f64 {
        let mut left = self.len();
        let mut sum = 0.0;
        for &loss in losses {
            let entries = left.min(batch);
            sum += f64::from(loss) * entries as f64;
            left -= entries;
        }
        sum / (self.len() - left) as f64
    }
}

/// A UTF-8 text in a file of any size, mapped into memory: it is read where windows are cut from it and never copied as a
/// whole. The file must not change meanwhile.
#[derive(Clone, Debug)]
pub struct TextFile {
    bytes: Arc<memmap2::Mmap>,
    vocabulary: Vocabulary,
    /// The token of each ASCII character.
    ascii: Box<[Option<u32>; 128]>,
}

impl TextFile {
    /// Maps a file, and reads it once for its characters. If it is cut off while it is mapped, the system ends the program.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, is empty or is not UTF-8.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |what: &str| Error::io(path)(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() == 0 {
            return Err(refuse("it is empty; a corpus must be a UTF-8 text"));
        }
        // SAFETY: it is read as bytes alone, which have no invalid values; text is made of copies of them.
        let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
        let mut characters = Characters::default();
        let mut block = Vec::new();
        let mut start = 0;
        while start < bytes.len() {
            block.clear();
            block.extend_from_slice(&bytes[start..bytes.len().min(start + (1 << 20))]);
            let text = match std::str::from_utf8(&block) {
                Ok(text) => text,
                // A character that goes on in the next block.
                Err(error) if error.error_len().is_none() && start + block.len() < bytes.len() => {
                    std::str::from_utf8(&block[..error.valid_up_to()]).unwrap_or_default()
                }
                Err(error) => {
                    return Err(refuse(&format!("it is not UTF-8 text from byte {} on", start + error.valid_up_to())));
                }
            };
            characters.add(text);
            start += text.len();
        }
        let vocabulary = characters.vocabulary();
        let mut ascii = Box::new([None; 128]);
        for (token, &character) in (0..).zip(&vocabulary.characters) {
            if let Some(slot) = ascii.get_mut(character as usize) {
                *slot = Some(token);
            }
        }
        Ok(Self { bytes: Arc::new(bytes), vocabulary, ascii })
    }

    /// Its characters.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Its size in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty file is refused")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The text from the first character at or after a byte on, up to `most` characters.
    pub fn text_at(&self, byte: usize, most: usize) -> String {
        let rest = self.bytes.get(byte..).unwrap_or_default();
        let start = rest.iter().position(|byte| byte & 0xc0 != 0x80).unwrap_or(rest.len());
        // No character has more than four bytes.
        let piece = &rest[start..rest.len().min(start.saturating_add(most.saturating_mul(4)))];
        piece.utf8_chunks().next().map_or_else(String::new, |chunk| chunk.valid().chars().take(most).collect())
    }

    fn token(&self, character: char) -> Option<u32> {
        match self.ascii.get(character as usize) {
            Some(&token) => token,
            None => self.vocabulary.characters.binary_search(&character).ok().map(|token| token as u32),
        }
    }
}

/// Batches of windows drawn at random from a stretch of a [`TextFile`]: cut on the host, a batch at a time.
#[derive(Debug)]
pub struct FileWindows {
    file: TextFile,
    stretch: Range<usize>,
    batch: Batch,
    rng: Rng,
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
        if stretch.end > file.len() || stretch.len() / 4 <= window.saturating_add(1) {
            return Err(Error::TextTooShort { length: stretch.len(), window });
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
            let mut row = text.chars().map(|character| self.file.token(character));
            for t in 0..window {
                tokens[t * batch + entry] = row.next().flatten().unwrap_or(0);
            }
            *target = row.next().flatten().unwrap_or(NO_TARGET);
        }
        self.batch.tokens.write_u32(&tokens)?;
        self.batch.targets.write_u32(&targets)
    }
}

/// `get_cv_idxs` of the tutorials: a random fifth (or other share) of `n` windows held out, the rest for training.
/// `order` is a random order of 0..n.
pub fn hold_out(order: &[u32], share: f64) -> (Vec<u32>, Vec<u32>) {
    let (held_out, training) = order.split_at((order.len() as f64 * share.clamp(0.0, 1.0)) as usize);
    (training.into(), held_out.into())
}
