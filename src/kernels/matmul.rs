//! `c = op(a) op(b) + bias + bias2`.

use rayon::prelude::*;

use super::{LARGE_TILE_FLOPS, column_sum, expect_len, slices};
use crate::device::threads;
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::product::{Matrix, product};
use crate::real::Real;
use crate::tensor::Tensor;

params! { m: u32, n: u32, k: u32, transpose_a: u32, transpose_b: u32, a_offset: u32, a_stride: u32, slice: u32, first: u32, biases: u32, accumulate: u32, a_batch: u32, b_batch: u32 }

/// See `shaders/matmul.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "matmul",
    source: wgsl!("matmul", "tile"),
    constants: &["VECTORS", "SHARES"],
    params: FIELDS,
    bindings: &[reads("a"), reads("b"), reads("bias"), reads("bias2"), writes("c")],
    twin: twin!(twin, alone),
};

/// A factor of a product: a tensor `[.., columns]` seen as a matrix, a block of one, or the transpose.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    tensor: &'a Tensor,
    transposed: bool,
    offset: usize,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a> Factor<'a> {
    /// `rows` rows of `columns` values, `stride` apart, from element `offset` on. Only the left factor may be a block.
    pub fn block(tensor: &'a Tensor, offset: usize, rows: usize, columns: usize, stride: usize) -> Self {
        Self { tensor, transposed: false, offset, rows, columns, stride }
    }

    /// So many of the rows of the matrix that it stands for.
    fn block_of_rows(self, first: usize, rows: usize) -> Self {
        match self.transposed {
            false => Self { offset: self.offset + first * self.stride, rows, ..self },
            true => Self { offset: self.offset + first, columns: rows, ..self },
        }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    fn is_whole(&self) -> bool {
        self.offset == 0 && self.stride == self.columns
    }

    fn fits(&self) -> bool {
        let end = self.rows.saturating_sub(1).saturating_mul(self.stride).saturating_add(self.columns);
        self.rows > 0
            && (1..=self.stride).contains(&self.columns)
            && end.saturating_add(self.offset) <= self.tensor.len()
    }
}

impl<'a> From<&'a Tensor> for Factor<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        let (rows, columns) = tensor.rows_and_columns();
        Self::block(tensor, 0, rows, columns, columns)
    }
}

/// The transpose of a tensor, as a factor.
pub fn t(tensor: &Tensor) -> Factor<'_> {
    Factor::from(tensor).t()
}

/// Multiplications and additions of a product.
fn flops(m: usize, n: usize, k: usize) -> u64 {
    super::product(&[2, m, n, k])
}

/// Terms that a workgroup keeps at a time.
const DEPTH: usize = 16;

/// Vectors of four rows of a, and of four columns of b, of a thread; 8 x 8 threads make a tile.
///
/// On a software driver a load costs hundreds of products, so a large product gets the largest tile that fits into 16 KiB.
fn vectors(r: &Recorder, m: usize, n: usize, k: usize) -> usize {
    if !r.is_wide() && flops(m, n, k) >= LARGE_TILE_FLOPS { 4 } else { 2 }
}

/// How many times 64 threads share the terms of a tile. A GPU has few tiles of these networks' products to give out, so each gets
/// 256 threads. By calculation, not measured.
fn shares(r: &Recorder, k: usize) -> usize {
    if r.is_wide() && k >= 4 * DEPTH { 4 } else { 1 }
}

/// Records `c = a b + bias`, or `c += a b + bias`. `a` `[m, k]`, `b` `[k, n]`, `bias` `[n]`, `c` of `m n` elements.
///
/// # Errors
/// The shapes do not fit.
pub fn matmul<'a>(
    r: &mut Recorder,
    a: impl Into<Factor<'a>>,
    b: impl Into<Factor<'a>>,
    bias: Option<&Tensor>,
    c: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let biases: Vec<_> = bias.into_iter().collect();
    matmul_with_biases(r, a, b, &biases, c, accumulate)
}

/// [`matmul`] with up to two biases.
///
/// # Errors
/// The shapes do not fit, or there are more biases.
pub fn matmul_with_biases<'a>(
    r: &mut Recorder,
    a: impl Into<Factor<'a>>,
    b: impl Into<Factor<'a>>,
    biases: &[&Tensor],
    c: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let (a, b) = (a.into(), b.into());
    let ((m, k), (kb, n)) = (a.shape(), b.shape());
    if kb != k {
        let expected = format!("that makes a factor [{k}, n], to follow `{:?}`", a.tensor);
        return Err(Error::shape("matmul", b.tensor.name(), expected, b.tensor.shape()));
    }
    for (factor, fits) in [(a, a.fits()), (b, b.fits() && b.is_whole())] {
        if !fits {
            let (rows, columns) = (factor.rows, factor.columns);
            let expected = format!("one that holds the block of {rows} rows and {columns} columns");
            return Err(Error::shape("matmul", factor.tensor.name(), expected, factor.tensor.shape()));
        }
    }
    expect_len("matmul", c, m * n)?;
    if biases.len() > 2 {
        return Err(Error::argument("matmul", "biases", "at most 2", biases.len()));
    }
    for bias in biases {
        expect_len("matmul", bias, n)?;
    }
    let most_rows = usize::try_from(r.most_flops() / flops(1, n, k)).unwrap_or(usize::MAX) / 64 * 64;
    if most_rows < m && m > 64 {
        // Of 64 rows, so that every device can bind where a block of c starts.
        for first in (0..m).step_by(most_rows.max(64)) {
            let rows = most_rows.max(64).min(m - first);
            let c = c.view(c.name(), first * n, &[rows, n]);
            product_of_rows(r, a.block_of_rows(first, rows), b, biases, &c, accumulate)?;
        }
        return Ok(());
    }
    product_of_rows(r, a, b, biases, c, accumulate)
}

/// [`matmul_with_biases`] of few enough rows for one dispatch, when all is checked.
fn product_of_rows(
    r: &mut Recorder,
    a: Factor<'_>,
    b: Factor<'_>,
    biases: &[&Tensor],
    c: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let ((m, k), (_, n)) = (a.shape(), b.shape());
    let vectors = vectors(r, m, n, k);
    let [down, across] = [m, n].map(|size| size.div_ceil(32 * vectors));
    let in_tile = shares(r, k);
    let constants = [("VECTORS", vectors as u32), ("SHARES", in_tile as u32)];
    // A workgroup of 256 threads counts as three of 64: more slices would be more bytes than they are worth.
    let workgroups = in_tile.min(3) * down * across;
    let too_many = flops(m, n, k) > r.most_flops();
    let slices = if !biases.is_empty() || too_many { 1 } else { slices(r.is_wide(), workgroups, k) };
    // Slices start where a tile's depth starts, so that no two of them read the same terms. A thread takes up to 25 turns for each.
    let slice = k.div_ceil(slices).next_multiple_of(DEPTH).min(r.terms_at_once((25, DEPTH), DEPTH));
    let of_flops = usize::try_from(r.most_flops() / flops(m, n, 1)).unwrap_or(usize::MAX) / DEPTH * DEPTH;
    let slice = if too_many { slice.min(of_flops.max(DEPTH)) } else { slice };
    let params = |first: usize, biases: usize, accumulate: bool| Params {
        m: m as u32,
        n: n as u32,
        k: k as u32,
        transpose_a: a.transposed.into(),
        transpose_b: b.transposed.into(),
        a_offset: a.offset as u32,
        a_stride: a.stride as u32,
        slice: slice as u32,
        first: first as u32,
        biases: biases as u32,
        accumulate: accumulate.into(),
        a_batch: 0,
        b_batch: 0,
    };
    let bias = |i: usize| *biases.get(i).unwrap_or(&a.tensor);
    let record = |r: &mut Recorder, c: &Tensor, params: Params, slices: usize| {
        let tensors = [a.tensor, b.tensor, bias(0), bias(1), c];
        r.dispatch(&KERNEL, &constants, params, &tensors, [across, down, slices])?;
        let k = (slices * slice).min(k - params.first as usize * slice);
        // Each row of tiles reads b, each column of tiles a.
        let rereads = super::product(&[down - 1, k, n]) + super::product(&[across - 1, m, k]);
        r.cost(flops(m, n, k), 4 * rereads);
        r.touches(|tensor| if tensor.is(a.tensor) { Some(m * k) } else { tensor.is(b.tensor).then_some(k * n) });
        if params.accumulate == 0 {
            r.overwrites(c);
        }
        Ok(())
    };
    let all = k.div_ceil(slice);
    if slices == 1 {
        return (0..all).try_for_each(|first| {
            let biases = if first == 0 { biases.len() } else { 0 };
            record(r, c, params(first, biases, accumulate || first > 0), 1)
        });
    }
    let parts = r.zeros(&format!("{} in slices", c.name()), &[all, m * n])?;
    record(r, &parts, params(0, 0, false), all)?;
    column_sum::column_sum(r, &parts, c, accumulate)
}

/// Records `c[i] = a[i] b[i]` for each i, products of matrices that lie one after the other; `c += ..` to accumulate. `a` `[i, m, k]`,
/// or `[i, k, m]` where it says `transposed`, `b` `[i, k, n]` or `[i, n, k]`, `c` `[i, m, n]`; a factor that is one matrix is that of
/// each i.
///
/// # Errors
/// The shapes do not fit, or there are more matrices than a dispatch has workgroups in one dimension.
pub fn batched(
    r: &mut Recorder,
    (a, a_transposed): (&Tensor, bool),
    (b, b_transposed): (&Tensor, bool),
    c: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let matrix = |tensor: &Tensor| match *tensor.shape() {
        [rows, columns] => Ok((1, rows, columns)),
        [batch, rows, columns] => Ok((batch, rows, columns)),
        _ => Err(Error::shape("matmul", tensor.name(), "[rows, columns] or [batch, rows, columns]", tensor.shape())),
    };
    let turned = |(batch, rows, columns), is: bool| if is { (batch, columns, rows) } else { (batch, rows, columns) };
    let (a_batch, m, k) = turned(matrix(a)?, a_transposed);
    let (b_batch, kb, n) = turned(matrix(b)?, b_transposed);
    let batch = a_batch.max(b_batch);
    if kb != k || [a_batch, b_batch].iter().any(|&size| size != batch && size != 1) {
        let expected = format!("that makes factors [{a_batch}, {k}, n], to follow `{a:?}`");
        return Err(Error::shape("matmul", b.name(), expected, b.shape()));
    }
    expect_len("matmul", c, batch * m * n)?;
    let vectors = vectors(r, m, n, k);
    let [down, across] = [m, n].map(|size| size.div_ceil(32 * vectors));
    let constants = [("VECTORS", vectors as u32), ("SHARES", shares(r, k) as u32)];
    let of_flops =
        usize::try_from(r.most_flops() / flops(batch * m, n, 1).max(1)).unwrap_or(usize::MAX) / DEPTH * DEPTH;
    let slice = k.next_multiple_of(DEPTH).min(r.terms_at_once((25, DEPTH), DEPTH)).min(of_flops.max(DEPTH));
    for first in 0..k.div_ceil(slice) {
        let params = Params {
            m: m as u32,
            n: n as u32,
            k: k as u32,
            transpose_a: a_transposed.into(),
            transpose_b: b_transposed.into(),
            a_offset: 0,
            a_stride: if a_transposed { m } else { k } as u32,
            slice: slice as u32,
            first: first as u32,
            biases: 0,
            accumulate: (accumulate || first > 0).into(),
            a_batch: if a_batch == 1 { 0 } else { (m * k) as u32 },
            b_batch: if b_batch == 1 { 0 } else { (k * n) as u32 },
        };
        // A stride of 0 for both would be slices.
        debug_assert!(batch == 1 || params.a_batch + params.b_batch > 0);
        r.dispatch(&KERNEL, &constants, params, &[a, b, a, a, c], [across, down, batch])?;
        let terms = slice.min(k - first * slice);
        let rereads = super::product(&[batch, down - 1, terms, n]) + super::product(&[batch, across - 1, m, terms]);
        r.cost(flops(batch * m, n, terms), 4 * rereads);
        if params.accumulate == 0 {
            r.overwrites(c);
        }
    }
    Ok(())
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [a, b, bias, bias2, c] = args.all();
    let (m, n, k, slice) = (p.m as usize, p.n as usize, p.k as usize, p.slice as usize);
    let matrix = |data, rows, columns, stride, transpose| match transpose {
        0 => Matrix::strided(data, rows, columns, stride),
        _ => Matrix::strided(data, columns, rows, stride).t(),
    };
    let (a, b, bias, bias2) = (a.read(), b.read(), bias.read(), bias2.read());
    let is_batched = p.a_batch + p.b_batch > 0;
    for (i, c) in c.write().chunks_exact_mut(m * n).enumerate() {
        let (batch, part) = if is_batched { (i, 0) } else { (0, i) };
        let a_offset = p.a_offset as usize + batch * p.a_batch as usize;
        let a = matrix(&a[a_offset..], m, k, p.a_stride as usize, p.transpose_a);
        let b = matrix(&b[batch * p.b_batch as usize..], k, n, if p.transpose_b == 0 { n } else { k }, p.transpose_b);
        if p.biases > 0 {
            let begin = |row: &mut [F]| {
                for (j, c) in row.iter_mut().enumerate() {
                    let bias = if p.biases == 2 { bias[j] + bias2[j] } else { bias[j] };
                    *c = if p.accumulate != 0 { *c + bias } else { bias };
                }
            };
            if c.len() < 1 << 16 || threads::is_alone() {
                c.chunks_exact_mut(n).for_each(begin);
            } else {
                c.par_chunks_exact_mut(n).with_min_len(((1 << 15) / n).max(1)).for_each(begin);
            }
        }
        let from = (p.first as usize + part) * slice;
        let to = k.min(from + slice);
        product(c, a.columns(from, to), b.rows(from, to), p.biases > 0 || p.accumulate != 0, !threads::is_alone());
    }
}
