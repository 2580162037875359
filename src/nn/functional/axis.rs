//! Axes by number.

use crate::error::{Error, Result};
use crate::graph::{Graph, Var};

/// The axis of a value that a number means: below 0, counted from the last.
pub(super) fn axis_of(g: &Graph, op: &'static str, x: Var, axis: isize) -> Result<usize> {
    g.check([x])?;
    let rank = g.shape(x).len();
    number(rank, axis).ok_or_else(|| Error::argument(op, "axis", range(rank), axis))
}

/// The axis that a number means where there are `rank` of them.
pub(super) fn number(rank: usize, axis: isize) -> Option<usize> {
    let from_first = if axis < 0 { rank.checked_sub(axis.unsigned_abs())? } else { axis.unsigned_abs() };
    (from_first < rank).then_some(from_first)
}

pub(super) fn range(rank: usize) -> String {
    format!("from -{rank} to {}", rank as isize - 1)
}
