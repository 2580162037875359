// dx = f'(x) dy, each element, with f' from y = f(x):
//   relu  y > 0      tanh  1 - y²      sigmoid  y (1 - y)
//
// params   n
//          kind   0 relu, 1 tanh, 2 sigmoid
// y        [n]
// dy       [n]
// dx       [n]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    kind: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(256)
fn activation_backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        let value = y[i];
        if p.kind == 0u {
            dx[i] = select(dy[i], 0.0, value <= 0.0);
        } else if p.kind == 1u {
            dx[i] = (1.0 - value * value) * dy[i];
        } else {
            dx[i] = value * (1.0 - value) * dy[i];
        }
    }
}
