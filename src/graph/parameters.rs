//! All parameters of a network in one buffer, all gradients in another of the same layout.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::tensor::{DType, Tensor, checked_len};

/// Which parameter; a module keeps one for each of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterId {
    init: u64,
    index: usize,
}

/// Each parameter starts at a multiple of this many elements: WebGPU's largest alignment of a binding, 256 bytes.
const ALIGNMENT: usize = 64;

/// Draws the initial values of modules, in the order in which the modules are made, from a PyTorch generator.
///
/// ```
/// use elman::{Device, nn, rng};
///
/// let mut init = nn::Init::new(rng::manual_seed(777));
/// let layer = nn::Linear::new(&mut init, "output_layer", 256, 85)?;
/// let parameters = init.upload(&Device::cpu())?;
/// assert_eq!(parameters.names().collect::<Vec<_>>(), ["output_layer.weight", "output_layer.bias"]);
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Init {
    /// The generator: draw from it what PyTorch code would draw before, between and after the modules.
    pub rng: Rng,
    id: u64,
    entries: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Init {
    /// Starts with this generator; see [`crate::rng::manual_seed`].
    pub fn new(rng: Rng) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { rng, id: NEXT.fetch_add(1, Ordering::Relaxed), entries: Vec::new() }
    }

    /// Adds a parameter from U(-bound, bound).
    ///
    /// # Errors
    /// A dimension of 0, or the name is taken.
    pub fn uniform(&mut self, name: String, shape: &[usize], bound: f64) -> Result<ParameterId> {
        let len = checked_len("init", &name, shape)?;
        let values = self.rng.uniform(len, -bound, bound);
        self.add(name, shape, values)
    }

    /// Adds a parameter from N(0, 1).
    ///
    /// # Errors
    /// A dimension of 0, or the name is taken.
    pub fn normal(&mut self, name: String, shape: &[usize]) -> Result<ParameterId> {
        let len = checked_len("init", &name, shape)?;
        let values = self.rng.randn(len);
        self.add(name, shape, values)
    }

    /// Adds a parameter with these values.
    ///
    /// # Errors
    /// The shape does not fit the values, a dimension of 0, or the name is taken.
    pub fn add(&mut self, name: String, shape: &[usize], values: Vec<f32>) -> Result<ParameterId> {
        if checked_len("init", &name, shape)? != values.len() {
            return Err(Error::shape("init", name, format!("one of {} values", values.len()), shape));
        }
        if self.entries.iter().any(|(taken, ..)| *taken == name) {
            return Err(Error::argument("init", "name", "one that no other parameter has", name));
        }
        self.entries.push((name, shape.into(), values));
        Ok(ParameterId { init: self.id, index: self.entries.len() - 1 })
    }

    /// Puts the parameters on a device. The generator stays usable.
    ///
    /// # Errors
    /// No parameters, or more than the device can hold in one buffer.
    pub fn upload(&self, device: &Device) -> Result<Parameters> {
        if self.entries.is_empty() {
            return Err(Error::argument("upload", "modules", "at least one with parameters", 0));
        }
        let mut block = Vec::new();
        let mut entries = Vec::new();
        for (name, shape, values) in &self.entries {
            entries.push(Entry { name: name.clone(), shape: shape.clone(), start: block.len() });
            block.extend_from_slice(values);
            block.resize(block.len().next_multiple_of(ALIGNMENT), 0.0);
        }
        let values = device.upload("parameters", &[block.len()], &block)?;
        let gradients = device.zeros("gradients", &[block.len()], DType::F32)?;
        Ok(Parameters(Arc::new(Block { init: self.id, entries, values, gradients })))
    }
}

/// The parameters of a network on a device. Cloning gives another handle to the same memory.
#[derive(Clone, Debug)]
pub struct Parameters(Arc<Block>);

#[derive(Debug)]
struct Block {
    init: u64,
    entries: Vec<Entry>,
    values: Tensor,
    gradients: Tensor,
}

#[derive(Debug)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    start: usize,
}

impl Parameters {
    /// The device they live on.
    pub fn device(&self) -> &Device {
        self.0.values.device()
    }

    /// Their names, as in PyTorch's `state_dict`, in its order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.entries.iter().map(|entry| entry.name.as_str())
    }

    /// All of them, in order.
    pub fn ids(&self) -> impl Iterator<Item = ParameterId> + use<> {
        let init = self.0.init;
        (0..self.0.entries.len()).map(move |index| ParameterId { init, index })
    }

    /// The number of trained values.
    pub fn count(&self) -> usize {
        self.iter().map(|(_, tensor)| tensor.len()).sum()
    }

    /// Name and value of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor)> {
        self.0.entries.iter().map(|entry| (entry.name.as_str(), self.view(&self.0.values, "", entry)))
    }

    /// The value of the parameter of that name.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.iter().find(|(n, _)| *n == name).map(|(_, tensor)| tensor)
    }

    /// The gradient of the parameter of that name.
    pub fn get_gradient(&self, name: &str) -> Option<Tensor> {
        let entry = self.0.entries.iter().find(|entry| entry.name == name)?;
        Some(self.view(&self.0.gradients, "d ", entry))
    }

    /// Value and gradient of a parameter, if it is one of these.
    pub(crate) fn value_and_gradient(&self, id: ParameterId) -> Option<(Tensor, Tensor)> {
        let entry = self.0.entries.get(id.index).filter(|_| id.init == self.0.init)?;
        Some((self.view(&self.0.values, "", entry), self.view(&self.0.gradients, "d ", entry)))
    }

    fn view(&self, block: &Tensor, prefix: &str, entry: &Entry) -> Tensor {
        block.view(&format!("{prefix}{}", entry.name), entry.start, &entry.shape)
    }

    /// All values, with zeros between the parameters.
    pub(crate) fn values(&self) -> &Tensor {
        &self.0.values
    }

    /// All gradients, laid out like [`Self::values`].
    pub(crate) fn gradients(&self) -> &Tensor {
        &self.0.gradients
    }
}
