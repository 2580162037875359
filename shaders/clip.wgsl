// Clips the gradient in place, by its global norm or by value, as PyTorch's clip_grad_norm_ and clip_grad_value_:
//   g *= min(1, max_norm / (‖g‖ + 1e-6))      g = min(max(g, -max_value), max_value)
//
// params   n
//          max_norm, max_value   0: not clipped so
// norm2    [1]      ‖g‖², or a dummy
// g        [n]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    max_norm: f32,
    max_value: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> norm2: array<f32>;
@group(0) @binding(2) var<storage, read_write> g: array<f32>;

@compute @workgroup_size(256)
fn clip(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    var scale = 1.0;
    if p.max_norm > 0.0 {
        let ratio = p.max_norm / (sqrt(norm2[0]) + 1e-6);
        // The select form, unlike min and max, lets a NaN stay NaN.
        scale = select(ratio, 1.0, ratio > 1.0);
    }
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        var value = scale * g[i];
        if p.max_value > 0.0 {
            value = select(value, p.max_value, value > p.max_value);
            value = select(value, -p.max_value, value < -p.max_value);
        }
        g[i] = value;
    }
}
