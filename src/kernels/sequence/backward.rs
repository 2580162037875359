//! The backward pass of a recurrence.

use std::ops::Range;

use bytemuck::Zeroable as _;

use super::launch::{Launch, OfSteps, dispatches, packed};
use super::{CellKind, RowTile, Sequence, SequenceGradients, Sizes, check, start_of_dstart};
use crate::error::{Error, Result};
use crate::kernel::{Binding, Kernel, Twin, params, reads, reads_u32, writes};
use crate::kernels::{expect, expect_len};
use crate::plan::Recorder;

params! { pub D: u32, T: u32, B: u32, H: u32, first: u32, last: u32, complete: u32, pending: u32, has_dy: u32, has_dend: u32, variant: u32, activations: u32, clip: f32, alpha_0: f32, beta_0: f32, alpha_1: f32, beta_1: f32, alpha_2: f32, beta_2: f32, alpha_3: f32, beta_3: f32, alpha_4: f32, beta_4: f32 }

/// The backward kernel of a cell, with or without weights of its own beside the matrix.
pub const fn kernel(name: &'static str, source: &'static str, has_peepholes: bool, twin: Twin) -> Kernel {
    const BINDINGS: &[Binding] = &[
        reads("w"),
        reads_u32("lengths"),
        reads("states"),
        writes("saved"),
        reads("dy"),
        reads("dend"),
        writes("dx"),
        reads("peepholes"),
    ];
    let (bindings, _) = BINDINGS.split_at(if has_peepholes { 8 } else { 7 });
    Kernel { name, source, constants: RowTile::CONSTANTS, params: FIELDS, bindings, twin }
}

/// Records the gradients of [`super::forward`]. For the GRU, the first 3 H columns of `saved` become the gradient of `h Wᵀ + b`;
/// for the other cells that is `dx`.
///
/// # Errors
/// The shapes do not fit.
pub fn backward(r: &mut Recorder, cell: &'static CellKind, s: &Sequence, d: &SequenceGradients) -> Result<()> {
    let sizes @ Sizes { directions, steps, batch, hidden, gates, states, .. } = check(cell, s)?;
    r.check_precision(s.precision)?;
    expect_len("recurrence", &d.dx, start_of_dstart(sizes.of_dx()) + sizes.of_dstart())?;
    let outputs = if sizes.stacked { 1 } else { directions };
    for (given, count, slots) in [(&d.dy, outputs, steps), (&d.dend, directions, states)] {
        if let Some(given) = given {
            expect("recurrence", given, &[count, slots, batch, hidden])?;
        }
    }
    let blocks = s.saved_blocks(cell);
    if blocks > 0 && s.saved.is_none() {
        return Err(Error::shape("recurrence", "saved", "the gates of the forward pass", &[]));
    }
    let tile = RowTile::new(r, sizes, cell.backward_holds());
    let (none, nowhere) = (r.zeros("none", &[4])?, r.zeros("nowhere", &[4])?);
    let w = match s.w.as_slice() {
        [only] if tile.padded == hidden && !tile.precision.is_f16() => only.clone(),
        _ => packed(r, s, sizes, &tile, false)?,
    };
    let [dy, dend] = [&d.dy, &d.dend].map(|given| given.as_ref().unwrap_or(&none));
    let (saved, peepholes) = (s.saved.as_ref().unwrap_or(&nowhere), s.peepholes.as_ref().unwrap_or(&none));
    let tensors = [&w, s.lengths_and_resets(), &s.states, saved, dy, dend, &d.dx, peepholes];
    let tensors = &tensors[..cell.backward.bindings.len()];

    let state = sizes.state();
    // All steps in one, or several in each of some dispatches: those before go on with the whole gradient of a state.
    let is_complete = |first: usize| tile.fused() && (d.wants_dstart || first > 0);
    // Of one state a step's gradient needs the one before it or the one it made; of two, both of c.
    let of_states = |of: &Range<usize>| state * (of.len() + states - 1);
    let of_dy = |of: &Range<usize>| state * of.len();
    let of_dx = |of: &Range<usize>| {
        let of_dstart = if tile.fused() && !is_complete(of.start) { 0 } else { states * state };
        gates * state * (of.len() + 1).min(steps) + of_dstart
    };
    let of_saved = |of: &Range<usize>| blocks * state * (of.len() + usize::from(cell.separate_bias)).min(steps);
    let mut of_steps: Vec<OfSteps<'_>> = vec![(&s.states, &of_states), (&d.dx, &of_dx)];
    of_steps.extend(d.dy.as_ref().map(|dy| (dy, &of_dy as _)));
    of_steps.extend(s.saved.as_ref().map(|saved| (saved, &of_saved as _)));
    let mut spans = dispatches(r, &tile, sizes, gates);
    spans.reverse();
    if !tile.fused() && d.wants_dstart {
        // The product of the first step needs all columns of its dx.
        spans.push((0, 0));
    }
    let mut is_first = true;
    let parts = |span: (usize, usize)| cell.parts_of(tile.fused()).filter(move |&part| part <= 1 || span.0 < span.1);
    for (span, part) in spans.into_iter().flat_map(|span| parts(span).map(move |part| (span, part))) {
        let complete = is_complete(span.0);
        let params = Params {
            D: directions as u32,
            T: steps as u32,
            B: batch as u32,
            H: hidden as u32,
            first: span.0 as u32,
            last: span.1 as u32,
            complete: complete.into(),
            pending: (!tile.fused()).into(),
            has_dy: d.dy.is_some().into(),
            has_dend: d.dend.is_some().into(),
            variant: cell.variant | s.variant() | part as u32,
            ..Params::zeroed()
        }
        .of_form(s.form.as_ref());
        let products = |direction, of: &Range<usize>| {
            if part > 1 {
                return 0;
            }
            let from_above = sizes.stacked && direction + 1 < directions && !of.is_empty();
            of.len().saturating_sub(1)
                + [!tile.fused() && of.end < steps, complete, from_above].map(usize::from).iter().sum::<usize>()
        };
        let launch = Launch { sizes, tile: &tile, span, s };
        launch.record(r, cell.backward, params, (tensors, &w), products, &of_steps)?;
        if is_first {
            r.overwrites(&d.dx);
        }
        is_first = false;
    }
    Ok(())
}
