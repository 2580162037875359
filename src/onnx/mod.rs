//! Networks of other frameworks, as ONNX files: read into plans, and written.

mod array;
mod file;
mod operators;
mod recurrent;
mod value;
mod write;

use std::collections::HashMap;
use std::path::Path;

pub use file::Port;
use file::{File, Node};
use operators::{Inputs, Operator};
use recurrent::Weights;
use value::{Machine, Value};
pub use write::Writer;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Init, ParameterId, Parameters, Var};
use crate::rng;
use crate::tensor::Tensor;

/// A network that was read from an ONNX file: what PyTorch, TensorFlow (tf2onnx), Keras and others export.
///
/// Its constants of numbers are parameters, to be trained on; those of recurrent nodes by PyTorch's names and in PyTorch's order of gates,
/// after the node's own name. [`Self::record`] records it like a network of one's own, for the shapes of what it is given, on every device.
///
/// ```no_run
/// use elman::{Device, Graph, onnx};
///
/// let device = Device::from_environment()?;
/// let model = onnx::Model::read("silero_vad_16k_sequence.onnx")?;
/// let parameters = model.parameters(&device)?;
/// let frames = device.upload("frames", &[10, 576], &[0.0; 5760])?;
/// let zeros = device.upload("zeros", &[1, 1, 128], &[0.0; 128])?;
///
/// let mut g = Graph::inference(&parameters);
/// let (x, h, c) = (g.input(&frames)?, g.input(&zeros)?, g.input(&zeros)?);
/// let out = model.record(&mut g, &[("input", x.into()), ("h", h.into()), ("c", c.into())])?;
/// let probabilities = g.tensor(out.get("speech_probs")?)?;
/// g.finish()?.run()?;
/// println!("{:?}", probabilities.to_vec()?);
/// # Ok::<(), elman::Error>(())
/// ```
///
/// The operators that are read, of versions 7 to 22: RNN, GRU and LSTM with all that they may say; Gather, MatMul, Gemm, Conv (one axis),
/// Softmax, LogSoftmax, LayerNormalization, BatchNormalization, ReduceSum, ReduceMean, Pad, and those of elements, of shapes and of
/// parts that stand around them. What depends on shapes alone is computed while recording.
pub struct Model {
    file: File,
    init: Init,
    /// Constants that are parameters.
    parameters: HashMap<String, ParameterId>,
    /// Of recurrent nodes, by their place, where they are constants.
    recurrent: HashMap<usize, Vec<Weights>>,
    has_parameters: bool,
}

/// What a model is given for one of its inputs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input {
    /// Numbers.
    Value(Var),
    /// Whole numbers, of [`Device::tokens`] or [`Device::lengths`].
    Indices(Tensor),
}

impl From<Var> for Input {
    fn from(var: Var) -> Self {
        Self::Value(var)
    }
}

impl From<&Tensor> for Input {
    fn from(tensor: &Tensor) -> Self {
        Self::Indices(tensor.clone())
    }
}

/// What a model gives, by name.
#[derive(Clone, Debug)]
pub struct Outputs(Vec<(String, Var)>);

impl Outputs {
    /// One of them.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn get(&self, name: &str) -> Result<Var> {
        let found = self.0.iter().find(|(other, _)| other == name);
        let names = || self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        found.map(|&(_, var)| var).ok_or_else(|| Error::argument("onnx", "output", format!("one of {}", names()), name))
    }

    /// All of them, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Var)> {
        self.0.iter().map(|(name, var)| (name.as_str(), *var))
    }
}

impl Model {
    /// Reads a file, and data that it says lies in others of its folder.
    ///
    /// # Errors
    /// The file cannot be read, is no ONNX model, or has what is not read here: all of that is named, by operator, attribute and node.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let problem = |problem| Error::ModelFile { path: path.into(), problem };
        Self::of(&bytes, Some(path.parent().unwrap_or(Path::new("")))).map_err(problem)
    }

    /// Reads a file's bytes; what lies in other files is refused.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::of(bytes, None).map_err(|problem| Error::ModelFile { path: "the model's bytes".into(), problem })
    }

    fn of(bytes: &[u8], folder: Option<&Path>) -> file::Result<Self> {
        let mut file = file::read(bytes, folder)?;
        let problems: Vec<_> = file.nodes.iter().flat_map(Operator::problems).collect();
        if !problems.is_empty() {
            return Err(format!("it has what is not read here: {}", problems.join("; ")));
        }
        fold(&mut file)?;
        let mut init = Init::new(rng::manual_seed(0));
        let mut parameters = HashMap::new();
        let mut recurrent = HashMap::new();
        for (place, node) in file.nodes.iter().enumerate() {
            let constant = |i: usize| node.input(i).and_then(|name| file.constants.get(name));
            for &i in Operator::of(node).map_or(&[][..], |operator| operator.weights) {
                let (Some(name), Some(array::Array::Real(values))) = (node.input(i), constant(i)) else { continue };
                // A number, of no axis, is part of the program.
                if values.ndim() == 0 || values.is_empty() || parameters.contains_key(name) {
                    continue;
                }
                let id = init.add(name.into(), values.shape(), values.iter().copied().collect());
                parameters.insert(name.to_owned(), id.map_err(value::said)?);
            }
            let is_recurrent = matches!(node.op.as_str(), "RNN" | "GRU" | "LSTM");
            let is_constant = |i: usize| node.input(i).is_none_or(|name| file.constants.contains_key(name));
            if is_recurrent && [1, 2, 3, 7].into_iter().all(is_constant) {
                recurrent.insert(place, own_weights(&mut init, &file, node)?);
            }
        }
        let has_parameters = !parameters.is_empty() || !recurrent.is_empty();
        Ok(Self { file, init, parameters, recurrent, has_parameters })
    }

    /// What it takes.
    pub fn inputs(&self) -> &[Port] {
        &self.file.inputs
    }

    /// What it gives.
    pub fn outputs(&self) -> &[Port] {
        &self.file.outputs
    }

    /// What is doubtful about the file, in a sentence; None if nothing is known.
    pub fn warning(&self) -> Option<String> {
        let (producer, version) = &self.file.producer;
        let is_before =
            |node: &&Node| node.op == "GRU" && node.int("linear_before_reset", 0) == Ok(0) && node.input(1).is_some();
        let node = self.file.nodes.iter().find(is_before).filter(|_| producer == "pytorch")?;
        Some(format!(
            "the GRU `{}` resets before its product (linear_before_reset = 0), which PyTorch's GRU does not: exporters of PyTorch \
             wrote this by mistake from November 2025 to June 2026, and this one is version {version}; if the model is one of PyTorch's \
             nn.GRU, export it again with another version",
            node.name
        ))
    }

    /// Whether it has parameters; a graph of one that has none is made by [`Graph::without_parameters`].
    pub fn has_parameters(&self) -> bool {
        self.has_parameters
    }

    /// Its parameters, on a device.
    ///
    /// # Errors
    /// It has none, or more than the device can hold.
    pub fn parameters(&self, device: &Device) -> Result<Parameters> {
        self.init.upload(device)
    }

    /// Records it, for inputs of these shapes; those that it does not have are refused, as are those that are missing.
    ///
    /// # Errors
    /// An input is missing, or none of its; the shapes do not fit, or what a shape depends on is only known when the plan runs. The error
    /// names the node.
    pub fn record(&self, g: &mut Graph, inputs: &[(&str, Input)]) -> Result<Outputs> {
        let of_ports = |ports: &[Port]| ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>().join(", ");
        let mut values: HashMap<&str, Value> = HashMap::new();
        for (name, input) in inputs {
            let Some(port) = self.file.inputs.iter().find(|port| port.name == *name) else {
                return Err(Error::argument("onnx", "input", format!("one of {}", of_ports(&self.file.inputs)), name));
            };
            let value = match input {
                Input::Value(var) => {
                    g.check([*var])?;
                    Value::made(g, *var)
                }
                Input::Indices(tensor) => Value::Indices(tensor.clone(), (0..tensor.shape().len()).collect()),
            };
            if let Some(shape) = &port.shape {
                let fits = |(wanted, got): (&Option<usize>, &usize)| wanted.is_none_or(|wanted| wanted == *got);
                let got = value.shape();
                let is_scalar = shape.is_empty() && got == [1];
                if !is_scalar && (shape.len() != got.len() || !shape.iter().zip(&got).all(fits)) {
                    let sizes = shape.iter().map(|size| size.map_or("any".into(), |size| size.to_string()));
                    let expected = format!("[{}]", sizes.collect::<Vec<_>>().join(", "));
                    return Err(Error::shape("onnx", *name, expected, &got));
                }
            }
            values.insert(&port.name, value);
        }
        if let Some(missing) = self.file.inputs.iter().find(|port| !values.contains_key(port.name.as_str())) {
            return Err(Error::argument(
                "onnx",
                "inputs",
                format!("all of {}", of_ports(&self.file.inputs)),
                &missing.name,
            ));
        }
        for (place, node) in self.file.nodes.iter().enumerate() {
            let given = node.inputs.iter().map(|name| self.value(&values, name)).collect::<file::Result<Vec<_>>>();
            let outputs = given.and_then(|given| {
                let mut machine = Machine(Some(g));
                match self.recurrent.get(&place) {
                    Some(weights) => recurrent::run_with(&mut machine, node, &Inputs(&given), weights),
                    None => Operator::run(&mut machine, node, &given),
                }
            });
            let refuse = |problem: String| Error::Onnx { op: node.op.clone(), node: node.name.clone(), problem };
            for (i, value) in outputs.map_err(refuse)?.into_iter().enumerate() {
                if let Some(name) = node.output(i) {
                    values.insert(name, value);
                }
            }
        }
        let outputs = self.file.outputs.iter().map(|port| {
            let refuse = |problem: String| Error::Onnx { op: "output".into(), node: port.name.clone(), problem };
            let value = self.value(&values, &port.name).map_err(refuse)?;
            let value = value.ok_or_else(|| refuse("it has no name".into()))?;
            let var = value.var(&mut Machine(Some(g))).map_err(refuse)?;
            Ok((port.name.clone(), var))
        });
        Ok(Outputs(outputs.collect::<Result<_>>()?))
    }

    /// What a name stands for; None for none.
    fn value(&self, values: &HashMap<&str, Value>, name: &str) -> file::Result<Option<Value>> {
        if name.is_empty() {
            return Ok(None);
        }
        let constant = || {
            let array = self.file.constants.get(name)?;
            Some(Value::Host(array.clone(), self.parameters.get(name).copied()))
        };
        let value = values.get(name).cloned().or_else(constant);
        value.map(Some).ok_or_else(|| format!("nothing before it makes its input `{name}`"))
    }
}

/// Computes what depends on constants alone, once.
fn fold(file: &mut File) -> file::Result<()> {
    let mut kept = Vec::new();
    for node in std::mem::take(&mut file.nodes) {
        let inputs = node.inputs.iter().map(|name| match (name.is_empty(), file.constants.get(name)) {
            (true, _) => Some(None),
            (false, array) => Some(Some(Value::host(array?.clone()))),
        });
        let Some(inputs) = inputs.collect::<Option<Vec<_>>>() else {
            kept.push(node);
            continue;
        };
        // What needs a plan stays; what is wrong is said when it is recorded.
        let Ok(outputs) = Operator::run(&mut Machine(None), &node, &inputs) else {
            kept.push(node);
            continue;
        };
        for (i, value) in outputs.into_iter().enumerate() {
            if let (Some(name), Value::Host(array, _)) = (node.output(i), value) {
                file.constants.insert(name.into(), array);
            }
        }
    }
    file.nodes = kept;
    Ok(())
}

/// The weights of a recurrent node as parameters, by PyTorch's names.
fn own_weights(init: &mut Init, file: &File, node: &Node) -> file::Result<Vec<Weights>> {
    let value = |name: &String| file.constants.get(name).map(|array| Value::host(array.clone()));
    let inputs: Vec<_> = node.inputs.iter().map(value).collect();
    let refuse = |problem| format!("`{}` at `{}`: {problem}", node.op, node.name);
    let mut all = recurrent::weights(&mut Machine(None), node, &Inputs(&inputs)).map_err(refuse)?;
    for (weights, suffix) in all.iter_mut().zip(["_l0", "_l0_reverse"]) {
        for (kind, value) in &mut weights.named {
            let array = value.array()?.clone();
            let name = format!("{}.{kind}{suffix}", node.name);
            let id = init.add(name, array.shape(), array.reals()).map_err(value::said)?;
            *value = Value::Host(array, Some(id));
        }
    }
    Ok(all)
}
