//! Cuts a batch of windows out of a text that lies on the device.

use super::{expect, expect_indices, expect_len, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads_u32, twin, wgsl, writes_u32};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::{NO_TARGET, Tensor};

params! { T: u32, B: u32, K: u32, length: u32, batches: u32 }

/// See `shaders/windows.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "windows",
    source: wgsl!("windows"),
    constants: &[],
    params: FIELDS,
    bindings: &[
        reads_u32("corpus"),
        reads_u32("order"),
        reads_u32("clock"),
        writes_u32("tokens"),
        writes_u32("targets"),
    ],
    twin: twin!(twin),
};

/// Records the cut of batch `clock[1]`, modulo the number of batches. `corpus` `[N]`, `order` `[length]` (window starts), `clock` `[2]`, `tokens`
/// `[T, B]`, `targets` `[K, B]` with K = 1 (what follows the window) or T (what follows each character); all u32.
///
/// # Errors
/// The shapes do not fit.
pub fn windows(
    r: &mut Recorder,
    corpus: &Tensor,
    order: &Tensor,
    clock: &Tensor,
    tokens: &Tensor,
    targets: &Tensor,
) -> Result<()> {
    let (&[t, b], &[k, _]) = (tokens.shape(), targets.shape()) else {
        return Err(Error::shape("windows", tokens.name(), "[T, B]", tokens.shape()));
    };
    if k != 1 && k != t {
        return Err(Error::shape("windows", targets.name(), format!("[1, {b}] or [{t}, {b}]"), targets.shape()));
    }
    expect("windows", targets, &[k, b])?;
    expect_indices("windows", order, corpus.len().saturating_sub(t))?;
    let vocabulary = corpus.vocabulary().unwrap_or(usize::MAX);
    if tokens.vocabulary().is_some_and(|least| least < vocabulary) {
        let expected = format!("tokens of at least {vocabulary}, the corpus's");
        return Err(Error::argument("windows", "tokens", expected, format!("`{}`", tokens.name())));
    }
    if targets.classes().is_some_and(|least| least < vocabulary) {
        let expected = format!("targets of at least {vocabulary} classes, the corpus's vocabulary");
        return Err(Error::argument("windows", "targets", expected, format!("`{}`", targets.name())));
    }
    expect_len("windows", clock, 2)?;
    let batches = order.len().div_ceil(b);
    let params = Params { T: t as u32, B: b as u32, K: k as u32, length: order.len() as u32, batches: batches as u32 };
    r.dispatch(&KERNEL, &[], params, &[corpus, order, clock, tokens, targets], striding_grid((t + k) * b))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [corpus, order, clock, tokens, targets] = args.all();
    let (corpus, order, batch) = (corpus.read_u32(), order.read_u32(), (clock.read_u32()[1] % p.batches) as usize);
    let (b, skip) = (p.B as usize, (p.T - p.K + 1) as usize);
    let token = |i: usize, skip: usize| Some(corpus[*order.get(batch * b + i % b)? as usize + i / b + skip]);
    for (i, slot) in tokens.write_u32().iter_mut().enumerate() {
        *slot = token(i, 0).unwrap_or(0);
    }
    for (i, slot) in targets.write_u32().iter_mut().enumerate() {
        *slot = token(i, skip).unwrap_or(NO_TARGET);
    }
}
