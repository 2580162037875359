// Gradients of several steps become the gradient of one update, their mean:
//   sum = g / accumulate + sum, without sum in the first of them      g = sum
//
// params   n
//          accumulate   steps for each update
// clock    [2] u32      clock[0] is 1 in the first step
// sum, g   [n]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> clock: array<u32>;
@group(0) @binding(2) var<storage, read_write> sum: array<f32>;
@group(0) @binding(3) var<storage, read_write> g: array<f32>;

@compute @workgroup_size(256)
fn add_micro_batch(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let is_first = (clock[0] - 1u) % p.accumulate == 0u;
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let value = g[i] / f32(p.accumulate) + select(sum[i], 0.0, is_first);
        sum[i] = value;
        g[i] = value;
    }
}
