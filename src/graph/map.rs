//! Values that are programs of others ([`crate::map`]), put together as long as nothing needs them by themselves: a chain of
//! operations is one dispatch, and so are its gradients.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Graph, Value, Var};
use crate::error::{Error, Result};
use crate::kernels;
use crate::kernels::map::Operand;
use crate::map::{MOST_INSTRUCTIONS, Program};
use crate::tensor::Tensor;

/// Values that one program reads, at most: with two results' gradients they are all that WebGPU lets a kernel bind.
const MOST_VALUES: usize = 6;

/// Tensors that a kernel binds, at most.
const MOST_BOUND: usize = 8;

/// Characters of a name, at most: names are made of names.
const LONGEST_NAME: usize = 100;

/// A value that is computed where it is used, until something needs its tensor.
pub(super) struct Expression {
    program: Program,
    /// What it reads; those that are no expressions have tensors.
    values: Vec<Var>,
    /// The place among the commands where its own goes, if it gets one: what it reads may be written later.
    place: usize,
}

/// An expression with those that it reads taken in.
struct Fused {
    program: Program,
    values: Vec<Var>,
    inputs: Vec<Tensor>,
    is_of_several: bool,
}

impl Graph {
    /// Records a program of these values, whose shapes broadcast to `shape`. If all are rows of one table with fewer rows, the table is acted
    /// on instead.
    pub(crate) fn map(&mut self, op: &'static str, program: Program, values: &[Var], shape: &[usize]) -> Result<Var> {
        if program.len() > MOST_INSTRUCTIONS {
            let expected = format!("of at most {MOST_INSTRUCTIONS} operations");
            return Err(Error::argument(op, "expression", expected, program.len()));
        }
        let (program, values) = only_read(&program, values);
        if values.is_empty() || values.len() > MOST_VALUES {
            let expected = format!("one that depends on 1 to {MOST_VALUES} values");
            return Err(Error::argument(op, "expression", expected, values.len()));
        }
        // Of a row that is not looked up the gradient is 0, times a slope that must be finite.
        if let &[only] = &values[..]
            && shape == self.shape(only)
            && program.is_tame()
            && let Some((table, index)) = self.table_of(only)
        {
            let of_table = self.shape(table).to_vec();
            let table = self.map(op, program, &[table], &of_table)?;
            return Ok(self.rows(table, &index));
        }
        for &value in &values {
            match &mut self.nodes[value.index].value {
                Value::Expression { uses, .. } => *uses += 1,
                // Now, for its command comes before the one of this expression.
                _ => drop(self.tensor(value)?),
            }
        }
        let names = values.iter().map(|&value| self.name(value)).collect::<Vec<_>>().join(", ");
        let name = match op {
            "map" => format!("{}({names})", program.names()),
            _ => format!("{op}({names})"),
        };
        let name: String = name.chars().take(LONGEST_NAME).collect();
        let place = self.keep_place();
        let gradient = self.gradient_like(&values);
        let expression = Arc::new(Expression { program, values, place });
        let y = self.node(shape.into(), Value::Expression { expression: expression.clone(), uses: 0 }, gradient);
        self.set_name(y, &name);
        self.on_backward(move |g| expression.backward(g, y));
        Ok(y)
    }

    /// An expression with those taken in that it reads, that have its shape, that nothing else uses so far, and whose own inputs are what they
    /// were; as far as limits allow. In the backward pass, all that have no tensor, whatever else took them in.
    fn fused(&mut self, y: Var, expression: &Expression) -> Result<Fused> {
        let shape = self.shape(y).to_vec();
        let (mut program, mut values) = (expression.program.clone(), expression.values.clone());
        let mut used: BTreeMap<usize, usize> = values.iter().map(|value| (value.index, 1)).collect();
        let mut is_of_several = false;
        // From the latest: all of what is taken in that uses a value comes after it.
        while let Some((index, count)) = used.pop_last() {
            let node = &self.nodes[index];
            let Value::Expression { expression: inner, uses } = &node.value else { continue };
            let inner = inner.clone();
            let is_ours = *uses == count || self.is_differentiated;
            if node.shape != shape || !is_ours || self.is_written_since(&inner) {
                continue;
            }
            let value = Var { graph: self.id, index };
            let (whole, of_whole) = program.with(&values, value, &inner.program, &inner.values);
            if of_whole.len() <= MOST_VALUES && whole.len() <= MOST_INSTRUCTIONS {
                (program, values, is_of_several) = (whole, of_whole, true);
                inner.values.iter().for_each(|value| *used.entry(value.index).or_default() += 1);
            }
        }
        let inputs = values.iter().map(|&value| self.tensor(value)).collect::<Result<Vec<_>>>()?;
        Ok(Fused { program, values, inputs, is_of_several })
    }

    /// Whether what an expression reads may differ by now from what it was.
    fn is_written_since(&self, expression: &Expression) -> bool {
        let tensor = |value: &Var| match &self.nodes[value.index].value {
            Value::Dense(tensor) => Some(tensor.clone()),
            _ => None,
        };
        let inputs: Vec<_> = expression.values.iter().filter_map(tensor).collect();
        self.recorder.is_written_since(expression.place, &inputs)
    }

    /// Records an expression where it belongs, for something that needs its tensor.
    pub(super) fn evaluate(&mut self, y: Var, expression: &Expression) -> Result<Tensor> {
        let Fused { program, inputs, is_of_several, .. } = self.fused(y, expression)?;
        let (name, shape) = (self.name(y), self.shape(y).to_vec());
        let tensor = self.zeros(&name, &shape)?;
        let operands: Vec<_> = inputs.iter().map(Operand::from).collect();
        kernels::map::map(self, &program, &shape, &operands, &[((&tensor).into(), false)])?;
        self.move_last_to(expression.place);
        if is_of_several {
            let names = program.names();
            let count = names.split('_').count();
            self.note(format!("{count} operations of elements in one dispatch: {names}"));
        }
        let node = &mut self.nodes[y.index];
        node.value = Value::Dense(tensor.clone());
        node.is_late = self.is_differentiated;
        Ok(tensor)
    }

    /// Adds to the gradient of a value that was broadcast what its repetitions have: their sum.
    pub(crate) fn sum_to(&mut self, d: &Tensor, value: Var) -> Result<()> {
        if d.len() == self.shape(value).iter().product::<usize>() {
            // Over sizes of 1 alone.
            return self.add_gradient(value, d, true);
        }
        let Some((target, adds)) = self.gradient_target(value)? else { return Ok(()) };
        let missing = d.shape().len() - target.shape().len();
        let wanted = [vec![1; missing], target.shape().to_vec()].concat();
        let (mut from, mut shape) = (d.clone(), d.shape().to_vec());
        // Neighbouring axes at once, from the last.
        let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
        for axis in (0..shape.len()).rev().filter(|&axis| wanted[axis] != shape[axis]) {
            match ranges.last_mut() {
                Some(range) if range.start == axis + 1 => range.start = axis,
                _ => ranges.push(axis..axis + 1),
            }
        }
        let last = ranges.len() - 1;
        for (i, range) in ranges.into_iter().enumerate() {
            let sizes = kernels::sum::around(&shape, range.clone());
            shape[range].fill(1);
            let (to, adds) = match i == last {
                true => (target.clone(), adds),
                false => (self.zeros(&format!("{} of some", target.name()), &shape)?, false),
            };
            kernels::sum::sum(self, &from, sizes, 1.0, &to, adds)?;
            from = to;
        }
        Ok(())
    }
}

/// A program with inputs for those values that it reads, each once, and these.
fn only_read(program: &Program, values: &[Var]) -> (Program, Vec<Var>) {
    let mut read: Vec<Var> = Vec::new();
    for (i, value) in values.iter().enumerate() {
        if program.reads(i) && !read.contains(value) {
            read.push(*value);
        }
    }
    let place = |i: usize| read.iter().position(|value| *value == values[i]).unwrap_or(0);
    (program.renumbered(read.len(), place), read)
}

impl Expression {
    /// The gradients of its inputs: all of them in one dispatch, if that does not bind too many tensors, and a sum for each that was broadcast.
    fn backward(&self, g: &mut Graph, y: Var) -> Result<()> {
        let Some(dy) = g.gradient_so_far(y) else { return Ok(()) };
        let Fused { program, values, inputs, .. } = g.fused(y, self)?;
        let y_tensor = match &g.nodes[y.index].value {
            Value::Dense(tensor) => Some(tensor.clone()),
            _ => None,
        };
        let mut wanted: Vec<usize> = (0..values.len()).filter(|&i| g.is_differentiable(values[i])).collect();
        let given: Vec<_> = inputs.iter().chain([&dy]).chain(&y_tensor).collect();
        while !wanted.is_empty() {
            // As many as can be made together; the result is made again where there is no place to read it.
            let reads_output: &[bool] = if y_tensor.is_some() { &[true, false] } else { &[false] };
            let mut choices = (1..=wanted.len()).rev().flat_map(|n| reads_output.iter().map(move |&reads| (n, reads)));
            let together = choices.find_map(|(n, reads_output)| {
                let (gradients, places) = program.gradients(&wanted[..n], reads_output);
                let read = (0..given.len()).filter(|&i| gradients.reads(i)).count();
                let fits = read + gradients.outputs().len() <= MOST_BOUND || n == 1 && !reads_output;
                fits.then_some((n, gradients, places))
            });
            let Some((n, gradients, places)) = together else { unreachable!("one at a time is always found") };
            let now: Vec<_> = wanted.drain(..n).collect();
            let mut targets = Vec::new();
            for (&i, place) in now.iter().zip(&places) {
                let Some(place) = *place else { continue };
                let is_whole = inputs[i].shape() == dy.shape();
                if gradients.is_input(place) == Some(values.len()) {
                    // What was added has the gradient of the sum.
                    match is_whole {
                        true => g.add_gradient(values[i], &dy, true)?,
                        false => g.sum_to(&dy, values[i])?,
                    }
                } else if is_whole {
                    targets.extend(g.gradient_target(values[i])?.map(|(target, adds)| (place, target, adds, None)));
                } else {
                    let part = g.zeros(&format!("{} of each", g.gradient_name(values[i])), dy.shape())?;
                    targets.push((place, part, false, Some(values[i])));
                }
            }
            if targets.is_empty() {
                continue;
            }
            let gradients = gradients.with_outputs(targets.iter().map(|(place, ..)| *place));
            let (gradients, read) = gradients.of_what_it_reads();
            let operands: Vec<_> = read.iter().map(|&i| Operand::from(given[i])).collect();
            let outputs: Vec<_> = targets.iter().map(|(_, target, adds, _)| (Operand::from(target), *adds)).collect();
            kernels::map::map(g, &gradients, dy.shape(), &operands, &outputs)?;
            for (_, part, _, value) in &targets {
                if let Some(value) = value {
                    g.sum_to(part, *value)?;
                }
            }
        }
        Ok(())
    }
}
