//! The weight of each row of a loss, and what makes the weighted sum a mean.

use super::{expect_len, expect_lengths};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::{DType, Tensor};

params! {
    R: u32, columns: u32, mean: u32, period: u32, stride: u32, B: u32, inner: u32, V: u32, ignore_index: u32, classes: u32
}

/// See `shaders/row_weights.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "row_weights",
    source: wgsl!("row_weights", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[
        reads("weights"),
        reads_u32("lengths"),
        reads_u32("targets"),
        reads("class_weights"),
        writes("w"),
        writes("scale"),
    ],
    twin: twin!(twin),
};

/// What makes some rows count more than others, or not at all.
#[derive(Clone, Copy, Debug)]
pub struct RowWeights<'a> {
    /// Weights, and how many rows one after the other share each; they repeat.
    pub weights: Option<(&'a Tensor, usize)>,
    /// `[B]` from [`crate::Device::lengths`], and how many rows a step of an entry has: rows are `[T, B, inner]`.
    pub lengths: Option<(&'a Tensor, usize)>,
    /// The classes of rows, if they have any.
    pub targets: Option<Targets<'a>>,
    /// Elements that share a row's weight.
    pub columns: usize,
    /// Whether `scale` makes a mean.
    pub mean: bool,
}

/// The classes of rows.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// One u32 for each row.
    pub targets: &'a Tensor,
    /// How many classes there are; a row whose target is this or more does not count.
    pub v: usize,
    /// A class whose rows do not count.
    pub ignore_index: Option<u32>,
    /// `[V]`: what the rows of each class count.
    pub class_weights: Option<&'a Tensor>,
    /// Whether these are in `scale` alone, and not in `w`, because what makes the losses has them.
    pub in_scale_alone: bool,
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
    if let Some(Targets { targets, v, class_weights, .. }) = targets {
        expect_len(op, targets, w.len())?;
        class_weights.map_or(Ok(()), |weights| expect_len(op, weights, v))?;
    }
    r.check_turns(w, w.len().div_ceil(256))?;
    let (no_f32, no_u32) = (r.zeros("none", &[1])?, r.device().zeros("none", &[1], DType::U32)?);
    let (period, stride) = weights.map_or((0, 1), |(weights, stride)| (weights.len(), stride));
    let (batch, inner) = lengths.map_or((0, 1), |(lengths, inner)| (lengths.len(), inner));
    let class_weights = targets.and_then(|targets| targets.class_weights);
    let params = Params {
        R: w.len() as u32,
        columns: columns as u32,
        mean: mean.into(),
        period: period as u32,
        stride: stride as u32,
        B: batch as u32,
        inner: inner as u32,
        V: targets.map_or(0, |targets| targets.v as u32),
        ignore_index: targets.and_then(|targets| targets.ignore_index).unwrap_or(u32::MAX),
        classes: match targets {
            Some(Targets { class_weights: Some(_), in_scale_alone, .. }) => 1 + u32::from(in_scale_alone),
            _ => 0,
        },
    };
    let weights = weights.map_or(&no_f32, |(weights, _)| weights);
    let lengths = lengths.map_or(&no_u32, |(lengths, _)| lengths);
    let targets = targets.map_or(&no_u32, |targets| targets.targets);
    let class_weights = class_weights.unwrap_or(&no_f32);
    r.dispatch(&KERNEL, &[], params, &[weights, lengths, targets, class_weights, w, scale], [1, 1, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [weights, lengths, targets, class_weights, w, scale] = args.all();
    let (weights, lengths, targets, w) = (weights.read(), lengths.read_u32(), targets.read_u32(), w.write());
    let (class_weights, mut sum) = (class_weights.read(), F::zero());
    for (i, w) in w.iter_mut().enumerate() {
        let row = i / p.inner as usize;
        let is_past = p.B != 0 && row / p.B as usize >= lengths[row % p.B as usize] as usize;
        let is_left_out = p.V != 0 && (targets[i] >= p.V || targets[i] == p.ignore_index);
        *w = match p.period {
            _ if is_past || is_left_out => F::zero(),
            0 => F::one(),
            period => weights[i / p.stride as usize % period as usize],
        };
        let counts = match p.classes {
            0 => *w,
            _ if is_left_out => F::zero(),
            _ => *w * class_weights[targets[i] as usize],
        };
        sum = sum + counts;
        if p.classes == 1 {
            *w = counts;
        }
    }
    let sum = F::of(p.columns.into()) * sum;
    scale.write()[0] = match p.mean {
        0 => F::one(),
        _ if sum == F::zero() => F::zero(),
        _ => F::one() / sum,
    };
}
