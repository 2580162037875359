//! A model file, opened: names, shapes and values, of one safetensors file or of shards and their index.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;

use crate::error::{Error, Result};

/// What PyTorch's wrappers put in front of every name: `torch.compile`, `DataParallel`, and a module around the network.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "module.", "model."];

/// A model file that was opened: the tensors of a safetensors file, or of several that an index lists
/// (`model.safetensors.index.json`), by name. Cloning is cheap.
///
/// Values come as f32, be they F32, F16, BF16 or F64 in the file. [`Init::from_file`](crate::nn::Init::from_file) builds a network of
/// them, [`Self::load`] puts them into one that is there.
///
/// ```
/// use elman::nn::{Init, Linear, Lstm, RnnOptions};
/// use elman::{Device, io, rng};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.safetensors");
/// # let mut init = Init::new(rng::manual_seed(1));
/// # Lstm::new(&mut init, "module.encoder", RnnOptions::new(3, 8).num_layers(2).bidirectional(true))?;
/// # Linear::new(&mut init, "module.head", 16, 2)?;
/// # io::save(&path, &init.upload(&Device::cpu())?, io::Metadata::new())?;
/// let file = io::ModelFile::open(&path)?.rename(&[("module.", "")])?;
/// assert_eq!(file.shape("encoder.weight_ih_l1"), Some(&[32, 16][..]));
/// let mut init = Init::from_file(&file);
/// let encoder = Lstm::from_file(&mut init, "encoder")?; // two layers, two directions
/// let head = Linear::from_file(&mut init, "head")?;
/// let parameters = init.upload(&Device::cpu())?;
/// assert!(init.unused().is_empty());
/// # drop((encoder, head, parameters));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ModelFile {
    path: PathBuf,
    shards: Arc<[Vec<u8>]>,
    entries: BTreeMap<String, Entry>,
    metadata: HashMap<String, String>,
}

/// Where a tensor is, and what.
#[derive(Clone)]
struct Entry {
    /// Its name in the file.
    own_name: String,
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// What an index of shards says.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl ModelFile {
    /// Opens a safetensors file or, where the name ends in `.json`, the shards beside it that this index lists.
    ///
    /// # Errors
    /// A file cannot be read, or is none of these; a shard is missing or lies elsewhere than beside its index, or has other tensors than
    /// the index says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            return Self::open_shards(path, &bytes);
        }
        let mut file =
            Self { path: path.into(), shards: [].into(), entries: BTreeMap::new(), metadata: HashMap::new() };
        file.add(path, 0, &bytes)?;
        Ok(Self { shards: [bytes].into(), ..file })
    }

    fn open_shards(path: &Path, index: &[u8]) -> Result<Self> {
        let index: Index = serde_json::from_slice(index).map_err(|error| {
            let expected = r#"no index of shards, {"weight_map": {"name": "file", ..}}"#;
            model_file(path, format!("it is {expected} ({error})"))
        })?;
        let mut names: Vec<_> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut file =
            Self { path: path.into(), shards: [].into(), entries: BTreeMap::new(), metadata: HashMap::new() };
        let mut shards = Vec::new();
        for (i, &name) in names.iter().enumerate() {
            let mut parts = Path::new(name).components();
            let is_plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !is_plain || name.contains(['/', '\\', ':']) {
                let expected = "must be the name of a file beside the index";
                return Err(model_file(path, format!("its shard `{}` {expected}", name.escape_debug())));
            }
            let place = path.with_file_name(name);
            let bytes = std::fs::read(&place).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    let cure = "put it beside the index";
                    model_file(path, format!("its shard `{name}`, one of {}, is missing: {cure}", names.len()))
                }
                _ => Error::io(&place)(error),
            })?;
            for own in file.add(&place, i, &bytes)? {
                let problem = match index.weight_map.get(&own) {
                    Some(listed) if listed == name => continue,
                    Some(listed) => format!("lists in `{}`", listed.escape_debug()),
                    None => "does not list".into(),
                };
                let own = own.escape_debug();
                return Err(model_file(path, format!("its shard `{name}` has `{own}`, which the index {problem}")));
            }
            shards.push(bytes);
        }
        if let Some((name, shard)) = index.weight_map.iter().find(|(name, _)| !file.entries.contains_key(*name)) {
            let (name, shard) = (name.escape_debug(), shard.escape_debug());
            return Err(model_file(path, format!("its shard `{shard}` lacks `{name}`, which the index lists there")));
        }
        Ok(Self { shards: shards.into(), ..file })
    }

    /// Takes up what a safetensors file has; its names.
    fn add(&mut self, path: &Path, shard: usize, bytes: &[u8]) -> Result<Vec<String>> {
        let (header, metadata) = header(path, bytes)?;
        let mut names = Vec::new();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let (dtype, shape, own_name) = (info.dtype, info.shape.clone(), name.clone());
            self.entries
                .insert(name.clone(), Entry { own_name, shard, dtype, shape, bytes: header + start..header + end });
            names.push(name);
        }
        names.sort();
        for (key, value) in metadata.metadata().iter().flatten() {
            self.metadata.entry(key.clone()).or_insert_with(|| value.clone());
        }
        Ok(names)
    }

    /// Gives names that begin with the first of a pair the second in its place: `("module.", "")` takes a wrapper away, `("", "rnn.")` puts
    /// a name in front of all. Each pair is applied in turn, once.
    ///
    /// # Errors
    /// Two tensors would have one name.
    pub fn rename(mut self, renames: &[(&str, &str)]) -> Result<Self> {
        for (from, to) in renames {
            let mut entries = BTreeMap::new();
            for (name, entry) in self.entries {
                let new = name.strip_prefix(from).map_or(name.clone(), |rest| format!("{to}{rest}"));
                if entries.contains_key(&new) {
                    let expected = "free of what would make one name of two";
                    return Err(Error::argument("rename", "renames", expected, format!("{from:?} -> {to:?}: `{new}`")));
                }
                entries.insert(new, entry);
            }
            self.entries = entries;
        }
        Ok(self)
    }

    /// Takes away, as long as there is one, what a wrapper put in front of all names: `module.` (`DataParallel`), `_orig_mod.`
    /// (`torch.compile`), `model.` (a module around the network). [`Self::load`] does so by itself where nothing has a parameter's name.
    pub fn without_wrappers(mut self) -> Self {
        let is_of_all = |file: &Self, wrapper: &str| file.names().all(|name| name.starts_with(wrapper));
        while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| !self.entries.is_empty() && is_of_all(&self, wrapper))
        {
            let strip = |(name, entry): (String, Entry)| (name[wrapper.len()..].to_owned(), entry);
            self.entries = self.entries.into_iter().map(strip).collect();
        }
        self
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Strings kept beside the tensors; of shards, those of all.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| &entry.shape[..])
    }

    /// The values of a tensor as f32, row-major: F16 and BF16 exactly, F64 rounded.
    ///
    /// # Errors
    /// There is no such tensor, or it is of another type.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let entry = self.entries.get(name).ok_or_else(|| self.lacks(name))?;
        let data = &self.shards[entry.shard][entry.bytes.clone()];
        fn each<const N: usize>(data: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            data.as_chunks::<N>().0.iter().map(|&bytes| convert(bytes)).collect()
        }
        Ok(match entry.dtype {
            Dtype::F32 => each(data, f32::from_le_bytes),
            Dtype::F16 => each(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => each(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F64 => each(data, |bytes| f64::from_le_bytes(bytes) as f32),
            other => {
                let problem = format!("`{}` must be F32, F16, BF16 or F64, but is {other:?}", name.escape_debug());
                return Err(model_file(&self.path, problem));
            }
        })
    }

    /// The values of a tensor that must have this shape and be finite.
    pub(crate) fn expect(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let got = self.shape(name).ok_or_else(|| self.lacks(name))?;
        if got != shape {
            return Err(self.problem(format!("`{name}` must have shape {shape:?}, but has {got:?}")));
        }
        let values = self.values(name)?;
        not_finite(name, &values).map_or(Ok(values), |problem| Err(self.problem(problem)))
    }

    /// Of what type a tensor is, and its name in the file.
    pub(crate) fn own(&self, name: &str) -> Option<(Dtype, &str)> {
        self.entries.get(name).map(|entry| (entry.dtype, &entry.own_name[..]))
    }

    pub(crate) fn lacks(&self, name: &str) -> Error {
        let mut names: Vec<_> = self.names().take(5).map(|name| format!("`{}`", name.escape_debug())).collect();
        if self.entries.len() > names.len() {
            names.push(format!("{} more", self.entries.len() - names.len()));
        }
        let cure = "if they differ in what stands in front, `ModelFile::rename` changes that";
        self.problem(format!("it has no `{}`, but {}; {cure}", name.escape_debug(), names.join(", ")))
    }

    pub(crate) fn problem(&self, problem: impl ToString) -> Error {
        model_file(&self.path, problem)
    }
}

impl fmt::Debug for ModelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes = self.entries.iter().map(|(name, entry)| (name, &entry.shape));
        write!(f, "{} ", self.path.display())?;
        f.debug_map().entries(shapes).finish()
    }
}

/// Where the data of a safetensors file begin, and what its header says of them.
pub(crate) fn header(path: &Path, bytes: &[u8]) -> Result<(usize, safetensors::tensor::Metadata)> {
    // All of it is checked; `read_metadata` alone does not look whether the data are there.
    let checked = SafeTensors::deserialize(bytes).and_then(|_| SafeTensors::read_metadata(bytes));
    let (length, metadata) = checked.map_err(|error| unreadable(path, bytes, &error))?;
    Ok((size_of::<u64>() + length, metadata))
}

pub(crate) fn not_finite(name: &str, values: &[f32]) -> Option<String> {
    let bad = values.iter().position(|value| !value.is_finite())?;
    Some(format!("{} at index {bad} of `{name}`", values[bad]))
}

pub(crate) fn model_file(path: &Path, problem: impl ToString) -> Error {
    Error::ModelFile { path: path.into(), problem: problem.to_string() }
}

/// What a file that is no safetensors file is, where that can be told.
pub(crate) fn unreadable(path: &Path, bytes: &[u8], error: &SafeTensorError) -> Error {
    // A zip archive, or, from before PyTorch 1.6, a pickle of protocol 2 or later.
    if !bytes.starts_with(b"PK\x03\x04") && !matches!(bytes, [0x80, 2..=5, ..]) {
        return model_file(path, format!("it is no safetensors file ({error})"));
    }
    let name = path.file_name().unwrap_or_default().display().to_string();
    let converted = Path::new(&name).with_extension("safetensors").display().to_string();
    let python = format!(
        "import torch; from safetensors.torch import save_file; \
         save_file(torch.load({name:?}, map_location=\"cpu\", weights_only=True), {converted:?})"
    );
    model_file(
        path,
        format!(
            "it is what PyTorch's `torch.save` writes (.pt, .pth), Python objects in a zip archive or pickle, and no \
             safetensors file; convert its state_dict in Python: {python}"
        ),
    )
}
