//! What is seen of a training: lines, a bar, JSON.

use anyhow::Result;
use clap::Args;
use elman::Device;
use serde_json::json;
use std::path::Path;

use super::settings::Recipe;
use crate::cli::shared::progress::{Progress, duration};
use crate::cli::shared::run::Epoch;
use crate::cli::shared::{say, with_separators};
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

/// What is printed.
pub struct View {
    options: Options,
    /// That something else has the terminal.
    is_covered: bool,
    has_header: bool,
    unit: &'static str,
    pub progress: Progress,
}

impl View {
    pub fn new(options: &Options, is_covered: bool, steps: usize, tokens_of_a_step: usize, unit: &'static str) -> Self {
        let is_hidden = options.quiet || options.json || is_covered;
        let progress = Progress::new(is_hidden, 0..steps, tokens_of_a_step, unit);
        Self { options: options.clone(), is_covered, has_header: false, unit, progress }
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

    pub fn evaluated(&mut self, evaluation: &Evaluation) -> Result<()> {
        if self.options.json {
            let Evaluation { row, pass, is_best, lr, sample } = evaluation;
            let step = row.steps_so_far.unwrap_or(0);
            say!(
                "{}",
                json!({
                    "event": "evaluation",
                    "step": step,
                    "pass": step as f64 / *pass as f64,
                    "train_loss": row.train_loss,
                    "val_loss": row.val_loss,
                    "bits": row.val_loss / std::f64::consts::LN_2,
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
        let is_first = !std::mem::replace(&mut self.has_header, true);
        self.progress.suspend(|| self.print(evaluation, is_first))
    }

    fn print(&self, Evaluation { row, pass, is_best, sample, .. }: &Evaluation, is_first: bool) -> Result<()> {
        if is_first {
            say!("  step    pass  train loss  held-out loss   bits  seconds  {}/s", self.unit);
        }
        let step = row.steps_so_far.unwrap_or(0);
        let (pass, bits) = (step as f64 / *pass as f64, row.val_loss / std::f64::consts::LN_2);
        let Epoch { train_loss, val_loss, seconds, chars_per_second, .. } = row;
        let best = if *is_best { "  best" } else { "" };
        let speed = with_separators(*chars_per_second as u64);
        say!("{step:6}  {pass:6.2}  {train_loss:10.4}  {val_loss:13.4}  {bits:5.3}  {seconds:7.1}  {speed:>12}{best}");
        let (prompt, drawn) = *sample;
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
        self.progress.end();
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
