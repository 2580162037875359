//! How a recurrence is laid over workgroups, and what is chosen by calculation.

use super::Sizes;
use super::path::{TILE_VALUES, why_stepwise};
use crate::kernels::{LARGE_TILE_FLOPS, product};
use crate::plan::{Precision, Recorder};

/// How `shaders/lib/rows.wgsl` lays batch entries over workgroups.
pub struct RowTile {
    pub padded: usize,
    /// Batch entries of a thread.
    rows: usize,
    /// Vectors of four columns of a thread, of each gate.
    columns: usize,
    /// Threads that share their batch entries.
    width: usize,
    /// Groups of such threads in a slice of the sums.
    groups: usize,
    /// Slices in a workgroup.
    slices: usize,
    pub precision: Precision,
    /// Whether the slices of a sum are neighbours in a subgroup.
    pub subgroups: bool,
    /// Whether a workgroup keeps the weights in its memory.
    pub keeps_weights: bool,
    /// Why there is a dispatch for each step, if not one for all.
    pub stepwise: Option<String>,
}

/// What a thread holds for each of its rows, in vectors of four of its columns.
#[derive(Clone, Copy)]
pub struct Holds {
    /// Gates whose products are made at once.
    pub at_once: usize,
    /// Sums.
    pub sums: usize,
    /// What goes on from step to step beside them, of the rows that it owns; of all, where it owns several, for it then is an index
    /// that says which.
    pub carried: usize,
}

impl Holds {
    /// Registers of a thread: for these and a vector of each row, four of weights, and some for the rest.
    fn registers(self, rows: usize, slices: usize) -> usize {
        let carried = if slices >= rows { 1 } else { rows };
        4 * (rows * (self.sums + 1) + self.carried * carried + 4) + 20
    }
}

/// The most registers that a thread of a GPU gets. Beyond them Mesa's compiler for RDNA3 keeps what does not fit in memory, and on RDNA2 so
/// few threads fit beside each other that a row takes longer (`benches/README.md` has the figures, `tests/isa` makes them).
const MOST_REGISTERS: usize = 128;

/// From so many bytes of weights on, a GPU's core takes them, in every step, from the cache that all cores share, whose bandwidth
/// half of the cores exhaust: of a large batch fewer workgroups, of twice the entries each, read half as much (W1's 128 would
/// read 235 MB in its 7 products), if a thread has the registers. Where subgroups add up the slices: through workgroup memory there
/// would be fewer of them. By calculation, not measured.
const FEWEST_WEIGHT_BYTES_TO_SHARE: usize = 128 << 10;

/// Workgroups of twice the entries that are enough for that.
const ENOUGH_SHARING_WORKGROUPS: usize = 64;

/// Workgroups that keep a large GPU busy.
const ENOUGH_WORKGROUPS: usize = 128;

/// The most slices of a sum: what puts them together reads one after the other.
const MOST_SLICES: usize = 32;

/// Into how many slices sums over so many vectors of four are cut: of four vectors each or nearly, and so that the slices
/// share the rows of a thread, or each row is one slice's, of a power of 2 slices: subgroups add them up by halves.
fn slices_of(rows: usize, vectors: usize, most: usize) -> usize {
    let most = most.max(1).min(vectors.div_ceil(4)).min(MOST_SLICES);
    let halves = 1 << most.ilog2();
    if halves >= rows { halves } else { (1..=most).rev().find(|slices| rows.is_multiple_of(*slices)).unwrap_or(1) }
}

/// Fewer steps do not pay for the copy. By calculation, not measured, like the gain: a core's own cache may hold them as well.
const FEWEST_STEPS_TO_KEEP_WEIGHTS: usize = 4;

/// Whether subgroups can add up so many slices of the sums of so many rows.
fn has_subgroups(r: &Recorder, rows: usize, slices: usize, slice_threads: usize) -> bool {
    let Some((least, most)) = r.device().limits().subgroups.filter(|_| !r.is_baseline()) else { return false };
    let halves = slices.is_power_of_two() && rows.min(slices).is_power_of_two();
    slices > 1 && slices <= least && halves && (slices * slice_threads).is_multiple_of(most)
}

impl RowTile {
    pub const CONSTANTS: &[&str] = &[
        "HP",
        "ROWS",
        "COLUMNS",
        "GROUPS",
        "WIDTH",
        "SLICES",
        "FUSED",
        "STACKED",
        "DEPTH",
        "SUBGROUPS",
        "KEPT",
        "F16",
        "RESETS",
        "ACTIVATIONS",
    ];

    /// The layout for these sizes, and what a thread holds.
    ///
    /// A GPU gets 4 x 4 sums a gate and thread (8 x 4 where workgroups are many, weights too, and registers enough), as many slices of them as make
    /// 256 threads, and groups only to fill 64 of them: that makes the most workgroups, and the most loads under way at a time.
    /// By calculation, not measured. On a software driver a load costs hundreds of products, so a thread gets up to 16 x 16 sums.
    pub fn new(r: &Recorder, sizes: Sizes, holds: Holds) -> Self {
        let Sizes { directions, steps, batch, hidden, gates, precision, .. } = sizes;
        let padded = hidden.next_multiple_of(4);
        let (vectors, fit) = (padded / 4, TILE_VALUES / padded);
        if let Some(why) = why_stepwise(r, sizes) {
            return Self::stepwise(r, sizes, why);
        }
        let flops = product(&[2, directions, steps, batch, gates, hidden, hidden]);
        let large = !r.is_wide() && flops >= LARGE_TILE_FLOPS;
        let weights = gates * padded * padded * precision.bytes();
        let eight = slices_of(8, vectors, 256 / vectors.min(256));
        let fits = has_subgroups(r, 8, eight, vectors.min(256)) && holds.registers(8, eight) <= MOST_REGISTERS;
        let shares = fits && weights >= FEWEST_WEIGHT_BYTES_TO_SHARE && batch / 8 >= ENOUGH_SHARING_WORKGROUPS;
        let (rows, columns) = match (large, shares) {
            (true, _) => (fit.min(16), vectors.min(4 / holds.at_once)),
            (false, true) => (fit.min(8), 1),
            (false, false) => (4, 1),
        };
        let rows = rows.min(batch);
        let width = vectors.div_ceil(columns).min(256);
        let mut slices = 1;
        if r.is_wide() {
            slices = slices_of(rows, vectors, 256 / width);
            if !has_subgroups(r, rows, slices, width) {
                // Added up through workgroup memory.
                slices = slices_of(rows, vectors, (TILE_VALUES / 4 / rows).min(256) / width);
            }
        }
        let groups = if large { 1 } else { (64 / (width * slices)).clamp(1, batch.div_ceil(rows)) };
        let mut tile = Self::of(r, sizes, [rows, columns, width, groups, slices], None);
        tile.keeps_weights = r.is_wide()
            && !r.is_baseline()
            && steps >= FEWEST_STEPS_TO_KEEP_WEIGHTS
            && tile.bytes() + weights <= r.device().limits().workgroup_bytes;
        tile
    }

    fn of(
        r: &Recorder,
        sizes: Sizes,
        [rows, columns, width, groups, slices]: [usize; 5],
        stepwise: Option<String>,
    ) -> Self {
        let subgroups = has_subgroups(r, rows, slices, groups * width);
        let (padded, precision) = (sizes.hidden.next_multiple_of(4), sizes.precision);
        Self { padded, rows, columns, width, groups, slices, precision, subgroups, keeps_weights: false, stepwise }
    }

    /// A dispatch for each step, whose workgroups share the columns too.
    ///
    /// A GPU gets workgroups of up to 256 threads: 32 batch entries, for each of which a row of workgroups reads all weights,
    /// so few columns that there are enough workgroups, and slices of the sums for the rest. By calculation, not measured.
    pub fn stepwise(r: &Recorder, sizes: Sizes, why: String) -> Self {
        let Sizes { directions, batch, hidden, .. } = sizes;
        let (vectors, rows) = (hidden.div_ceil(4), batch.min(4));
        let groups = batch.div_ceil(rows);
        let (groups, width, slices) = if r.is_wide() {
            let groups = groups.min(8);
            let workgroups = |width| directions * batch.div_ceil(groups * rows) * vectors.div_ceil(width);
            let width = [16, 8, 4].into_iter().find(|&width| workgroups(width) >= ENOUGH_WORKGROUPS).unwrap_or(2);
            (groups, width, slices_of(rows, vectors, 256 / (groups * width)))
        } else {
            let groups = groups.min(4);
            (groups, vectors.min(64 / groups), 1)
        };
        Self::of(r, sizes, [rows, 1, width, groups, slices], Some(why))
    }

    pub fn fused(&self) -> bool {
        self.stepwise.is_none()
    }

    /// Turns of a thread's loops in a step that makes so many products one after the other: over the vectors of each, and over what
    /// it owns, once itself and once to keep the rows of each product.
    pub fn turns_of_a_step(&self, products: usize) -> usize {
        let owned = (self.rows / self.slices).max(1) * self.columns;
        2 + products * (self.padded / 4).div_ceil(self.slices) + owned * (1 + products)
    }

    pub fn entries(&self) -> usize {
        self.rows * self.groups
    }

    /// Vectors of four columns of the rows in workgroup memory.
    fn depth(&self) -> usize {
        let vectors = self.padded / 4;
        if self.fused() { vectors } else { vectors.min(TILE_VALUES / 4 / self.entries()) }
    }

    /// Of workgroup memory, without weights.
    fn bytes(&self) -> usize {
        let threads = self.slices * self.groups * self.width;
        let scratch = if self.slices > 1 && !self.subgroups { self.rows * threads } else { 0 };
        16 * scratch.max(self.entries() * self.depth())
    }

    pub fn constants(&self, sizes: Sizes) -> [(&'static str, u32); 12] {
        let of = |name, value: usize| (name, value as u32);
        [
            of("HP", self.padded),
            of("ROWS", self.rows),
            of("COLUMNS", self.columns),
            of("GROUPS", self.groups),
            of("WIDTH", self.width),
            of("SLICES", self.slices),
            of("FUSED", self.fused().into()),
            of("STACKED", sizes.stacked.into()),
            of("DEPTH", self.depth()),
            of("SUBGROUPS", self.subgroups.into()),
            of("KEPT", self.keeps_weights.into()),
            of("F16", self.precision.is_f16().into()),
        ]
    }

    pub fn workgroups(&self, sizes: Sizes) -> usize {
        self.grid(sizes).iter().product()
    }

    pub fn grid(&self, sizes: Sizes) -> [usize; 3] {
        let columns = if self.fused() { 1 } else { (self.padded / 4).div_ceil(self.columns * self.width) };
        [sizes.batch.div_ceil(self.entries()), columns, sizes.directions]
    }
}
