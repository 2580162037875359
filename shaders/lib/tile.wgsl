// One 64 x 64 tile of a matrix product  A [M, K] B [K, N], computed by a workgroup of 256; each thread keeps 4 x 4 sums.
//
// The kernel that joins this defines
//   fn load_a(m: u32, k: u32) -> f32    an element of A, 0 outside
//   fn load_b(k: u32, n: u32) -> f32    an element of B, 0 outside
//   fn a_is_transposed() -> bool        whether A lies in memory as [K, M]; neighbouring threads load neighbours
//   fn b_is_transposed() -> bool        whether B lies in memory as [N, K]
const TILE: u32 = 64u;
const DEPTH: u32 = 16u;

var<workgroup> tile_a: array<vec4<f32>, 256>; // [DEPTH, TILE / 4]
var<workgroup> tile_b: array<vec4<f32>, 256>; // [DEPTH, TILE / 4]

// Rows origin.x .. + 64, columns origin.y .. + 64 of the product, summed over k in range.x .. range.y. The four rows
// and four columns of thread `local` start at tile_place(local).
fn multiply_tile(origin: vec2<u32>, range: vec2<u32>, local: u32) -> array<vec4<f32>, 4> {
    let place = tile_place(local) / 4u;
    // (index of four rows or columns, k) of the vec4 that this thread loads
    let by_four = vec2<u32>(local % 16u, local / 16u);
    let a_slot = select(by_four.yx, by_four, a_is_transposed());
    let b_slot = select(by_four, by_four.yx, b_is_transposed());
    let m = origin.x + 4u * a_slot.x;
    let n = origin.y + 4u * b_slot.x;
    var sum = array<vec4<f32>, 4>();
    for (var k0 = range.x; k0 < range.y; k0 += DEPTH) {
        let ka = k0 + a_slot.y;
        let kb = k0 + b_slot.y;
        tile_a[a_slot.y * 16u + a_slot.x] =
            vec4<f32>(load_a(m, ka), load_a(m + 1u, ka), load_a(m + 2u, ka), load_a(m + 3u, ka));
        tile_b[b_slot.y * 16u + b_slot.x] =
            vec4<f32>(load_b(kb, n), load_b(kb, n + 1u), load_b(kb, n + 2u), load_b(kb, n + 3u));
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let a = tile_a[k * 16u + place.x];
            let b = tile_b[k * 16u + place.y];
            sum[0] += a.x * b;
            sum[1] += a.y * b;
            sum[2] += a.z * b;
            sum[3] += a.w * b;
        }
        workgroupBarrier();
    }
    return sum;
}

// First row and first column, within the tile, of the 4 x 4 sums of a thread.
fn tile_place(local: u32) -> vec2<u32> {
    return 4u * vec2<u32>(local / 16u, local % 16u);
}
