// dx[i, v] = dy[i, v] - exp(y[i, v]) Σ_u dy[i, u]
//
// params   R, V
// y        [R, V]     the log-probabilities
// dy       [R, V]
// dx       [R, V]
// grid     one workgroup a row, over x and y      joins lib/reduce, lib/math
struct Params {
    R: u32,
    V: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn log_softmax_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= p.R { return; }
    let start = row * p.V;
    var sum = 0.0;
    for (var v = local; v < p.V; v += THREADS) { sum += dy[start + v]; }
    sum = workgroup_sum(local, sum);
    for (var v = local; v < p.V; v += THREADS) { dx[start + v] = dy[start + v] - exponential(y[start + v]) * sum; }
}
