// The gradient of gather:  dtable[s, v, :] = Σ_{i: index[i] = v} dy[i, :]     i over the rows of slice first + s
//
// A workgroup owns some v at a time and 64 columns, so no sum is shared and the order is fixed. 256 rows at a time, its threads
// mark in a bit mask which rows belong to these v, and then walk the marks, each for its column.
//
// params   rows, columns, V
//          slice         rows in a slice
//          first         the first of these slices
//          accumulate    whether dtable is added to what is there
//          tokens        of so many v at a time: 1, or with MANY at most TOKENS
// dy       [rows, columns]
// index    [rows] u32
// dtable   [slices, V, columns]
// grid     ceil(columns / 64), ceil(V / tokens) (striding), slices
struct Params {
    rows: u32,
    columns: u32,
    V: u32,
    slice: u32,
    first: u32,
    accumulate: u32,
    tokens: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> dtable: array<f32>;

const CHUNK: u32 = 256u;
// Whether a workgroup has more than one v at a time: one sum stays in a register.
const MANY: u32 = 0u;
@if(MANY) const TOKENS: u32 = 32u;
@if(MANY) var<workgroup> sums: array<f32, 64u * TOKENS>;
var<workgroup> marks: array<atomic<u32>, 8>;

@compute @workgroup_size(64)
fn segment_sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let column = 64u * group.x + local;
    let start = (p.first + group.z) * p.slice;
    let end = min(start + p.slice, p.rows);
    for (var first = group.y * p.tokens; first < p.V; first += groups.y * p.tokens) {
        let count = min(p.tokens, p.V - first);
        @if(!MANY) var only = 0.0;
        @if(MANY) for (var v = 0u; v < count; v++) { sums[64u * v + local] = 0.0; }
        for (var chunk = start; chunk < end; chunk += CHUNK) {
            if local < 8u { atomicStore(&marks[local], 0u); }
            workgroupBarrier();
            for (var i = local; i < CHUNK; i += 64u) {
                // An index below the first wraps round.
                if chunk + i < end && index[chunk + i] - first < count { atomicOr(&marks[i / 32u], 1u << (i % 32u)); }
            }
            workgroupBarrier();
            if column < p.columns {
                for (var word = 0u; word < 8u; word++) {
                    for (var left = atomicLoad(&marks[word]); left != 0u; left &= left - 1u) {
                        let row = chunk + 32u * word + firstTrailingBit(left);
                        let d = dy[row * p.columns + column];
                        @if(!MANY) only += d;
                        @if(MANY) sums[64u * (index[row] - first) + local] += d;
                    }
                }
            }
            workgroupBarrier();
        }
        for (var v = 0u; v < count && column < p.columns; v++) {
            let at = (group.z * p.V + first + v) * p.columns + column;
            @if(!MANY) var sum = only;
            @if(MANY) var sum = sums[64u * v + local];
            if p.accumulate != 0u { sum += dtable[at]; }
            dtable[at] = sum;
        }
    }
}
