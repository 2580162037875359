//! Normalization: of each row, or of each channel over a batch.

use super::{map, mean_axis, reshape, transpose};
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels;
use crate::map::Program;
use crate::tensor::Tensor;

/// `y = (x - mean) / √(var + eps) · weight + bias`, mean and variance those of the last axis (`torch.nn.functional.layer_norm`; Ba, Kiros
/// and Hinton 2016): `x` `[.., C]`, `weight`, `bias` `[C]`, both or neither.
///
/// # Errors
/// The shapes do not fit.
pub fn layer_norm(g: &mut Graph, x: Var, affine: Option<(Var, Var)>, eps: f32) -> Result<Var> {
    g.check([x])?;
    let channels = g.shape(x).last().copied().unwrap_or(1);
    check_channels(g, "layer_norm", channels, affine.iter().flat_map(|&(weight, bias)| [weight, bias]))?;
    let (mean, var) = moments(g, x)?;
    normalize(g, x, mean, var, affine, eps)
}

/// `y = x / √(mean x² + eps) · weight`, the mean that of the last axis (`torch.nn.functional.rms_norm`; Zhang and Sennrich 2019): `x`
/// `[.., C]`, `weight` `[C]`.
///
/// # Errors
/// The shapes do not fit.
pub fn rms_norm(g: &mut Graph, x: Var, weight: Option<Var>, eps: f32) -> Result<Var> {
    g.check([x])?;
    let channels = g.shape(x).last().copied().unwrap_or(1);
    check_channels(g, "rms_norm", channels, weight)?;
    let squares = map(g, [x], |[x]| x.square())?;
    let mean = mean_of_rows(g, squares)?;
    match weight {
        None => map(g, [x, mean], |[x, mean]| x / (mean + eps).sqrt()),
        Some(weight) => map(g, [x, mean, weight], |[x, mean, weight]| x / (mean + eps).sqrt() * weight),
    }
}

/// What batches had so far, to normalize by where there is no training: `[C]` each.
#[derive(Clone, Copy, Debug)]
pub struct RunningMoments<'a> {
    /// The mean.
    pub mean: &'a Tensor,
    /// The variance, without bias.
    pub var: &'a Tensor,
    /// What a batch counts: `mean ← (1 - momentum) mean + momentum · its mean`. PyTorch's is 0.1.
    pub momentum: f32,
}

/// `y = (x - mean) / √(var + eps) · weight + bias`, for each channel over all else (`torch.nn.functional.batch_norm`; Ioffe and Szegedy
/// 2015): `x` `[N, C]` or `[N, C, L]`, `weight`, `bias` `[C]`, both or neither.
///
/// In a training it is normalized by the batch, and each run moves the running moments; in a graph that records no gradients, by
/// the running moments, if there are any.
///
/// # Errors
/// The shapes do not fit; a batch of one value for each channel, in a training.
pub fn batch_norm(
    g: &mut Graph,
    x: Var,
    running: Option<RunningMoments<'_>>,
    affine: Option<(Var, Var)>,
    eps: f32,
) -> Result<Var> {
    g.check([x])?;
    let shape = g.shape(x).to_vec();
    let (&[n, c] | &[n, c, _]) = &shape[..] else {
        return Err(Error::shape("batch_norm", g.name(x), "[N, C] or [N, C, L]", &shape));
    };
    check_channels(g, "batch_norm", c, affine.iter().flat_map(|&(weight, bias)| [weight, bias]))?;
    for tensor in running.iter().flat_map(|running| [running.mean, running.var]) {
        if tensor.shape() != [c] {
            return Err(Error::shape("batch_norm", tensor.name(), format!("[{c}]"), tensor.shape()));
        }
    }
    // Channels last, as layers' features are.
    let count = shape.iter().product::<usize>() / c;
    let rows = if shape.len() == 3 { transpose(g, x, 1, 2)? } else { x };
    let rows = reshape(g, rows, &[count, c])?;
    let (mean, var) = match running {
        Some(running) if !g.is_training() => (g.input(running.mean)?, g.input(running.var)?),
        _ if count < 2 => {
            let expected = "of more than one value for each channel, to have a variance";
            return Err(Error::shape("batch_norm", g.name(x), expected, &shape));
        }
        _ => {
            let mean = mean_axis(g, rows, 0)?;
            let squares = map(g, [rows, mean], |[x, mean]| (x - mean).square())?;
            let var = mean_axis(g, squares, 0)?;
            if let Some(RunningMoments { mean: running_mean, var: running_var, momentum }) = running {
                let unbiased = count as f32 / (count - 1) as f32;
                move_towards(g, running_mean, mean, momentum, 1.0)?;
                move_towards(g, running_var, var, momentum, unbiased)?;
            }
            (mean, var)
        }
    };
    let y = normalize(g, rows, mean, var, affine, eps)?;
    match shape.len() {
        2 => Ok(y),
        _ => {
            let y = reshape(g, y, &[n, count / n, c])?;
            transpose(g, y, 1, 2)
        }
    }
}

/// `running ← (1 - momentum) running + momentum · scale · value`
fn move_towards(g: &mut Graph, running: &Tensor, value: Var, momentum: f32, scale: f32) -> Result<()> {
    let value = g.tensor(value)?;
    let moved = g.zeros(&format!("{} moved", running.name()), running.shape())?;
    let program = Program::new(|[running, value]| running * (1.0 - momentum) + value * (momentum * scale));
    kernels::map::map(g, &program, running.shape(), &[running.into(), (&value).into()], &[((&moved).into(), false)])?;
    g.copy(&moved, running)
}

/// Mean and variance (with bias) of the last axis, which stays, with one entry.
fn moments(g: &mut Graph, x: Var) -> Result<(Var, Var)> {
    let mean = mean_of_rows(g, x)?;
    let squares = map(g, [x, mean], |[x, mean]| (x - mean).square())?;
    Ok((mean, mean_of_rows(g, squares)?))
}

fn mean_of_rows(g: &mut Graph, x: Var) -> Result<Var> {
    let mean = mean_axis(g, x, -1)?;
    let mut shape = g.shape(x).to_vec();
    if let Some(last) = shape.last_mut() {
        *last = 1;
    }
    reshape(g, mean, &shape)
}

/// Refuses what is not of one number for each channel, and would broadcast.
fn check_channels(g: &Graph, op: &'static str, channels: usize, of: impl IntoIterator<Item = Var>) -> Result<()> {
    for value in of {
        g.check([value])?;
        if g.shape(value) != [channels] {
            return Err(Error::shape(op, g.name(value), format!("[{channels}]"), g.shape(value)));
        }
    }
    Ok(())
}

fn normalize(g: &mut Graph, x: Var, mean: Var, var: Var, affine: Option<(Var, Var)>, eps: f32) -> Result<Var> {
    match affine {
        None => map(g, [x, mean, var], |[x, mean, var]| (x - mean) / (var + eps).sqrt()),
        Some((weight, bias)) => map(g, [x, mean, var, weight, bias], |[x, mean, var, weight, bias]| {
            (x - mean) / (var + eps).sqrt() * weight + bias
        }),
    }
}
