// Stochastic gradient descent over the whole parameter block, in PyTorch's order of operations:
//   g += λ w      b = μ b + (1 - τ) g, in the first step b = g      w -= lr d
// where d is g without momentum, b with it, and g + μ b with Nesterov's.
//
// params   n
//          momentum       μ; 0: b is not used, and a dummy
//          dampening      τ
//          weight_decay   λ
//          nesterov       0 or 1
// g        [n]
// lr       [1]      below 0: nothing is updated
// clock    [2] u32  clock[0] is 1 in the first step
// w, b     [n]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    momentum: f32,
    dampening: f32,
    weight_decay: f32,
    nesterov: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> lr: array<f32>;
@group(0) @binding(3) var<storage, read> clock: array<u32>;
@group(0) @binding(4) var<storage, read_write> w: array<f32>;
@group(0) @binding(5) var<storage, read_write> b: array<f32>;

@compute @workgroup_size(256)
fn sgd(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    if lr[0] < 0.0 { return; }
    let share = select(1.0 - p.dampening, 1.0, clock[0] == 1u);
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let gradient = g[i] + p.weight_decay * w[i];
        var direction = gradient;
        if p.momentum != 0.0 {
            let velocity = p.momentum * b[i] + share * gradient;
            b[i] = velocity;
            direction = select(velocity, gradient + p.momentum * velocity, p.nesterov != 0u);
        }
        w[i] -= lr[0] * direction;
    }
}
