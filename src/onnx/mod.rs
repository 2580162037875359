//! Networks of other frameworks, as ONNX files: read into plans, and written.

mod array;
mod file;
mod lengths;
mod operators;
mod recurrent;
mod value;
mod write;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use array::Array;
pub use file::Port;
use file::{File, Node};
use operators::{Inputs, Operator};
use recurrent::Weights;
use value::{Machine, Value};
pub use write::{Recurrence, Size, Value as Written, Writer, language_model};

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
    /// Of recurrent nodes, by their first output, where they are constants.
    recurrent: HashMap<String, Vec<Weights>>,
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
        let problems: Vec<_> = file.graph.nodes.iter().flat_map(Operator::problems).collect();
        if !problems.is_empty() {
            return Err(format!("it has what is not read here: {}", problems.join("; ")));
        }
        fold(&mut file.graph);
        let init = Init::new(rng::manual_seed(0));
        let mut model =
            Self { file, init, parameters: HashMap::new(), recurrent: HashMap::new(), has_parameters: false };
        let graph = model.file.graph.clone();
        model.find_parameters(&[&graph])?;
        model.has_parameters = !model.parameters.is_empty() || !model.recurrent.is_empty();
        Ok(model)
    }

    /// The constants that nodes of the innermost of these graphs take as weights.
    fn find_parameters(&mut self, graphs: &[&file::Graph]) -> file::Result<()> {
        let constant = |name: &str| graphs.iter().rev().find_map(|graph| graph.constants.get(name));
        for node in &graphs.last().expect("there is one").nodes {
            let is_recurrent = matches!(node.op.as_str(), "RNN" | "GRU" | "LSTM");
            let is_constant = |i: usize| node.input(i).is_none_or(|name| constant(name).is_some());
            if is_recurrent && [1, 2, 3, 7].into_iter().all(is_constant) {
                let weights = own_weights(&mut self.init, constant, node)?;
                self.recurrent
                    .insert(node.outputs.iter().find(|name| !name.is_empty()).cloned().unwrap_or_default(), weights);
            }
            let weights = Operator::of(node).map_or(&[][..], |operator| operator.weights).iter();
            let names = weights.filter_map(|&i| node.input(i)).chain(unchanged(node));
            for name in names {
                // A number, of no axis, is part of the program.
                let Some(Array::Real(values)) = constant(name).map(|array| &**array) else { continue };
                if values.ndim() > 0 && !values.is_empty() && !self.parameters.contains_key(name) {
                    let id = self.init.add(name.into(), values.shape(), values.iter().copied().collect());
                    self.parameters.insert(name.to_owned(), id.map_err(value::said)?);
                }
            }
            for inner in node.graphs() {
                self.find_parameters(&[graphs, &[inner]].concat())?;
            }
        }
        Ok(())
    }

    /// What it takes.
    pub fn inputs(&self) -> &[Port] {
        &self.file.graph.inputs
    }

    /// What it gives.
    pub fn outputs(&self) -> &[Port] {
        &self.file.graph.outputs
    }

    /// What is doubtful about the file, in a sentence; None if nothing is known.
    pub fn warning(&self) -> Option<String> {
        let (producer, version) = &self.file.producer;
        fn before(graph: &file::Graph) -> Option<&Node> {
            let is_before = |node: &Node| {
                node.op == "GRU" && node.int("linear_before_reset", 0) == Ok(0) && node.input(1).is_some()
            };
            graph
                .nodes
                .iter()
                .find_map(|node| if is_before(node) { Some(node) } else { node.graphs().find_map(before) })
        }
        let node = before(&self.file.graph).filter(|_| producer == "pytorch")?;
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
        let mut values: HashMap<String, Value> = HashMap::new();
        for (name, input) in inputs {
            let Some(port) = self.file.graph.inputs.iter().find(|port| port.name == *name) else {
                return Err(Error::argument(
                    "onnx",
                    "input",
                    format!("one of {}", of_ports(&self.file.graph.inputs)),
                    name,
                ));
            };
            let value = match input {
                Input::Value(var) => {
                    g.check([*var])?;
                    Value::made(g, *var)
                }
                Input::Indices(tensor) => Value::indices(tensor),
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
            values.insert(port.name.clone(), value);
        }
        if let Some(missing) = self.file.graph.inputs.iter().find(|port| !values.contains_key(port.name.as_str())) {
            return Err(Error::argument(
                "onnx",
                "inputs",
                format!("all of {}", of_ports(&self.file.graph.inputs)),
                &missing.name,
            ));
        }
        let scope = Scope { graph: &self.file.graph, values, around: None };
        let mut machine = Machine(Some(g));
        let outputs = self.run(&mut machine, scope)?;
        let named = self.file.graph.outputs.iter().zip(outputs).map(|(port, value)| {
            let var = value.var(&mut machine).map_err(|problem| refused("output", &port.name, problem))?;
            Ok((port.name.clone(), var))
        });
        Ok(Outputs(named.collect::<Result<_>>()?))
    }

    /// Records a graph; its outputs.
    fn run(&self, m: &mut Machine<'_>, mut scope: Scope<'_>) -> Result<Vec<Value>> {
        for node in &scope.graph.nodes {
            let refuse = |problem| refused(&node.op, &node.name, problem);
            let given = node.inputs.iter().map(|name| self.value(&scope, name)).collect::<file::Result<Vec<_>>>();
            let outputs = self.run_node(m, &scope, node, &given.map_err(refuse)?)?;
            for (i, value) in outputs.into_iter().enumerate() {
                if let Some(name) = node.output(i) {
                    scope.values.insert(name.into(), value);
                }
            }
        }
        let outputs = scope.graph.outputs.iter().map(|port| {
            let value = self.value(&scope, &port.name).and_then(|value| value.ok_or("it has no name".into()));
            value.map_err(|problem| refused("output", &port.name, problem))
        });
        outputs.collect()
    }

    fn run_node(
        &self,
        m: &mut Machine<'_>,
        scope: &Scope<'_>,
        node: &Node,
        given: &[Option<Value>],
    ) -> Result<Vec<Value>> {
        let refuse = |problem| refused(&node.op, &node.name, problem);
        let weights = node.outputs.iter().find(|name| !name.is_empty()).and_then(|name| self.recurrent.get(name));
        match (node.op.as_str(), weights) {
            ("Loop", _) => self.run_loop(m, scope, node, given),
            ("If", _) => {
                let is_so = truth(given.first().cloned().flatten().as_ref()).map_err(refuse)?;
                let graph = node.graph(if is_so { "then_branch" } else { "else_branch" }).map_err(refuse)?;
                self.run(m, Scope { graph, values: HashMap::new(), around: Some(scope) })
            }
            (_, Some(weights)) => recurrent::run_with(m, node, &Inputs(given), weights).map_err(refuse),
            _ => Operator::run(m, node, given).map_err(refuse),
        }
    }

    /// A loop, whose number of turns is known here: its body is recorded once for each.
    fn run_loop(
        &self,
        m: &mut Machine<'_>,
        scope: &Scope<'_>,
        node: &Node,
        given: &[Option<Value>],
    ) -> Result<Vec<Value>> {
        const MOST_TURNS: i64 = 1 << 16;
        let refuse = |problem: String| refused(&node.op, &node.name, problem);
        let body = node.graph("body").map_err(refuse)?;
        let turns = match given.first().and_then(Option::as_ref) {
            None => MOST_TURNS + 1,
            Some(value) => value.array().and_then(Array::wholes).map_err(refuse)?.first().copied().unwrap_or(0),
        };
        let goes_on = |value: Option<&Value>| value.map_or(Ok(true), |value| truth(Some(value)));
        let mut is_on = goes_on(given.get(1).and_then(Option::as_ref)).map_err(refuse)?;
        let mut carried = given.iter().skip(2).cloned().collect::<Option<Vec<Value>>>();
        let carried = carried.as_mut().ok_or_else(|| refuse("a value that it carries is missing".into()))?;
        if body.inputs.len() != 2 + carried.len() || body.outputs.len() <= carried.len() {
            return Err(refuse(format!(
                "its body takes {} values, of {} that it is given",
                body.inputs.len(),
                given.len()
            )));
        }
        let mut rows: Vec<Vec<Value>> = vec![Vec::new(); body.outputs.len() - 1 - carried.len()];
        let mut turn = 0;
        while is_on && turn < turns {
            if turn == MOST_TURNS {
                return Err(refuse(format!("it has more than {MOST_TURNS} turns")));
            }
            let number = Value::host(Array::Whole(ndarray::arr0(turn).into_dyn()));
            let on = Value::host(Array::Whole(ndarray::arr0(1).into_dyn()));
            let inputs = [number, on].into_iter().chain(carried.iter().cloned());
            let values = body.inputs.iter().map(|port| port.name.clone()).zip(inputs).collect();
            let mut outputs = self.run(m, Scope { graph: body, values, around: Some(scope) })?.into_iter();
            is_on = goes_on(outputs.next().as_ref()).map_err(refuse)?;
            carried.iter_mut().zip(outputs.by_ref()).for_each(|(carried, next)| *carried = next);
            for (rows, value) in rows.iter_mut().zip(outputs) {
                let shape = [&[1], &value.shape()[..]].concat();
                rows.push(value.reshape(m, &shape).map_err(refuse)?);
            }
            turn += 1;
        }
        let mut all = carried.clone();
        for rows in rows {
            if rows.is_empty() {
                return Err(refuse("it has no turn, and so no rows of what it collects".into()));
            }
            all.push(Value::concat(m, &rows, 0).map_err(refuse)?);
        }
        Ok(all)
    }

    /// What a name stands for; None for none.
    fn value(&self, scope: &Scope<'_>, name: &str) -> file::Result<Option<Value>> {
        if name.is_empty() {
            return Ok(None);
        }
        let mut scopes = std::iter::successors(Some(scope), |scope| scope.around);
        let value = scopes.find_map(|scope| {
            let constant = || {
                let array = scope.graph.constants.get(name)?;
                Some(Value::Host(array.clone(), self.parameters.get(name).copied()))
            };
            scope.values.get(name).cloned().or_else(constant)
        });
        value.map(Some).ok_or_else(|| format!("nothing before it makes its input `{name}`"))
    }
}

/// The values of a graph that is recorded, within those of what is around it.
struct Scope<'a> {
    graph: &'a file::Graph,
    values: HashMap<String, Value>,
    around: Option<&'a Scope<'a>>,
}

fn refused(op: &str, node: &str, problem: String) -> Error {
    Error::Onnx { op: op.into(), node: node.into(), problem }
}

fn truth(value: Option<&Value>) -> file::Result<bool> {
    let value = value.ok_or("it is given no condition")?;
    Ok(value.array()?.wholes()?.first().is_some_and(|&value| value != 0))
}

/// What a loop is given and passes from turn to turn as it is: its weights.
fn unchanged(node: &Node) -> impl Iterator<Item = &str> {
    let body = node.graph("body").ok().filter(|_| node.op == "Loop");
    let is_same = |body: &file::Graph, i: usize| {
        let (input, output) =
            (body.inputs.get(i).map(|port| &port.name), body.outputs.get(i - 1).map(|port| &port.name));
        let passed = body.nodes.iter().find(|node| node.op == "Identity" && node.outputs.first() == output);
        input.is_some() && (input == output || passed.is_some_and(|node| node.inputs.first() == input))
    };
    let carried = (2..node.inputs.len()).filter(move |&i| body.is_some_and(|body| is_same(body, i)));
    carried.filter_map(|i| node.input(i))
}

/// Computes what depends on constants alone, once.
fn fold(graph: &mut file::Graph) {
    let mut kept = Vec::new();
    for node in std::mem::take(&mut graph.nodes) {
        let inputs = node.inputs.iter().map(|name| match (name.is_empty(), graph.constants.get(name)) {
            (true, _) => Some(None),
            (false, array) => Some(Some(Value::Host(array?.clone(), None))),
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
                graph.constants.insert(name.into(), array);
            }
        }
    }
    graph.nodes = kept;
}

/// The weights of a recurrent node as parameters, by PyTorch's names.
fn own_weights<'a>(
    init: &mut Init,
    constant: impl Fn(&str) -> Option<&'a Arc<Array>>,
    node: &Node,
) -> file::Result<Vec<Weights>> {
    let inputs: Vec<_> =
        node.inputs.iter().map(|name| constant(name).map(|array| Value::Host(array.clone(), None))).collect();
    let refuse = |problem| format!("`{}` at `{}`: {problem}", node.op, node.name);
    let mut all = recurrent::weights(&mut Machine(None), node, &Inputs(&inputs)).map_err(refuse)?;
    for (weights, suffix) in all.iter_mut().zip(["_l0", "_l0_reverse"]) {
        for (kind, value) in &mut weights.named {
            let Value::Host(array, id) = value else { return Err(refuse("its weights are no constants".into())) };
            let name = format!("{}.{kind}{suffix}", node.name);
            *id = Some(init.add(name, array.shape(), array.reals()).map_err(value::said)?);
        }
    }
    Ok(all)
}
