//! Model files: safetensors with PyTorch's parameter names, PyTorch's own among them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
pub use crate::files::write_atomically;
use crate::graph::Parameters;
pub use crate::model_file::ModelFile;
pub(crate) use crate::model_file::not_finite;
use crate::model_file::{model_file, unreadable};
use crate::nn::{Snapshot, State};

/// Strings kept beside the parameters: configuration, vocabulary.
pub type Metadata = HashMap<String, String>;

/// The key in the metadata of a [`crate::Checkpoint`].
pub(crate) const CHECKPOINT: &str = "checkpoint";

/// What stands in a checkpoint before the names of tensors that are no parameters: moments, carried states, an epoch's order.
pub(crate) const NOT_PARAMETERS: [&str; 3] = ["optimizer.", "state.", "data."];

/// The key of [`config`] in the metadata.
const CONFIG: &str = "config";

/// What is asked of parameters before they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Save {
    /// That every value is finite. Without it, parameters that diverged can be kept to look into; [`Load::finite`] reads
    /// them.
    pub finite: bool,
}

impl Default for Save {
    fn default() -> Self {
        Self { finite: true }
    }
}

/// What is asked of a file before its parameters replace those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// That the file has every parameter and nothing else. Without it, as with PyTorch's `strict=False`, parameters of the
    /// same name are read and [`Loaded`] says which, but those must have the same shape, and there must be one.
    pub strict: bool,
    /// That every value read is finite.
    pub finite: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self { strict: true, finite: true }
    }
}

/// What [`load_with`] found, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded {
    /// Parameters that were replaced, in their order.
    pub loaded: Vec<String>,
    /// Parameters that the file lacks, which stay as they were.
    pub missing: Vec<String>,
    /// What else the file has, sorted.
    pub unexpected: Vec<String>,
    /// Parameters whose values were converted to f32, and what from: `F16`, `BF16`, `F64`.
    pub converted: Vec<(String, String)>,
    /// Of the parameters that have another name in the file, by [`ModelFile::rename`] or because a wrapper's stood in front of all: that
    /// name, and the parameter's.
    pub renamed: Vec<(String, String)>,
}

/// Writes parameters and metadata. The file appears whole or not at all, through symbolic links, with the mode of the one
/// that it replaces ([`write_atomically`]); the parameters are those of one step, whatever thread is training them.
///
/// # Errors
/// A value is not finite, the device failed, or the file cannot be written. What was there stays.
pub fn save(path: impl AsRef<Path>, parameters: &Parameters, metadata: Metadata) -> Result<()> {
    save_with(path, parameters, metadata, Save::default())
}

/// [`save`], asking for less.
///
/// # Errors
/// As [`save`], but for what is not asked for.
pub fn save_with(path: impl AsRef<Path>, parameters: &Parameters, metadata: Metadata, asked: Save) -> Result<()> {
    write_atomically(path, &pollster::block_on(to_bytes_async(parameters, metadata, asked))?)
}

/// What [`save_with`] writes, without blocking and without a file system.
///
/// # Errors
/// A value is not finite, the device failed, or metadata that no reader would take (100 MB).
pub async fn to_bytes_async(parameters: &Parameters, metadata: Metadata, asked: Save) -> Result<Vec<u8>> {
    // One read: all values are of one step.
    let values = parameters.values().to_vec_async().await?;
    let mut views = Vec::new();
    for (name, tensor) in parameters.iter() {
        let values = &values[tensor.elements()];
        if let (true, Some(problem)) = (asked.finite, not_finite(name, values)) {
            let expected = "finite, or saved with `Save { finite: false }`";
            return Err(Error::argument("save", "parameters", expected, problem));
        }
        let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytemuck::cast_slice(values));
        views.push((name.to_owned(), view.expect("a tensor has as many values as its shape says")));
    }
    let refuse = |error: SafeTensorError| Error::argument("save", "metadata", "one that can be read again", error);
    serialize(views, Some(metadata)).map_err(refuse)
}

/// A safetensors file that can be read again, which the crate does not see to: a tensor may be called `__metadata__`. What is equal
/// has the same bytes.
pub(crate) fn serialize<'a, N: AsRef<str> + Ord + std::fmt::Display>(
    tensors: Vec<(N, TensorView<'a>)>,
    metadata: Option<Metadata>,
) -> std::result::Result<Vec<u8>, SafeTensorError> {
    let bytes = safetensors::serialize(tensors, metadata)?;
    SafeTensors::read_metadata(&bytes)?;
    Ok(in_order(bytes))
}

/// With the header's keys in order, where the crate writes metadata in that of a hash map.
fn in_order(bytes: Vec<u8>) -> Vec<u8> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return bytes };
    let Some((header, data)) = rest.split_at_checked(u64::from_le_bytes(*length) as usize) else { return bytes };
    // Maps of serde_json are sorted.
    let header: Option<serde_json::Value> = serde_json::from_slice(header).ok();
    let Some(mut header) = header.map(|header| header.to_string().into_bytes()) else { return bytes };
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), data].concat()
}

/// Writes parameters and what else a program needs to use them, under the key `config`: sizes, a vocabulary, means to subtract.
/// [`config`] reads it.
///
/// ```
/// use elman::{Device, io, nn, rng};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Sizes {
///     inputs: usize,
///     outputs: usize,
/// }
/// let network = |sizes: &Sizes| -> elman::Result<_> {
///     let mut init = nn::Init::new(rng::manual_seed(1));
///     let layer = nn::Linear::new(&mut init, "layer", sizes.inputs, sizes.outputs)?;
///     Ok((layer, init.upload(&Device::cpu())?))
/// };
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("model.safetensors");
/// let sizes = Sizes { inputs: 3, outputs: 2 };
/// let (_, parameters) = network(&sizes)?;
/// io::save_with_config(&file, &parameters, &sizes)?;
///
/// let (layer, parameters) = network(&io::config(&file)?)?; // in another program
/// io::load(&file, &parameters)?;
/// # drop(layer);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`save`]; the configuration has no form in JSON.
pub fn save_with_config(path: impl AsRef<Path>, parameters: &Parameters, config: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(config);
    let text = text.map_err(|error| Error::argument("save", "config", "one that JSON can hold", error))?;
    save(path, parameters, [(CONFIG.into(), text)].into())
}

/// The configuration that [`save_with_config`] wrote.
///
/// # Errors
/// As [`metadata`]; the file has no configuration, or one of another form.
pub fn config<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let metadata = metadata(path)?;
    let text = metadata.get(CONFIG).ok_or_else(|| model_file(path, "its metadata has no `config`"))?;
    serde_json::from_str(text).map_err(|error| model_file(path, format!("its `config` is of another form ({error})")))
}

/// Writes a carried state, as [`save`] does parameters: `h` `[D * L, B, H]`, and `c` of an LSTM.
///
/// # Errors
/// A value is not finite, the device failed, or the file cannot be written. What was there stays.
pub fn save_state(path: impl AsRef<Path>, state: &State) -> Result<()> {
    let values = state.save()?;
    let mut views = Vec::new();
    for (name, tensor) in state.iter() {
        if let Some(problem) = not_finite(name, &values[name]) {
            return Err(Error::argument("save_state", "state", "finite: zero it", problem));
        }
        let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytemuck::cast_slice(&values[name]));
        views.push((name, view.expect("a tensor has as many values as its shape says")));
    }
    let refuse = |error| Error::argument("save_state", "state", "one that can be read again", error);
    write_atomically(path, &serialize(views, None).map_err(refuse)?)
}

/// Puts back a state that [`save_state`] wrote: all of it or, on any error, nothing.
///
/// # Errors
/// The file cannot be read or is damaged, has other names or shapes, or a value that is not finite.
pub fn load_state(path: impl AsRef<Path>, state: &State) -> Result<()> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| unreadable(path, &bytes, &error))?;
    let mut values = Snapshot::new();
    for (name, tensor) in state.iter() {
        let view = file.tensor(name).map_err(|_| model_file(path, format!("it has no state `{name}`")))?;
        if view.dtype() != Dtype::F32 || view.shape() != tensor.shape() {
            let got = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(model_file(path, format!("`{name}` must be F32 {:?}, but is {got}", tensor.shape())));
        }
        let new = bytemuck::pod_collect_to_vec::<u8, f32>(view.data());
        not_finite(name, &new).map_or(Ok(()), |problem| Err(model_file(path, problem)))?;
        values.insert(name.into(), new);
    }
    let known = |name: &&str| values.contains_key(*name);
    if let Some(name) = file.names().iter().find(|name| !known(name)) {
        return Err(model_file(path, format!("its state `{}` is none of this network's", name.escape_debug())));
    }
    state.restore(&values)
}

/// Reads a model file's metadata, to build the network that its parameters fit.
///
/// # Errors
/// As [`ModelFile::open`].
pub fn metadata(path: impl AsRef<Path>) -> Result<Metadata> {
    Ok(ModelFile::open(path)?.metadata().clone())
}

/// Replaces all parameters by those of a file, or of the shards that an index lists ([`ModelFile`]): all of them, in one write between two
/// steps, or, on any error, none. F16, BF16 and F64 become f32; where nothing in the file has a parameter's name, what a wrapper put in front
/// of all is taken away ([`ModelFile::without_wrappers`]).
///
/// # Errors
/// The file cannot be read or is damaged. Or it does not fit, and the error has the names: parameters that it lacks, names
/// that are none of theirs, another shape or type, a value that is not finite.
pub fn load(path: impl AsRef<Path>, parameters: &Parameters) -> Result<()> {
    load_with(path, parameters, Load::default()).map(drop)
}

/// [`load`], asking for less: says what was read and what was not. A step that another thread takes meanwhile may be lost,
/// for the parameters that the file lacks too; it is not mixed with another.
///
/// ```
/// use elman::io::{self, Load};
/// use elman::{Device, nn, rng};
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("encoder.safetensors");
/// let network = |names: &[&str]| {
///     let mut init = nn::Init::new(rng::manual_seed(1));
///     names.iter().try_for_each(|name| nn::Linear::new(&mut init, name, 2, 2).map(drop))?;
///     init.upload(&Device::cpu())
/// };
/// io::save(&file, &network(&["encoder"])?, io::Metadata::new())?;
/// let report = io::load_with(&file, &network(&["encoder", "head"])?, Load { strict: false, ..Load::default() })?;
/// assert_eq!(report.loaded, ["encoder.weight", "encoder.bias"]);
/// assert_eq!(report.missing, ["head.weight", "head.bias"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`load`], but for what is not asked for; nothing in the file has the name of a parameter.
pub fn load_with(path: impl AsRef<Path>, parameters: &Parameters, asked: Load) -> Result<Loaded> {
    ModelFile::open(path)?.load(parameters, asked)
}

impl ModelFile {
    /// Replaces all parameters by those of this file, under the names that it was given ([`Self::rename`]); see [`load_with`].
    ///
    /// ```
    /// use elman::io::{self, Load, ModelFile};
    /// # use elman::{Device, nn, rng};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("model.safetensors");
    /// # let network = |name: &str| {
    /// #     let mut init = nn::Init::new(rng::manual_seed(1));
    /// #     nn::Linear::new(&mut init, name, 2, 2)?;
    /// #     init.upload(&Device::cpu())
    /// # };
    /// # io::save(&path, &network("net.out")?, io::Metadata::new())?;
    /// # let parameters = network("output")?;
    ///
    /// let report = ModelFile::open(&path)?.rename(&[("net.out.", "output.")])?.load(&parameters, Load::default())?;
    /// assert_eq!(report.renamed[0], ("net.out.weight".into(), "output.weight".into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`load_with`].
    pub fn load(&self, parameters: &Parameters, asked: Load) -> Result<Loaded> {
        if !parameters.names().any(|name| self.shape(name).is_some()) {
            let file = self.clone().without_wrappers();
            if parameters.names().any(|name| file.shape(name).is_some()) {
                return file.load(parameters, asked);
            }
        }
        let (mut found, mut report) = (Vec::new(), Loaded::default());
        let (mut unfit, mut infinite) = (Vec::new(), Vec::new());
        for (name, tensor) in parameters.iter() {
            let (Some(shape), Some((dtype, own_name))) = (self.shape(name), self.own(name)) else {
                report.missing.push(name.to_owned());
                continue;
            };
            let Some(values) = self.values(name).ok().filter(|_| shape == tensor.shape()) else {
                unfit.push(format!("`{name}` must be F32 {:?}, but is {dtype:?} {shape:?}", tensor.shape()));
                continue;
            };
            infinite.extend(not_finite(name, &values).filter(|_| asked.finite));
            report.loaded.push(name.to_owned());
            if dtype != Dtype::F32 {
                report.converted.push((name.to_owned(), format!("{dtype:?}")));
            }
            if own_name != name {
                report.renamed.push((own_name.to_owned(), name.to_owned()));
            }
            found.push((tensor.elements(), values));
        }
        let known: HashSet<_> = parameters.names().collect();
        // Of a checkpoint, the parameters alone.
        let is_checkpoint = self.metadata().contains_key(CHECKPOINT);
        let is_more = |name: &str| is_checkpoint && NOT_PARAMETERS.iter().any(|start| name.starts_with(start));
        let others = self.names().filter(|name| !known.contains(name) && !is_more(name));
        report.unexpected = others.map(str::to_owned).collect();
        let matched = report.missing.is_empty() && report.unexpected.is_empty();
        if !unfit.is_empty() || !infinite.is_empty() || found.is_empty() || (asked.strict && !matched) {
            return Err(self.problem(misfit(&report, &unfit, &infinite)));
        }

        // One write, of values of one step.
        let block = parameters.values();
        let mut values = if report.missing.is_empty() { vec![0.0; block.len()] } else { block.to_vec_f64()? };
        for (place, new) in found {
            values[place].iter_mut().zip(new).for_each(|(value, new)| *value = new.into());
        }
        block.write_f64(&values)?;
        Ok(report)
    }
}

/// All that keeps a file from fitting, some of each kind.
fn misfit(report: &Loaded, unfit: &[String], infinite: &[String]) -> String {
    let quoted = |names: &[String]| -> Vec<String> {
        names.iter().map(|name| format!("`{}`", name.escape_debug().take(100).collect::<String>())).collect()
    };
    let problems = [
        some_of("of the parameters missing", &quoted(&report.missing)),
        some_of("of the file's names unexpected", &quoted(&report.unexpected)),
        some_of("of another shape or type", unfit),
        some_of("not finite", infinite),
    ];
    let cure = if let Some(prefix) = prefix(&report.unexpected, &report.missing) {
        format!("the file's names begin with `{prefix}`: load `ModelFile::open(path)?.rename(&[({prefix:?}, \"\")])?`")
    } else if let Some(prefix) = prefix(&report.missing, &report.unexpected) {
        format!("the file's names lack `{prefix}`: load `ModelFile::open(path)?.rename(&[(\"\", {prefix:?})])?`")
    } else if !report.missing.is_empty() || !report.unexpected.is_empty() {
        "build the network that the file is of, or load what has the same name with `Load { strict: false, .. }`".into()
    } else if !unfit.is_empty() {
        "build the network with the file's sizes".into()
    } else {
        "load an earlier model, or this one with `Load { finite: false, .. }`".into()
    };
    let problems: Vec<_> = problems.into_iter().flatten().collect();
    format!("{}; {cure}", problems.join("; "))
}

/// How many, and the first ten.
fn some_of(what: &str, items: &[String]) -> Option<String> {
    const MOST: usize = 10;
    let shown = items[..items.len().min(MOST)].join(", ");
    let more = if items.len() > MOST { format!(" and {} more", items.len() - MOST) } else { String::new() };
    (!items.is_empty()).then(|| format!("{} {what}: {shown}{more}", items.len()))
}

/// What stands, up to a dot, in front of every one of these names and, without it, leaves one of the others.
fn prefix<'a>(names: &'a [String], others: &[String]) -> Option<&'a str> {
    let others: HashSet<_> = others.iter().map(String::as_str).collect();
    let prefixes = |name: &'a String| name.match_indices('.').map(|(dot, _)| name.split_at(dot + 1));
    let fits = |(prefix, rest): &(&str, &str)| others.contains(rest) && names.iter().all(|n| n.starts_with(prefix));
    names.iter().flat_map(prefixes).find(fits).map(|(prefix, _)| prefix)
}
