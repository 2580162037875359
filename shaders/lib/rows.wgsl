// A workgroup that owns ROWS batch entries for all time steps: their rows of HP values (the hidden size, padded to a
// multiple of 4) stay in workgroup memory, and a square matrix streams past them once per step.
// Each thread keeps 4 rows x 4 columns of sums: THREADS = ROWS / 4 * HP / 4.
//
// The kernel that joins this binds
//   w: array<vec4<f32>>    [HP, HP / 4]
override HP: u32 = 8u;
override ROWS: u32 = 4u;
override THREADS: u32 = 2u;
override ROW_VECTORS: u32 = 8u; // ROWS * HP / 4, at most 1,024: 16 KiB

var<workgroup> rows: array<vec4<f32>, ROW_VECTORS>; // [ROWS, HP / 4]

// First of the four rows (x) and the vec4 column (y) of a thread.
fn row_place(local: u32) -> vec2<u32> {
    let columns = HP / 4u;
    return vec2<u32>(4u * (local / columns), local % columns);
}

// sum[r] = rows[place.x + r, :] * w[:, 4 place.y .. + 4]
fn multiply_rows(place: vec2<u32>) -> array<vec4<f32>, 4> {
    let columns = HP / 4u;
    var sum = array<vec4<f32>, 4>();
    for (var k = 0u; k < columns; k++) {
        let at = 4u * k * columns + place.y;
        let w0 = w[at];
        let w1 = w[at + columns];
        let w2 = w[at + 2u * columns];
        let w3 = w[at + 3u * columns];
        for (var r = 0u; r < 4u; r++) {
            let h = rows[(place.x + r) * columns + k];
            sum[r] += h.x * w0 + h.y * w1 + h.z * w2 + h.w * w3;
        }
    }
    return sum;
}
