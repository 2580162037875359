//! `‖x‖²`, for clipping by the global norm.

use super::{column_sum, expect_len};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32 }

/// See `shaders/squared_norm.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "squared_norm",
    source: wgsl!("squared_norm", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin),
};

/// Elements that a workgroup of 256 threads sums at least.
const SHARE: usize = 4096;

/// Records `y = Σ x²`, `y` of one element.
///
/// # Errors
/// `y` has more than one element.
pub fn squared_norm(r: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
    expect_len("squared_norm", y, 1)?;
    let workgroups = x.len().div_ceil(SHARE).min(256);
    let params = Params { n: x.len() as u32 };
    if workgroups == 1 {
        return r.dispatch(&KERNEL, &[], params, &[x, y], [1, 1, 1]);
    }
    let parts = r.zeros("squared norm in parts", &[workgroups, 1])?;
    r.dispatch(&KERNEL, &[], params, &[x, &parts], [workgroups, 1, 1])?;
    column_sum::column_sum(r, &parts, y, false)
}

fn twin<F: Real>(_: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    let y = y.write();
    y.fill(F::zero());
    for (i, x) in x.read().chunks(256).enumerate() {
        let part = i % y.len();
        y[part] = y[part] + sum_of_squares(x);
    }
}

/// In eight sums side by side, which the compiler makes one vector of.
fn sum_of_squares<F: Real>(x: &[F]) -> F {
    let mut sums = [F::zero(); 8];
    let (eights, rest) = x.as_chunks::<8>();
    for eight in eights {
        sums.iter_mut().zip(eight).for_each(|(sum, &x)| *sum = *sum + x * x);
    }
    sums.into_iter().chain(rest.iter().map(|&x| x * x)).sum()
}
