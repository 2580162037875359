//! Windows to train on and to validate with: of a text on the device, or drawn from a large file.

use std::ops::Range;

use anyhow::{Result, bail};
use elman::rng::{self, Rng};
use elman::text::{self, Batch, FileWindows, Vocabulary, Windows, hold_out};
use elman::{Device, Evaluator, Graph};

use super::corpus::{Corpus, Text};
use super::networks::Recipe;

/// A file from this size on is not loaded, but where all of it is needed: windows are drawn from it. An order of all windows
/// takes 20 bytes for each character; here that is about what the program takes anyway.
pub const LARGE: u64 = 4 << 20;

/// Of another text than the tutorials', one character in so many is held out.
const HELD_OUT: usize = 10;

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

    /// The losses of the first batches.
    pub fn losses(&mut self, evaluator: &mut Evaluator, batches: usize) -> Result<Vec<f32>> {
        if !matches!(self, Self::Drawn(_)) {
            return Ok(evaluator.losses(batches)?);
        }
        let mut losses = Vec::new();
        for _ in 0..batches {
            self.before_steps()?;
            losses.extend(evaluator.losses(1)?);
        }
        Ok(losses)
    }
}

/// The length of the text, and its windows. Held out are, of the published text, a random fifth of the windows, or of
/// streams the last fifth; of a large file, the last fifth; of another text, whole stretches.
pub fn cut(
    device: &Device,
    corpus: &Corpus,
    vocabulary: &Vocabulary,
    recipe: &Recipe,
    stateful: bool,
    rng: &mut Rng,
) -> Result<(usize, [Data; 2])> {
    let Recipe { window, stride, batch, .. } = *recipe;
    let tokens = match &corpus.text {
        Text::Mapped(file) if !stateful && stride == 1 => {
            let (length, split) = (file.len(), file.len() / 5 * 4);
            let mut drawn = |stretch| {
                let draws = rng::manual_seed(rng.next_u32().into());
                let windows = FileWindows::new(file, device, stretch, batch, window, draws)?;
                anyhow::Ok(Data::Drawn(Box::new(windows)))
            };
            return Ok((length, [drawn(0..split)?, drawn(split..length)?]));
        }
        Text::Loaded(text) if !corpus.published => {
            let tokens = vocabulary.encode(text)?;
            return Ok((tokens.len(), apart(device, &tokens, vocabulary, recipe, stateful)?));
        }
        text => text.upload(device, vocabulary)?,
    };
    let (length, split) = (tokens.len(), tokens.len() / 5 * 4);
    if stateful {
        let streams = |stretch| Windows::streams(&tokens, stretch, batch, window).map(Data::Streams);
        return Ok((length, [streams(0..split)?, streams(split..length)?]));
    }
    let Some(count) = length.checked_sub(window).filter(|&n| n >= 5 * stride) else {
        bail!("the corpus has {length} characters, too few for windows of {window}: use a smaller --window");
    };
    let windows = |starts: Vec<u32>| Windows::new(&tokens, starts, window).map(Data::Shuffled);
    if !corpus.published {
        let Some(end) = split.checked_sub(window).filter(|&end| end > 0 && split < count) else {
            bail!(
                "the last fifth of {length} characters is held out, too few for windows of {window}: use a smaller --window"
            );
        };
        let starts = |from: usize, to: usize| (from as u32..to as u32).step_by(stride).collect();
        return Ok((length, [windows(starts(0, end))?, windows(starts(split, count))?]));
    }
    let (training, held_out) = hold_out(&rng.randperm(count.div_ceil(stride)), 0.2);
    let windows = |mut starts: Vec<u32>| {
        starts.iter_mut().for_each(|start| *start *= stride as u32);
        windows(starts)
    };
    Ok((length, [windows(training)?, windows(held_out)?]))
}

/// The windows of another text than the tutorials': those to train on, and those of the stretches that are held out, each a text
/// of its own.
fn apart(
    device: &Device,
    tokens: &[u32],
    vocabulary: &Vocabulary,
    recipe: &Recipe,
    stateful: bool,
) -> Result<[Data; 2]> {
    let Recipe { window, stride, batch, .. } = *recipe;
    let mut parts = [Vec::new(), Vec::new()];
    let mut start = 0;
    for stretch in held_out_stretches(tokens.len()) {
        parts[0].extend(&tokens[start..stretch.start]);
        parts[1].extend(&tokens[stretch.clone()]);
        start = stretch.end;
    }
    if parts[1].len() <= window {
        bail!(
            "the corpus has {} characters, of which {} are held out; windows of {window} need {} of these: use a longer \
             text or a smaller --window",
            tokens.len(),
            parts[1].len(),
            window.saturating_add(1)
        );
    }
    let windows = |part: Vec<u32>| {
        let corpus = text::Corpus::new(device, &part, vocabulary.len())?;
        if stateful {
            return anyhow::Ok(Data::Streams(Windows::streams(&corpus, 0..part.len(), batch, window)?));
        }
        let starts = (0..(part.len() - window) as u32).step_by(stride).collect();
        Ok(Data::Shuffled(Windows::new(&corpus, starts, window)?))
    };
    let [training, held_out] = parts;
    Ok([windows(training)?, windows(held_out)?])
}

/// What is held out of another text than the tutorials': the last tenth of each of up to ten equal parts. The stretches
/// make a text of their own, and the rest another, so that no window of one has a character of the other.
pub fn held_out_stretches(length: usize) -> Vec<Range<usize>> {
    let parts = (length / 10_000).clamp(1, 10);
    let end = |part: usize| (part as u64 * length as u64 / parts as u64) as usize;
    (0..parts).map(|part| end(part + 1) - (end(part + 1) - end(part)) / HELD_OUT..end(part + 1)).collect()
}
