//! Matrices in the form that kernels stream: transposed or not, padded; of a recurrent layer one for each gate.

use rayon::prelude::*;

use super::striding_grid;
use crate::device::threads;
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::{Precision, Recorder};
use crate::real::Real;
use crate::tensor::Tensor;

params! { G: u32, R: u32, C: u32, RP: u32, CP: u32, at: u32, transpose: u32, f16: u32 }

/// See `shaders/pack.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "pack",
    source: wgsl!("pack"),
    constants: &["F16"],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin, alone),
};

/// Records `y[g] = x[g]`, or its transpose, padded with zeros: `x` `[G R, C]` (`[G C, R]` with `transpose`) as `[G, RP, CP]`
/// from element `at` of `y` on. Gives where that ends. In f16 `y` is rounded to that, and on a GPU it is an array of f16, which
/// takes half of the tensor.
///
/// # Errors
/// The shapes do not fit.
pub fn pack(
    r: &mut Recorder,
    x: &Tensor,
    y: &Tensor,
    at: usize,
    [gates, padded_rows, padded_columns]: [usize; 3],
    transpose: bool,
    precision: Precision,
) -> Result<usize> {
    let (all_rows, x_columns) = x.rows_and_columns();
    let x_rows = all_rows / gates.max(1);
    let end = [gates, padded_rows, padded_columns].into_iter().fold(1, usize::saturating_mul).saturating_add(at);
    let (rows, columns) = if transpose { (x_columns, x_rows) } else { (x_rows, x_columns) };
    if x_rows.saturating_mul(gates) != all_rows || rows > padded_rows || columns > padded_columns {
        let expected = format!("{gates} matrices, each at most {padded_rows} by {padded_columns} when packed");
        return Err(Error::shape("pack", x.name(), expected, x.shape()));
    }
    if end > y.len() {
        return Err(Error::shape("pack", y.name(), format!("of at least {end} elements"), y.shape()));
    }
    let params = Params {
        G: gates as u32,
        R: rows as u32,
        C: columns as u32,
        RP: padded_rows as u32,
        CP: padded_columns as u32,
        at: at as u32,
        transpose: transpose.into(),
        f16: precision.is_f16().into(),
    };
    r.dispatch(&KERNEL, &[("F16", params.f16)], params, &[x, y], striding_grid(end - at))?;
    r.touches(|tensor| tensor.is(y).then_some((end - at) * precision.bytes() / 4));
    if !precision.is_f16() {
        r.overwrites(&y.view(y.name(), at, &[end - at]));
    }
    Ok(end)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    let [rows, columns, padded_rows, padded_columns] = [p.R, p.C, p.RP, p.CP].map(|n| n as usize);
    let matrices =
        x.read().chunks_exact(rows * columns).zip(y.write()[p.at as usize..].chunks_mut(padded_rows * padded_columns));
    // Some rows of y, from this one on.
    let fill = |x: &[F], first: usize, y: &mut [F]| {
        y.fill(F::zero());
        if p.transpose != 0 {
            for (j, x) in x.chunks_exact(rows).enumerate() {
                y[j..].iter_mut().step_by(padded_columns).zip(&x[first.min(rows)..]).for_each(|(y, &x)| *y = x);
            }
        } else {
            let x = x.chunks_exact(columns).skip(first);
            y.chunks_exact_mut(padded_columns).zip(x).for_each(|(y, x)| y[..columns].copy_from_slice(x));
        }
        if p.f16 != 0 {
            y.iter_mut().for_each(|y| *y = y.rounded_to_f16());
        }
    };
    for (x, y) in matrices {
        let blocks = |(block, y): (usize, &mut [F])| fill(x, ROWS * block, y);
        match threads::is_alone() || y.len() < LEAST_DIVIDED {
            true => y.chunks_mut(ROWS * padded_columns).enumerate().for_each(blocks),
            false => y.par_chunks_mut(ROWS * padded_columns).enumerate().for_each(blocks),
        }
    }
}

/// Rows of y that are filled at once: where they are columns of x, each row of x is read in whole lines of the cache.
const ROWS: usize = 16;

/// Elements of a matrix that is worth several threads.
const LEAST_DIVIDED: usize = 1 << 16;
