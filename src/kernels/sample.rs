//! Draws the next token of every lane of a generator, and feeds it back.

use super::expect_len;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes_u32};
use crate::real::Real;
use crate::rng::threefry2x32;
use crate::tensor::Tensor;

params! { B: u32, V: u32, capacity: u32 }

/// See `shaders/sample.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "sample",
    source: wgsl!("sample", "threefry"),
    constants: &[],
    params: FIELDS,
    bindings: &[
        reads("logits"),
        reads("temperature"),
        reads_u32("seed"),
        writes_u32("counter"),
        writes_u32("tokens"),
        writes_u32("ring"),
    ],
    twin: twin!(twin),
};

/// The tensors of a draw. All but `logits`, `temperature` are u32.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// `[B, V]`
    pub logits: &'a Tensor,
    /// `[B]`; 0 takes the most likely token.
    pub temperature: &'a Tensor,
    /// `[B]`
    pub seed: &'a Tensor,
    /// `[B]`: draws made so far.
    pub counter: &'a Tensor,
    /// `[B]`: the token drawn.
    pub tokens: &'a Tensor,
    /// `[capacity, B]`: the latest tokens drawn.
    pub ring: &'a Tensor,
}

/// Records the draw.
///
/// # Errors
/// The sizes differ.
pub fn sample(g: &mut Graph, draw: Draw<'_>) -> Result<()> {
    let Draw { logits, temperature, seed, counter, tokens, ring } = draw;
    let &[capacity, b] = ring.shape() else {
        return Err(Error::shape("sample", ring.name(), "[capacity, B]", ring.shape()));
    };
    for tensor in [temperature, seed, counter, tokens] {
        expect_len("sample", tensor, b)?;
    }
    let (rows, v) = logits.rows_and_columns();
    if rows != b {
        return Err(Error::shape("sample", logits.name(), format!("[{b}, V]"), logits.shape()));
    }
    if tokens.vocabulary().is_some_and(|vocabulary| vocabulary < v) {
        let expected = format!("tokens of at least {v}, the number of logits");
        return Err(Error::argument("sample", "tokens", expected, format!("`{}`", tokens.name())));
    }
    let params = Params { B: b as u32, V: v as u32, capacity: capacity as u32 };
    g.dispatch(&KERNEL, &[], params, &[logits, temperature, seed, counter, tokens, ring], [b.div_ceil(64), 1, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [logits, temperature, seed, counter, tokens, ring] = args.all();
    let (temperature, seed) = (temperature.read(), seed.read_u32());
    let (counter, tokens, ring) = (counter.write_u32(), tokens.write_u32(), ring.write_u32());
    for (lane, z) in logits.read().chunks_exact(p.V as usize).enumerate() {
        let mut best = 0;
        for (v, &logit) in z.iter().enumerate() {
            if logit > z[best] {
                best = v;
            }
        }
        let heat = temperature[lane];
        if heat > F::zero() {
            let most = z[best];
            let weight = |&z: &F| ((z - most) / heat).exp();
            let bits = threefry2x32([seed[lane], lane as u32], [counter[lane], 0])[0];
            let mut left = F::of(f64::from(bits >> 8) / f64::from(1 << 24)) * z.iter().map(weight).sum();
            let drawn = z.iter().position(|z| {
                left = left - weight(z);
                left < F::zero()
            });
            best = drawn.unwrap_or(best);
        }
        tokens[lane] = best as u32;
        ring[(counter[lane] % p.capacity * p.B) as usize + lane] = best as u32;
        counter[lane] = counter[lane].wrapping_add(1);
    }
}
