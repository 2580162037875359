//! The weight of each row of a loss, and what makes the weighted sum a mean.

use super::{expect_len, expect_lengths};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::{DType, Tensor};

params! {
    R: u32, columns: u32, mean: u32, period: u32, stride: u32, B: u32, inner: u32, V: u32, ignore_index: u32
}

/// See `shaders/row_weights.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "row_weights",
    source: wgsl!("row_weights", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("weights"), reads_u32("lengths"), reads_u32("targets"), writes("w"), writes("scale")],
    twin: twin!(twin),
};

/// What makes some rows count more than others, or not at all.
#[derive(Clone, Copy, Debug)]
pub struct RowWeights<'a> {
    /// Weights, and how many rows one after the other share each; they repeat.
    pub weights: Option<(&'a Tensor, usize)>,
    /// `[B]` from [`crate::Device::lengths`], and how many rows a step of an entry has: rows are `[T, B, inner]`.
    pub lengths: Option<(&'a Tensor, usize)>,
    /// One u32 for each row, the classes V, and a class that does not count.
    pub targets: Option<(&'a Tensor, usize, Option<u32>)>,
    /// Elements that share a row's weight.
    pub columns: usize,
    /// Whether `scale` makes a mean.
    pub mean: bool,
}

/// Records the weight of each row, `w` `[R]`, and `scale` `[1]`: 1 / (columns Σ w), 0 if that sum is 0; 1 if it is to
/// make no mean.
///
/// # Errors
/// The sizes do not fit.
pub fn row_weights(r: &mut Recorder, rows: RowWeights<'_>, w: &Tensor, scale: &Tensor) -> Result<()> {
    let op = "row_weights";
    let RowWeights { weights, lengths, targets, columns, mean } = rows;
    expect_len(op, scale, 1)?;
    if let Some((weights, stride)) = weights
        && (stride == 0 || !w.len().is_multiple_of(stride.saturating_mul(weights.len())))
    {
        return Err(Error::shape(op, weights.name(), format!("a part of {} rows", w.len()), weights.shape()));
    }
    if let Some((lengths, inner)) = lengths {
        let steps = w.len() / inner.max(1) / lengths.len();
        if inner == 0 || w.len() != steps * lengths.len() * inner {
            return Err(Error::shape(op, lengths.name(), format!("a part of {} rows", w.len()), lengths.shape()));
        }
        expect_lengths(op, lengths, lengths.len(), steps)?;
    }
    if let Some((targets, ..)) = targets {
        expect_len(op, targets, w.len())?;
    }
    r.check_turns(w, w.len().div_ceil(256))?;
    let (no_f32, no_u32) = (r.zeros("none", &[1])?, r.device().zeros("none", &[1], DType::U32)?);
    let (period, stride) = weights.map_or((0, 1), |(weights, stride)| (weights.len(), stride));
    let (batch, inner) = lengths.map_or((0, 1), |(lengths, inner)| (lengths.len(), inner));
    let (v, ignore_index) = targets.map_or((0, None), |(_, v, ignore_index)| (v, ignore_index));
    let params = Params {
        R: w.len() as u32,
        columns: columns as u32,
        mean: mean.into(),
        period: period as u32,
        stride: stride as u32,
        B: batch as u32,
        inner: inner as u32,
        V: v as u32,
        ignore_index: ignore_index.unwrap_or(u32::MAX),
    };
    let weights = weights.map_or(&no_f32, |(weights, _)| weights);
    let lengths = lengths.map_or(&no_u32, |(lengths, _)| lengths);
    let targets = targets.map_or(&no_u32, |(targets, ..)| targets);
    r.dispatch(&KERNEL, &[], params, &[weights, lengths, targets, w, scale], [1, 1, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [weights, lengths, targets, w, scale] = args.all();
    let (weights, lengths, targets, w) = (weights.read(), lengths.read_u32(), targets.read_u32(), w.write());
    for (i, w) in w.iter_mut().enumerate() {
        let row = i / p.inner as usize;
        let is_past = p.B != 0 && row / p.B as usize >= lengths[row % p.B as usize] as usize;
        let is_left_out = p.V != 0 && (targets[i] >= p.V || targets[i] == p.ignore_index);
        *w = match p.period {
            _ if is_past || is_left_out => F::zero(),
            0 => F::one(),
            period => weights[i / p.stride as usize % period as usize],
        };
    }
    let sum = F::of(p.columns.into()) * w.iter().copied().sum();
    scale.write()[0] = match p.mean {
        0 => F::one(),
        _ if sum == F::zero() => F::zero(),
        _ => F::one() / sum,
    };
}
