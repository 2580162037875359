//! What a graph of ONNX computes with: arrays on the host, values of a plan, and whole numbers that a user fills in.

use std::sync::Arc;

use super::array::{Array, Part, len_of};
use super::file::Result;
use crate::graph::{Graph, ParameterId, Var};
use crate::nn::functional as f;
use crate::tensor::Tensor;

/// A value of the graph.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Known when the model is read, or when shapes are; it may be a parameter.
    Host(Arc<Array>, Option<ParameterId>),
    /// Of the plan, with its shape in ONNX, where a number has none.
    Device(Var, Vec<usize>),
    /// Tokens or lengths, none below 0, whose axes may have changed places, and so much more.
    Indices { tensor: Tensor, axes: Vec<usize>, plus: i64 },
}

/// Where operators are recorded; nowhere, while constants are folded.
pub(super) struct Machine<'a>(pub Option<&'a mut Graph>);

impl Machine<'_> {
    pub fn graph(&mut self) -> Result<&mut Graph> {
        self.0.as_deref_mut().ok_or_else(|| "it is computed in a plan".into())
    }
}

/// What an operation of this crate refuses.
pub(super) fn said(error: crate::error::Error) -> String {
    error.to_string()
}

/// A shape as a plan has it, where a number is one of one element.
fn at_least_one(shape: &[usize]) -> &[usize] {
    if shape.is_empty() { &[1] } else { shape }
}

impl Value {
    pub fn host(array: Array) -> Self {
        Self::Host(Arc::new(array), None)
    }

    /// What a user fills in.
    pub fn indices(tensor: &Tensor) -> Self {
        Self::Indices { tensor: tensor.clone(), axes: (0..tensor.shape().len()).collect(), plus: 0 }
    }

    /// So much more than these whole numbers.
    pub fn plus(&self, more: i64) -> Self {
        let mut value = self.clone();
        if let Self::Indices { plus, .. } = &mut value {
            *plus = plus.saturating_add(more);
        }
        value
    }

    /// A value of a plan that has just been made.
    pub fn made(g: &Graph, var: Var) -> Self {
        Self::Device(var, g.shape(var).to_vec())
    }

    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Host(array, _) => array.shape().to_vec(),
            Self::Device(_, shape) => shape.clone(),
            Self::Indices { tensor, axes, .. } => axes.iter().map(|&axis| tensor.shape()[axis]).collect(),
        }
    }

    /// What is known on the host, and stays.
    pub fn constant(&self) -> Option<&Array> {
        match self {
            Self::Host(array, None) => Some(array),
            _ => None,
        }
    }

    /// What is known on the host.
    pub fn array(&self) -> Result<&Array> {
        match self {
            Self::Host(array, _) => Ok(array),
            Self::Device(..) | Self::Indices { .. } => {
                Err("it needs a value when the plan is recorded that is only known when it runs".into())
            }
        }
    }

    /// The value in a plan: a parameter, or a constant that is uploaded.
    pub fn var(&self, m: &mut Machine<'_>) -> Result<Var> {
        let g = m.graph()?;
        match self {
            Self::Device(var, _) => Ok(*var),
            Self::Host(_, Some(id)) => g.parameter(*id).map_err(said),
            Self::Host(array, None) => {
                if array.len() == 0 {
                    return Err(format!("it has a value of no elements, {:?}", array.shape()));
                }
                let tensor =
                    g.device().upload("constant", at_least_one(array.shape()), &array.reals()).map_err(said)?;
                g.input(&tensor).map_err(said)
            }
            Self::Indices { tensor, .. } => {
                Err(format!("`{}` is of whole numbers, which are only looked up or taken as lengths", tensor.name()))
            }
        }
    }

    pub fn reshape(&self, m: &mut Machine<'_>, shape: &[usize]) -> Result<Self> {
        if len_of(shape)? != self.shape().iter().product::<usize>() {
            return Err(format!("{:?} does not have the elements of {shape:?}", self.shape()));
        }
        match self {
            _ if self.shape() == shape => Ok(self.clone()),
            Self::Host(array, None) => Ok(Self::host(array.reshape(shape)?)),
            Self::Host(..) | Self::Device(..) => {
                let var = self.var(m)?;
                let var = f::reshape(m.graph()?, var, at_least_one(shape)).map_err(said)?;
                Ok(Self::Device(var, shape.to_vec()))
            }
            Self::Indices { tensor, axes, plus } if axes.iter().copied().eq(0..axes.len()) => {
                let tensor = tensor.reshape(at_least_one(shape)).map_err(said)?;
                Ok(Self::indices(&tensor).plus(*plus))
            }
            Self::Indices { .. } => Err("whole numbers whose axes have changed places keep their shape".into()),
        }
    }

    pub fn permute(&self, m: &mut Machine<'_>, permutation: &[usize]) -> Result<Self> {
        match self {
            _ if permutation.iter().copied().eq(0..permutation.len()) => Ok(self.clone()),
            Self::Host(array, None) => Ok(Self::host(array.permute(permutation))),
            Self::Host(..) | Self::Device(..) => {
                let var = self.var(m)?;
                let g = m.graph()?;
                let var = f::permute(g, var, permutation).map_err(said)?;
                Ok(Self::made(g, var))
            }
            Self::Indices { tensor, axes, plus } => {
                let axes = permutation.iter().map(|&axis| axes[axis]).collect();
                Ok(Self::Indices { tensor: tensor.clone(), axes, plus: *plus })
            }
        }
    }

    pub fn slice(&self, m: &mut Machine<'_>, axis: usize, part: Part) -> Result<Self> {
        match self {
            _ if part == Part::new(self.shape()[axis], 0, i64::MAX, 1)? => Ok(self.clone()),
            Self::Host(_, Some(_)) | Self::Device(..) if part.step == 1 && part.length > 0 => {
                let var = self.var(m)?;
                let g = m.graph()?;
                let var = f::narrow(g, var, axis as isize, part.start, part.length).map_err(said)?;
                Ok(Self::made(g, var))
            }
            _ => self.select(m, axis, &part.indices()),
        }
    }

    pub fn select(&self, m: &mut Machine<'_>, axis: usize, indices: &[usize]) -> Result<Self> {
        let size = self.shape()[axis];
        if let Some(index) = indices.iter().find(|&&index| index >= size) {
            return Err(format!("there is no entry {index} of the {size} of axis {axis}"));
        }
        match self {
            Self::Host(array, None) => Ok(Self::host(array.select(axis, indices))),
            Self::Host(..) | Self::Device(..) if indices.is_empty() => Err("it leaves nothing".into()),
            Self::Host(..) | Self::Device(..) => {
                let var = self.var(m)?;
                let g = m.graph()?;
                let var = f::index_select(g, var, axis as isize, indices).map_err(said)?;
                Ok(Self::made(g, var))
            }
            Self::Indices { .. } => Err("whole numbers are taken as they are".into()),
        }
    }

    pub fn concat(m: &mut Machine<'_>, values: &[Self], axis: usize) -> Result<Self> {
        let around = |value: &Self| {
            let mut shape = value.shape();
            if let Some(size) = shape.get_mut(axis) {
                *size = 0;
            }
            shape
        };
        if values.windows(2).any(|pair| around(&pair[0]) != around(&pair[1])) {
            let shapes: Vec<_> = values.iter().map(Self::shape).collect();
            return Err(format!("{shapes:?} cannot be joined along axis {axis}"));
        }
        let arrays: Option<Vec<_>> = values.iter().map(Self::constant).collect();
        if let Some(arrays) = arrays {
            return Ok(Self::host(Array::concat(&arrays, axis)?));
        }
        let vars = values.iter().map(|value| value.var(m)).collect::<Result<Vec<_>>>()?;
        let g = m.graph()?;
        let var = f::concat(g, &vars, axis as isize).map_err(said)?;
        Ok(Self::made(g, var))
    }

    pub fn broadcast(&self, m: &mut Machine<'_>, shape: &[usize]) -> Result<Self> {
        match self {
            _ if self.shape() == shape => Ok(self.clone()),
            Self::Host(array, None) => Ok(Self::host(array.broadcast(shape)?)),
            _ => {
                let var = self.var(m)?;
                let g = m.graph()?;
                let var = f::expand(g, var, shape).map_err(said)?;
                Ok(Self::Device(var, shape.to_vec()))
            }
        }
    }
}
