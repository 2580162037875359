// h[t + 1] = f(x[index[t]] + h[t] Wᵀ)      f = tanh, or max(0, ·) with relu; t = first .. last - 1
//
// All steps in one dispatch, where a workgroup can keep the states of its batch entries; otherwise one step, of some of
// the columns. Past an entry's length, h is 0. The D directions are recurrences of their own, side by side; or they are
// stacked layers, each a step behind the one below: x[index[t]] is then h_below[t + 1] W_ihᵀ + biases.
//
// params   D, N, T, B, H    N: rows of x of a direction
//          first, last   the steps to compute
//          has_h_0       whether the incoming state may be other than 0
//          save          of no use here
//          variant       1: relu
// x        [D, N, H]          what comes in from below, biases included
// index    [D, T, B] u32      the row of x for each step and entry; of stacked layers x and index are the first one's
// lengths  [B] u32
// w        [D, HP, HP / 4] vec4   Wᵀ, zero-padded (pack makes it); W_ihᵀ of stacked layers 1 .. D - 1 behind them
// biases   [D - 1, H]         b_ih + b_hh of these; a dummy is bound otherwise
// states   [D, T + 1, B, H]   h; slot 0 is the incoming state
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

const GATES: u32 = 1u;
const STATES: u32 = 1u;
const SEPARATE_BIAS: u32 = 0u;
const RELU: u32 = 1u;

@compute @workgroup_size(THREADS)
fn rnn_forward(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let place = place_of(group, thread);
    let steps = steps_of(group);
    if is_idle(steps) { return; }
    start(place, steps);
    for (var t = steps.x; t < steps.y; t++) {
        var sums = recurrent(place, t);
        add_from_below(place, group.z, t, &sums);
        reduce(place, &sums);
        for (var i = 0u; i < OWNED * COLUMNS; i++) {
            let entry = entry_of(place, i);
            let column = column_of(place, i);
            var state = vec4<f32>();
            if entry < p.B {
                if t < lengths[entry] {
                    state = below(place, t, entry, 0u, column) + sums[i / OWNED][i % OWNED];
                    if p.variant == RELU { state = select(state, vec4<f32>(), state < vec4<f32>()); } else { state = tanh4(state); }
                }
                let to = state_row(place, 0u, t + 1u, entry) * p.H + column;
                for (var j = 0u; j < 4u; j++) {
                    if column + j < p.H { states[to + j] = state[j]; }
                }
            }
            keep(place, i, state);
        }
    }
}
