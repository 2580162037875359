// Adagrad (Duchi et al. 2011) over the whole parameter block, in PyTorch's order of operations:
//   g += λ w      v += g²      w -= lr / (1 + (t - 1) η) · g / (√v + ε)
//
// params   n
//          epsilon         ε
//          weight_decay    λ
//          lr_decay        η
// g        [n]
// lr       [1]      below 0: nothing is updated
// clock    [2] u32  clock[0] is t, 1 in the first step
// w, v     [n]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    epsilon: f32,
    weight_decay: f32,
    lr_decay: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> lr: array<f32>;
@group(0) @binding(3) var<storage, read> clock: array<u32>;
@group(0) @binding(4) var<storage, read_write> w: array<f32>;
@group(0) @binding(5) var<storage, read_write> v: array<f32>;

@compute @workgroup_size(256)
fn adagrad(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    if lr[0] < 0.0 { return; }
    let step = lr[0] / (1.0 + f32(clock[0] - 1u) * p.lr_decay);
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let gradient = g[i] + p.weight_decay * w[i];
        let square = v[i] + gradient * gradient;
        v[i] = square;
        w[i] -= step * gradient / (sqrt(square) + p.epsilon);
    }
}
