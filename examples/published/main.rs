//! Networks that others published, run to the answers of their own programs: `tests/run.sh --with-python` fetches them, then
//! `cargo run --release --features onnx --example published -- silero speech.wav`.

#[path = "../common/mod.rs"]
mod common;
mod fetched;
mod g2p;
mod rnnoise;
mod silero;
mod textgenrnn;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use common::{DeviceArgs, announce};

/// Networks that others published
#[derive(Parser)]
#[command(mut_arg("device", |device| device.global(true)))]
struct Options {
    #[command(subcommand)]
    network: Network,
    /// Where the networks are
    #[arg(long, default_value = "target/published", value_name = "FOLDER", global = true)]
    folder: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Subcommand)]
enum Network {
    /// How much of each band of a recording is speech (RNNoise: three GRUs)
    Rnnoise(rnnoise::Options),
    /// Where there is speech in a recording (Silero VAD: convolutions, an LSTM)
    Silero(silero::Options),
    /// The phonemes of words (g2p-en: a GRU reads, another writes)
    G2p(g2p::Options),
    /// Lines of text, in the manner of your own after --train (textgenrnn: two LSTMs, attention)
    Textgenrnn(textgenrnn::Options),
}

fn main() -> ExitCode {
    let Options { network, folder, device } = Options::parse();
    let done = device.open().and_then(|device| {
        let Some(device) = device else { return Ok(ExitCode::SUCCESS) };
        announce(&device)?;
        match network {
            Network::Rnnoise(options) => rnnoise::run(&device, &folder, &options)?,
            Network::Silero(options) => silero::run(&device, &folder, &options)?,
            Network::G2p(options) => g2p::run(&device, &folder, &options)?,
            Network::Textgenrnn(options) => textgenrnn::run(&device, &folder, &options)?,
        }
        Ok(ExitCode::SUCCESS)
    });
    common::exit_code(done)
}
