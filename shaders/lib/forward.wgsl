// The forward half of what the sequence kernels share, beside lib/rows. The kernel that joins this binds
//   x: array<f32>          [N, GATES H]
//   index: array<u32>      [T, B]
//   product: array<f32>    [B, GATES H]; a dummy if fused
//   h: array<f32>          [T + 1, B, H]; slot 0 is the incoming state

// h Wᵀ of one gate: computed here, or made before.
fn recurrent(place: Place, gate: u32) -> array<vec4<f32>, MOST_SUMS> {
    var sum = array<vec4<f32>, MOST_SUMS>();
    if p.fused != 0u { return multiply_rows(place, gate, sum); }
    for (var i = 0u; i < ROWS * COLUMNS; i++) {
        let entry = entry_of(place, i);
        let column = column_of(place, i);
        for (var j = 0u; j < 4u; j++) {
            if entry < p.B && column + j < p.H {
                sum[i][j] = product[(entry * GATES + gate) * p.H + column + j];
            }
        }
    }
    return sum;
}

// What comes in from below for one gate: a vec4 of a row of x.
fn below(t: u32, entry: u32, gate: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    let at = (index[t * p.B + entry] * GATES + gate) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = x[at + j]; }
    }
    return value;
}

// h[t] of an entry; 0 outside.
fn state4(t: u32, entry: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    for (var j = 0u; j < 4u; j++) {
        if entry < p.B && column + j < p.H { value[j] = h[(t * p.B + entry) * p.H + column + j]; }
    }
    return value;
}

// Puts the incoming state where the first product reads it.
fn keep_incoming(place: Place) {
    for (var i = 0u; i < ROWS * COLUMNS; i++) { keep(place, i, state4(0u, entry_of(place, i), column_of(place, i))); }
}
