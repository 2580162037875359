//! `elman export`: a model as an ONNX file, for other programs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;
use elman::{Device, onnx};

use super::model::Model;
use super::tokens::Tokens;

/// Write a model as an ONNX file, which onnxruntime and others run
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Model file, or a run's folder: the best model there
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The file to write
    #[arg(value_name = "FILE.onnx")]
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
}

const EXAMPLES: &str = "\
Examples:
  elman export book book.onnx

Inputs: tokens [steps, batch] of int64, and the states h_0 (and c_0 of an LSTM) [layers, batch, hidden]. Outputs: logits [steps, batch,
characters], and the states h_n (c_n). The metadata has `vocabulary`, whose i-th character is token i; a model of bytes has none.";

pub fn run(options: &Options) -> Result<ExitCode> {
    let file = &options.file;
    ensure!(options.overwrite || !file.exists(), "{} is there: name another file, or --overwrite it", file.display());
    let model = Model::load(&options.model, &Device::cpu())?;
    let mut writer = onnx::language_model(&model.network, &model.parameters)?;
    if let Tokens::Characters(vocabulary) = &model.tokens {
        writer.set_metadata("vocabulary", &vocabulary.to_string());
    }
    writer.save(file)?;
    Ok(ExitCode::SUCCESS)
}
