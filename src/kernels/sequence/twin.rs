//! What the cells' twins share. `Sizes` stand for the parameters, `w` for the matrices as [`pack`](super::super::pack) laid them
//! out.

use std::ops::Range;

use rayon::prelude::*;
use smallvec::SmallVec;

use super::{Sizes, backward, forward, start_of_dstart};
use crate::device::threads;
use crate::plan::Precision;
use crate::product::{FEW_ROWS, Matrix, Packed, product};
use crate::real::Real;

/// The recurrent matrices of all directions, or of stacked layers, as [`pack`](super::super::pack) laid them out for a forward or a backward
/// pass; what each thread of a twin takes through all steps.
pub struct Weights<'a, F> {
    /// Those of a direction's gates, one after the other.
    matrices: SmallVec<[Packed<'a, F>; 8]>,
    sizes: Sizes,
    /// Batch entries of a tile.
    rows: usize,
}

impl<'a, F: Real> Weights<'a, F> {
    /// For steps of this span. What is laid out takes as much memory again as the matrices do, while the twin runs.
    pub fn new(w: &'a [F], sizes: Sizes, span: (usize, usize)) -> Self {
        let Sizes { directions, hidden, gates, batch, .. } = sizes;
        let matrix = |i: usize| Packed::new(matrix_of(matrix(w, i / gates, sizes), i % gates, hidden));
        let mut matrices: SmallVec<[_; 8]> = (0..directions * gates).map(matrix).collect();
        // Few rows have a product of their own, which reads the matrix as it is.
        if batch > FEW_ROWS && batch * (span.1 - span.0) >= LEAST_TO_LAY_OUT {
            match threads::is_alone() {
                true => matrices.iter_mut().for_each(Packed::lay_out),
                false => matrices.par_iter_mut().for_each(Packed::lay_out),
            }
        }
        let rows = if matrices[0].is_by_row() {
            // Each thread reads the matrices once for each step.
            batch.div_ceil(threads::at_hand()).clamp(8, 64)
        } else {
            // By the batch alone, so that the threads there are do not change the result.
            (batch / 4).clamp(16, 64)
        };
        Self { matrices, sizes, rows }
    }

    /// `h W_gᵀ` of one gate, for the rows of a tile; 0 without h.
    pub fn product(&self, (direction, gate): (usize, usize), product: &mut [F], h: Option<&[F]>) {
        let Sizes { hidden, gates, .. } = self.sizes;
        match h {
            None => product.fill(F::zero()),
            Some(h) => {
                let h = Matrix::new(h, product.len() / hidden, hidden);
                self.matrices[direction * gates + gate].product(product, h, false);
            }
        }
    }

    /// `sum += d_g W_g` of some gates: d is `[rows, gates, H]`, or has more columns after these.
    pub fn add_gradients(&self, direction: usize, of: Range<usize>, sum: &mut [F], d: &[F]) {
        let Sizes { hidden, gates, .. } = self.sizes;
        let rows = sum.len() / hidden;
        for gate in of {
            let d = Matrix::strided(&d[gate * hidden..], rows, hidden, d.len() / rows);
            self.matrices[direction * gates + gate].product(sum, d, true);
        }
    }

    /// `[D, slots, batch, width]` cut into tiles, direction by direction: for each tile, its part of every slot; of a dummy, none.
    pub fn tiles<'v>(&self, values: &'v mut [F], width: usize) -> Tiles<'v, F> {
        let Sizes { directions, batch, .. } = self.sizes;
        let slots = (values.len() / (batch * width)).div_ceil(directions);
        let per_direction = batch.div_ceil(self.rows);
        let mut tiles = Tiles::new();
        tiles.resize_with(directions * per_direction, SmallVec::new);
        for (i, slot) in values.chunks_exact_mut(batch * width).enumerate() {
            for (tile, part) in tiles[i / slots * per_direction..].iter_mut().zip(slot.chunks_mut(self.rows * width)) {
                tile.push(part);
            }
        }
        tiles
    }

    /// Runs a twin on each tile, given its direction and its first batch entry, on all threads; a single tile without waking
    /// any.
    pub fn for_each_tile<T: Send>(&self, mut tiles: impl Iterator<Item = T>, work: impl Fn(usize, usize, T) + Sync) {
        let per_direction = self.sizes.batch.div_ceil(self.rows);
        let work = |i: usize, tile| work(i / per_direction, i % per_direction * self.rows, tile);
        let Some(first) = tiles.next() else { return };
        let second = if threads::is_alone() { None } else { tiles.next() };
        match second {
            None => std::iter::once(first).chain(tiles).enumerate().for_each(|(i, tile)| work(i, tile)),
            Some(second) => {
                let tiles: Vec<_> = [first, second].into_iter().chain(tiles).collect();
                tiles.into_par_iter().enumerate().for_each(|(i, tile)| work(i, tile));
            }
        }
    }
}

/// Batch entries times steps from which on a matrix that is laid out saves more than that takes.
const LEAST_TO_LAY_OUT: usize = 256;

/// The tiles, of which one of a single step takes no memory for these lists.
pub type Tiles<'a, F> = SmallVec<[SmallVec<[&'a mut [F]; 4]>; 1]>;

/// The part of a direction, of tensors `[D, ..]`.
pub fn of_direction<F, const N: usize>(values: [&[F]; N], direction: usize, sizes: Sizes) -> [&[F]; N] {
    values.map(|values| {
        let each = values.len() / sizes.directions;
        &values[direction * each..][..each]
    })
}

/// The marks behind the lengths, if there are any: of steps before which states become 0.
#[derive(Clone, Copy)]
pub struct Resets<'a> {
    sizes: Sizes,
    marks: &'a [u32],
}

impl<'a> Resets<'a> {
    /// The lengths, and the marks behind them.
    pub fn split(lengths: &'a [u32], sizes: Sizes) -> (&'a [u32], Self) {
        let (lengths, marks) = lengths.split_at(sizes.batch);
        (lengths, Self { sizes, marks })
    }

    fn is_marked(&self, direction: usize, t: usize, entry: usize) -> bool {
        let Sizes { stacked, steps, batch, .. } = self.sizes;
        let flow = if stacked { 0 } else { direction };
        self.marks.get((flow * steps + t) * batch + entry).is_some_and(|&mark| mark != 0)
    }

    /// Makes the rows 0 that are marked, of the entries from `start` on.
    pub fn clear<F: Real>(&self, (direction, t, start): (usize, usize, usize), rows: &mut [F]) {
        for (row, values) in rows.chunks_exact_mut(self.sizes.hidden).enumerate() {
            if self.is_marked(direction, t, start + row) {
                values.fill(F::zero());
            }
        }
    }

    /// The state that step t starts with, of the entries from `start` on.
    pub fn before<'s, F: Real>(
        &self,
        at @ (direction, t, start): (usize, usize, usize),
        state: &'s [F],
        copy: &'s mut Vec<F>,
    ) -> &'s [F] {
        let mut entries = start..start + state.len() / self.sizes.hidden;
        if !entries.any(|entry| self.is_marked(direction, t, entry)) {
            return state;
        }
        copy.clear();
        copy.extend_from_slice(state);
        self.clear(at, copy);
        copy
    }
}

fn sizes<F>([d, n, t, b, h]: [u32; 5], w: &[F], gates: usize, states: usize) -> Sizes {
    let [directions, rows, steps, batch, hidden] = [d, n, t, b, h].map(|size| size as usize);
    // What the twin reads is rounded already.
    let precision = Precision::F32;
    let sizes = Sizes { directions, stacked: false, rows, steps, batch, hidden, gates, states, precision };
    Sizes { stacked: w.len() > directions * sizes.matrix(), ..sizes }
}

impl forward::Params {
    /// The sizes, of a cell with so many gates and states, and the steps to compute.
    pub fn sizes<F>(&self, w: &[F], gates: usize, states: usize) -> (Sizes, (usize, usize)) {
        let sizes = sizes([self.D, self.N, self.T, self.B, self.H], w, gates, states);
        (sizes, (self.first as usize, self.last as usize))
    }
}

impl backward::Params {
    /// The sizes, of a cell with so many gates and states, and the steps to compute.
    pub fn sizes<F>(&self, w: &[F], gates: usize, states: usize) -> (Sizes, (usize, usize)) {
        let sizes = sizes([self.D, 0, self.T, self.B, self.H], w, gates, states);
        (sizes, (self.first as usize, self.last as usize))
    }
}

/// The i-th matrix of all gates.
pub fn matrix<F>(w: &[F], i: usize, sizes: Sizes) -> &[F] {
    &w[i * sizes.matrix()..][..sizes.matrix()]
}

/// What a backward kernel writes: dx, and dstart behind it.
pub fn split_gradients<F>(dx: &mut [F], sizes: Sizes) -> (&mut [F], &mut [F]) {
    let (dx, dstart) = dx.split_at_mut(start_of_dstart(sizes.of_dx()));
    (&mut dx[..sizes.of_dx()], dstart)
}

/// What comes in from below, in the twin of a forward kernel.
pub struct Below<'a, F> {
    sizes: Sizes,
    x: &'a [F],
    index: &'a [u32],
    /// Of each stacked layer but the first, `[G, B, H]`: the product with what the layer below made in the dispatch before,
    /// and the biases.
    stacked: Vec<Vec<F>>,
}

impl<'a, F: Real> Below<'a, F> {
    /// The states so far, all matrices and `biases` are for stacked layers; of the biases, those of inputs.
    pub fn new(
        sizes: Sizes,
        span: (usize, usize),
        (x, index): (&'a [F], &'a [u32]),
        (states, w, biases): (&[F], &[F], &[F]),
    ) -> Self {
        let Sizes { directions, steps, hidden, gates, .. } = sizes;
        let of_layer = |layer: usize| {
            let mut made = vec![F::zero(); gates * sizes.state()];
            if let Some(of) = sizes.steps_of(layer, span) {
                let h = &states[((layer - 1) * sizes.states * (steps + 1) + of.end) * sizes.state()..];
                let w = matrix(w, directions + layer - 1, sizes);
                for (gate, sum) in made.chunks_exact_mut(sizes.state()).enumerate() {
                    let bias = &biases[((layer - 1) * gates + gate) * hidden..][..hidden];
                    sum.chunks_exact_mut(hidden).for_each(|row| row.copy_from_slice(bias));
                    add_product(sum, &h[..sizes.state()], w, gate, hidden);
                }
            }
            made
        };
        let stacked = sizes.layers_above().map(of_layer).collect();
        Self { sizes, x, index, stacked }
    }

    /// `[H]`
    pub fn row(&self, direction: usize, t: usize, entry: usize, gate: usize) -> &[F] {
        let Sizes { rows, steps, batch, hidden, gates, .. } = self.sizes;
        if let Some(made) = direction.checked_sub(1).and_then(|below| self.stacked.get(below)) {
            return &made[(gate * batch + entry) * hidden..][..hidden];
        }
        let row = direction * rows + self.index[(direction * steps + t) * batch + entry] as usize;
        &self.x[(row * gates + gate) * hidden..][..hidden]
    }
}

/// What each of stacked layers gets from the one above, `[B, H]`, in the twin of a backward kernel.
pub fn from_above<F: Real>(sizes: Sizes, span: (usize, usize), dx: &[F], w: &[F]) -> Vec<Vec<F>> {
    let Sizes { directions, steps, hidden, gates, .. } = sizes;
    let of_layer = |layer: usize| {
        let of = sizes.steps_of(layer, span).filter(|of| !of.is_empty())?;
        let mut sum = vec![F::zero(); sizes.state()];
        let each = gates * sizes.state();
        let dx = &dx[((layer + 1) * steps + of.start) * each..][..each];
        add_gradients(&mut sum, dx, gates, matrix(w, directions + layer, sizes), hidden);
        Some(sum)
    };
    sizes.layers_above().map(|above| of_layer(above - 1).unwrap_or_default()).collect()
}

/// What the twin of a backward kernel carries from step to step: dstart, or a copy, where the kernel leaves that alone.
pub fn to_carry<'a, F: Real>(p: &backward::Params, dstart: &'a mut [F], copy: &'a mut Vec<F>) -> &'a mut [F] {
    if p.pending != 0 || p.complete != 0 {
        return dstart;
    }
    copy.extend_from_slice(dstart);
    copy
}

/// What the twin of a backward kernel starts with, for the rows of a tile from `start` on: what is carried already from the steps
/// after those it computes, with the product of `next`, d of the first of them, if that is
/// pending; and what comes from the layer above, if any does ([`from_above`]). `at` is a direction, the step of `next` and `start`.
pub fn carry_in<F: Real>(
    carried: &mut [F],
    next: (Option<&[F]>, u32),
    (gates, weights): (usize, &Weights<'_, F>),
    above: Option<&Vec<F>>,
    (resets, at): (Resets<'_>, (usize, usize, usize)),
) {
    let hidden = resets.sizes.hidden;
    match next {
        (None, _) => carried.fill(F::zero()),
        (Some(_), 0) => {}
        (Some(next), _) => weights.add_gradients(at.0, 0..gates, carried, next),
    }
    resets.clear(at, carried);
    if let Some(above) = above.and_then(|above| above.get(at.2 * hidden..)) {
        add_in_place(carried, above);
    }
}

/// The gradient of a direction's outputs, `[T, B, H]`, if there is any: of stacked layers the top one has it.
pub fn dy_of<F>(sizes: Sizes, has_dy: u32, dy: &[F], direction: usize) -> Option<&[F]> {
    let Sizes { directions, stacked, .. } = sizes;
    match (has_dy, stacked) {
        (0, _) => None,
        (_, true) => (direction + 1 == directions).then_some(dy),
        (_, false) => Some(of_direction([dy], direction, sizes)[0]),
    }
}

/// The recurrent matrix of one gate, as [`pack`] laid it out: `W_gᵀ` forward, `W_g` backward.
fn matrix_of<F: Real>(w: &[F], gate: usize, hidden: usize) -> Matrix<'_, F> {
    let padded = hidden.next_multiple_of(4);
    Matrix::strided(&w[gate * padded * padded..], hidden, hidden, padded)
}

/// `sum += more`, as far as `sum` goes.
pub fn add_in_place<F: Real>(sum: &mut [F], more: &[F]) {
    F::vectorize(|| sum.iter_mut().zip(more).for_each(|(sum, &more)| *sum = *sum + more));
}

/// N slices of a length each, one after the other: gate by gate, say.
pub fn split<F, const N: usize>(values: &[F], each: usize) -> [&[F]; N] {
    std::array::from_fn(|i| &values[i * each..][..each])
}

/// [`split`], to be written.
pub fn split_mut<F, const N: usize>(values: &mut [F], each: usize) -> [&mut [F]; N] {
    let mut parts = values.chunks_exact_mut(each);
    std::array::from_fn(|_| parts.next().expect("as many slices as asked for"))
}

/// `sum += h W_gᵀ` of one gate; w as [`pack`] transposed it.
fn add_product<F: Real>(sum: &mut [F], h: &[F], w: &[F], gate: usize, hidden: usize) {
    let h = Matrix::new(h, h.len() / hidden, hidden);
    product(sum, h, matrix_of(w, gate, hidden), true, false);
}

/// `sum += d_g W_g` of all gates: `d` is `[rows, gates, H]`.
fn add_gradients<F: Real>(sum: &mut [F], d: &[F], gates: usize, w: &[F], hidden: usize) {
    for gate in 0..gates {
        let d = Matrix::strided(&d[gate * hidden..], sum.len() / hidden, hidden, gates * hidden);
        product(sum, d, matrix_of(w, gate, hidden), true, false);
    }
}
