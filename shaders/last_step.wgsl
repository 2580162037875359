// y[d, b, :] = h[d, lengths[b], b, :]      the state after each entry's last step, in each direction
//
// params   D, T, B, H
// h        [D, T + 1, B, H]
// lengths  [B] u32
// y        [D, B, H]
// grid     256 elements a workgroup, striding
struct Params {
    D: u32,
    T: u32,
    B: u32,
    H: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> h: array<f32>;
@group(0) @binding(2) var<storage, read> lengths: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn last_step(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.D * p.B * p.H; i += 256u * groups.x) {
        let row = i / p.H;
        let slot = row / p.B * (p.T + 1u) + lengths[row % p.B];
        y[i] = h[(slot * p.B + row % p.B) * p.H + i % p.H];
    }
}
