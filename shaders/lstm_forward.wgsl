// Long short-term memory (Hochreiter and Schmidhuber 1997, with forget gate, in PyTorch's form):
//   i = σ(x_i + h W_iᵀ)    f = σ(x_f + h W_fᵀ)    g = tanh(x_g + h W_gᵀ)    o = σ(x_o + h W_oᵀ)
//   c[t + 1] = f c + i g        h[t + 1] = o tanh(c[t + 1])        h = h[t], c = c[t], x_. = x[index[t]], t = first .. last - 1
//
// Steps and lengths as in rnn_forward.
//
// x        [D, N, 4 H]           gates i, f, g, o, biases included
// biases   [D - 1, 4 H]          b_ih + b_hh of stacked layers 1 .. D - 1
// states   [D, 2, T + 1, B, H]   h and c
// saved    [D, T, B, 4 H]        i, f, g, o
// grid     entries, columns, directions or layers   joins lib/rows, lib/forward, lib/math
const GATES: u32 = 4u;
const STATES: u32 = 2u;
const SEPARATE_BIAS: u32 = 0u;

@compute @workgroup_size(THREADS)
fn lstm_forward(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let place = place_of(group, thread);
    let steps = steps_of(group);
    if is_idle(steps) { return; }
    start(place, steps);
    for (var t = steps.x; t < steps.y; t++) {
        var sums = recurrent(place, t);
        add_from_below(place, group.z, t, &sums);
        reduce(place, &sums);
        for (var k = 0u; k < OWNED * COLUMNS; k++) {
            let entry = entry_of(place, k);
            let column = column_of(place, k);
            let part = k / OWNED;
            let r = k % OWNED;
            var state = vec4<f32>();
            var cell = vec4<f32>();
            if entry < p.B {
                let at_c = state_row(place, 1u, t, entry) * p.H + column;
                if t < lengths[entry] {
                    let i = sigmoid4(below(place, t, entry, 0u, column) + sums[part][r]);
                    let f = sigmoid4(below(place, t, entry, 1u, column) + sums[COLUMNS + part][r]);
                    let g = tanh4(below(place, t, entry, 2u, column) + sums[2u * COLUMNS + part][r]);
                    let o = sigmoid4(below(place, t, entry, 3u, column) + sums[3u * COLUMNS + part][r]);
                    let at = row_of(place, p.T, t, entry) * 4u * p.H + column;
                    for (var j = 0u; j < 4u; j++) {
                        if column + j < p.H {
                            var before = states[at_c + j];
                            @if(RESETS) if is_reset(place, t, entry) { before = 0.0; }
                            cell[j] = f[j] * before + i[j] * g[j];
                            if p.save != 0u {
                                saved[at + j] = i[j];
                                saved[at + p.H + j] = f[j];
                                saved[at + 2u * p.H + j] = g[j];
                                saved[at + 3u * p.H + j] = o[j];
                            }
                        }
                    }
                    state = o * tanh4(cell);
                }
                let to_h = state_row(place, 0u, t + 1u, entry) * p.H + column;
                let to_c = at_c + p.B * p.H;
                for (var j = 0u; j < 4u; j++) {
                    if column + j < p.H {
                        states[to_h + j] = state[j];
                        states[to_c + j] = cell[j];
                    }
                }
            }
            @if(RESETS) if is_reset(place, t + 1u, entry) { state = vec4<f32>(); }
            keep(place, k, state);
        }
    }
}
