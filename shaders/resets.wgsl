// y = lengths, and behind them marks[d, t, b] = marks[t, b]: what a sequence kernel with RESETS binds in place of its lengths
// A reversed direction comes to step t from the one that was after it: its mark is marks[lengths[b] - t, b], of none t = 0.
//
// params   D, T, B
//          reversed   a bit for each direction
// lengths  [B] u32
// marks    [T, B] u32
// y        [B + D T B] u32
// grid     256 elements a workgroup, striding
struct Params {
    D: u32,
    T: u32,
    B: u32,
    reversed: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> lengths: array<u32>;
@group(0) @binding(2) var<storage, read> marks: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(256)
fn resets(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.D * p.T * p.B; i += 256u * groups.x) {
        let direction = i / (p.T * p.B);
        let t = i / p.B % p.T;
        let b = i % p.B;
        let length = lengths[b];
        if i < p.B { y[i] = length; }
        var step = t;
        var is_inside = true;
        if (p.reversed >> direction & 1u) != 0u {
            is_inside = t > 0u && t < length;
            step = select(0u, length - t, is_inside);
        }
        y[p.B + i] = select(0u, marks[step * p.B + b], is_inside);
    }
}
