// scale = 1 / number of targets below V other than `ignore_index`, the rows that count in a mean; 0 if there is none.
// Of several parts, the number of each.
//
// params   R, V
//          ignore_index   2³² - 1 if no class is ignored
//          parts
// targets  [R] u32
// scale    [parts]
// grid     one workgroup a part      joins lib/reduce
struct Params {
    R: u32,
    V: u32,
    ignore_index: u32,
    parts: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> scale: array<f32>;

const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn count_targets(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    // f32 counts exactly up to 2²⁴.
    var count = 0.0;
    for (var i = group.x * THREADS + local; i < p.R; i += p.parts * THREADS) {
        count += select(0.0, 1.0, targets[i] < p.V && targets[i] != p.ignore_index);
    }
    count = workgroup_sum(local, count);
    if local != 0u { return; }
    if p.parts > 1u { scale[group.x] = count; } else { scale[0] = select(0.0, 1.0 / max(count, 1.0), count > 0.0); }
}
