//! The hidden state carried from window to window.

use std::collections::BTreeMap;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::plan::Recorder;
use crate::tensor::{DType, Tensor, checked_len};

/// The carried hidden state: tensors of its own on the device, by name (`h`), each `[D * L, B, H]` as PyTorch's `h_n`.
/// They lie in one buffer, so that what is saved or restored is of one step, whatever thread runs a plan meanwhile.
///
/// A plan recorded with it starts from it and leaves the new state in it; it never leaves the device unless saved.
/// Evaluation and generation have states of their own, so they leave the training state alone.
///
/// ```
/// # use elman::{Device, nn::State};
/// let state = State::zeros(&Device::cpu(), &[("h", [1, 2, 3])])?;
/// let before = state.save()?;
/// state.zero()?;
/// state.restore(&before)?;
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Debug)]
pub struct State {
    /// All values, with zeros between the tensors.
    values: Tensor,
    /// Ranges of them.
    tensors: BTreeMap<String, Tensor>,
}

/// Each tensor starts at a multiple of this many elements: WebGPU's largest alignment of a binding, 256 bytes.
const ALIGNMENT: usize = 64;

/// Values of a [`State`] on the host, by name.
pub type Snapshot = BTreeMap<String, Vec<f32>>;

fn sizes(tensor: &Tensor) -> [usize; 3] {
    tensor.shape().try_into().expect("a state's tensors have three dimensions")
}

fn check_row(row: usize, batch: usize) -> Result<()> {
    match row < batch {
        true => Ok(()),
        false => Err(Error::argument("state", "row", format!("below {batch}, the batch"), row)),
    }
}

impl State {
    /// A state of zeros.
    ///
    /// # Errors
    /// A size of 0, or more than the device can hold in one buffer.
    pub fn zeros(device: &Device, tensors: &[(&str, [usize; 3])]) -> Result<Self> {
        // By name, so that states of the same tensors have the same layout.
        let mut tensors = tensors.to_vec();
        tensors.sort();
        let (mut starts, mut len) = (Vec::new(), 0usize);
        for (name, shape) in &tensors {
            starts.push(len);
            len = len.saturating_add(checked_len("state", name, shape)?.next_multiple_of(ALIGNMENT));
        }
        let values = device.zeros("state", &[len.max(1)], DType::F32)?;
        let view = |(&(name, shape), start): (&(&str, [usize; 3]), usize)| {
            (name.to_owned(), values.view(&format!("state {name}"), start, &shape))
        };
        Ok(Self { tensors: tensors.iter().zip(starts).map(view).collect(), values })
    }

    /// Whether these are its h, and its c if it has one.
    pub(crate) fn is(&self, h: &Tensor, c: Option<&Tensor>) -> bool {
        let is = |name: &str, tensor: Option<&Tensor>| match (self.tensors.get(name), tensor) {
            (Some(own), Some(tensor)) => own.is(tensor),
            (own, tensor) => own.is_none() && tensor.is_none(),
        };
        is("h", Some(h)) && is("c", c)
    }

    /// The tensor of that name, which must have this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) if tensor.shape() == shape => Ok(tensor.clone()),
            Some(tensor) => Err(Error::shape("state", name, format!("{shape:?}"), tensor.shape())),
            None => Err(Error::shape("state", name, format!("{shape:?}"), &[])),
        }
    }

    /// The value of that name when the plan runs, `[D * L, B, H]`, for a network of one's own: a constant, through which
    /// no gradient crosses from window to window.
    ///
    /// # Errors
    /// There is no such name.
    pub fn get(&self, g: &mut Graph, name: &str) -> Result<Var> {
        let tensor = self.named(name)?;
        // The backward pass reads it after `set` has written the state.
        let before = g.zeros(tensor.name(), tensor.shape())?;
        g.copy(tensor, &before)?;
        g.input(&before)
    }

    /// Leaves a value of the plan in the state of that name.
    ///
    /// # Errors
    /// There is no such name, or it has another number of elements.
    pub fn set(&self, g: &mut Graph, name: &str, value: Var) -> Result<()> {
        let tensor = self.named(name)?;
        let value = g.tensor(value)?;
        g.copy(&value, tensor)
    }

    pub(crate) fn named(&self, name: &str) -> Result<&Tensor> {
        let names: Vec<_> = self.tensors.keys().collect();
        self.tensors.get(name).ok_or_else(|| Error::argument("state", "name", format!("one of {names:?}"), name))
    }

    /// Sets every value to zero.
    ///
    /// # Errors
    /// The device failed.
    pub fn zero(&self) -> Result<()> {
        self.values.write(&vec![0.0; self.values.len()])
    }

    /// Sets the values of one entry of the batch to zero, where a new sequence begins while the others go on:
    /// layer by layer, so between two runs of a plan, not beside one.
    ///
    /// # Errors
    /// There is no such entry, or the device failed.
    pub fn zero_row(&self, row: usize) -> Result<()> {
        for tensor in self.tensors.values() {
            let [layers, batch, hidden] = sizes(tensor);
            check_row(row, batch)?;
            for layer in 0..layers {
                let start = (layer * batch + row) * hidden;
                tensor.view(tensor.name(), start, &[hidden]).write(&vec![0.0; hidden])?;
            }
        }
        Ok(())
    }

    /// Copies an entry of the batch of another state of the same network, or of this one, to an entry of this, on the device:
    /// a sequence goes on twice, say.
    ///
    /// ```
    /// # use elman::{Device, nn::State};
    /// let device = Device::cpu();
    /// let [one, many] = [1, 5].map(|batch| State::zeros(&device, &[("h", [2, batch, 3])]));
    /// let (one, many) = (one?, many?);
    /// many.copy_row(4, &one, 0)?;
    /// assert_eq!(many.save_row(4)?, one.save()?);
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// There is no such entry; the states differ in more than the batch, or in the device; the device failed.
    pub fn copy_row(&self, to: usize, from: &Self, row: usize) -> Result<()> {
        let mut r = Recorder::new(self.values.device());
        self.record_copy(&mut r, to, from, row, 1)?;
        r.finish()?.run()
    }

    /// Records [`Self::copy_row`] of `count` entries.
    pub(crate) fn record_copy(&self, r: &mut Recorder, to: usize, from: &Self, row: usize, count: usize) -> Result<()> {
        if !self.tensors.keys().eq(from.tensors.keys()) {
            let names = |state: &Self| format!("{:?}", state.tensors.keys());
            return Err(Error::argument("copy_row", "from", names(self), names(from)));
        }
        for (tensor, source) in self.tensors.values().zip(from.tensors.values()) {
            let ([layers, batch, hidden], [of_layers, of_batch, of_hidden]) = (sizes(tensor), sizes(source));
            if (layers, hidden) != (of_layers, of_hidden) {
                return Err(Error::shape(
                    "copy_row",
                    source.name(),
                    format!("[{layers}, B, {hidden}]"),
                    source.shape(),
                ));
            }
            for (row, batch) in [(to, batch), (row, of_batch)] {
                check_row(row.saturating_add(count - 1), batch)?;
            }
            let rows = |tensor: &Tensor, row: usize, batch: usize, layer: usize| {
                tensor.view(tensor.name(), (layer * batch + row) * hidden, &[count * hidden])
            };
            for layer in 0..layers {
                r.copy_within(&rows(source, row, of_batch, layer), &rows(tensor, to, batch, layer))?;
            }
        }
        Ok(())
    }

    /// Copies one entry of the batch to the host, each tensor `[D * L, 1, H]`.
    ///
    /// # Errors
    /// There is no such entry, or the device failed.
    pub fn save_row(&self, row: usize) -> Result<Snapshot> {
        pollster::block_on(self.save_row_async(row))
    }

    /// [`Self::save_row`] without blocking.
    ///
    /// # Errors
    /// As [`Self::save_row`].
    pub async fn save_row_async(&self, row: usize) -> Result<Snapshot> {
        let one = self.zeros_like(Some(1))?;
        one.copy_row(0, self, row)?;
        one.save_async().await
    }

    /// Puts a saved entry back, as any entry of the batch.
    ///
    /// # Errors
    /// There is no such entry; other names or another shape, or the device failed.
    pub fn restore_row(&self, row: usize, saved: &Snapshot) -> Result<()> {
        if !saved.keys().eq(self.tensors.keys()) {
            let (expected, got) = (format!("{:?}", self.tensors.keys()), format!("{:?}", saved.keys()));
            return Err(Error::argument("restore", "names", expected, got));
        }
        let one = self.zeros_like(Some(1))?;
        one.restore(saved)?;
        self.copy_row(row, &one, 0)
    }

    /// Zeros, for another batch.
    pub(crate) fn zeros_like(&self, batch: Option<usize>) -> Result<Self> {
        let shape = |tensor: &Tensor| {
            let [layers, own, hidden] = sizes(tensor);
            [layers, batch.unwrap_or(own), hidden]
        };
        let tensors: Vec<_> = self.tensors.iter().map(|(name, tensor)| (name.as_str(), shape(tensor))).collect();
        Self::zeros(self.values.device(), &tensors)
    }

    /// All values, with zeros between the tensors.
    pub(crate) fn values(&self) -> &Tensor {
        &self.values
    }

    /// Name and tensor of each, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Copies the state to the host, in one read: all values are of one step.
    ///
    /// # Errors
    /// The device failed.
    pub fn save(&self) -> Result<Snapshot> {
        pollster::block_on(self.save_async())
    }

    /// [`Self::save`] without blocking.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub async fn save_async(&self) -> Result<Snapshot> {
        let values = self.values.to_vec_async().await?;
        let part = |(name, tensor): (&String, &Tensor)| (name.clone(), values[tensor.elements()].to_vec());
        Ok(self.tensors.iter().map(part).collect())
    }

    /// Puts a saved state back, in one write.
    ///
    /// # Errors
    /// Another shape, a name that is missing, or the device failed.
    pub fn restore(&self, saved: &Snapshot) -> Result<()> {
        let mut all = vec![0.0; self.values.len()];
        for (name, tensor) in &self.tensors {
            let values = saved.get(name).map_or(&[][..], |values| values);
            if values.len() != tensor.len() {
                return Err(Error::shape("restore", name, format!("{:?}", tensor.shape()), &[values.len()]));
            }
            all[tensor.offset()..][..values.len()].copy_from_slice(values);
        }
        self.values.write(&all)
    }

    /// A state of its own with the same values.
    ///
    /// # Errors
    /// The device failed.
    pub fn fork(&self) -> Result<Self> {
        pollster::block_on(self.fork_async())
    }

    /// [`Self::fork`] without blocking.
    ///
    /// # Errors
    /// As [`Self::fork`].
    pub async fn fork_async(&self) -> Result<Self> {
        let fork = self.zeros_like(None)?;
        fork.restore(&self.save_async().await?)?;
        Ok(fork)
    }
}
