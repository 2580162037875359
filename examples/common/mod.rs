//! What the examples share: finding a text, networks, and what they have in common with the command.
#![allow(dead_code, reason = "each example uses a part")]

pub mod cell;
pub mod corpus;
pub mod data;
pub mod decoder;
pub mod networks;
#[path = "../../src/cli/shared/mod.rs"]
mod shared;

use anyhow::Result;
use elman::Trainer;
pub use shared::*;

/// The index of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

pub fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

/// The mean loss since it was said last, every so many steps, and after the last of them.
pub fn say_loss<P>(trainer: &mut Trainer<P>, every: usize, steps: usize) -> Result<()> {
    let step = trainer.steps() as usize;
    if step.is_multiple_of(every) || step == steps {
        say!("step {step}: loss {:.4}", mean(&trainer.losses()?));
    }
    Ok(())
}
