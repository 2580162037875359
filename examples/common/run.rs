//! What a training run leaves behind: `model.safetensors`, `metrics.jsonl`, `losses.csv`, `loss.svg`.

use std::fmt::Write as _;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use elman::Checkpoint;
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use super::Failures;

/// The file that marks a folder as a run's, and that a run has locked while it lasts: the system unlocks it however the
/// run ends.
const LOCK: &str = "run.lock";
pub const MODEL: &str = "model.safetensors";
/// The newest checkpoint.
const LAST: &str = "last.safetensors";

/// A folder, and what goes into it. What an earlier run left there stays until its successor is whole.
pub struct Run {
    folder: PathBuf,
    epochs: Vec<Epoch>,
    losses: Vec<f32>,
    /// The step of the newest checkpoint of this run.
    saved: Option<u64>,
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
            || folder.join("metrics.jsonl").is_file()
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
    pub fn start(folder: &Path) -> Result<Self> {
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
        // What a run that was killed had not renamed yet.
        for file in std::fs::read_dir(folder).with_context(unusable)?.flatten() {
            if file.file_name().to_str().is_some_and(|name| name.starts_with(".tmp")) {
                let _ = std::fs::remove_file(file.path());
            }
        }
        Ok(Self { folder: folder.into(), epochs: Vec::new(), losses: Vec::new(), saved: None, _lock: lock })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn add_losses(&mut self, losses: &[f32]) {
        self.losses.extend_from_slice(losses);
    }

    pub fn losses(&self) -> &[f32] {
        &self.losses
    }

    pub fn add_epoch(&mut self, epoch: Epoch) {
        self.epochs.push(epoch);
    }

    /// The newest checkpoint, to go on from.
    pub fn last(&self) -> Result<Checkpoint> {
        let path = self.file(LAST);
        if !path.exists() {
            bail!("{} has no {LAST} to go on from: leave --resume to start a run there", self.folder.display());
        }
        Ok(Checkpoint::load(path)?)
    }

    /// Puts what the run itself remembers into a checkpoint, and writes it; with `keep` above 1, so many less one of those before it
    /// stay as `step-<steps>.safetensors`.
    pub fn save(&mut self, mut checkpoint: Checkpoint, keep: usize) -> Result<()> {
        checkpoint.set("epochs", &self.epochs)?;
        checkpoint.set_order("losses", &self.losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>());
        let bytes = checkpoint.to_bytes()?;
        let folder = self.folder.clone();
        let step = |step: u64| folder.join(format!("step-{step}.safetensors"));
        let now = checkpoint.steps();
        // Of an earlier run, or of a future that this one does not have.
        let is_ours = |&at: &u64| self.saved.is_some() && at < now;
        for other in self.kept()?.into_iter().filter(|at| !is_ours(at)) {
            std::fs::remove_file(step(other))?;
        }
        let kept = match self.saved.filter(|&saved| keep > 1 && saved < now) {
            Some(saved) if !step(saved).exists() => std::fs::hard_link(self.file(LAST), step(saved))
                .or_else(|_| std::fs::copy(self.file(LAST), step(saved)).map(|_| ())),
            _ => Ok(()),
        };
        elman::io::write_atomically(self.file(LAST), &bytes)?;
        self.saved = Some(now);
        kept.context("the checkpoint before the newest cannot be kept")?;
        let steps = self.kept()?;
        for &old in &steps[..steps.len().saturating_sub(keep - 1)] {
            std::fs::remove_file(step(old))?;
        }
        Ok(())
    }

    /// The steps of the checkpoints before the newest that are there, in order.
    fn kept(&self) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        for file in std::fs::read_dir(&self.folder)? {
            let name = file?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors"));
            steps.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Takes back what [`Self::save`] put there.
    pub fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.epochs = checkpoint.get("epochs")?;
        self.losses = checkpoint.order("losses")?.into_iter().map(f32::from_bits).collect();
        self.saved = Some(checkpoint.steps());
        Ok(())
    }

    /// Writes all but the model anew: what is on disk is always whole.
    pub fn write(&self, failures: &mut Failures) {
        failures.note("the metrics", self.write_metrics());
        let curve = self.plot();
        let curve = curve.and_then(|svg| Ok(elman::io::write_atomically(self.file("loss.svg"), svg.as_bytes())?));
        failures.note("the loss curve", curve);
    }

    fn write_metrics(&self) -> Result<()> {
        let mut metrics = String::new();
        for epoch in &self.epochs {
            let epoch = Epoch { steps_so_far: None, ..epoch.clone() };
            writeln!(metrics, "{}", serde_json::to_string(&epoch)?)?;
        }
        elman::io::write_atomically(self.file("metrics.jsonl"), metrics.as_bytes())?;
        let mut csv = CSV_HEADER.to_owned();
        for (step, loss) in self.losses.iter().enumerate() {
            writeln!(csv, "{step},{loss}")?;
        }
        Ok(elman::io::write_atomically(self.file("losses.csv"), csv.as_bytes())?)
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

/// The debiased exponential mean that the tutorials print beside their progress bar.
pub fn smooth(losses: &[f32]) -> impl Iterator<Item = f64> {
    let mut mean = 0.0;
    losses.iter().enumerate().map(move |(step, &loss)| {
        mean = 0.98 * mean + 0.02 * f64::from(loss);
        mean / (1.0 - 0.98f64.powi(step as i32 + 1))
    })
}
