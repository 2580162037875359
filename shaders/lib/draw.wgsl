// The draw of a lane's next token from softmax(logits / temperature), fed back:
//   tokens[b] = ring[draws[b] mod capacity, b] = the draw, then draws[b] goes on by one
//
// First the logit of a token that is one of the lane's latest repeat_last_n (Keskar et al. 2019) is divided by the repeat penalty
// if it is above 0, and multiplied by it if not. The draw that comes after n others has the place n + 2³¹, what was read before
// it the places below.
//
// Temperature 0 takes the most likely token, the first of equals. Of the others, top_k keeps the k most likely (0: all),
// then top_p the fewest of the most likely that have this share of what is kept (1: all); equals are kept together. Of these,
// min_p keeps those at least so many times as likely as the most likely one.
// A NaN counts as the least likely; the token that is never to be drawn is below that, at -∞. A lane that has drawn its stop
// token goes on drawing it. The uniform number is
// Threefry-2x32-20 (Salmon et al. 2011) of key (seed, lane of the draws) and counter (draws[b], 0): the same seed gives the same text.
//
// The kernel that joins this, beside lib/threefry, lib/reduce and lib/math, has
//   Params with B, V, capacity
//   const THREADS: u32                     a power of two, at least RUNS
//   fn logit(lane: u32, v: u32) -> f32
//   shape: array<f32>      [B, 4]          temperature, top_p, min_p, repeat penalty
//   control: array<u32>    [B, 6]          seed, lane of the draws, top_k, stop token, token that is never drawn (2³² - 1: none),
//                                          repeat_last_n
//   history: array<u32>    [B]             draws so far,
//                          [B, V]          and the place where each token was last (0: none)
//   tokens: array<u32>     [B]
//   ring: array<u32>       [capacity, B]

// The tokens are cut into so many runs, one a thread, so that sums go in their order whatever the workgroup's size.
const RUNS: u32 = 64u;

// Four sums of each run.
var<workgroup> run_sums: array<vec4<f32>, RUNS>;
var<workgroup> next: u32;

const LOWEST: f32 = -3.4028234663852886e38;

// What scores are made of beside the logits: what `draw` finds first.
var<private> never: u32;
var<private> last_n: u32;
var<private> penalty: f32;
var<private> place: u32; // of the token to be drawn

fn score(lane: u32, v: u32) -> f32 {
    var value = logit(lane, v);
    // By its bits, since compilers may take it that there are no NaNs.
    let is_nan = (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
    if last_n > 0u {
        let last = history[p.B + lane * p.V + v];
        if last > 0u && place - last - 1u < last_n {
            value = clamp(select(value * penalty, value / penalty, value > 0.0), LOWEST, -LOWEST);
        }
    }
    return select(select(value, LOWEST, is_nan), bitcast<f32>(0xff800000u), v == never);
}

// Floats in the order of unsigned integers; 0 and -0 are one.
fn order(x: f32) -> u32 {
    let bits = bitcast<u32>(select(x, 0.0, x == 0.0));
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// The weight of a token, 0 if it is not kept.
fn weight(lane: u32, v: u32, most: f32, temperature: f32, least: u32, min_p: f32) -> f32 {
    let value = score(lane, v);
    let here = exponential((value - most) / temperature);
    return select(0.0, here, order(value) >= least && !(here < min_p));
}

// Sums of what the runs have, in a fixed order.
fn sum_runs(local: u32, value: vec4<f32>) -> vec4<f32> {
    workgroupBarrier(); // an earlier result has been read
    if local < RUNS { run_sums[local] = value; }
    for (var half = RUNS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half { run_sums[local] += run_sums[local + half]; }
    }
    workgroupBarrier();
    return run_sums[0];
}

// The largest bound of the order of scores such that the tokens at or above it, and at or above `floor`, have enough in all: each
// its weight, or, where the temperature is below 0, one. Four bits at a time: sums for each of the 15 digits above 0.
fn bound(lane: u32, local: u32, floor: u32, most: f32, temperature: f32, enough: f32) -> u32 {
    let run = (p.V + RUNS - 1u) / RUNS;
    let first = min(local * run, p.V);
    let end = min(first + run, p.V);
    var least = 0u;
    for (var shift = 28u; shift < 32u; shift -= 4u) { // ends where it wraps around
        let digits = vec4<u32>(1u, 2u, 3u, 4u) << vec4<u32>(shift);
        let step = vec4<u32>(4u << shift);
        let above = vec4<u32>(least);
        let bounds0 = max(above | digits, vec4<u32>(floor));
        let bounds1 = max(above | (digits + step), vec4<u32>(floor));
        let bounds2 = max(above | (digits + 2u * step), vec4<u32>(floor));
        let bounds3 = max(above | (digits + 3u * step), vec4<u32>(floor)); // the last is no digit
        var kept0 = vec4<f32>();
        var kept1 = vec4<f32>();
        var kept2 = vec4<f32>();
        var kept3 = vec4<f32>();
        for (var v = first; v < end; v++) {
            let value = score(lane, v);
            let at = vec4<u32>(order(value));
            var one = vec4<f32>(1.0);
            if temperature > 0.0 { one = vec4<f32>(exponential((value - most) / temperature)); }
            kept0 += select(vec4<f32>(), one, at >= bounds0);
            kept1 += select(vec4<f32>(), one, at >= bounds1);
            kept2 += select(vec4<f32>(), one, at >= bounds2);
            kept3 += select(vec4<f32>(), one, at >= bounds3);
        }
        let low = enough_of(sum_runs(local, kept0), enough) + enough_of(sum_runs(local, kept1), enough);
        let high = enough_of(sum_runs(local, kept2), enough) + enough_of(vec4<f32>(sum_runs(local, kept3).xyz, -1.0), enough);
        least |= (low + high) << shift;
    }
    return least;
}

// How many of the sums, each at most that before it, are enough.
fn enough_of(sums: vec4<f32>, enough: f32) -> u32 {
    let ones = select(vec4<u32>(), vec4<u32>(1u), sums >= vec4<f32>(enough));
    return ones.x + ones.y + ones.z + ones.w;
}

// All threads call this together, when all logits are there, and get the token.
fn draw(lane: u32, local: u32) -> u32 {
    let run = (p.V + RUNS - 1u) / RUNS;
    let first = min(local * run, p.V);
    let end = min(first + run, p.V);
    let count = history[lane];
    never = control[6u * lane + 4u];
    last_n = control[6u * lane + 5u];
    penalty = shape[4u * lane + 3u];
    place = count ^ 0x80000000u;

    var most = score(lane, 0u);
    for (var v = first; v < end; v++) { most = max(most, score(lane, v)); }
    most = workgroup_max(local, most);
    // The first token that has it: the largest of the negated places.
    var foremost = -f32(p.V);
    for (var v = first; v < end; v++) {
        if score(lane, v) == most { foremost = max(foremost, -f32(v)); }
    }
    var drawn = min(u32(-workgroup_max(local, foremost)), p.V - 1u);

    let temperature = shape[4u * lane];
    let top_p = shape[4u * lane + 1u];
    let min_p = shape[4u * lane + 2u];
    let top_k = control[6u * lane + 2u];
    if temperature > 0.0 {
        var least = 0u;
        if top_k > 0u && top_k < p.V { least = bound(lane, local, 0u, most, -1.0, f32(top_k)); }
        if top_p < 1.0 {
            var all = 0.0;
            for (var v = first; v < end; v++) { all += weight(lane, v, most, temperature, least, 0.0); }
            let enough = top_p * sum_runs(local, vec4<f32>(all)).x;
            // At least the most likely token, whatever the rounding of the sums.
            least = min(max(least, bound(lane, local, least, most, temperature, enough)), order(most));
        }
        var sum = 0.0;
        for (var v = first; v < end; v++) { sum += weight(lane, v, most, temperature, least, min_p); }
        workgroupBarrier();
        if local < RUNS { run_sums[local].x = sum; }
        workgroupBarrier();
        if local == 0u {
            var total = 0.0;
            for (var i = 0u; i < RUNS; i++) { total += run_sums[i].x; }
            let key = vec2<u32>(control[6u * lane], control[6u * lane + 1u]);
            var left = f32(threefry(key, vec2<u32>(count, 0u)) >> 8u) / 16777216.0 * total;
            // The run that holds the draw, then the token in it; rounding may leave it past the last that holds anything.
            var chosen = 0u;
            for (var i = 0u; i < RUNS; i++) {
                if run_sums[i].x > 0.0 {
                    chosen = i;
                    if left < run_sums[i].x { break; }
                    left -= run_sums[i].x;
                }
            }
            for (var v = min(chosen * run, p.V); v < min((chosen + 1u) * run, p.V); v++) {
                let here = weight(lane, v, most, temperature, least, min_p);
                if here > 0.0 {
                    drawn = v;
                    left -= here;
                    if left < 0.0 { break; }
                }
            }
        }
    }
    if local == 0u {
        let stop = control[6u * lane + 3u];
        if count > 0u && tokens[lane] == stop { drawn = stop; }
        tokens[lane] = drawn;
        ring[(count % p.capacity) * p.B + lane] = drawn;
        history[lane] = count + 1u;
        if drawn < p.V { history[p.B + lane * p.V + drawn] = place; }
        next = drawn;
    }
    storageBarrier(); // what all threads read of the history in the next draw
    return workgroupUniformLoad(&next);
}
