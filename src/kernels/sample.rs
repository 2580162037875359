//! Draws the next token of every lane of a generator, and feeds it back.

use rayon::prelude::*;

use super::{expect_len, folded_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes_u32};
use crate::plan::Recorder;
use crate::real::Real;
use crate::rng::threefry2x32;
use crate::tensor::Tensor;

params! { B: u32, V: u32, capacity: u32 }

/// See `shaders/sample.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "sample",
    source: wgsl!("sample", "draw", "threefry", "reduce", "math"),
    constants: &[],
    params: FIELDS,
    bindings: &[
        reads("logits"),
        reads("shape"),
        reads_u32("control"),
        writes_u32("history"),
        writes_u32("tokens"),
        writes_u32("ring"),
    ],
    twin: twin!(twin),
};

/// The tensors of a draw. All but `shape` are u32.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// `[B, 4]`: temperature (0 takes the most likely token), top-p (1: all), min-p (0: all), and the penalty of repeated tokens (1:
    /// none).
    pub shape: &'a Tensor,
    /// `[B, 6]`: seed, the lane whose draws they are, top-k (0: all), stop token, token that is never drawn ([`crate::NO_TARGET`]:
    /// none), and how many of the latest tokens the penalty is for (0: off).
    pub control: &'a Tensor,
    /// `[1 + V, B]`, but laid out as `[B]`, the draws made so far, and `[B, V]`, the place where each token was last: draw n has
    /// the place n + [`FIRST_PLACE`], what was read before it the places below, and 0 is none.
    pub history: &'a Tensor,
    /// `[B]`: the token drawn.
    pub tokens: &'a Tensor,
    /// `[capacity, B]`: the latest tokens drawn.
    pub ring: &'a Tensor,
}

impl Draw<'_> {
    /// Checks all sizes, for `v` logits a lane; gives the ring's capacity and the number of lanes.
    pub(super) fn check(&self, op: &'static str, v: usize) -> Result<(usize, usize)> {
        let Self { shape, control, history, tokens, ring } = self;
        let &[capacity, b] = ring.shape() else {
            return Err(Error::shape(op, ring.name(), "[capacity, B]", ring.shape()));
        };
        for (tensor, each) in [(shape, 4), (control, 6), (history, 1 + v), (tokens, 1)] {
            expect_len(op, tensor, each * b)?;
        }
        if tokens.vocabulary().is_some_and(|vocabulary| vocabulary < v) {
            let expected = format!("tokens of at least {v}, the number of logits");
            return Err(Error::argument(op, "tokens", expected, format!("`{}`", tokens.name())));
        }
        Ok((capacity, b))
    }
}

/// Records the draw. `logits` `[B, V]`.
///
/// # Errors
/// The sizes differ.
pub fn sample(r: &mut Recorder, logits: &Tensor, draw: Draw<'_>) -> Result<()> {
    let (rows, v) = logits.rows_and_columns();
    let (capacity, b) = draw.check("sample", v)?;
    if rows != b {
        return Err(Error::shape("sample", logits.name(), format!("[{b}, V]"), logits.shape()));
    }
    let Draw { shape, control, history, tokens, ring } = draw;
    let params = Params { B: b as u32, V: v as u32, capacity: capacity as u32 };
    r.check_turns(logits, turns_of_a_draw(v, false, false))?;
    let (across, down) = folded_grid(b);
    r.dispatch(&KERNEL, &[], params, &[logits, shape, control, history, tokens, ring], [across, down, 1])
}

/// The place in a lane's text of its first draw; see [`Draw::history`].
pub const FIRST_PLACE: u32 = 1 << 31;

/// The most turns of a draw, which are counted with nothing left out; see `Recorder::most_terms`.
pub(crate) const MOST_TURNS_OF_A_DRAW: usize = 60_000;

/// Turns of a thread's loops in a draw among `v` tokens, by what bounds it: a pass for each four bits of a bound. Those of the sums over
/// runs, less than 200 for a bound, are not counted.
pub(crate) fn turns_of_a_draw(v: usize, top_k: bool, top_p: bool) -> usize {
    let bounds = usize::from(top_k) + usize::from(top_p);
    let passes = 4 + 8 * bounds + usize::from(top_p);
    passes * v.div_ceil(RUNS) + 2 * RUNS
}

/// The runs that the shader cuts a lane's tokens into; sums go in the same order here.
const RUNS: usize = 64;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [logits, shape, control, history, tokens, ring] = args.all();
    let (shape, control) = (shape.read(), control.read_u32());
    let (history, tokens, ring) = (history.write_u32(), tokens.write_u32(), ring.write_u32());
    let mut lanes = Lanes { shape, control, history, tokens, ring };
    let (logits, v) = (logits.read(), p.V as usize);
    if logits.len() < LEAST_DIVIDED {
        return logits.chunks_exact(v).enumerate().for_each(|(lane, z)| lanes.draw(lane, z));
    }
    let choose = |(lane, z)| lanes.choose(lane, z);
    let drawn: Vec<_> =
        logits.par_chunks_exact(v).enumerate().with_min_len(LEAST_DIVIDED.div_ceil(4 * v)).map(choose).collect();
    drawn.into_iter().enumerate().for_each(|(lane, drawn)| lanes.take(lane, drawn));
}

/// Logits of all lanes that are worth several threads.
const LEAST_DIVIDED: usize = 1 << 14;

/// The tensors of [`Draw`], as the twins see them.
pub(super) struct Lanes<'a, F> {
    pub shape: &'a [F],
    pub control: &'a [u32],
    pub history: &'a mut [u32],
    pub tokens: &'a mut [u32],
    pub ring: &'a mut [u32],
}

impl<F: Real> Lanes<'_, F> {
    /// Draws a lane's next token, by its logits.
    pub fn draw(&mut self, lane: usize, z: &[F]) {
        let drawn = self.choose(lane, z);
        self.take(lane, drawn);
    }

    /// A lane's next token.
    fn choose(&self, lane: usize, z: &[F]) -> usize {
        let [temperature, top_p, min_p, penalty] = [0, 1, 2, 3].map(|i| self.shape[4 * lane + i]);
        let [seed, key, top_k, stop, never, last_n] = [0, 1, 2, 3, 4, 5].map(|i| self.control[6 * lane + i]);
        let (counts, places) = self.history.split_at(self.tokens.len());
        let (count, places) = (counts[lane], &places[lane * z.len()..][..z.len()]);
        let place = count ^ FIRST_PLACE;
        let is_late = |v: usize| places[v] > 0 && place.wrapping_sub(places[v]).wrapping_sub(1) < last_n;
        // A NaN counts as the least likely; the token that is never to be drawn is below that.
        let score = |(v, z): (usize, F)| match z {
            _ if v == never as usize => F::neg_infinity(),
            z if z.is_nan() => F::min_value(),
            z if is_late(v) => {
                let z = if z > F::zero() { z / penalty } else { z * penalty };
                z.max(F::min_value()).min(F::max_value())
            }
            z => z,
        };
        let z: Vec<F> = z.iter().copied().enumerate().map(score).collect();
        let z = z.as_slice();
        let mut drawn = (1..z.len()).fold(0, |best, v| if z[v] > z[best] { v } else { best });
        if temperature > F::zero() {
            let bits = threefry2x32([seed, key], [count, 0])[0];
            let uniform = F::of(f64::from(bits >> 8) / f64::from(1 << 24));
            drawn = draw(z, z[drawn], temperature, (top_k as usize, top_p, min_p), uniform).unwrap_or(drawn);
        }
        if count > 0 && self.tokens[lane] == stop { stop as usize } else { drawn }
    }

    /// Remembers a lane's token.
    fn take(&mut self, lane: usize, drawn: usize) {
        let lanes = self.tokens.len();
        let (counts, places) = self.history.split_at_mut(lanes);
        let (count, v) = (&mut counts[lane], places.len() / lanes);
        if let Some(last) = places[lane * v..][..v].get_mut(drawn) {
            *last = *count ^ FIRST_PLACE;
        }
        self.tokens[lane] = drawn as u32;
        self.ring[*count as usize % (self.ring.len() / lanes) * lanes + lane] = drawn as u32;
        *count = count.wrapping_add(1);
    }
}

/// The token that a uniform number in [0, 1) falls on.
fn draw<F: Real>(z: &[F], most: F, temperature: F, (top_k, top_p, min_p): (usize, F, F), uniform: F) -> Option<usize> {
    let mut weights: Vec<F> = z.iter().map(|&z| ((z - most) / temperature).exp()).collect();
    let sum = |weights: &[F]| -> F { runs(weights).map(|run| run.iter().copied().sum()).sum() };
    // The least likely token kept; equals are kept with it.
    let mut sorted: Vec<F> = Vec::new();
    if (top_k > 0 && top_k < z.len()) || top_p < F::one() {
        sorted.extend(z);
        sorted.sort_by(|a, b| b.partial_cmp(a).expect("no NaN is left"));
    }
    let keep = |weights: &mut [F], least: F| {
        weights.iter_mut().zip(z).filter(|&(_, &z)| z < least).for_each(|(weight, _)| *weight = F::zero());
    };
    if top_k > 0 && top_k < z.len() {
        keep(&mut weights, sorted[top_k - 1]);
    }
    if top_p < F::one() {
        let enough = top_p * sum(&weights);
        let mut kept = F::zero();
        let reached = sorted.iter().position(|&z| {
            kept = kept + ((z - most) / temperature).exp();
            kept >= enough
        });
        keep(&mut weights, sorted[reached.unwrap_or(z.len() - 1)]);
    }
    weights.iter_mut().filter(|weight| **weight < min_p).for_each(|weight| *weight = F::zero());
    let shares: Vec<F> = runs(&weights).map(|run| run.iter().copied().sum()).collect();
    let mut left = uniform * shares.iter().copied().sum();
    // The run that holds the draw; rounding may leave it past the last that holds anything.
    let mut run = 0;
    for (i, &share) in shares.iter().enumerate().filter(|&(_, &share)| share > F::zero()) {
        run = i;
        if left < share {
            break;
        }
        left = left - share;
    }
    let first = run * run_length(z.len());
    let mut last = None;
    for (i, &weight) in weights[first..].iter().take(run_length(z.len())).enumerate() {
        if weight > F::zero() {
            last = Some(first + i);
            left = left - weight;
            if left < F::zero() {
                break;
            }
        }
    }
    last
}

fn run_length(v: usize) -> usize {
    v.div_ceil(RUNS)
}

/// Each run of tokens.
fn runs<F>(weights: &[F]) -> impl Iterator<Item = &[F]> {
    weights.chunks(run_length(weights.len()))
}
