// One tile of a matrix product  A [M, K] B [K, N], computed by a workgroup of 8 x 8 threads; each thread keeps
// 4 VECTORS x 4 VECTORS sums, which is what makes loads from workgroup memory few: 16 for 64 products of 8 x 8 sums.
//
// SHARES times 8 x 8 threads share the terms of K, each those SHARES apart; in the end share s owns every SHARES-th vec4 of the
// sums, from s on.
//
// The kernel that joins this defines
//   fn load_a(m: u32, k: u32) -> f32    an element of A, 0 outside
//   fn load_b(k: u32, n: u32) -> f32    an element of B, 0 outside
//   fn a_is_transposed() -> bool        whether A lies in memory as [K, M]; neighbouring threads load neighbours
//   fn b_is_transposed() -> bool        whether B lies in memory as [N, K]
const VECTORS: u32 = 2u;
const SHARES: u32 = 1u;

const WIDTH: u32 = 8u * VECTORS; // vec4 across a tile
const TILE: u32 = 4u * WIDTH;
const DEPTH: u32 = 16u;
const TILE_THREADS: u32 = 64u * SHARES;
const_assert TILE_THREADS <= DEPTH * WIDTH && DEPTH % SHARES == 0u;

// As long as the loops over it, or software drivers do not keep it in registers.
alias TileSums = array<array<vec4<f32>, VECTORS>, 4u * VECTORS>;

var<workgroup> tile_a: array<vec4<f32>, DEPTH * WIDTH>; // [DEPTH, WIDTH]
var<workgroup> tile_b: array<vec4<f32>, DEPTH * WIDTH>; // [DEPTH, WIDTH]

// The k and the vector of a slot of a tile: along memory first.
fn place_of_slot(slot: u32, vectors_first: bool) -> vec2<u32> {
    return select(vec2<u32>(slot % DEPTH, slot / DEPTH), vec2<u32>(slot / WIDTH, slot % WIDTH), vectors_first);
}

// To be called once: rows from origin.x on, columns from origin.y on of the product, summed over k in range.x .. range.y.
// sums[i][j] is row tile_row(local, i) and columns tile_column(local, j) .. + 4, where owns_sums(local, i VECTORS + j).
fn multiply_tile(origin: vec2<u32>, range: vec2<u32>, local: u32) -> TileSums {
    var sums = TileSums();
    let row = local % 64u / 8u;
    let column = local % 8u;
    for (var k0 = range.x; k0 < range.y; k0 += DEPTH) {
        for (var slot = local; slot < DEPTH * WIDTH; slot += TILE_THREADS) {
            let in_a = place_of_slot(slot, a_is_transposed());
            let in_b = place_of_slot(slot, !b_is_transposed());
            let ka = k0 + in_a.x;
            let kb = k0 + in_b.x;
            let m = origin.x + 4u * in_a.y;
            let n = origin.y + 4u * in_b.y;
            tile_a[in_a.x * WIDTH + in_a.y] =
                vec4<f32>(load_a(m, ka), load_a(m + 1u, ka), load_a(m + 2u, ka), load_a(m + 3u, ka));
            tile_b[in_b.x * WIDTH + in_b.y] =
                vec4<f32>(load_b(kb, n), load_b(kb, n + 1u), load_b(kb, n + 2u), load_b(kb, n + 3u));
        }
        workgroupBarrier();
        for (var k = local / 64u; k < DEPTH; k += SHARES) {
            var a = array<vec4<f32>, VECTORS>();
            var b = array<vec4<f32>, VECTORS>();
            for (var i = 0u; i < VECTORS; i++) {
                a[i] = tile_a[k * WIDTH + 8u * i + row];
                b[i] = tile_b[k * WIDTH + 8u * i + column];
            }
            for (var i = 0u; i < VECTORS; i++) {
                for (var j = 0u; j < VECTORS; j++) {
                    sums[4u * i][j] += a[i].x * b[j];
                    sums[4u * i + 1u][j] += a[i].y * b[j];
                    sums[4u * i + 2u][j] += a[i].z * b[j];
                    sums[4u * i + 3u][j] += a[i].w * b[j];
                }
            }
        }
        workgroupBarrier();
    }
    if SHARES > 1u { add_shares(local, &sums); }
    return sums;
}

// Through the memory of the tiles, one after the other: what is read of one is over when it is written again.
fn add_shares(local: u32, sums: ptr<function, TileSums>) {
    for (var i = 0u; i < 4u * VECTORS * VECTORS; i++) {
        let mine = (*sums)[i / VECTORS][i % VECTORS];
        if i % 2u == 0u { tile_a[local] = mine; } else { tile_b[local] = mine; }
        workgroupBarrier();
        if owns_sums(local, i) {
            var sum = vec4<f32>();
            for (var share = 0u; share < SHARES; share++) {
                let at = 64u * share + local % 64u;
                if i % 2u == 0u { sum += tile_a[at]; } else { sum += tile_b[at]; }
            }
            (*sums)[i / VECTORS][i % VECTORS] = sum;
        }
    }
}

// Has this thread the i-th vec4 of its sums, added up?
fn owns_sums(local: u32, i: u32) -> bool {
    return SHARES == 1u || i % SHARES == local / 64u;
}

// Row i of a thread's sums, within the tile.
fn tile_row(local: u32, i: u32) -> u32 {
    return 32u * (i / 4u) + 4u * (local % 64u / 8u) + i % 4u;
}

// First of the four columns j of a thread's sums, within the tile.
fn tile_column(local: u32, j: u32) -> u32 {
    return 32u * j + 4u * (local % 8u);
}
