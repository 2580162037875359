//! The forward pass of a recurrence.

use std::ops::Range;

use bytemuck::Zeroable as _;

use super::launch::{Launch, OfSteps, dispatches, packed};
use super::{CellKind, RowTile, Sequence, Sizes, check};
use crate::error::Result;
use crate::kernel::{Binding, Kernel, Twin, params, reads, reads_u32, writes};
use crate::plan::Recorder;

params! { pub D: u32, N: u32, T: u32, B: u32, H: u32, first: u32, last: u32, has_h_0: u32, save: u32, variant: u32, activations: u32, clip: f32, alpha_0: f32, beta_0: f32, alpha_1: f32, beta_1: f32, alpha_2: f32, beta_2: f32, alpha_3: f32, beta_3: f32, alpha_4: f32, beta_4: f32 }

/// The forward kernel of a cell, with or without weights of its own beside the matrix.
pub const fn kernel(name: &'static str, source: &'static str, has_peepholes: bool, twin: Twin) -> Kernel {
    const BINDINGS: &[Binding] = &[
        reads("x"),
        reads_u32("index"),
        reads_u32("lengths"),
        reads("w"),
        reads("biases"),
        writes("states"),
        writes("saved"),
        reads("peepholes"),
    ];
    let (bindings, _) = BINDINGS.split_at(if has_peepholes { 8 } else { 7 });
    Kernel { name, source, constants: RowTile::CONSTANTS, params: FIELDS, bindings, twin }
}

/// Records the recurrence.
///
/// # Errors
/// The shapes do not fit.
pub fn forward(r: &mut Recorder, cell: &'static CellKind, s: &Sequence) -> Result<()> {
    let sizes @ Sizes { directions, rows, steps, batch, hidden, gates, states, .. } = check(cell, s)?;
    r.check_precision(s.precision)?;
    let mut tile = RowTile::new(r, sizes, cell.forward_holds());
    if r.is_wide() && steps == 1 && !sizes.stacked {
        let spread = RowTile::stepwise(r, sizes, "more workgroups share its one step".into());
        if spread.workgroups(sizes) > tile.workgroups(sizes) {
            tile = spread;
        }
    }
    note(r, cell, sizes, &tile);
    let (none, nowhere) = (r.zeros("none", &[4])?, r.zeros("nowhere", &[4])?);
    let w = packed(r, s, sizes, &tile, true)?;
    let biases = s.biases.as_ref().unwrap_or(&none);
    let saved = s.saved.as_ref().unwrap_or(&nowhere);
    let peepholes = s.peepholes.as_ref().unwrap_or(&none);
    let tensors = [&s.x, &s.index, s.lengths_and_resets(), &w, biases, &s.states, saved, peepholes];
    let tensors = &tensors[..cell.forward.bindings.len()];

    let (state, rows_of_x) = (sizes.state(), rows.min(batch));
    let of_states = |of: &Range<usize>| {
        // A gate multiplies the incoming state of a cell whose bias is separate, be it 0.
        let reads_h = of.len() + usize::from(of.start > 0 || s.has_h_0 || cell.separate_bias);
        state * (reads_h + (states - 1) * (of.len() + 1))
    };
    let of_x = |of: &Range<usize>| of.len() * rows_of_x * gates * hidden;
    let of_index = |of: &Range<usize>| of.len() * batch;
    let of_saved = |of: &Range<usize>| of.len() * s.saved_blocks(cell) * state;
    let mut of_steps: Vec<OfSteps<'_>> = vec![(&s.states, &of_states), (&s.x, &of_x), (&s.index, &of_index)];
    of_steps.extend(s.saved.as_ref().map(|saved| (saved, &of_saved as _)));
    let one_after_the_other = gates / cell.at_once();
    let spans = dispatches(r, &tile, sizes, one_after_the_other);
    for (span, part) in spans.into_iter().flat_map(|span| cell.parts_of(tile.fused()).map(move |part| (span, part))) {
        let params = Params {
            D: directions as u32,
            N: rows as u32,
            T: steps as u32,
            B: batch as u32,
            H: hidden as u32,
            first: span.0 as u32,
            last: span.1 as u32,
            has_h_0: s.has_h_0.into(),
            save: s.saved.is_some().into(),
            variant: cell.variant | s.variant() | part as u32,
            ..Params::zeroed()
        }
        .of_form(s.form.as_ref());
        let products = |direction, steps: &Range<usize>| {
            if part > 1 {
                // Counted with the first part.
                return 0;
            }
            let of_zeros = usize::from(steps.start == 0 && !s.has_h_0);
            steps.len() - of_zeros + usize::from(sizes.stacked && direction > 0)
        };
        let launch = Launch { sizes, tile: &tile, span, s };
        launch.record(r, cell.forward, params, (tensors, &w), products, &of_steps)?;
        if span.0 == 0 && part <= 1 {
            for i in 0..directions * states {
                r.overwrites(&s.states.view("states", (i * (steps + 1) + 1) * state, &[steps * state]));
            }
            // A cell of two parts saves what is multiplied later on past an entry's length too, where it has to be 0.
            s.saved.iter().filter(|_| cell.parts == 1).for_each(|saved| r.overwrites(saved));
        }
    }
    Ok(())
}

/// Says which way was taken, and why.
fn note(r: &mut Recorder, cell: &CellKind, sizes: Sizes, tile: &RowTile) {
    let Sizes { directions, steps, hidden, .. } = sizes;
    let side_by_side = match directions {
        1 => String::new(),
        layers if sizes.stacked => format!(" of {layers} layers, each a step behind the one below"),
        directions => format!(" of {directions} directions side by side"),
    };
    let how = match &tile.stepwise {
        None => {
            let dispatches = match dispatches(r, tile, sizes, 1).len() {
                1 => "one dispatch".into(),
                several => format!("{several} dispatches, since one would keep a GPU busy for too long"),
            };
            format!("all {steps} steps{side_by_side} in {dispatches}, {} batch entries a workgroup", tile.entries())
        }
        Some(why) if cell.parts > 1 => format!("{} dispatches for each step{side_by_side}, since {why}", cell.parts),
        Some(why) => format!("a dispatch for each step{side_by_side}, since {why}"),
    };
    let with = [
        (tile.precision.is_f16(), ", weights in f16"),
        (tile.keeps_weights, ", weights kept in workgroup memory"),
        (tile.subgroups, ", sums added up in subgroups"),
    ];
    let with: String = with.into_iter().filter_map(|(is_so, what)| is_so.then_some(what)).collect();
    r.note(format!("{}, H {hidden}: {how}, {} workgroups{with}", cell.name, tile.workgroups(sizes)));
}
