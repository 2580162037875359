//! Cost against work: `cargo bench --bench scaling -- --device cpu`.
//!
//! The time of a training step (forward, backward, Adam) of an Elman network over tokens, with one size varied at a time:
//! batch, steps, hidden size, layers. Prints the table and writes `scaling.svg` to `--out`.
#![allow(missing_docs, reason = "a program")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{CharRnn, CharRnnOptions, Init, LanguageModel};
use elman::optim::Adam;
use elman::text::{Corpus, Windows};
use elman::{Device, Trainer, rng};
use plotters::prelude::*;

#[derive(Parser)]
struct Options {
    /// As the examples' --device
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Leave out all but the smallest sizes, for a software driver
    #[arg(long)]
    small: bool,
    /// Folder for the chart
    #[arg(long, default_value = "target/scaling")]
    out: PathBuf,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    steps: usize,
    hidden: usize,
    layers: usize,
}

/// What is varied, over which sizes.
type Axis = (&'static str, fn(usize) -> Sizes, &'static [usize]);

const AXES: [Axis; 4] = [
    ("batch", |batch| Sizes { batch, steps: 8, hidden: 256, layers: 1 }, &[1, 4, 16, 64, 256, 1024, 4096]),
    ("steps", |steps| Sizes { batch: 64, steps, hidden: 256, layers: 1 }, &[8, 16, 32, 64, 128, 256, 512, 1024]),
    ("hidden", |hidden| Sizes { batch: 64, steps: 32, hidden, layers: 1 }, &[32, 64, 128, 256, 512, 1024]),
    ("layers", |layers| Sizes { batch: 64, steps: 32, hidden: 256, layers }, &[1, 2, 3, 4]),
];

fn main() -> Result<()> {
    let options = Options::parse();
    let device = Device::open(&options.device)?;
    println!(
        "{}\n\n| varied | size | ms a step | from the size before | GFLOP/s |\n|---|---|---|---|---|",
        device.describe()
    );
    let mut curves = Vec::new();
    for (name, sizes, values) in AXES {
        let values = if options.small { &values[..values.len() / 2] } else { values };
        let mut curve: Vec<(f64, f64)> = Vec::new();
        for &value in values {
            let (milliseconds, flops) = step(&device, sizes(value))?;
            // The slope: 1 is a cost in proportion to the size.
            let slope = curve.last().map_or_else(String::new, |&(size, before)| {
                format!("{:.2}", (milliseconds / before).ln() / (value as f64 / size).ln())
            });
            println!("| {name} | {value} | {milliseconds:.3} | {slope} | {:.0} |", flops as f64 / milliseconds / 1e6);
            curve.push((value as f64, milliseconds));
        }
        curves.push((name, curve));
    }
    std::fs::create_dir_all(&options.out)?;
    let path = options.out.join("scaling.svg");
    elman::io::write_atomically(&path, chart(&curves)?.as_bytes())?;
    println!("\n{}", path.display());
    Ok(())
}

/// Median milliseconds of a step, and its FLOPs.
fn step(device: &Device, Sizes { batch, steps, hidden, layers }: Sizes) -> Result<(f64, u64)> {
    let mut init = Init::new(rng::manual_seed(777));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(85, 42, hidden).num_layers(layers))?;
    let parameters = init.upload(device)?;
    let tokens = init.rng.randint(85, 20_000);
    let corpus = Corpus::new(device, &tokens, 85)?;
    let windows = Windows::new(&corpus, init.rng.randperm(tokens.len() - steps), steps)?;
    let mut trainer = Trainer::new(&parameters, Adam::new(1e-3), |g| {
        let batch = windows.batch(g, batch)?;
        let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    })?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < 5 || (begin.elapsed().as_secs_f64() < 1.0 && times.len() < 500) {
        let start = Instant::now();
        trainer.step()?;
        device.synchronize()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    trainer.losses()?;
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], trainer.plan().count().flops))
}

fn chart(curves: &[(&str, Vec<(f64, f64)>)]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (800, 500)).into_drawing_area();
        root.fill(&WHITE)?;
        let times = curves.iter().flat_map(|(_, curve)| curve.iter().map(|&(_, time)| time));
        let (low, high) = times.fold((f64::MAX, f64::MIN), |(low, high), time| (low.min(time), high.max(time)));
        let mut chart = ChartBuilder::on(&root)
            .caption("a training step against each size", ("sans-serif", 20))
            .margin(15)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((1.0..4096f64).log_scale(), (0.8 * low..1.2 * high).log_scale())?;
        chart.configure_mesh().x_desc("size").y_desc("milliseconds").draw()?;
        for ((name, curve), color) in curves.iter().zip([BLUE, RED, GREEN, BLACK]) {
            chart
                .draw_series(LineSeries::new(curve.iter().copied(), &color))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
        }
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
        root.present()?;
    }
    Ok(svg)
}
