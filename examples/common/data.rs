//! Windows to train on and to validate with: of a text on the device, or drawn from a large file.

use anyhow::Result;
use elman::Graph;
use elman::rng::Rng;
use elman::text::{Batch, FileWindows, Windows};

/// A file from this size on is not loaded, but where all of it is needed: windows are drawn from it. An order of all windows
/// takes 20 bytes for each character; here that is about what the program takes anyway.
pub const LARGE: u64 = 4 << 20;

pub enum Data {
    /// Every window once an epoch, in an order of its own.
    Shuffled(Windows),
    /// Contiguous streams.
    Streams(Windows),
    /// Windows at random.
    Drawn(Box<FileWindows>),
}

impl Data {
    /// The batch that a plan takes; of streams, with targets for every step.
    pub fn batch(&self, g: &mut Graph, batch: usize) -> elman::Result<Batch> {
        match self {
            Self::Shuffled(windows) => windows.batch(g, batch),
            Self::Streams(windows) => windows.batch_of_every_step(g, batch),
            Self::Drawn(windows) => Ok(windows.batch().clone()),
        }
    }

    pub fn start_epoch(&self, rng: &mut Rng) -> Result<()> {
        match self {
            Self::Shuffled(windows) => Ok(windows.set_order(&rng.randperm(windows.len()))?),
            Self::Streams(_) | Self::Drawn(_) => Ok(()),
        }
    }

    /// To be called before steps: how many there is data for.
    pub fn before_steps(&mut self) -> Result<usize> {
        match self {
            Self::Shuffled(_) | Self::Streams(_) => Ok(usize::MAX),
            Self::Drawn(windows) => {
                windows.draw()?;
                Ok(1)
            }
        }
    }

    /// What draws windows from a file.
    pub fn rng(&mut self) -> Option<&mut Rng> {
        match self {
            Self::Shuffled(_) | Self::Streams(_) => None,
            Self::Drawn(windows) => Some(&mut windows.rng),
        }
    }

    /// Windows of an epoch; of a file, as many as it has bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Shuffled(windows) | Self::Streams(windows) => windows.len(),
            Self::Drawn(windows) => windows.len(),
        }
    }

    pub fn batches(&self, batch: usize) -> usize {
        self.len().div_ceil(batch)
    }

    /// The mean over all windows from the mean of each batch.
    pub fn mean(&self, losses: &[f32], batch: usize) -> f64 {
        match self {
            Self::Shuffled(windows) | Self::Streams(windows) => windows.mean(losses, batch),
            Self::Drawn(_) => losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64,
        }
    }

    /// Batches that a validation takes at most: of a file, a sample.
    pub fn most_validated(&self) -> usize {
        if matches!(self, Self::Drawn(_)) { 200 } else { usize::MAX }
    }
}
