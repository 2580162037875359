// The gradient of lstm_forward. With dh = dy[t] + carried, dc = carried (+ dend at an entry's last step), u = tanh(c[t + 1]):
//   dc += dh o (1 - u²)
//   dx[t] = dc g i (1 - i),  dc c f (1 - f),  dc i (1 - g²),  dh u o (1 - o)        c = c[t], t = last - 1 .. first
//   carried: dh = dx[t] W, dc = dc f
// If something is asked for, derivatives are those of its functions, at what was saved; d_o p_o joins dc, and d_i p_i and d_f p_f what is
// carried to c; coupled, d_i has g - c for g, and d_f is 0. Steps, lengths and complete as in rnn_backward.
//
// params   variant: as in lstm_forward
//
// saved    [D, T, B, 4 H]     i, f, g, o; if something is asked for, what comes into their functions
// peepholes [D, 3 H]              p_i, p_f, p_o; a dummy if there are none
// dx       [D, T, B, 4 H], and dstart [D, 2, B, H]
// grid     entries, columns, directions or layers   joins lib/rows, lib/backward, lib/activations, lib/math
const GATES: u32 = 4u;
const PASSED: u32 = GATES;
const STATES: u32 = 2u;
const PEEPHOLES: u32 = 1u;
const COUPLED: u32 = 2u;

@group(0) @binding(8) var<storage, read> peepholes: array<f32>;

@compute @workgroup_size(THREADS)
fn lstm_backward(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let place = place_of(group, thread);
    let steps = steps_of(group);
    if is_idle(steps) { return; }
    var carried = carried_in(place, group.z, steps);
    var carried_c = load_carried(place, steps, 1u);
    for (var t = steps.y; t > steps.x; t--) {
        for (var k = 0u; k < OWNED * COLUMNS; k++) {
            let entry = entry_of(place, k);
            let column = column_of(place, k);
            let part = part_of(k);
            let r = k % OWNED;
            var d4 = array<vec4<f32>, GATES>();
            if entry < p.B {
                let row = row_of(place, p.T, t - 1u, entry);
                let slot = state_row(place, 1u, t - 1u, entry);
                if t <= lengths[entry] {
                    let dh = gradient_of_state(place, t - 1u, entry, column, carried[part][r]);
                    var dc = carried_c[part][r];
                    if p.has_dend != 0u && t == lengths[entry] { dc += dend4(place, 1u, entry, column); }
                    for (var j = 0u; j < 4u; j++) {
                        if column + j < p.H {
                            let at = row * 4u * p.H + column + j;
                            var before = states[slot * p.H + column + j];
                            @if(RESETS) if is_reset(place, t - 1u, entry) { before = 0.0; }
                            @if(!ACTIVATIONS) {
                                let i = saved[at];
                                let f = saved[at + p.H];
                                let g = saved[at + 2u * p.H];
                                let o = saved[at + 3u * p.H];
                                let u = tanh4(vec4<f32>(states[(slot + p.B) * p.H + column + j])).x;
                                let d = dc[j] + dh[j] * o * (1.0 - u * u);
                                d4[0][j] = d * g * i * (1.0 - i);
                                d4[1][j] = d * before * f * (1.0 - f);
                                d4[2][j] = d * i * (1.0 - g * g);
                                d4[3][j] = dh[j] * u * o * (1.0 - o);
                                dc[j] = d * f;
                            }
                            @if(ACTIVATIONS) {
                                let a = vec4<f32>(saved[at], saved[at + p.H], saved[at + 2u * p.H], saved[at + 3u * p.H]);
                                let now = states[(slot + p.B) * p.H + column + j];
                                let is_coupled = (p.variant & COUPLED) != 0u;
                                let i = activate(0u, a.x);
                                let f = select(activate(1u, a.y), 1.0 - i, is_coupled);
                                let g = activate(2u, a.z);
                                let o = activate(3u, a.w);
                                let u = activate(4u, now);
                                let d_o = dh[j] * u * slope(3u, a.w, o);
                                let d = dc[j] + dh[j] * o * slope(4u, now, u) + peephole(place, 2u, column + j) * d_o;
                                d4[0][j] = d * select(g, g - before, is_coupled) * slope(0u, a.x, i);
                                d4[1][j] = select(d * before * slope(1u, a.y, f), 0.0, is_coupled);
                                d4[2][j] = d * i * slope(2u, a.z, g);
                                d4[3][j] = d_o;
                                dc[j] = d * f + peephole(place, 0u, column + j) * d4[0][j] + peephole(place, 1u, column + j) * d4[1][j];
                            }
                        }
                    }
                    @if(RESETS) if is_reset(place, t - 1u, entry) { dc = vec4<f32>(); }
                    carried_c[part][r] = dc;
                }
                for (var gate = 0u; gate < GATES; gate++) {
                    for (var j = 0u; j < 4u; j++) {
                        if column + j < p.H { dx[(row * GATES + gate) * p.H + column + j] = d4[gate][j]; }
                    }
                }
            }
        }
        carried = Sums();
        pass_on(place, t - 1u, &carried);
    }
    store_carried(place, 0u, &carried);
    store_carried(place, 1u, &carried_c);
}

// dx[t] of an entry and gate.
fn row4(place: Place, t: u32, entry: u32, gate: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    @if(RESETS) if place.matrix < p.D && is_reset(place, t, entry) { return value; }
    let at = (row_of(place, p.T, t, entry) * GATES + gate) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if entry < p.B && column + j < p.H { value[j] = dx[at + j]; }
    }
    return value;
}

@if(ACTIVATIONS) fn peephole(place: Place, which: u32, column: u32) -> f32 {
    var value = 0.0;
    if (p.variant & PEEPHOLES) != 0u { value = peepholes[(place.direction * 3u + which) * p.H + column]; }
    return value;
}
