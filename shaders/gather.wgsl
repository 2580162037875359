// y[i, :] = table[index[i], :]
//
// params   rows, columns
// table    [V, columns]
// index    [rows] u32, each below V
// y        [rows, columns]
// grid     256 elements a workgroup, striding
struct Params {
    rows: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn gather(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.rows * p.columns; i += 256u * groups.x) {
        y[i] = table[index[i / p.columns] * p.columns + i % p.columns];
    }
}
