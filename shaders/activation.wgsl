// y = f(x), each element: max(0, x), tanh x or σ(x)
//
// params   n
//          kind   0 relu, 1 tanh, 2 sigmoid
// x        [n]
// y        [n]
// grid     256 elements a workgroup, striding      joins lib/math
struct Params {
    n: u32,
    kind: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn activation(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let value = x[i];
        if p.kind == 0u {
            y[i] = select(value, 0.0, value < 0.0);
        } else if p.kind == 1u {
            y[i] = tanh4(vec4<f32>(value)).x;
        } else {
            y[i] = sigmoid4(vec4<f32>(value)).x;
        }
    }
}
