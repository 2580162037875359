// An exponential moving average of the parameters (PyTorch's AveragedModel with get_ema_multi_avg_fn), after an update:
//   average += (1 - decay) (w - average), after the first update average = w
//
// params   n
//          rest    1 - decay
// rate     [1]      below 0: there was no update
// clock    [2] u32  clock[0] is 1 in the first update
// w        [n]
// average  [n]
// grid     256 elements a workgroup, striding
struct Params {
    n: u32,
    rest: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rate: array<f32>;
@group(0) @binding(2) var<storage, read> clock: array<u32>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
@group(0) @binding(4) var<storage, read_write> average: array<f32>;

@compute @workgroup_size(256)
fn moving_average(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    if rate[0] < 0.0 { return; }
    let is_first = clock[0] == 1u;
    for (var i = id.x; i < p.n; i += 256u * groups.x) {
        average[i] = select(average[i] + p.rest * (w[i] - average[i]), w[i], is_first);
    }
}
