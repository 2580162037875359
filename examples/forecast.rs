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
use common::{DeviceArgs, announce, mean, say, say_loss};
use elman::data::{self, Array};
use elman::nn::functional::{InitialState, Reduction, last, mse_loss};
use elman::nn::{Gru, Init, Linear, RnnOptions};
use elman::optim::Adam;
use elman::rng::{self, Rng};
use elman::{Graph, Predictor, Tensor, Trainer, Var};
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

    let mut trainer = Trainer::on_batches(&parameters, Adam::new(3e-3), |g, [past, future]| {
        let forecast = network.forward(g, past)?;
        mse_loss(g, forecast, future, Reduction::Mean)
    })?;
    // A window to learn from ends before the held-out stretch starts.
    let start = HOURS - HELD_OUT;
    let windows = start - HORIZON - PAST + 1;
    let epochs = std::iter::repeat_with(|| data::batches(&mut init.rng, windows, BATCH));
    for first_hours in epochs.flatten().take(options.steps) {
        let origins: Vec<_> = first_hours.iter().map(|hour| hour + PAST).collect();
        trainer.step_on(&batch(&series, &origins)?)?;
        say_loss(&mut trainer, 50, options.steps)?;
    }

    // One horizon after the other, each from the true past.
    let origins: Vec<_> = (start..HOURS).step_by(HORIZON).collect();
    let mut predictor = Predictor::new(&parameters, |g, [past]| Ok([network.forward(g, past)?]));
    let [past, _] = batch(&series, &origins)?;
    let [days] = predictor.run(&[past])?;
    let mut forecast = Vec::new();
    for (day, &origin) in days.values().chunks(HORIZON).zip(&origins) {
        let (mean, deviation) = units(&series, origin);
        forecast.extend(day.iter().map(|y| y * deviation + mean));
    }

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
    fn forward(&self, g: &mut Graph, past: &Tensor) -> elman::Result<Var> {
        let x = g.input(past)?;
        let out = self.gru.forward(g, x, InitialState::Zero)?;
        let state = last(g, out.output)?;
        self.output.forward(g, state)
    }
}

/// Mean and standard deviation of the past of an hour: the network sees and says how far a value is from the mean, in
/// deviations. So it never sees how far the trend has come, only what it does within the window.
fn units(series: &[f32], origin: usize) -> (f32, f32) {
    let past = &series[origin - PAST..origin];
    let mean = mean(past);
    let variance = past.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / PAST as f32;
    (mean, variance.sqrt())
}

/// The windows around these hours, each in its own units: the past `[PAST, B, 1]`, and the future `[B, HORIZON]`.
fn batch(series: &[f32], origins: &[usize]) -> elman::Result<[Array; 2]> {
    let window = |&origin: &usize| -> Vec<f32> {
        let (mean, deviation) = units(series, origin);
        series[origin - PAST..origin + HORIZON].iter().map(|y| (y - mean) / deviation).collect()
    };
    let windows: Vec<_> = origins.iter().map(window).collect();
    let future = windows.iter().flat_map(|window| &window[PAST..]).copied().collect();
    Ok([
        Array::pad("past", windows.iter().map(|window| &window[..PAST]), 1)?,
        Array::new("future", &[origins.len(), HORIZON], future)?,
    ])
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
