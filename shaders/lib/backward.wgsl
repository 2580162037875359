// The backward half of what the sequence kernels share, beside lib/rows. The kernel that joins this has
//   const GATES, STATES: u32
//   const PASSED: u32           the first gates, whose products a step passes on to the one before it
//
// params   D, T, B, H
//          first, last        the steps to compute, from last - 1 down
//          complete           whether the product of dx[first] is made here
//          pending            whether that of dx[last], if there is one, is still to be made: not FUSED
//          has_dy, has_dend   whether these are given; a dummy is bound otherwise
//          variant            which of the forms that a cell has
//          activations        the functions that are asked for, as ACTIVATIONS of lib/activations has them
//          clip               the bound of what comes into them
//          alpha_0, beta_0 .. of those of the first, and so on: alpha_1, beta_1, alpha_2, beta_2, alpha_3, beta_3, alpha_4, beta_4
// w        [D, GATES, HP, HP / 4]   W of each gate, zero-padded; W_ih of stacked layers 1 .. D - 1 behind them
// lengths  [B], and marks behind them with RESETS
// states   [D, STATES, T + 1, B, H]
// saved    [D, T, B, ..]      what the forward pass saved; a dummy if that is nothing
// dy       [D, T, B, H]       gradient of every step's output; of stacked layers [T, B, H], the top one's
// dend     [D, STATES, B, H]  gradient of the last states
// dx       [D, T, B, GATES H], and behind it, from a multiple of 64 on, dstart [D, STATES, B, H]: gradient of the incoming states.
//          Between dispatches, what is carried back beside the product of the step computed last
struct Params {
    D: u32,
    T: u32,
    B: u32,
    H: u32,
    first: u32,
    last: u32,
    complete: u32,
    pending: u32,
    has_dy: u32,
    has_dend: u32,
    variant: u32,
    activations: u32,
    clip: f32,
    alpha_0: f32,
    beta_0: f32,
    alpha_1: f32,
    beta_1: f32,
    alpha_2: f32,
    beta_2: f32,
    alpha_3: f32,
    beta_3: f32,
    alpha_4: f32,
    beta_4: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<Weights>;
@group(0) @binding(2) var<storage, read> lengths: array<u32>;
@group(0) @binding(3) var<storage, read> states: array<f32>;
@group(0) @binding(4) var<storage, read_write> saved: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<f32>;
@group(0) @binding(6) var<storage, read> dend: array<f32>;
@group(0) @binding(7) var<storage, read_write> dx: array<f32>;

const PARTS: u32 = COLUMNS;
const APART: u32 = 0u;

// What the dispatch of the step after left in slot `slot` of dstart; 0 if there is none.
fn load_carried(place: Place, steps: vec2<u32>, slot: u32) -> Sums {
    var carried = Sums();
    if steps.y < p.T {
        for (var i = 0u; i < OWNED * COLUMNS; i++) {
            carried[i / OWNED][i % OWNED] = dstart4(place, slot, entry_of(place, i), column_of(place, i));
        }
    }
    return carried;
}

// For the dispatch of the step before, or as the gradient of the incoming state if that is complete.
fn store_carried(place: Place, slot: u32, carried: ptr<function, Sums>) {
    if FUSED != 0u && p.complete == 0u { return; }
    for (var i = 0u; i < OWNED * COLUMNS; i++) {
        store_dstart4(place, slot, entry_of(place, i), column_of(place, i), (*carried)[i / OWNED][i % OWNED]);
    }
}

// Puts the weights where the products read them. Gives what the first step computed here gets from the step after it, and a
// stacked layer from the one above it.
fn carried_in(place: Place, layer: u32, steps: vec2<u32>) -> Sums {
    keep_weights(place);
    var carried = Sums();
    if FUSED == 0u && steps.y < p.T {
        for (var gate = 0u; gate < PASSED; gate++) { multiply(place, steps.y, gate, &carried); }
    }
    if STACKED != 0u && layer + 1u < p.D && steps.x < steps.y {
        let above = neighbour(place, layer + 1u);
        for (var gate = 0u; gate < GATES; gate++) { multiply(above, steps.x, gate, &carried); }
    }
    if FUSED == 0u { reduce(place, &carried); }
    var beside = load_carried(place, steps, 0u);
    add_owned(&carried, &beside);
    return carried;
}

fn add_owned(sums: ptr<function, Sums>, more: ptr<function, Sums>) {
    for (var i = 0u; i < OWNED * COLUMNS; i++) { (*sums)[i / OWNED][i % OWNED] += (*more)[i / OWNED][i % OWNED]; }
}

// Is the product of what step t passes back made here?
fn passes_on(t: u32) -> bool {
    return t > p.first || p.complete != 0u;
}

// Adds that product, of what this thread and the others have written.
fn pass_on(place: Place, t: u32, carried: ptr<function, Sums>) {
    if !passes_on(t) { return; }
    if SLICES == 1u {
        multiply_gates(place, t, carried);
    } else {
        var sums = Sums();
        multiply_gates(place, t, &sums);
        reduce(place, &sums);
        add_owned(carried, &sums);
    }
}

// Gate by gate: there is room to keep one.
fn multiply_gates(place: Place, t: u32, sums: ptr<function, Sums>) {
    for (var gate = 0u; gate < PASSED; gate++) {
        keep_rows(place, t, gate);
        workgroupBarrier();
        multiply(place, t, gate, sums);
        workgroupBarrier();
    }
}

// A vec4 of slot `slot` of a tensor of states.
fn dend4(place: Place, slot: u32, entry: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    let at = row_of(place, STATES, slot, entry) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = dend[at + j]; }
    }
    return value;
}

fn at_dstart(place: Place, slot: u32, entry: u32, column: u32) -> u32 {
    let start = (p.D * p.T * p.B * GATES * p.H + 63u) / 64u * 64u;
    return start + row_of(place, STATES, slot, entry) * p.H + column;
}

fn dstart4(place: Place, slot: u32, entry: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    let at = at_dstart(place, slot, entry, column);
    for (var j = 0u; j < 4u; j++) {
        if entry < p.B && column + j < p.H { value[j] = dx[at + j]; }
    }
    return value;
}

fn store_dstart4(place: Place, slot: u32, entry: u32, column: u32, value: vec4<f32>) {
    let at = at_dstart(place, slot, entry, column);
    for (var j = 0u; j < 4u; j++) {
        if entry < p.B && column + j < p.H { dx[at + j] = value[j]; }
    }
}

// The gradient of h[t + 1] of an entry: from the step after (`carried`), from the output, and, at the last step, of h_n.
fn gradient_of_state(place: Place, t: u32, entry: u32, column: u32, carried: vec4<f32>) -> vec4<f32> {
    var dh = carried;
    if p.has_dend != 0u && t + 1u == lengths[entry] { dh += dend4(place, 0u, entry, column); }
    if p.has_dy != 0u && (STACKED == 0u || place.direction + 1u == p.D) {
        let at = (select(place.direction, 0u, STACKED != 0u) * p.T * p.B + t * p.B + entry) * p.H + column;
        for (var j = 0u; j < 4u; j++) {
            if column + j < p.H { dh[j] += dy[at + j]; }
        }
    }
    return dh;
}
