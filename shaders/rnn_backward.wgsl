// The gradient of rnn_forward:
//   dh    = dy[t] + dx[t + 1] W (+ dend at an entry's last step)
//   dx[t] = dh (1 - h[t + 1]²), or dh where h[t + 1] > 0 with relu      t = last - 1 .. first
//   dstart = dx[0] W
// Past an entry's length, dx is 0. One dispatch computes all steps, or one of them, from dx of the one after it; without
// `complete`, dstart then lacks the product of dx[first], which a dispatch of no steps adds.
//
// params   D, T, B, H
//          first, last        the steps to compute, from last - 1 down
//          complete           whether the product of dx[first] is made here
//          has_dy, has_dend   whether these are given; a dummy is bound otherwise
//          variant            as in rnn_forward
// w        [D, HP, HP / 4] vec4   W, zero-padded; W_ih of stacked layers 1 .. D - 1 behind them
// lengths  [B] u32
// states   [D, T + 1, B, H]   h
// dy       [D, T, B, H]       gradient of every step's output; of stacked layers [T, B, H], the top one's
// dend     [D, B, H]          gradient of the last state
// dx       [D, T, B, H]       behind it dstart [D, B, H]
// grid     entries, columns, directions or layers   joins lib/rows, lib/backward
struct Params {
    D: u32,
    T: u32,
    B: u32,
    H: u32,
    first: u32,
    last: u32,
    complete: u32,
    has_dy: u32,
    has_dend: u32,
    variant: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<Weights>;
@group(0) @binding(2) var<storage, read> lengths: array<u32>;
@group(0) @binding(3) var<storage, read> states: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read> dend: array<f32>;
@group(0) @binding(6) var<storage, read_write> dx: array<f32>;

const GATES: u32 = 1u;
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
                            if p.variant == RELU { d[j] = select(0.0, dh[j], y > 0.0); } else { d[j] = dh[j] * (1.0 - y * y); }
                        }
                    }
                }
                let to = row_of(place, p.T, t - 1u, entry) * p.H + column;
                for (var j = 0u; j < 4u; j++) {
                    if column + j < p.H { dx[to + j] = d[j]; }
                }
            }
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
    let at = row_of(place, p.T, t, entry) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if entry < p.B && column + j < p.H { value[j] = dx[at + j]; }
    }
    return value;
}
