//! Absolute error and its gradient.

use super::mse_loss::{BINDINGS, ElementLoss, FIELDS, Params, element_loss};
use crate::error::Result;
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::plan::Recorder;
use crate::real::Real;

/// See `shaders/absolute_error.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "absolute_error",
    source: wgsl!("absolute_error"),
    constants: &[],
    params: FIELDS,
    bindings: BINDINGS,
    twin: twin!(twin),
};

/// Records the absolute error of each element, and the gradient of their sum times `scale`, 0 where there is no error.
///
/// # Errors
/// The sizes differ.
pub fn absolute_error(r: &mut Recorder, loss: ElementLoss<'_>) -> Result<()> {
    element_loss(r, &KERNEL, loss)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, targets, scale, losses, dx] = args.all();
    let (x, targets, scale, dx) = (x.read(), targets.read(), scale.read()[0], dx.write());
    for (i, loss) in losses.write().iter_mut().enumerate() {
        let error = x[i] - targets[i];
        *loss = error.abs();
        if p.gradient != 0 {
            dx[i] = if error == F::zero() { F::zero() } else { error.signum() * scale };
        }
    }
}
