// h[t + 1] = tanh(x[rows[t]] + h[t] Wᵀ)     t = 0 .. T - 1, the whole sequence in one dispatch
//
// A workgroup owns ROWS batch entries for all steps. Their state stays in workgroup memory; the matrix streams from
// cache; two barriers a step. Entries are independent, so nothing crosses workgroups.
//
// params   T, B, H
// x        [N, H]            what comes in from below, biases included
// index    [T, B] u32        the row of x for each step and entry
// w        [HP, HP / 4] vec4  Wᵀ, zero-padded (swap_axes makes it)
// h        [T + 1, B, H]     slot 0 is the incoming state
// grid     ceil(B / ROWS)    joins lib/rows, lib/math
struct Params {
    T: u32,
    B: u32,
    H: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> h: array<f32>;

@compute @workgroup_size(THREADS)
fn rnn_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let place = row_place(local);
    let first = group.x * ROWS + place.x;
    let column = 4u * place.y;
    for (var r = 0u; r < 4u; r++) {
        var state = vec4<f32>();
        for (var j = 0u; j < 4u; j++) {
            if first + r < p.B && column + j < p.H { state[j] = h[(first + r) * p.H + column + j]; }
        }
        rows[(place.x + r) * (HP / 4u) + place.y] = state;
    }
    for (var t = 0u; t < p.T; t++) {
        workgroupBarrier();
        var sum = multiply_rows(place);
        workgroupBarrier();
        for (var r = 0u; r < 4u; r++) {
            let entry = first + r;
            var state = vec4<f32>();
            if entry < p.B {
                let below = index[t * p.B + entry] * p.H + column;
                let to = ((t + 1u) * p.B + entry) * p.H + column;
                for (var j = 0u; j < 4u; j++) {
                    if column + j < p.H { state[j] = x[below + j]; }
                }
                state = tanh4(state + sum[r]);
                for (var j = 0u; j < 4u; j++) {
                    if column + j < p.H { h[to + j] = state[j]; }
                }
            }
            rows[(place.x + r) * (HP / 4u) + place.y] = state;
        }
    }
}
