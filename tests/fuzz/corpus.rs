//! Texts: bytes that are no text are an error, and every size gives windows that lie within the text, or an error.
#![no_main]

use elman::text::{Corpus, FileWindows, TextFile, Vocabulary, Windows, hold_out};
use elman::{Device, Error, Graph, NO_TARGET, Result, rng};
use elman_fuzz::{in_file, says_why};
use libfuzzer_sys::fuzz_target;

/// Sizes come first, eight bytes; then the text.
const SIZES: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some((sizes, text)) = bytes.split_first_chunk::<SIZES>() else { return };
    vocabulary(text);
    if let Err(error) =
        in_file(text, |path| TextFile::open(path).and_then(|file| windows(text, &file, sizes.map(size))))
    {
        says_why(&error);
    }
});

/// Small sizes, and such as no product of them fits anything.
fn size(byte: u8) -> usize {
    match byte {
        255 => usize::MAX,
        254 => usize::MAX / 2 + 1,
        253 => 1 << 32,
        252 => (1 << 31) + 1,
        small => small.into(),
    }
}

fn vocabulary(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let vocabulary = Vocabulary::of(text);
    let tokens = vocabulary.encode(text).expect("its own characters");
    assert_eq!(vocabulary.decode(&tokens), text);
    assert_eq!(Vocabulary::try_from(vocabulary.to_string()).as_ref(), Ok(&vocabulary));
    match Vocabulary::try_from(text.to_owned()) {
        Ok(vocabulary) => assert_eq!(vocabulary.to_string(), text),
        Err(why) => assert!(!why.is_empty()),
    }
    if let Some((first, rest)) = text.split_at_checked(text.len() / 2)
        && let Err(error) = Vocabulary::of(first).encode(rest)
    {
        assert!(matches!(error, Error::UnknownCharacter { .. }));
        says_why(&error);
    }
}

fn windows(
    text: &[u8],
    file: &TextFile,
    [start, end, batch, window, byte, most, order, seed]: [usize; SIZES],
) -> Result<()> {
    let piece = file.text_at(byte, most);
    assert!(piece.chars().count() <= most && file.vocabulary().encode(&piece).is_ok());
    let whole = file.text_at(0, usize::MAX);
    assert!(text.ends_with(whole.as_bytes()) && whole.len() == file.len());
    let device = Device::cpu();
    match FileWindows::new(file, &device, start..end, batch, window, rng::manual_seed(seed as u64)) {
        Ok(mut windows) => windows.draw().expect("windows within the text"),
        Err(error) => says_why(&error),
    }
    let corpus = Corpus::of_file(&device, file)?;
    assert_eq!(corpus.len(), file.characters());
    let starts = [start, end, order].map(|start| start as u32).to_vec();
    for windows in [Windows::new(&corpus, starts, window), Windows::streams(&corpus, start..end, batch, window)] {
        match windows {
            Ok(windows) => cut(&device, &windows, batch, order, file).unwrap_or_else(|error| says_why(&error)),
            Err(error) => says_why(&error),
        }
    }
    Ok(())
}

/// Runs through all batches: whatever order is set, tokens are those of the text.
fn cut(device: &Device, windows: &Windows, batch: usize, order: usize, file: &TextFile) -> Result<()> {
    let (rest, held_out) = hold_out(&rng::manual_seed(order as u64).randperm(windows.len()), order as f64 / 99.0);
    assert_eq!(rest.len() + held_out.len(), windows.len());
    windows.set_order(&[rest, held_out].concat())?;
    if let Err(error) = windows.set_order(&[order as u32]) {
        says_why(&error);
    }
    let mut g = Graph::without_parameters(device);
    let cut = windows.batch_of_every_step(&mut g, batch)?;
    let plan = g.finish()?;
    let vocabulary = file.vocabulary().len();
    for _ in 0..windows.batches(batch).min(4) {
        plan.run()?;
        let is_token = |&token: &u32| (token as usize) < vocabulary;
        assert!(cut.tokens.to_vec_u32()?.iter().all(is_token));
        assert!(cut.targets.to_vec_u32()?.iter().all(|token| *token == NO_TARGET || is_token(token)));
    }
    assert!(windows.mean(&vec![1.0; windows.batches(batch)], batch).is_finite());
    Ok(())
}
