// Draws the next token of every lane from softmax(logits / temperature), and feeds it back:
//   tokens[b] = ring[counter[b] mod capacity, b] = the draw, then counter[b] goes on by one
// Temperature 0 takes the most likely token, the first of equals. The uniform number is Threefry-2x32-20 (Salmon et al.
// 2011) of key (seed, lane) and counter (counter[b], 0): the same seed gives the same text.
//
// params        B, V, capacity
// logits        [B, V]
// temperature   [B]
// seed          [B] u32
// counter       [B] u32
// tokens        [B] u32
// ring          [capacity, B] u32
// grid          64 lanes a workgroup      joins lib/threefry
struct Params {
    B: u32,
    V: u32,
    capacity: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> temperature: array<f32>;
@group(0) @binding(3) var<storage, read> seed: array<u32>;
@group(0) @binding(4) var<storage, read_write> counter: array<u32>;
@group(0) @binding(5) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(6) var<storage, read_write> ring: array<u32>;

@compute @workgroup_size(64)
fn sample(@builtin(global_invocation_id) id: vec3<u32>) {
    let lane = id.x;
    if lane >= p.B { return; }
    let start = lane * p.V;
    var best = 0u;
    for (var v = 1u; v < p.V; v++) {
        if logits[start + v] > logits[start + best] { best = v; }
    }
    let most = logits[start + best];
    let count = counter[lane];
    let heat = temperature[lane];
    if heat > 0.0 {
        var total = 0.0;
        for (var v = 0u; v < p.V; v++) { total += exp((logits[start + v] - most) / heat); }
        let uniform_draw = f32(threefry(vec2<u32>(seed[lane], lane), vec2<u32>(count, 0u)) >> 8u) / 16777216.0;
        var left = uniform_draw * total;
        for (var v = 0u; v < p.V; v++) {
            left -= exp((logits[start + v] - most) / heat);
            if left < 0.0 {
                best = v;
                break;
            }
        }
    }
    tokens[lane] = best;
    ring[(count % p.capacity) * p.B + lane] = best;
    counter[lane] = count + 1u;
}
