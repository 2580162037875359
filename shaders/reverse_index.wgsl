// y[t, b] = x[lengths[b] - 1 - t, b] for t < lengths[b], x[t, b] past it: `reverse` of the index of a lookup
//
// params   T, B
// x        [T, B] u32
// lengths  [B] u32
// y        [T, B] u32
// grid     256 elements a workgroup, striding
struct Params {
    T: u32,
    B: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> lengths: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(256)
fn reverse_index(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.T * p.B; i += 256u * groups.x) {
        let t = i / p.B;
        let length = lengths[i % p.B];
        y[i] = x[select(t, length - 1u - t, t < length) * p.B + i % p.B];
    }
}
