// The gradient of lstm_forward. With dh = dy[t] + carried, dc = carried (+ dend at an entry's last step), u = tanh(c[t + 1]):
//   dc += dh o (1 - u²)
//   dx[t] = dc g i (1 - i),  dc c f (1 - f),  dc i (1 - g²),  dh u o (1 - o)        c = c[t], t = last - 1 .. first
//   carried: dh = dx[t] W, dc = dc f
// Steps, lengths and complete as in rnn_backward.
//
// saved    [D, T, B, 4 H]     i, f, g, o
// dx       [D, T, B, 4 H], and dstart [D, 2, B, H]
// grid     entries, columns, directions or layers   joins lib/rows, lib/backward, lib/math
const GATES: u32 = 4u;
const STATES: u32 = 2u;

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
            let part = k / OWNED;
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
                            let i = saved[at];
                            let f = saved[at + p.H];
                            let g = saved[at + 2u * p.H];
                            let o = saved[at + 3u * p.H];
                            var before = states[slot * p.H + column + j];
                            @if(RESETS) if is_reset(place, t - 1u, entry) { before = 0.0; }
                            let u = tanh4(vec4<f32>(states[(slot + p.B) * p.H + column + j])).x;
                            let d = dc[j] + dh[j] * o * (1.0 - u * u);
                            d4[0][j] = d * g * i * (1.0 - i);
                            d4[1][j] = d * before * f * (1.0 - f);
                            d4[2][j] = d * i * (1.0 - g * g);
                            d4[3][j] = dh[j] * u * o * (1.0 - o);
                            dc[j] = d * f;
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
