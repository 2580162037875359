//! What keys do, what is asked, and the file: all of `elman write` but the terminal.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use elman::io::write_atomically;
use ratatui::Frame;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::document::Document;
use super::editor::{Editor, LIKELIEST};
use super::layout::{find, rows};
use super::screen::{Around, Screen};

/// A step of the temperature.
const STEP: f32 = 0.05;

const HOTTEST: f32 = 5.0;

/// What an editor, a screen and a file are together.
pub struct Session {
    editor: Editor,
    screen: Screen,
    document: Document,
    model: String,
    notice: Option<String>,
    question: Option<Question>,
    /// The column that the cursor would have if each row were long enough.
    column: Option<usize>,
    has_ended: bool,
}

/// What is to be answered first.
enum Question {
    /// Where to save the text; whether to quit then.
    Name { name: String, quits: bool },
    /// Whether to replace a file that was not opened.
    Replace { path: PathBuf, quits: bool },
    /// Whether to save the text before the end.
    Quit,
}

impl Session {
    pub fn new(editor: Editor, screen: Screen, document: Document, model: String) -> Self {
        Self { editor, screen, document, model, notice: None, question: None, column: None, has_ended: false }
    }

    /// The text is not all of its file.
    pub fn left_out(&mut self, count: usize) {
        self.editor.set_changed();
        self.notice =
            Some(format!("left out: {count} characters that the model does not know; saving leaves them out"));
    }

    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    pub fn due(&self, now: Instant) -> Option<Duration> {
        self.editor.due(now)
    }

    pub fn work(&mut self, now: Instant) -> Result<()> {
        self.editor.work(now)
    }

    pub fn draw(&mut self, frame: &mut Frame) {
        let name = match &self.document.path {
            Some(path) => path.file_name().map_or(path.display().to_string(), |name| name.display().to_string()),
            None => "no name yet".into(),
        };
        let asked = match &self.question {
            Some(Question::Name { name, .. }) => Some(format!("Save as: {name}")),
            Some(Question::Replace { path, .. }) => Some(format!("{} is there: replace it? y/n ", path.display())),
            Some(Question::Quit) => Some("Save before quitting? y/n, Esc stays ".into()),
            None => None,
        };
        let writes = || self.editor.writes().then(|| "the model writes: any key stops it".to_owned());
        let notice = asked.or(self.notice.clone()).or_else(writes);
        let around =
            Around { name: &name, model: &self.model, notice: notice.as_deref(), asks: self.question.is_some() };
        self.screen.draw(frame, &self.editor, &around);
    }

    /// What the terminal says.
    pub fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.press(key),
            Event::Paste(text) => {
                self.paste(&text);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn paste(&mut self, text: &str) {
        if let Some(Question::Name { name, .. }) = &mut self.question {
            name.extend(text.chars().filter(|c| !c.is_control()));
        } else if self.question.is_none() {
            self.editor.stop();
            self.column = None;
            // Terminals send the ends of lines as they please.
            self.notice = self.editor.insert(&text.replace("\r\n", "\n").replace('\r', "\n"));
        }
    }

    fn press(&mut self, key: KeyEvent) -> Result<()> {
        if let Some(question) = self.question.take() {
            self.answer(question, key);
            return Ok(());
        }
        self.notice = None;
        if self.editor.writes() {
            // The key does nothing else, unless it is text or has to do with the end.
            self.editor.stop();
            let goes_on =
                matches!(key.code, KeyCode::Char(c) if key.modifiers.contains(KeyModifiers::CONTROL) && c != 'g');
            let is_text = matches!(key.code, KeyCode::Char(_)) && !key.modifiers.contains(KeyModifiers::CONTROL);
            if !goes_on && !is_text {
                return Ok(());
            }
        }
        let column = self.column.take();
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        // Both at once are AltGr on some systems, which types characters.
        let is_text = control == alt;
        let editor = &mut self.editor;
        match key.code {
            KeyCode::Char(c) if is_text => self.notice = editor.insert(c.encode_utf8(&mut [0; 4])),
            KeyCode::Char(c) if alt => match c.to_digit(10) {
                Some(place) if (1..=LIKELIEST).contains(&(place as usize)) => editor.take_likely(place as usize - 1),
                _ if c == '+' || c == '=' => self.warm(STEP)?,
                _ if c == '-' => self.warm(-STEP)?,
                _ => {}
            },
            KeyCode::Char(c) => match c.to_ascii_lowercase() {
                'n' if editor.settings().sampling.temperature == 0.0 => {
                    self.notice = Some("at temperature 0 there is one suggestion: Ctrl-↑ for more".into());
                }
                'n' => editor.another(),
                'g' => editor.write_on(),
                'z' => self.notice = (!editor.undo()).then(|| "nothing to undo".into()),
                'y' => self.notice = (!editor.redo()).then(|| "nothing to redo".into()),
                'w' => editor.delete_word(),
                // What some terminals send for Backspace, with Ctrl or without.
                'h' => editor.backspace(),
                'a' => self.move_in_rows(|_, row| (row, Some(0)), column),
                'e' => self.move_in_rows(|_, row| (row, None), column),
                's' => self.save(false),
                'q' | 'c' => self.quit(),
                _ => {}
            },
            KeyCode::F(place) if (1..=LIKELIEST).contains(&place.into()) => editor.take_likely(usize::from(place) - 1),
            KeyCode::Enter => self.notice = editor.insert("\n"),
            KeyCode::Esc => editor.dismiss(),
            KeyCode::Tab => editor.take(),
            KeyCode::BackTab => editor.take_word(),
            KeyCode::Backspace if control || alt => editor.delete_word(),
            KeyCode::Backspace => editor.backspace(),
            KeyCode::Delete => editor.delete(),
            KeyCode::Up if control || alt => self.warm(STEP)?,
            KeyCode::Down if control || alt => self.warm(-STEP)?,
            KeyCode::Left if control || alt => editor.move_to(editor.word_before()),
            KeyCode::Right if control || alt => editor.move_to(editor.word_after()),
            KeyCode::Left => editor.move_to(editor.before(editor.cursor())),
            KeyCode::Right if editor.cursor() == editor.text().len() => editor.take_word(),
            KeyCode::Right => editor.move_to(editor.after(editor.cursor())),
            KeyCode::Home if control => editor.move_to(0),
            KeyCode::End if control => editor.move_to(editor.text().len()),
            KeyCode::Home => self.move_in_rows(|_, row| (row, Some(0)), column),
            KeyCode::End => self.move_in_rows(|_, row| (row, None), column),
            KeyCode::Up => self.move_rows(-1, column),
            KeyCode::Down => self.move_rows(1, column),
            KeyCode::PageUp => self.move_rows(1 - self.screen.height as isize, column),
            KeyCode::PageDown => self.move_rows(self.screen.height as isize - 1, column),
            _ => {}
        }
        Ok(())
    }

    /// Moves by rows of the window, to the same column if there is one.
    fn move_rows(&mut self, by: isize, column: Option<usize>) {
        let to = |column: usize, row: usize| (row.saturating_add_signed(by), Some(column));
        self.move_in_rows(to, column);
    }

    /// Moves to a row and a column (None: its end), given where the cursor is.
    fn move_in_rows(&mut self, to: impl Fn(usize, usize) -> (usize, Option<usize>), wished: Option<usize>) {
        let rows = rows(&self.editor, self.screen.width, self.screen.height, false);
        let (row, column) = find(&rows, self.editor.cursor());
        let wished = wished.unwrap_or(column);
        let (to_row, to_column) = to(wished, row);
        let at = rows[to_row.min(rows.len() - 1)].at(to_column.unwrap_or(usize::MAX));
        self.editor.move_to(at);
        self.column = Some(wished).filter(|_| to_row != row);
    }

    fn warm(&mut self, by: f32) -> Result<()> {
        let now = self.editor.settings().sampling.temperature;
        // Without what additions leave over.
        let next = (((now + by) / STEP).round() * STEP).clamp(0.0, HOTTEST.max(now));
        self.editor.set_temperature(next)
    }

    fn answer(&mut self, question: Question, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let leaves = key.code == KeyCode::Esc || control && matches!(key.code, KeyCode::Char('c' | 'q'));
        self.notice = None;
        match (question, key.code) {
            (Question::Quit, KeyCode::Char('c' | 'q')) if control => self.question = Some(Question::Quit),
            (_, _) if leaves => {}
            (Question::Quit, KeyCode::Char('y' | 'Y')) => self.save(true),
            (Question::Quit, KeyCode::Char('n' | 'N')) => self.has_ended = true,
            (Question::Quit, _) => self.question = Some(Question::Quit),
            (Question::Replace { path, quits }, KeyCode::Char('y' | 'Y')) => self.save_as(&path, quits),
            (Question::Replace { path, quits }, KeyCode::Char('n' | 'N')) => {
                self.question = Some(Question::Name { name: path.display().to_string(), quits });
            }
            (question @ Question::Replace { .. }, _) => self.question = Some(question),
            (Question::Name { name, quits }, KeyCode::Enter) if !name.is_empty() => match PathBuf::from(name) {
                path if path.exists() => self.question = Some(Question::Replace { path, quits }),
                path => self.save_as(&path, quits),
            },
            (Question::Name { mut name, quits }, code) => {
                match code {
                    KeyCode::Backspace => drop(name.pop()),
                    KeyCode::Char(c) if !control => name.push(c),
                    _ => {}
                }
                self.question = Some(Question::Name { name, quits });
            }
        }
    }

    fn quit(&mut self) {
        if self.editor.is_changed() && !(self.document.path.is_none() && self.editor.text().is_empty()) {
            self.question = Some(Question::Quit);
        } else {
            self.has_ended = true;
        }
    }

    fn save(&mut self, quits: bool) {
        match self.document.path.clone() {
            Some(path) => self.save_as(&path, quits),
            None => self.question = Some(Question::Name { name: String::new(), quits }),
        }
    }

    fn save_as(&mut self, path: &Path, quits: bool) {
        match self.write(path) {
            Ok(()) => {
                self.document.path = Some(path.into());
                self.editor.set_saved();
                self.notice = Some(format!("saved {}", path.display()));
                self.has_ended = quits;
            }
            Err(error) => self.notice = Some(format!("{} cannot be saved: {error}", path.display())),
        }
    }

    fn write(&self, path: &Path) -> elman::Result<()> {
        write_atomically(path, &self.document.bytes(&self.editor.tokens.bytes(self.editor.text())))
    }

    /// Puts what is not saved into a file beside, and says which.
    pub fn rescue(&self) -> Result<Option<PathBuf>> {
        if !self.editor.is_changed() || self.editor.text().is_empty() {
            return Ok(None);
        }
        let path = self.document.path.clone().unwrap_or_else(|| "elman-write".into());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names = (1..).map(|n| if n == 1 { format!("{name}.unsaved") } else { format!("{name}.unsaved-{n}") });
        let path = names.map(|name| path.with_file_name(name)).find(|path| !path.exists()).unwrap_or(path);
        self.write(&path)?;
        Ok(Some(path))
    }
}
