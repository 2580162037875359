// The gradient of rnn_forward:
//   dh    = dy[t] + dx[t + 1] W (+ dend at an entry's last step)
//   dx[t] = dh (1 - h[t + 1]²), or dh where h[t + 1] > 0 with relu      t = last - 1 .. first
//   dstart = dx[0] W
// With a function that is asked for, dh times its derivative, at what was saved.
// Past an entry's length, dx is 0. One dispatch computes all steps, or one of them, from dx of the one after it; without
// `complete`, dstart then lacks the product of dx[first], which a dispatch of no steps adds.
//
// params   variant: as in rnn_forward
// dx       [D, T, B, H], and dstart [D, B, H]
// grid     entries, columns, directions or layers   joins lib/rows, lib/backward, lib/activations, lib/math
const GATES: u32 = 1u;
const PASSED: u32 = GATES;
const STATES: u32 = 1u;
const RELU: u32 = 1u;

@compute @workgroup_size(THREADS)
fn rnn_backward(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let place = place_of(group, thread);
    let steps = steps_of(group);
    if is_idle(steps) { return; }
    var carried = carried_in(place, group.z, steps);
    for (var t = steps.y; t > steps.x; t--) {
        for (var i = 0u; i < OWNED * COLUMNS; i++) {
            let entry = entry_of(place, i);
            let column = column_of(place, i);
            var d = vec4<f32>();
            if entry < p.B {
                if t <= lengths[entry] {
                    let dh = gradient_of_state(place, t - 1u, entry, column, carried[i / OWNED][i % OWNED]);
                    let after = state_row(place, 0u, t, entry) * p.H + column;
                    for (var j = 0u; j < 4u; j++) {
                        if column + j < p.H {
                            let y = states[after + j];
                            @if(ACTIVATIONS) d[j] = dh[j] * slope(0u, saved[row_of(place, p.T, t - 1u, entry) * p.H + column + j], y);
                            @if(!ACTIVATIONS) if p.variant == RELU { d[j] = select(0.0, dh[j], y > 0.0); } else { d[j] = dh[j] * (1.0 - y * y); }
                        }
                    }
                }
                let to = row_of(place, p.T, t - 1u, entry) * p.H + column;
                for (var j = 0u; j < 4u; j++) {
                    if column + j < p.H { dx[to + j] = d[j]; }
                }
            }
            @if(RESETS) if is_reset(place, t - 1u, entry) { d = vec4<f32>(); }
            keep(place, i, d);
        }
        carried = Sums();
        workgroupBarrier();
        if passes_on(t - 1u) { multiply(place, t - 1u, 0u, &carried); }
        workgroupBarrier();
        reduce(place, &carried);
    }
    store_carried(place, 0u, &carried);
}

// dx[t] of an entry.
fn row4(place: Place, t: u32, entry: u32, gate: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    @if(RESETS) if place.matrix < p.D && is_reset(place, t, entry) { return value; }
    let at = row_of(place, p.T, t, entry) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if entry < p.B && column + j < p.H { value[j] = dx[at + j]; }
    }
    return value;
}
