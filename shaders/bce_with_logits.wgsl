// Binary cross-entropy and its gradient, from logits, without overflow:
//   losses[i] = max(x, 0) - x target + log(1 + exp(-|x|))      dx[i] = (σ(x) - target) scale
//
// params   n
//          gradient   whether dx is written; a dummy is bound otherwise
// x        [n]        logits
// targets  [n]        probabilities of the class, 0 to 1
// scale    [1]        1 / n for the mean
// losses   [n]        not scaled
// dx       [n]
// grid     256 elements a workgroup, striding      joins lib/math
struct Params {
    n: u32,
    gradient: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<f32>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(256)
fn bce_with_logits(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let value = x[i];
        // The select form, unlike max, lets a NaN stay NaN.
        losses[i] = select(value, 0.0, value < 0.0) - value * targets[i] + log1p(exponential(-abs(value)));
        if p.gradient != 0u { dx[i] = (sigmoid4(vec4<f32>(value)).x - targets[i]) * scale[0]; }
    }
}
