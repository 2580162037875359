// y[s] = Σ_i x[i]²     i over the elements of workgroup s; column_sum adds the workgroups up
//
// params   n
// x        [n]
// y        [workgroups]
// grid     workgroups, striding over x      joins lib/reduce
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn squared_norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    var sum = 0.0;
    for (var i = THREADS * group.x + local; i < p.n; i += THREADS * groups.x) { sum += x[i] * x[i]; }
    sum = workgroup_sum(local, sum);
    if local == 0u { y[group.x] = sum; }
}
