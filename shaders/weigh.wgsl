// x[i, j] = weights[i] scale x[i, j]; 0 where weights[i] is 0, whatever stands there
//
// params   n
//          columns   elements that share a weight
// weights  [n / columns]
// scale    [1]
// x        [n]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn weigh(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let weight = weights[i / p.columns];
        var value = 0.0;
        if weight != 0.0 { value = weight * scale[0] * x[i]; }
        x[i] = value;
    }
}
