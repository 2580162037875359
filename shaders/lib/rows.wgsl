// A workgroup that owns batch entries for all time steps: their rows of HP values (the hidden size, padded to a multiple
// of 4) stay in workgroup memory, and a square matrix streams past them once per step.
//
// Each thread keeps the sums of ROWS rows in COLUMNS vec4 columns. A group is the threads that share their rows; GROUPS
// groups make a workgroup.
//
// The kernel that joins this binds
//   w: array<vec4<f32>>    [HP, HP / 4]
override HP: u32 = 8u;
override ROWS: u32 = 4u;
override COLUMNS: u32 = 1u; // ROWS * COLUMNS is at most MOST_SUMS
override GROUPS: u32 = 1u;
override THREADS: u32 = 2u; // GROUPS * ceil(HP / 4 / COLUMNS), at most 256
override ROW_VECTORS: u32 = 8u; // GROUPS * ROWS * HP / 4, at most 1,024: 16 KiB

const MOST_SUMS: u32 = 64u;

var<workgroup> rows: array<vec4<f32>, ROW_VECTORS>; // [GROUPS * ROWS, HP / 4]

// First row of a thread, and its first vec4 column; the others follow a group's width apart.
fn row_place(local: u32) -> vec2<u32> {
    let width = group_width();
    return vec2<u32>(ROWS * (local / width), local % width);
}

fn group_width() -> u32 {
    return (HP / 4u + COLUMNS - 1u) / COLUMNS;
}

// sum[r COLUMNS + c] = rows[place.x + r, :] * w[:, vec4 column place.y + c width]
fn multiply_rows(place: vec2<u32>) -> array<vec4<f32>, MOST_SUMS> {
    let vectors = HP / 4u;
    let width = group_width();
    var sum = array<vec4<f32>, MOST_SUMS>();
    for (var k = 0u; k < vectors; k++) {
        var matrix = array<vec4<f32>, 16>(); // [COLUMNS, 4]
        for (var c = 0u; c < COLUMNS; c++) {
            // Past the last column the last one is computed again, and not stored.
            let at = 4u * k * vectors + min(place.y + c * width, vectors - 1u);
            for (var i = 0u; i < 4u; i++) { matrix[4u * c + i] = w[at + i * vectors]; }
        }
        for (var r = 0u; r < ROWS; r++) {
            let h = rows[(place.x + r) * vectors + k];
            for (var c = 0u; c < COLUMNS; c++) {
                sum[r * COLUMNS + c] += h.x * matrix[4u * c] + h.y * matrix[4u * c + 1u]
                    + h.z * matrix[4u * c + 2u] + h.w * matrix[4u * c + 3u];
            }
        }
    }
    return sum;
}
