//! What is seen of a training: lines, a bar, JSON.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use elman::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::settings::Recipe;
use crate::cli::model::with_separators;
use crate::cli::shared::run::{Epoch, smooth};
use crate::cli::shared::say;
use crate::cli::text::Text;

#[derive(Args, Clone)]
pub struct Options {
    /// Print only the table of evaluations, without samples and bar
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON in place of text: a line for the start, for each evaluation, for the end
    #[arg(long)]
    json: bool,
}

/// What there is to say before the first step.
pub struct Introduction<'a> {
    pub device: &'a Device,
    pub text: &'a Text,
    pub held_out: usize,
    pub network: String,
    pub recipe: &'a Recipe,
    pub pass: usize,
    pub steps: usize,
    pub every: usize,
    /// Of a step, where some were timed.
    pub seconds: Option<f64>,
    pub out: &'a Path,
    pub done: usize,
}

/// What an evaluation has shown.
pub struct Evaluation<'a> {
    pub row: &'a Epoch,
    /// Steps of a pass.
    pub pass: usize,
    pub is_best: bool,
    pub lr: f64,
    /// The prompt, and what was drawn.
    pub sample: &'a (String, String),
}

/// How fast it goes.
#[derive(Clone, Copy)]
pub struct Rate {
    pub tokens_per_second: f64,
    pub seconds_left: f64,
}

/// What is printed.
pub struct View {
    options: Options,
    /// That something else has the terminal.
    is_covered: bool,
    has_header: bool,
    bar: ProgressBar,
    steps: usize,
    tokens_of_a_step: usize,
    unit: &'static str,
    /// Steps done when it was started, and since when.
    first: Option<(usize, Instant)>,
}

impl View {
    pub fn new(options: &Options, is_covered: bool, steps: usize, tokens_of_a_step: usize, unit: &'static str) -> Self {
        let hidden = options.quiet || options.json || is_covered;
        let bar = if hidden { ProgressBar::hidden() } else { ProgressBar::new(steps as u64) };
        let style = ProgressStyle::with_template("{bar:30} step {pos}/{len}  {msg}").expect("a good template");
        bar.set_style(style);
        Self {
            options: options.clone(),
            is_covered,
            has_header: false,
            bar,
            steps,
            tokens_of_a_step,
            unit,
            first: None,
        }
    }

    pub fn introduce(&mut self, all: &Introduction) -> Result<()> {
        let Introduction { device, text, held_out, network, recipe, pass, steps, every, seconds, out, done } = all;
        let left = (steps - done) as f64;
        if self.options.json {
            say!(
                "{}",
                json!({
                    "event": "start",
                    "device": device.describe(),
                    "tokens": text.len(),
                    "held_out": held_out,
                    "vocabulary": text.tokens().len(),
                    "network": network,
                    "recipe": recipe,
                    "steps_of_a_pass": pass,
                    "steps": steps,
                    "steps_done": done,
                    "bytes": device.live_bytes(),
                    "seconds": seconds.map(|seconds| seconds * left),
                    "out": out,
                })
            );
        }
        if self.options.json || self.options.quiet || self.is_covered {
            return Ok(());
        }
        let Recipe { batch, window, optimizer, lr, schedule, clip, patience, .. } = recipe;
        say!("device    {} -- {}", device.describe(), device.reason());
        let files = text.files().count();
        let files = if files == 1 { String::new() } else { format!(" in {files} files") };
        say!(
            "text      {} {}{files}, {} different; the last {} are held out",
            with_separators(text.len() as u64),
            self.unit,
            text.tokens().len() - usize::from(text.tokens().never().is_some()),
            with_separators(*held_out as u64)
        );
        say!("network   {network}");
        say!(
            "training  {batch} streams, windows of {window}, {optimizer:?}, learning rate {lr} ({schedule:?}), clipped at {clip}"
        );
        let stop = match patience {
            0 => String::new(),
            n => format!(", until the held-out loss has not fallen {n} times"),
        };
        say!(
            "steps     {} at most, {} a pass, an evaluation every {}{stop}",
            with_separators(*steps as u64),
            with_separators(*pass as u64),
            with_separators(*every as u64)
        );
        let memory = device.live_bytes() as f64 / f64::from(1 << 20);
        let time = seconds
            .map_or_else(String::new, |seconds| format!("; about {} if it takes them all", duration(seconds * left)));
        say!("needs     {memory:.0} MiB on the device{time}");
        say!("folder    {}{}", out.display(), if *done > 0 { format!(", from step {done} on") } else { String::new() });
        say!();
        Ok(())
    }

    /// The losses of all steps so far, and the learning rate now. Gives how fast it goes, when that is known.
    pub fn stepped(&mut self, losses: &[f32], lr: f64) -> Option<Rate> {
        let (first, since) = *self.first.get_or_insert((losses.len(), Instant::now()));
        let done = losses.len() - first;
        let recent = &losses[losses.len().saturating_sub(500)..];
        let loss = smooth(recent).last().unwrap_or(f64::NAN);
        let seconds = since.elapsed().as_secs_f64() / done.max(1) as f64;
        let rate = (done > 0).then(|| Rate {
            tokens_per_second: self.tokens_of_a_step as f64 / seconds,
            seconds_left: seconds * (self.steps - losses.len()) as f64,
        });
        let speed = rate.map_or_else(String::new, |rate| {
            let (speed, left) = (with_separators(rate.tokens_per_second as u64), duration(rate.seconds_left));
            format!("  {speed} {}/s  {left} left", self.unit)
        });
        self.bar.set_position(losses.len() as u64);
        let bits = loss / std::f64::consts::LN_2;
        self.bar.set_message(format!("loss {loss:.4}  {bits:.3} bits  lr {lr:.1e}{speed}"));
        rate
    }

    pub fn evaluated(&mut self, Evaluation { row, pass, is_best, lr, sample }: &Evaluation) -> Result<()> {
        let step = row.steps_so_far.unwrap_or(0);
        let bits = row.val_loss / std::f64::consts::LN_2;
        if self.options.json {
            say!(
                "{}",
                json!({
                    "event": "evaluation",
                    "step": step,
                    "pass": step as f64 / *pass as f64,
                    "train_loss": row.train_loss,
                    "val_loss": row.val_loss,
                    "bits": bits,
                    "is_best": is_best,
                    "lr": lr,
                    "seconds": row.seconds,
                    "tokens_per_second": row.chars_per_second,
                    "prompt": sample.0,
                "sample": sample.1,
                })
            );
            return Ok(());
        }
        if self.is_covered {
            return Ok(());
        }
        let mut done = Ok(());
        let bar = self.bar.clone();
        bar.suspend(|| done = self.print(row, step, *pass, bits, *is_best, sample));
        done
    }

    fn print(
        &mut self,
        row: &Epoch,
        step: usize,
        pass: usize,
        bits: f64,
        is_best: bool,
        sample: &(String, String),
    ) -> Result<()> {
        if !std::mem::replace(&mut self.has_header, true) {
            say!("  step    pass  train loss  held-out loss   bits  seconds  {}/s", self.unit);
        }
        let pass = step as f64 / pass as f64;
        let Epoch { train_loss, val_loss, seconds, chars_per_second, .. } = row;
        let best = if is_best { "  best" } else { "" };
        let speed = with_separators(*chars_per_second as u64);
        say!("{step:6}  {pass:6.2}  {train_loss:10.4}  {val_loss:13.4}  {bits:5.3}  {seconds:7.1}  {speed:>12}{best}");
        let (prompt, drawn) = sample;
        if !drawn.is_empty() && !self.options.quiet {
            say!("\n{prompt}|{drawn}\n");
        }
        Ok(())
    }

    pub fn ended(
        &mut self,
        best: Option<(f64, usize)>,
        step: usize,
        has_stopped: bool,
        is_interrupted: bool,
        out: &Path,
    ) -> Result<()> {
        self.bar.finish_and_clear();
        if self.options.json {
            let (loss, at) = best.unzip();
            say!(
                "{}",
                json!({ "event": "end", "step": step, "best_val_loss": loss, "best_step": at, "interrupted": is_interrupted })
            );
            return Ok(());
        }
        if self.options.quiet {
            return Ok(());
        }
        if has_stopped {
            say!("the held-out loss falls no longer");
        }
        if let Some((loss, at)) = best {
            say!("best: step {at}, held-out loss {loss:.4}, {:.3} bits", loss / std::f64::consts::LN_2);
        }
        let out = out.display();
        if is_interrupted {
            say!("stopped at step {step}; `elman train --resume -o {out}` goes on from there");
        }
        say!("write with it: elman sample {out}");
        Ok(())
    }
}

/// Seconds in words.
pub fn duration(seconds: f64) -> String {
    let formatted = indicatif::HumanDuration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    format!("{formatted}")
}
