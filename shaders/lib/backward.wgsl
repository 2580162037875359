// The backward half of what the sequence kernels share, beside lib/rows. The kernel that joins this binds
//   lengths: array<u32>    [B]
//   dy: array<f32>         [T, B, H]; a dummy unless has_dy
//   dend: array<f32>       [S, B, H]: gradient of the last state(s); a dummy unless has_dend
//   dstart: array<f32>     [S, B, H]: gradient of the incoming state(s). Between dispatches, what is carried back
//
// The gradient of h[t + 1]: from the output, from the step after (`carried`), and, at an entry's last step, of h_n.

// A vec4 of slot `slot` of a tensor of states.
fn dend4(slot: u32, entry: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = dend[(slot * p.B + entry) * p.H + column + j]; }
    }
    return value;
}

fn dstart4(slot: u32, entry: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { value[j] = dstart[(slot * p.B + entry) * p.H + column + j]; }
    }
    return value;
}

fn store_dstart4(slot: u32, entry: u32, column: u32, value: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.H { dstart[(slot * p.B + entry) * p.H + column + j] = value[j]; }
    }
}

// The gradient of h[t + 1] of an entry, given what the step after carries back.
fn gradient_of_state(t: u32, entry: u32, column: u32, carried: vec4<f32>) -> vec4<f32> {
    var dh = carried;
    if p.has_dend != 0u && t + 1u == lengths[entry] { dh += dend4(0u, entry, column); }
    if p.has_dy != 0u {
        for (var j = 0u; j < 4u; j++) {
            if column + j < p.H { dh[j] += dy[(t * p.B + entry) * p.H + column + j]; }
        }
    }
    return dh;
}
