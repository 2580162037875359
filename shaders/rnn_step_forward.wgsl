// h[t + 1] = tanh(x[index[t]] + h[t] Wᵀ)     one step: the path for hidden sizes that rnn_forward cannot hold
//
// params   t, B, H
// x        [N, H]            what comes in from below, biases included
// index    [T, B] u32        the row of x for each step and entry
// w        [H, H]
// h        [T + 1, B, H]     slot t is read, slot t + 1 written
// grid     ceil(H / 64), ceil(B / 64)      joins lib/tile, lib/math
struct Params {
    t: u32,
    B: u32,
    H: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
@group(0) @binding(4) var<storage, read_write> h: array<f32>;

fn a_is_transposed() -> bool { return false; }
fn b_is_transposed() -> bool { return true; }

fn load_a(m: u32, k: u32) -> f32 {
    if m >= p.B || k >= p.H { return 0.0; }
    return h[(p.t * p.B + m) * p.H + k];
}

fn load_b(k: u32, n: u32) -> f32 {
    if n >= p.H || k >= p.H { return 0.0; }
    return w[n * p.H + k];
}

@compute @workgroup_size(TILE_THREADS)
fn rnn_step_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let origin = TILE * group.yx;
    var sum = multiply_tile(origin, vec2<u32>(0u, p.H), local);
    for (var i = 0u; i < 16u; i++) {
        let entry = origin.x + tile_row(local, i / 2u);
        let column = origin.y + tile_column(local, i % 2u);
        if entry < p.B {
            let below = index[p.t * p.B + entry] * p.H + column;
            let to = ((p.t + 1u) * p.B + entry) * p.H + column;
            var value = sum[i];
            for (var j = 0u; j < 4u; j++) {
                if column + j < p.H { value[j] += x[below + j]; }
            }
            value = tanh4(value);
            for (var j = 0u; j < 4u; j++) {
                if column + j < p.H { h[to + j] = value[j]; }
            }
        }
    }
}
