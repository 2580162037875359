use std::time::{Duration, Instant};

use elman::generate::Sampling;
use elman::nn::{CharRnn, CharRnnOptions, Init, Parameters};
use elman::text::Vocabulary;
use elman::{Device, Reader, rng};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};

use super::document::Document;
use super::editor::{Editor, Settings};
use super::layout::{Row, find, rows};
use super::screen::Screen;
use super::session::Session;
use crate::cli::tokens::{Tokens, Unknown};

const KNOWN: &str = "\n abcdefghijklmnopqrstuvwxyzäé漢字e\u{301}";

struct Model {
    tokens: Tokens,
    sizes: CharRnnOptions,
    network: CharRnn,
    parameters: Parameters,
}

impl Model {
    fn new(tokens: Tokens) -> Self {
        let sizes = CharRnnOptions::new(tokens.len(), 8, 16).cell(elman::nn::Cell::Gru);
        let mut init = Init::new(rng::manual_seed(5));
        let network = CharRnn::new(&mut init, sizes).unwrap();
        let parameters = init.upload(&Device::cpu()).unwrap();
        Self { tokens, sizes, network, parameters }
    }

    fn characters() -> Self {
        Self::new(Tokens::Characters(Vocabulary::of(KNOWN)))
    }

    fn editor(&self, text: &str, context: usize) -> Editor {
        let never = self.tokens.never();
        let sampling = Sampling { temperature: 0.9, seed: 1, never, ..Sampling::default() };
        let settings = Settings { sampling, suggest: 12, pace: 60, context };
        let text = self.tokens.known(text.as_bytes());
        Editor::new(&self.network, &self.sizes, &self.parameters, self.tokens.clone(), text, settings).unwrap()
    }
}

/// Does all that is due.
fn settle(editor: &mut Editor) {
    let later = Instant::now() + Duration::from_secs(1);
    while editor.due(later).is_some() {
        editor.work(later).unwrap();
    }
}

/// The model writes so many pieces.
fn write_on(editor: &mut Editor, pieces: usize) {
    editor.write_on();
    let mut now = Instant::now();
    let mut done = 0;
    while done < pieces {
        now += Duration::from_secs(1);
        let before = editor.text().len();
        editor.work(now).unwrap();
        done += usize::from(editor.text().len() > before);
    }
    editor.stop();
}

fn text(editor: &Editor) -> String {
    editor.tokens.text(editor.text())
}

#[test]
fn what_is_typed_taken_and_undone() {
    let model = Model::characters();
    let mut editor = model.editor("", 1000);
    assert!(!editor.is_changed());
    for c in "ab cd".chars() {
        assert_eq!(editor.insert(&c.to_string()), None);
    }
    assert_eq!(editor.insert("Q").unwrap(), "the model does not know 'Q'");
    settle(&mut editor);
    let suggested = editor.suggestion().to_vec();
    assert!(!suggested.is_empty());
    // What was suggested and is typed leaves the rest.
    let first = editor.tokens.text(&suggested[..1]);
    editor.insert(&first);
    assert_eq!(editor.suggestion(), &suggested[1..]);
    editor.take();
    assert!(editor.text().ends_with(&suggested));
    let all = text(&editor);
    let steps = std::iter::from_fn(|| editor.undo().then(|| text(&editor)));
    let steps: Vec<_> = steps.collect();
    assert!(steps.contains(&"ab ".to_owned()), "a word is a step: {steps:?}");
    assert_eq!(steps.last().unwrap(), "");
    assert!(!editor.is_changed());
    while editor.redo() {}
    assert_eq!(text(&editor), all);
    assert!(editor.is_changed());
}

#[test]
fn another_suggestion_is_another_and_a_word_of_it_is_a_word() {
    let model = Model::characters();
    let mut editor = model.editor("ab cd", 1000);
    editor.move_to(5);
    settle(&mut editor);
    let one = editor.suggestion().to_vec();
    editor.another();
    settle(&mut editor);
    assert_ne!(editor.suggestion(), one);
    let suggested = editor.tokens.text(editor.suggestion());
    editor.take_word();
    let end = text(&editor).split_off(5);
    assert!(suggested.starts_with(&end) && end.split_whitespace().count() == 1, "{end:?} of {suggested:?}");
    assert!(suggested.len() == end.len() || suggested[end.len()..].starts_with([' ', '\n']));
}

#[test]
fn what_the_model_writes_by_itself_is_one_step() {
    let model = Model::characters();
    let mut editor = model.editor("ab cd", 1000);
    editor.move_to(2);
    settle(&mut editor);
    let suggested = editor.suggestion().to_vec();
    write_on(&mut editor, 9);
    assert!(editor.text()[2..].starts_with(&suggested), "it begins as it suggested");
    assert_eq!((editor.cursor(), editor.text().len()), (20, 23));
    assert!(editor.undo());
    assert_eq!((text(&editor), editor.cursor()), ("ab cd".into(), 2));
}

#[test]
fn what_a_paste_has_that_is_unknown_is_named() {
    let model = Model::characters();
    let mut editor = model.editor("", 1000);
    assert!(editor.insert("a“b”\tc“").unwrap().ends_with("4 characters, '“', '”', '\\t'"));
    assert_eq!(text(&editor), "abc");
    let bytes = Model::new(Tokens::Bytes);
    let mut editor = bytes.editor("", 1000);
    assert_eq!(editor.insert("a“漢"), None);
    editor.backspace();
    assert_eq!(text(&editor), "a“");
    editor.move_to(editor.before(editor.cursor()));
    assert_eq!(editor.cursor(), 1);
    editor.delete();
    assert_eq!(text(&editor), "a");
}

#[derive(Clone, Debug)]
enum Do {
    Insert(String),
    Take,
    TakeWord,
    TakeLikely(usize),
    Another,
    WriteOn(usize),
    Backspace,
    Delete,
    DeleteWord,
    Undo,
    Redo,
    Move(usize),
    Save,
    Work(usize),
    Settle,
}

fn doing() -> impl Strategy<Value = Do> {
    prop_oneof![
        6 => "[a-cäQ漢 \n]{1,3}".prop_map(Do::Insert),
        1 => "[a-c \n“]{20,60}".prop_map(Do::Insert),
        1 => Just(Do::Take),
        1 => Just(Do::TakeWord),
        1 => (0..6usize).prop_map(Do::TakeLikely),
        1 => Just(Do::Another),
        1 => (1..4usize).prop_map(Do::WriteOn),
        3 => Just(Do::Backspace),
        1 => Just(Do::Delete),
        1 => Just(Do::DeleteWord),
        3 => Just(Do::Undo),
        2 => Just(Do::Redo),
        3 => any::<usize>().prop_map(Do::Move),
        1 => Just(Do::Save),
        4 => (1..4usize).prop_map(Do::Work),
        3 => Just(Do::Settle),
    ]
}

fn obey(editor: &mut Editor, what: &Do) {
    match what {
        Do::Insert(text) => drop(editor.insert(text)),
        Do::Take => editor.take(),
        Do::TakeWord => editor.take_word(),
        Do::TakeLikely(place) => editor.take_likely(*place),
        Do::Another => editor.another(),
        Do::WriteOn(pieces) => write_on(editor, *pieces),
        Do::Backspace => editor.backspace(),
        Do::Delete => editor.delete(),
        Do::DeleteWord => editor.delete_word(),
        Do::Undo => drop(editor.undo()),
        Do::Redo => drop(editor.redo()),
        Do::Move(to) => editor.move_to(to % (editor.text().len() + 1)),
        Do::Save => editor.set_saved(),
        Do::Work(pieces) => {
            for _ in 0..*pieces {
                editor.work(Instant::now() + Duration::from_secs(1)).unwrap();
            }
        }
        Do::Settle => settle(editor),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever was done, the model has read what stands before the cursor, and thinks of it what it thinks at first sight.
    #[test]
    fn the_model_knows_what_stands_before_the_cursor(
        all in prop::collection::vec(doing(), 1..40),
        is_bytes: bool,
        context in prop_oneof![Just(16usize), Just(10_000)],
        kept in prop_oneof![Just(3usize), Just(10_000)],
    ) {
        let model = if is_bytes { Model::new(Tokens::Bytes) } else { Model::characters() };
        let mut editor = model.editor("abc ab\nc", context);
        editor.keep_at_most(kept);
        let mut saved = editor.text().to_vec();
        for what in &all {
            obey(&mut editor, what);
            if matches!(what, Do::Save) {
                saved = editor.text().to_vec();
            }
            prop_assert!(editor.is_changed() || editor.text() == saved, "after {what:?}");
        }
        settle(&mut editor);
        let (read, before) = (editor.read().to_vec(), &editor.text()[..editor.cursor()]);
        if before.is_empty() {
            prop_assert_eq!(&read, &model.tokens.known(b"\n"));
        } else {
            prop_assert!(before.ends_with(&read));
            prop_assert!(read.len() == before.len() || read.len() >= context / 2);
            prop_assert!(read.len() <= 2 * context);
            prop_assert_eq!(editor.bits().len(), read.len());
        }
        let mut fresh = Reader::new(&model.network, &model.parameters, 1).unwrap();
        fresh.skip(&read).unwrap();
        let logits = fresh.logits().unwrap();
        let likeliest = super::editor::likeliest(&logits, model.tokens.never());
        prop_assert_eq!(editor.likeliest().unwrap(), &likeliest[..]);
        let (end, length) = (editor.text().to_vec(), editor.text().len());
        let undone = std::iter::from_fn(|| editor.undo().then_some(())).count();
        prop_assert_eq!(text(&editor), "abc ab\nc");
        let redone = std::iter::from_fn(|| editor.redo().then_some(())).count();
        prop_assert!(redone >= undone);
        if redone == undone {
            prop_assert_eq!(editor.text(), &end[..], "{} tokens", length);
        }
    }

    /// Each place of a text has a place in the window, in order, and the other way round.
    #[test]
    fn every_place_is_somewhere(text in "[a-c漢é \n]{0,80}", width in 2usize..12, cursor: usize) {
        let model = Model::characters();
        let mut editor = model.editor(&text, 1000);
        editor.move_to(cursor % (editor.text().len() + 1));
        let rows = rows(&editor, width, 200, false);
        let mut last = None;
        for at in 0..=editor.text().len() {
            let place = find(&rows, at);
            prop_assert!(last < Some(place) || text.contains(' '), "{at} of {text:?}: {place:?} after {last:?}");
            prop_assert!(last <= Some(place) && place.1 <= width);
            last = Some(place);
        }
        for Row(glyphs) in &rows {
            prop_assert!(glyphs.iter().all(|glyph| glyph.column + glyph.width <= width));
        }
    }
}

/// A session, on a screen of this size.
struct Shown {
    session: Session,
    terminal: Terminal<TestBackend>,
}

impl Shown {
    fn new(editor: Editor, document: Document, [width, height]: [u16; 2]) -> Self {
        let session = Session::new(editor, Screen::new(false), document, "gru 1×16".into());
        Self { session, terminal: Terminal::new(TestBackend::new(width, height)).unwrap() }
    }

    fn press(&mut self, code: KeyCode, modifiers: KeyModifiers) {
        self.session.take(Event::Key(KeyEvent::new(code, modifiers))).unwrap();
    }

    fn control(&mut self, c: char) {
        self.press(KeyCode::Char(c), KeyModifiers::CONTROL);
    }

    fn type_in(&mut self, text: &str) {
        text.chars().for_each(|c| self.press(KeyCode::Char(c), KeyModifiers::NONE));
    }

    /// The rows of the screen.
    fn rows(&mut self) -> Vec<String> {
        let later = Instant::now() + Duration::from_secs(1);
        while self.session.due(later).is_some() {
            self.session.work(later).unwrap();
        }
        self.terminal.draw(|frame| self.session.draw(frame)).unwrap();
        let buffer = self.terminal.backend().buffer();
        let row = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..buffer.area.height).map(row).collect()
    }
}

#[test]
fn every_size_of_screen_shows_something() {
    let model = Model::characters();
    for width in [1, 2, 5, 20, 40, 71, 72, 73, 120] {
        for height in [1, 2, 3, 4, 5, 10, 16, 40] {
            let mut shown =
                Shown::new(model.editor(&"ab 漢 cd\n".repeat(30), 1000), Document::default(), [width, height]);
            shown.rows();
            for code in [KeyCode::PageDown, KeyCode::End, KeyCode::Down, KeyCode::Char('Q'), KeyCode::PageUp] {
                shown.press(code, KeyModifiers::NONE);
                shown.rows();
            }
            shown.control('s');
            shown.rows();
        }
    }
}

#[test]
fn a_text_is_typed_shown_saved_and_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("letter");
    let model = Model::characters();
    let mut shown = Shown::new(model.editor("", 1000), Document::default(), [40, 10]);
    shown.type_in("ab 漢字");
    shown.press(KeyCode::Enter, KeyModifiers::NONE);
    shown.type_in("cQ");
    let rows = shown.rows();
    assert!(rows[0].starts_with(" no name yet*") && rows[0].ends_with("T 0.90 "), "{rows:?}");
    // The second column of a wide character is a cell by itself.
    assert!(rows[1].starts_with("ab 漢 字 ") && rows[2].starts_with('c'), "{rows:?}");
    assert!(rows[9].starts_with("the model does not know 'Q'"), "{rows:?}");
    shown.control('q');
    assert!(shown.rows()[9].starts_with("Save before quitting?"));
    shown.type_in("y");
    shown.type_in(file.to_str().unwrap());
    shown.press(KeyCode::Enter, KeyModifiers::NONE);
    assert!(shown.session.has_ended());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ab 漢字\nc");
    // Another text does not replace it unasked.
    let mut shown = Shown::new(model.editor("a", 1000), Document::default(), [40, 10]);
    shown.control('s');
    shown.type_in(file.to_str().unwrap());
    shown.press(KeyCode::Enter, KeyModifiers::NONE);
    shown.press(KeyCode::Esc, KeyModifiers::NONE);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ab 漢字\nc");
    shown.control('c');
    assert!(shown.session.has_ended(), "nothing was changed");
}

#[test]
fn what_was_not_saved_is_rescued() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("letter");
    std::fs::write(&file, "\u{feff}ab\r\nc\r\n").unwrap();
    let model = Model::characters();
    let (document, text, left_out) = Document::open(Some(&file), &model.tokens, Unknown::Error).unwrap();
    assert_eq!((model.tokens.text(&text), left_out), ("ab\nc\n".into(), 0));
    let mut shown = Shown::new(model.editor("ab\nc\n", 1000), document, [80, 24]);
    assert_eq!(shown.session.rescue().unwrap(), None);
    shown.type_in("d");
    let rescued = shown.session.rescue().unwrap().unwrap();
    assert_eq!(rescued.file_name().unwrap(), "letter.unsaved");
    assert_eq!(std::fs::read_to_string(rescued).unwrap(), "\u{feff}dab\r\nc\r\n");
    std::fs::write(&file, "aQ").unwrap();
    let error = Document::open(Some(&file), &model.tokens, Unknown::Error).unwrap_err();
    assert!(format!("{error:#}").contains("'Q'"), "{error:#}");
}

#[test]
fn rows_are_gone_up_and_down_by_column() {
    let model = Model::characters();
    let mut shown = Shown::new(model.editor("abcdef\nab\nabcdef", 1000), Document::default(), [40, 10]);
    shown.rows();
    for _ in 0..4 {
        shown.press(KeyCode::Right, KeyModifiers::NONE);
    }
    shown.press(KeyCode::Down, KeyModifiers::NONE);
    shown.press(KeyCode::Down, KeyModifiers::NONE);
    shown.type_in("x");
    assert!(shown.rows().iter().any(|row| row.starts_with("abcdx")), "{:?}", shown.rows());
}
