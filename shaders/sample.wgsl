// The next token of every lane:  tokens[b] = a draw from softmax(logits[b] / temperature[b]), by lib/draw
//
// params        B, V, capacity
// logits        [B, V]
// shape         [B, 2]       temperature, top_p
// control       [B, 4] u32   seed, top_k, stop token, token that is never drawn (2³² - 1: none)
// counter       [B] u32      draws so far
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
@group(0) @binding(4) var<storage, read_write> counter: array<u32>;
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
