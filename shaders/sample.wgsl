// Draws the next token of every lane from softmax(logits / temperature), and feeds it back:
//   tokens[b] = ring[counter[b] mod capacity, b] = the draw, then counter[b] goes on by one
//
// Temperature 0 takes the most likely token, the first of equals. Of the others, top_k keeps the k most likely (0: all),
// then top_p the fewest of the most likely that have this share of what is kept (1: all); equals are kept together.
// A NaN counts as the least likely. A lane that has drawn its stop token goes on drawing it. The uniform number is Threefry-2x32-20 (Salmon et al. 2011)
// of key (seed, lane) and counter (counter[b], 0): the same seed gives the same text.
//
// params        B, V, capacity
// logits        [B, V]
// shape         [B, 2]       temperature, top_p
// control       [B, 3] u32   seed, top_k, stop token (2³² - 1: none)
// counter       [B] u32      draws so far
// tokens        [B] u32
// ring          [capacity, B] u32
// grid          one workgroup a lane, over x and y      joins lib/threefry, lib/reduce
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

// What the threads have summed: the weights of each one's share of the tokens.
var<workgroup> share: array<f32, THREADS>;

const LOWEST: f32 = -3.4028234663852886e38;

fn logit_at(at: u32) -> f32 {
    let logit = logits[at];
    // By its bits, since compilers may take it that there are no NaNs.
    return select(logit, LOWEST, (bitcast<u32>(logit) & 0x7fffffffu) > 0x7f800000u);
}

// Floats in the order of unsigned integers; 0 and -0 are one.
fn order(x: f32) -> u32 {
    let bits = bitcast<u32>(select(x, 0.0, x == 0.0));
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// The weight of a token, 0 if it is not kept.
fn weight(at: u32, most: f32, temperature: f32, least: u32) -> f32 {
    let logit = logit_at(at);
    return select(0.0, exp((logit - most) / temperature), order(logit) >= least);
}

@compute @workgroup_size(THREADS)
fn sample(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = group.y * groups.x + group.x;
    if lane >= p.B { return; }
    let start = lane * p.V;
    // Each thread has a run of tokens, so that sums go in the order of the tokens.
    let run = (p.V + THREADS - 1u) / THREADS;
    let first = min(local * run, p.V);
    let end = min(first + run, p.V);

    var most = logit_at(start);
    for (var v = first; v < end; v++) { most = max(most, logit_at(start + v)); }
    most = workgroup_max(local, most);
    // The first token that has it: the largest of the negated places.
    var place = -f32(p.V);
    for (var v = first; v < end; v++) {
        if logit_at(start + v) == most { place = max(place, -f32(v)); }
    }
    var drawn = min(u32(-workgroup_max(local, place)), p.V - 1u);

    let temperature = shape[2u * lane];
    let top_p = shape[2u * lane + 1u];
    let top_k = control[3u * lane + 1u];
    let count = counter[lane];
    if temperature > 0.0 {
        // The largest bound that keeps enough tokens, bit by bit.
        var least = 0u;
        if top_k > 0u && top_k < p.V {
            for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
                var kept = 0.0;
                for (var v = first; v < end; v++) {
                    kept += select(0.0, 1.0, order(logit_at(start + v)) >= (least | bit));
                }
                if workgroup_sum(local, kept) >= f32(top_k) { least |= bit; }
            }
        }
        if top_p < 1.0 {
            var all = 0.0;
            for (var v = first; v < end; v++) { all += weight(start + v, most, temperature, least); }
            let enough = top_p * workgroup_sum(local, all);
            var bound = 0u;
            for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
                var kept = 0.0;
                for (var v = first; v < end; v++) {
                    kept += weight(start + v, most, temperature, max(least, bound | bit));
                }
                if workgroup_sum(local, kept) >= enough { bound |= bit; }
            }
            // At least the most likely token, whatever the rounding of the sums.
            least = min(max(least, bound), order(most));
        }
        var sum = 0.0;
        for (var v = first; v < end; v++) { sum += weight(start + v, most, temperature, least); }
        share[local] = sum;
        workgroupBarrier();
        if local == 0u {
            var total = 0.0;
            for (var i = 0u; i < THREADS; i++) { total += share[i]; }
            let key = vec2<u32>(control[3u * lane], lane);
            var left = f32(threefry(key, vec2<u32>(count, 0u)) >> 8u) / 16777216.0 * total;
            // The run that holds the draw, then the token in it; rounding may leave it past the last that holds anything.
            var chosen = 0u;
            for (var i = 0u; i < THREADS; i++) {
                if share[i] > 0.0 {
                    chosen = i;
                    if left < share[i] { break; }
                    left -= share[i];
                }
            }
            for (var v = min(chosen * run, p.V); v < min((chosen + 1u) * run, p.V); v++) {
                let here = weight(start + v, most, temperature, least);
                if here > 0.0 {
                    drawn = v;
                    left -= here;
                    if left < 0.0 { break; }
                }
            }
        }
    }
    if local == 0u {
        let stop = control[3u * lane + 2u];
        if count > 0u && tokens[lane] == stop { drawn = stop; }
        tokens[lane] = drawn;
        ring[(count % p.capacity) * p.B + lane] = drawn;
        counter[lane] = count + 1u;
    }
}
