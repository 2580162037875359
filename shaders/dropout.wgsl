// y[i] = x[i] / (1 - rate) with probability 1 - rate, else 0
//
// The draw is Threefry-2x32-20 of key (seed, step) and counter (i, 0), so the backward pass, the same kernel on the
// gradient, draws the same and nothing is saved.
//
// params   n, seed
//          threshold   rate * 2³²: an element is dropped if its draw is below
//          scale       1 / (1 - rate)
// x        [n]
// clock    [2] u32     clock[0] is the step
// y        [n]
// grid     256 elements a workgroup, striding      joins lib/threefry
struct Params {
    n: u32,
    seed: u32,
    threshold: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> clock: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn dropout(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let draw = threefry(vec2<u32>(p.seed, clock[0]), vec2<u32>(i, 0u));
        y[i] = select(p.scale * x[i], 0.0, draw < p.threshold);
    }
}
