//! The kernels: one file for each `shaders/<name>.wgsl`, with its parameters, shape checks, grid and CPU twin.
//!
//! Most files have a function that checks shapes and records the kernel with a [`crate::Recorder`]; the differentiable
//! operations made of them are in [`crate::nn::functional`]. The kernels of cells are recorded by [`sequence`], and [`cell`]
//! lists the cells; the kernels of optimizers are recorded by [`Update`].

pub mod accumulate;
pub mod accuracy;
pub mod adagrad;
pub mod adam;
pub mod add_micro_batch;
pub mod cell;
pub mod clip;
pub mod column_sum;
pub mod confusion;
pub mod count_targets;
pub mod cross_entropy;
pub mod dropout;
pub mod gate;
pub mod gather;
pub mod generate;
pub mod gru_backward;
pub mod gru_forward;
pub mod last_step;
pub mod log_softmax;
pub mod log_softmax_backward;
pub mod lstm_backward;
pub mod lstm_forward;
pub mod map;
pub mod matmul;
pub mod moving_average;
pub mod nll_loss;
pub mod pack;
pub mod peephole_products;
pub mod record_loss;
pub mod reset_gru_backward;
pub mod reset_gru_forward;
pub mod reset_rows;
pub mod resets;
pub mod reverse;
pub mod reverse_index;
pub mod rms_prop;
pub mod rnn_backward;
pub mod rnn_forward;
pub mod row_weights;
pub mod sample;
pub mod segment_sum;
pub mod sequence;
pub mod sgd;
pub mod squared_norm;
pub mod sum;
pub mod weigh;
pub mod windows;

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::plan::Recorder;
use crate::tensor::Tensor;

/// All kernels.
pub const ALL: &[&Kernel] = &[
    &accumulate::KERNEL,
    &accuracy::KERNEL,
    &adagrad::KERNEL,
    &adam::KERNEL,
    &add_micro_batch::KERNEL,
    &clip::KERNEL,
    &column_sum::KERNEL,
    &confusion::KERNEL,
    &count_targets::KERNEL,
    &cross_entropy::KERNEL,
    &dropout::KERNEL,
    &gate::KERNEL,
    &gather::KERNEL,
    &generate::KERNEL,
    &gru_backward::KERNEL,
    &gru_forward::KERNEL,
    &last_step::KERNEL,
    &log_softmax::KERNEL,
    &log_softmax_backward::KERNEL,
    &lstm_backward::KERNEL,
    &lstm_forward::KERNEL,
    &matmul::KERNEL,
    &moving_average::KERNEL,
    &nll_loss::KERNEL,
    &pack::KERNEL,
    &peephole_products::KERNEL,
    &record_loss::KERNEL,
    &reset_gru_backward::KERNEL,
    &reset_gru_forward::KERNEL,
    &reset_rows::KERNEL,
    &resets::KERNEL,
    &reverse::KERNEL,
    &reverse_index::KERNEL,
    &rms_prop::KERNEL,
    &rnn_backward::KERNEL,
    &rnn_forward::KERNEL,
    &row_weights::KERNEL,
    &sample::KERNEL,
    &segment_sum::KERNEL,
    &sgd::KERNEL,
    &squared_norm::KERNEL,
    &sum::KERNEL,
    &weigh::KERNEL,
    &windows::KERNEL,
];

/// One line per argument: the shape it must have.
fn expect(op: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        return Ok(());
    }
    Err(Error::shape(op, tensor.name(), format!("{shape:?}"), tensor.shape()))
}

/// One line per argument whose shape is free but whose size is not.
pub(crate) fn expect_len(op: &'static str, tensor: &Tensor, len: usize) -> Result<()> {
    if tensor.len() == len {
        return Ok(());
    }
    Err(Error::shape(op, tensor.name(), format!("of {len} elements"), tensor.shape()))
}

/// An index that a kernel follows without looking: every write to it is checked to be below its vocabulary, which must
/// not exceed the `rows` there are.
pub(crate) fn expect_indices(op: &'static str, index: &Tensor, rows: usize) -> Result<()> {
    match index.vocabulary() {
        Some(vocabulary) if vocabulary <= rows => Ok(()),
        other => {
            let expected = format!("a tensor of `Device::tokens` with at most {rows}");
            let got = other.map_or("unchecked".into(), |vocabulary| format!("one with {vocabulary}"));
            Err(Error::argument(op, "index", expected, format!("{got} (`{}`)", index.name())))
        }
    }
}

/// Targets of a loss over `v` classes, checked on every write.
pub(crate) fn expect_targets(op: &'static str, targets: &Tensor, v: usize) -> Result<()> {
    match targets.classes() {
        Some(classes) if classes <= v => Ok(()),
        other => {
            let expected = format!("a tensor of `Device::targets` with at most {v} classes");
            let got = other.map_or("unchecked".into(), |classes| format!("one with {classes}"));
            Err(Error::argument(op, "targets", expected, format!("{got} (`{}`)", targets.name())))
        }
    }
}

/// Lengths of a batch of sequences of at most `steps` steps, checked on every write.
pub(crate) fn expect_lengths(op: &'static str, lengths: &Tensor, batch: usize, steps: usize) -> Result<()> {
    if lengths.shape() != [batch] {
        let expected = format!("[{batch}], a length for each entry of the batch");
        return Err(Error::shape(op, lengths.name(), expected, lengths.shape()));
    }
    let got = match lengths.longest() {
        Some(longest) if longest <= steps => return Ok(()),
        Some(longest) => format!("`{}`, which may hold up to {longest}", lengths.name()),
        None => format!("`{}`, which is not checked", lengths.name()),
    };
    Err(Error::argument(
        op,
        "lengths",
        format!("made by `Device::lengths` for at most the {steps} steps there are"),
        got,
    ))
}

/// What an optimizer's kernel works on: all parameters of a network as one block.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The gradient, `[n]`.
    pub gradient: &'a Tensor,
    /// The learning rate, `[1]`; below 0, nothing is updated.
    pub lr: &'a Tensor,
    /// Updates done, this one included: the first element, u32.
    pub clock: &'a Tensor,
    /// The parameters, `[n]`.
    pub parameters: &'a Tensor,
    /// What the optimizer remembers from step to step, `[n]` each; of any size if its settings have no use for it.
    pub moments: &'a [Tensor],
}

impl Update<'_> {
    /// n
    pub(crate) fn len(self) -> usize {
        self.parameters.len()
    }

    /// Records the update by a kernel that binds `g`, `lr`, `clock` and `w`, as far as it names them, and the moments, one after
    /// the other; each moment with whether there is a use for it.
    ///
    /// # Errors
    /// The sizes differ.
    pub(crate) fn record<P: bytemuck::Pod>(
        self,
        r: &mut Recorder,
        kernel: &'static Kernel,
        params: P,
        moments: &[(&'static str, bool)],
    ) -> Result<()> {
        let op = kernel.name;
        expect_len(op, self.gradient, self.len())?;
        if self.moments.len() != moments.len() {
            return Err(Error::argument(op, "moments", format!("{} tensors", moments.len()), self.moments.len()));
        }
        for (moment, _) in self.moments.iter().zip(moments).filter(|(_, (_, used))| *used) {
            expect_len(op, moment, self.len())?;
        }
        let mut moments = self.moments.iter();
        let tensor = |name: &str| match name {
            "g" => Some(self.gradient),
            "lr" => Some(self.lr),
            "clock" => Some(self.clock),
            "w" => Some(self.parameters),
            _ => moments.next(),
        };
        let tensors: Option<Vec<_>> = kernel.bindings.iter().map(|binding| binding.name).map(tensor).collect();
        let tensors = tensors.filter(|_| moments.next().is_none());
        let tensors = tensors.unwrap_or_else(|| unreachable!("`{op}` binds as many moments as its rule has"));
        r.dispatch(kernel, &[], params, &tensors, striding_grid(self.len()))
    }
}

/// The grid of a kernel whose threads, 256 to a workgroup, stride over `n` elements.
fn striding_grid(n: usize) -> [usize; 3] {
    [n.div_ceil(256).min(65_535), 1, 1]
}

/// `n` workgroups over x and y: neither dimension exceeds WebGPU's 65,535.
fn folded_grid(n: usize) -> (usize, usize) {
    let x = n.min(65_535);
    (x, n.div_ceil(x))
}

/// The product of sizes, which may be more than 32 bits hold.
fn product(sizes: &[usize]) -> u64 {
    sizes.iter().map(|&size| size as u64).product()
}

/// Values of which a sum, or a count, is one workgroup's: 256 for each of its threads.
const MOST_OF_ONE_WORKGROUP: usize = 1 << 16;

/// Multiplications and additions from which on a larger tile, slower to compile, is worth it on a software driver.
const LARGE_TILE_FLOPS: u64 = 100_000_000;

/// How many slices to cut a sum of `terms` into, so that a wide device has `workgroups * slices`, of 64 threads, near 256 of them;
/// 1 where slices would only cost, since another dispatch must sum them.
fn slices(wide: bool, workgroups: usize, terms: usize) -> usize {
    if !wide || terms < 2048 { 1 } else { (256 / workgroups).min(terms / 512).max(1) }
}
