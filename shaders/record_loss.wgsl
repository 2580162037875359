// history[clock[0] mod capacity] = scale Σ_i losses[i], then every counter of the clock goes on by `advances`: a step is
// counted when the last term of its loss is recorded.
//
// params   R, capacity
//          advances   1 for the last term of a step, 0 for the others
// losses   [R]
// scale    [1]
// history  [capacity]
// clock    [2] u32       steps, batches of this epoch
// grid     one workgroup      joins lib/reduce
struct Params {
    R: u32,
    capacity: u32,
    advances: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> losses: array<f32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> history: array<f32>;
@group(0) @binding(4) var<storage, read_write> clock: array<u32>;

const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn record_loss(@builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    for (var i = local; i < p.R; i += THREADS) { sum += losses[i]; }
    sum = workgroup_sum(local, sum);
    if local == 0u {
        history[clock[0] % p.capacity] = scale[0] * sum;
        clock[0] += p.advances;
        clock[1] += p.advances;
    }
}
