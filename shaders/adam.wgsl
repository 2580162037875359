// Adam (Kingma and Ba 2015) over the whole parameter block, in PyTorch's order of operations:
//   g += λ w                   m += (1 - β₁)(g - m)      v = β₂ v + (1 - β₂) g²
//   w -= lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)
// AdamW (Loshchilov and Hutter 2019) takes the decay λ from w itself: w -= lr λ w in place of the first term.
//
// params   n
//          beta2, epsilon
//          rest1, rest2           1 - β₁ and 1 - β₂, made where they keep their digits
//          ln_beta1, ln_beta2     their logarithms: 1 - βᵗ = -expm1(t ln β) keeps its digits for small t
//          weight_decay           λ
//          decoupled              1: AdamW
// g        [n]
// lr       [1]      below 0: nothing is updated
// clock    [2] u32  clock[0] is t, 1 in the first step
// w, m, v  [n]
// grid     256 elements a workgroup, striding      joins lib/math
struct Params {
    n: u32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    epsilon: f32,
    ln_beta1: f32,
    ln_beta2: f32,
    weight_decay: f32,
    decoupled: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> lr: array<f32>;
@group(0) @binding(3) var<storage, read> clock: array<u32>;
@group(0) @binding(4) var<storage, read_write> w: array<f32>;
@group(0) @binding(5) var<storage, read_write> m: array<f32>;
@group(0) @binding(6) var<storage, read_write> v: array<f32>;

// exp(x) - 1 for x <= 0, without cancellation near 0.
fn expm1(x: f32) -> f32 {
    if x < -0.3 { return exponential(x) - 1.0; }
    return x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0 * (1.0 + x / 6.0 * (1.0 + x / 7.0))))));
}

@compute @workgroup_size(256)
fn adam(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    if lr[0] < 0.0 { return; }
    let t = f32(clock[0]);
    let step = lr[0] / -expm1(t * p.ln_beta1);
    let root = sqrt(-expm1(t * p.ln_beta2));
    let is_adamw = p.decoupled != 0u;
    let decay = select(p.weight_decay, 0.0, is_adamw);
    let keep = 1.0 - select(0.0, lr[0] * p.weight_decay, is_adamw);
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let gradient = g[i] + decay * w[i];
        let mean = m[i] + p.rest1 * (gradient - m[i]);
        let square = p.beta2 * v[i] + p.rest2 * gradient * gradient;
        m[i] = mean;
        v[i] = square;
        w[i] = keep * w[i] - step * mean / (sqrt(square) / root + p.epsilon);
    }
}
