// Softmax, negative log-likelihood and its gradient, from logits, by log-sum-exp of each row's own maximum:
//   q[i, v]       = class_weights[v] ((1 - smoothing) [v = target[i]] + smoothing / V)
//   losses[i]     = Σ_v q[i, v] (log Σ_u exp(z[i, u]) - z[i, v])
//   dlogits[i, v] = (softmax(z[i])[v] Σ_u q[i, u] - q[i, v]) scale
// A row whose target is not below V, or is `ignore_index`, is ignored: loss 0, gradient 0.
//
// params   R, V
//          ignore_index 2³² - 1 if no class is ignored
//          gradient     whether dlogits is written; a dummy is bound otherwise
//          counts       whether scale is set here, to 1 / the number of rows that count, 0 if none does; each
//                       workgroup counts all
//          weighted     whether there are class weights; they are 1, and a dummy is bound, otherwise
//          smoothing
// logits   [R, V]
// targets  [R] u32
// class_weights [V]
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
    weighted: u32,
    smoothing: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read> class_weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> scale: array<f32>;
@group(0) @binding(5) var<storage, read_write> losses: array<f32>;
@group(0) @binding(6) var<storage, read_write> dlogits: array<f32>;

const THREADS: u32 = 64u;

fn is_counted(tgt: u32) -> bool {
    return tgt < p.V && tgt != p.ignore_index;
}

fn weight_of(v: u32) -> f32 {
    if p.weighted == 0u { return 1.0; }
    return class_weights[v];
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
    let rest = p.smoothing / f32(p.V);
    var own = 0.0;
    var loss = 0.0;
    if counts {
        own = (1.0 - p.smoothing) * weight_of(tgt);
        loss = own * (logarithm(sum) + (most - logits[start + tgt]));
    }
    var mass = own;
    if p.smoothing != 0.0 {
        var weights = 0.0;
        var products = 0.0;
        for (var v = local; v < p.V; v += THREADS) {
            let weight = weight_of(v);
            weights += weight;
            products += weight * (logarithm(sum) + (most - logits[start + v]));
        }
        mass += rest * workgroup_sum(local, weights);
        loss += rest * workgroup_sum(local, products);
    }
    if local == 0u { losses[row] = select(0.0, loss, counts); }
    if p.gradient == 0u { return; }
    for (var v = local; v < p.V; v += THREADS) {
        var d = 0.0;
        if counts {
            var share = select(0.0, own, v == tgt);
            if p.smoothing != 0.0 { share += rest * weight_of(v); }
            d = (exponential(logits[start + v] - most) / sum * mass - share) * factor;
        }
        dlogits[start + v] = d;
    }
}
