//! How text is drawn: options named as llama.cpp and mlx_lm name them, of which a neutral value switches each off.

use clap::Args;
use elman::generate::Sampling;

/// The options of a draw, but for its seed.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// How bold the draws are: 0 always takes the most likely token, 1 draws as the network predicts
    #[arg(long, visible_alias = "temp", default_value_t = 0.8, value_parser = temperature, allow_negative_numbers = true, value_name = "T", help_heading = HEADING)]
    pub temperature: f32,
    /// Draw among so many of the most likely tokens; 0: all
    #[arg(long, default_value_t = 0, value_name = "K", help_heading = HEADING)]
    pub top_k: usize,
    /// Draw among the fewest of the most likely tokens that have this share of the probability; 1: all
    #[arg(long, default_value_t = 1.0, value_parser = share, allow_negative_numbers = true, value_name = "P", help_heading = HEADING)]
    pub top_p: f32,
    /// Draw among the tokens that are at least so many times as likely as the most likely one; 0: all
    #[arg(long, default_value_t = 0.0, value_parser = share_or_0, allow_negative_numbers = true, value_name = "P", help_heading = HEADING)]
    pub min_p: f32,
    /// Make tokens less likely that were there lately; 1: as likely as ever
    #[arg(long, default_value_t = 1.0, value_parser = factor, allow_negative_numbers = true, value_name = "FACTOR", help_heading = HEADING)]
    pub repeat_penalty: f32,
    /// How many of the latest tokens that is for; 0: none, -1: all
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(i64).range(-1..), allow_negative_numbers = true, value_name = "N", help_heading = HEADING)]
    pub repeat_last_n: i64,
}

pub const HEADING: &str = "Sampling";

impl SamplingArgs {
    /// As the library takes them.
    pub fn sampling(&self, seed: u32, never: Option<u32>) -> Sampling {
        let Self { temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n } = *self;
        Sampling {
            temperature,
            top_k: (top_k > 0).then_some(top_k),
            top_p: (top_p != 1.0).then_some(top_p),
            min_p: (min_p != 0.0).then_some(min_p),
            repeat_penalty,
            repeat_last_n: usize::try_from(repeat_last_n).unwrap_or(usize::MAX),
            seed,
            never,
            ..Sampling::default()
        }
    }
}

/// A finite number for which something holds.
fn number(value: &str, holds: fn(f32) -> bool, must_be: &str) -> Result<f32, String> {
    let number = value.parse().ok().filter(|&number: &f32| number.is_finite() && holds(number));
    number.ok_or_else(|| format!("must be {must_be}"))
}

fn temperature(value: &str) -> Result<f32, String> {
    number(value, |temperature| temperature >= 0.0, "0 or above")
}

fn share(value: &str) -> Result<f32, String> {
    number(value, |share| share > 0.0 && share <= 1.0, "above 0, at most 1")
}

fn share_or_0(value: &str) -> Result<f32, String> {
    number(value, |share| (0.0..=1.0).contains(&share), "from 0 to 1")
}

fn factor(value: &str) -> Result<f32, String> {
    number(value, |factor| factor > 0.0, "above 0")
}
