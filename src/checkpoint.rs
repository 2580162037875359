//! All that a training is, at one of its steps, as a file.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::{self, CHECKPOINT as HEADER, Metadata, NOT_PARAMETERS};
use crate::nn::{Snapshot, State};
use crate::optim::Updates;

/// All that a training is, at one of its steps: parameters, the optimizer's moments, learning rate, the count of steps, and what the
/// program adds to it: carried states, generators, an order of the data, settings. A training that goes on from it is the
/// same, to the bit, as one that was never interrupted, on the same device in f32.
///
/// As a file it is safetensors: parameters under PyTorch's names, so that [`io::load`] and Python read them, moments as
/// `optimizer.exp_avg.<parameter>` and the like, and the rest as JSON in the metadata, with a checksum of everything.
///
/// ```
/// use elman::data::Array;
/// use elman::nn::functional::{Reduction, mse_loss};
/// use elman::{Checkpoint, Device, Trainer, nn, optim::Adam, rng};
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("last.safetensors");
/// let mut init = nn::Init::new(rng::manual_seed(777));
/// let layer = nn::Linear::new(&mut init, "layer", 2, 1)?;
/// let train = |from: Option<&Checkpoint>, steps| -> elman::Result<_> {
///     let parameters = init.upload(&Device::cpu())?;
///     let mut trainer = Trainer::on_batches(&parameters, Adam::new(1e-2), |g, [x, y]| {
///         let x = g.input(x)?;
///         let output = layer.forward(g, x)?;
///         mse_loss(g, output, y, Reduction::Mean)
///     })?;
///     let mut draws = match from {
///         None => rng::manual_seed(1),
///         Some(checkpoint) => {
///             trainer.restore(checkpoint)?;
///             checkpoint.get("draws")?
///         }
///     };
///     for _ in 0..steps {
///         let (x, y) = (draws.randn(8), draws.randn(4));
///         trainer.step_on(&[Array::new("x", &[4, 2], x)?, Array::new("y", &[4, 1], y)?])?;
///     }
///     let mut checkpoint = trainer.checkpoint()?;
///     checkpoint.set("draws", &draws)?;
///     Ok(checkpoint)
/// };
/// train(None, 10)?.save(&file)?;
/// let resumed = train(Some(&Checkpoint::load(&file)?), 10)?; // in another process, say
/// assert_eq!(resumed, train(None, 20)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub(crate) header: Header,
    tensors: BTreeMap<String, Values>,
    /// JSON by name.
    settings: BTreeMap<String, String>,
}

/// What is known of a training besides tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    version: u32,
    /// Steps done, and batches of the epoch.
    pub clock: [u32; 2],
    pub updates: Updates,
    pub lr: f64,
    /// Of everything else.
    checksum: u32,
}

/// What every header has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The values of a tensor: f32, or u32.
#[derive(Clone, Debug, PartialEq)]
struct Values {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// What files are written as; those of a later version are refused.
const VERSION: u32 = 1;

pub(crate) const OPTIMIZER: &str = NOT_PARAMETERS[0];
const STATE: &str = NOT_PARAMETERS[1];
const DATA: &str = NOT_PARAMETERS[2];

impl Checkpoint {
    pub(crate) fn new(clock: [u32; 2], updates: Updates, lr: f64) -> Self {
        let header = Header { version: VERSION, clock, updates, lr, checksum: 0 };
        Self { header, tensors: BTreeMap::new(), settings: BTreeMap::new() }
    }

    /// Steps that the training had done.
    pub fn steps(&self) -> u64 {
        self.header.clock[0].into()
    }

    // ---- tensors -----------------------------------------------------------------------------------------------

    pub(crate) fn put(&mut self, name: String, shape: &[usize], values: &[f32]) {
        let bytes = bytemuck::cast_slice(values).to_vec();
        self.tensors.insert(name, Values { dtype: Dtype::F32, shape: shape.into(), bytes });
    }

    /// The values of that name, which must have this type and shape.
    fn values(&self, name: &str, dtype: Dtype, shape: Option<&[usize]>) -> Result<&Values> {
        let Some(values) = self.tensors.get(name) else {
            let kind = name.find('.').map_or("", |dot| &name[..=dot]);
            let all: Vec<_> = self.names(kind).take(20).collect();
            return Err(Error::argument("checkpoint", "name", format!("one of {all:?}"), name));
        };
        if values.dtype != dtype || shape.is_some_and(|shape| shape != values.shape) {
            let expected = shape.map_or_else(|| format!("{dtype:?}"), |shape| format!("{dtype:?} {shape:?}"));
            return Err(Error::shape("checkpoint", name, expected, &values.shape));
        }
        Ok(values)
    }

    pub(crate) fn get_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.values(name, Dtype::F32, Some(shape))?.bytes))
    }

    /// The names of tensors that begin so.
    fn names<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().map(String::as_str).filter(move |name| name.starts_with(start))
    }

    /// The names of parameters and moments.
    pub(crate) fn trained(&self) -> impl Iterator<Item = &str> {
        self.names("").filter(|name| !name.starts_with(STATE) && !name.starts_with(DATA))
    }

    /// Adds a carried state.
    ///
    /// # Errors
    /// The device failed.
    pub fn set_state(&mut self, name: &str, state: &State) -> Result<()> {
        let values = state.save()?;
        for (part, tensor) in state.iter() {
            self.put(format!("{STATE}{name}.{part}"), tensor.shape(), &values[part]);
        }
        Ok(())
    }

    /// Puts a carried state back: all of it or, on any error, nothing.
    ///
    /// # Errors
    /// No state was added under this name, or it has another shape.
    pub fn restore_state(&self, name: &str, state: &State) -> Result<()> {
        let mut values = Snapshot::new();
        for (part, tensor) in state.iter() {
            values.insert(part.into(), self.get_f32(&format!("{STATE}{name}.{part}"), tensor.shape())?);
        }
        state.restore(&values)
    }

    /// Adds numbers: the order of an epoch, say.
    pub fn set_order(&mut self, name: &str, order: &[u32]) {
        let bytes = bytemuck::cast_slice(order).to_vec();
        self.tensors.insert(format!("{DATA}{name}"), Values { dtype: Dtype::U32, shape: vec![order.len()], bytes });
    }

    /// The numbers that were added under this name.
    ///
    /// # Errors
    /// There are none.
    pub fn order(&self, name: &str) -> Result<Vec<u32>> {
        let values = self.values(&format!("{DATA}{name}"), Dtype::U32, None)?;
        Ok(bytemuck::pod_collect_to_vec(&values.bytes))
    }

    // ---- settings ----------------------------------------------------------------------------------------------

    /// Adds what serde can write: a generator, a position in the data, the best loss so far. What is called `config` is what
    /// [`io::config`] reads.
    ///
    /// # Errors
    /// It has no form in JSON, or the name is `checkpoint`.
    pub fn set(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        if name == HEADER {
            return Err(Error::argument("checkpoint", "name", "another", name));
        }
        let text = serde_json::to_string(value);
        let text = text.map_err(|error| Error::argument("checkpoint", "value", "one that JSON can hold", error))?;
        self.settings.insert(name.into(), text);
        Ok(())
    }

    /// What was added under this name.
    ///
    /// # Errors
    /// Nothing was, or it is of another form.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let Some(text) = self.settings.get(name) else {
            let all: Vec<_> = self.settings.keys().collect();
            return Err(Error::argument("checkpoint", "name", format!("one of {all:?}"), name));
        };
        let of = |error| Error::argument("checkpoint", "value", format!("what `{name}` was written as"), error);
        serde_json::from_str(text).map_err(of)
    }

    // ---- files -------------------------------------------------------------------------------------------------

    /// Of names, shapes and values, in order.
    fn checksum(&self) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        let Header { version, clock, updates, lr, .. } = &self.header;
        let words = [version].into_iter().chain(clock).chain(updates);
        words.for_each(|word| crc.update(&word.to_le_bytes()));
        crc.update(&lr.to_bits().to_le_bytes());
        for (name, Values { dtype, shape, bytes }) in &self.tensors {
            crc.update(format!("{name}\0{}{shape:?}", u8::from(*dtype == Dtype::F32)).as_bytes());
            crc.update(bytes);
        }
        for (name, text) in &self.settings {
            crc.update(format!("{name}\0{text}\0").as_bytes());
        }
        crc.finalize()
    }

    /// Writes the file, whole or not at all ([`io::write_atomically`]).
    ///
    /// # Errors
    /// A value is not finite: the file that is there stays. It cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        io::write_atomically(path, &self.to_bytes()?)
    }

    /// What [`Self::save`] writes.
    ///
    /// # Errors
    /// A value is not finite, or settings are more than a reader would take (100 MB).
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut views = Vec::new();
        for (name, Values { dtype, shape, bytes }) in &self.tensors {
            if *dtype == Dtype::F32
                && let Some(problem) = io::not_finite(name, &bytemuck::pod_collect_to_vec::<u8, f32>(bytes))
            {
                return Err(Error::argument("save", "checkpoint", "finite: go on from an earlier one", problem));
            }
            views.push((
                name,
                TensorView::new(*dtype, shape.clone(), bytes).expect("bytes are as many as the shape says"),
            ));
        }
        let header = Header { checksum: self.checksum(), ..self.header.clone() };
        let refuse =
            |error: &dyn std::fmt::Display| Error::argument("save", "settings", "such that can be read", error);
        let mut metadata: Metadata = self.settings.clone().into_iter().collect();
        metadata.insert(HEADER.into(), serde_json::to_string(&header).map_err(|error| refuse(&error))?);
        io::serialize(views, Some(metadata)).map_err(|error| refuse(&error))
    }

    /// Reads a file that [`Self::save`] wrote.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is no checkpoint; it is of a later version.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::from_bytes(&bytes).map_err(|problem| Error::ModelFile { path: path.into(), problem })
    }

    fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let damaged = |error| format!("it is no safetensors file, or damaged ({error})");
        let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let mut settings: BTreeMap<_, _> = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        let header = settings.remove(HEADER);
        let header = header.ok_or("it is no checkpoint; `io::load` reads parameters alone")?;
        let damaged = |error| format!("its header is damaged ({error})");
        let Version { version } = serde_json::from_str(&header).map_err(damaged)?;
        if version > VERSION {
            let problem = format!("it is of version {version}, and this program reads up to {VERSION}");
            return Err(format!("{problem}: read it with a later elman"));
        }
        let header: Header = serde_json::from_str(&header).map_err(damaged)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let (dtype, shape) = (view.dtype(), view.shape().to_vec());
            if !matches!(dtype, Dtype::F32 | Dtype::U32) {
                return Err(format!("`{}` is {dtype:?}, and a checkpoint has F32 and U32", name.escape_debug()));
            }
            tensors.insert(name.to_owned(), Values { dtype, shape, bytes: view.data().to_vec() });
        }
        let checkpoint = Self { header: Header { checksum: 0, ..header }, tensors, settings };
        // A fuzzer cannot guess it.
        match checkpoint.checksum() == header.checksum || cfg!(fuzzing) {
            true => Ok(checkpoint),
            false => Err("it is damaged: its checksum is another; go on from an earlier one".into()),
        }
    }
}
