//! Programs of elementwise operations ([`crate::map`]): a kernel for each, made when it is recorded.

use super::striding_grid;
use crate::error::{Error, Result};
use crate::map::{Expr, Layout, Map, Program};
use crate::plan::Recorder;
use crate::tensor::Tensor;

/// Of a program, gradients' included: two words of each fit into WebGPU's 64 KiB of parameters.
const MOST_INSTRUCTIONS: usize = 1 << 12;

/// A tensor, and where of it the elements are that belong to those of the results.
#[derive(Clone, Debug)]
pub struct Operand<'a> {
    tensor: &'a Tensor,
    layout: Option<Layout>,
}

impl<'a> Operand<'a> {
    /// A part, or the same elements in another order, or some of them several times.
    pub fn strided(tensor: &'a Tensor, layout: Layout) -> Self {
        Self { tensor, layout: Some(layout) }
    }
}

/// Broadcast to the shape of the results.
impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self { tensor, layout: None }
    }
}

/// Records the results of a program, of this shape: of inputs, into outputs, each with whether it is added to what is there.
///
/// # Errors
/// A tensor does not have the elements, or an input's shape does not broadcast.
pub fn map(
    r: &mut Recorder,
    program: &Program,
    shape: &[usize],
    inputs: &[Operand<'_>],
    outputs: &[(Operand<'_>, bool)],
) -> Result<()> {
    let what = "map";
    let operands: Vec<_> = inputs.iter().chain(outputs.iter().map(|(operand, _)| operand)).collect();
    let counts = [(program.inputs(), inputs.len(), "inputs"), (program.outputs().len(), outputs.len(), "outputs")];
    for (expected, got, name) in counts {
        if expected != got {
            return Err(Error::argument(what, name, expected.to_string(), got));
        }
    }
    if shape.contains(&0) || shape.is_empty() {
        return Err(Error::argument(what, "shape", "sizes of at least 1", format!("{shape:?}")));
    }
    if program.len() > MOST_INSTRUCTIONS {
        return Err(Error::argument(
            what,
            "program",
            format!("at most {MOST_INSTRUCTIONS} instructions"),
            program.len(),
        ));
    }
    let mut layouts = Vec::new();
    for (i, Operand { tensor, layout }) in operands.iter().enumerate() {
        let layout = match layout {
            Some(layout) => Some(layout.clone()).filter(|layout| layout.strides.len() == shape.len()),
            None => Layout::broadcast(tensor.shape(), shape),
        };
        let layout = layout.filter(|layout| layout.end(shape) <= tensor.len());
        let layout = layout.filter(|layout| i < inputs.len() || layout.is_injective(shape));
        let misfit = || Error::shape(what, tensor.name(), format!("that broadcasts to {shape:?}"), tensor.shape());
        layouts.push(layout.ok_or_else(misfit)?);
    }
    let map = Map::new(program.clone(), shape, &layouts, outputs.iter().map(|&(_, adds)| adds).collect());
    let words = map.words().iter().map(|(_, word)| word.bits()).collect();
    let tensors: Vec<_> = operands.iter().map(|operand| operand.tensor).collect();
    r.dispatch_words(map.kernel(), &[], words, &tensors, striding_grid(map.len()))?;
    for (Operand { tensor, .. }, adds) in outputs {
        // As many places as elements, none of them twice.
        if !adds && tensor.len() == map.len() {
            r.overwrites(tensor);
        }
    }
    Ok(())
}

/// Records `y = f(x)`, two tensors of one shape.
///
/// # Errors
/// The shapes differ.
pub fn unary(r: &mut Recorder, f: impl for<'a> FnOnce(Expr<'a>) -> Expr<'a>, x: &Tensor, y: &Tensor) -> Result<()> {
    map(r, &Program::new(|[x]| f(x)), y.shape(), &[x.into()], &[(y.into(), false)])
}

/// Records `y = x` of elements that lie in other places: parts, permutations, repetitions.
///
/// # Errors
/// As [`map`].
pub fn copy(r: &mut Recorder, shape: &[usize], x: Operand<'_>, y: Operand<'_>, adds: bool) -> Result<()> {
    map(r, &Program::new(|[x]| x), shape, &[x], &[(y, adds)])
}
