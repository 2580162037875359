//! A stacked GRU forecasts the next day of an hourly series from the week before it.
//!
//! The series is drawn here: a trend, a day, a week, and noise. A seasonal-naive forecast is the value one day, or one
//! week, before: it has the noise twice, and knows nothing of the trend. The better of the two is what is to be beaten.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use common::plot::{Line, lines};
use common::{DeviceArgs, announce, say};
use elman::nn::functional::{InitialState, Reduction, last, mse_loss};
use elman::nn::{Gru, Init, Linear, RnnOptions};
use elman::optim::Adam;
use elman::rng::{self, Rng};
use elman::{DType, Device, Graph, Tensor, Trainer, Var};
use plotters::style::{BLACK, RED};

const DAY: usize = 24;
const WEEK: usize = 7 * DAY;
/// Hours in the whole series, and in its last stretch, which training does not see.
const HOURS: usize = 40 * WEEK;
const HELD_OUT: usize = 4 * WEEK;
/// Standard deviation of the noise; the day swings by about 5 to both sides, the week by 4.
const NOISE: f32 = 1.0;
/// Hours that the network sees, and hours that it forecasts.
const PAST: usize = WEEK;
const HORIZON: usize = DAY;
const HIDDEN: usize = 32;
const BATCH: usize = 32;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Training steps
    #[arg(long, default_value_t = 400)]
    steps: usize,
    /// Seed of the series, the initial weights, the batches and the dropout
    #[arg(long, default_value_t = 777)]
    seed: u32,
    /// Folder for the chart
    #[arg(long, default_value = "target/forecast", value_name = "FOLDER")]
    out: PathBuf,
}

/// A GRU over the past; a linear layer makes the whole horizon from its last output.
struct Network {
    gru: Gru,
    output: Linear,
}

/// Windows of the series on a device, each in its own units.
struct Batch {
    /// `[PAST, B, 1]`
    past: Tensor,
    /// `[B, HORIZON]`
    future: Tensor,
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    let folder = options.out;
    std::fs::create_dir_all(&folder).with_context(|| format!("the folder {} cannot be used", folder.display()))?;
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let series = series(&mut init.rng);
    let network = Network {
        gru: Gru::new(&mut init, "gru", RnnOptions::new(1, HIDDEN).num_layers(2).dropout(0.1))?,
        output: Linear::new(&mut init, "output", HIDDEN, HORIZON)?,
    };
    let parameters = init.upload(&device)?;

    let training = Batch::new(&device, BATCH)?;
    let mut trainer = Trainer::new(&parameters, Adam::new(3e-3), |g| {
        let forecast = network.forward(g, &training)?;
        mse_loss(g, forecast, &training.future, Reduction::Mean)
    })?;
    // A window to learn from ends before the held-out stretch starts.
    let start = HOURS - HELD_OUT;
    let windows = start - HORIZON - PAST + 1;
    for step in 1..=options.steps {
        let origins = init.rng.randint(windows as u32, BATCH);
        let origins: Vec<_> = origins.into_iter().map(|at| PAST + at as usize).collect();
        training.write(&series, &origins)?;
        trainer.step()?;
        if step % 50 == 0 || step == options.steps {
            let losses = trainer.losses()?;
            say!("step {step}: loss {:.4}", losses.iter().sum::<f32>() / losses.len() as f32);
        }
    }

    // One horizon after the other, each from the true past.
    let origins: Vec<_> = (start..HOURS).step_by(HORIZON).collect();
    let held_out = Batch::new(&device, origins.len())?;
    let mut g = Graph::inference(&parameters);
    let forecast = network.forward(&mut g, &held_out)?;
    let forecast = g.tensor(forecast)?;
    let units = held_out.write(&series, &origins)?;
    g.finish()?.run()?;
    let forecast = forecast.to_vec()?;
    let days = forecast.chunks(HORIZON).zip(&units);
    let forecast: Vec<f32> = days.flat_map(|(day, units)| day.iter().map(|&y| units.back(y))).collect();

    let truth = &series[start..];
    let naive = |season: usize| errors(&series[start - season..HOURS - season], truth);
    let (gru, day_before, week_before) = (errors(&forecast, truth), naive(DAY), naive(WEEK));
    say!("{} held-out days {:>11} {:>8}", origins.len(), "RMSE", "MAE");
    for (name, (rmse, mae)) in [("the day before", day_before), ("the week before", week_before), ("GRU", gru)] {
        say!("{name:<18} {rmse:8.3} {mae:8.3}");
    }
    say!("better than seasonal-naive by {:.0}%", 100.0 * (1.0 - gru.0 / day_before.0.min(week_before.0)));

    let points = |from: usize, values: &[f32]| (from..).zip(values).map(|(t, &y)| (t as f64, y.into())).collect();
    let chart = [
        Line { name: "truth", color: BLACK, points: points(start - WEEK, &series[start - WEEK..]) },
        Line { name: "forecast", color: RED, points: points(start, &forecast) },
    ];
    let chart = lines("each day, forecast from the week before it", "hour", "value", &chart)?;
    let path = folder.join("forecast.svg");
    elman::io::write_atomically(&path, chart.as_bytes())?;
    say!("chart: {}", path.display());
    Ok(ExitCode::SUCCESS)
}

impl Network {
    /// `[B, HORIZON]`
    fn forward(&self, g: &mut Graph, batch: &Batch) -> elman::Result<Var> {
        let x = g.input(&batch.past)?;
        let out = self.gru.forward(g, x, InitialState::Zero)?;
        let state = last(g, out.output)?;
        self.output.forward(g, state)
    }
}

/// The units of a window: the network sees and says how far a value is from the mean of the past, in its standard
/// deviations. So it never sees how far the trend has come, only what it does within the window.
struct Units {
    mean: f32,
    deviation: f32,
}

impl Units {
    fn of(past: &[f32]) -> Self {
        let mean = past.iter().sum::<f32>() / past.len() as f32;
        let variance = past.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / past.len() as f32;
        Self { mean, deviation: variance.sqrt() }
    }

    fn to(&self, y: f32) -> f32 {
        (y - self.mean) / self.deviation
    }

    fn back(&self, y: f32) -> f32 {
        y * self.deviation + self.mean
    }
}

impl Batch {
    fn new(device: &Device, windows: usize) -> elman::Result<Self> {
        Ok(Self {
            past: device.zeros("past", &[PAST, windows, 1], DType::F32)?,
            future: device.zeros("future", &[windows, HORIZON], DType::F32)?,
        })
    }

    /// Puts the windows around these hours side by side, the past time first; the units of each.
    fn write(&self, series: &[f32], origins: &[usize]) -> elman::Result<Vec<Units>> {
        let units: Vec<_> = origins.iter().map(|&at| Units::of(&series[at - PAST..at])).collect();
        let windows = || origins.iter().zip(&units);
        let past = (0..PAST).flat_map(|t| windows().map(move |(&at, units)| units.to(series[at - PAST + t])));
        let future = windows().flat_map(|(&at, units)| series[at..at + HORIZON].iter().map(|&y| units.to(y)));
        self.past.write(&past.collect::<Vec<_>>())?;
        self.future.write(&future.collect::<Vec<_>>())?;
        Ok(units)
    }
}

/// A trend, a day that rises fast and falls slowly, a week, and noise that no one can foresee.
fn series(rng: &mut Rng) -> Vec<f32> {
    let wave = |t: usize, period: usize| (std::f64::consts::TAU * (t % period) as f64 / period as f64).sin();
    let foreseeable =
        (0..HOURS).map(|t| 0.01 * t as f64 + 4.0 * wave(t, DAY) + 2.0 * wave(t, DAY / 2) + 4.0 * wave(t, WEEK));
    foreseeable.zip(rng.randn(HOURS)).map(|(y, noise)| y as f32 + NOISE * noise).collect()
}

/// Root mean squared error and mean absolute error.
fn errors(forecast: &[f32], truth: &[f32]) -> (f32, f32) {
    let mean = |of: fn(f32) -> f32| {
        forecast.iter().zip(truth).map(|(y, truth)| of(y - truth)).sum::<f32>() / truth.len() as f32
    };
    (mean(|e| e * e).sqrt(), mean(f32::abs))
}
