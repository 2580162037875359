// y[t, c] = keep y[t - 1, c] + x[t, c]      backwards: t + 1 in place of t - 1
struct Params {
    steps: u32,
    columns: u32,
    backwards: u32,
    keep: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn leaky_sum(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.columns { return; }
    var sum = 0.0;
    for (var t = 0u; t < p.steps; t++) {
        let at = select(t, p.steps - 1u - t, p.backwards == 1u) * p.columns + id.x;
        sum = keep(sum) + x[at];
        y[at] = sum;
    }
}

fn keep(sum: f32) -> f32 {
    return p.keep * sum;
}
