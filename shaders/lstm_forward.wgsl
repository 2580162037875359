// Long short-term memory (Hochreiter and Schmidhuber 1997, with forget gate, in PyTorch's form):
//   i = σ(x_i + h W_iᵀ)    f = σ(x_f + h W_fᵀ)    g = tanh(x_g + h W_gᵀ)    o = σ(x_o + h W_oᵀ)
//   c[t + 1] = f c + i g        h[t + 1] = o tanh(c[t + 1])        h = h[t], c = c[t], x_. = x[index[t]], t = first .. last - 1
//
// Steps and lengths as in rnn_forward.
//
// params   D, N, T, B, H    N: rows of x of a direction
//          first, last        the steps to compute
//          has_h_0            whether the incoming state may be other than 0
//          save               whether gates are saved for the backward pass; a dummy is bound otherwise
//          variant            0
// x        [D, N, 4 H]        gates i, f, g, o, biases included
// index    [D, T, B] u32      the row of x for each step and entry; of stacked layers x and index are the first one's
// lengths  [B] u32
// w        [D, 4, HP, HP / 4] vec4   W_gᵀ of each gate, zero-padded; W_ihᵀ of stacked layers 1 .. D - 1 behind them
// biases   [D - 1, 4 H]          b_ih + b_hh of these; a dummy is bound otherwise
// states   [D, 2, T + 1, B, H]   h and c; slot 0 is the incoming state
// saved    [D, T, B, 4 H]        i, f, g, o for the backward pass
// grid     entries, columns, directions or layers   joins lib/rows, lib/forward, lib/math
struct Params {
    D: u32,
    N: u32,
    T: u32,
    B: u32,
    H: u32,
    first: u32,
    last: u32,
    has_h_0: u32,
    save: u32,
    variant: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read> lengths: array<u32>;
@group(0) @binding(4) var<storage, read> w: array<Weights>;
@group(0) @binding(5) var<storage, read> biases: array<f32>;
@group(0) @binding(6) var<storage, read_write> states: array<f32>;
@group(0) @binding(7) var<storage, read_write> saved: array<f32>;

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
                            cell[j] = f[j] * states[at_c + j] + i[j] * g[j];
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
            keep(place, k, state);
        }
    }
}
