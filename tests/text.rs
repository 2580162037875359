//! Texts: characters, windows, files.

mod common;

use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use elman::text::{Corpus, FileWindows, TextFile, Vocabulary, Windows};
use elman::{Device, Error, Graph, NO_TARGET, rng};

fn file(text: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Sorted, each once, padding first; ASCII or not.
#[test]
fn vocabularies_are_sorted() {
    let vocabulary = Vocabulary::of("zaé☃a\u{7f}😀é");
    assert_eq!(vocabulary.to_string(), "\0az\u{7f}é☃😀");
    assert_eq!(vocabulary.encode("☃a").unwrap(), [5, 1]);
    assert_eq!(Vocabulary::of("").to_string(), "\0");
}

/// Every window of a file is a piece of its text, of its stretch, with the character that follows; all come up.
#[test]
fn windows_of_a_file_are_pieces_of_its_text() {
    // Two halves with characters of their own.
    let text = ["abc☃défg😀hijklm".repeat(3), "NOP☃QRSTÜVWXYZ".repeat(3)].concat();
    let on_disk = file(text.as_bytes());
    let open = TextFile::open(on_disk.path()).unwrap();
    assert_eq!(open.vocabulary(), &Vocabulary::of(&text));
    assert_eq!(open.text_at(0, 5), "abc☃d");
    assert_eq!(open.text_at(4, 2), "dé", "from the next character on");
    assert_eq!(open.text_at(text.len() - 2, 9), "YZ");
    assert_eq!((open.text_at(text.len(), 9), open.text_at(1 << 40, 9)), (String::new(), String::new()));

    let (batch, window) = (64, 3);
    let device = Device::cpu();
    let half = text.find('N').unwrap();
    let mut windows = FileWindows::new(&open, &device, 0..half, batch, window, rng::manual_seed(1)).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        windows.draw().unwrap();
        let tokens = windows.batch().tokens.to_vec_u32().unwrap();
        let targets = windows.batch().targets.to_vec_u32().unwrap();
        assert!(!targets.contains(&NO_TARGET));
        for entry in 0..batch {
            let mut row: Vec<u32> = (0..window).map(|t| tokens[t * batch + entry]).collect();
            row.push(targets[entry]);
            let piece = open.vocabulary().decode(&row);
            assert!(text[..half].contains(&piece), "{piece}");
            seen.insert(piece);
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
    let mut rest = FileWindows::new(&open, &device, half..text.len(), batch, window, rng::manual_seed(1)).unwrap();
    rest.draw().unwrap();
    let tokens = rest.batch().tokens.to_vec_u32().unwrap();
    assert!(!open.vocabulary().decode(&tokens).contains(|c: char| c.is_lowercase()), "of its stretch alone");
}

#[test]
fn files_that_are_no_text_are_refused() {
    let refused = |text: &[u8]| TextFile::open(file(text).path()).unwrap_err().to_string();
    assert!(refused(b"").contains("empty"));
    assert!(refused(b"caf\xe9 au lait").contains("not UTF-8"));
    assert!(matches!(TextFile::open("/no/such/file"), Err(Error::Io { .. })));
    let short = file(b"too short");
    let short = TextFile::open(short.path()).unwrap();
    // A character over the edge of the blocks in which a file is read.
    let long = file(["a".repeat((1 << 20) - 1), "é☃".into()].concat().as_bytes());
    assert_eq!(TextFile::open(long.path()).unwrap().vocabulary().to_string(), "\0aé☃");
    for (stretch, batch, window) in [(0..9, 1, 8), (0..99, 1, 1), (0..9, 0, 1), (0..9, 1, 0), (0..9, 1, usize::MAX)] {
        let windows = FileWindows::new(&short, &Device::cpu(), stretch, batch, window, rng::manual_seed(1));
        assert!(windows.is_err(), "{batch} {window}");
    }
}

/// A byte-order mark is no part of the text, wherever the file is read; a later U+FEFF is.
#[test]
fn a_byte_order_mark_is_dropped() {
    let text = "abc\u{feff}é";
    for mark in ["", "\u{feff}"] {
        let on_disk = file([mark, text].concat().as_bytes());
        let open = TextFile::open(on_disk.path()).unwrap();
        assert_eq!(open.has_byte_order_mark(), !mark.is_empty());
        assert_eq!((open.len(), open.characters()), (text.len(), 5));
        assert_eq!((open.text_at(0, 9), open.text_at(2, 1)), (text.into(), "c".into()));
        assert_eq!(open.vocabulary(), &Vocabulary::of(text));
    }
    let refused = |text: &[u8]| TextFile::open(file(text).path()).unwrap_err().to_string();
    assert!(refused("\u{feff}".as_bytes()).contains("empty"));
    assert!(refused(b"\xef\xbb\xbfcaf\xe9").contains("from byte 6 on"), "counted in the file");
}

/// A text from a file is the same corpus as one from a string: its windows, one token each, are its tokens.
#[test]
fn a_corpus_of_a_file_is_that_of_its_text() {
    let text = ["a".repeat((1 << 20) - 1), "é☃😀z".repeat(300_000)].concat();
    let on_disk = file(["\u{feff}", &text].concat().as_bytes());
    let open = TextFile::open(on_disk.path()).unwrap();
    let tokens = Vocabulary::of(&text).encode(&text).unwrap();
    for device in common::f32_devices() {
        let corpus = Corpus::of_file(&device, &open).unwrap();
        assert_eq!(corpus.len(), tokens.len());
        let windows = Windows::streams(&corpus, 0..corpus.len(), 1, corpus.len() - 1).unwrap();
        let mut g = Graph::without_parameters(&device);
        let batch = windows.batch(&mut g, 1).unwrap();
        g.finish().unwrap().run().unwrap();
        let cut = [batch.tokens.to_vec_u32().unwrap(), batch.targets.to_vec_u32().unwrap()].concat();
        assert!(cut == tokens, "{}", device.describe());
    }
    // Written over since it was opened, with as many bytes.
    std::fs::File::options().write(true).open(on_disk.path()).unwrap().write_all(&[b'!'; 8]).unwrap();
    let error = Corpus::of_file(&Device::cpu(), &open).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("changed"), "{error}");
}

/// What a text of another length would be refused for, in the terms that it was asked in: nothing wraps.
#[test]
fn texts_that_are_too_short_are_told_what_would_do() {
    let device = Device::cpu();
    let corpus = |length: usize| Corpus::new(&device, &vec![1; length], 2).unwrap();
    let message = |windows: elman::Result<Windows>| windows.unwrap_err().to_string();
    let streams = |length, stretch, batch, window| Windows::streams(&corpus(length), stretch, batch, window);

    // The last fifth of 10,240 characters.
    let error = message(streams(10_240, 8192..10_240, 64, 2048));
    for part in ["the text has 10240 characters, 2048 of them", "64 streams", "2048", "at least 131073", "655365"] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    let enough = 655_365;
    assert!(streams(enough, enough / 5 * 4..enough, 64, 2048).is_ok());
    let shorter = enough - 5;
    assert!(streams(shorter, shorter / 5 * 4..shorter, 64, 2048).is_err());

    let sizes = [1, 2, 7, 1 << 31, usize::MAX / 2, usize::MAX - 1, usize::MAX];
    for (batch, window) in sizes.into_iter().flat_map(|batch| sizes.map(|window| (batch, window))) {
        let least = batch as u128 * window as u128 + 1;
        match streams(20, 0..20, batch, window) {
            Ok(windows) => assert!(least <= 20 && windows.len() >= batch),
            Err(error @ Error::TextTooShort { length: 20, stretch: 20, .. }) => {
                assert!(least > 20 && error.to_string().contains(&format!("at least {least};")), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    for window in [20, usize::MAX] {
        let error = message(Windows::new(&corpus(20), vec![0], window));
        let least = window as u128 + 1;
        assert!(error.contains("has 20 characters") && error.contains(&format!("at least {least};")), "{error}");
    }
    assert!(Windows::new(&corpus(20), vec![0], 19).is_ok());
    assert!(message(Windows::new(&corpus(20), vec![1], 19)).contains("at most 0"));
    assert!(message(Windows::new(&corpus(20), vec![], 3)).contains("at least one"));

    // Of a file, bytes: any character may take four.
    let on_disk = file(&[b'a'; 100]);
    let open = TextFile::open(on_disk.path()).unwrap();
    let windows = |stretch, window| FileWindows::new(&open, &device, stretch, 2, window, rng::manual_seed(1));
    for (window, least) in [(24, 101), (usize::MAX, 4 * (1u128 << 64) + 1)] {
        let error = windows(0..100, window).unwrap_err().to_string();
        let parts = ["the text has 100 bytes, but".into(), format!("of {window} characters"), format!("{least};")];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    windows(0..100, 23).unwrap().draw().unwrap();
    let outside = windows(50..101, 3).unwrap_err();
    assert!(matches!(outside, Error::Argument { argument: "stretch", .. }), "{outside}");
}

/// Text of a file that another writes is copied before it is checked: what comes out was in the file.
#[test]
fn text_of_a_file_that_changes_is_text() {
    const LENGTH: usize = 200_000;
    let text = "é".repeat(LENGTH);
    let on_disk = file(text.as_bytes());
    let open = TextFile::open(on_disk.path()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut file = std::fs::File::options().write(true).open(on_disk.path()).unwrap();
            let mut write = |bytes: &[u8]| {
                file.seek(SeekFrom::End(-2)).unwrap();
                file.write_all(bytes).unwrap();
            };
            while !done.load(Ordering::Relaxed) {
                write("é".as_bytes());
                write(b"\xff\xff");
            }
        });
        let texts: Vec<_> = (0..400).map(|_| open.text_at(0, LENGTH)).collect();
        done.store(true, Ordering::Relaxed);
        for text in texts {
            assert!(text.chars().all(|c| c == 'é') && text.chars().count() >= LENGTH - 1);
        }
    });
}
