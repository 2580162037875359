//! How the commands draw text: by a seed that is given, or by any.

use std::hash::{BuildHasher as _, RandomState};

use clap::Args;
use elman::generate::Sampling;

use super::shared::sampling::{HEADING, SamplingArgs};
use super::tokens::Tokens;

#[derive(Args, Clone, Debug)]
pub struct SeededArgs {
    #[command(flatten)]
    how: SamplingArgs,
    /// Seed of the draws; -1: one that is drawn, and printed at the end
    #[arg(short, long, default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..=u32::MAX.into()), allow_negative_numbers = true, help_heading = HEADING)]
    seed: i64,
}

impl SeededArgs {
    pub fn sampling(&self, tokens: &Tokens) -> Sampling {
        let any = || RandomState::new().hash_one(std::process::id()) as u32;
        self.how.sampling(u32::try_from(self.seed).unwrap_or_else(|_| any()), tokens.never())
    }
}
