// What the sequence kernels of all cells share: a workgroup owns batch entries, and multiplies their rows of HP values
// (the hidden size, padded to a multiple of 4) with the recurrent matrix of each gate. Directions are side by side in the
// grid's third dimension, and the first one of every tensor but lengths.
//
// FUSED: for all time steps. The rows stay in workgroup memory, and the matrix streams past them once a step. Otherwise
// a dispatch computes one step of some of the columns, and the rows come through workgroup memory in blocks.
//
// STACKED: what is side by side are layers, each on the states of the one below and so a step behind it: a wavefront, in
// which what a layer takes from another is there from the dispatch before.
//
// Each thread keeps ROWS rows in COLUMNS vec4 columns, WIDTH apart. A group is the WIDTH threads that share their rows;
// GROUPS groups make a slice of the sums, and SLICES slices a workgroup. When reduce() has added them up, slice 0 owns the
// first OWNED rows, slice 1 the next, and so on; with more slices than rows, the last own none. SUBGROUPS: the slices of a
// sum are neighbours in a subgroup, which adds them up by itself; a subgroup's load is then of SLICES pieces of memory.
//
// The kernel that joins this has
//   Params with T, B, H, first, last
//   const GATES: u32
//   const STATES: u32                  S: h, and c of a cell that has one
//   const PARTS: u32                   vec4 columns that multiply sums, COLUMNS of each gate
//   const APART: u32                   as many that are added up beside them
//   w: array<Weights>                  [D, GATES, HP, HP / 4]; behind these the input matrices of stacked layers 1 .. D - 1
//   lengths: array<u32>                [B]; with RESETS, behind these [D, T, B], of stacked layers [T, B]: other than 0 in a step
//                                      before which the states become 0
//   fn row4(place: Place, t: u32, entry: u32, gate: u32, column: u32) -> vec4<f32>    of the rows; 0 outside
const HP: u32 = 8u;
const ROWS: u32 = 4u;
const COLUMNS: u32 = 1u;
const GROUPS: u32 = 1u;
const WIDTH: u32 = 2u;
const SLICES: u32 = 1u; // divides ROWS or exceeds it
const FUSED: u32 = 1u;
const STACKED: u32 = 0u;
const DEPTH: u32 = 2u; // vec4 columns of the rows in workgroup memory
const SUBGROUPS: u32 = 0u; // SLICES and min(ROWS, SLICES) are then powers of 2, and a subgroup has at least SLICES threads
const KEPT: u32 = 0u; // whether the weights stay in workgroup memory too; FUSED
const F16: u32 = 0u; // whether weights are stored as f16; rows and sums are f32
const RESETS: u32 = 0u; // whether marks are behind the lengths

@if(F16) enable f16;
@if(F16) alias Weights = vec4<f16>;
@if(!F16) alias Weights = vec4<f32>;

const VECTORS: u32 = HP / 4u;
const SLICE_THREADS: u32 = GROUPS * WIDTH;
const THREADS: u32 = SLICES * SLICE_THREADS; // at most 256
const ENTRIES: u32 = GROUPS * ROWS;
const OWNED: u32 = max(1u, ROWS / SLICES);

// As long as the loops over it, or software drivers do not keep it in registers.
alias Sums = array<array<vec4<f32>, ROWS>, PARTS + APART>;

// [ENTRIES, DEPTH], and for reduce [ROWS, THREADS]: at most 1,024, 16 KiB.
const SCRATCH: u32 = ROWS * THREADS * min(1u, SLICES - 1u) * (1u - SUBGROUPS);
var<workgroup> rows: array<vec4<f32>, max(ENTRIES * DEPTH, SCRATCH)>;

const MATRIX: u32 = GATES * HP * VECTORS; // vec4 of the matrices of all gates
@if(KEPT) var<workgroup> kept: array<Weights, MATRIX>;

struct Thread {
    @builtin(local_invocation_index) index: u32,
    @if(SUBGROUPS) @builtin(subgroup_id) subgroup: u32,
    @if(SUBGROUPS) @builtin(subgroup_size) subgroup_size: u32,
    @if(SUBGROUPS) @builtin(subgroup_invocation_id) lane: u32,
}

struct Place {
    direction: u32, // or layer
    matrix: u32, // in w
    local: u32,  // the thread, one of THREADS
    slice: u32,
    row: u32,    // its first row, within the workgroup
    own: u32,    // the first of those that it owns
    start: u32,  // the first batch entry of the workgroup
    entry: u32,  // that of the row `own`; B if it owns none
    vector: u32, // its first vec4 column
}

// Nothing says which thread of a subgroup has which index. This is one too, each once, since THREADS are a multiple of the
// largest subgroup and none is left unfilled.
@if(!SUBGROUPS) fn index_of(thread: Thread) -> u32 { return thread.index; }
@if(SUBGROUPS) fn index_of(thread: Thread) -> u32 { return thread.subgroup * thread.subgroup_size + thread.lane; }

fn place_of(group: vec3<u32>, thread: Thread) -> Place {
    let local = index_of(thread);
    var slice = min(local / SLICE_THREADS, SLICES - 1u); // known to be 0 where there is one
    var in_slice = local % SLICE_THREADS;
    if SUBGROUPS != 0u {
        slice = local % SLICES;
        in_slice = local / SLICES;
    }
    let row = ROWS * (in_slice / WIDTH);
    let own = row + slice * OWNED;
    let start = group.x * ENTRIES;
    let entry = select(p.B, start + own, slice * OWNED < ROWS);
    return Place(group.z, group.z, local, slice, row, own, start, entry, group.y * COLUMNS * WIDTH + in_slice % WIDTH);
}

// The steps of a workgroup, from x to y.
fn steps_of(group: vec3<u32>) -> vec2<u32> {
    return vec2<u32>(p.first, p.last) - select(0u, group.z, STACKED != 0u && p.first < p.last);
}

// Is a stacked layer's wave not begun, where the steps wrap around, or over?
fn is_idle(steps: vec2<u32>) -> bool {
    return STACKED != 0u && steps.x >= p.T;
}

// Another layer's rows, to be multiplied with the matrix between it and this one.
fn neighbour(place: Place, layer: u32) -> Place {
    var other = place;
    other.direction = layer;
    other.matrix = p.D + min(layer, place.direction);
    return other;
}

// The row of a batch entry in a tensor [D, slots, B, ..].
fn row_of(place: Place, slots: u32, slot: u32, entry: u32) -> u32 {
    return (place.direction * slots + slot) * p.B + entry;
}

// The row of a batch entry in states [D, S, T + 1, B, H]: of h[t], or of c[t] with `state` 1.
fn state_row(place: Place, state: u32, t: u32, entry: u32) -> u32 {
    return row_of(place, STATES * (p.T + 1u), state * (p.T + 1u) + t, entry);
}

// Is the state of an entry 0 before step t, whatever the step before it left?
@if(RESETS) fn is_reset(place: Place, t: u32, entry: u32) -> bool {
    let at = p.B + ((1u - STACKED) * place.direction * p.T + t) * p.B + entry;
    return entry < p.B && t < p.T && lengths[at] != 0u;
}

// Where the i-th of the OWNED COLUMNS vec4 that a thread owns is in sums, in the row i % OWNED. Of one column it is known to be 0,
// also in a loop that is too long to be unrolled.
fn part_of(i: u32) -> u32 {
    return i / OWNED % COLUMNS;
}

// Its batch entry and its first column.
fn entry_of(place: Place, i: u32) -> u32 {
    return place.entry + i % OWNED;
}

fn column_of(place: Place, i: u32) -> u32 {
    return 4u * (place.vector + i / OWNED * WIDTH);
}

// Puts the weights where all steps read them, if there is room.
fn keep_weights(place: Place) {
    @if(KEPT) for (var i = place.local; i < MATRIX; i += THREADS) { kept[i] = w[place.matrix * MATRIX + i]; }
}

@if(KEPT) fn weights(place: Place, at: u32) -> vec4<f32> { return vec4<f32>(kept[at]); }
@if(!KEPT) fn weights(place: Place, at: u32) -> vec4<f32> { return vec4<f32>(w[place.matrix * MATRIX + at]); }

// Puts the i-th vec4 of a thread where the next product reads it.
fn keep(place: Place, i: u32, value: vec4<f32>) {
    let vector = column_of(place, i) / 4u;
    if FUSED != 0u && vector < VECTORS && place.slice * OWNED < ROWS {
        // The padding stays zero, whatever overflows.
        let inside = 4u * vector + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.H);
        rows[(place.own + i % OWNED) * DEPTH + vector] = select(vec4<f32>(), value, inside);
    }
}

// Puts all that a thread has written of a step where the next product reads it.
fn keep_rows(place: Place, t: u32, gate: u32) {
    for (var i = 0u; i < OWNED * COLUMNS; i++) { keep(place, i, row4(place, t, entry_of(place, i), gate, column_of(place, i))); }
}

// sums += rows * w of `gate` and those after it, a slice of them. The rows are those kept, or those of step t and this gate.
fn multiply(place: Place, t: u32, gate: u32, sums: ptr<function, Sums>) {
    if FUSED != 0u {
        multiply_block(place, 0u, gate, sums);
        return;
    }
    for (var start = 0u; start < VECTORS; start += DEPTH) {
        workgroupBarrier();
        for (var slot = place.local; slot < ENTRIES * DEPTH; slot += THREADS) {
            rows[slot] = row4(place, t, place.start + slot / DEPTH, gate, 4u * (start + slot % DEPTH));
        }
        workgroupBarrier();
        multiply_block(place, start, gate, sums);
    }
}

// The part of the product that the vec4 columns from `start` on of the rows make, which are in workgroup memory.
fn multiply_block(place: Place, start: u32, gate: u32, sums: ptr<function, Sums>) {
    for (var k = place.slice; k < min(DEPTH, VECTORS - start); k += SLICES) {
        var row = array<vec4<f32>, ROWS>();
        for (var r = 0u; r < ROWS; r++) { row[r] = rows[(place.row + r) * DEPTH + k]; }
        for (var part = 0u; part < PARTS; part++) {
            // Past the last column the last one is computed again, and not stored.
            let vector = min(place.vector + part % COLUMNS * WIDTH, VECTORS - 1u);
            let at = ((gate + part / COLUMNS) * HP + 4u * (start + k)) * VECTORS + vector;
            let w0 = weights(place, at);
            let w1 = weights(place, at + VECTORS);
            let w2 = weights(place, at + 2u * VECTORS);
            let w3 = weights(place, at + 3u * VECTORS);
            for (var r = 0u; r < ROWS; r++) {
                (*sums)[part][r] += row[r].x * w0 + row[r].y * w1 + row[r].z * w2 + row[r].w * w3;
            }
        }
    }
}

// Adds up the slices of all sums, and leaves each thread those that it owns.
fn reduce(place: Place, sums: ptr<function, Sums>) {
    if SUBGROUPS != 0u {
        reduce_in_subgroup(place, sums);
    } else if SLICES > 1u {
        reduce_in_workgroup(place, sums);
    }
}

// Through workgroup memory.
fn reduce_in_workgroup(place: Place, sums: ptr<function, Sums>) {
    for (var part = 0u; part < PARTS + APART; part++) {
        workgroupBarrier();
        for (var r = 0u; r < ROWS; r++) { rows[r * THREADS + place.local] = (*sums)[part][r]; }
        workgroupBarrier();
        if place.slice * OWNED < ROWS {
            for (var r = 0u; r < OWNED; r++) {
                let first = (place.slice * OWNED + r) * THREADS + place.local % SLICE_THREADS;
                var sum = vec4<f32>();
                for (var slice = 0u; slice < SLICES; slice++) { sum += rows[first + slice * SLICE_THREADS]; }
                (*sums)[part][r] = sum;
            }
        }
    }
    workgroupBarrier();
}

// By halves: of two threads, each gives the other the rows that the other shall own, until each has its own; with more
// slices than rows, those with the same row add them up as they are. All masks are written out: of a loop that compilers do not
// unroll, be it over nothing, the loop around it is not either, and sums of an index that varies are not in registers.
fn reduce_in_subgroup(place: Place, sums: ptr<function, Sums>) {
    const SHARED: u32 = min(ROWS, SLICES); // at most 8
    // The threads of a subgroup may have left their loops one by one; FUSED, a barrier comes before every call.
    if FUSED == 0u { workgroupBarrier(); }
    for (var part = 0u; part < PARTS + APART; part++) {
        if SHARED >= 2u { give_half(place, part, ROWS / 2u, SHARED / 2u, sums); }
        if SHARED >= 4u { give_half(place, part, ROWS / 4u, SHARED / 4u, sums); }
        if SHARED >= 8u { give_half(place, part, ROWS / 8u, SHARED / 8u, sums); }
        if SHARED < 2u { add_other(part, 1u, sums); }
        if SHARED < 4u { add_other(part, 2u, sums); }
        if SHARED < 8u { add_other(part, 4u, sums); }
        add_other(part, 8u, sums);
        add_other(part, 16u, sums);
    }
}

// A thread's only row, with that of the thread whose slice differs in `mask`, if there is one.
fn add_other(part: u32, mask: u32, sums: ptr<function, Sums>) {
    if mask < SLICES { (*sums)[part][0] += of_other((*sums)[part][0], mask); }
}

// Of 2 count rows, the first or the last count, with those of the thread whose slice differs in `mask`.
fn give_half(place: Place, part: u32, count: u32, mask: u32, sums: ptr<function, Sums>) {
    let owns_upper = (place.slice & mask) != 0u;
    for (var r = 0u; r < count; r++) {
        let lower = (*sums)[part][r];
        let upper = (*sums)[part][r + count];
        (*sums)[part][r] = select(lower, upper, owns_upper) + of_other(select(upper, lower, owns_upper), mask);
    }
}

// The value of the thread whose place in the subgroup differs from this one's in the bits of `mask`.
@if(SUBGROUPS) fn of_other(value: vec4<f32>, mask: u32) -> vec4<f32> { return subgroupShuffleXor(value, mask); }
@if(!SUBGROUPS) fn of_other(value: vec4<f32>, mask: u32) -> vec4<f32> { return value; }
