// Whether a step updates the parameters, and at which learning rates:
//   rate[64 k] = lr[64 k] if it does, -1 if it does not     for each group k of parameters
// It does after each `accumulate` steps, unless one of them was bad: a loss, or the norm of the gradient, not finite. Where
// `stops`, nothing is updated from the first bad step on, until the host has seen it.
//
// params   n, capacity
//          R            losses of a step
//          K            groups
//          accumulate   steps for each update
//          stops        0 or 1
// norm2    [1]              ‖gradient‖²
// gradient [n]
// history  [R, capacity]    the losses of step t are in column (t - 1) mod capacity
// clock    [2] u32          clock[0] is t, 1 in the first step
// lr       [64 K]
// state    [64] u32         [0] updates, this one included     [1] the first bad step that the host has not seen, 0: none
//                           [2] the first element of its gradient that is not finite, 2³² - 1: none among the first 2²⁴
//                           [3] updates that were left out     [4] whether a step since the last update was bad
//                           [5] its norm2, in bits
// rate     [64 K]
// grid     one workgroup      joins lib/reduce
struct Params {
    n: u32,
    capacity: u32,
    R: u32,
    K: u32,
    accumulate: u32,
    stops: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> norm2: array<f32>;
@group(0) @binding(2) var<storage, read> gradient: array<f32>;
@group(0) @binding(3) var<storage, read> history: array<f32>;
@group(0) @binding(4) var<storage, read> clock: array<u32>;
@group(0) @binding(5) var<storage, read> lr: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<u32>;
@group(0) @binding(7) var<storage, read_write> rate: array<f32>;

const THREADS: u32 = 256u;
const SEARCHED: u32 = 1u << 24u;

fn is_bad(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u;
}

@compute @workgroup_size(THREADS)
fn gate(@builtin(local_invocation_index) local: u32) {
    let t = clock[0];
    var bad = is_bad(norm2[0]);
    for (var r = 0u; r < p.R; r++) { bad = bad || is_bad(history[r * p.capacity + (t - 1u) % p.capacity]); }
    let is_first = bad && state[1] == 0u;

    // The first place: the largest of the negated ones.
    let end = select(0u, min(p.n, SEARCHED), is_first);
    var place = -f32(SEARCHED);
    for (var i = local; i < end; i += THREADS) {
        if is_bad(gradient[i]) { place = max(place, -f32(i)); }
    }
    place = workgroup_max(local, place);

    if local == 0u {
        if is_first {
            state[1] = t;
            state[2] = select(u32(-place), 0xffffffffu, u32(-place) == SEARCHED);
            state[5] = bitcast<u32>(norm2[0]);
        }
        if bad { state[4] = 1u; }
        let stopped = p.stops != 0u && state[1] != 0u;
        let due = t % p.accumulate == 0u;
        let updates = due && state[4] == 0u && !stopped;
        if updates { state[0] += 1u; }
        if due && !updates { state[3] += 1u; }
        if due { state[4] = 0u; }
        for (var k = 0u; k < p.K; k++) { rate[64u * k] = select(-1.0, lr[64u * k], updates); }
    }
}
