//! Model files: safetensors with PyTorch's parameter names.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::error::{Error, Result};
pub use crate::files::write_atomically;
use crate::graph::Parameters;

/// Strings kept beside the parameters: configuration, vocabulary.
pub type Metadata = HashMap<String, String>;

/// Writes parameters and metadata. The file appears whole or not at all: it is written under a temporary name first.
///
/// # Errors
/// The device failed, or the file cannot be written.
pub fn save(path: impl AsRef<Path>, parameters: &Parameters, metadata: Metadata) -> Result<()> {
    write_atomically(path, &pollster::block_on(to_bytes_async(parameters, metadata))?)
}

/// What [`save`] writes, without blocking and without a file system.
///
/// # Errors
/// The device failed.
pub async fn to_bytes_async(parameters: &Parameters, metadata: Metadata) -> Result<Vec<u8>> {
    let mut tensors = Vec::new();
    for (name, tensor) in parameters.iter() {
        tensors.push((name.to_owned(), tensor.shape().to_vec(), tensor.to_vec_async().await?));
    }
    let views = tensors.iter().map(|(name, shape, values)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values));
        (name, view.expect("a tensor has as many values as its shape says"))
    });
    Ok(safetensors::serialize(views, Some(metadata)).expect("names are unique and sizes fit"))
}

/// Reads a model file's metadata, to build the network that its parameters fit.
///
/// # Errors
/// The file cannot be read, or is no safetensors file.
pub fn metadata(path: impl AsRef<Path>) -> Result<Metadata> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| model_file(path, error))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

/// Replaces all parameters by those of a file: all of them, or, on any error, none.
///
/// # Errors
/// The file cannot be read, is damaged, lacks a parameter, has another shape or type, or holds a value that is not
/// finite.
pub fn load(path: impl AsRef<Path>, parameters: &Parameters) -> Result<()> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| model_file(path, error))?;
    let read = |name: &str, shape: &[usize]| {
        let view = file.tensor(name).map_err(|error| model_file(path, error))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            let got = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(model_file(path, format!("`{name}` must be F32 {shape:?}, but is {got}")));
        }
        let values = bytemuck::pod_collect_to_vec::<u8, f32>(view.data());
        if let Some(bad) = values.iter().position(|value| !value.is_finite()) {
            return Err(model_file(path, format!("`{name}` holds {} at index {bad}", values[bad])));
        }
        Ok(values)
    };
    let all = parameters.iter().map(|(name, tensor)| Ok((read(name, tensor.shape())?, tensor)));
    for (values, tensor) in all.collect::<Result<Vec<_>>>()? {
        tensor.write(&values)?;
    }
    Ok(())
}

fn model_file(path: &Path, problem: impl ToString) -> Error {
    Error::ModelFile { path: path.into(), problem: problem.to_string() }
}
