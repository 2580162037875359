// The weight of each row of a loss, and what makes the weighted sum a mean:
//   w[i]  = weights[i / stride mod period], 0 where row i is past its entry's length or its target does not count,
//           times class_weights[targets[i]] if they are to be in it
//   scale = 1 / (columns Σ_i w[i]), the class weights always in it; 0 if that sum is 0
//
// params   R
//          columns         elements that share a row's weight
//          mean            whether scale is that; it is 1 otherwise
//          period, stride  of weights; period 0: all are 1, and a dummy is bound
//          B, inner        row i is of entry i / inner mod B at step i / (inner B); B 0: no lengths, and a dummy is bound
//          V               0: no targets, and a dummy is bound
//          ignore_index    2³² - 1 if no class is ignored
//          classes         0: no class weights, and a dummy is bound; 1: they are in w; 2: in scale alone
// weights  [period]
// lengths  [B] u32
// targets  [R] u32         counted if below V and not ignore_index
// class_weights [V]
// w        [R]
// scale    [1]
// grid     one workgroup      joins lib/reduce
struct Params {
    R: u32,
    columns: u32,
    mean: u32,
    period: u32,
    stride: u32,
    B: u32,
    inner: u32,
    V: u32,
    ignore_index: u32,
    classes: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> lengths: array<u32>;
@group(0) @binding(3) var<storage, read> targets: array<u32>;
@group(0) @binding(4) var<storage, read> class_weights: array<f32>;
@group(0) @binding(5) var<storage, read_write> w: array<f32>;
@group(0) @binding(6) var<storage, read_write> scale: array<f32>;

const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn row_weights(@builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    for (var i = local; i < p.R; i += THREADS) {
        var weight = 1.0;
        var of_class = 1.0;
        if p.period != 0u { weight = weights[i / p.stride % p.period]; }
        if p.B != 0u {
            let row = i / p.inner;
            if row / p.B >= lengths[row % p.B] { weight = 0.0; }
        }
        if p.V != 0u {
            let tgt = targets[i];
            if tgt >= p.V || tgt == p.ignore_index {
                weight = 0.0;
            } else if p.classes != 0u {
                of_class = class_weights[tgt];
            }
        }
        w[i] = select(weight, weight * of_class, p.classes == 1u);
        sum += weight * of_class;
    }
    sum = f32(p.columns) * workgroup_sum(local, sum);
    if local == 0u {
        var factor = 1.0;
        if p.mean != 0u {
            factor = 0.0;
            if sum != 0.0 { factor = 1.0 / sum; }
        }
        scale[0] = factor;
    }
}
