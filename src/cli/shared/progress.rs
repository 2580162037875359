//! How far a training is: a bar with the loss, the speed, the time that is left.

use std::ops::Range;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::run::smooth;
use super::with_separators;

/// How fast it goes.
#[derive(Clone, Copy)]
pub struct Rate {
    pub tokens_per_second: f64,
    pub seconds_left: f64,
}

pub struct Progress {
    bar: ProgressBar,
    steps: Range<usize>,
    tokens_of_a_step: usize,
    unit: &'static str,
    /// Steps done when it was started, and since when.
    first: Option<(usize, Instant)>,
}

impl Progress {
    /// Of these steps of a training; units are what tokens are: characters, or bytes.
    pub fn new(is_hidden: bool, steps: Range<usize>, tokens_of_a_step: usize, unit: &'static str) -> Self {
        let bar = if is_hidden { ProgressBar::hidden() } else { ProgressBar::new(steps.len() as u64) };
        let style = ProgressStyle::with_template("{bar:30} step {pos}/{len}  {msg}").expect("a good template");
        bar.set_style(style);
        Self { bar, steps, tokens_of_a_step, unit, first: None }
    }

    /// The losses of all steps so far, and the learning rate now. Gives how fast it goes, when that is known.
    pub fn stepped(&mut self, losses: &[f32], lr: f64) -> Option<Rate> {
        let (first, since) = *self.first.get_or_insert((losses.len(), Instant::now()));
        let done = losses.len() - first;
        let loss = smooth(&losses[losses.len().saturating_sub(500)..]).last().unwrap_or(f64::NAN);
        let seconds = since.elapsed().as_secs_f64() / done.max(1) as f64;
        let rate = (done > 0).then(|| Rate {
            tokens_per_second: self.tokens_of_a_step as f64 / seconds,
            seconds_left: seconds * (self.steps.end - losses.len()) as f64,
        });
        let speed = rate.map_or_else(String::new, |rate| {
            let (speed, left) = (with_separators(rate.tokens_per_second as u64), duration(rate.seconds_left));
            format!("  {speed} {}/s  {left} left", self.unit)
        });
        self.bar.set_position((losses.len() - self.steps.start) as u64);
        let bits = loss / std::f64::consts::LN_2;
        self.bar.set_message(format!("loss {loss:.4}  {bits:.3} bits  lr {lr:.1e}{speed}"));
        rate
    }

    /// Makes room for lines that are printed.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Seconds in words.
pub fn duration(seconds: f64) -> String {
    indicatif::HumanDuration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9))).to_string()
}
