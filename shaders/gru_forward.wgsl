// The gated recurrent unit, reset after the product (Cho et al. 2014, in PyTorch's form):
//   r = σ(x_r + h W_rᵀ + b_r)    z = σ(x_z + h W_zᵀ + b_z)    m = h W_nᵀ + b_n    n = tanh(x_n + r m)
//   h[t + 1] = (1 - z) n + z h          h = h[t], x_. = x[index[t]], t = first .. last - 1
//
// With functions that are asked for, these in place of σ, σ and tanh. Steps and lengths as in rnn_forward.
//
// x        [D, N, 3 H]        gates r, z, n; b_ih included
// biases   [D, 3 H]           b_hh; behind it b_ih of stacked layers 1 .. D - 1
// states   [D, T + 1, B, H]   h
// saved    [D, T, B, 4 H]     r, z, n, m; of functions that are asked for, what comes into them, and m
// grid     entries, columns, directions or layers   joins lib/rows, lib/forward, lib/before, lib/activations, lib/math
const GATES: u32 = 3u;
const AT_ONCE: u32 = GATES;
const STATES: u32 = 1u;
const SEPARATE_BIAS: u32 = 1u;
const APART: u32 = STACKED * COLUMNS; // of gate n what r scales, where the rest comes from below
const OF_M: u32 = (2u + STACKED) * COLUMNS;

@compute @workgroup_size(THREADS)
fn gru_forward(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let place = place_of(group, thread);
    let steps = steps_of(group);
    if is_idle(steps) { return; }
    start(place, steps);
    for (var t = steps.x; t < steps.y; t++) {
        var sums = recurrent(place, t);
        set_apart(&sums);
        add_from_below(place, group.z, t, &sums);
        reduce(place, &sums);
        for (var i = 0u; i < OWNED * COLUMNS; i++) {
            let entry = entry_of(place, i);
            let column = column_of(place, i);
            let part = part_of(i);
            let row = i % OWNED;
            var state = vec4<f32>();
            if entry < p.B {
                if t < lengths[entry] {
                    let before = row4(place, t, entry, 0u, column);
                    let x_r = below(place, t, entry, 0u, column);
                    let x_z = below(place, t, entry, 1u, column);
                    var x_n = below(place, t, entry, 2u, column);
                    if STACKED != 0u { x_n += sums[2u * COLUMNS + part][row]; }
                    @if(!ACTIVATIONS) let r = sigmoid4(x_r + sums[part][row] + bias4(group.z, 0u, column));
                    @if(!ACTIVATIONS) let z = sigmoid4(x_z + sums[COLUMNS + part][row] + bias4(group.z, 1u, column));
                    let m = sums[OF_M + part][row] + bias4(group.z, 2u, column);
                    @if(!ACTIVATIONS) let n = tanh4(x_n + r * m);
                    @if(ACTIVATIONS) let a_r = x_r + sums[part][row] + bias4(group.z, 0u, column);
                    @if(ACTIVATIONS) let a_z = x_z + sums[COLUMNS + part][row] + bias4(group.z, 1u, column);
                    @if(ACTIVATIONS) let r = activate4(0u, a_r);
                    @if(ACTIVATIONS) let z = activate4(1u, a_z);
                    @if(ACTIVATIONS) let a_n = x_n + r * m;
                    @if(ACTIVATIONS) let n = activate4(2u, a_n);
                    state = (1.0 - z) * n + z * before;
                    let at = row_of(place, p.T, t, entry) * 4u * p.H + column;
                    @if(ACTIVATIONS) save4(at - column, column, a_r);
                    @if(ACTIVATIONS) save4(at - column + p.H, column, a_z);
                    @if(ACTIVATIONS) save4(at - column + 2u * p.H, column, a_n);
                    @if(ACTIVATIONS) save4(at - column + 3u * p.H, column, m);
                    @if(!ACTIVATIONS) for (var j = 0u; j < 4u; j++) {
                        if column + j < p.H {
                            if p.save != 0u {
                                saved[at + j] = r[j];
                                saved[at + p.H + j] = z[j];
                                saved[at + 2u * p.H + j] = n[j];
                                saved[at + 3u * p.H + j] = m[j];
                            }
                        }
                    }
                }
                let to = state_row(place, 0u, t + 1u, entry) * p.H + column;
                for (var j = 0u; j < 4u; j++) {
                    if column + j < p.H { states[to + j] = state[j]; }
                }
            }
            @if(RESETS) if is_reset(place, t + 1u, entry) { state = vec4<f32>(); }
            keep(place, i, state);
        }
    }
}

// Makes room for what comes from below.
fn set_apart(sums: ptr<function, Sums>) {
    for (var part = 2u * COLUMNS; part < OF_M; part++) {
        (*sums)[part + APART] = (*sums)[part];
        (*sums)[part] = array<vec4<f32>, ROWS>();
    }
}
