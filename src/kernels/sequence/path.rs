//! The ways that a recurrence can take: one dispatch for all steps, one for each, or stacked layers as a wavefront.

use std::ops::Range;

use super::{CellKind, Sizes, start_of_dstart};
use crate::device::{Limits, WORKGROUP_BYTES};
use crate::plan::Recorder;

/// Values of a workgroup's memory.
pub const TILE_VALUES: usize = WORKGROUP_BYTES / 4;

/// The most bytes of weights that one workgroup of a GPU reads in every step. From cache it gets some hundred GB/s, so that these
/// take 10 microseconds, two or three times what a dispatch costs. By calculation, not measured.
const MOST_WEIGHT_BYTES_OF_A_WORKGROUP: usize = 1 << 20;

/// Why a recurrence takes a dispatch for each step, if it does.
pub fn why_stepwise(r: &Recorder, sizes: Sizes) -> Option<String> {
    let Sizes { stacked, steps, hidden, gates, precision, .. } = sizes;
    let (most, weights) = (TILE_VALUES / 4, gates * hidden * hidden);
    if hidden > most {
        return Some(format!("all steps in one need H <= {most}"));
    }
    let most = MOST_WEIGHT_BYTES_OF_A_WORKGROUP / precision.bytes();
    let too_many = r.is_wide() && steps > 1 && weights > most;
    match r.stepwise() {
        None if too_many => {
            Some(format!("each workgroup of one would read {weights} weights a step, more than {most}"))
        }
        Some(true) => Some("it was asked for".into()),
        _ => stacked.then(|| "the layers are stacked".into()),
    }
}

/// The most values of h that a layer of a wavefront may have: from there on each layer fills a GPU by itself, and its input's
/// product is better made for all steps at once. By calculation, not measured.
const MOST_STATES_OF_A_STACKED_LAYER: usize = 1 << 18;

/// Whether stacked layers of one size, the first on so many rows, shall be a wavefront. They never are on a software driver,
/// which gains nothing.
pub(crate) fn shall_stack(
    r: &mut Recorder,
    cell: &CellKind,
    training: bool,
    layers: usize,
    rows: usize,
    size @ [steps, batch, hidden]: [usize; 3],
) -> bool {
    let CellKind { gates, states, .. } = *cell;
    let precision = r.precision();
    let sizes = Sizes { directions: 1, stacked: false, rows, steps, batch, hidden, gates, states, precision };
    let small = sizes.state() <= MOST_STATES_OF_A_STACKED_LAYER;
    let is_wanted = r.is_wide() && layers > 1 && steps > 1 && small;
    if !is_wanted || why_stepwise(r, sizes).is_none() {
        return false;
    }
    let fits = fits(r.device().limits(), training, cell, (layers, 2 * layers - 1), rows, size);
    if !fits {
        r.note(format!(
            "{}, H {hidden}: layers one after the other, since together they pass the device's limits",
            cell.name
        ));
    }
    fits
}

/// Whether so many recurrences side by side, on so many rows each, with so many matrices, have tensors that a kernel can bind.
pub(crate) fn fits(
    limits: Limits,
    training: bool,
    cell: &CellKind,
    (recurrences, matrices): (usize, usize),
    rows: usize,
    [steps, batch, hidden]: [usize; 3],
) -> bool {
    let (state, gates) = (recurrences * batch * hidden, cell.gates);
    let of_dx = start_of_dstart(steps * state * gates) + cell.states * state;
    let of_training = if training || cell.parts > 1 { of_dx.max(steps * state * cell.saved) } else { 0 };
    let inputs = recurrences * rows * gates * hidden;
    let weights = matrices * gates * hidden.next_multiple_of(4).pow(2);
    let largest = [cell.states * (steps + 1) * state, of_training, inputs, weights].into_iter().max();
    4 * largest.unwrap_or(0) as u64 <= limits.tensor_bytes()
}

impl Sizes {
    /// The steps of a direction in a dispatch, those of a stacked layer behind those of the one below; `steps_of` and
    /// `is_idle` in `shaders/lib/rows.wgsl`.
    pub fn steps_of(self, direction: usize, (first, last): (usize, usize)) -> Option<Range<usize>> {
        let behind = if self.stacked && first < last { direction } else { 0 };
        let first = first.checked_sub(behind)?;
        (first < self.steps).then(|| first..last - behind)
    }

    /// The stacked layers that have one below.
    pub fn layers_above(self) -> Range<usize> {
        1..if self.stacked { self.directions } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::WORKGROUP_BYTES;
    use crate::kernels::cell::Cell;

    #[test]
    fn side_by_side_within_limits() {
        let limits = |bytes: u64| Limits {
            binding_bytes: bytes,
            buffer_bytes: 1 << 40,
            workgroups_per_dimension: 65_535,
            offset_alignment: 256,
            workgroup_bytes: WORKGROUP_BYTES,
            f16: true,
            subgroups: None,
        };
        // Three packed matrices of 64 MiB; everything else is less.
        let lstm = |bytes: u64, both| fits(limits(bytes), true, Cell::Lstm.kind(), both, 15, [3, 5, 2048]);
        assert!(
            lstm(3 << 26, (2, 3)) && !lstm((3 << 26) - 1, (2, 3)) && lstm(1 << 27, (2, 2)) && !lstm(1 << 26, (2, 2))
        );
        // In training the gates that are saved, 4 to a state; otherwise the states, or the rows of a long table.
        let gru =
            |bytes: u64, training, rows| fits(limits(bytes), training, Cell::Gru.kind(), (2, 2), rows, [255, 64, 32]);
        let saved = 4 * 2 * 255 * 64 * 32 * 4;
        assert!(gru(saved, true, 9) && !gru(saved - 1, true, 9));
        assert!(gru(1 << 22, false, 9) && !gru((1 << 22) - 1, false, 9));
        assert!(gru(4 * 2 * 10_000 * 96, false, 10_000) && !gru(4 * 2 * 10_000 * 96 - 1, false, 10_000));
    }
}
