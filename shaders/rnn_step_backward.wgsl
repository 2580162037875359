// dx[t] = (dy[t] + dx[t + 1] W) (1 - h[t + 1]²)     one step of rnn_backward; at the last step dh_n stands for dx[T] W
//
// params   t, B, H
//          last               whether t is the last step: dx[t + 1] is not read
//          has_dy, has_dh_n   whether these are given; a dummy is bound otherwise
// w        [H, H]
// h        [T + 1, B, H]
// dy       [T, B, H]
// dh_n     [B, H]
// dx       [T, B, H]          slot t + 1 is read, slot t written
// grid     ceil(H / 64), ceil(B / 64)      joins lib/tile
struct Params {
    t: u32,
    B: u32,
    H: u32,
    last: u32,
    has_dy: u32,
    has_dh_n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> h: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read> dh_n: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

fn a_is_transposed() -> bool { return false; }
fn b_is_transposed() -> bool { return false; }

fn load_a(m: u32, k: u32) -> f32 {
    if m >= p.B || k >= p.H { return 0.0; }
    return dx[((p.t + 1u) * p.B + m) * p.H + k];
}

fn load_b(k: u32, n: u32) -> f32 {
    if n >= p.H || k >= p.H { return 0.0; }
    return w[k * p.H + n];
}

@compute @workgroup_size(TILE_THREADS)
fn rnn_step_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let origin = TILE * group.yx;
    var sum = multiply_tile(origin, vec2<u32>(0u, select(p.H, 0u, p.last != 0u)), local);
    for (var i = 0u; i < 16u; i++) {
        let entry = origin.x + tile_row(local, i / 2u);
        let column = origin.y + tile_column(local, i % 2u);
        for (var j = 0u; j < 4u; j++) {
            if entry < p.B && column + j < p.H {
                let at = (p.t * p.B + entry) * p.H + column + j;
                let y = h[at + p.B * p.H];
                var dh = sum[i][j];
                if p.has_dy != 0u { dh += dy[at]; }
                if p.last != 0u && p.has_dh_n != 0u { dh += dh_n[entry * p.H + column + j]; }
                dx[at] = dh * (1.0 - y * y);
            }
        }
    }
}
