// What the sequence kernels of all cells share: a workgroup owns batch entries for all its time steps.
//
// fused: their rows of HP values (the hidden size, padded to a multiple of 4) stay in workgroup memory, and the recurrent
// matrix of each gate streams past them once per step. Otherwise one step is computed, and the product of the state and
// the recurrent matrix has been made by a matmul before.
//
// Each thread keeps ROWS rows in COLUMNS vec4 columns, WIDTH apart. A group is the WIDTH threads that share their rows;
// GROUPS groups make a workgroup.
//
// The kernel that joins this has
//   Params with T, B, H, first, last, fused
//   const GATES, MOST_SUMS: u32        MOST_SUMS >= ROWS * COLUMNS
//   w: array<vec4<f32>>                [GATES, HP, HP / 4]; a dummy unless fused
override HP: u32 = 8u;
override ROWS: u32 = 4u;
override COLUMNS: u32 = 1u;
override GROUPS: u32 = 1u;
override WIDTH: u32 = 2u;
override THREADS: u32 = 2u; // GROUPS * WIDTH, at most 256
override ROW_VECTORS: u32 = 8u; // GROUPS * ROWS * HP / 4, at most 1,024: 16 KiB; 1 unless fused

var<workgroup> rows: array<vec4<f32>, ROW_VECTORS>; // [GROUPS * ROWS, HP / 4]

struct Place {
    row: u32,    // first row of the thread, within the workgroup
    entry: u32,  // the batch entry of that row
    vector: u32, // first vec4 column of the thread
}

fn place_of(group: vec3<u32>, local: u32) -> Place {
    let row = ROWS * (local / WIDTH);
    return Place(row, group.x * GROUPS * ROWS + row, group.y * COLUMNS * WIDTH + local % WIDTH);
}

// The batch entry and the first column of the i-th vec4 of a thread; is it one?
fn entry_of(place: Place, i: u32) -> u32 {
    return place.entry + i / COLUMNS;
}

fn column_of(place: Place, i: u32) -> u32 {
    return 4u * (place.vector + i % COLUMNS * WIDTH);
}

// Puts the i-th vec4 of a thread where the next product reads it.
fn keep(place: Place, i: u32, value: vec4<f32>) {
    let vector = column_of(place, i) / 4u;
    if p.fused != 0u && vector < HP / 4u { rows[(place.row + i / COLUMNS) * (HP / 4u) + vector] = value; }
}

// sum[i] += rows[..] * w[gate], for the i-th vec4 of a thread
fn multiply_rows(place: Place, gate: u32, sums: array<vec4<f32>, MOST_SUMS>) -> array<vec4<f32>, MOST_SUMS> {
    let vectors = HP / 4u;
    var sum = sums;
    for (var k = 0u; k < vectors; k++) {
        var matrix = array<vec4<f32>, 8>(); // [COLUMNS, 4], for at most two columns
        for (var c = 0u; c < COLUMNS; c++) {
            // Past the last column the last one is computed again, and not stored.
            let at = (gate * HP + 4u * k) * vectors + min(place.vector + c * WIDTH, vectors - 1u);
            for (var i = 0u; i < 4u; i++) { matrix[4u * c + i] = w[at + i * vectors]; }
        }
        for (var r = 0u; r < ROWS; r++) {
            let h = rows[(place.row + r) * vectors + k];
            for (var c = 0u; c < COLUMNS; c++) {
                sum[r * COLUMNS + c] += h.x * matrix[4u * c] + h.y * matrix[4u * c + 1u]
                    + h.z * matrix[4u * c + 2u] + h.w * matrix[4u * c + 3u];
            }
        }
    }
    return sum;
}
