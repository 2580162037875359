// Sums and maxima over a workgroup, in a fixed order. All threads call these together and get the result.
//
// The kernel that joins this defines
//   const THREADS: u32    the size of its workgroup, a power of two
var<workgroup> part: array<f32, THREADS>;

fn workgroup_sum(local: u32, value: f32) -> f32 {
    workgroupBarrier(); // an earlier result has been read
    part[local] = value;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half { part[local] += part[local + half]; }
    }
    workgroupBarrier();
    return part[0];
}

fn workgroup_max(local: u32, value: f32) -> f32 {
    workgroupBarrier();
    part[local] = value;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half { part[local] = max(part[local], part[local + half]); }
    }
    workgroupBarrier();
    return part[0];
}
