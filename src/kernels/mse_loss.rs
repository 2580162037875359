//! Squared error and its gradient.

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { pub(super) n: u32, gradient: u32 }

/// Of every kernel of a loss of each element.
pub(super) const BINDINGS: &[Binding] = &[reads("x"), reads("targets"), reads("scale"), writes("losses"), writes("dx")];

/// See `shaders/mse_loss.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "mse_loss",
    source: wgsl!("mse_loss"),
    constants: &[],
    params: FIELDS,
    bindings: BINDINGS,
    twin: twin!(twin),
};

/// The tensors of a loss of each element: all of one size, but for `scale`.
#[derive(Clone, Copy, Debug)]
pub struct ElementLoss<'a> {
    /// What the network says, `[n]`.
    pub x: &'a Tensor,
    /// What it should say, `[n]`.
    pub targets: &'a Tensor,
    /// What the sum of the losses is multiplied with, `[1]`.
    pub scale: &'a Tensor,
    /// The loss of each element, not scaled, `[n]`.
    pub losses: &'a Tensor,
    /// The gradient, `[n]`, if it is wanted.
    pub dx: Option<&'a Tensor>,
}

/// Records a loss of each element by its kernel, which has these parameters and bindings.
///
/// # Errors
/// The sizes differ.
pub(super) fn element_loss(r: &mut Recorder, kernel: &'static Kernel, loss: ElementLoss<'_>) -> Result<()> {
    let ElementLoss { x, targets, scale, losses, dx } = loss;
    let n = x.len();
    expect_len(kernel.name, targets, n)?;
    expect_len(kernel.name, losses, n)?;
    expect_len(kernel.name, scale, 1)?;
    dx.map_or(Ok(()), |dx| expect_len(kernel.name, dx, n))?;
    let dummy = r.zeros("no gradient", &[1])?;
    let params = Params { n: n as u32, gradient: dx.is_some().into() };
    r.dispatch(kernel, &[], params, &[x, targets, scale, losses, dx.unwrap_or(&dummy)], striding_grid(n))
}

/// Records the squared error of each element, and the gradient of their sum times `scale`.
///
/// # Errors
/// The sizes differ.
pub fn mse_loss(r: &mut Recorder, loss: ElementLoss<'_>) -> Result<()> {
    element_loss(r, &KERNEL, loss)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, targets, scale, losses, dx] = args.all();
    let (x, targets, scale, dx) = (x.read(), targets.read(), scale.read()[0], dx.write());
    for (i, loss) in losses.write().iter_mut().enumerate() {
        let error = x[i] - targets[i];
        *loss = error * error;
        if p.gradient != 0 {
            dx[i] = (error + error) * scale;
        }
    }
}
