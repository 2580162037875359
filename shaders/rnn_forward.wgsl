// h[t + 1] = f(x[index[t]] + h[t] Wᵀ)      f = tanh, or max(0, ·) with relu; t = first .. last - 1
//
// All steps in one dispatch, where a workgroup can keep the states of its batch entries; otherwise one step, of some of
// the columns. Past an entry's length, h is 0. The D directions are recurrences of their own, side by side; or they are
// stacked layers, each a step behind the one below: x[index[t]] is then h_below[t + 1] W_ihᵀ + biases.
//
// params   variant: 1 is relu
// x        [D, N, H]          what comes in from below, biases included
// biases   [D - 1, H]         b_ih + b_hh of stacked layers 1 .. D - 1
// states   [D, T + 1, B, H]   h
// saved    nothing, or [D, T, B, H], what comes into a function that is asked for
// grid     entries, columns, directions or layers   joins lib/rows, lib/forward, lib/before, lib/activations, lib/math
const GATES: u32 = 1u;
const AT_ONCE: u32 = GATES;
const STATES: u32 = 1u;
const SEPARATE_BIAS: u32 = 0u;
const APART: u32 = 0u;
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
                    @if(ACTIVATIONS) let input = state;
                    @if(ACTIVATIONS) state = activate4(0u, input);
                    @if(ACTIVATIONS) save4(row_of(place, p.T, t, entry) * p.H, column, input);
                    @if(!ACTIVATIONS) if p.variant == RELU { state = select(state, vec4<f32>(), state < vec4<f32>()); } else { state = tanh4(state); }
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
