// The rows of the forward pass, beside lib/rows and lib/forward, of a cell that multiplies nothing but states.

// h[t] of an entry.
fn row4(place: Place, t: u32, entry: u32, gate: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    @if(RESETS) if place.matrix < p.D && is_reset(place, t, entry) { return value; }
    let at = state_row(place, 0u, t, entry) * p.H + column;
    for (var j = 0u; j < 4u; j++) {
        if entry < p.B && column + j < p.H { value[j] = states[at + j]; }
    }
    return value;
}
