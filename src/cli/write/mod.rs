//! `elman write`: an editor in which a model writes along.

mod document;
mod editor;
mod layout;
mod screen;
mod session;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use ratatui::crossterm::event::{self, DisableBracketedPaste, EnableBracketedPaste};
use ratatui::crossterm::execute;

use super::model::Model;
use super::sampling::SeededArgs;
use super::shared::{DeviceArgs, INTERRUPTED, LIST, RECOVERIES};
use super::terminal;
use super::tokens::Unknown;
use document::Document;
use editor::{Editor, Settings};
use screen::Screen;
use session::Session;

/// Write a text yourself, with a model that suggests how it goes on
#[derive(Args)]
#[command(after_help = HELP)]
pub struct Options {
    /// Model file, or a run's folder: the best model there
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The text: a file, or the name of a new one
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// What becomes of characters of the file that the model does not know
    #[arg(long, value_enum, default_value_t)]
    unknown: Unknown,
    /// Tokens of a suggestion; 0: none
    #[arg(long, default_value_t = 40, value_name = "N")]
    suggest: usize,
    /// Tokens a second that the model writes by itself
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pace: u32,
    /// In a long text, the model reads at least half so many tokens before the cursor, and not from the beginning
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    context: u32,
    #[command(flatten)]
    sampling: SeededArgs,
}

const HELP: &str = "\
Keys:
  Tab                  take the suggestion, which stands at the cursor
  Shift-Tab            take one word of it; Right does so at the end of the text
  Ctrl-N, Esc          another suggestion, none
  Ctrl-G               the model writes on by itself, until a key is pressed
  Alt-1..5, F1..F5     take one of the five likeliest characters
  Ctrl-Up, Ctrl-Down   temperature; so do Alt-Up, Alt-Down
  Ctrl-Z, Ctrl-Y       undo, redo
  Ctrl-W               delete the word before the cursor
  Ctrl-Left, Ctrl-Right, Home, End, PageUp, PageDown, Ctrl-Home, Ctrl-End
  Ctrl-S, Ctrl-Q       save, quit

Surprise is how many bits the model would need for what was typed: 0 for what it was sure of.

Examples:
  elman write book
  elman write book letter.txt --temp 0.6 --min-p 0.05";

/// Something is looked for that no key says, such as a signal, at least so often.
const LOOK: Duration = Duration::from_millis(250);

/// The system wants the program to end.
static ENDS: AtomicBool = AtomicBool::new(false);

pub fn run(options: &Options) -> Result<ExitCode> {
    let is_list = options.device.device == LIST;
    ensure!(
        is_list || io::stdin().is_terminal() && io::stdout().is_terminal(),
        "elman write needs a terminal for its keys and its screen: use elman sample where there is none"
    );
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    device.set_recoveries(RECOVERIES)?;
    let model = Model::load(&options.model, &device)?;
    let (document, text, left_out) = Document::open(options.file.as_deref(), &model.tokens, options.unknown)?;
    let settings = Settings {
        sampling: options.sampling.sampling(&model.tokens),
        suggest: options.suggest,
        pace: options.pace as usize,
        context: options.context as usize,
    };
    let name = model.config.model.to_lowercase();
    let name = format!("{name} {}×{}", model.config.sizes.num_layers, model.config.sizes.hidden);
    let tokens = model.tokens.clone();
    let editor = Editor::new(&model.network, &model.config.sizes, &model.parameters, tokens, text, settings)?;
    let mut session = Session::new(editor, Screen::new(terminal::has_colors()), document, name);
    if left_out > 0 {
        session.left_out(left_out);
    }
    // In the terminal's raw mode Ctrl-C is a key; this is for the signals of others.
    let _ = ctrlc::set_handler(|| ENDS.store(true, Ordering::Relaxed));
    let done = in_terminal(&mut session);
    if done.is_err() || !session.has_ended() {
        // Something else has ended it: what was written is not lost.
        if let Some(file) = session.rescue()? {
            let what = || format!("what was not saved is in {}", file.display());
            done.with_context(what)?;
            anyhow::bail!("{}", what());
        }
        done?;
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

/// The terminal's screen and keys are the session's; both are given back whatever happens, a panic too.
fn in_terminal(session: &mut Session) -> Result<()> {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = execute!(io::stdout(), DisableBracketedPaste);
            let _ = ratatui::try_restore();
        }
    }
    let restore = Restore;
    let mut screen = ratatui::try_init().context("the terminal cannot be taken over")?;
    execute!(io::stdout(), EnableBracketedPaste)?;
    let done = (|| {
        while !session.has_ended() && !ENDS.load(Ordering::Relaxed) {
            screen.draw(|frame| session.draw(frame))?;
            let due = session.due(Instant::now());
            if terminal::poll(due.map_or(LOOK, |due| due.min(LOOK)))? {
                // All that were waiting, before anything is computed or drawn.
                session.take(event::read()?)?;
                while terminal::poll(Duration::ZERO)? && !session.has_ended() {
                    session.take(event::read()?)?;
                }
            }
            let now = Instant::now();
            if session.due(now).is_some_and(|due| due.is_zero()) {
                session.work(now)?;
            }
        }
        Ok(())
    })();
    drop(restore);
    done
}
