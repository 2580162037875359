//! Plans of one network for batches of any shape.

use crate::data::{Array, Signature};
use crate::error::{Error, Result};
use crate::graph::{Graph, Parameters};
use crate::plan::Plan;
use crate::tensor::Tensor;

/// What the plans of one network may hold on the device, if nothing else is said: a GiB.
const MOST_BYTES: u64 = 1 << 30;

/// What a dispatch takes beside its tensors, about: its parameters, on a GPU in a place of their own, and the host's part.
const BYTES_OF_A_DISPATCH: u64 = 1024;

/// Plans of one network for batches of any shape. Each is recorded when the first batch of its shape comes, and kept: the least
/// recently used go where all together hold more memory than [`Self::set_most_bytes`] allows (1 GiB if nothing is said), or where
/// the device has none left. A plan that is larger than that by itself goes first.
///
/// A batch is `N` arrays; the network makes a `B` of it.
pub struct Plans<'a, const N: usize, B> {
    parameters: Parameters,
    build: Box<Build<'a, N, B>>,
    kept: Vec<Kept<N>>,
    most_bytes: u64,
    uses: u64,
    recorded: u64,
}

type Build<'a, const N: usize, B> = dyn Fn(&mut Graph, &[Tensor; N]) -> Result<B> + Send + 'a;

/// A plan, and the tensors that a batch goes into.
pub(crate) struct Kept<const N: usize> {
    signature: [Signature; N],
    inputs: [Tensor; N],
    pub plan: Plan,
    /// What is read when it has run.
    pub results: Vec<Tensor>,
    bytes: u64,
    last_use: u64,
}

impl<'a, const N: usize, B> Plans<'a, N, B> {
    pub(crate) fn new(
        parameters: &Parameters,
        build: impl Fn(&mut Graph, &[Tensor; N]) -> Result<B> + Send + 'a,
    ) -> Self {
        Self {
            parameters: parameters.clone(),
            build: Box::new(build),
            kept: Vec::new(),
            most_bytes: MOST_BYTES,
            uses: 0,
            recorded: 0,
        }
    }

    /// How many plans are kept.
    #[allow(clippy::len_without_is_empty, reason = "there is one after the first batch")]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// How many have been recorded so far, those included that were let go.
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Bytes that nothing but these plans holds, about: intermediate results, the batches, and a KiB for each dispatch.
    pub fn bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.bytes).sum()
    }

    /// The plans, the most recently used first.
    pub fn iter(&self) -> impl Iterator<Item = &Plan> {
        let mut kept: Vec<_> = self.kept.iter().collect();
        kept.sort_by_key(|kept| std::cmp::Reverse(kept.last_use));
        kept.into_iter().map(|kept| &kept.plan)
    }

    /// Lets the least recently used plans go where all together hold more than this, from the next new shape on. The plan in use
    /// stays, however large.
    pub fn set_most_bytes(&mut self, most_bytes: u64) {
        self.most_bytes = most_bytes;
    }

    /// The plan for this batch, which is in its place: recorded now if it is the first of its shape, on what `graph` makes, and
    /// completed by `complete`, which says what is read when it has run.
    pub(crate) async fn load(
        &mut self,
        batch: [&Array; N],
        graph: impl Fn(&Parameters) -> Graph,
        mut complete: impl FnMut(&mut Graph, B) -> Result<Vec<Tensor>>,
    ) -> Result<&Kept<N>> {
        self.uses += 1;
        let signature = batch.map(Array::signature);
        let known = self.kept.iter().position(|kept| kept.signature == signature);
        let place = match known {
            Some(place) => place,
            None => {
                let made = self.record(batch, signature.clone(), &graph, &mut complete).await;
                match made {
                    Err(Error::OutOfMemory { .. }) if !self.kept.is_empty() => {
                        self.kept.clear();
                        self.parameters.device().synchronize()?;
                        self.record(batch, signature, &graph, &mut complete).await?;
                    }
                    made => made?,
                }
                self.kept.len() - 1
            }
        };
        let kept = &mut self.kept[place];
        kept.last_use = self.uses;
        batch.iter().zip(&kept.inputs).try_for_each(|(array, tensor)| array.write(tensor))?;
        Ok(kept)
    }

    async fn record(
        &mut self,
        batch: [&Array; N],
        signature: [Signature; N],
        graph: &impl Fn(&Parameters) -> Graph,
        complete: &mut impl FnMut(&mut Graph, B) -> Result<Vec<Tensor>>,
    ) -> Result<()> {
        let device = self.parameters.device();
        let inputs = batch.iter().map(|array| array.tensor(device)).collect::<Result<Vec<_>>>()?;
        let inputs: [Tensor; N] = inputs.try_into().expect("as many tensors as arrays");
        let mut g = graph(&self.parameters);
        let built = (self.build)(&mut g, &inputs)?;
        let results = complete(&mut g, built)?;
        let plan = g.finish_async().await?;
        let bytes =
            plan.own_bytes(inputs.iter().chain(&results)) + BYTES_OF_A_DISPATCH * plan.count().dispatches as u64;
        // One that is too large by itself is no reason for others to go.
        let wanted = if bytes > self.most_bytes { 0 } else { bytes };
        while !self.kept.is_empty() && self.bytes() + wanted > self.most_bytes {
            let too_large = |kept: &Kept<N>| kept.bytes > self.most_bytes;
            let first = self.kept.iter().enumerate().min_by_key(|(_, kept)| (!too_large(kept), kept.last_use));
            self.kept.swap_remove(first.map_or(0, |(place, _)| place));
        }
        self.recorded += 1;
        self.kept.push(Kept { signature, inputs, plan, results, bytes, last_use: self.uses });
        Ok(())
    }
}
