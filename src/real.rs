//! The float types the CPU twins run in: f32 (the CPU device) and f64 (the reference).

use std::cell::RefCell;
use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

pub use gemm_common::Parallelism;
use gemm_common::microkernel::MicroKernelFn;

/// A float type of the CPU twins.
pub trait Real: num_traits::Float + Sum + Debug + Send + Sync + 'static {
    /// Converts from `f64`, rounding.
    fn of(x: f64) -> Self;
    /// The nearest value of f16.
    fn rounded_to_f16(self) -> Self {
        Self::of(rounded_to_f16(self.to_f64().unwrap_or(f64::NAN)))
    }
    /// `c = a b`, or `c += a b`: the `gemm` crates' function; `is_short` of few rows, each value of b used but a few times.
    fn gemm(is_short: bool) -> Gemm<Self>;
    /// What such a product is made of, for factors that are laid out once and multiplied often; none where that is no faster.
    fn micro_kernels() -> Option<MicroKernels<Self>>;
    /// `2/√π ∫ exp(-t²) dt`, t from 0 to x.
    fn erf(self) -> Self;
    /// exp, of which a loop vectorises; NaN stays NaN.
    fn fast_exp(self) -> Self;
    /// tanh, likewise.
    fn fast_tanh(self) -> Self;
    /// `1 / (1 + exp(-x))`, likewise; within 4 ULP where x is above -87.
    fn sigmoid(self) -> Self;
    /// `x <- tanh(x)` for each element.
    fn tanh_in_place(xs: &mut [Self]) {
        Self::widest(|| xs.iter_mut().for_each(|x| *x = x.fast_tanh()));
    }
    /// `x <- 1 / (1 + exp(-x))` for each element.
    fn sigmoid_in_place(xs: &mut [Self]) {
        Self::widest(|| xs.iter_mut().for_each(|x| *x = x.sigmoid()));
    }
    /// `x <- exp(x)` for each element.
    fn exp_in_place(xs: &mut [Self]) {
        Self::widest(|| xs.iter_mut().for_each(|x| *x = x.fast_exp()));
    }
    /// Runs a loop compiled for the widest vectors there are, for one that computes more than it reads: as [`Self::vectorize`].
    fn widest(work: impl pulp::NullaryFnOnce<Output = ()>);
    /// Runs a loop compiled for wide vectors, of 256 bits at most on x86-64: a short closure, or a struct whose `call` is
    /// `#[inline(always)]`, for what is not inlined is not vectorised.
    fn vectorize(work: impl pulp::NullaryFnOnce<Output = ()>);
    #[doc(hidden)]
    fn spare() -> &'static LocalKey<Spare<Self>>;
}

/// Memory that a thread's twins had for what lies between, for those to come.
#[doc(hidden)]
pub type Spare<F> = RefCell<Vec<Vec<F>>>;

/// How much of it a thread keeps: so many pieces, of at most so many elements.
const MOST_SPARE: (usize, usize) = (16, 1 << 16);

/// Zeros for what lies between a twin's inputs and results; a twin that runs again finds the memory of its last run.
pub(crate) struct Scratch<F: Real>(Vec<F>);

impl<F: Real> Scratch<F> {
    pub fn zeros(len: usize) -> Self {
        let mut values = F::spare().with_borrow_mut(Vec::pop).unwrap_or_default();
        values.clear();
        values.resize(len, F::zero());
        Self(values)
    }
}

impl<F: Real> Drop for Scratch<F> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.0);
        let (most, most_elements) = MOST_SPARE;
        // A thread that ends has none any more.
        let _ = F::spare().try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < most && values.capacity() <= most_elements {
                spare.push(values);
            }
        });
    }
}

impl<F: Real> Deref for Scratch<F> {
    type Target = [F];

    fn deref(&self) -> &[F] {
        &self.0
    }
}

impl<F: Real> DerefMut for Scratch<F> {
    fn deref_mut(&mut self) -> &mut [F] {
        &mut self.0
    }
}

/// A product of the `gemm` crates: m, n, k; the result, its strides by column and row, and whether it is added to; both factors, each
/// with such strides; what the result and the product are multiplied by; which of the three are conjugated; the threads.
pub type Gemm<F> = unsafe fn(
    usize,
    usize,
    usize,
    *mut F,
    isize,
    isize,
    bool,
    *const F,
    isize,
    isize,
    *const F,
    isize,
    isize,
    F,
    F,
    bool,
    bool,
    bool,
    Parallelism,
);

/// The innermost loops of the `gemm` crates: products of a panel, so many columns of which each has its values for one term side by
/// side, with a few rows.
#[derive(Clone, Copy)]
pub struct MicroKernels<F> {
    /// Columns of a vector.
    pub lanes: usize,
    /// Columns of a panel.
    pub columns: usize,
    /// Rows, at most.
    pub rows: usize,
    /// That of so many vectors and rows.
    pub of: fn(vectors: usize, rows: usize) -> MicroKernelFn<F>,
}

/// AVX2, if the CPU has it.
#[cfg(target_arch = "x86_64")]
fn v3() -> Option<pulp::x86::V3> {
    static V3: std::sync::OnceLock<Option<pulp::x86::V3>> = std::sync::OnceLock::new();
    *V3.get_or_init(pulp::x86::V3::try_new)
}

/// Whether the CPU has all of AVX-512 that products use.
#[cfg(target_arch = "x86_64")]
fn has_v4() -> bool {
    static V4: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *V4.get_or_init(|| pulp::x86::V4::try_new().is_some())
}

/// The widest vectors that products of many rows use here, if they have a name.
pub(crate) fn vectors() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if has_v4() {
        return Some("AVX-512");
    } else if v3().is_some() {
        return Some("AVX2");
    }
    None
}

/// The `gemm` crate's function for AVX2, which it takes by itself where there is nothing wider.
///
/// # Safety
/// As of [`Gemm`], on a CPU with AVX2.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::too_many_arguments, reason = "those of `Gemm`")]
unsafe fn gemm_v3(
    m: usize,
    n: usize,
    k: usize,
    c: *mut f32,
    c_columns: isize,
    c_rows: isize,
    accumulate: bool,
    a: *const f32,
    a_columns: isize,
    a_rows: isize,
    b: *const f32,
    b_columns: isize,
    b_rows: isize,
    alpha: f32,
    beta: f32,
    conjugate_c: bool,
    conjugate_a: bool,
    conjugate_b: bool,
    parallelism: Parallelism,
) {
    use gemm_common::simd::{MixedSimd, V3};
    use gemm_f32::microkernel::fma::f32::{H_M, H_N, H_UKR, MR_DIV_N, NR, UKR};
    const LANES: usize = 8;
    let v3 = <V3 as MixedSimd<f32, f32, f32, f32>>::try_new().expect("a CPU with AVX2");
    // SAFETY: the caller's promise.
    unsafe {
        gemm_common::gemm::gemm_basic_generic::<_, f32, LANES, { MR_DIV_N * LANES }, NR, MR_DIV_N, H_M, H_N>(
            v3,
            m,
            n,
            k,
            c,
            c_columns,
            c_rows,
            accumulate,
            a,
            a_columns,
            a_rows,
            b,
            b_columns,
            b_rows,
            alpha,
            beta,
            conjugate_c,
            conjugate_a,
            conjugate_b,
            |a, b, c| a * b + c,
            &UKR,
            &H_UKR,
            false,
            parallelism,
        );
    }
}

impl Real for f32 {
    fn gemm(is_short: bool) -> Gemm<Self> {
        // It takes AVX-512 where there is `avx512f`, and then asks for what most CPUs have beside that, but not all.
        #[cfg(target_arch = "x86_64")]
        if v3().is_some() && (is_short || !has_v4()) {
            return gemm_v3;
        }
        let _ = is_short;
        gemm_f32::gemm::f32::get_gemm_fn()
    }
    fn micro_kernels() -> Option<MicroKernels<Self>> {
        #[cfg(target_arch = "x86_64")]
        if has_v4() {
            use gemm_f32::microkernel::avx512f::f32::{MR_DIV_N, NR, UKR};
            let of = |vectors: usize, rows: usize| UKR[vectors - 1][rows - 1];
            return Some(MicroKernels { lanes: 16, columns: MR_DIV_N * 16, rows: NR, of });
        } else if v3().is_some() {
            use gemm_f32::microkernel::fma::f32::{MR_DIV_N, NR, UKR};
            let of = |vectors: usize, rows: usize| UKR[vectors - 1][rows - 1];
            return Some(MicroKernels { lanes: 8, columns: MR_DIV_N * 8, rows: NR, of });
        }
        None
    }
    fn of(x: f64) -> Self {
        x as f32
    }
    fn erf(self) -> Self {
        libm::erff(self)
    }
    #[inline(always)]
    fn fast_exp(self) -> Self {
        exp(self)
    }
    #[inline(always)]
    fn fast_tanh(self) -> Self {
        tanh(self)
    }
    #[inline(always)]
    fn sigmoid(self) -> Self {
        sigmoid(self)
    }
    fn widest(work: impl pulp::NullaryFnOnce<Output = ()>) {
        // pulp compiles the loop once for each vector width and picks one at run time.
        static ARCH: std::sync::LazyLock<pulp::Arch> = std::sync::LazyLock::new(pulp::Arch::new);
        ARCH.dispatch(work);
    }
    fn vectorize(work: impl pulp::NullaryFnOnce<Output = ()>) {
        // Vectors of 512 bits are of no use to loops that read each value once: half of them lie in two lines of the cache.
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = v3() {
            return v3.vectorize(work);
        }
        Self::widest(work);
    }
    fn spare() -> &'static LocalKey<Spare<Self>> {
        thread_local!(static SPARE: Spare<f32> = const { RefCell::new(Vec::new()) });
        &SPARE
    }
}

#[cfg(feature = "reference")]
impl Real for f64 {
    fn gemm(_: bool) -> Gemm<Self> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
    fn micro_kernels() -> Option<MicroKernels<Self>> {
        None
    }
    fn of(x: f64) -> Self {
        x
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn fast_exp(self) -> Self {
        self.exp()
    }
    fn fast_tanh(self) -> Self {
        self.tanh()
    }
    fn sigmoid(self) -> Self {
        1.0 / (1.0 + (-self).exp())
    }
    fn widest(work: impl pulp::NullaryFnOnce<Output = ()>) {
        work.call();
    }
    fn vectorize(work: impl pulp::NullaryFnOnce<Output = ()>) {
        work.call();
    }
    fn spare() -> &'static LocalKey<Spare<Self>> {
        thread_local!(static SPARE: Spare<f64> = const { RefCell::new(Vec::new()) });
        &SPARE
    }
}

/// The nearest value of f16, ties to even: 11 bits, the last of them worth 2⁻²⁴ at least.
fn rounded_to_f16(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let last = 2f64.powi(exponent.max(-14) - 10);
    let rounded = (x / last).round_ties_even() * last;
    if rounded.abs() > 65_504.0 { f64::INFINITY.copysign(x) } else { rounded }
}

/// Added to a small number, it leaves that number, rounded to an integer, in the low bits: 1.5 * 2²³.
const ROUND: f32 = 12_582_912.0;

/// `(n + ROUND, expm1 r)` with `a = n ln 2 + r`, `|r| <= ln 2 / 2`: the degree-7 Taylor polynomial.
#[inline(always)]
fn reduced_expm1(a: f32) -> (f32, f32) {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let rounded = a.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = (-n).mul_add(LN2_LOW, (-n).mul_add(LN2_HIGH, a));
    let p = 1.0f32 / 5040.0;
    let p = p.mul_add(r, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    (rounded, (p * r).mul_add(r, r))
}

/// 2ⁿ of n + ROUND, n a whole number from -126 to 127.
#[inline(always)]
fn power_of_two(rounded: f32) -> f32 {
    f32::from_bits(rounded.to_bits().wrapping_shl(23).wrapping_add(1f32.to_bits()))
}

/// tanh without a branch, so that a loop over it vectorises; the standard library's is a call per element.
///
/// `tanh x = (e - 1) / (e + 1)` with `e = exp(2|x|)` loses the digits of a small `x`, so `expm1` is built instead:
/// `2|x| = n ln 2 + r`, `expm1 = 2ⁿ (expm1(r) + 1) - 1`. Within 4 ULP of the exact value for every float
/// (`tests::tanh_ulp` samples, `tanh_all` proves).
#[inline(always)]
fn tanh(x: f32) -> f32 {
    // tanh is 1 to the last bit above 9.01; the select form (not min) lets a NaN through.
    let a = x.abs();
    let (rounded, expm1_r) = reduced_expm1(if a > 10.0 { 10.0 } else { a } * 2.0);
    let scale = power_of_two(rounded);
    let expm1 = expm1_r.mul_add(scale, scale - 1.0);
    (expm1 / (expm1 + 2.0)).copysign(x)
}

/// exp without a branch: `x = n ln 2 + r`, `exp x = 2ⁿ (expm1(r) + 1)`, and 2ⁿ in two factors, since n reaches 128 and
/// results go down to the smallest numbers. Within 2 ULP of the exact value for every float (`tests::exp_ulp` samples,
/// `exp_all` proves).
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Beyond these, 0 and infinity; the select form lets a NaN through.
    let a = if x > 89.0 { 89.0 } else { x };
    let (rounded, expm1_r) = reduced_expm1(if a < -105.0 { -105.0 } else { a });
    let n = rounded - ROUND;
    let half = (n * 0.5).floor();
    (expm1_r + 1.0) * power_of_two(half + ROUND) * power_of_two(n - half + ROUND)
}

/// `1 / (1 + exp(-x))`: of exp(-x) that is below 2⁻¹²⁵ nothing is left in the sum, and 2¹²⁸ is infinity, so 2ⁿ is one factor.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let a = if -x > 89.0 { 89.0 } else { -x };
    let (rounded, expm1_r) = reduced_expm1(if a < -87.0 { -87.0 } else { a });
    1.0 / (1.0 + (expm1_r + 1.0) * power_of_two(rounded))
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn ulps(x: f32) -> f64 {
        let (got, want) = (f64::from(tanh(x)), f64::from(x).tanh());
        let ulp = f64::from(f32::from_bits((want.abs() as f32).to_bits() + 1)) - f64::from(want.abs() as f32);
        (got - want).abs() / ulp
    }

    #[test]
    fn tanh_ulp() {
        for x in (0..=u32::MAX).step_by(4093).map(f32::from_bits).filter(|x| x.is_finite()) {
            assert!(ulps(x) <= 4.0, "tanh({x}) is {} ULP off", ulps(x));
        }
    }

    #[test]
    #[ignore = "all 2^32 floats: minutes"]
    fn tanh_all() {
        (0..=u32::MAX).into_par_iter().map(f32::from_bits).filter(|x| x.is_finite()).for_each(|x| {
            assert!(ulps(x) <= 4.0, "tanh({x}) is {} ULP off", ulps(x));
        });
    }

    /// How far a function is from the exact value, in units in the last place of that value.
    fn off(f: fn(f32) -> f32, exact: fn(f64) -> f64, x: f32) -> f64 {
        let (got, want) = (f64::from(f(x)), exact(f64::from(x)));
        let rounded = want as f32;
        if f64::from(rounded) == got {
            return 0.0;
        }
        let ulp = f64::from(f32::from_bits(rounded.abs().to_bits() + 1)) - f64::from(rounded.abs());
        (got - want).abs() / ulp
    }

    #[test]
    fn exp_ulp() {
        for x in (0..=u32::MAX).step_by(4093).map(f32::from_bits).filter(|x| x.is_finite()) {
            assert!(off(exp, f64::exp, x) <= 2.0, "exp({x}) is {} ULP off", off(exp, f64::exp, x));
            if x < -87.0 {
                continue; // there sigmoid is 0 in place of a number below the smallest normal one
            }
            let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
            assert!(off(sigmoid, exact, x) <= 4.0, "sigmoid({x}) is {} ULP off", off(sigmoid, exact, x));
        }
    }

    #[test]
    #[ignore = "all 2^32 floats: minutes"]
    fn exp_all() {
        (0..=u32::MAX).into_par_iter().map(f32::from_bits).filter(|x| x.is_finite()).for_each(|x| {
            assert!(off(exp, f64::exp, x) <= 2.0, "exp({x}) is {} ULP off", off(exp, f64::exp, x));
            if x >= -87.0 {
                let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
                assert!(off(sigmoid, exact, x) <= 4.0, "sigmoid({x}) is {} ULP off", off(sigmoid, exact, x));
            }
        });
    }

    #[test]
    fn f16_has_11_bits() {
        let tiny = 2f64.powi(-24);
        for (x, want) in [
            (1.0 + 1.0 / 2048.0, 1.0),
            (1.0 + 3.0 / 2048.0, 1.0 + 4.0 / 2048.0),
            (-1.000_5, -1.0 - 1.0 / 1024.0),
            (0.1, 0.099_975_585_937_5),
            (65_519.0, 65_504.0),
            (65_520.0, f64::INFINITY),
            (f64::NEG_INFINITY, f64::NEG_INFINITY),
            (2.5 * tiny, 2.0 * tiny),
            (0.5 * tiny, 0.0),
            (0.51 * tiny, tiny),
            (1e-300, 0.0),
            (f64::MAX, f64::INFINITY),
        ] {
            assert_eq!((rounded_to_f16(x), rounded_to_f16(-x)), (want, -want), "{x}");
        }
        assert!(rounded_to_f16(f64::NAN).is_nan());
    }

    #[test]
    fn exp_and_sigmoid_special_values() {
        let special = [0.0, 1e4, -1e4, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let mut x = special;
        f32::exp_in_place(&mut x);
        assert_eq!(x[..5], [1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0]);
        assert!(x[5].is_nan());
        let mut x = special;
        f32::sigmoid_in_place(&mut x);
        assert_eq!(x[..5], [0.5, 1.0, 0.0, 1.0, 0.0]);
        assert!(x[5].is_nan());
    }

    #[test]
    fn tanh_special_values() {
        let mut x = [0.0, -0.0, 20.0, -20.0, 1e4, -1e4, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        f32::tanh_in_place(&mut x);
        assert_eq!(x[..8], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]);
        assert!(x[1].is_sign_negative());
        assert!(x[8].is_nan());
    }
}
