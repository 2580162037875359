//! A stretch of a text as contiguous streams on a device, as much of it at a time as fits.

use std::ops::Range;

use anyhow::{Result, bail};
use elman::text::{Batch, Corpus, Windows};
use elman::{Device, Graph};

use super::text::Text;

/// Tokens that lie on the device at a time.
const MOST_TOKENS: usize = 16 << 20;

/// `batch` streams, each a stretch of the text; a step takes the next `window` tokens of each.
pub struct Streams {
    /// Where the text of the streams starts, and how long each is.
    start: usize,
    length: usize,
    batch: usize,
    window: usize,
    /// Steps of a shard: as much as lies on the device at a time.
    shard: usize,
    corpus: Corpus,
    windows: Windows,
    loaded: Option<usize>,
}

impl Streams {
    pub fn new(device: &Device, text: &Text, range: Range<usize>, batch: usize, window: usize) -> Result<Self> {
        Self::with_most(device, text, range, (batch, window), MOST_TOKENS)
    }

    fn with_most(
        device: &Device,
        text: &Text,
        range: Range<usize>,
        (batch, window): (usize, usize),
        most: usize,
    ) -> Result<Self> {
        let length = range.len().saturating_sub(1) / batch;
        let steps = length / window;
        if steps == 0 {
            let (has, needs, unit) = (range.len(), batch * window + 1, text.tokens().unit());
            bail!(
                "the text has {has} {unit} here, and {batch} x {window} (streams, windows) need {needs}: use a longer text, a smaller \
                 --batch or a smaller --window"
            );
        }
        let most = (most / batch).saturating_sub(1) / window;
        let shard = steps.min(most.max(1));
        let row = shard * window + 1;
        let corpus = Corpus::new(device, &vec![0; batch * row], text.tokens().len())?;
        let starts = (0..shard).flat_map(|step| (0..batch).map(move |stream| (stream * row + step * window) as u32));
        let windows = Windows::new(&corpus, starts.collect(), window)?;
        Ok(Self { start: range.start, length, batch, window, shard, corpus, windows, loaded: None })
    }

    /// Steps of a pass over the text.
    pub fn steps(&self) -> usize {
        self.length / self.window
    }

    /// Tokens of a step.
    pub fn tokens_of_a_step(&self) -> usize {
        self.batch * self.window
    }

    /// Steps of a pass that can be run from this one on before [`Self::load`] is due again.
    pub fn until_next_shard(&self, step: usize) -> usize {
        self.shard.min(self.steps() - step / self.shard * self.shard) - step % self.shard
    }

    /// Where in the text a stream is at a step of a pass.
    pub fn start_of(&self, stream: usize, step: usize) -> usize {
        self.start + stream * self.length + step * self.window
    }

    /// Whether a step is the first of what lies on the device with it.
    pub fn is_first_of_shard(&self, step: usize) -> bool {
        step.is_multiple_of(self.shard)
    }

    /// Brings what this step of a pass needs to the device.
    pub fn load(&mut self, text: &Text, step: usize) -> Result<()> {
        let shard = step / self.shard;
        if self.loaded == Some(shard) {
            return Ok(());
        }
        let (first, steps) = (shard * self.shard, self.shard.min(self.steps() - shard * self.shard));
        let mut tokens = Vec::with_capacity(self.batch * (self.shard * self.window + 1));
        for stream in 0..self.batch {
            let start = self.start + stream * self.length + first * self.window;
            tokens.extend(text.read(start..start + steps * self.window + 1)?);
            // The last shard may be shorter.
            tokens.resize((stream + 1) * (self.shard * self.window + 1), 0);
        }
        self.corpus.write(&tokens)?;
        self.loaded = Some(shard);
        Ok(())
    }

    /// Records the cut of the next batch of a shard.
    pub fn batch(&self, g: &mut Graph) -> elman::Result<Batch> {
        self.windows.batch_of_every_step(g, self.batch)
    }
}

#[cfg(test)]
mod tests {
    use elman::nn::functional::{InitialState, Reduction, cross_entropy};
    use elman::nn::{CharRnn, CharRnnOptions, Init, LanguageModel as _};
    use elman::{Evaluator, rng};

    use super::*;
    use crate::cli::text::{By, Reading};

    /// However little of a text lies on the device at a time, the steps are the same.
    #[test]
    fn shards_make_one_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..997u32).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
        std::fs::write(file.path(), text).unwrap();
        let name = [file.path().to_str().unwrap().to_owned()];
        let text = Text::open(&name, &Reading::default(), By::ItsCharacters).unwrap();
        let device = Device::cpu();
        let mut init = Init::new(rng::manual_seed(1));
        let network = CharRnn::new(&mut init, CharRnnOptions::new(text.tokens().len(), 3, 5)).unwrap();
        let parameters = init.upload(&device).unwrap();
        let losses = |most| {
            let mut streams = Streams::with_most(&device, &text, 10..990, (3, 7), most).unwrap();
            let state = network.state(&device, 3).unwrap();
            let mut evaluator = Evaluator::new(&parameters, |g| {
                let batch = streams.batch(g)?;
                let logits = network.forward_every_step(g, &batch.tokens, InitialState::Carried(&state))?;
                cross_entropy(g, logits, &batch.targets, Reduction::Mean)
            })
            .unwrap();
            let mut losses = Vec::new();
            while losses.len() < streams.steps() {
                let step = losses.len();
                assert!(streams.is_first_of_shard(step));
                streams.load(&text, step).unwrap();
                losses.extend(evaluator.losses(streams.until_next_shard(step)).unwrap());
            }
            losses
        };
        let whole = losses(10_000);
        assert_eq!(whole.len(), 979 / 3 / 7);
        for most in [0, 30, 70, 200] {
            assert_eq!(losses(most), whole, "{most} tokens at a time");
        }
    }
}
