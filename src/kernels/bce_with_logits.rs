//! Binary cross-entropy and its gradient, from logits.

use super::mse_loss::{BINDINGS, ElementLoss, FIELDS, Params, element_loss};
use crate::error::Result;
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::plan::Recorder;
use crate::real::Real;

/// See `shaders/bce_with_logits.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "bce_with_logits",
    source: wgsl!("bce_with_logits", "math"),
    constants: &[],
    params: FIELDS,
    bindings: BINDINGS,
    twin: twin!(twin),
};

/// Records the binary cross-entropy of each logit, and the gradient of their sum times `scale`. The targets are
/// probabilities, 0 to 1.
///
/// # Errors
/// The sizes differ.
pub fn bce_with_logits(r: &mut Recorder, loss: ElementLoss<'_>) -> Result<()> {
    element_loss(r, &KERNEL, loss)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, targets, scale, losses, dx] = args.all();
    let (x, targets, scale, dx) = (x.read(), targets.read(), scale.read()[0], dx.write());
    let (zero, one) = (F::zero(), F::one());
    for (i, loss) in losses.write().iter_mut().enumerate() {
        let (x, target) = (x[i], targets[i]);
        let positive = if x < zero { zero } else { x };
        *loss = positive - x * target + (-x.abs()).exp().ln_1p();
        if p.gradient != 0 {
            dx[i] = (one / (one + (-x).exp()) - target) * scale;
        }
    }
}
