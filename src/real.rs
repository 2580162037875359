//! The float types the CPU twins run in: f32 (the CPU device) and f64 (the reference).

use std::fmt::Debug;
use std::iter::Sum;

/// A float type of the CPU twins.
pub trait Real: num_traits::Float + Sum + Debug + Send + Sync + 'static {
    /// Converts from `f64`, rounding.
    fn of(x: f64) -> Self;
    /// `x <- tanh(x)` for each element; NaN stays NaN.
    fn tanh_in_place(xs: &mut [Self]);
    /// Runs a loop compiled for the widest vectors there are: a short closure, or a struct whose `call` is
    /// `#[inline(always)]`, for what is not inlined is not vectorised.
    fn vectorize(work: impl pulp::NullaryFnOnce<Output = ()>);
}

impl Real for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn tanh_in_place(xs: &mut [Self]) {
        Self::vectorize(|| xs.iter_mut().for_each(|x| *x = tanh(*x)));
    }
    fn vectorize(work: impl pulp::NullaryFnOnce<Output = ()>) {
        // pulp compiles the loop once for each vector width and picks one at run time.
        pulp::Arch::new().dispatch(work);
    }
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn tanh_in_place(xs: &mut [Self]) {
        for x in xs {
            *x = x.tanh();
        }
    }
    fn vectorize(work: impl pulp::NullaryFnOnce<Output = ()>) {
        work.call();
    }
}

/// tanh without a branch, so that a loop over it vectorises; the standard library's is a call per element.
///
/// `tanh x = (e - 1) / (e + 1)` with `e = exp(2|x|)` loses the digits of a small `x`, so `expm1` is built instead:
/// `2|x| = n ln 2 + r`, `expm1 = 2ⁿ (expm1(r) + 1) - 1` with the degree-7 Taylor polynomial of `expm1(r)`,
/// `|r| <= ln 2 / 2`. Within 4 ULP of the exact value for every float (`tests::tanh_ulp` samples, `tanh_all` proves).
#[inline(always)]
fn tanh(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Added to a small number, it leaves that number, rounded to an integer, in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2²³
    // tanh is 1 to the last bit above 9.01; the select form (not min) lets a NaN through.
    let a = x.abs();
    let a = if a > 10.0 { 10.0 } else { a } * 2.0;
    let rounded = a.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = (-n).mul_add(LN2_LOW, (-n).mul_add(LN2_HIGH, a));
    let p = 1.0f32 / 5040.0;
    let p = p.mul_add(r, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let expm1_r = (p * r).mul_add(r, r);
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits())); // 2ⁿ
    let expm1 = expm1_r.mul_add(scale, scale - 1.0);
    (expm1 / (expm1 + 2.0)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(x: f32) -> f64 {
        let (got, want) = (f64::from(tanh(x)), f64::from(x).tanh());
        let ulp = f64::from(f32::from_bits((want.abs() as f32).to_bits() + 1)) - f64::from(want.abs() as f32);
        (got - want).abs() / ulp
    }

    #[test]
    fn tanh_ulp() {
        let worst = (0..=u32::MAX)
            .step_by(4093)
            .map(f32::from_bits)
            .filter(|x| x.is_finite())
            .map(|x| (ulps(x), x))
            .fold((0.0, 0.0), |a, b| if b.0 <= a.0 { a } else { b });
        assert!(worst.0 <= 4.0, "tanh({}) is {} ULP off", worst.1, worst.0);
    }

    #[test]
    #[ignore = "all 2^32 floats: minutes"]
    fn tanh_all() {
        for x in (0..=u32::MAX).map(f32::from_bits).filter(|x| x.is_finite()) {
            assert!(ulps(x) <= 4.0, "tanh({x}) is {} ULP off", ulps(x));
        }
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
