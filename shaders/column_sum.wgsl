// y[s, j] = Σ_i x[i, j]     i over the rows of slice first + s
//
// Sums of many rows take two of these: first slices, then the sum of the slices, always in the same order.
//
// params   rows, columns
//          stride        from row to row of x
//          slice         rows in a slice
//          first         the first of these slices
//          copies        how often the sum is written: as often as biases share it; more than once of one slice only
//          accumulate    whether y is added to what is there
// x        [rows, stride], of which the first columns count
// y        [slices or copies, columns]
// grid     64 columns a workgroup, over x and y; slices over z
struct Params {
    rows: u32,
    columns: u32,
    stride: u32,
    slice: u32,
    first: u32,
    copies: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

var<workgroup> part: array<f32, 256>; // [4, 64]

@compute @workgroup_size(256)
fn column_sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let column = 64u * (group.y * groups.x + group.x) + local % 64u;
    let start = (p.first + group.z) * p.slice;
    var sum = 0.0;
    if column < p.columns {
        for (var i = start + local / 64u; i < min(start + p.slice, p.rows); i += 4u) {
            sum += x[i * p.stride + column];
        }
    }
    part[local] = sum;
    workgroupBarrier();
    if local < 64u && column < p.columns {
        let total = (part[local] + part[local + 64u]) + (part[local + 128u] + part[local + 192u]);
        for (var copy = 0u; copy < p.copies; copy++) {
            let at = (group.z + copy) * p.columns + column;
            if p.accumulate != 0u { y[at] += total; } else { y[at] = total; }
        }
    }
}
