// y[i, v] = x[i, v] - log Σ_u exp(x[i, u]), by log-sum-exp of each row's own maximum
//
// params   R, V
// x        [R, V]
// y        [R, V]
// grid     one workgroup a row, over x and y      joins lib/reduce, lib/math
struct Params {
    R: u32,
    V: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn log_softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= p.R { return; }
    let start = row * p.V;
    var most = x[start];
    for (var v = local; v < p.V; v += THREADS) { most = max(most, x[start + v]); }
    most = workgroup_max(local, most);
    var sum = 0.0;
    for (var v = local; v < p.V; v += THREADS) { sum += exponential(x[start + v] - most); }
    let log_sum = logarithm(workgroup_sum(local, sum));
    for (var v = local; v < p.V; v += THREADS) { y[start + v] = (x[start + v] - most) - log_sum; }
}
