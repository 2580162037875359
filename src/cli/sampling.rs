//! How text is drawn: options named as llama.cpp and mlx_lm name them, of which a neutral value switches each off.

use std::hash::{BuildHasher as _, RandomState};

use anyhow::{Result, ensure};
use clap::Args;
use elman::generate::Sampling;

use super::tokens::Tokens;

/// The options of a draw.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// How bold the draws are: 0 always takes the most likely token, 1 draws as the network predicts
    #[arg(long = "temp", visible_alias = "temperature", default_value_t = 0.8, allow_negative_numbers = true, value_name = "T", help_heading = HEADING)]
    pub temperature: f32,
    /// Draw among so many of the most likely tokens; 0: all
    #[arg(long, default_value_t = 0, value_name = "K", help_heading = HEADING)]
    pub top_k: usize,
    /// Draw among the fewest of the most likely tokens that have this share of the probability; 1: all
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_name = "P", help_heading = HEADING)]
    pub top_p: f32,
    /// Draw among the tokens that are at least so many times as likely as the most likely one; 0: all
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "P", help_heading = HEADING)]
    pub min_p: f32,
    /// Make tokens less likely that were there lately; 1: as likely as ever
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_name = "FACTOR", help_heading = HEADING)]
    pub repeat_penalty: f32,
    /// How many of the latest tokens that is for; 0: none, -1: all
    #[arg(long, default_value_t = 64, allow_negative_numbers = true, value_name = "N", help_heading = HEADING)]
    pub repeat_last_n: i64,
    /// Seed of the draws; -1: one that is drawn, and printed at the end
    #[arg(short, long, default_value_t = -1, allow_negative_numbers = true, help_heading = HEADING)]
    pub seed: i64,
}

const HEADING: &str = "Sampling";

impl SamplingArgs {
    /// As the library takes them. What is out of range it says itself.
    pub fn sampling(&self, tokens: &Tokens) -> Result<Sampling> {
        let Self { temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed } = *self;
        ensure!(repeat_last_n >= -1, "--repeat-last-n must be 0 or above, or -1 for all, not {repeat_last_n}");
        let seed = match u32::try_from(seed) {
            Ok(seed) => seed,
            Err(_) if seed == -1 => RandomState::new().hash_one(std::process::id()) as u32,
            Err(_) => anyhow::bail!("--seed must be from 0 to {}, or -1, not {seed}", u32::MAX),
        };
        Ok(Sampling {
            temperature,
            top_k: (top_k > 0).then_some(top_k),
            top_p: (top_p != 1.0).then_some(top_p),
            min_p: (min_p != 0.0).then_some(min_p),
            repeat_penalty,
            repeat_last_n: usize::try_from(repeat_last_n).unwrap_or(usize::MAX),
            seed,
            never: tokens.never(),
            ..Sampling::default()
        })
    }
}
