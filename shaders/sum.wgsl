// y[a, s, c] = scale Σ_r x[a, r, c]      r over the rows of slice s
//
// Sums of many rows take two of these: first slices, then the sum of the slices, always in the same order.
//
// params   A, R, C
//          slice         rows in a slice
//          slices
//          first         the first of these slices
//          scale
//          accumulate    whether y is added to what is there
// x        [A, R, C]
// y        [A, slices, C]
// grid     COLUMNS sums a workgroup, over x and y, each shared by 256 / COLUMNS threads
struct Params {
    A: u32,
    R: u32,
    C: u32,
    slice: u32,
    slices: u32,
    first: u32,
    scale: f32,
    accumulate: u32,
}

const COLUMNS: u32 = 64u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

var<workgroup> part: array<f32, 256>; // [256 / COLUMNS, COLUMNS]

@compute @workgroup_size(256)
fn sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let column = COLUMNS * (group.y * groups.x + group.x) + local % COLUMNS;
    let row = column / p.C;
    var total = 0.0;
    if column < p.A * p.slices * p.C {
        let start = (p.first + row % p.slices) * p.slice;
        let base = row / p.slices * p.R;
        for (var r = start + local / COLUMNS; r < min(start + p.slice, p.R); r += 256u / COLUMNS) {
            total += x[(base + r) * p.C + column % p.C];
        }
    }
    part[local] = total;
    for (var half = 128u; half >= COLUMNS; half /= 2u) {
        workgroupBarrier();
        if local < half { part[local] += part[local + half]; }
    }
    if local < COLUMNS && column < p.A * p.slices * p.C {
        let value = part[local] * p.scale;
        if p.accumulate != 0u { y[column] += value; } else { y[column] = value; }
    }
}
