// y[t, b, :] = x[lengths[b] - 1 - t, b, :] for t < lengths[b], 0 past it: each entry's own steps, last first
//
// params   T, B, C
// x        [T, B, C]
// lengths  [B] u32
// y        [T, B, C]
// grid     256 elements a workgroup, striding
struct Params {
    T: u32,
    B: u32,
    C: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> lengths: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn reverse(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.T * p.B * p.C; i += 256u * groups.x) {
        let t = i / (p.B * p.C);
        let length = lengths[i / p.C % p.B];
        var value = 0.0;
        if t < length { value = x[(length - 1u - t) * p.B * p.C + i % (p.B * p.C)]; }
        y[i] = value;
    }
}
