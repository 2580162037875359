// exp, log, tanh and the logistic function, of products, additions and the bits of floats.
//
// The built-ins differ from driver to driver: NaN for large input, lost digits near 0, no 0 at -∞. And some compilers (Metal's,
// unless told otherwise) take it that there are no NaNs and infinities, and that sums may be added up in any order. So here
// nothing is left to them: arguments are bounded, by their bits; powers of 2 are made of bits; NaN and infinity are told and
// given by their bits; and no sum that cancels depends on its order. In any order exp and log are within 2 units in the last place
// of the exact value, tanh and the logistic function within 4 (`tests/math.rs` has all floats), and 2 more where a division is as
// bad as WGSL allows. Below the least normal number, 2^-126, arguments and results may be 0. The polynomial of exp is the twins'.

const SIGN: u32 = 0x80000000u;
const INFINITY: u32 = 0x7f800000u;
const NAN: u32 = 0x7fc00000u;
const ONE: u32 = 0x3f800000u;

// Where x is NaN: x; elsewhere what these are the bits of.
fn or_nan4(bits: vec4<u32>, x: vec4<f32>) -> vec4<f32> {
    let given = bitcast<vec4<u32>>(x);
    return bitcast<vec4<f32>>(select(bits, given, (given & vec4<u32>(~SIGN)) > vec4<u32>(INFINITY)));
}

// exp(a) = 2ⁿ (rest + 1)
struct Exponential {
    n: vec4<u32>, // two's complement
    rest: vec4<f32>,
}

// a = n ln 2 + r, |r| <= ln 2 / 2, for |a| up to 100, and expm1 r, its Taylor polynomial of degree 7. Added to 1.5 * 2²³, a number
// leaves itself, rounded, in the low bits. ln 2 is in two parts, the first so short that its product with n is exact. What is
// added to the bits in between is 0 for every n there is, which no compiler knows: it cannot make one product of the two.
fn reduced4(a: vec4<f32>) -> Exponential {
    let n = bitcast<vec4<u32>>(a * 1.44269504 + 12582912.0) - 0x4b400000u;
    let whole = vec4<f32>(bitcast<vec4<i32>>(n));
    let high = bitcast<vec4<f32>>(bitcast<vec4<u32>>(a - whole * 0.693359375) + ((n + 256u) >> vec4<u32>(10u)));
    let r = high + whole * 2.12194440e-4;
    let q = 1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0));
    let p = 0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * q));
    return Exponential(n, r + r * r * p);
}

// The bits of 2ⁿ (rest + 1), which is a normal number.
fn scaled4(e: Exponential) -> vec4<u32> {
    return bitcast<vec4<u32>>(e.rest + 1.0) + (e.n << vec4<u32>(23u));
}

fn exp4(x: vec4<f32>) -> vec4<f32> {
    // ln of the largest number, and of the least normal one, whose bits, of all below 0, are in the order of the magnitudes.
    const HIGH: i32 = 0x42b17217;
    const LOW: u32 = 0xc2aeac4fu;
    let bits = bitcast<vec4<u32>>(x);
    let signed = bitcast<vec4<i32>>(x);
    let a = bitcast<vec4<f32>>(min(bitcast<vec4<i32>>(min(bits, vec4<u32>(LOW))), vec4<i32>(HIGH)));
    var y = scaled4(reduced4(a));
    y = select(y, vec4<u32>(), bits > vec4<u32>(LOW));
    y = select(y, vec4<u32>(INFINITY), signed > vec4<i32>(HIGH));
    return or_nan4(y, x);
}

// tanh |x| = expm1(2 |x|) / (expm1(2 |x|) + 2); from 9.02 on it is 1.
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    const FAR: u32 = 0x411051ecu;
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4<u32>(~SIGN);
    let e = reduced4(bitcast<vec4<f32>>(min(magnitude, vec4<u32>(FAR))) * 2.0);
    // Where n is 0, the 1 that would be added and taken away would take the digits of a small x along.
    let scale = bitcast<vec4<f32>>((e.n << vec4<u32>(23u)) + ONE);
    let expm1 = select(e.rest * scale + (scale - 1.0), e.rest, e.n == vec4<u32>());
    let y = select(bitcast<vec4<u32>>(expm1 / (expm1 + 2.0)), vec4<u32>(ONE), magnitude > vec4<u32>(FAR));
    return or_nan4(y | (bits & vec4<u32>(SIGN)), x);
}

// 1 / (1 + exp(-|x|)), for x below 0 times exp(-|x|); below -87.3 it is 0.
fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    const LOW: u32 = 0xc2aeac4fu;
    let bits = bitcast<vec4<u32>>(x);
    let e = bitcast<vec4<f32>>(scaled4(reduced4(bitcast<vec4<f32>>(min(bits | vec4<u32>(SIGN), vec4<u32>(LOW))))));
    let y = select(vec4<f32>(1.0), e, bits >= vec4<u32>(SIGN)) / (1.0 + e);
    return or_nan4(select(bitcast<vec4<u32>>(y), vec4<u32>(), bits > vec4<u32>(LOW)), x);
}

// log(1 + f), f from -0.3 to 0.42, without its f: a minimax polynomial (Cephes' logf).
fn log1p_rest4(f: vec4<f32>) -> vec4<f32> {
    var q = 1.1676998740e-1 + f * (-1.1514610310e-1 + f * 7.0376836292e-2);
    q = 1.4249322787e-1 + f * (-1.2420140846e-1 + f * q);
    q = 2.0000714765e-1 + f * (-1.6668057665e-1 + f * q);
    q = 3.3333331174e-1 + f * (-2.4999993993e-1 + f * q);
    return f * f * (f * q - 0.5);
}

// x = 2ⁿ (1 + f), f from √½ - 1 to √2 - 1: log x = n ln 2 + log(1 + f). That of 0, and of all below 2^-126, is -∞; below 0, NaN.
fn log4(x: vec4<f32>) -> vec4<f32> {
    const LEAST: u32 = 0x00800000u;
    const ROOT: u32 = 0x3f3504f3u; // √½
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4<u32>(~SIGN);
    let offset = min(max(bits, vec4<u32>(LEAST)), vec4<u32>(INFINITY)) - ROOT;
    let n = vec4<f32>(bitcast<vec4<i32>>(offset) >> vec4<u32>(23u));
    let f = bitcast<vec4<f32>>((offset & vec4<u32>(0x7fffffu)) + ROOT) - 1.0;
    var y = bitcast<vec4<u32>>(n * 0.693359375 + (f + (log1p_rest4(f) - n * 2.12194440e-4)));
    y = select(y, vec4<u32>(INFINITY), bits == vec4<u32>(INFINITY));
    y = select(y, vec4<u32>(NAN), bits >= vec4<u32>(SIGN));
    y = select(y, vec4<u32>(SIGN | INFINITY), magnitude < vec4<u32>(LEAST));
    return or_nan4(y, x);
}

// Of one number. What the other three would take, compilers leave out.
fn exponential(x: f32) -> f32 {
    return exp4(vec4<f32>(x)).x;
}

fn logarithm(x: f32) -> f32 {
    return log4(vec4<f32>(x)).x;
}

// log(1 + y), y from 0 to 1; a NaN stays one.
fn log1p(y: f32) -> f32 {
    return select(logarithm(1.0 + y), y + log1p_rest4(vec4<f32>(y)).x, y < 0.41);
}
