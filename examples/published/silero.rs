//! Silero VAD 6.2.3 (MIT), `silero_vad_16k_sequence.onnx` of PyPI's `silero-vad`: a transform, four convolutions, an LSTM of 128.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use elman::Device;

#[derive(Args)]
pub struct Options {
    /// A recording of 16 kHz
    recording: PathBuf,
}

pub fn run(_device: &Device, _folder: &Path, _options: &Options) -> Result<()> {
    todo!()
}
