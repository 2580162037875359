//! Matrix products of the CPU twins, by the `gemm` crates: by those of f32 and f64, since `gemm` itself compiles complex ones too.

use crate::real::{Parallelism, Real};

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
    for x in [&a, &b] {
        let last = x.rows.saturating_sub(1) * x.row_stride + x.columns.saturating_sub(1) * x.column_stride;
        assert!(x.rows * x.columns == 0 || last < x.data.len());
    }
    if m <= FEW_ROWS && b.column_stride == 1 && a.column_stride == 1 && (!threads || m * k * n <= MOST_OF_ONE_THREAD) {
        if !accumulate {
            c.fill(F::zero());
        }
        let mut rows = c.chunks_exact_mut(n.max(1)).enumerate();
        let row = |i: usize| &a.data[i * a.row_stride..][..k];
        loop {
            let b = (b.data, b.row_stride);
            match [rows.next(), rows.next(), rows.next(), rows.next()] {
                [Some((i, c0)), Some((_, c1)), Some((_, c2)), Some((_, c3))] => {
                    F::vectorize(RowProduct { c: [c0, c1, c2, c3], x: [i, i + 1, i + 2, i + 3].map(row), b });
                }
                rest => {
                    let rest = rest.into_iter().flatten();
                    return rest.for_each(|(i, c)| F::vectorize(RowProduct { c: [c], x: [row(i)], b }));
                }
            }
        }
    }
    let parallelism = if threads { Parallelism::Rayon(0) } else { Parallelism::None };
    let one = F::one();
    // Their inner loop wants a result whose columns are at least as close as its rows: of a row-major one, the transpose.
    let (a, b, strides) = if n > 1 { (b.t(), a.t(), (n as isize, 1)) } else { (a, b, (1, 1)) };
    // SAFETY: every index i * row_stride + j * column_stride lies within the slices, as just checked; c is the only
    // mutable one.
    unsafe {
        F::gemm()(
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

/// Of so many rows or fewer, [`RowProduct`], which takes no memory. A row's numbers are the same in any of them.
const FEW_ROWS: usize = 8;

/// A product of few rows this large is worth several threads: b is beyond a core's cache.
const MOST_OF_ONE_THREAD: usize = 1 << 18;

/// `c += x b` for N rows, b row-major with rows so far apart: four rows of b at a time, each read from start to end. A third faster than the
/// `gemm` crate's product of one row (256 x 256: 3.7 microseconds in place of 5.3), which is what generation waits for.
struct RowProduct<'a, F, const N: usize> {
    c: [&'a mut [F]; N],
    x: [&'a [F]; N],
    b: (&'a [F], usize),
}

impl<F: Real, const N: usize> pulp::NullaryFnOnce for RowProduct<'_, F, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        const ROWS: usize = 4;
        let Self { c, x, b: (b, stride) } = self;
        let (n, k) = (c[0].len(), x[0].len());
        let c = c.map(|c| &mut c[..n]);
        let x = x.map(|x| &x[..k]);
        let whole = k - k % ROWS;
        for i in (0..whole).step_by(ROWS) {
            let rows: [&[F]; ROWS] = std::array::from_fn(|r| &b[(i + r) * stride..][..n]);
            let x: [[F; ROWS]; N] = std::array::from_fn(|row| std::array::from_fn(|r| x[row][i + r]));
            for j in 0..n {
                for row in 0..N {
                    let mut sum = c[row][j];
                    for r in 0..ROWS {
                        sum = rows[r][j].mul_add(x[row][r], sum);
                    }
                    c[row][j] = sum;
                }
            }
        }
        for i in whole..k {
            for row in 0..N {
                c[row].iter_mut().zip(&b[i * stride..]).for_each(|(c, &b)| *c = b.mul_add(x[row][i], *c));
            }
        }
    }
}
