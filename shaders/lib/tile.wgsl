// One 64 x 64 tile of a matrix product  A [M, K] B [K, N], computed by a workgroup of 64; each thread keeps 8 x 8 sums,
// which is what makes loads from workgroup memory few: 16 for 64 products.
//
// The kernel that joins this defines
//   fn load_a(m: u32, k: u32) -> f32    an element of A, 0 outside
//   fn load_b(k: u32, n: u32) -> f32    an element of B, 0 outside
//   fn a_is_transposed() -> bool        whether A lies in memory as [K, M]; neighbouring threads load neighbours
//   fn b_is_transposed() -> bool        whether B lies in memory as [N, K]
const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const TILE_THREADS: u32 = 64u;

var<workgroup> tile_a: array<vec4<f32>, 256>; // [DEPTH, TILE / 4]
var<workgroup> tile_b: array<vec4<f32>, 256>; // [DEPTH, TILE / 4]

// Rows origin.x .. + 64, columns origin.y .. + 64 of the product, summed over k in range.x .. range.y.
// sum[2 i + j] is row tile_row(local, i) and columns tile_column(local, j) .. + 4, for i < 8, j < 2.
fn multiply_tile(origin: vec2<u32>, range: vec2<u32>, local: u32) -> array<vec4<f32>, 16> {
    var sum = array<vec4<f32>, 16>();
    let row = local / 8u;
    let column = local % 8u;
    for (var k0 = range.x; k0 < range.y; k0 += DEPTH) {
        for (var slot = local; slot < 256u; slot += TILE_THREADS) {
            // k, and which four rows of A or columns of B: along memory first
            let along = vec2<u32>(slot % 16u, slot / 16u);
            let a_slot = select(along, along.yx, a_is_transposed());
            let b_slot = select(along.yx, along, b_is_transposed());
            let ka = k0 + a_slot.x;
            let kb = k0 + b_slot.x;
            let m = origin.x + 4u * a_slot.y;
            let n = origin.y + 4u * b_slot.y;
            tile_a[a_slot.x * 16u + a_slot.y] =
                vec4<f32>(load_a(m, ka), load_a(m + 1u, ka), load_a(m + 2u, ka), load_a(m + 3u, ka));
            tile_b[b_slot.x * 16u + b_slot.y] =
                vec4<f32>(load_b(kb, n), load_b(kb, n + 1u), load_b(kb, n + 2u), load_b(kb, n + 3u));
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let a0 = tile_a[k * 16u + row];
            let a1 = tile_a[k * 16u + 8u + row];
            let b0 = tile_b[k * 16u + column];
            let b1 = tile_b[k * 16u + 8u + column];
            sum[0] += a0.x * b0;
            sum[1] += a0.x * b1;
            sum[2] += a0.y * b0;
            sum[3] += a0.y * b1;
            sum[4] += a0.z * b0;
            sum[5] += a0.z * b1;
            sum[6] += a0.w * b0;
            sum[7] += a0.w * b1;
            sum[8] += a1.x * b0;
            sum[9] += a1.x * b1;
            sum[10] += a1.y * b0;
            sum[11] += a1.y * b1;
            sum[12] += a1.z * b0;
            sum[13] += a1.z * b1;
            sum[14] += a1.w * b0;
            sum[15] += a1.w * b1;
        }
        workgroupBarrier();
    }
    return sum;
}

// Row i < 8 of a thread's sums, within the tile.
fn tile_row(local: u32, i: u32) -> u32 {
    return 32u * (i / 4u) + 4u * (local / 8u) + i % 4u;
}

// First of the four columns j < 2 of a thread's sums, within the tile.
fn tile_column(local: u32, j: u32) -> u32 {
    return 32u * j + 4u * (local % 8u);
}
