// The forward half of what the sequence kernels share, beside lib/rows. The kernel that joins this has
//   const GATES, STATES: u32
//   const AT_ONCE: u32          gates whose products are made at once
//   const SEPARATE_BIAS: u32    whether biases are inside the products
//   const APART: u32            of lib/rows
//
// params   D, N, T, B, H      N: rows of x of a direction
//          first, last        the steps to compute
//          has_h_0            whether the incoming state may be other than 0
//          save               whether gates are saved for the backward pass; a dummy is bound otherwise
//          variant            which of the forms that a cell has
//          activations        the functions that are asked for, as ACTIVATIONS of lib/activations has them
//          clip               the bound of what comes into them
//          alpha_0, beta_0 .. of those of the first, and so on: alpha_1, beta_1, alpha_2, beta_2, alpha_3, beta_3, alpha_4, beta_4
// x        [D, N, GATES H]    what comes in from below
// index    [D, T, B]          the row of x for each step and entry; of stacked layers x and index are the first one's
// lengths  [B], and marks behind them with RESETS
// w        [D, GATES, HP, HP / 4]   Wᵀ of each gate, zero-padded (pack makes it); W_ihᵀ of stacked layers 1 .. D - 1 behind them
// biases   [D, GATES H] inside the products, with SEPARATE_BIAS; behind them [D - 1, GATES H], what x has in it of biases, for
//          stacked layers 1 .. D - 1. A dummy if there are none of either
// states   [D, STATES, T + 1, B, H]   slot 0 is the incoming state
// saved    [D, T, B, ..]      for the backward pass
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
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read> lengths: array<u32>;
@group(0) @binding(4) var<storage, read> w: array<Weights>;
@group(0) @binding(5) var<storage, read> biases: array<f32>;
@group(0) @binding(6) var<storage, read_write> states: array<f32>;
@group(0) @binding(7) var<storage, read_write> saved: array<f32>;

const PARTS: u32 = AT_ONCE * COLUMNS;

// Puts the weights where the products read them, and the incoming states, unless the first product is left out.
fn start(place: Place, steps: vec2<u32>) {
    keep_weights(place);
    if has_state(steps.x) { keep_rows(place, steps.x, 0u); }
}

// May h[t] be other than 0?
fn has_state(t: u32) -> bool {
    return t > 0u || p.has_h_0 != 0u;
}

// h[t] Wᵀ of all gates.
fn recurrent(place: Place, t: u32) -> Sums {
    var sums = Sums();
    workgroupBarrier();
    if has_state(t) { multiply(place, t, 0u, &sums); }
    workgroupBarrier();
    return sums;
}

// sums += h[t + 1] W_ihᵀ of all gates, of the layer below.
fn add_from_below(place: Place, layer: u32, t: u32, sums: ptr<function, Sums>) {
    if STACKED != 0u && layer > 0u { multiply(neighbour(place, layer - 1u), t + 1u, 0u, sums); }
}

// What comes in from below for one gate, beside that product: a vec4 of a row of x.
fn below(place: Place, t: u32, entry: u32, gate: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    if STACKED != 0u && place.direction > 0u {
        return bias4(SEPARATE_BIAS * p.D + place.direction - 1u, gate, column);
    }
    let row = place.direction * p.N + index[row_of(place, p.T, t, entry)];
    let at = (row * GATES + gate) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = x[at + j]; }
    }
    return value;
}

// A vec4 of what is saved, from a row's first element on.
fn save4(row: u32, column: u32, value: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) {
        if p.save != 0u && column + j < p.H { saved[row + column + j] = value[j]; }
    }
}

// A vec4 of a row of the biases.
fn bias4(row: u32, gate: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = biases[(row * GATES + gate) * p.H + column + j]; }
    }
    return value;
}
