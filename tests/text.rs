//! Texts: characters, windows, files.

mod common;

use elman::text::{FileWindows, TextFile, Vocabulary};
use elman::{Device, Error, NO_TARGET, rng};

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
