//! Windows of a text that lies on the device.

use std::ops::Range;

use super::TextFile;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernels;
use crate::tensor::Tensor;

/// A text on the device, as tokens. Uploaded once; batches are cut from it there.
#[derive(Clone, Debug)]
pub struct Corpus {
    tokens: Tensor,
}

impl Corpus {
    /// Uploads tokens of a vocabulary.
    ///
    /// # Errors
    /// [`Error::Token`] for one outside the vocabulary; no tokens; more than the device can hold in one buffer.
    pub fn new(device: &Device, tokens: &[u32], vocabulary: usize) -> Result<Self> {
        let corpus = device.tokens("corpus", &[tokens.len()], vocabulary)?;
        corpus.write_u32(tokens)?;
        Ok(Self { tokens: corpus })
    }

    /// Uploads the text of a file, as tokens of its vocabulary, a piece at a time: the host keeps no copy.
    ///
    /// # Errors
    /// [`Error::Io`] if the file has changed since it was opened; more characters than the device can hold in one buffer.
    pub fn of_file(device: &Device, file: &TextFile) -> Result<Self> {
        let corpus = device.tokens("corpus", &[file.characters()], file.vocabulary().len())?;
        let mut start = 0;
        file.for_each_piece(|tokens| {
            corpus.view(corpus.name(), start, &[tokens.len()]).write_u32(tokens)?;
            start += tokens.len();
            Ok(())
        })?;
        Ok(Self { tokens: corpus })
    }

    /// Replaces all tokens by as many others: the next part of a text that is too long for a device, say.
    ///
    /// # Errors
    /// [`Error::Token`] for one outside the vocabulary; another number of tokens; the device failed.
    pub fn write(&self, tokens: &[u32]) -> Result<()> {
        self.tokens.write_u32(tokens)
    }

    /// The number of tokens.
    #[allow(clippy::len_without_is_empty, reason = "a tensor has at least one element")]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether a stretch of this length has a window in each of `batch` streams, and a token after.
    fn check_length(&self, stretch: usize, batch: usize, window: usize) -> Result<()> {
        let least = batch as u128 * window as u128 + 1;
        if stretch as u128 >= least {
            return Ok(());
        }
        Err(Error::TextTooShort { length: self.len(), stretch, unit: "characters", window, batch, least })
    }
}

/// Windows of a [`Corpus`], each with the token after it, in an order that can be changed before each epoch.
///
/// Cutting happens on the device: the plan's clock says which batch it is.
#[derive(Debug)]
pub struct Windows {
    corpus: Corpus,
    starts: Vec<u32>,
    order: Tensor,
    window: usize,
}

/// One batch of windows: tensors that the plan fills.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[T, B]`
    pub tokens: Tensor,
    /// `[1, B]`: what follows each window; or `[T, B]`: what follows each token. Entries past the end of the last batch
    /// have a target that no loss counts.
    pub targets: Tensor,
}

impl Windows {
    /// Windows of `window` tokens that start at `starts`.
    ///
    /// # Errors
    /// No starts, a window of 0, or a window that does not end before the corpus.
    pub fn new(corpus: &Corpus, starts: Vec<u32>, window: usize) -> Result<Self> {
        if window == 0 || starts.is_empty() {
            let got = format!("{} windows of {window}", starts.len());
            return Err(Error::argument("Windows", "windows", "at least one, of at least 1 token", got));
        }
        corpus.check_length(corpus.len(), 1, window)?;
        let most = corpus.len() - window - 1;
        if let Some(last) = starts.iter().max().filter(|&&last| last as usize > most) {
            return Err(Error::argument(
                "Windows",
                "starts",
                format!("at most {most}, for a token after the window"),
                last,
            ));
        }
        let order = corpus.tokens.device().tokens("order", &[starts.len()], corpus.len() - window)?;
        order.write_u32(&starts)?;
        Ok(Self { corpus: corpus.clone(), starts, order, window })
    }

    /// A stretch of the corpus as `batch` contiguous streams: each batch of windows goes on where the last one ended, for
    /// a state that is carried. What is left over at the end of the streams is not used.
    ///
    /// # Errors
    /// The stretch does not lie within the corpus, or is too short for one window in each stream.
    pub fn streams(corpus: &Corpus, stretch: Range<usize>, batch: usize, window: usize) -> Result<Self> {
        if stretch.end > corpus.len() || batch == 0 || window == 0 {
            let expected = format!("within 0..{}, of at least one stream and window of 1", corpus.len());
            return Err(Error::argument("Windows", "streams", expected, format!("{stretch:?}, {batch}, {window}")));
        }
        corpus.check_length(stretch.len(), batch, window)?;
        // The last token has none after it.
        let length = (stretch.len() - 1) / batch;
        let starts = (0..length / window)
            .flat_map(|step| (0..batch).map(move |stream| stream * length + step * window))
            .map(|offset| (stretch.start + offset) as u32);
        Self::new(corpus, starts.collect(), window)
    }

    /// How many windows there are.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// How many batches they make, the last one perhaps not full.
    pub fn batches(&self, batch: usize) -> usize {
        self.len().div_ceil(batch.max(1))
    }

    /// Puts window `order[i]` in place i for the epochs to come.
    ///
    /// # Errors
    /// `order` is not as long as the windows, or names one that is not there.
    pub fn set_order(&self, order: &[u32]) -> Result<()> {
        if let Some(i) = order.iter().find(|&&i| i as usize >= self.len()) {
            return Err(Error::argument("set_order", "order", format!("below {}", self.len()), i));
        }
        self.order.write_u32(&order.iter().map(|&i| self.starts[i as usize]).collect::<Vec<_>>())
    }

    /// Records the cut of the next batch of an epoch: windows, and the token after each.
    ///
    /// # Errors
    /// A batch of 0, or one larger than the device allows.
    pub fn batch(&self, g: &mut Graph, batch: usize) -> Result<Batch> {
        self.cut(g, batch, 1)
    }

    /// [`Self::batch`] for a loss on all steps: windows, and the token after each of their tokens.
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub fn batch_of_every_step(&self, g: &mut Graph, batch: usize) -> Result<Batch> {
        self.cut(g, batch, self.window)
    }

    fn cut(&self, g: &mut Graph, batch: usize, targets: usize) -> Result<Batch> {
        if batch == 0 {
            return Err(Error::argument("Windows", "batch", "at least 1", 0));
        }
        let vocabulary = self.corpus.tokens.vocabulary().expect("a corpus is made of tokens");
        let tokens = g.tokens("tokens", &[self.window, batch], vocabulary)?;
        let targets = g.targets("targets", &[targets, batch], vocabulary)?;
        let clock = g.clock()?;
        kernels::windows::windows(g, &self.corpus.tokens, &self.order, &clock, &tokens, &targets)?;
        Ok(Batch { tokens, targets })
    }

    /// The mean over all windows from the mean of each batch.
    pub fn mean(&self, losses: &[f32], batch: usize) -> f64 {
        let mut left = self.len();
        let mut sum = 0.0;
        for &loss in losses {
            let entries = left.min(batch);
            sum += f64::from(loss) * entries as f64;
            left -= entries;
        }
        sum / (self.len() - left) as f64
    }
}

/// `get_cv_idxs` of the tutorials: a random fifth (or other share) of `n` windows held out, the rest for training.
/// `order` is a random order of 0..n.
pub fn hold_out(order: &[u32], share: f64) -> (Vec<u32>, Vec<u32>) {
    let (held_out, training) = order.split_at((order.len() as f64 * share.clamp(0.0, 1.0)) as usize);
    (training.into(), held_out.into())
}
