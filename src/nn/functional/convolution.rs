//! Convolution over time, as a product with windows of it.

use super::{add, linear, matmul, reshape, transpose};
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::map::{Operand, copy};
use crate::map::Layout;

/// How [`conv1d`] moves its kernel; PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv1dOptions {
    /// Steps from a window to the next.
    pub stride: usize,
    /// Zeros on both sides.
    pub padding: usize,
    /// Steps from an element of a window to the next.
    pub dilation: usize,
    /// Groups of channels, each with outputs of its own.
    pub groups: usize,
}

impl Default for Conv1dOptions {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

/// `y[n, o, l] = bias[o] + Σ weight[o, c, k] x[n, c, stride l + dilation k - padding]` (`torch.nn.functional.conv1d`): `x` `[N, C, L]`,
/// `weight` `[O, C / groups, K]`, `bias` `[O]`, `y` `[N, O, (L + 2 padding - dilation (K - 1) - 1) / stride + 1]`.
///
/// # Errors
/// The shapes do not fit, or the sequence is shorter than the kernel.
pub fn conv1d(g: &mut Graph, x: Var, weight: Var, bias: Option<Var>, options: Conv1dOptions) -> Result<Var> {
    g.check([x, weight])?;
    let Conv1dOptions { stride, padding, dilation, groups } = options;
    // What is larger than any tensor leads nowhere.
    if stride == 0 || dilation == 0 || groups == 0 || padding.max(dilation) > 1 << 30 {
        return Err(Error::argument(
            "conv1d",
            "options",
            "stride, dilation and groups of 1 or more, padding and dilation below 2^30",
            format!("{options:?}"),
        ));
    }
    let &[n, c, l] = g.shape(x) else {
        return Err(Error::shape("conv1d", g.name(x), "[N, C, L]", g.shape(x)));
    };
    let &[o, of_group, k] = g.shape(weight) else {
        return Err(Error::shape("conv1d", g.name(weight), "[O, C / groups, K]", g.shape(weight)));
    };
    if !c.is_multiple_of(groups) || !o.is_multiple_of(groups) || of_group != c / groups {
        let expected = format!("[O, {c} / groups, K] with {groups} groups, that divide both");
        return Err(Error::shape("conv1d", g.name(weight), expected, g.shape(weight)));
    }
    let padded = l + 2 * padding;
    let Some(room) = padded.checked_sub(dilation.saturating_mul(k - 1).saturating_add(1)) else {
        let expected =
            format!("[N, C, L] with L of at least {}", dilation.saturating_mul(k - 1).saturating_add(1) - 2 * padding);
        return Err(Error::shape("conv1d", g.name(x), expected, g.shape(x)));
    };
    let windows = room / stride + 1;
    let columns = unfold(g, x, padding, [n, c, padded], [windows, k], [stride, dilation], groups)?;
    if groups == 1 {
        let columns = reshape(g, columns, &[n, windows, c * k])?;
        let weight = reshape(g, weight, &[o, c * k])?;
        let y = linear(g, columns, weight, bias)?;
        return transpose(g, y, 1, 2);
    }
    let of_groups = o / groups;
    let weight = reshape(g, weight, &[groups, of_groups, of_group * k])?;
    let weight = transpose(g, weight, 1, 2)?;
    let y = matmul(g, columns, weight)?;
    // [groups, N, windows, O / groups] to [N, groups, O / groups, windows]
    let y = reshape(g, y, &[groups, n, windows, of_groups])?;
    let y = transpose(g, y, 2, 3)?;
    let y = transpose(g, y, 0, 1)?;
    let y = reshape(g, y, &[n, o, windows])?;
    let Some(bias) = bias else { return Ok(y) };
    let bias = reshape(g, bias, &[o, 1])?;
    add(g, y, bias)
}

/// The windows of a sequence, side by side: `[groups, N windows, C / groups K]`.
fn unfold(
    g: &mut Graph,
    x: Var,
    padding: usize,
    [n, c, padded]: [usize; 3],
    [windows, k]: [usize; 2],
    [stride, dilation]: [usize; 2],
    groups: usize,
) -> Result<Var> {
    let x_tensor = g.tensor(x)?;
    let middle = Layout { offset: padding, strides: vec![c * padded, padded, 1] };
    let from = if padding == 0 {
        x_tensor.clone()
    } else {
        // What is around it stays 0.
        let from = g.zeros(&format!("{} padded", x_tensor.name()), &[n, c, padded])?;
        copy(g, x_tensor.shape(), (&x_tensor).into(), Operand::strided(&from, middle.clone()), false)?;
        from
    };
    let of_group = c / groups;
    let shape = [groups, n, windows, of_group, k];
    let layout = Layout { offset: 0, strides: vec![of_group * padded, c * padded, stride, padded, dilation] };
    let columns = g.zeros(&format!("windows of {}", x_tensor.name()), &[groups, n * windows, of_group * k])?;
    copy(g, &shape, Operand::strided(&from, layout), Operand::strided(&columns, Layout::dense(&shape)), false)?;
    let y = g.result(columns, &[x]);
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y).filter(|_| g.is_differentiable(x)) else { return Ok(()) };
        let whole = g.zeros(&format!("d {}", from.name()), &[n, c, padded])?;
        g.clear(whole.clone());
        // Windows overlap, their elements of one place in the kernel do not.
        let dense = Layout::dense(&shape).strides;
        for at in 0..k {
            let [from, to] = [
                Layout { offset: at, strides: dense[..4].to_vec() },
                Layout { offset: at * dilation, strides: vec![of_group * padded, c * padded, stride, padded] },
            ];
            copy(g, &shape[..4], Operand::strided(&dy, from), Operand::strided(&whole, to), true)?;
        }
        if padding == 0 {
            return g.add_gradient(x, &whole, false);
        }
        let Some((dx, adds)) = g.gradient_target(x)? else { return Ok(()) };
        let shape = dx.shape().to_vec();
        copy(g, &shape, Operand::strided(&whole, middle), (&dx).into(), adds)
    });
    Ok(y)
}
