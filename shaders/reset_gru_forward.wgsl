// The gated recurrent unit, reset before the product (Cho et al. 2014, in its first form):
//   r = σ(x_r + h W_rᵀ)    z = σ(x_z + h W_zᵀ)    n = tanh(x_n + (r h) W_nᵀ)
//   h[t + 1] = (1 - z) n + z h          h = h[t], x_. = x[index[t]], t = first .. last - 1
//
// A step has two parts, for n needs all columns of r h: r and z, and the rest. All steps in one dispatch have both, one after the
// other; otherwise each is a dispatch. With functions that are asked for, these in place of σ, σ and tanh. Steps and lengths as in
// rnn_forward.
//
// params   variant: 1 is the first part alone, 2 the second
// x        [D, N, 3 H]        gates r, z, n, biases included
// biases   [D - 1, 3 H]       b_ih + b_hh of stacked layers 1 .. D - 1
// states   [D, T + 1, B, H]   h
// saved    [D, T, B, 4 H]     r, z, n, r h, always there; of functions that are asked for, what comes into them, and r h
// grid     entries, columns, directions or layers   joins lib/rows, lib/forward, lib/activations, lib/math
const GATES: u32 = 3u;
const STATES: u32 = 1u;
const SEPARATE_BIAS: u32 = 0u;
const APART: u32 = 0u;
const AT_ONCE: u32 = 1u;
const FIRST_PART: u32 = 1u;
const SECOND_PART: u32 = 2u;

@compute @workgroup_size(THREADS)
fn reset_gru_forward(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let place = place_of(group, thread);
    let steps = steps_of(group);
    if is_idle(steps) { return; }
    start(place, steps);
    for (var t = steps.x; t < steps.y; t++) {
        if p.variant != SECOND_PART { reset(place, t); }
        if p.variant != FIRST_PART { update(place, t); }
    }
}

// r, z and r h.
fn reset(place: Place, t: u32) {
    var of_r = Sums();
    var of_z = Sums();
    workgroupBarrier();
    if has_state(t) {
        multiply(place, t, 0u, &of_r);
        multiply(place, t, 1u, &of_z);
    }
    add_gate_from_below(place, t, 0u, &of_r);
    add_gate_from_below(place, t, 1u, &of_z);
    workgroupBarrier();
    reduce(place, &of_r);
    reduce(place, &of_z);
    for (var i = 0u; i < OWNED * COLUMNS; i++) {
        let entry = entry_of(place, i);
        let column = column_of(place, i);
        var product = vec4<f32>();
        if entry < p.B {
            if t < lengths[entry] {
                let a_r = below(place, t, entry, 0u, column) + of_r[i / OWNED][i % OWNED];
                let a_z = below(place, t, entry, 1u, column) + of_z[i / OWNED][i % OWNED];
                @if(!ACTIVATIONS) let r = sigmoid4(a_r);
                @if(!ACTIVATIONS) let kept = array<vec4<f32>, 2>(r, sigmoid4(a_z));
                @if(ACTIVATIONS) let r = activate4(0u, a_r);
                @if(ACTIVATIONS) let kept = array<vec4<f32>, 2>(a_r, a_z);
                product = r * row4(place, t, entry, 0u, column);
                save_block(place, t, entry, 0u, column, kept[0]);
                save_block(place, t, entry, 1u, column, kept[1]);
                save_block(place, t, entry, 3u, column, product);
            }
        }
        keep(place, i, product);
    }
}

// n, and the next state.
fn update(place: Place, t: u32) {
    var of_n = Sums();
    workgroupBarrier();
    if has_state(t) { multiply(place, t, 2u, &of_n); }
    add_gate_from_below(place, t, 2u, &of_n);
    workgroupBarrier();
    reduce(place, &of_n);
    for (var i = 0u; i < OWNED * COLUMNS; i++) {
        let entry = entry_of(place, i);
        let column = column_of(place, i);
        var state = vec4<f32>();
        if entry < p.B {
            if t < lengths[entry] {
                let a_n = below(place, t, entry, 2u, column) + of_n[i / OWNED][i % OWNED];
                @if(!ACTIVATIONS) let z = saved4(place, t, entry, 1u, column);
                @if(!ACTIVATIONS) let n = tanh4(a_n);
                @if(!ACTIVATIONS) save_block(place, t, entry, 2u, column, n);
                @if(ACTIVATIONS) let z = activate4(1u, saved4(place, t, entry, 1u, column));
                @if(ACTIVATIONS) let n = activate4(2u, a_n);
                @if(ACTIVATIONS) save_block(place, t, entry, 2u, column, a_n);
                state = (1.0 - z) * n + z * row4(place, t, entry, 0u, column);
            } else {
                // The matrix's gradient multiplies it with 0.
                save_block(place, t, entry, 3u, column, vec4<f32>());
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

// sums += h[t + 1] W_ihᵀ of one gate, of the layer below.
fn add_gate_from_below(place: Place, t: u32, gate: u32, sums: ptr<function, Sums>) {
    if STACKED != 0u && place.direction > 0u { multiply(neighbour(place, place.direction - 1u), t + 1u, gate, sums); }
}

fn at_saved(place: Place, t: u32, entry: u32, block: u32, column: u32) -> u32 {
    return (row_of(place, p.T, t, entry) * 4u + block) * p.H + column;
}

fn save_block(place: Place, t: u32, entry: u32, block: u32, column: u32, value: vec4<f32>) {
    let at = at_saved(place, t, entry, block, column);
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { saved[at + j] = value[j]; }
    }
}

fn saved4(place: Place, t: u32, entry: u32, block: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    let at = at_saved(place, t, entry, block, column);
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = saved[at + j]; }
    }
    return value;
}

// h[t] of an entry, or, of gate n, r h.
fn row4(place: Place, t: u32, entry: u32, gate: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    if entry >= p.B { return value; }
    if gate == 2u && place.matrix < p.D { return saved4(place, t, entry, 3u, column); }
    @if(RESETS) if place.matrix < p.D && is_reset(place, t, entry) { return value; }
    let at = state_row(place, 0u, t, entry) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = states[at + j]; }
    }
    return value;
}
