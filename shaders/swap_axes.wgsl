// y[b, a, :] = x[a, b, :]
//
// Between batch first and time first; with C = 1, a matrix transpose.
//
// params   A, B, C
// x        [A, B, C]
// y        [B, A, C]
// grid     256 elements a workgroup, striding
struct Params {
    A: u32,
    B: u32,
    C: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn swap_axes(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.A * p.B * p.C; i += 256u * groups.x) {
        let b = i / (p.A * p.C);
        let a = i / p.C % p.A;
        y[i] = x[(a * p.B + b) * p.C + i % p.C];
    }
}
