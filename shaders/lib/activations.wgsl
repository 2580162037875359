// What a cell applies in place of its own functions, of those that ONNX names, beside lib/math. The kernel that joins this has
//   Params with clip, and alpha_0, beta_0 .. alpha_4, beta_4 of the functions by their place in the cell
const ACTIVATIONS: u32 = 0u; // the functions, four bits for each from the lowest on; 0 if they are the cell's own

@if(ACTIVATIONS) fn numbers_of(which: u32) -> vec2<f32> {
    switch which {
        case 0u: { return vec2<f32>(p.alpha_0, p.beta_0); }
        case 1u: { return vec2<f32>(p.alpha_1, p.beta_1); }
        case 2u: { return vec2<f32>(p.alpha_2, p.beta_2); }
        case 3u: { return vec2<f32>(p.alpha_3, p.beta_3); }
        default: { return vec2<f32>(p.alpha_4, p.beta_4); }
    }
}

// Of what comes in, bound by the clip. Comparisons: min and max hide a NaN.
@if(ACTIVATIONS) fn activate4(which: u32, input: vec4<f32>) -> vec4<f32> {
    let high = vec4<f32>(p.clip);
    let x = select(select(input, high, input > high), -high, input < -high);
    let n = numbers_of(which);
    let zero = vec4<f32>();
    switch (ACTIVATIONS >> (4u * which)) & 15u {
        case 1u: { return n.x * x + n.y; }
        case 2u: { return select(x, zero, x < zero); }
        case 3u: { return select(x, n.x * x, x < zero); }
        case 4u: { return select(x, zero, x <= vec4<f32>(n.x)); }
        case 5u: { return tanh4(x); }
        case 6u: { return n.x * tanh4(n.y * x); }
        case 7u: { return sigmoid4(x); }
        case 8u: {
            let y = n.x * x + n.y;
            return select(select(y, zero, y < zero), vec4<f32>(1.0), y > vec4<f32>(1.0));
        }
        case 9u: { return select(x, n.x * expm1_4(select(x, zero, x > zero)), x < zero); }
        case 10u: { return x / (1.0 + abs(x)); }
        default: {
            let e = exp4(-abs(x));
            let rest = vec4<f32>(log1p(e.x), log1p(e.y), log1p(e.z), log1p(e.w));
            return select(x, zero, x < zero) + rest;
        }
    }
}

// The derivative where x comes in and y comes out: 0 beyond the clip; where there is none, PyTorch's.
@if(ACTIVATIONS) fn slope4(which: u32, x: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
    let n = numbers_of(which);
    let zero = vec4<f32>();
    let one = vec4<f32>(1.0);
    var slope = zero;
    switch (ACTIVATIONS >> (4u * which)) & 15u {
        case 1u: { slope = vec4<f32>(n.x); }
        case 2u: { slope = select(zero, one, x > zero); }
        case 3u: { slope = select(vec4<f32>(n.x), one, x > zero); }
        case 4u: { slope = select(zero, one, x > vec4<f32>(n.x)); }
        case 5u: { slope = 1.0 - y * y; }
        case 6u: {
            let inner = tanh4(n.y * x);
            slope = n.x * n.y * (1.0 - inner * inner);
        }
        case 7u: { slope = y * (1.0 - y); }
        case 8u: {
            let line = n.x * x + n.y;
            slope = select(zero, vec4<f32>(n.x), (line >= zero) & (line <= one));
        }
        case 9u: { slope = select(y + n.x, one, x > zero); }
        case 10u: { slope = 1.0 / ((1.0 + abs(x)) * (1.0 + abs(x))); }
        default: { slope = sigmoid4(x); }
    }
    return select(slope, zero, abs(x) > vec4<f32>(p.clip));
}

// Of one number. What the other three would take, compilers leave out.
@if(ACTIVATIONS) fn activate(which: u32, x: f32) -> f32 {
    return activate4(which, vec4<f32>(x)).x;
}

@if(ACTIVATIONS) fn slope(which: u32, x: f32, y: f32) -> f32 {
    return slope4(which, vec4<f32>(x), vec4<f32>(y)).x;
}

// expm1 of what is not above 0; from -80 on it is -1.
@if(ACTIVATIONS) fn expm1_4(x: vec4<f32>) -> vec4<f32> {
    let low = vec4<f32>(-80.0);
    let e = reduced4(select(x, low, x < low));
    let scale = bitcast<vec4<f32>>((e.n << vec4<u32>(23u)) + ONE);
    return select(e.rest * scale + (scale - 1.0), e.rest, e.n == vec4<u32>());
}
