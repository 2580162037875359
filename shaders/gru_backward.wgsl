// The gradient of gru_forward. With dh = dy[t] + carried (+ dend at an entry's last step):
//   dn = dh (1 - z)(1 - n²)    dz = dh (h - n) z (1 - z)    dr = dn m r (1 - r)    dm = dn r
//   dx[t] = dr, dz, dn         carried = dh z + dr W_r + dz W_z + dm W_n            t = last - 1 .. first
// With functions that are asked for, their derivatives, at what was saved. Steps, lengths and complete as in rnn_backward.
//
// saved    [D, T, B, 4 H]     r, z, n, m; becomes dr, dz, dm (and m), the gradient of h Wᵀ + b
// dx       [D, T, B, 3 H], and dstart [D, B, H]
// grid     entries, columns, directions or layers   joins lib/rows, lib/backward, lib/activations, lib/math
const GATES: u32 = 3u;
const PASSED: u32 = GATES;
const STATES: u32 = 1u;

@compute @workgroup_size(THREADS)
fn gru_backward(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let place = place_of(group, thread);
    let steps = steps_of(group);
    if is_idle(steps) { return; }
    var carried = carried_in(place, group.z, steps);
    for (var t = steps.y; t > steps.x; t--) {
        for (var i = 0u; i < OWNED * COLUMNS; i++) {
            let entry = entry_of(place, i);
            let column = column_of(place, i);
            let part = part_of(i);
            let row = i % OWNED;
            var rest = vec4<f32>();
            if entry < p.B {
                let step = row_of(place, p.T, t - 1u, entry);
                let slot = state_row(place, 0u, t - 1u, entry);
                let valid = t <= lengths[entry];
                var dh = vec4<f32>();
                if valid { dh = gradient_of_state(place, t - 1u, entry, column, carried[part][row]); }
                for (var j = 0u; j < 4u; j++) {
                    if column + j < p.H {
                        let at = step * 4u * p.H + column + j;
                        var dr = 0.0;
                        var dz = 0.0;
                        var dn = 0.0;
                        var dm = 0.0;
                        if valid {
                            @if(!ACTIVATIONS) let r = saved[at];
                            @if(ACTIVATIONS) let a_r = saved[at];
                            @if(ACTIVATIONS) let r = activate(0u, a_r);
                            @if(!ACTIVATIONS) let z = saved[at + p.H];
                            @if(ACTIVATIONS) let a_z = saved[at + p.H];
                            @if(ACTIVATIONS) let z = activate(1u, a_z);
                            @if(!ACTIVATIONS) let n = saved[at + 2u * p.H];
                            @if(ACTIVATIONS) let a_n = saved[at + 2u * p.H];
                            @if(ACTIVATIONS) let n = activate(2u, a_n);
                            let m = saved[at + 3u * p.H];
                            var before = states[slot * p.H + column + j];
                            @if(RESETS) if is_reset(place, t - 1u, entry) { before = 0.0; }
                            @if(!ACTIVATIONS) dn = dh[j] * (1.0 - z) * (1.0 - n * n);
                            @if(ACTIVATIONS) dn = dh[j] * (1.0 - z) * slope(2u, a_n, n);
                            @if(!ACTIVATIONS) dz = dh[j] * (before - n) * z * (1.0 - z);
                            @if(ACTIVATIONS) dz = dh[j] * (before - n) * slope(1u, a_z, z);
                            @if(!ACTIVATIONS) dr = dn * m * r * (1.0 - r);
                            @if(ACTIVATIONS) dr = dn * m * slope(0u, a_r, r);
                            dm = dn * r;
                            rest[j] = dh[j] * z;
                        }
                        let to = step * 3u * p.H + column + j;
                        dx[to] = dr;
                        dx[to + p.H] = dz;
                        dx[to + 2u * p.H] = dn;
                        saved[at] = dr;
                        saved[at + p.H] = dz;
                        saved[at + 2u * p.H] = dm;
                    }
                }
            }
            @if(RESETS) if is_reset(place, t - 1u, entry) { rest = vec4<f32>(); }
            carried[part][row] = rest;
        }
        pass_on(place, t - 1u, &carried);
    }
    store_carried(place, 0u, &carried);
}

// dr[t], dz[t] or dm[t] of an entry; of the layer above, dr[t], dz[t] or dn[t].
fn row4(place: Place, t: u32, entry: u32, gate: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    @if(RESETS) if place.matrix < p.D && is_reset(place, t, entry) { return value; }
    let row = row_of(place, p.T, t, entry);
    let at = (row * 4u + gate) * p.H + column;
    let at_dx = (row * GATES + gate) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if entry < p.B && column + j < p.H {
            if STACKED != 0u && place.matrix >= p.D { value[j] = dx[at_dx + j]; } else { value[j] = saved[at + j]; }
        }
    }
    return value;
}
