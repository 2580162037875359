// Negative log-likelihood and its gradient, from log-probabilities:
//   losses[i] = -x[i, target[i]]      dx[i, v] = -[v = target[i]] scale
// A row whose target is not below V, or is `ignore_index`, is ignored: loss 0, gradient 0.
//
// params   R, V
//          ignore_index   2³² - 1 if no class is ignored
//          gradient       whether dx is written; a dummy is bound otherwise
// x        [R, V]
// targets  [R] u32
// scale    [1]            1 / number of rows for the mean
// losses   [R]            not scaled
// dx       [R, V]
// grid     256 elements of dx, or of losses, a workgroup, striding
struct Params {
    R: u32,
    V: u32,
    ignore_index: u32,
    gradient: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

fn counts(tgt: u32) -> bool {
    return tgt < p.V && tgt != p.ignore_index;
}

@compute @workgroup_size(256)
fn nll_loss(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.R; i += 256u * groups.x) {
        let tgt = targets[i];
        var loss = 0.0;
        if counts(tgt) { loss = -x[i * p.V + tgt]; }
        losses[i] = loss;
    }
    if p.gradient == 0u { return; }
    for (var i = id.x; i < p.R * p.V; i += 256u * groups.x) {
        let tgt = targets[i / p.V];
        dx[i] = select(0.0, -scale[0], i % p.V == tgt && counts(tgt));
    }
}
