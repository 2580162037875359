// Long short-term memory (Hochreiter and Schmidhuber 1997, with forget gate, in PyTorch's form):
//   i = σ(x_i + h W_iᵀ)    f = σ(x_f + h W_fᵀ)    g = tanh(x_g + h W_gᵀ)    o = σ(x_o + h W_oᵀ)
//   c[t + 1] = f c + i g        h[t + 1] = o tanh(c[t + 1])        h = h[t], c = c[t], x_. = x[index[t]], t = first .. last - 1
//
// If it is asked for, other functions take the place of σ, σ, tanh, σ and, of c, tanh; PEEPHOLES add p_i c, p_f c and, of the new one,
// p_o c[t + 1] to what comes into i, f and o; and f is 1 - i if they are COUPLED. Steps and lengths as in rnn_forward.
//
// params   variant: bits PEEPHOLES and COUPLED
//
// x        [D, N, 4 H]           gates i, f, g, o, biases included
// biases   [D - 1, 4 H]          b_ih + b_hh of stacked layers 1 .. D - 1
// states   [D, 2, T + 1, B, H]   h and c
// saved    [D, T, B, 4 H]        i, f, g, o; if something is asked for, what comes into their functions
// peepholes [D, 3 H]              p_i, p_f, p_o; a dummy if there are none
// grid     entries, columns, directions or layers   joins lib/rows, lib/forward, lib/before, lib/activations, lib/math
const GATES: u32 = 4u;
const AT_ONCE: u32 = GATES;
const STATES: u32 = 2u;
const SEPARATE_BIAS: u32 = 0u;
const APART: u32 = 0u;
const PEEPHOLES: u32 = 1u;
const COUPLED: u32 = 2u;

@group(0) @binding(8) var<storage, read> peepholes: array<f32>;

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
            let part = part_of(k);
            let r = k % OWNED;
            var state = vec4<f32>();
            var cell = vec4<f32>();
            if entry < p.B {
                if t < lengths[entry] {
                    let was = cell4(place, t, entry, column);
                    let b_i = below(place, t, entry, 0u, column) + sums[part][r];
                    let b_f = below(place, t, entry, 1u, column) + sums[COLUMNS + part][r];
                    let a_g = below(place, t, entry, 2u, column) + sums[2u * COLUMNS + part][r];
                    let b_o = below(place, t, entry, 3u, column) + sums[3u * COLUMNS + part][r];
                    @if(!ACTIVATIONS) let i = sigmoid4(b_i);
                    @if(!ACTIVATIONS) let f = sigmoid4(b_f);
                    @if(!ACTIVATIONS) let g = tanh4(a_g);
                    @if(!ACTIVATIONS) let o = sigmoid4(b_o);
                    @if(ACTIVATIONS) let a_i = b_i + peephole4(place, 0u, column) * was;
                    @if(ACTIVATIONS) let a_f = b_f + peephole4(place, 1u, column) * was;
                    @if(ACTIVATIONS) let i = activate4(0u, a_i);
                    @if(ACTIVATIONS) let f = select(activate4(1u, a_f), 1.0 - i, (p.variant & COUPLED) != 0u);
                    @if(ACTIVATIONS) let g = activate4(2u, a_g);
                    cell = f * was + i * g;
                    @if(!ACTIVATIONS) state = o * tanh4(cell);
                    @if(ACTIVATIONS) let a_o = b_o + peephole4(place, 2u, column) * cell;
                    @if(ACTIVATIONS) state = activate4(3u, a_o) * activate4(4u, cell);
                    let at = row_of(place, p.T, t, entry) * 4u * p.H;
                    @if(!ACTIVATIONS) save_gates(at, column, i, f, g, o);
                    @if(ACTIVATIONS) save_gates(at, column, a_i, a_f, a_g, a_o);
                }
                let to_h = state_row(place, 0u, t + 1u, entry) * p.H + column;
                let to_c = state_row(place, 1u, t + 1u, entry) * p.H + column;
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

fn save_gates(row: u32, column: u32, i: vec4<f32>, f: vec4<f32>, g: vec4<f32>, o: vec4<f32>) {
    save4(row, column, i);
    save4(row + p.H, column, f);
    save4(row + 2u * p.H, column, g);
    save4(row + 3u * p.H, column, o);
}

// c[t] of an entry.
fn cell4(place: Place, t: u32, entry: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    @if(RESETS) if is_reset(place, t, entry) { return value; }
    let at = state_row(place, 1u, t, entry) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = states[at + j]; }
    }
    return value;
}

@if(ACTIVATIONS) fn peephole4(place: Place, which: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    for (var j = 0u; j < 4u; j++) {
        if (p.variant & PEEPHOLES) != 0u && column + j < p.H { value[j] = peepholes[(place.direction * 3u + which) * p.H + column + j]; }
    }
    return value;
}
