// counts[t, p] += the rows of target t whose first greatest logit is that of p, among those from `first` on
// A row whose target is not below V does not count, nor one of logits that are all NaN; else, a NaN is never the greatest.
//
// params   first, R     rows from `first` to R
//          V
// logits   [R, V]
// targets  [R] u32
// counts   [V, V] u32
// grid     one workgroup a target, over x and y      joins lib/reduce
struct Params {
    first: u32,
    R: u32,
    V: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> counts: array<u32>;

const THREADS: u32 = 64u;
const LEAST: f32 = -3.4028234e38;

@compute @workgroup_size(THREADS)
fn confusion(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tgt = group.y * groups.x + group.x;
    if tgt >= p.V { return; }
    for (var row = p.first; row < p.R; row += 1u) {
        if targets[row] != tgt { continue; }
        // The first of this thread's own that is greatest, and then the first of those of all threads.
        var most = LEAST;
        var at = p.V;
        for (var v = local; v < p.V; v += THREADS) {
            let z = logits[row * p.V + v];
            // By its bits, since compilers may take it that there is no NaN.
            let is_nan = (bitcast<u32>(z) & 0x7fffffffu) > 0x7f800000u;
            if !is_nan && (at == p.V || z > most) {
                most = max(z, LEAST);
                at = v;
            }
        }
        let greatest = workgroup_max(local, most);
        // Exact, for classes are fewer than 2²⁴.
        let place = -workgroup_max(local, select(-f32(p.V), -f32(at), most == greatest));
        if local == 0u && u32(place) < p.V { counts[tgt * p.V + u32(place)] += 1u; }
    }
}
