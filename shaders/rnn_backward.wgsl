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
// grid     ceil(B / (GROUPS ROWS))     joins lib/rows
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
    let first = group.x * GROUPS * ROWS + place.x;
    var carried = array<vec4<f32>, MOST_SUMS>();
    if p.has_dh_n != 0u {
        for (var i = 0u; i < ROWS * COLUMNS; i++) {
            let entry = first + i / COLUMNS;
            let column = 4u * (place.y + i % COLUMNS * group_width());
            for (var j = 0u; j < 4u; j++) {
                if entry < p.B && column + j < p.H { carried[i][j] = dh_n[entry * p.H + column + j]; }
            }
        }
    }
    for (var t = p.T; t > 0u; t--) {
        for (var i = 0u; i < ROWS * COLUMNS; i++) {
            let entry = first + i / COLUMNS;
            let vector = place.y + i % COLUMNS * group_width();
            if vector < HP / 4u {
                var d = vec4<f32>();
                for (var j = 0u; j < 4u; j++) {
                    if entry < p.B && 4u * vector + j < p.H {
                        let at = ((t - 1u) * p.B + entry) * p.H + 4u * vector + j;
                        let y = h[at + p.B * p.H];
                        var dh = carried[i][j];
                        if p.has_dy != 0u { dh += dy[at]; }
                        d[j] = dh * (1.0 - y * y);
                        dx[at] = d[j];
                    }
                }
                rows[(place.x + i / COLUMNS) * (HP / 4u) + vector] = d;
            }
        }
        workgroupBarrier();
        carried = multiply_rows(place);
        workgroupBarrier();
    }
    for (var i = 0u; i < ROWS * COLUMNS; i++) {
        let entry = first + i / COLUMNS;
        let column = 4u * (place.y + i % COLUMNS * group_width());
        for (var j = 0u; j < 4u; j++) {
            if entry < p.B && column + j < p.H { dh_0[entry * p.H + column + j] = carried[i][j]; }
        }
    }
}
