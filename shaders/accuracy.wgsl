// hits[i] = 1 if the first greatest of logits[i] is that of target i, 0 if not
// A row whose target is not below V, or is `ignore_index`, is ignored: 0.
//
// params   R, V
//          ignore_index   2³² - 1 if no class is ignored
// logits   [R, V]
// targets  [R] u32
// hits     [R]
// grid     one workgroup a row, over x and y      joins lib/reduce
struct Params {
    R: u32,
    V: u32,
    ignore_index: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> hits: array<f32>;

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn accuracy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= p.R { return; }
    let tgt = targets[row];
    let counts = tgt < p.V && tgt != p.ignore_index;
    var beaten = 0.0;
    if counts {
        let start = row * p.V;
        let own = logits[start + tgt];
        // A NaN is no hit; by its bits, since compilers may take it that there are none.
        if (bitcast<u32>(own) & 0x7fffffffu) > 0x7f800000u { beaten = 1.0; }
        for (var v = local; v < p.V; v += THREADS) {
            let other = logits[start + v];
            if other > own || (other == own && v < tgt) { beaten = 1.0; }
        }
    }
    beaten = workgroup_max(local, beaten);
    if local == 0u { hits[row] = select(0.0, 1.0 - beaten, counts); }
}
