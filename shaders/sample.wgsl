// The next token of every lane:  tokens[b] = a draw from softmax(logits[b] / temperature[b]), by lib/draw
//
// params        B, V, capacity
// logits        [B, V]
// shape         [B, 4]       temperature, top_p, min_p, repeat penalty
// control       [B, 6] u32   seed, lane of the draws, top_k, stop token, token that is never drawn (2³² - 1: none), repeat_last_n
// history       [1 + V, B] u32: [B] draws so far, then [B, V], where each token was last
// tokens        [B] u32
// ring          [capacity, B] u32
// grid          one workgroup a lane, over x and y      joins lib/draw, lib/threefry, lib/reduce, lib/math
struct Params {
    B: u32,
    V: u32,
    capacity: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> shape: array<f32>;
@group(0) @binding(3) var<storage, read> control: array<u32>;
@group(0) @binding(4) var<storage, read_write> history: array<u32>;
@group(0) @binding(5) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(6) var<storage, read_write> ring: array<u32>;

const THREADS: u32 = 64u;

fn logit(lane: u32, v: u32) -> f32 {
    return logits[lane * p.V + v];
}

@compute @workgroup_size(THREADS)
fn sample(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = group.y * groups.x + group.x;
    if lane < p.B { _ = draw(lane, local); }
}
