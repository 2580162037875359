// scale = 1 / number of targets below V, the rows that count in a mean; 1 if there is none
//
// params   R, V
// targets  [R] u32
// scale    [1]
// grid     one workgroup
struct Params {
    R: u32,
    V: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> scale: array<f32>;

const THREADS: u32 = 256u;
var<workgroup> part: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn count_targets(@builtin(local_invocation_index) local: u32) {
    var count = 0u;
    for (var i = local; i < p.R; i += THREADS) { count += select(0u, 1u, targets[i] < p.V); }
    part[local] = count;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half { part[local] += part[local + half]; }
    }
    if local == 0u { scale[0] = 1.0 / f32(max(part[0], 1u)); }
}
