// Functions that the kernels of programs (src/map) call, beside those of lib/math.

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn minimum(a: f32, b: f32) -> f32 {
    return select(b, a, a < b || is_nan(a));
}

fn maximum(a: f32, b: f32) -> f32 {
    return select(b, a, a > b || is_nan(a));
}

// log(1 + exp x), of what is at most 1 in the exponential.
fn softplus(x: f32) -> f32 {
    return select(0.0, x, x > 0.0) + log1p(exponential(-abs(x)));
}

// 2/√π ∫ exp(-t²) dt, t from 0 to x, by Cephes' polynomials: of x² up to 1, from there on of 1/x², beside exp(-x²).
fn erf(x: f32) -> f32 {
    let a = min(abs(x), 9.0);
    let s = a * a;
    var near = -2.685381193529856e-2 + s * (5.188327685732524e-3 + s * (-8.010193625184903e-4 + s * 7.853861353153693e-5));
    near = a * (1.128379165726710 + s * (-3.761262582423300e-1 + s * (1.128358514861418e-1 + s * near)));
    let q = 1.0 / max(a, 1.0);
    let r = q * q;
    var middle = 6.210004621745983e-1 + r * (-5.824733027278666e-1 + r * (3.687424674597105e-1 + r * (-1.387039388740657e-1 + r * 2.326819970068386e-2)));
    middle = 5.638259427386472e-1 + r * (-2.741127028184656e-1 + r * (3.404879937665872e-1 + r * (-4.944515323274145e-1 + r * middle)));
    var far = 2.921019019210786 + r * (-7.495518717768503 + r * (12.97719955372516 + r * -10.47766399936249));
    far = 5.641895067754075e-1 + r * (-2.820767439740514e-1 + r * (4.218463358204948e-1 + r * (-1.015265279202700 + r * far)));
    let rest = exponential(-s) * q * select(middle, far, a > 2.0);
    let y = select(1.0 - rest, near, a < 1.0);
    return select(select(y, -y, x < 0.0), x, is_nan(x));
}
