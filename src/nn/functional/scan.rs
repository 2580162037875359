//! A cell of one's own, over all steps of a sequence.

use super::{stack, unbind};
use crate::error::Result;
use crate::graph::{Graph, Var};

/// Repeats a step over the first axis of `x` `[T, ..]`: from an entry of it and the states so far, the step makes the states to come
/// and its output. Gives the outputs, `[T, ..]`, and the last states; gradients go back through all steps.
///
/// The step is recorded for each entry, so a plan has T times its commands; a [`super::recurrence`] of a cell that is there is one.
///
/// ```
/// use elman::nn::functional::{map, scan};
/// use elman::{Device, Graph};
///
/// // A mean that forgets: h ← 0.5 h + 0.5 x
/// let device = Device::cpu();
/// let mut g = Graph::without_parameters(&device);
/// let x = g.input(&device.upload("x", &[3, 1], &[4., 8., 0.])?)?;
/// let h = g.input(&device.upload("h", &[1], &[0.])?)?;
/// let (all, [last]) = scan(&mut g, x, [h], |g, x, [h]| {
///     let h = map(g, [h, x], |[h, x]| h * 0.5 + x * 0.5)?;
///     Ok((h, [h]))
/// })?;
/// let (all, last) = (g.tensor(all)?, g.tensor(last)?);
/// g.finish()?.run()?;
/// assert_eq!((all.to_vec()?, last.to_vec()?), (vec![2., 5., 2.5], vec![2.5]));
/// # Ok::<(), elman::Error>(())
/// ```
///
/// # Errors
/// `x` has one dimension, or outputs differ in shape; the step's own.
pub fn scan<const S: usize>(
    g: &mut Graph,
    x: Var,
    mut states: [Var; S],
    mut step: impl FnMut(&mut Graph, Var, [Var; S]) -> Result<(Var, [Var; S])>,
) -> Result<(Var, [Var; S])> {
    let mut outputs = Vec::new();
    for x in unbind(g, x)? {
        let (output, next) = step(g, x, states)?;
        outputs.push(output);
        states = next;
    }
    Ok((stack(g, &outputs, 0)?, states))
}
