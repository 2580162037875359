//! What a training run leaves behind: `model.safetensors`, `best.safetensors`, checkpoints, `config.json`, `metrics.jsonl`,
//! `losses.csv`, `loss.svg`.

use std::fmt::Write as _;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use elman::{Autosave, Checkpoint, Trainer};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use super::Failures;

/// The file that marks a folder as a run's, and that a run has locked while it lasts: the system unlocks it however the
/// run ends.
const LOCK: &str = "run.lock";
pub const MODEL: &str = "model.safetensors";
pub const BEST: &str = "best.safetensors";
const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";

/// A folder, and what goes into it. What an earlier run left there stays until its successor is whole.
pub struct Run {
    folder: PathBuf,
    epochs: Vec<Epoch>,
    losses: Vec<f32>,
    autosave: Autosave,
    /// Epochs whose lines are in `metrics.jsonl`, and steps whose are in `losses.csv`; none before that is this run's.
    appended: Option<usize>,
    appended_losses: Option<usize>,
    config: Option<serde_json::Value>,
    _lock: File,
}

const CSV_HEADER: &str = "step,loss\n";

/// Whether a run may write here: there is nothing yet, or what a run left, by the lock or, as runs of older versions had
/// none, by its losses; and the model, if there is one, is an example's.
fn is_a_runs(folder: &Path) -> Result<bool> {
    let nothing = match std::fs::read_dir(folder) {
        Ok(mut files) => files.next().is_none(),
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => return Err(error.into()),
    };
    let is_marked = || {
        folder.join(LOCK).is_file()
            || folder.join(METRICS).is_file()
                && std::fs::read(folder.join("losses.csv")).is_ok_and(|csv| csv.starts_with(CSV_HEADER.as_bytes()))
    };
    let model = folder.join(MODEL);
    let is_ours = || elman::io::metadata(&model).is_ok_and(|metadata| metadata.contains_key("vocabulary"));
    Ok(nothing || is_marked() && (!model.exists() || is_ours()))
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Epoch {
    pub epoch: usize,
    pub train_loss: f64,
    pub val_loss: f64,
    pub seconds: f64,
    pub chars_per_second: f64,
    pub device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_so_far: Option<usize>,
}

impl Run {
    /// Makes the folder, if there is none, and takes it: a run that cannot keep its results ends here, before it starts.
    pub fn start(folder: &Path, save_every: Duration, keep: usize) -> Result<Self> {
        let unusable = || format!("the run folder {} cannot be used", folder.display());
        if !is_a_runs(folder).with_context(unusable)? {
            bail!(
                "{} holds files that are not of a run, and is left alone: choose a new or empty folder by --out",
                folder.display()
            );
        }
        std::fs::create_dir_all(folder).with_context(unusable)?;
        let lock =
            File::options().read(true).append(true).create(true).open(folder.join(LOCK)).with_context(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another run is writing to {}: wait for it to end, or choose another folder by --out",
                folder.display()
            ),
            Err(TryLockError::Error(error)) => return Err(error).with_context(unusable),
        }
        tempfile::tempfile_in(folder).with_context(unusable)?;
        let autosave = Autosave::in_folder(folder)?.every(save_every).keep(keep).on_interrupt()?;
        Ok(Self {
            folder: folder.into(),
            epochs: Vec::new(),
            losses: Vec::new(),
            autosave,
            appended: None,
            appended_losses: None,
            config: None,
            _lock: lock,
        })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn losses(&self) -> &[f32] {
        &self.losses
    }

    /// Runs steps of a training, until a checkpoint is due; `ready` says for how many there is data. Losses are read, and shown, a few
    /// times a second; gives whether whoever sees them has had enough.
    pub fn train(
        &mut self,
        trainer: &mut Trainer,
        steps: usize,
        mut ready: impl FnMut() -> Result<usize>,
        mut show: impl FnMut(&[f32], &Trainer) -> Result<bool>,
    ) -> Result<bool> {
        let mut left = steps;
        let mut last_read = Instant::now();
        while left > 0 {
            left -= trainer.step_up_to(ready()?.min(left))?;
            if last_read.elapsed() > Duration::from_millis(300) {
                last_read = Instant::now();
                self.losses.extend(trainer.losses()?);
                if show(&self.losses, trainer)? {
                    return Ok(true);
                }
            }
            if self.is_interrupted() || self.is_save_due() {
                break;
            }
        }
        self.losses.extend(trainer.losses()?);
        show(&self.losses, trainer)
    }

    /// Step and held-out loss of each epoch so far.
    pub fn held_out(&self) -> Vec<(usize, f64)> {
        self.epochs.iter().map(|epoch| (epoch.steps_so_far.unwrap_or(0), epoch.val_loss)).collect()
    }

    /// Whether no epoch so far had so low a held-out loss.
    pub fn is_best(&self, val_loss: f64) -> bool {
        self.epochs.iter().all(|epoch| epoch.val_loss > val_loss)
    }

    pub fn add_epoch(&mut self, epoch: Epoch) {
        self.epochs.push(epoch);
    }

    /// The newest checkpoint, to go on from.
    pub fn last(&mut self) -> Result<Checkpoint> {
        let folder = self.folder.display();
        let checkpoint = self.autosave.resume()?;
        checkpoint
            .with_context(|| format!("{folder} has no checkpoint to go on from: leave --resume to start a run there"))
    }

    /// Puts what the run itself remembers into a checkpoint, and writes it.
    pub fn save(&mut self, mut checkpoint: Checkpoint) -> Result<()> {
        self.write_config()?;
        checkpoint.set("epochs", &self.epochs)?;
        checkpoint.set_order("losses", &self.losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>());
        Ok(self.autosave.save(&checkpoint)?)
    }

    /// Whether a checkpoint is to be written now.
    pub fn is_save_due(&self) -> bool {
        self.autosave.is_due(self.losses.len() as u64)
    }

    /// Whether the user, or the system, wants the run to end.
    pub fn is_interrupted(&self) -> bool {
        self.autosave.is_interrupted()
    }

    /// Takes back what [`Self::save`] put there. Whole lines of the metrics stay; one that a killed run did not end goes.
    pub fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.epochs = checkpoint.get("epochs")?;
        self.losses = checkpoint.order("losses")?.into_iter().map(f32::from_bits).collect();
        let path = self.file(METRICS);
        if let Ok(metrics) = std::fs::read(&path) {
            // Before its first epoch has ended, what is there is another run's.
            self.appended = (!self.epochs.is_empty()).then_some(self.epochs.len());
            let whole = metrics.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            if whole < metrics.len() {
                File::options().write(true).open(&path)?.set_len(whole as u64)?;
            }
        }
        Ok(())
    }

    /// Says what the run was started with: written beside the first that it keeps.
    pub fn set_config(&mut self, config: serde_json::Value) {
        self.config = Some(config);
    }

    fn write_config(&self) -> Result<()> {
        let Some(config) = &self.config else { return Ok(()) };
        Ok(elman::io::write_atomically(self.file(CONFIG), format!("{config:#}\n").as_bytes())?)
    }

    /// Writes the settings, the metrics, the losses and their picture.
    pub fn write(&mut self, failures: &mut Failures) {
        failures.note("the settings", self.write_config());
        let (metrics, losses) = (self.append_metrics(), self.append_losses());
        failures.note("the metrics", losses.and(metrics));
        let curve = self.plot();
        let curve = curve.and_then(|svg| Ok(elman::io::write_atomically(self.file("loss.svg"), svg.as_bytes())?));
        failures.note("the loss curve", curve);
    }

    /// Appends the epochs that the file does not have. The first of a run begins the file anew, for what is there is another run's.
    /// An epoch that was cut short, or that a killed run had ended but not saved, has another line later: the last counts.
    fn append_metrics(&mut self) -> Result<()> {
        let mut lines = String::new();
        for epoch in &self.epochs[self.appended.unwrap_or(0)..] {
            let epoch = Epoch { steps_so_far: None, ..epoch.clone() };
            writeln!(lines, "{}", serde_json::to_string(&epoch)?)?;
        }
        append(&self.file(METRICS), &lines, self.appended.is_none())?;
        self.appended = Some(self.epochs.len());
        Ok(())
    }

    /// Likewise; a run that goes on writes them anew, for a killed one may have written more.
    fn append_losses(&mut self) -> Result<()> {
        let mut lines = String::new();
        if self.appended_losses.is_none() {
            lines += CSV_HEADER;
        }
        for (step, loss) in self.losses.iter().enumerate().skip(self.appended_losses.unwrap_or(0)) {
            writeln!(lines, "{step},{loss}")?;
        }
        append(&self.file("losses.csv"), &lines, self.appended_losses.is_none())?;
        self.appended_losses = Some(self.losses.len());
        Ok(())
    }

    /// The loss curve: training loss of each step, smoothed, and validation loss of each epoch.
    fn plot(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let training: Vec<_> = smooth(&self.losses).enumerate().map(|(step, loss)| (step as f64, loss)).collect();
            let validation: Vec<_> =
                self.epochs.iter().map(|e| (e.steps_so_far.unwrap_or(0) as f64, e.val_loss)).collect();
            let all = training.iter().chain(&validation).map(|&(_, loss)| loss);
            let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), loss| (low.min(loss), high.max(loss)));
            let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
            let root = SVGBackend::with_string(&mut svg, (900, 500)).into_drawing_area();
            root.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&root)
                .caption("loss by training step", ("sans-serif", 22))
                .margin(15)
                .x_label_area_size(40)
                .y_label_area_size(50)
                .build_cartesian_2d(0.0..self.losses.len().max(1) as f64, low - 0.05..high + 0.05)?;
            chart
                .configure_mesh()
                .x_desc("step")
                .y_desc("nats per character")
                .x_label_formatter(&|x| format!("{x:.0}"))
                .draw()?;
            chart
                .draw_series(LineSeries::new(training, &BLUE))?
                .label("training, smoothed")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], BLUE));
            chart
                .draw_series(validation.iter().map(|&at| Circle::new(at, 4, RED.filled())))?
                .label("validation")
                .legend(|(x, y)| Circle::new((x + 10, y), 4, RED.filled()));
            chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
            root.present()?;
        }
        Ok(svg)
    }
}

/// Adds lines to a file, or begins it anew.
fn append(path: &Path, lines: &str, is_new: bool) -> Result<()> {
    if is_new {
        return Ok(elman::io::write_atomically(path, lines.as_bytes())?);
    }
    let mut file = File::options().append(true).open(path)?;
    let before = file.metadata()?.len();
    // Half a line would spoil the next.
    Ok(file.write_all(lines.as_bytes()).inspect_err(|_| drop(file.set_len(before)))?)
}

/// The debiased exponential mean that the tutorials print beside their progress bar.
pub fn smooth(losses: &[f32]) -> impl Iterator<Item = f64> {
    let mut mean = 0.0;
    losses.iter().enumerate().map(move |(step, &loss)| {
        mean = 0.98 * mean + 0.02 * f64::from(loss);
        mean / (1.0 - 0.98f64.powi(step as i32 + 1))
    })
}
