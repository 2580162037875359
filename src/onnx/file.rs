//! ONNX files: nodes with their attributes, and constants as arrays.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use rten_onnx::onnx::{
    AttributeProto, DataLocation, DataType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};

use super::array::Array;
use super::lengths;

/// What went wrong, to be said of a file or a node.
pub(super) type Result<T> = std::result::Result<T, String>;

/// Elements of a constant, at most: as many as a tensor may have.
pub(super) const MOST_ELEMENTS: usize = crate::tensor::MOST_ELEMENTS;

/// An operator of a graph, with what it takes and gives.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub op: String,
    /// As the file has it, or its first output.
    pub name: String,
    /// Empty: left out.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: BTreeMap<String, Attribute>,
    /// The version of the operators.
    pub opset: i64,
}

#[derive(Clone, Debug)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
    Array(Array),
    Graph(Box<Graph>),
}

/// What a graph takes or gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its sizes, as far as they are fixed; None if it has any number of them.
    pub shape: Option<Vec<Option<usize>>>,
    /// Whether it is of whole numbers: tokens, lengths.
    pub is_integer: bool,
}

/// A graph, of a file or of a node.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub nodes: Vec<Node>,
    pub constants: HashMap<String, Arc<Array>>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// All of a file.
pub(super) struct File {
    pub graph: Graph,
    /// Who wrote it, and in which version.
    pub producer: (String, String),
}

impl Node {
    pub fn int(&self, name: &str, default: i64) -> Result<i64> {
        match self.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Int(value)) => Ok(*value),
            Some(other) => Err(format!("its attribute `{name}` must be a whole number, not {other:?}")),
        }
    }

    pub fn float(&self, name: &str, default: f32) -> Result<f32> {
        match self.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Float(value)) => Ok(*value),
            Some(other) => Err(format!("its attribute `{name}` must be a number, not {other:?}")),
        }
    }

    pub fn text(&self, name: &str, default: &'static str) -> Result<&str> {
        match self.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Text(value)) => Ok(value),
            Some(other) => Err(format!("its attribute `{name}` must be text, not {other:?}")),
        }
    }

    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            Some(other) => Err(format!("its attribute `{name}` must be whole numbers, not {other:?}")),
        }
    }

    pub fn floats(&self, name: &str) -> Result<&[f32]> {
        match self.attributes.get(name) {
            None => Ok(&[]),
            Some(Attribute::Floats(values)) => Ok(values),
            Some(other) => Err(format!("its attribute `{name}` must be numbers, not {other:?}")),
        }
    }

    pub fn texts(&self, name: &str) -> Result<&[String]> {
        match self.attributes.get(name) {
            None => Ok(&[]),
            Some(Attribute::Texts(values)) => Ok(values),
            Some(other) => Err(format!("its attribute `{name}` must be texts, not {other:?}")),
        }
    }

    /// A graph that it runs.
    pub fn graph(&self, name: &str) -> Result<&Graph> {
        match self.attributes.get(name) {
            Some(Attribute::Graph(graph)) => Ok(graph),
            _ => Err(format!("its attribute `{name}` must be a graph")),
        }
    }

    /// The graphs that it may run.
    pub fn graphs(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.values().filter_map(|attribute| match attribute {
            Attribute::Graph(graph) => Some(&**graph),
            _ => None,
        })
    }

    /// The name of an input, if it is there.
    pub fn input(&self, i: usize) -> Option<&str> {
        self.inputs.get(i).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The name of an output, if it is wanted.
    pub fn output(&self, i: usize) -> Option<&str> {
        self.outputs.get(i).map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// Reads a file; data that lies in other files, from the folder.
pub(super) fn read(bytes: &[u8], folder: Option<&Path>) -> Result<File> {
    lengths::check(bytes)?;
    let model = ModelProto::parse_buf(bytes).map_err(|error| format!("it is no ONNX file ({error:?})"))?;
    let graph = model.graph.ok_or("it has no graph, so it is no ONNX model")?;
    let is_own = |domain: &Option<String>| domain.as_deref().is_none_or(|domain| matches!(domain, "" | "ai.onnx"));
    let opset = model.opset_import.iter().find(|import| is_own(&import.domain)).and_then(|import| import.version);
    let opset = opset.ok_or("it does not say which version of ONNX's operators it has")?;
    let graph = self::graph(graph, opset, folder)?;
    let producer = (model.producer_name.unwrap_or_default(), model.producer_version.unwrap_or_default());
    Ok(File { graph, producer })
}

fn graph(graph: GraphProto, opset: i64, folder: Option<&Path>) -> Result<Graph> {
    let GraphProto { node, initializer, input, output, .. } = graph;
    let mut constants = HashMap::new();
    for tensor in &initializer {
        let name = tensor.name.clone().unwrap_or_default();
        let array = array(tensor, folder).map_err(|problem| format!("its tensor `{name}` {problem}"))?;
        constants.insert(name, Arc::new(array));
    }
    let nodes = node.into_iter().map(|node| self::node(node, opset, folder)).collect::<Result<Vec<_>>>()?;
    let port = |info: &ValueInfoProto| {
        let tensor = info.r#type.as_ref().and_then(|ty| ty.tensor_type.as_ref());
        let sizes = tensor.and_then(|tensor| tensor.shape.as_ref()).map(|shape| {
            shape.dim.iter().map(|dim| dim.dim_value.and_then(|size| usize::try_from(size).ok())).collect()
        });
        let is_integer = tensor
            .and_then(|tensor| tensor.elem_type)
            .is_some_and(|ty| matches!(ty, DataType::INT32 | DataType::INT64 | DataType::BOOL));
        Port { name: info.name.clone().unwrap_or_default(), shape: sizes, is_integer }
    };
    let outputs = output.iter().map(port).collect();
    // Before version 4 of the format, constants are inputs too.
    let inputs = input.iter().map(port).filter(|input| !constants.contains_key(&input.name)).collect();
    Ok(Graph { nodes, constants, inputs, outputs })
}

fn node(node: NodeProto, opset: i64, folder: Option<&Path>) -> Result<Node> {
    let NodeProto { domain, name, input, output, op_type, attribute } = node;
    let name = name.filter(|name| !name.is_empty()).or_else(|| output.first().cloned()).unwrap_or_default();
    let op = op_type.unwrap_or_default();
    let op = match domain.as_deref() {
        None | Some("" | "ai.onnx") => op,
        Some(domain) => format!("{domain}.{op}"),
    };
    let mut attributes = BTreeMap::new();
    for attribute in attribute {
        let of = attribute.name.clone().unwrap_or_default();
        let value =
            self::attribute(attribute, opset, folder).map_err(|problem| format!("`{op}` at `{name}`: {problem}"))?;
        attributes.insert(of, value);
    }
    Ok(Node { op, name, inputs: input, outputs: output, attributes, opset })
}

fn attribute(attribute: AttributeProto, opset: i64, folder: Option<&Path>) -> Result<Attribute> {
    // By what is there: not all writers name the type.
    let AttributeProto { name, f, s, i, g, t, floats, ints, strings, r#type } = attribute;
    if let Some(graph) = g {
        return Ok(Attribute::Graph(self::graph(graph, opset, folder)?.into()));
    }
    Ok(match (r#type.map_or(0, |ty| ty.0), f, i, s, t) {
        (1, f, ..) => Attribute::Float(f.unwrap_or(0.0)),
        (2, _, i, ..) => Attribute::Int(i.unwrap_or(0)),
        (3, _, _, s, _) => Attribute::Text(s.unwrap_or_default()),
        (4, .., Some(tensor)) => {
            let name = name.unwrap_or_default();
            Attribute::Array(array(&tensor, folder).map_err(|problem| format!("its tensor `{name}` {problem}"))?)
        }
        (6, ..) => Attribute::Floats(floats),
        (7, ..) => Attribute::Ints(ints),
        (8, ..) => Attribute::Texts(strings),
        (_, Some(f), ..) => Attribute::Float(f),
        (_, _, Some(i), ..) => Attribute::Int(i),
        (_, _, _, Some(s), _) => Attribute::Text(s),
        _ if !floats.is_empty() => Attribute::Floats(floats),
        _ if !strings.is_empty() => Attribute::Texts(strings),
        _ => Attribute::Ints(ints),
    })
}

/// A constant of a file. Numbers of any width become f32, whole ones i64.
fn array(tensor: &TensorProto, folder: Option<&Path>) -> Result<Array> {
    let shape = tensor.dims.iter().map(|&size| usize::try_from(size)).collect::<std::result::Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| format!("has the shape {:?}", tensor.dims))?;
    let len = shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size)).filter(|&len| len <= MOST_ELEMENTS);
    let len =
        len.ok_or_else(|| format!("of the shape {shape:?} has more elements than the {MOST_ELEMENTS} of a tensor"))?;
    let ty = tensor.data_type.unwrap_or(DataType(0));
    let external;
    let raw = match (tensor.data_location, &tensor.raw_data) {
        (Some(DataLocation(1)), _) => {
            external = self::external(tensor, folder)?;
            Some(external)
        }
        (_, Some(raw)) if !raw.borrow().is_empty() || len == 0 => Some(raw.borrow().clone()),
        _ => None,
    };
    let mut is_integer = true;
    let width = match ty {
        DataType::BOOL | DataType::INT8 | DataType::UINT8 => 1,
        DataType::FLOAT16 | DataType::BFLOAT16 => 2,
        DataType::INT32 | DataType::FLOAT => 4,
        DataType::INT64 | DataType::DOUBLE => 8,
        other => {
            return Err(format!("is of {other}; FLOAT, FLOAT16, BFLOAT16, DOUBLE, INT32, INT64 and BOOL are read"));
        }
    };
    let mut floats = Vec::new();
    let mut whole: Vec<i64> = Vec::new();
    if let Some(raw) = raw {
        if raw.len() != width * len {
            return Err(format!("has {} bytes of data, where {shape:?} of {ty} has {}", raw.len(), width * len));
        }
        match ty {
            DataType::BOOL | DataType::UINT8 => whole.extend(raw.iter().map(|&byte| i64::from(byte))),
            DataType::INT8 => whole.extend(raw.iter().map(|&byte| i64::from(byte as i8))),
            DataType::INT32 => whole.extend(words(&raw).map(|word| i64::from(i32::from_le_bytes(word)))),
            DataType::INT64 => whole.extend(words(&raw).map(i64::from_le_bytes)),
            DataType::FLOAT => floats.extend(words(&raw).map(f32::from_le_bytes)),
            DataType::DOUBLE => floats.extend(words(&raw).map(|word| f64::from_le_bytes(word) as f32)),
            DataType::FLOAT16 => floats.extend(words(&raw).map(|word| half::f16::from_le_bytes(word).to_f32())),
            _ => floats.extend(words(&raw).map(|word| half::bf16::from_le_bytes(word).to_f32())),
        }
    } else {
        let bits = || tensor.int32_data.iter().map(|&word| word as u16);
        match ty {
            DataType::FLOAT => floats.clone_from(&tensor.float_data),
            DataType::DOUBLE => floats.extend(tensor.double_data.iter().map(|&value| value as f32)),
            DataType::FLOAT16 => floats.extend(bits().map(|bits| half::f16::from_bits(bits).to_f32())),
            DataType::BFLOAT16 => floats.extend(bits().map(|bits| half::bf16::from_bits(bits).to_f32())),
            DataType::INT64 => whole.clone_from(&tensor.int64_data),
            _ => whole.extend(tensor.int32_data.iter().map(|&word| i64::from(word))),
        }
    }
    if matches!(ty, DataType::FLOAT | DataType::DOUBLE | DataType::FLOAT16 | DataType::BFLOAT16) {
        is_integer = false;
    }
    let has = if is_integer { whole.len() } else { floats.len() };
    let misfit = |_| format!("has {has} values, where {shape:?} has {len}");
    Ok(match is_integer {
        true => Array::Whole(ArrayD::from_shape_vec(IxDyn(&shape), whole).map_err(misfit)?),
        false => Array::Real(ArrayD::from_shape_vec(IxDyn(&shape), floats).map_err(misfit)?),
    })
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("chunks have this size"))
}

/// Bytes of a tensor that lie in another file of the model's folder.
fn external(tensor: &TensorProto, folder: Option<&Path>) -> Result<Vec<u8>> {
    let entry = |key: &str| {
        let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key));
        entry.and_then(|entry| entry.value.as_deref())
    };
    let location = entry("location").ok_or("is said to lie in another file, which is not named")?;
    let is_inside =
        Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_inside {
        return Err(format!("lies in {location:?}, which is not in the folder of the model"));
    }
    let folder = folder.ok_or_else(|| format!("lies in {location:?}: read the model from its file"))?;
    let number = |key: &str| match entry(key) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("has the {key} {text:?} in {location:?}")),
    };
    let path = folder.join(location);
    let unreadable = |error| format!("lies in {}, which cannot be read: {error}", path.display());
    let all = std::fs::read(&path).map_err(unreadable)?;
    let start = number("offset")?.unwrap_or(0);
    let length = number("length")?.unwrap_or((all.len() as u64).saturating_sub(start));
    let range = usize::try_from(start).ok().zip(usize::try_from(start.saturating_add(length)).ok());
    let bytes = range.and_then(|(start, end)| all.get(start..end));
    let bytes = bytes.ok_or_else(|| format!("ends beyond the {} bytes of {}", all.len(), path.display()))?;
    Ok(bytes.to_vec())
}
