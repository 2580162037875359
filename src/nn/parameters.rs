//! All parameters of a network in one buffer, all gradients in another of the same layout.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::tensor::{DType, Tensor};

/// Which parameter; a module keeps one for each of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParameterId(usize);

impl ParameterId {
    pub(crate) fn index(self) -> usize {
        self.0
    }
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
    entries: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Init {
    /// Starts with this generator; see [`crate::rng::manual_seed`].
    pub fn new(rng: Rng) -> Self {
        Self { rng, entries: Vec::new() }
    }

    /// Adds a parameter from U(-bound, bound).
    ///
    /// # Errors
    /// A dimension of 0, or the name is taken.
    pub fn uniform(&mut self, name: String, shape: &[usize], bound: f64) -> Result<ParameterId> {
        let values = self.rng.uniform(shape.iter().product(), -bound, bound);
        self.add(name, shape, values)
    }

    /// Adds a parameter from N(0, 1).
    ///
    /// # Errors
    /// A dimension of 0, or the name is taken.
    pub fn normal(&mut self, name: String, shape: &[usize]) -> Result<ParameterId> {
        let values = self.rng.randn(shape.iter().product());
        self.add(name, shape, values)
    }

    /// Adds a parameter with these values.
    ///
    /// # Errors
    /// The shape does not fit the values, a dimension of 0, or the name is taken.
    pub fn add(&mut self, name: String, shape: &[usize], values: Vec<f32>) -> Result<ParameterId> {
        if shape.contains(&0) || shape.iter().product::<usize>() != values.len() {
            return Err(Error::shape("init", name, format!("one of {} values, none of size 0", values.len()), shape));
        }
        if self.entries.iter().any(|(taken, ..)| *taken == name) {
            return Err(Error::argument("init", "name", "one that no other parameter has", name));
        }
        self.entries.push((name, shape.into(), values));
        Ok(ParameterId(self.entries.len() - 1))
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
        Ok(Parameters(Arc::new(Block { entries, values, gradients })))
    }
}

/// The parameters of a network on a device. Cloning gives another handle to the same memory.
#[derive(Clone, Debug)]
pub struct Parameters(Arc<Block>);

#[derive(Debug)]
struct Block {
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
        (0..self.0.entries.len()).map(ParameterId)
    }

    /// The number of trained values.
    pub fn count(&self) -> usize {
        self.iter().map(|(_, tensor)| tensor.len()).sum()
    }

    /// Name and value of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor)> {
        self.0.entries.iter().enumerate().map(|(i, entry)| (entry.name.as_str(), self.value(ParameterId(i))))
    }

    /// The value of the parameter of that name.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.iter().find(|(n, _)| *n == name).map(|(_, tensor)| tensor)
    }

    /// The gradient of the parameter of that name.
    pub fn get_gradient(&self, name: &str) -> Option<Tensor> {
        self.names().position(|n| n == name).map(|i| self.gradient(ParameterId(i)))
    }

    pub(crate) fn value(&self, id: ParameterId) -> Tensor {
        let entry = &self.0.entries[id.0];
        self.0.values.view(&entry.name, entry.start, &entry.shape)
    }

    pub(crate) fn gradient(&self, id: ParameterId) -> Tensor {
        let entry = &self.0.entries[id.0];
        self.0.gradients.view(&format!("d {}", entry.name), entry.start, &entry.shape)
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
