// Absolute error and its gradient:
//   losses[i] = |x[i] - target[i]|      dx[i] = sign(x[i] - target[i]) scale, 0 where they are equal
//
// params   n
//          gradient   whether dx is written; a dummy is bound otherwise
// x        [n]
// targets  [n]
// scale    [1]        1 / n for the mean
// losses   [n]        not scaled
// dx       [n]
// grid     256 elements a workgroup, striding
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
fn absolute_error(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let error = x[i] - targets[i];
        losses[i] = abs(error);
        if p.gradient != 0u { dx[i] = sign(error) * scale[0]; }
    }
}
