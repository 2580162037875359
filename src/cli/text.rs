//! Texts of any size as tokens: files, folders, patterns, standard input. A file is read in blocks, where and when its tokens are wanted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Cursor, IsTerminal as _, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};
use elman::text::Vocabulary;
use encoding_rs::Encoding;
use sha2::{Digest as _, Sha256};

use super::tokens::{Tokens, Unknown};

/// How bytes are read as text.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Reading {
    /// Encoding of the texts, where it is not UTF-8: windows-1252, utf-16le, shift_jis, any of the WHATWG's labels
    #[arg(long, value_name = "LABEL")]
    pub encoding: Option<String>,
    /// Make a line feed of every CR LF and every CR
    #[arg(long)]
    pub normalize_newlines: bool,
}

/// Bytes that are read at once.
const BLOCK: usize = 1 << 16;

/// Files in another encoding are decoded as a whole.
const MOST_DECODED: u64 = 1 << 30;

const MARK: &[u8] = "\u{feff}".as_bytes();

/// Texts, one after the other.
pub struct Text {
    parts: Vec<Part>,
    tokens: Tokens,
    normalize_newlines: bool,
    /// What tells it from another text.
    pub fingerprint: String,
}

/// One file.
struct Part {
    name: String,
    source: Source,
    /// Where each block starts: byte, and token of all parts; at last, where it ends.
    blocks: Vec<(u64, usize)>,
}

/// Where its bytes are. A file is opened when it is read: there may be thousands.
enum Source {
    Memory(Vec<u8>),
    /// With its length and time of change when it was found.
    File(PathBuf, u64, Option<SystemTime>),
}

trait Bytes: Read + Seek {}
impl<B: Read + Seek> Bytes for B {}

impl Source {
    fn open(&self) -> io::Result<Box<dyn Bytes + '_>> {
        Ok(match self {
            Self::Memory(bytes) => Box::new(Cursor::new(bytes)),
            Self::File(path, ..) => Box::new(File::open(path)?),
        })
    }
}

/// What a text is made tokens by.
pub enum By<'a> {
    /// The characters that it has.
    ItsCharacters,
    /// Those of a model.
    Given(&'a Tokens, Unknown),
}

impl Text {
    /// Opens what the names stand for, and reads it once.
    pub fn open(names: &[String], reading: &Reading, by: By) -> Result<Self> {
        let mut text = Self {
            parts: Vec::new(),
            tokens: Tokens::Bytes,
            normalize_newlines: reading.normalize_newlines,
            fingerprint: String::new(),
        };
        let (given, unknown) = match by {
            By::ItsCharacters => (None, Unknown::Error),
            By::Given(tokens, unknown) => (Some(tokens), unknown),
        };
        let is_bytes = matches!(given, Some(Tokens::Bytes));
        let mut hash = Sha256::new();
        let mut characters = BTreeSet::new();
        let mut seen = [false; 128];
        let mut count = 0;
        for name in names {
            for mut part in open(name, reading, is_bytes)? {
                let first = count;
                part.scan(is_bytes, reading.normalize_newlines, |block| {
                    hash.update(block);
                    let at = count;
                    match given {
                        Some(tokens) => count += tokens.count(block, unknown, at - first)?,
                        None => {
                            // Whole characters: `scan` has seen to it.
                            for c in std::str::from_utf8(block)?.chars() {
                                match seen.get_mut(c as usize) {
                                    Some(seen) => *seen = true,
                                    None => drop(characters.insert(c)),
                                }
                                count += 1;
                            }
                        }
                    }
                    Ok(at)
                })?;
                ensure!(part.blocks.len() > 1, "{} is empty: there must be text to read", part.name);
                text.parts.push(part);
            }
        }
        ensure!(count > 0, "there is no text in what was named, of characters that are known");
        text.tokens = match given {
            Some(tokens) => tokens.clone(),
            None => {
                characters.extend((0u8..128).filter(|&byte| seen[usize::from(byte)]).map(char::from));
                Tokens::Characters(Vocabulary::of(&characters.into_iter().collect::<String>()))
            }
        };
        text.fingerprint = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(text)
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Its length in tokens.
    pub fn len(&self) -> usize {
        self.parts.last().and_then(|part| part.blocks.last()).map_or(0, |&(_, token)| token)
    }

    /// Name and tokens of each file.
    pub fn files(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.parts.iter().map(|part| (part.name.as_str(), part.range()))
    }

    /// These tokens.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<u32>> {
        let mut all = Vec::with_capacity(range.len());
        let first = self.parts.partition_point(|part| part.range().end <= range.start);
        for part in self.parts[first..].iter().take_while(|part| part.range().start < range.end) {
            let first = part.blocks.partition_point(|&(_, token)| token <= range.start).saturating_sub(1);
            for block in part.blocks[first..].windows(2).take_while(|block| block[0].1 < range.end) {
                let [(start, token), (end, next)] = block else { continue };
                let bytes = part.bytes(*start, *end, self.normalize_newlines && self.tokens != Tokens::Bytes)?;
                let tokens = self.tokens.known(&bytes);
                ensure!(tokens.len() == next - token, part.changed());
                let inner = range.start.max(*token) - token..range.end.min(*next) - token;
                all.extend(&tokens[inner]);
            }
        }
        ensure!(all.len() == range.len(), "tokens {range:?} are not within a text of {}", self.len());
        Ok(all)
    }
}

impl Part {
    fn range(&self) -> Range<usize> {
        self.blocks[0].1..self.blocks[self.blocks.len() - 1].1
    }

    fn changed(&self) -> String {
        format!("{} has changed since it was opened: what was read of it no longer fits; start again", self.name)
    }

    /// Cuts it into blocks, each of whole characters, and shows them; `token` gives the number of the first token of each.
    fn scan(&mut self, is_bytes: bool, normalize: bool, mut token: impl FnMut(&[u8]) -> Result<usize>) -> Result<()> {
        let mut at = 0;
        let mut block = Vec::new();
        let name = self.name.clone();
        let blocks = &mut self.blocks;
        let unreadable = || format!("{name} cannot be read");
        let mut source = self.source.open().with_context(unreadable)?;
        let mut is_first = true;
        loop {
            let kept = block.len();
            let read = source.by_ref().take((BLOCK - kept) as u64).read_to_end(&mut block).with_context(unreadable)?;
            let is_end = kept + read < BLOCK;
            if std::mem::take(&mut is_first) && !is_bytes {
                check_mark(&name, &block)?;
                if block.starts_with(MARK) {
                    block.drain(..MARK.len());
                    at += MARK.len() as u64;
                }
            }
            if block.is_empty() {
                break;
            }
            let whole = if is_bytes { block.len() } else { whole(&name, &block, at, is_end)? };
            // Of CR LF, both belong to one block.
            let whole = if !is_bytes && !is_end && whole > 1 && block[whole - 1] == b'\r' { whole - 1 } else { whole };
            let shown = if normalize && !is_bytes { normalized(&block[..whole]) } else { block[..whole].to_vec() };
            let first = token(&shown).with_context(|| name.clone())?;
            blocks.push((at, first));
            at += whole as u64;
            block.drain(..whole);
            if is_end && block.is_empty() {
                break;
            }
        }
        // Where the next would start.
        let end = token(&[])?;
        blocks.push((at, end));
        Ok(())
    }

    /// The bytes from one place to another.
    fn bytes(&self, start: u64, end: u64, normalize: bool) -> Result<Vec<u8>> {
        let unreadable = || format!("{} cannot be read any more", self.name);
        if let Source::File(path, length, time) = &self.source {
            let now = path.metadata().with_context(unreadable)?;
            ensure!(now.len() == *length && now.modified().ok() == *time, self.changed());
        }
        let mut source = self.source.open().with_context(unreadable)?;
        let mut bytes = Vec::with_capacity((end - start) as usize);
        source.seek(SeekFrom::Start(start)).with_context(unreadable)?;
        source.take(end - start).read_to_end(&mut bytes).with_context(unreadable)?;
        ensure!(bytes.len() as u64 == end - start, self.changed());
        Ok(if normalize { normalized(&bytes) } else { bytes })
    }
}

fn normalized(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for (i, &byte) in bytes.iter().enumerate() {
        match byte {
            b'\r' => out.push(b'\n'),
            b'\n' if i > 0 && bytes[i - 1] == b'\r' => {}
            byte => out.push(byte),
        }
    }
    out
}

const CURE: &str = "give --encoding, windows-1252 or shift_jis say, or --bytes to learn bytes as they are";

/// How much of a block is whole characters.
fn whole(name: &str, block: &[u8], at: u64, is_end: bool) -> Result<usize> {
    match std::str::from_utf8(block) {
        Ok(_) => Ok(block.len()),
        Err(error) if error.error_len().is_none() && !is_end => Ok(error.valid_up_to()),
        Err(error) => {
            let byte = block[error.valid_up_to()];
            let offset = at + error.valid_up_to() as u64;
            bail!("{name} is not UTF-8 text: byte {offset} is 0x{byte:02x}; {CURE}")
        }
    }
}

/// Names the encodings that say what they are.
fn check_mark(name: &str, block: &[u8]) -> Result<()> {
    let label = match block {
        [0xff, 0xfe, ..] => "utf-16le",
        [0xfe, 0xff, ..] => "utf-16be",
        _ => return Ok(()),
    };
    bail!("{name} is not UTF-8 text: its first bytes say that it is {label}; give --encoding {label}, or --bytes")
}

/// The files that a name stands for.
fn open(name: &str, reading: &Reading, is_bytes: bool) -> Result<Vec<Part>> {
    if name == "-" {
        ensure!(!io::stdin().is_terminal(), "a text is expected on standard input: pipe one in, or name a file");
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).context("standard input cannot be read")?;
        return Ok(vec![part("standard input".into(), decoded("standard input", bytes, reading, is_bytes)?)]);
    }
    let path = Path::new(name);
    let paths = match path.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            let files = files_in(path)?;
            ensure!(!files.is_empty(), "the folder {name} has no files");
            files
        }
        Ok(_) => vec![path.into()],
        Err(_) if name.contains(['*', '?', '[']) => {
            let found = glob::glob(name).with_context(|| format!("{name} is no pattern"))?;
            let mut files: Vec<PathBuf> = found.collect::<Result<_, _>>()?;
            files.retain(|path| path.is_file());
            ensure!(!files.is_empty(), "no file fits the pattern {name}");
            files
        }
        Err(error) => return Err(error).with_context(|| format!("the text {name} cannot be read")),
    };
    paths.into_iter().map(|path| open_file(path, reading, is_bytes)).collect()
}

/// All files below a folder, but for hidden ones, in order.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let unreadable = || format!("the folder {} cannot be read", folder.display());
    for entry in std::fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // Links to folders may lead in a circle.
        if path.is_dir() && !is_hidden && !path.is_symlink() {
            files.extend(files_in(&path)?);
        } else if path.is_file() && !is_hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn open_file(path: PathBuf, reading: &Reading, is_bytes: bool) -> Result<Part> {
    let name = path.display().to_string();
    let unreadable = || format!("the text {name} cannot be read");
    let mut file = File::open(&path).with_context(unreadable)?;
    let metadata = file.metadata().with_context(unreadable)?;
    if !metadata.is_file() {
        // A pipe, a device: it is read once.
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(unreadable)?;
        return Ok(part(name.clone(), decoded(&name, bytes, reading, is_bytes)?));
    }
    if reading.encoding.is_some() && !is_bytes {
        let (length, most) = (metadata.len(), MOST_DECODED >> 20);
        ensure!(
            length <= MOST_DECODED,
            "{name} is larger than {most} MiB, the most that --encoding takes: make it UTF-8 first"
        );
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(unreadable)?;
        return Ok(part(name.clone(), decoded(&name, bytes, reading, is_bytes)?));
    }
    let source = Source::File(path, metadata.len(), metadata.modified().ok());
    Ok(Part { source, ..part(name, Vec::new()) })
}

fn part(name: String, bytes: Vec<u8>) -> Part {
    Part { name, source: Source::Memory(bytes), blocks: Vec::new() }
}

/// Bytes in the encoding that was named, as UTF-8.
fn decoded(name: &str, bytes: Vec<u8>, reading: &Reading, is_bytes: bool) -> Result<Vec<u8>> {
    let Some(label) = reading.encoding.as_ref().filter(|_| !is_bytes) else { return Ok(bytes) };
    let encoding = Encoding::for_label(label.as_bytes())
        .with_context(|| format!("there is no encoding {label}: windows-1252, utf-16le and shift_jis are some"))?;
    let (text, used, had_errors) = encoding.decode(&bytes);
    ensure!(!had_errors, "{name} is not text in {}: another --encoding, or --bytes", used.name());
    Ok(text.into_owned().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Characters of several bytes, CR LF and marks wherever a block ends.
    #[test]
    fn blocks_end_between_characters() {
        for shift in 0..7 {
            for unit in ["a\u{20ac}\u{1f642}b\r\n", "\r\n\r\r\n", "plain "] {
                let text = format!("{}{}", "x".repeat(shift), unit.repeat(3 * BLOCK / unit.len()));
                let mut file = tempfile::NamedTempFile::new().unwrap();
                file.write_all("\u{feff}".as_bytes()).unwrap();
                file.write_all(text.as_bytes()).unwrap();
                let name = [file.path().to_str().unwrap().to_owned()];
                for normalize_newlines in [false, true] {
                    let want =
                        if normalize_newlines { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.clone() };
                    let reading = Reading { encoding: None, normalize_newlines };
                    let read = Text::open(&name, &reading, By::ItsCharacters).unwrap();
                    assert_eq!(read.len(), want.chars().count());
                    assert!(read.tokens().text(&read.read(0..read.len()).unwrap()) == want, "{shift} {unit:?}");
                    let middle = read.len() / 2 - 5..read.len().min(read.len() / 2 + 70_000);
                    let want: String = want.chars().skip(middle.start).take(middle.len()).collect();
                    assert!(read.tokens().text(&read.read(middle).unwrap()) == want, "{shift} {unit:?}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_changes_is_found() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"some text").unwrap();
        let name = [file.path().to_str().unwrap().to_owned()];
        let read = Text::open(&name, &Reading::default(), By::ItsCharacters).unwrap();
        assert_eq!(read.read(0..9).unwrap().len(), 9);
        file.write_all(b" more").unwrap();
        assert!(read.read(0..9).unwrap_err().to_string().contains("has changed"));
        let path = file.into_temp_path();
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{:#}", read.read(0..9).unwrap_err()).contains("cannot be read any more"));
    }
}
