//! Networks of this crate, written as ONNX files.

use std::path::Path;

use rten_onnx::onnx::{
    AttributeProto, AttributeType, DataType, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, TypeProtoTensor, ValueInfoProto,
};

use super::recurrent::{gates, layer_attributes};
use crate::error::{Error, Result};
use crate::graph::Parameters;
use crate::io::write_atomically;
use crate::kernels::cell::Cell;
use crate::nn::{CharRnn, Embedding, Linear, Recurrent};

/// The version of ONNX's operators that is written, and the format's that goes with it.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// Field 7 of the model, the graph; in it field 2, its name.
const NAME_OF_GRAPH: &[u8] = b"\x3a\x07\x12\x05elman";

/// Writes a network as an ONNX file, that onnxruntime and others run: module by module, as its forward pass is written.
///
/// ```
/// use elman::onnx::{Model, Size, Writer};
/// use elman::{Device, nn, rng};
///
/// let mut init = nn::Init::new(rng::manual_seed(1));
/// let embedding = nn::Embedding::new(&mut init, "embedding", 9, 4)?;
/// let lstm = nn::Lstm::new(&mut init, "lstm", nn::RnnOptions::new(4, 6).num_layers(2))?;
/// let output = nn::Linear::new(&mut init, "output", 6, 9)?;
/// let parameters = init.upload(&Device::cpu())?;
///
/// let mut writer = Writer::new(&parameters);
/// let tokens = writer.tokens("tokens", &[Size::Any("steps"), Size::Any("batch")]);
/// let state = [Size::Fixed(2), Size::Any("batch"), Size::Fixed(6)];
/// let states = [writer.input("h_0", &state), writer.input("c_0", &state)];
/// let x = writer.embedding(&embedding, &tokens)?;
/// let out = writer.recurrent(lstm.as_ref(), &x, &states)?;
/// let logits = writer.linear(&output, &out.output)?;
/// let probabilities = writer.softmax(&logits);
/// writer.output("probabilities", &probabilities);
/// writer.output("h_n", &out.states[0]);
/// writer.output("c_n", &out.states[1]);
///
/// let model = Model::from_bytes(&writer.to_bytes()?)?;
/// assert_eq!(model.outputs()[1].name, "h_n");
/// # Ok::<(), elman::Error>(())
/// ```
pub struct Writer {
    parameters: Parameters,
    graph: GraphProto,
    metadata: Vec<StringStringEntryProto>,
    made: usize,
}

/// A size of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// This one.
    Fixed(usize),
    /// Any, by a name: the same in all inputs.
    Any(&'static str),
}

/// A value of the graph that is written.
#[derive(Clone, Debug)]
pub struct Value {
    name: String,
    /// How many axes it has.
    rank: usize,
}

/// What [`Writer::recurrent`] gives.
#[derive(Clone, Debug)]
pub struct Recurrence {
    /// Of every step, `[T, B, D H]`, batch first if the module is.
    pub output: Value,
    /// The last states, `[D L, B, H]`: h, and c of an LSTM.
    pub states: Vec<Value>,
}

impl Value {
    fn of_rank(self, rank: usize) -> Self {
        Self { rank, ..self }
    }
}

impl Writer {
    /// Of a network with these parameters.
    pub fn new(parameters: &Parameters) -> Self {
        Self { parameters: parameters.clone(), graph: GraphProto::default(), metadata: Vec::new(), made: 0 }
    }

    /// An input of numbers.
    pub fn input(&mut self, name: &str, shape: &[Size]) -> Value {
        self.graph.input.push(port(name, DataType::FLOAT, shape));
        Value { name: name.into(), rank: shape.len() }
    }

    /// An input of tokens.
    pub fn tokens(&mut self, name: &str, shape: &[Size]) -> Value {
        self.graph.input.push(port(name, DataType::INT64, shape));
        Value { name: name.into(), rank: shape.len() }
    }

    /// Rows of the table, of tokens.
    ///
    /// # Errors
    /// The module is of other parameters.
    pub fn embedding(&mut self, module: &Embedding, tokens: &Value) -> Result<Value> {
        let table = self.parameter(&format!("{}.weight", module.name()))?;
        Ok(self.node("Gather", &[&table, tokens], &[]).of_rank(tokens.rank + 1))
    }

    /// `x Wᵀ + b`
    ///
    /// # Errors
    /// As [`Self::embedding`].
    pub fn linear(&mut self, module: &Linear, x: &Value) -> Result<Value> {
        let name = format!("{}.weight", module.name());
        let (shape, values) = self.values(&name)?;
        // MatMul takes the matrix as [I, O].
        let transposed = transposed(&values, shape[0], shape[1]);
        let weight = self.constant(&format!("{name}.T"), &[shape[1], shape[0]], &transposed);
        let y = self.node("MatMul", &[x, &weight], &[]);
        match module.has_bias() {
            true => {
                let bias = self.parameter(&format!("{}.bias", module.name()))?;
                Ok(self.node("Add", &[&y, &bias], &[]))
            }
            false => Ok(y),
        }
    }

    /// The last axis as probabilities.
    pub fn softmax(&mut self, x: &Value) -> Value {
        self.node("Softmax", &[x], &[int("axis", -1)])
    }

    /// The last axis as log-probabilities.
    pub fn log_softmax(&mut self, x: &Value) -> Value {
        self.node("LogSoftmax", &[x], &[int("axis", -1)])
    }

    /// A function of each element, by the name of ONNX's operator: Relu, Tanh, Sigmoid.
    pub fn unary(&mut self, operator: &str, x: &Value) -> Value {
        self.node(operator, &[x], &[])
    }

    /// A recurrent module, each layer a node; the incoming states, h and c, `[D L, B, H]`, or none.
    ///
    /// # Errors
    /// As [`Self::embedding`]; a module with a projection, which ONNX's LSTM has not; states that are not one, or two of an LSTM.
    pub fn recurrent(&mut self, module: &Recurrent, x: &Value, states: &[Value]) -> Result<Recurrence> {
        let options = *module.options();
        let cell = module.cell();
        if options.proj_size > 0 {
            let expected = "0, for ONNX's LSTM has no projection";
            return Err(Error::argument("onnx", "proj_size", expected, options.proj_size));
        }
        let count = cell.states();
        if !states.is_empty() && states.len() != count {
            return Err(Error::argument("onnx", "states", format!("none, or {count}"), states.len()));
        }
        let directions = if options.bidirectional { 2 } else { 1 };
        let swap = [ints("perm", &[1, 0, 2])];
        let mut x = if options.batch_first { self.node("Transpose", &[x], &swap) } else { x.clone() };
        let layers = options.num_layers;
        let starts: Vec<Vec<Value>> = states.iter().map(|state| self.split(state, layers, directions)).collect();
        let mut ends: Vec<Vec<Value>> = vec![Vec::new(); count];
        for layer in 0..layers {
            let names: Vec<_> = ["", "_reverse"][..directions].iter().map(|way| format!("_l{layer}{way}")).collect();
            let all = |writer: &mut Self, kind: &str, blocks: &[usize]| {
                let named = names.iter().map(|suffix| format!("{}.{kind}{suffix}", module.name()));
                writer.blocks(&named.collect::<Vec<_>>(), blocks)
            };
            let gates = gates(cell);
            let weight = all(self, "weight_ih", gates)?;
            let recurrent = all(self, "weight_hh", gates)?;
            let none = Value { name: String::new(), rank: 0 };
            let bias = match options.bias {
                true => {
                    let (of_input, of_state) = (all(self, "bias_ih", gates)?, all(self, "bias_hh", gates)?);
                    self.node("Concat", &[&of_input, &of_state], &[int("axis", 1)])
                }
                false => none.clone(),
            };
            // `i o f` of `i f o`.
            let peepholes = if options.peepholes { all(self, "weight_ph", &[0, 2, 1])? } else { none.clone() };
            let start = |i: usize| starts.get(i).map_or(none.clone(), |starts| starts[layer].clone());
            let mut inputs = vec![x, weight, recurrent, bias, none.clone(), start(0)];
            if cell == Cell::Lstm {
                inputs.extend([start(1), peepholes]);
            }
            let attributes = layer_attributes(module, directions)?;
            let name = match cell {
                Cell::Lstm => "LSTM",
                Cell::Gru => "GRU",
                Cell::Tanh | Cell::Relu => "RNN",
            };
            let inputs: Vec<_> = inputs.iter().collect();
            let mut outputs = self.node_of(name, &inputs, &attributes, 1 + count).into_iter();
            let y = outputs.next().expect("as many as asked for");
            ends.iter_mut().zip(outputs).for_each(|(ends, end)| ends.push(end));
            // [T, D, B, H] to [T, B, D H]
            let y = self.node("Transpose", &[&y], &[ints("perm", &[0, 2, 1, 3])]);
            let shape = self.whole(&[0, 0, -1]);
            x = self.node("Reshape", &[&y, &shape], &[]);
        }
        let output = if options.batch_first { self.node("Transpose", &[&x], &swap) } else { x };
        let states = ends.iter().map(|ends| match &ends[..] {
            [only] => only.clone(),
            several => self.node("Concat", &several.iter().collect::<Vec<_>>(), &[int("axis", 0)]),
        });
        let states = states.collect();
        Ok(Recurrence { output, states })
    }

    /// Keeps a text beside the network: a vocabulary, say.
    pub fn set_metadata(&mut self, key: &str, value: &str) {
        self.metadata.push(StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) });
    }

    /// Names a value as one that the graph gives.
    pub fn output(&mut self, name: &str, value: &Value) {
        self.graph.node.push(node("Identity", &[value], vec![name.into()], &[]));
        // Of any sizes.
        let mut port = port(name, DataType::FLOAT, &[]);
        if let Some(ty) = port.r#type.as_mut().and_then(|ty| ty.tensor_type.as_mut()) {
            ty.shape = Some(TensorShapeProto { dim: vec![Dimension::default(); value.rank] });
        }
        self.graph.output.push(port);
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// The format cannot hold it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            graph: Some(self.graph.clone()),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
            producer_name: Some(env!("CARGO_PKG_NAME").into()),
            metadata_props: self.metadata.clone(),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        };
        let expected = "one that the format can hold, at most 2 GB";
        let bytes = model.write_buf();
        let bytes = bytes.map_err(|error| Error::argument("onnx", "model", expected, format!("{error:?}")))?;
        // The graph's name, which ONNX asks for and the crate does not write: of a field that comes twice, readers of protobuf join
        // what is in both.
        Ok([NAME_OF_GRAPH, &bytes].concat())
    }

    /// Writes the file; it appears whole or not at all.
    ///
    /// # Errors
    /// As [`Self::to_bytes`]; the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path, &self.to_bytes()?)
    }

    fn values(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let expected = "one whose parameters the writer was made with";
        let tensor = self.parameters.get(name).ok_or_else(|| Error::argument("onnx", "module", expected, name))?;
        Ok((tensor.shape().to_vec(), tensor.to_vec()?))
    }

    fn parameter(&mut self, name: &str) -> Result<Value> {
        let (shape, values) = self.values(name)?;
        Ok(self.constant(name, &shape, &values))
    }

    /// Parameters of all directions, their blocks in ONNX's order: block i of these is block `order[i]` of ONNX's.
    fn blocks(&mut self, names: &[String], order: &[usize]) -> Result<Value> {
        let (mut all, mut shape) = (Vec::new(), Vec::new());
        for name in names {
            let (of_one, values) = self.values(name)?;
            let each = values.len() / order.len();
            let place = |block: usize| order.iter().position(|&other| other == block).expect("blocks are numbered");
            (0..order.len()).for_each(|block| all.extend_from_slice(&values[place(block) * each..][..each]));
            shape = of_one;
        }
        shape.insert(0, names.len());
        Ok(self.constant(&names[0], &shape, &all))
    }

    /// A constant of this name; one that is there already is the same.
    fn constant(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Value {
        let is_there = self.graph.initializer.iter().any(|tensor| tensor.name.as_deref() == Some(name));
        if !is_there {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.initializer(name, DataType::FLOAT, shape, bytes);
        }
        Value { name: name.into(), rank: shape.len() }
    }

    fn whole(&mut self, values: &[i64]) -> Value {
        let name = self.next("shape");
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(&name, DataType::INT64, &[values.len()], bytes);
        Value { name, rank: 1 }
    }

    fn initializer(&mut self, name: &str, ty: DataType, shape: &[usize], bytes: Vec<u8>) {
        self.graph.initializer.push(TensorProto {
            dims: shape.iter().map(|&size| size as i64).collect(),
            data_type: Some(ty),
            raw_data: Some(bytes.into()),
            name: Some(name.into()),
            ..TensorProto::default()
        });
    }

    /// A state `[D L, B, H]`, layer by layer.
    fn split(&mut self, state: &Value, layers: usize, directions: usize) -> Vec<Value> {
        if layers == 1 {
            return vec![state.clone()];
        }
        let sizes = self.whole(&vec![directions as i64; layers]);
        self.node_of("Split", &[state, &sizes], &[int("axis", 0)], layers)
    }

    fn next(&mut self, name: &str) -> String {
        self.made += 1;
        format!("{name}_{}", self.made)
    }

    fn node(&mut self, op: &str, inputs: &[&Value], attributes: &[AttributeProto]) -> Value {
        self.node_of(op, inputs, attributes, 1).remove(0)
    }

    fn node_of(&mut self, op: &str, inputs: &[&Value], attributes: &[AttributeProto], outputs: usize) -> Vec<Value> {
        let names: Vec<_> = (0..outputs).map(|_| self.next(&op.to_lowercase())).collect();
        self.graph.node.push(node(op, inputs, names.clone(), attributes));
        // As many axes as the first of them, but for those that say otherwise.
        let rank = inputs.first().map_or(0, |value| value.rank);
        names.into_iter().map(|name| Value { name, rank }).collect()
    }
}

/// A language model, as text is written with it: `tokens` `[T, B]` and the states `h_0`, and `c_0` of an LSTM, `[L, B, H]`, to the `logits`
/// of the next token, `[T, B, V]`, and the states `h_n`, `c_n`.
///
/// # Errors
/// The parameters are another network's.
pub fn language_model(network: &CharRnn, parameters: &Parameters) -> Result<Writer> {
    let mut writer = Writer::new(parameters);
    let (embedding, rnn, output) = network.modules();
    let options = *rnn.options();
    let tokens = writer.tokens("tokens", &[Size::Any("steps"), Size::Any("batch")]);
    let names = &["h", "c"][..rnn.cell().states()];
    let shape = [Size::Fixed(options.num_layers), Size::Any("batch"), Size::Fixed(options.hidden_size)];
    let states: Vec<_> = names.iter().map(|name| writer.input(&format!("{name}_0"), &shape)).collect();
    let x = writer.embedding(embedding, &tokens)?;
    let out = writer.recurrent(rnn, &x, &states)?;
    let logits = writer.linear(output, &out.output)?;
    writer.output("logits", &logits);
    names.iter().zip(&out.states).for_each(|(name, state)| writer.output(&format!("{name}_n"), state));
    Ok(writer)
}

fn node(op: &str, inputs: &[&Value], outputs: Vec<String>, attributes: &[AttributeProto]) -> NodeProto {
    let mut inputs: Vec<_> = inputs.iter().map(|value| value.name.clone()).collect();
    while inputs.last().is_some_and(String::is_empty) {
        inputs.pop();
    }
    NodeProto {
        name: outputs.first().map(|output| format!("{op}_{output}")),
        input: inputs,
        output: outputs,
        op_type: Some(op.into()),
        attribute: attributes.to_vec(),
        ..NodeProto::default()
    }
}

fn port(name: &str, ty: DataType, shape: &[Size]) -> ValueInfoProto {
    let size = |size: &Size| match *size {
        Size::Fixed(size) => Dimension { dim_value: Some(size as i64), dim_param: None },
        Size::Any(name) => Dimension { dim_value: None, dim_param: Some(name.into()) },
    };
    let shape = TensorShapeProto { dim: shape.iter().map(size).collect() };
    let ty = TypeProtoTensor { elem_type: Some(ty), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { tensor_type: Some(ty), ..TypeProto::default() }),
    }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::INT) }
}

pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::INTS) }
}

pub(super) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::FLOAT) }
}

pub(super) fn floats(name: &str, values: Vec<f32>) -> AttributeProto {
    AttributeProto { floats: values, ..attribute(name, AttributeType::FLOATS) }
}

pub(super) fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.into()), ..attribute(name, AttributeType::STRING) }
}

pub(super) fn texts(name: &str, values: Vec<String>) -> AttributeProto {
    AttributeProto { strings: values, ..attribute(name, AttributeType::STRINGS) }
}

fn attribute(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(ty), ..AttributeProto::default() }
}

fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
