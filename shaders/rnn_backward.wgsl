// The gradient of rnn_forward:
//   dh[t + 1] = dy[t] + dx[t + 1] W           dx[T] W stands for dh_n
//   dx[t]     = dh[t + 1] (1 - h[t + 1]²)     t = T - 1 .. 0
//   dh_0      = dx[0] W
//
// params   T, B, H
//          has_dy, has_dh_n   whether these are given; a dummy is bound otherwise
// w        [HP, HP / 4] vec4  W, zero-padded
// h        [T + 1, B, H]
// dy       [T, B, H]          gradient of every step's output
// dh_n     [B, H]             gradient of the last state
// dx       [T, B, H]
// dh_0     [B, H]
// grid     ceil(B / ROWS)     joins lib/rows
struct Params {
    T: u32,
    B: u32,
    H: u32,
    has_dy: u32,
    has_dh_n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> h: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read> dh_n: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;
@group(0) @binding(6) var<storage, read_write> dh_0: array<f32>;

@compute @workgroup_size(THREADS)
fn rnn_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let place = row_place(local);
    let first = group.x * ROWS + place.x;
    let column = 4u * place.y;
    var carried = array<vec4<f32>, 4>();
    if p.has_dh_n != 0u {
        for (var r = 0u; r < 4u; r++) {
            for (var j = 0u; j < 4u; j++) {
                if first + r < p.B && column + j < p.H { carried[r][j] = dh_n[(first + r) * p.H + column + j]; }
            }
        }
    }
    for (var t = p.T; t > 0u; t--) {
        for (var r = 0u; r < 4u; r++) {
            let entry = first + r;
            var d = vec4<f32>();
            for (var j = 0u; j < 4u; j++) {
                if entry < p.B && column + j < p.H {
                    let at = ((t - 1u) * p.B + entry) * p.H + column + j;
                    let y = h[at + p.B * p.H];
                    var dh = carried[r][j];
                    if p.has_dy != 0u { dh += dy[at]; }
                    d[j] = dh * (1.0 - y * y);
                    dx[at] = d[j];
                }
            }
            rows[(place.x + r) * (HP / 4u) + place.y] = d;
        }
        workgroupBarrier();
        carried = multiply_rows(place);
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        for (var j = 0u; j < 4u; j++) {
            if first + r < p.B && column + j < p.H { dh_0[(first + r) * p.H + column + j] = carried[r][j]; }
        }
    }
}
