// y[t, b] = di c[t], df c[t], do c[t + 1]: what the gradient of peepholes is the sum of      d = d[t, b], c[t] 0 where that is marked
//
// params   n         elements of y
//          B, H
//          marked    whether there are marks
//          first     that of the first row
// d        [T, B, 4 H]        gates i, f, g, o
// c        [T + 1, B, H]
// marks    [first + T B ..] u32, or a dummy
// y        [T, B, 3 H]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    B: u32,
    H: u32,
    marked: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d: array<f32>;
@group(0) @binding(2) var<storage, read> c: array<f32>;
@group(0) @binding(3) var<storage, read> marks: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn peephole_products(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let row = i / (3u * p.H);
        let peephole = i / p.H % 3u;
        let j = i % p.H;
        let is_output = peephole == 2u;
        var value = d[(row * 4u + select(peephole, 3u, is_output)) * p.H + j];
        value *= c[(row + select(0u, p.B, is_output)) * p.H + j];
        if p.marked != 0u && !is_output {
            if marks[p.first + row] != 0u { value = 0.0; }
        }
        y[i] = value;
    }
}
