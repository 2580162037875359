// y[i, y_offset + j] = x[i, x_offset + j]      a block of columns, from one matrix into another
//
// params   rows, columns        of the block
//          x_stride, x_offset
//          y_stride, y_offset
// x        [rows, x_stride]
// y        [rows, y_stride]
// grid     256 elements a workgroup, striding
struct Params {
    rows: u32,
    columns: u32,
    x_stride: u32,
    x_offset: u32,
    y_stride: u32,
    y_offset: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn place(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.rows * p.columns; at += 256u * groups.x) {
        let i = at / p.columns;
        let j = at % p.columns;
        y[i * p.y_stride + p.y_offset + j] = x[i * p.x_stride + p.x_offset + j];
    }
}
