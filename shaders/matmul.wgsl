// c = op(a) op(b) + bias + bias2            op(x) is x or its transpose
//
// params   m, n, k         sizes of op(a) [m, k], op(b) [k, n]
//          transpose_a, transpose_b
//          a_offset, a_stride   where the rows of a start, and how far apart they are
//          slice           how many of the k terms one workgroup sums; the slices are summed by column_sum
//          first           the first of these slices
//          biases          how many of `bias` and `bias2` are added; dummies are bound otherwise
//          accumulate      whether c is added to what is there
//          a_batch, b_batch   how far apart the factors of products are that are made side by side; both 0: z is slices
// a        [m, k], or [k, m] with transpose_a, within a larger tensor
// b        [k, n], or [n, k] with transpose_b
// bias, bias2   [n]
// c        [slices, m, n]
// grid     columns, rows of tiles, slices or products      joins lib/tile
struct Params {
    m: u32,
    n: u32,
    k: u32,
    transpose_a: u32,
    transpose_b: u32,
    a_offset: u32,
    a_stride: u32,
    slice: u32,
    first: u32,
    biases: u32,
    accumulate: u32,
    a_batch: u32,
    b_batch: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> bias2: array<f32>;
@group(0) @binding(5) var<storage, read_write> c: array<f32>;

var<private> batch: u32;

fn a_is_transposed() -> bool { return p.transpose_a != 0u; }
fn b_is_transposed() -> bool { return p.transpose_b != 0u; }

fn load_a(m: u32, k: u32) -> f32 {
    if m >= p.m || k >= p.k { return 0.0; }
    return a[p.a_offset + batch * p.a_batch + select(m * p.a_stride + k, k * p.a_stride + m, a_is_transposed())];
}

fn load_b(k: u32, n: u32) -> f32 {
    if n >= p.n || k >= p.k { return 0.0; }
    return b[batch * p.b_batch + select(k * p.n + n, n * p.k + k, b_is_transposed())];
}

@compute @workgroup_size(TILE_THREADS)
fn matmul(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let origin = TILE * group.yx;
    let is_batched = p.a_batch + p.b_batch > 0u;
    batch = group.z;
    let start = (p.first + select(group.z, 0u, is_batched)) * p.slice;
    var sums = multiply_tile(origin, vec2<u32>(start, min(start + p.slice, p.k)), local);
    for (var i = 0u; i < 4u * VECTORS * VECTORS; i++) {
        let row = origin.x + tile_row(local, i / VECTORS);
        let column = origin.y + tile_column(local, i % VECTORS);
        for (var j = 0u; j < 4u; j++) {
            if owns_sums(local, i) && row < p.m && column + j < p.n {
                let at = (group.z * p.m + row) * p.n + column + j;
                var value = sums[i / VECTORS][i % VECTORS][j];
                if p.biases == 1u { value += bias[column + j]; }
                if p.biases == 2u { value += bias[column + j] + bias2[column + j]; }
                if p.accumulate != 0u { value += c[at]; }
                c[at] = value;
            }
        }
    }
}
