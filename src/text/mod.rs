//! Text as tokens, and windows of it as batches.

mod file;
mod vocabulary;
mod windows;

pub use file::{FileWindows, TextFile};
pub use vocabulary::Vocabulary;
pub use windows::{Batch, Corpus, Windows, hold_out};
