// RMSprop (Hinton 2012) over the whole parameter block, in PyTorch's order of operations:
//   g += λ w      v = α v + (1 - α) g²      m += (1 - α)(g - m)      d = g / (√(v - m²) + ε)
//   b = μ b + d   w -= lr b
// Only the centered form has m, only momentum has b; without them m is 0 and b is d.
//
// params   n
//          alpha, epsilon
//          rest           1 - α, made where it keeps its digits
//          weight_decay   λ
//          momentum       μ; 0: b is not used, and a dummy
//          centered       0: m is not used, and a dummy
// g        [n]
// lr       [1]      below 0: nothing is updated
// w, v, m, b   [n]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    alpha: f32,
    rest: f32,
    epsilon: f32,
    weight_decay: f32,
    momentum: f32,
    centered: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> lr: array<f32>;
@group(0) @binding(3) var<storage, read_write> w: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;
@group(0) @binding(5) var<storage, read_write> m: array<f32>;
@group(0) @binding(6) var<storage, read_write> b: array<f32>;

@compute @workgroup_size(256)
fn rms_prop(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    if lr[0] < 0.0 { return; }
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let gradient = g[i] + p.weight_decay * w[i];
        let square = p.alpha * v[i] + p.rest * gradient * gradient;
        v[i] = square;
        var variance = square;
        if p.centered != 0u {
            let mean = m[i] + p.rest * (gradient - m[i]);
            m[i] = mean;
            variance -= mean * mean;
        }
        var direction = gradient / (sqrt(variance) + p.epsilon);
        if p.momentum != 0.0 {
            direction += p.momentum * b[i];
            b[i] = direction;
        }
        w[i] -= lr[0] * direction;
    }
}
