// Cuts a batch of windows out of a text that lies on the device:
//   tokens[t, b]  = corpus[start + t]                           start = order[batch * B + b]
//   targets[k, b] = corpus[start + T - K + 1 + k]               the characters that follow the last K of the window
// where batch = clock[1] mod batches: after the last batch comes the first. Entries past the end of the order have
// token 0 and the target 2³² - 1, which no loss counts.
//
// params   T, B
//          K          targets of a window: 1 (after its last character) or T (after each)
//          length     of the order
//          batches    ceil(length / B)
// corpus   [N] u32
// order    [length] u32    where windows start
// clock    [2] u32
// tokens   [T, B] u32
// targets  [K, B] u32
// grid     256 elements a workgroup, striding
struct Params {
    T: u32,
    B: u32,
    K: u32,
    length: u32,
    batches: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> corpus: array<u32>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read> clock: array<u32>;
@group(0) @binding(4) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(5) var<storage, read_write> targets: array<u32>;

@compute @workgroup_size(256)
fn windows(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < (p.T + p.K) * p.B; i += 256u * groups.x) {
        let row = i / p.B;
        let entry = clock[1] % p.batches * p.B + i % p.B;
        let is_target = row >= p.T;
        var token = select(0u, 0xffffffffu, is_target);
        if entry < p.length {
            token = corpus[order[entry] + select(row, row - p.K + 1u, is_target)];
        }
        if is_target {
            targets[i - p.T * p.B] = token;
        } else {
            tokens[i] = token;
        }
    }
}
