// Several tokens of every lane from a recurrent network, in one dispatch; `steps` times over:
//   x = token table[tokens[b]]    h[l] = cell(x, h[l]), x = h[l] W_ihᵀ + b_ih for l = 0 .. L - 1
//   tokens[b] = a draw from softmax((h[L - 1] Wᵀ + b) / temperature), by lib/draw
//
// A workgroup takes a lane through all of them: the state stays in workgroup memory, the matrices stream from cache, and
// nothing crosses workgroups. The cells are those of rnn_forward, gru_forward and lstm_forward.
//
// A sum has vec4 columns, each in as many slices as there are threads for; they are added in order. The columns of a cell
// come in blocks of VECTORS: one for each gate, and for the GRU, whose reset gate scales h W_nᵀ + b_n, a block for that.
//
// params        B, V, H
//               L              layers
//               cell           0 tanh, 1 relu, 2 GRU, 3 LSTM
//               steps          tokens to draw
//               capacity
// weights       vec4, all zero-padded:
//               [V, GATES, VECTORS]                      the token table, E W_ihᵀ + b_ih of layer 0
//               2 L - 1 times [GATES, HP, VECTORS]       W_hh of layer 0, then W_ih and W_hh of each further one, transposed,
//                         and [GATES, VECTORS]           each with its bias behind it
//               [HP, VP / 4] and [VP / 4]                Wᵀ and b of the logits
// shape         [B, 4]         temperature, top_p, min_p, repeat penalty
// control       [B, 6] u32     seed, lane of the draws, top_k, stop token, token that is never drawn (2³² - 1: none), repeat_last_n
// history       [1 + V, B] u32: [B] draws so far, then [B, V], where each token was last
// tokens        [B] u32        the last ones, from which it goes on
// ring          [capacity, B] u32
// h             [L, B, H]
// c             [L, B, H]      the LSTM's; a dummy for the other cells
// grid          one workgroup a lane      joins lib/draw, lib/threefry, lib/reduce, lib/math
struct Params {
    B: u32,
    V: u32,
    H: u32,
    L: u32,
    cell: u32,
    steps: u32,
    capacity: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> shape: array<f32>;
@group(0) @binding(3) var<storage, read> control: array<u32>;
@group(0) @binding(4) var<storage, read_write> history: array<u32>;
@group(0) @binding(5) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(6) var<storage, read_write> ring: array<u32>;
@group(0) @binding(7) var<storage, read_write> h: array<f32>;
@group(0) @binding(8) var<storage, read_write> c: array<f32>;

const THREADS: u32 = 256u;

const TANH: u32 = 0u;
const RELU: u32 = 1u;
const GRU: u32 = 2u;

const GATES: u32 = 1u;
const BLOCKS: u32 = 1u; // GATES, and one more for the GRU
const VECTORS: u32 = 1u; // HP / 4, for HP, the hidden size padded to a multiple of 4
const STATE_VECTORS: u32 = 1u; // L * VECTORS
const SUM_VECTORS: u32 = 256u; // of the most slices and columns

var<workgroup> state: array<vec4<f32>, STATE_VECTORS>; // [L, VECTORS]
var<workgroup> sums: array<vec4<f32>, SUM_VECTORS>; // [slices, columns]

// Of a vector of the state: its first unit, and where its layer's row of h and of c starts.
fn unit(at: u32) -> u32 {
    return 4u * (at % VECTORS);
}

fn row(at: u32, lane: u32) -> u32 {
    return (at / VECTORS * p.B + lane) * p.H;
}

// How many slices a sum of so many columns has.
fn slices(columns: u32) -> u32 {
    return clamp(THREADS / columns, 1u, VECTORS);
}

// The sum of all slices.
fn total(column: u32, columns: u32) -> vec4<f32> {
    var sum = sums[column];
    for (var slice = 1u; slice < slices(columns); slice++) { sum += sums[slice * columns + column]; }
    return sum;
}

// Where a matrix between states starts, and, beyond the last of them, that of the logits.
fn matrix(i: u32) -> u32 {
    return (p.V + i * (4u * VECTORS + 1u)) * GATES * VECTORS;
}

// One of `count` slices of a sum x Wᵀ, x the state of a layer, `at` its column in the first row of Wᵀ [HP, width].
fn product(layer: u32, at: u32, width: u32, slice: u32, count: u32) -> vec4<f32> {
    let depth = (VECTORS + count - 1u) / count;
    var sum = vec4<f32>();
    for (var k = slice * depth; k < min((slice + 1u) * depth, VECTORS); k++) {
        let x = state[layer * VECTORS + k];
        let first = at + 4u * k * width;
        sum += x.x * weights[first] + x.y * weights[first + width] + x.z * weights[first + 2u * width]
            + x.w * weights[first + 3u * width];
    }
    return sum;
}

// A slice of h W_gᵀ + b_g, for the i-th matrix between states.
fn gate_sum(i: u32, gate: u32, column: u32, layer: u32, slice: u32, count: u32) -> vec4<f32> {
    let sum = product(layer, matrix(i) + 4u * gate * VECTORS * VECTORS + column, VECTORS, slice, count);
    if slice > 0u { return sum; }
    return sum + weights[matrix(i) + (4u * GATES * VECTORS + gate) * VECTORS + column];
}

// Fills `sums` with what the gates of a layer are made of.
fn sum_gates(layer: u32, token: u32, local: u32) {
    let columns = BLOCKS * VECTORS;
    let count = slices(columns);
    for (var i = local; i < count * columns; i += THREADS) {
        let slice = i / columns;
        let block = i % columns / VECTORS;
        let column = i % VECTORS;
        var sum = vec4<f32>();
        if p.cell != GRU || block != 3u {
            if layer > 0u {
                sum = gate_sum(2u * layer - 1u, block, column, layer - 1u, slice, count);
            } else if slice == 0u {
                sum = weights[(token * GATES + block) * VECTORS + column];
            }
        }
        if p.cell != GRU || block != 2u {
            sum += gate_sum(2u * layer, min(block, GATES - 1u), column, layer, slice, count);
        }
        sums[i] = sum;
    }
}

fn block_sum(block: u32, column: u32) -> vec4<f32> {
    return total(block * VECTORS + column, BLOCKS * VECTORS);
}

// The next state of a layer, from `sums`.
fn step_cell(layer: u32, lane: u32, local: u32) {
    for (var column = local; column < VECTORS; column += THREADS) {
        let at = layer * VECTORS + column;
        var after = block_sum(0u, column);
        if p.cell == TANH {
            after = tanh4(after);
        } else if p.cell == RELU {
            after = select(after, vec4<f32>(), after < vec4<f32>());
        } else if p.cell == GRU {
            let r = sigmoid4(after);
            let z = sigmoid4(block_sum(1u, column));
            let n = tanh4(block_sum(2u, column) + r * block_sum(3u, column));
            after = (1.0 - z) * n + z * state[at];
        } else {
            let i = sigmoid4(after);
            let f = sigmoid4(block_sum(1u, column));
            let g = tanh4(block_sum(2u, column));
            let o = sigmoid4(block_sum(3u, column));
            var cell = vec4<f32>();
            let start = row(at, lane) + unit(at);
            for (var j = 0u; j < 4u; j++) {
                if unit(at) + j < p.H {
                    cell[j] = f[j] * c[start + j] + i[j] * g[j];
                    c[start + j] = cell[j];
                }
            }
            after = o * tanh4(cell);
        }
        // The padding stays zero, whatever overflows.
        state[at] = select(vec4<f32>(), after, unit(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.H));
    }
}

// Leaves the logits in `sums`.
fn make_logits(local: u32) {
    let width = (p.V + 3u) / 4u;
    let count = slices(width);
    let start = matrix(2u * p.L - 1u);
    for (var i = local; i < count * width; i += THREADS) {
        sums[i] = product(p.L - 1u, start + i % width, width, i / width, count);
    }
    workgroupBarrier();
    for (var column = local; column < width; column += THREADS) {
        sums[column] = total(column, width) + weights[start + 4u * VECTORS * width + column];
    }
    workgroupBarrier();
}

fn logit(lane: u32, v: u32) -> f32 {
    return sums[v / 4u][v % 4u];
}

@compute @workgroup_size(THREADS)
fn generate(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let lane = group.x;
    for (var at = local; at < STATE_VECTORS; at += THREADS) {
        var value = vec4<f32>();
        for (var j = 0u; j < 4u; j++) {
            if unit(at) + j < p.H { value[j] = h[row(at, lane) + unit(at) + j]; }
        }
        state[at] = value;
    }
    if local == 0u { next = tokens[lane]; }
    var token = workgroupUniformLoad(&next);
    for (var n = 0u; n < p.steps; n++) {
        for (var layer = 0u; layer < p.L; layer++) {
            sum_gates(layer, token, local);
            workgroupBarrier();
            step_cell(layer, lane, local);
            workgroupBarrier();
        }
        make_logits(local);
        token = draw(lane, local);
    }
    for (var at = local; at < STATE_VECTORS; at += THREADS) {
        for (var j = 0u; j < 4u; j++) {
            if unit(at) + j < p.H { h[row(at, lane) + unit(at) + j] = state[at][j]; }
        }
    }
}
