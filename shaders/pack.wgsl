// y[at + (g, i, j)] = x[g, i, j], or x[g, j, i] with transpose; zero where x has no such element
//
// Matrices in the form that kernels stream: padded to vec4 rows, and of a recurrent layer one for each gate.
//
// params   G               matrices
//          R, C            rows and columns of each, in y
//          RP, CP          those padded
//          at              where the first of them starts in y
//          transpose
//          f16             whether values are rounded to f16; set with the constant, y is then an array of these
// x        [G, R, C], or [G, C, R] with transpose
// y        [.., G, RP, CP, ..]
// grid     256 elements a workgroup, striding
struct Params {
    G: u32,
    R: u32,
    C: u32,
    RP: u32,
    CP: u32,
    at: u32,
    transpose: u32,
    f16: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<Element>;

const F16: u32 = 0u;

@if(F16) enable f16;
@if(F16) alias Element = f16;
@if(!F16) alias Element = f32;

@compute @workgroup_size(256)
fn pack(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.G * p.RP * p.CP; at += 256u * groups.x) {
        let g = at / (p.RP * p.CP);
        let i = at / p.CP % p.RP;
        let j = at % p.CP;
        var value = 0.0;
        if i < p.R && j < p.C {
            value = x[g * p.R * p.C + select(i * p.C + j, j * p.R + i, p.transpose != 0u)];
        }
        y[p.at + at] = Element(value);
    }
}
