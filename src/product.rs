//! Matrix products of the CPU twins, by the `gemm` crates: by those of f32 and f64, since `gemm` itself compiles complex ones too.

use crate::real::{MicroKernels, Parallelism, Real};

/// A matrix in a slice: `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, F> {
    data: &'a [F],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, F: Real> Matrix<'a, F> {
    /// Row-major, `[rows, columns]`.
    pub fn new(data: &'a [F], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns);
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The first `columns` of rows that are `stride` apart.
    pub fn strided(data: &'a [F], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(columns <= stride && (rows == 0 || data.len() >= (rows - 1) * stride + columns));
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// Every index lies within the slice.
    fn check(&self) {
        let last = self.rows.saturating_sub(1) * self.row_stride + self.columns.saturating_sub(1) * self.column_stride;
        assert!(self.rows * self.columns == 0 || last < self.data.len());
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Columns `from..to`.
    pub fn columns(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.columns);
        Self { data: &self.data[(from * self.column_stride).min(self.data.len())..], columns: to - from, ..self }
    }

    /// Rows `from..to`.
    pub fn rows(self, from: usize, to: usize) -> Self {
        self.t().columns(from, to).t()
    }
}

/// `c = a b`, or `c += a b`; c is row-major. `threads` says whether to use them all.
pub(crate) fn product<F: Real>(c: &mut [F], a: Matrix<'_, F>, b: Matrix<'_, F>, accumulate: bool, threads: bool) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && c.len() == m * n, "[{m}, {k}] times [{}, {n}] into {}", b.rows, c.len());
    [a, b].iter().for_each(Matrix::check);
    let is_small = !threads || m * k * n <= MOST_OF_ONE_THREAD;
    if m <= FEW_ROWS && a.column_stride == 1 && b.column_stride == 1 && n > 0 && k > 0 && is_small {
        if !accumulate {
            c.fill(F::zero());
        }
        return F::widest(FewRows { c, x: (a.data, a.row_stride), b: (b.data, b.row_stride), k, n });
    }
    let parallelism = if threads { Parallelism::Rayon(0) } else { Parallelism::None };
    let one = F::one();
    // Their inner loop wants a result whose columns are at least as close as its rows: of a row-major one, the transpose.
    let (a, b, strides) = if n > 1 { (b.t(), a.t(), (n as isize, 1)) } else { (a, b, (1, 1)) };
    // SAFETY: every index i * row_stride + j * column_stride lies within the slices, as just checked; c is the only
    // mutable one.
    unsafe {
        F::gemm(m <= FEW_ROWS)(
            a.rows,
            b.columns,
            k,
            c.as_mut_ptr(),
            strides.0,
            strides.1,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            one,
            one,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The right factor of many products by one thread each, which may be laid out once as the micro-kernels read it.
pub(crate) struct Packed<'a, F> {
    b: Matrix<'a, F>,
    panels: Option<Panels<F>>,
}

/// Terms of a panel that are multiplied with all rows before those after them.
const TERMS: usize = 256;

/// The columns of a row-major matrix, some at a time: what they have for a term side by side, term by term.
struct Panels<F> {
    kernels: MicroKernels<F>,
    values: Vec<F>,
    /// The first that is at the start of a line of the cache.
    first: usize,
}

impl<'a, F: Real> Packed<'a, F> {
    /// As it is; row-major.
    pub fn new(b: Matrix<'a, F>) -> Self {
        Self { b, panels: None }
    }

    /// Lays it out, where there are such kernels.
    pub fn lay_out(&mut self) {
        self.panels = F::micro_kernels().map(|kernels| Panels::new(self.b, kernels));
    }

    /// Whether a row's products are the same, to the bit, whatever other rows are multiplied with it.
    pub fn is_by_row(&self) -> bool {
        self.panels.is_some()
    }

    /// `c = a b`, or `c += a b`; a and c are row-major.
    pub fn product(&self, c: &mut [F], a: Matrix<'_, F>, accumulate: bool) {
        match &self.panels {
            Some(panels) => panels.product(c, a, self.b, accumulate),
            None => product(c, a, self.b, accumulate, false),
        }
    }
}

impl<F: Real> Panels<F> {
    fn new(b: Matrix<'_, F>, kernels: MicroKernels<F>) -> Self {
        const LINE: usize = 64;
        assert_eq!(b.column_stride, 1);
        b.check();
        let width = kernels.columns;
        let line = LINE / size_of::<F>();
        let mut values = vec![F::zero(); b.rows * b.columns.next_multiple_of(width) + line];
        let first = values.as_ptr().align_offset(LINE).min(line);
        let panels = values[first..].chunks_exact_mut(b.rows.max(1) * width);
        for (panel, column) in panels.zip((0..b.columns).step_by(width)) {
            for (k, values) in panel.chunks_exact_mut(width).enumerate() {
                let row = &b.data[k * b.row_stride..][..b.columns][column..];
                values.iter_mut().zip(row).for_each(|(value, &b)| *value = b);
            }
        }
        Self { kernels, values, first }
    }

    fn product(&self, c: &mut [F], a: Matrix<'_, F>, b: Matrix<'_, F>, accumulate: bool) {
        assert!(a.columns == b.rows && a.column_stride == 1 && c.len() == a.rows * b.columns);
        a.check();
        let MicroKernels { lanes, columns: width, rows, of } = self.kernels;
        let panels = self.values[self.first..].chunks_exact(b.rows.max(1) * width);
        for (panel, column) in panels.zip((0..b.columns).step_by(width)) {
            let columns = width.min(b.columns - column);
            for k in (0..a.columns).step_by(TERMS) {
                let terms = TERMS.min(a.columns - k);
                let panel = &panel[k * width..];
                for row in (0..a.rows).step_by(rows) {
                    let rows = rows.min(a.rows - row);
                    let kernel = of(columns.div_ceil(lanes), rows);
                    let (c, a_row) = (&mut c[row * b.columns + column..], &a.data[row * a.row_stride + k..]);
                    // SAFETY: so many rows and columns of c, terms of rows of a, and terms of a panel, to the end of which vectors are read,
                    // lie within the slices: those of a as just checked, the others by their lengths. The CPU has the kernels' instructions.
                    unsafe {
                        kernel(
                            columns,
                            rows,
                            terms,
                            c.as_mut_ptr(),
                            panel.as_ptr(),
                            a_row.as_ptr(),
                            b.columns as isize,
                            1,
                            width as isize,
                            1,
                            a.row_stride as isize,
                            F::one(),
                            F::one(),
                            u8::from(accumulate || k > 0),
                            false,
                            false,
                            false,
                            std::ptr::null(),
                        );
                    }
                }
            }
        }
    }
}

/// Of so many rows or fewer, [`FewRows`].
pub(crate) const FEW_ROWS: usize = 8;

/// A product of few rows this large is worth several threads: b is beyond a core's cache.
const MOST_OF_ONE_THREAD: usize = 1 << 18;

/// Rows and columns of a block of [`FewRows`].
const ROWS: usize = 4;
const COLUMNS: usize = 16;

/// `c += x b` for few rows, b row-major: what generation and frames that come one by one wait for. Each sum goes from its first term to its
/// last, however many rows there are. Faster than the `gemm` crate's products of so few, and takes no memory.
struct FewRows<'a, F> {
    c: &'a mut [F],
    /// `[rows, k]`, rows so far apart.
    x: (&'a [F], usize),
    /// `[k, n]`, rows so far apart.
    b: (&'a [F], usize),
    k: usize,
    n: usize,
}

impl<F: Real> pulp::NullaryFnOnce for FewRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let rows = self.c.len() / self.n;
        let in_blocks = rows - rows % ROWS;
        for row in (0..in_blocks).step_by(ROWS) {
            for j in (0..self.n - self.n % COLUMNS).step_by(COLUMNS) {
                self.block(row, j);
            }
        }
        for row in 0..rows {
            let from = if row < in_blocks { self.n - self.n % COLUMNS } else { 0 };
            let c = &mut self.c[row * self.n..][from..self.n];
            if !c.is_empty() {
                one_row(c, &self.x.0[row * self.x.1..][..self.k], &self.b.0[from..], self.b.1);
            }
        }
    }
}

/// `c += x b`, of columns of b whose rows are so far apart: several rows of b at a time, each read from start to end.
#[inline(always)]
fn one_row<F: Real>(c: &mut [F], x: &[F], b: &[F], stride: usize) {
    const LANES: usize = 16;
    let columns = c.len();
    let (vectors, rest) = c.as_chunks_mut::<LANES>();
    let (terms, last_terms) = x.as_chunks::<4>();
    let row = |k: usize| b[k * stride..][..columns].as_chunks::<LANES>();
    for (i, x) in terms.iter().enumerate() {
        let b = [0, 1, 2, 3].map(|k| row(4 * i + k));
        let b_vectors = b.map(|(b, _)| &b[..vectors.len()]);
        for (j, c) in vectors.iter_mut().enumerate() {
            let mut sums = *c;
            for (b, &x) in b_vectors.iter().zip(x) {
                for lane in 0..LANES {
                    sums[lane] = b[j][lane].mul_add(x, sums[lane]);
                }
            }
            *c = sums;
        }
        for (j, c) in rest.iter_mut().enumerate() {
            *c = (0..4).fold(*c, |sum, k| b[k].1[j].mul_add(x[k], sum));
        }
    }
    for (i, &x) in last_terms.iter().enumerate() {
        let b = &b[(4 * terms.len() + i) * stride..];
        vectors.as_flattened_mut().iter_mut().chain(&mut *rest).zip(b).for_each(|(c, &b)| *c = b.mul_add(x, *c));
    }
}

impl<F: Real> FewRows<'_, F> {
    /// Some rows and columns of c, whose sums stay in registers: b is read once for these rows.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "one index for x and b")]
    fn block(&mut self, row: usize, j: usize) {
        let mut sums = [[F::zero(); COLUMNS]; ROWS];
        for (i, sums) in sums.iter_mut().enumerate() {
            sums.copy_from_slice(&self.c[(row + i) * self.n + j..][..COLUMNS]);
        }
        let x: [&[F]; ROWS] = std::array::from_fn(|i| &self.x.0[(row + i) * self.x.1..][..self.k]);
        for k in 0..self.k {
            let b = &self.b.0[k * self.b.1 + j..][..COLUMNS];
            for i in 0..ROWS {
                for w in 0..COLUMNS {
                    sums[i][w] = b[w].mul_add(x[i][k], sums[i][w]);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            self.c[(row + i) * self.n + j..][..COLUMNS].copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// What is laid out multiplies as a plain loop does, for terms around [`TERMS`] and columns that fill no vector; and each row by
    /// itself, to the bit.
    #[test]
    fn what_is_laid_out_multiplies_row_by_row() {
        for (k, n) in [(1, 1), (3, 65), (255, 7), (256, 64), (257, 130), (513, 33)] {
            let (rows, stride) = (13, k + 5);
            let mut rng = rng::manual_seed(1);
            let [a, b, start] = [rows * stride, k * (n + 3), rows * n].map(|len| rng.randn(len));
            let a = |first: usize, rows: usize| Matrix::strided(&a[first * stride..], rows, k, stride);
            let mut packed = Packed::new(Matrix::strided(&b, k, n, n + 3));
            packed.lay_out();
            for accumulate in [false, true] {
                let mut c = start.clone();
                packed.product(&mut c, a(0, rows), accumulate);
                for (at, &c) in c.iter().enumerate() {
                    let terms = (0..k).map(|t| f64::from(a(at / n, 1).data[t]) * f64::from(b[t * (n + 3) + at % n]));
                    let want = terms.sum::<f64>() + if accumulate { f64::from(start[at]) } else { 0.0 };
                    assert!(
                        (f64::from(c) - want).abs() < 1e-6 * (10 + k) as f64,
                        "{k}, {n}, {at}: {c} in place of {want}"
                    );
                }
                for row in (0..rows).filter(|_| packed.is_by_row()) {
                    let mut alone = start[row * n..][..n].to_vec();
                    packed.product(&mut alone, a(row, 1), accumulate);
                    assert_eq!(alone, c[row * n..][..n], "{k}, {n}, row {row}");
                }
            }
        }
    }
}
