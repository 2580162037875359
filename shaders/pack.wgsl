// y[first + g, i, j] = x[g, i, j], or x[g, j, i] with transpose; zero where x has no such element
//
// Recurrent matrices in the form that the sequence kernels stream: one for each gate, padded to vec4 rows.
//
// params   G, H          gates, hidden size
//          HP            H padded
//          first, transpose
// x        [G, H, H]
// y        [.., HP, HP]
// grid     256 elements a workgroup, striding
struct Params {
    G: u32,
    H: u32,
    HP: u32,
    first: u32,
    transpose: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn pack(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.G * p.HP * p.HP; at += 256u * groups.x) {
        let g = at / (p.HP * p.HP);
        let i = at / p.HP % p.HP;
        let j = at % p.HP;
        var value = 0.0;
        if i < p.H && j < p.H {
            value = x[(g * p.H + select(i, j, p.transpose != 0u)) * p.H + select(j, i, p.transpose != 0u)];
        }
        y[p.first * p.HP * p.HP + at] = value;
    }
}
