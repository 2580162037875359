//! What a training run leaves behind: `metrics.jsonl`, `losses.csv`, `loss.svg`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use plotters::prelude::*;
use serde::Serialize;

/// A folder, made when the first result is kept.
pub struct Run {
    folder: PathBuf,
    epochs: Vec<Epoch>,
    losses: Vec<f32>,
}

/// One line of `metrics.jsonl`.
#[derive(Serialize)]
pub struct Epoch {
    pub epoch: usize,
    pub train_loss: f64,
    pub val_loss: f64,
    pub seconds: f64,
    pub chars_per_second: f64,
    pub device: String,
    #[serde(skip)]
    pub steps_so_far: usize,
}

impl Run {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), epochs: Vec::new(), losses: Vec::new() }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes the folder and clears it of an earlier run. A run that cannot keep its results ends here, before it starts.
    pub fn create(&self) -> Result<()> {
        let unusable = || format!("the run folder {} cannot be used", self.folder.display());
        std::fs::create_dir_all(&self.folder).with_context(unusable)?;
        // Nothing of an earlier run stays beside the results of this one.
        for name in ["model.safetensors", "metrics.jsonl", "losses.csv", "loss.svg"] {
            match std::fs::remove_file(self.file(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(unusable),
                _ => {}
            }
        }
        tempfile::tempfile_in(&self.folder).map(drop).with_context(unusable)
    }

    pub fn add_losses(&mut self, losses: &[f32]) {
        self.losses.extend_from_slice(losses);
    }

    pub fn losses(&self) -> &[f32] {
        &self.losses
    }

    /// Adds an epoch and writes everything anew: what is on disk is always whole.
    pub fn add_epoch(&mut self, epoch: Epoch) -> Result<()> {
        self.epochs.push(epoch);
        self.write()
    }

    pub fn write(&self) -> Result<()> {
        let mut metrics = String::new();
        for epoch in &self.epochs {
            writeln!(metrics, "{}", serde_json::to_string(epoch)?)?;
        }
        elman::io::write_atomically(self.file("metrics.jsonl"), metrics.as_bytes())?;
        let mut csv = String::from("step,loss\n");
        for (step, loss) in self.losses.iter().enumerate() {
            writeln!(csv, "{step},{loss}")?;
        }
        elman::io::write_atomically(self.file("losses.csv"), csv.as_bytes())?;
        elman::io::write_atomically(self.file("loss.svg"), self.plot()?.as_bytes())?;
        Ok(())
    }

    /// The loss curve: training loss of each step, smoothed, and validation loss of each epoch.
    fn plot(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let training: Vec<_> = smooth(&self.losses).enumerate().map(|(step, loss)| (step as f64, loss)).collect();
            let validation: Vec<_> = self.epochs.iter().map(|e| (e.steps_so_far as f64, e.val_loss)).collect();
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
