// y[i, j] = x[i, j], or 0 in rows that are marked, whatever stands there
//
// params   n
//          columns   elements of a row
//          first     the mark of the first row
// x        [n / columns, columns]
// marks    [first + n / columns ..] u32
// y        [n / columns, columns]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    columns: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> marks: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn reset_rows(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        var value = 0.0;
        if marks[p.first + i / p.columns] == 0u { value = x[i]; }
        y[i] = value;
    }
}
