//! `h[t + 1] = tanh(x[index[t]] + h[t] Wᵀ)`: the tanh recurrence over a whole sequence.

use rayon::prelude::*;

use super::{expect, expect_indices, rnn_step_forward, swap_axes};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::product::{Matrix, product};
use crate::real::Real;
use crate::tensor::Tensor;

params! { T: u32, B: u32, H: u32 }

/// See `shaders/rnn_forward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "rnn_forward",
    source: wgsl!("rnn_forward", "rows", "math"),
    constants: RowTile::CONSTANTS,
    params: FIELDS,
    bindings: &[reads("x"), reads_u32("index"), reads("w"), writes("h")],
    twin: twin!(twin),
};

/// How `shaders/lib/rows.wgsl` lays batch entries over workgroups.
pub(super) struct RowTile {
    /// Hidden size, padded to a multiple of 4.
    pub padded: usize,
    /// Batch entries of a thread.
    rows: usize,
    /// Vectors of four columns of a thread.
    columns: usize,
    /// Groups of threads in a workgroup, each with entries of its own.
    groups: usize,
}

/// 16 KiB of workgroup memory in f32: WebGPU's default limit.
const TILE_VALUES: usize = 4096;

impl RowTile {
    pub const CONSTANTS: &[&str] = &["HP", "ROWS", "COLUMNS", "GROUPS", "THREADS", "ROW_VECTORS"];

    /// The layout for a hidden size, or None if not even four rows fit.
    ///
    /// A wide device gets 4 x 4 sums a thread and just enough groups to fill a workgroup of 64 threads: that makes the
    /// most workgroups. A software driver, where a load costs a hundred products, gets 16 x 16 sums a thread (on lavapipe
    /// 190 ms where 16 x 4 take 330, T 8, B 512, H 256) and the most entries, which read the matrix least often.
    pub fn new(wide: bool, batch: usize, hidden: usize) -> Option<Self> {
        let padded = hidden.next_multiple_of(4);
        let fit = TILE_VALUES / padded;
        if fit < 4 {
            return None;
        }
        let (rows, columns, groups) =
            if wide { (4, 1, (256 / padded).max(1)) } else { (fit.min(16), 4.min(padded / 4), 1) };
        let groups = groups.min(batch.div_ceil(rows));
        Some(Self { padded, rows: rows.min(batch), columns, groups })
    }

    /// Batch entries of a workgroup.
    pub fn entries(&self) -> usize {
        self.rows * self.groups
    }

    pub fn constants(&self) -> [(&'static str, u32); 6] {
        let (padded, groups) = (self.padded as u32, self.groups as u32);
        let (rows, columns) = (self.rows as u32, self.columns as u32);
        [
            ("HP", padded),
            ("ROWS", rows),
            ("COLUMNS", columns),
            ("GROUPS", groups),
            ("THREADS", groups * (padded / 4).div_ceil(columns)),
            ("ROW_VECTORS", groups * rows * padded / 4),
        ]
    }
}

/// Records the recurrence: one dispatch for all steps if the hidden size allows, one per step otherwise.
///
/// `x` `[N, H]`, `index` `[T, B]` u32 (each below N), `w` `[H, H]`, `h` `[T + 1, B, H]` with the incoming state in slot 0.
///
/// # Errors
/// The shapes do not fit.
pub fn rnn_forward(g: &mut Graph, x: &Tensor, index: &Tensor, w: &Tensor, h: &Tensor) -> Result<()> {
    let (&[steps, batch], &[n, hidden]) = (index.shape(), x.shape()) else {
        return Err(Error::shape("rnn_forward", index.name(), "[T, B], with x [N, H]", index.shape()));
    };
    expect_indices("rnn_forward", index, n)?;
    expect("rnn_forward", w, &[hidden, hidden])?;
    expect("rnn_forward", h, &[steps + 1, batch, hidden])?;
    let Some(tile) = RowTile::new(g.is_wide(), batch, hidden) else {
        g.note(format!("rnn, H {hidden}: one dispatch per step; all steps in one need H <= {}", TILE_VALUES / 4));
        return (0..steps).try_for_each(|t| rnn_step_forward::rnn_step_forward(g, t, x, index, w, h));
    };
    let (padded, entries) = (tile.padded, tile.entries());
    g.note(format!(
        "rnn, H {hidden}: all {steps} steps in one dispatch, {entries} batch entries a workgroup, {} workgroups",
        batch.div_ceil(entries)
    ));
    let w_t = g.zeros(&format!("{}ᵀ", w.name()), &[padded, padded])?;
    swap_axes::swap_axes(g, w, &w_t)?;
    let params = Params { T: steps as u32, B: batch as u32, H: hidden as u32 };
    g.dispatch(&KERNEL, &tile.constants(), params, &[x, index, &w_t, h], [batch.div_ceil(entries), 1, 1])
}

/// Batch entries that one thread of the twin takes through all steps: their states and W stay in its cache.
pub(super) const TWIN_ROWS: usize = 64;

/// `[slots, batch, width]` cut into tiles of `TWIN_ROWS` batch entries: for each tile, its part of every slot.
pub(super) fn tiles<F>(values: &mut [F], batch: usize, width: usize) -> Vec<Vec<&mut [F]>> {
    let mut tiles: Vec<_> = (0..batch.div_ceil(TWIN_ROWS)).map(|_| Vec::new()).collect();
    for slot in values.chunks_exact_mut(batch * width) {
        for (tile, part) in tiles.iter_mut().zip(slot.chunks_mut(TWIN_ROWS * width)) {
            tile.push(part);
        }
    }
    tiles
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, w_t, h] = args.all();
    let (x, index, w_t) = (x.read(), index.read_u32(), w_t.read());
    let (batch, hidden) = (p.B as usize, p.H as usize);
    let w_t = Matrix::strided(w_t, hidden, hidden, hidden.next_multiple_of(4));
    tiles(h.write(), batch, hidden).into_par_iter().enumerate().for_each(|(tile, mut slots)| {
        for t in 0..p.T as usize {
            let (past, future) = slots.split_at_mut(t + 1);
            let (previous, next) = (&*past[t], &mut *future[0]);
            for (row, &i) in next.chunks_exact_mut(hidden).zip(&index[t * batch + tile * TWIN_ROWS..]) {
                row.copy_from_slice(&x[i as usize * hidden..][..hidden]);
            }
            product(next, Matrix::new(previous, previous.len() / hidden, hidden), w_t, true, false);
            F::tanh_in_place(next);
        }
    });
}
