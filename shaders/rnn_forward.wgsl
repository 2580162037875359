// h[t + 1] = tanh(x[index[t]] + h[t] Wᵀ)     t = 0 .. T - 1, the whole sequence in one dispatch
//
// A workgroup owns GROUPS * ROWS batch entries for all steps. Their state stays in workgroup memory; the matrix streams from
// cache; two barriers a step. Entries are independent, so nothing crosses workgroups.
//
// params   T, B, H
// x        [N, H]            what comes in from below, biases included
// index    [T, B] u32        the row of x for each step and entry
// w        [HP, HP / 4] vec4  Wᵀ, zero-padded (swap_axes makes it)
// h        [T + 1, B, H]     slot 0 is the incoming state
// grid     ceil(B / (GROUPS ROWS))    joins lib/rows, lib/math
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
    let first = group.x * GROUPS * ROWS + place.x;
    for (var i = 0u; i < ROWS * COLUMNS; i++) {
        let entry = first + i / COLUMNS;
        let vector = place.y + i % COLUMNS * group_width();
        if vector < HP / 4u {
            var state = vec4<f32>();
            for (var j = 0u; j < 4u; j++) {
                if entry < p.B && 4u * vector + j < p.H { state[j] = h[entry * p.H + 4u * vector + j]; }
            }
            rows[(place.x + i / COLUMNS) * (HP / 4u) + vector] = state;
        }
    }
    for (var t = 0u; t < p.T; t++) {
        workgroupBarrier();
        var sum = multiply_rows(place);
        workgroupBarrier();
        for (var i = 0u; i < ROWS * COLUMNS; i++) {
            let entry = first + i / COLUMNS;
            let vector = place.y + i % COLUMNS * group_width();
            if vector < HP / 4u && entry < p.B {
                let below = index[t * p.B + entry] * p.H + 4u * vector;
                let to = ((t + 1u) * p.B + entry) * p.H + 4u * vector;
                var state = sum[i];
                for (var j = 0u; j < 4u; j++) {
                    if 4u * vector + j < p.H { state[j] += x[below + j]; }
                }
                state = tanh4(state);
                for (var j = 0u; j < 4u; j++) {
                    if 4u * vector + j < p.H { h[to + j] = state[j]; }
                }
                rows[(place.x + i / COLUMNS) * (HP / 4u) + vector] = state;
            }
        }
    }
}
