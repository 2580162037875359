// tanh that is right everywhere. The built-in gives NaN for |x| above 44 to 88 on several drivers; from 10 on, tanh is
// 1 to the last bit. Near 0 drivers subtract exponentials and lose the digits of the result; below 1 it is Lambert's
// continued fraction to the seventh term, exact to f32. The select form, unlike clamp, lets a NaN stay NaN.
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    let s = x * x;
    let near = x * (135135.0 + s * (17325.0 + s * (378.0 + s))) / (135135.0 + s * (62370.0 + s * (3150.0 + 28.0 * s)));
    let far = select(tanh(x), sign(x), abs(x) > vec4<f32>(10.0));
    return select(far, near, abs(x) < vec4<f32>(1.0));
}

// The logistic function. The select form keeps exp finite and lets a NaN stay NaN.
fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp(-select(x, vec4<f32>(-80.0), x < vec4<f32>(-80.0))));
}
