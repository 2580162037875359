// Softmax, negative log-likelihood and its gradient, from logits, by log-sum-exp of each row's own maximum:
//   losses[i]     = log Σ_v exp(z[i, v]) - z[i, target[i]]
//   dlogits[i, v] = (softmax(z[i])[v] - [v = target[i]]) scale
// A row whose target is not below V, or is `ignore_index`, is ignored: loss 0, gradient 0.
//
// params   R, V
//          ignore_index 2³² - 1 if no class is ignored
//          gradient     whether dlogits is written; a dummy is bound otherwise
//          counts       whether scale is set here, to 1 / the number of rows that count, 0 if none does; each
//                       workgroup counts all
// logits   [R, V]
// targets  [R] u32
// scale    [1]          1 / number of rows for the mean
// losses   [R]          not scaled
// dlogits  [R, V]
// grid     one workgroup a row, over x and y      joins lib/reduce, lib/math
struct Params {
    R: u32,
    V: u32,
    ignore_index: u32,
    gradient: u32,
    counts: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;
@group(0) @binding(5) var<storage, read_write> dlogits: array<f32>;

const THREADS: u32 = 64u;

fn is_counted(tgt: u32) -> bool {
    return tgt < p.V && tgt != p.ignore_index;
}

@compute @workgroup_size(THREADS)
fn cross_entropy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= p.R { return; }
    let start = row * p.V;
    var most = logits[start];
    for (var v = local; v < p.V; v += THREADS) { most = max(most, logits[start + v]); }
    most = workgroup_max(local, most);
    var sum = 0.0;
    for (var v = local; v < p.V; v += THREADS) { sum += exponential(logits[start + v] - most); }
    sum = workgroup_sum(local, sum);

    var factor = 0.0;
    if p.counts != 0u {
        var count = 0.0;
        for (var i = local; i < p.R; i += THREADS) { count += select(0.0, 1.0, is_counted(targets[i])); }
        count = workgroup_sum(local, count);
        factor = select(0.0, 1.0 / max(count, 1.0), count > 0.0);
        if row == 0u && local == 0u { scale[0] = factor; }
    } else {
        factor = scale[0];
    }

    let tgt = targets[row];
    let counts = is_counted(tgt);
    if local == 0u {
        var loss = 0.0;
        if counts { loss = logarithm(sum) + (most - logits[start + tgt]); }
        losses[row] = loss;
    }
    if p.gradient == 0u { return; }
    for (var v = local; v < p.V; v += THREADS) {
        var d = 0.0;
        if counts { d = (exponential(logits[start + v] - most) / sum - select(0.0, 1.0, v == tgt)) * factor; }
        dlogits[start + v] = d;
    }
}
