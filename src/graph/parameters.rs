//! All parameters of a network in one buffer, all gradients in another of the same layout.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::model_file::ModelFile;
use crate::rng::{self, Rng};
use crate::tensor::{DType, Tensor, checked_len};

/// Which parameter; a module keeps one for each of its own. No other parameter has it, also none of a clone of its [`Init`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterId(u64);

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
    added: Vec<Added>,
    has_values: bool,
    file: Option<ModelFile>,
}

/// The name of a module's parameter; of one without a name of its own, as a network that is one module is saved by PyTorch, the parameter's.
pub(crate) fn name_in(module: &str, parameter: &str) -> String {
    if module.is_empty() { parameter.into() } else { format!("{module}.{parameter}") }
}

/// A parameter that was added; no values where none are drawn.
#[derive(Clone, Debug)]
struct Added {
    id: ParameterId,
    name: String,
    shape: Vec<usize>,
    values: Option<Vec<f32>>,
}

impl Init {
    /// Starts with this generator; see [`crate::rng::manual_seed`].
    pub fn new(rng: Rng) -> Self {
        Self { rng, added: Vec::new(), has_values: true, file: None }
    }

    /// Parameters have the values that this file has under their names; none is drawn, nor taken where one is given. Modules are made as
    /// ever, or, where the file says their sizes, by their `from_file`, which reads these off.
    ///
    /// ```
    /// use elman::nn::{Embedding, Gru, Init, Linear, RnnOptions};
    /// use elman::{Device, io, rng};
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("model.safetensors");
    /// # let mut init = Init::new(rng::manual_seed(1));
    /// # Embedding::new(&mut init, "embedding", 10, 4)?;
    /// # Gru::new(&mut init, "gru", RnnOptions::new(4, 8))?;
    /// # Linear::new(&mut init, "output", 8, 10)?;
    /// # io::save(&path, &init.upload(&Device::cpu())?, io::Metadata::new())?;
    /// let file = io::ModelFile::open(&path)?;
    /// let mut init = Init::from_file(&file);
    /// let embedding = Embedding::from_file(&mut init, "embedding")?;
    /// let gru = Gru::new(&mut init, "gru", RnnOptions::from_file(&file, "gru")?.batch_first(true))?;
    /// let output = Linear::from_file(&mut init, "output")?;
    /// assert!(init.unused().is_empty()); // nothing else is in the file
    /// let parameters = init.upload(&Device::cpu())?;
    /// # drop((embedding, gru, output, parameters));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// A parameter that the file lacks, or has in another shape or with a value that is not finite, is an error where its module is made.
    pub fn from_file(file: &ModelFile) -> Self {
        Self { file: Some(file.clone()), ..Self::new(rng::manual_seed(0)) }
    }

    /// The names of the file that no module has taken so far, sorted; none without a file.
    pub fn unused(&self) -> Vec<&str> {
        let taken: BTreeSet<_> = self.added.iter().map(|added| &added.name[..]).collect();
        self.file.iter().flat_map(ModelFile::names).filter(|name| !taken.contains(name)).collect()
    }

    /// The file that modules read their sizes off.
    pub(crate) fn file(&self) -> Result<&ModelFile> {
        let expected = "one of `Init::from_file`";
        self.file.as_ref().ok_or_else(|| Error::argument("from_file", "init", expected, "one that draws"))
    }

    /// Of parameters it takes names and shapes alone; [`Self::upload`] then gives them no memory. For what is recorded to be looked at,
    /// and not run ([`crate::Trainer::record`]): a network of any size costs nothing.
    pub fn without_values() -> Self {
        Self { has_values: false, ..Self::new(rng::manual_seed(0)) }
    }

    /// Adds a parameter from U(-bound, bound).
    ///
    /// # Errors
    /// A dimension of 0, a bound that is negative or not finite, or the name is taken.
    pub fn uniform(&mut self, name: String, shape: &[usize], bound: f64) -> Result<ParameterId> {
        let len = checked_len("init", &name, shape)?;
        if !(bound >= 0.0 && ((2.0 * bound) as f32).is_finite()) {
            return Err(Error::argument("init", "bound", "0 or above, and half of what an f32 can be at most", bound));
        }
        self.insert(name, shape, |rng| rng.uniform(len, -bound, bound))
    }

    /// Adds a parameter from N(0, 1).
    ///
    /// # Errors
    /// A dimension of 0, or the name is taken.
    pub fn normal(&mut self, name: String, shape: &[usize]) -> Result<ParameterId> {
        let len = checked_len("init", &name, shape)?;
        self.insert(name, shape, |rng| rng.randn(len))
    }

    /// Adds a parameter that is this value throughout.
    ///
    /// # Errors
    /// A dimension of 0, or the name is taken.
    pub fn constant(&mut self, name: String, shape: &[usize], value: f32) -> Result<ParameterId> {
        let len = checked_len("init", &name, shape)?;
        self.insert(name, shape, |_| vec![value; len])
    }

    /// [`Self::normal`] `[rows, columns]`, one row of which is 0 afterwards, unless a file says what is in it.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn normal_but_for_row(&mut self, name: String, shape: [usize; 2], row: usize) -> Result<ParameterId> {
        let id = self.normal(name, &shape)?;
        if self.file.is_none()
            && let Some(values) = self.added.last_mut().and_then(|added| added.values.as_mut())
        {
            values[row * shape[1]..][..shape[1]].fill(0.0);
        }
        Ok(id)
    }

    /// Adds a parameter with these values.
    ///
    /// # Errors
    /// The shape does not fit the values, a dimension of 0, or the name is taken.
    pub fn add(&mut self, name: String, shape: &[usize], values: Vec<f32>) -> Result<ParameterId> {
        if checked_len("init", &name, shape)? != values.len() {
            return Err(Error::shape("init", name, format!("one of {} values", values.len()), shape));
        }
        self.insert(name, shape, |_| values)
    }

    fn insert(
        &mut self,
        name: String,
        shape: &[usize],
        values: impl FnOnce(&mut Rng) -> Vec<f32>,
    ) -> Result<ParameterId> {
        if self.added.iter().any(|added| added.name == name) {
            return Err(Error::argument("init", "name", "one that no other parameter has", name));
        }
        let values = match &self.file {
            _ if !self.has_values => None,
            None => Some(values(&mut self.rng)),
            Some(file) => Some(file.expect(&name, shape)?),
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = ParameterId(NEXT.fetch_add(1, Ordering::Relaxed));
        self.added.push(Added { id, name, shape: shape.into(), values });
        Ok(id)
    }

    /// Puts the parameters on a device. The generator stays usable.
    ///
    /// # Errors
    /// No parameters, or more than the device can hold in one buffer.
    pub fn upload(&self, device: &Device) -> Result<Parameters> {
        if self.added.is_empty() {
            return Err(Error::argument("upload", "modules", "at least one with parameters", 0));
        }
        let mut entries = Vec::new();
        let mut len = 0;
        for Added { id, name, shape, .. } in &self.added {
            let frozen = AtomicBool::new(false);
            entries.push(Entry { id: *id, name: name.clone(), shape: shape.clone(), start: len, frozen });
            len += shape.iter().product::<usize>().next_multiple_of(ALIGNMENT);
        }
        let [values, gradients] = ["parameters", "gradients"].map(|name| device.reserve(name, &[len], DType::F32));
        let (values, gradients) = (values?, gradients?);
        if self.has_values {
            let mut block = Vec::with_capacity(len);
            for values in self.added.iter().filter_map(|added| added.values.as_ref()) {
                block.extend_from_slice(values);
                block.resize(block.len().next_multiple_of(ALIGNMENT), 0.0);
            }
            values.write(&block)?;
            gradients.buffer().touch()?;
        }
        Ok(Parameters(Arc::new(Block { entries: entries.into(), values, gradients })))
    }
}

/// The parameters of a network on a device. Cloning gives another handle to the same memory.
#[derive(Clone, Debug)]
pub struct Parameters(Arc<Block>);

#[derive(Debug)]
struct Block {
    entries: Arc<[Entry]>,
    values: Tensor,
    gradients: Tensor,
}

#[derive(Debug)]
struct Entry {
    id: ParameterId,
    name: String,
    shape: Vec<usize>,
    start: usize,
    frozen: AtomicBool,
}

impl Entry {
    /// Its elements in the blocks, with the zeros behind them.
    fn range(&self) -> Range<usize> {
        let len: usize = self.shape.iter().product();
        self.start..self.start + len.next_multiple_of(ALIGNMENT)
    }
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
        self.0.entries.iter().map(|entry| entry.id).collect::<Vec<_>>().into_iter()
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
        let entry = self.entry(id)?;
        Some((self.view(&self.0.values, "", entry), self.view(&self.0.gradients, "d ", entry)))
    }

    fn entry(&self, id: ParameterId) -> Option<&Entry> {
        self.0.entries.iter().find(|entry| entry.id == id)
    }

    /// Other values for the same modules, which start as these.
    pub(crate) fn copy(&self, name: &str) -> Result<Self> {
        let Block { entries, values, gradients } = &*self.0;
        let copy = self.device().upload(name, values.shape(), &values.to_vec()?)?;
        Ok(Self(Arc::new(Block { entries: entries.clone(), values: copy, gradients: gradients.clone() })))
    }

    /// The parameters of these names, each a parameter's or a module's.
    ///
    /// # Errors
    /// Nothing has such a name.
    pub(crate) fn named<'a>(
        &self,
        op: &'static str,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<BTreeSet<ParameterId>> {
        let mut all = BTreeSet::new();
        for name in names {
            let in_module = |other: &str| other.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
            let mut fits =
                self.0.entries.iter().filter(|entry| entry.name == name || in_module(&entry.name)).peekable();
            if fits.peek().is_none() {
                let known: Vec<_> = self.names().collect();
                return Err(Error::argument(op, "name", format!("one of {known:?}, or of a module"), name));
            }
            all.extend(fits.map(|entry| entry.id));
        }
        Ok(all)
    }

    /// Keeps these parameters, or all of these modules, as they are in every [`crate::Trainer`] made from here on, which computes no gradient for them
    /// (PyTorch's `requires_grad_(False)`); those made before train on as they did.
    ///
    /// ```
    /// # use elman::{Device, nn, rng};
    /// # let mut init = nn::Init::new(rng::manual_seed(777));
    /// # nn::Linear::new(&mut init, "output_layer", 256, 85)?;
    /// # let parameters = init.upload(&Device::cpu())?;
    /// parameters.freeze(&["output_layer"])?;
    /// parameters.unfreeze(&["output_layer.bias"])?;
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// A name that no parameter has; then none is changed.
    pub fn freeze(&self, names: &[&str]) -> Result<()> {
        self.set_frozen(names, true)
    }

    /// Undoes [`Self::freeze`].
    ///
    /// # Errors
    /// As there.
    pub fn unfreeze(&self, names: &[&str]) -> Result<()> {
        self.set_frozen(names, false)
    }

    fn set_frozen(&self, names: &[&str], frozen: bool) -> Result<()> {
        let named = self.named("freeze", names.iter().copied())?;
        let entries = self.0.entries.iter().filter(|entry| named.contains(&entry.id));
        entries.for_each(|entry| entry.frozen.store(frozen, Ordering::Relaxed));
        Ok(())
    }

    /// The parameters that are to be kept as they are.
    pub(crate) fn frozen(&self) -> BTreeSet<ParameterId> {
        self.ids().filter(|&id| self.is_frozen(id)).collect()
    }

    /// Whether a parameter is to be kept as it is.
    pub(crate) fn is_frozen(&self, id: ParameterId) -> bool {
        self.entry(id).is_some_and(|entry| entry.frozen.load(Ordering::Relaxed))
    }

    /// The stretches of the blocks that these parameters fill, neighbours as one.
    pub(crate) fn stretches(&self, wanted: impl Fn(ParameterId) -> bool) -> Vec<Range<usize>> {
        let mut stretches: Vec<Range<usize>> = Vec::new();
        for range in self.0.entries.iter().filter(|entry| wanted(entry.id)).map(Entry::range) {
            match stretches.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => stretches.push(range),
            }
        }
        stretches
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
