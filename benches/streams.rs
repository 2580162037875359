//! Latency of a frame that comes by itself, the state kept: `cargo bench --bench streams -- --device cpu`; beside onnxruntime and PyTorch
//! with `benches/streams.py`.
//!
//! Each network is an LSTM or GRU of as many inputs as hidden units. A frame is pushed, and what comes out is on the host before the next.
#![allow(missing_docs, reason = "a program")]

use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use elman::nn::functional::InitialState;
use elman::nn::{Cell, Init, Recurrent, RnnOptions};
use elman::{Device, Stream, rng};

#[derive(Parser)]
struct Options {
    /// As the examples' --device
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Frames that are timed
    #[arg(long, default_value_t = 20_000)]
    frames: usize,
    /// One line of JSON for each network
    #[arg(long)]
    json: bool,
    /// Print where the time of the first network goes
    #[arg(long)]
    profile: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Cell, hidden units, layers, lanes.
const NETWORKS: [(Cell, usize, usize, usize); 6] = [
    (Cell::Lstm, 128, 1, 1),
    (Cell::Gru, 128, 1, 1),
    (Cell::Lstm, 256, 2, 1),
    (Cell::Lstm, 32, 1, 1),
    (Cell::Lstm, 128, 1, 8),
    (Cell::Lstm, 128, 1, 64),
];

fn main() -> Result<()> {
    let options = Options::parse();
    let device = Device::open(&options.device)?;
    if !options.json {
        println!("{}\nnetwork                 p50 us    p99 us  a frame of a block of 64, us", device.describe());
    }
    for (cell, hidden, layers, lanes) in NETWORKS {
        let mut init = Init::new(rng::manual_seed(777));
        let rnn = Recurrent::new(&mut init, "rnn", cell, RnnOptions::new(hidden, hidden).num_layers(layers))?;
        let parameters = init.upload(&device)?;
        let states = [rnn.state(&device, lanes)?];
        let mut stream = Stream::new(&parameters, [lanes, hidden], states, |g, x, [state]| {
            let x = g.input(x)?;
            Ok([rnn.forward(g, x, InitialState::Carried(state))?.0])
        })?;
        let frames = rng::manual_seed(1).randn(64 * lanes * hidden);
        let mut push = |frame: &[f32]| -> Result<f64> {
            let start = Instant::now();
            std::hint::black_box(stream.push_block(std::hint::black_box(frame))?);
            Ok(1e6 * start.elapsed().as_secs_f64())
        };
        let mut all = |each: usize, count: usize| -> Result<Vec<f64>> {
            let mut times = Vec::new();
            for i in 0..count + count / 10 + 1 {
                let start = i * each % 64 * lanes * hidden;
                times.push(push(&frames[start..][..each * lanes * hidden])?);
            }
            let mut times = times.split_off(count / 10 + 1);
            times.sort_by(f64::total_cmp);
            Ok(times)
        };
        let singly = all(1, options.frames)?;
        let in_blocks = all(64, (options.frames / 64).max(3))?;
        let at = |times: &[f64], share: f64| times[((times.len() - 1) as f64 * share) as usize];
        let (p50, p99, block) = (at(&singly, 0.5), at(&singly, 0.99), at(&in_blocks, 0.5) / 64.0);
        let name = format!("{} {layers} x {hidden}, {lanes} lanes", format!("{cell:?}").to_lowercase());
        match options.json {
            true => println!(r#"{{"network": "{name}", "p50_us": {p50}, "p99_us": {p99}, "block_us": {block}}}"#),
            false => println!("{name:20} {p50:9.2} {p99:9.2} {block:9.2}"),
        }
        if options.profile {
            let plan = stream.plan().expect("a frame was pushed");
            println!("{plan}\n{}", plan.profile(1000)?);
            break;
        }
    }
    Ok(())
}
