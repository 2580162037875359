// The gradient of reset_gru_forward. With dh = dy[t] + carried (+ dend at an entry's last step):
//   dn = dh (1 - z)(1 - n²)    dz = dh (h - n) z (1 - z)    q = dn W_n    dr = q h r (1 - r)
//   dx[t] = dr, dz, dn         carried = dh z + q r + dr W_r + dz W_z            t = last - 1 .. first
// A step has two parts, up to the product q and from there on, as forward. With functions that are asked for, their derivatives, at
// what was saved. Steps, lengths and complete as in rnn_backward.
//
// params   variant: 1 is the first part alone, 2 the second
// saved    [D, T, B, 4 H]     r, z, n, r h; of functions that are asked for, what comes into them, and r h
// dx       [D, T, B, 3 H], and dstart [D, B, H]
// grid     entries, columns, directions or layers   joins lib/rows, lib/backward, lib/activations, lib/math
const GATES: u32 = 3u;
const STATES: u32 = 1u;
const PASSED: u32 = 2u;
const FIRST_PART: u32 = 1u;
const SECOND_PART: u32 = 2u;

@compute @workgroup_size(THREADS)
fn reset_gru_backward(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let place = place_of(group, thread);
    let steps = steps_of(group);
    if is_idle(steps) { return; }
    var carried = Sums();
    if p.variant != SECOND_PART {
        carried = carried_in(place, group.z, steps);
    } else {
        for (var i = 0u; i < OWNED * COLUMNS; i++) {
            carried[i / OWNED][i % OWNED] = dstart4(place, 0u, entry_of(place, i), column_of(place, i));
        }
    }
    for (var t = steps.y; t > steps.x; t--) {
        if p.variant != SECOND_PART { before_product(place, t - 1u, &carried); }
        if p.variant != FIRST_PART {
            after_product(place, t - 1u, &carried);
            pass_on(place, t - 1u, &carried);
        }
    }
    store_carried(place, 0u, &carried);
}

// dz and dn; carried is dh z.
fn before_product(place: Place, t: u32, carried: ptr<function, Sums>) {
    for (var i = 0u; i < OWNED * COLUMNS; i++) {
        let entry = entry_of(place, i);
        let column = column_of(place, i);
        var rest = vec4<f32>();
        var dz = vec4<f32>();
        var dn = vec4<f32>();
        if entry < p.B {
            if t < lengths[entry] {
                let dh = gradient_of_state(place, t, entry, column, (*carried)[i / OWNED][i % OWNED]);
                let a_z = saved4(place, t, entry, 1u, column);
                let a_n = saved4(place, t, entry, 2u, column);
                let before = before4(place, t, entry, column);
                @if(!ACTIVATIONS) dn = dh * (1.0 - a_z) * (1.0 - a_n * a_n);
                @if(!ACTIVATIONS) dz = dh * (before - a_n) * a_z * (1.0 - a_z);
                @if(!ACTIVATIONS) rest = dh * a_z;
                @if(ACTIVATIONS) let z = activate4(1u, a_z);
                @if(ACTIVATIONS) let n = activate4(2u, a_n);
                @if(ACTIVATIONS) dn = dh * (1.0 - z) * slope4(2u, a_n, n);
                @if(ACTIVATIONS) dz = dh * (before - n) * slope4(1u, a_z, z);
                @if(ACTIVATIONS) rest = dh * z;
            }
            store_dx(place, t, entry, 1u, column, dz);
            store_dx(place, t, entry, 2u, column, dn);
        }
        @if(RESETS) if is_reset(place, t, entry) { rest = vec4<f32>(); }
        (*carried)[i / OWNED][i % OWNED] = rest;
    }
}

// dr; carried has q r too.
fn after_product(place: Place, t: u32, carried: ptr<function, Sums>) {
    var q = Sums();
    keep_rows(place, t, 2u);
    workgroupBarrier();
    multiply(place, t, 2u, &q);
    workgroupBarrier();
    reduce(place, &q);
    for (var i = 0u; i < OWNED * COLUMNS; i++) {
        let entry = entry_of(place, i);
        let column = column_of(place, i);
        if entry < p.B {
            var dr = vec4<f32>();
            if t < lengths[entry] {
                let a_r = saved4(place, t, entry, 0u, column);
                let d = q[i / OWNED][i % OWNED];
                @if(!ACTIVATIONS) let r = a_r;
                @if(!ACTIVATIONS) dr = d * before4(place, t, entry, column) * r * (1.0 - r);
                @if(ACTIVATIONS) let r = activate4(0u, a_r);
                @if(ACTIVATIONS) dr = d * before4(place, t, entry, column) * slope4(0u, a_r, r);
                (*carried)[i / OWNED][i % OWNED] += d * r;
            }
            store_dx(place, t, entry, 0u, column, dr);
        }
    }
}

// h[t] of an entry.
fn before4(place: Place, t: u32, entry: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    @if(RESETS) if is_reset(place, t, entry) { return value; }
    let at = state_row(place, 0u, t, entry) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = states[at + j]; }
    }
    return value;
}

fn saved4(place: Place, t: u32, entry: u32, block: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    let at = (row_of(place, p.T, t, entry) * 4u + block) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = saved[at + j]; }
    }
    return value;
}

fn store_dx(place: Place, t: u32, entry: u32, gate: u32, column: u32, value: vec4<f32>) {
    let at = (row_of(place, p.T, t, entry) * GATES + gate) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { dx[at + j] = value[j]; }
    }
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
