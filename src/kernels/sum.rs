//! `y[a, c] = scale Σ_r x[a, r, c]`: sums and means over an axis.

use rayon::prelude::*;

use super::{expect_len, folded_grid, slices};
use crate::device::threads;
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { A: u32, R: u32, C: u32, slice: u32, slices: u32, first: u32, scale: f32, accumulate: u32 }

/// See `shaders/sum.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "sum",
    source: wgsl!("sum"),
    constants: &["COLUMNS"],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin, alone),
};

/// Records the sum over the middle axis, times `scale`. `x` of `A R C` elements, `y` of `A C`; `accumulate` adds to what is there.
///
/// # Errors
/// The sizes differ.
pub fn sum(
    r: &mut Recorder,
    x: &Tensor,
    [a, rows, c]: [usize; 3],
    scale: f64,
    y: &Tensor,
    accumulate: bool,
) -> Result<()> {
    expect_len("sum", x, a.saturating_mul(rows).saturating_mul(c))?;
    expect_len("sum", y, a.saturating_mul(c))?;
    // Threads for each sum: four terms or more for each, and neighbours read neighbours.
    let threads = (rows / 4).clamp(1, 256).next_power_of_two();
    let threads = if c >= 32 { threads.min(4) } else { threads.min(256) };
    let columns = 256 / threads;
    let of = |sums: usize| folded_grid(sums.div_ceil(columns));
    let (gx, gy) = of(a * c);
    let slices = slices(r.is_wide(), (gx * gy).min(256), rows);
    let slice = rows.div_ceil(slices).min(r.terms_at_once((1, threads), 1));
    let params = |slices: usize, first: usize, scale: f64, accumulate: bool| Params {
        A: a as u32,
        R: rows as u32,
        C: c as u32,
        slice: slice as u32,
        slices: slices as u32,
        first: first as u32,
        scale: scale as f32,
        accumulate: accumulate.into(),
    };
    let constants = [("COLUMNS", columns as u32)];
    let all = rows.div_ceil(slice);
    if all == 1 {
        return r.dispatch(&KERNEL, &constants, params(1, 0, scale, accumulate), &[x, y], [gx, gy, 1]);
    }
    let parts = r.zeros(&format!("{} in slices", y.name()), &[a, all, c])?;
    let (gx, gy) = of(a * all * c);
    r.dispatch(&KERNEL, &constants, params(all, 0, 1.0, false), &[x, &parts], [gx, gy, 1])?;
    sum(r, &parts, [a, all, c], scale, y, accumulate)
}

/// Sums that are added up at the same time.
const LANES: usize = 16;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    let (c, all, slice, slices) = (p.C as usize, p.R as usize, p.slice as usize, p.slices as usize);
    let (x, scale) = (x.read(), F::of(p.scale.into()));
    let each = |(i, y): (usize, &mut [F])| {
        let start = (p.first as usize + i % slices) * slice;
        let rows = &x[i / slices * all * c..][..all * c][start * c..all.min(start + slice) * c];
        if p.accumulate == 0 {
            y.fill(F::zero());
        }
        if c == 1 {
            let mut sums = [F::zero(); LANES];
            let (whole, rest) = rows.as_chunks::<LANES>();
            for chunk in whole {
                sums.iter_mut().zip(chunk).for_each(|(sum, &x)| *sum = *sum + x);
            }
            let total = sums.into_iter().sum::<F>() + rest.iter().copied().sum::<F>();
            y[0] = y[0] + total * scale;
            return;
        }
        if p.accumulate == 0 {
            for row in rows.chunks_exact(c) {
                y.iter_mut().zip(row).for_each(|(y, &x)| *y = *y + x);
            }
            y.iter_mut().for_each(|y| *y = *y * scale);
        } else {
            for row in rows.chunks_exact(c) {
                y.iter_mut().zip(row).for_each(|(y, &x)| *y = *y + x * scale);
            }
        }
    };
    let y = y.write();
    if x.len() < 1 << 16 || threads::is_alone() {
        y.chunks_exact_mut(c).enumerate().for_each(each);
    } else {
        y.par_chunks_exact_mut(c).enumerate().for_each(each);
    }
}

/// The sizes before, of and after a range of axes.
pub(crate) fn around(shape: &[usize], axes: std::ops::Range<usize>) -> [usize; 3] {
    [&shape[..axes.start], &shape[axes.clone()], &shape[axes.end..]].map(|sizes| sizes.iter().product())
}
