//! The dispatches of both passes, and what each costs.

use std::ops::Range;

use super::{RowTile, Sequence, Sizes};
use crate::error::Result;
use crate::kernel::Kernel;
use crate::kernels::{pack, product};
use crate::plan::Recorder;
use crate::tensor::Tensor;

/// One dispatch: everything but its parameters and tensors.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    pub sizes: Sizes,
    pub tile: &'a RowTile,
    /// The steps that it computes, of the first one of stacked layers.
    pub span: (usize, usize),
    pub s: &'a Sequence,
}

/// A tensor, and how many of its elements belong to these steps of a direction.
pub type OfSteps<'a> = (&'a Tensor, &'a dyn Fn(&Range<usize>) -> usize);

impl Launch<'_> {
    /// Records it. `products` are those of a direction and its steps, with all of whose weights `w` every row of workgroups
    /// multiplies; of the tensors `of_steps` it touches its part.
    pub fn record<P: bytemuck::Pod>(
        self,
        r: &mut Recorder,
        kernel: &'static Kernel,
        params: P,
        (tensors, w): (&[&Tensor], &Tensor),
        products: impl Fn(usize, &Range<usize>) -> usize,
        of_steps: &[OfSteps<'_>],
    ) -> Result<()> {
        let (sizes, tile) = (self.sizes, self.tile);
        let constants = [&tile.constants(sizes)[..], &self.s.constants()].concat();
        r.dispatch(kernel, &constants, params, tensors, tile.grid(sizes))?;

        let Sizes { directions, batch, hidden, gates, .. } = sizes;
        let of = |direction| Some((direction, sizes.steps_of(direction, self.span)?));
        let spans: Vec<_> = (0..directions).filter_map(of).collect();
        let products: usize = spans.iter().map(|(direction, of)| products(*direction, of)).sum();
        let (weights, matrices) = (gates * hidden * hidden, sizes.matrices());
        let bytes = tile.precision.bytes();
        let reads = tile.grid(sizes)[0] * if tile.keeps_weights { matrices } else { products };
        let rereads = product(&[bytes, reads.saturating_sub(matrices), weights]);
        r.cost(product(&[2, products, batch, weights]), rereads);
        r.touches(|tensor| {
            if tensor.is(w) {
                return Some(w.len() * bytes / 4);
            }
            let (_, elements) = of_steps.iter().find(|(other, _)| other.is(tensor))?;
            Some(spans.iter().map(|(_, of)| elements(of)).sum::<usize>().min(tensor.len()))
        });
        Ok(())
    }
}

/// The steps of each dispatch, of the first one of stacked layers. `products` are those that a step makes one after the other.
pub fn dispatches(r: &Recorder, tile: &RowTile, sizes: Sizes, products: usize) -> Vec<(usize, usize)> {
    let Sizes { directions, steps, stacked, .. } = sizes;
    if tile.fused() {
        let of_flops = usize::try_from(r.most_flops() / sizes.flops_of_a_step()).unwrap_or(usize::MAX);
        let most = r.terms_at_once((tile.turns_of_a_step(products), 1), 1).min(of_flops).max(1);
        let each = steps.div_ceil(steps.div_ceil(most));
        return (0..steps).step_by(each).map(|first| (first, steps.min(first + each))).collect();
    }
    let waves = if stacked { steps + directions - 1 } else { steps };
    (0..waves).map(|step| (step, step + 1)).collect()
}

impl Sizes {
    /// Multiplications and additions of a step.
    fn flops_of_a_step(self) -> u64 {
        product(&[2, self.directions, self.state(), self.gates, self.hidden])
    }

    /// Recurrent matrices, and input matrices of stacked layers.
    fn matrices(self) -> usize {
        self.directions + self.layers_above().len()
    }
}

/// All matrices, `[D G, HP, HP]`, and those of stacked layers' inputs behind them.
pub fn packed(r: &mut Recorder, s: &Sequence, sizes: Sizes, tile: &RowTile, transpose: bool) -> Result<Tensor> {
    let name = format!("{}{}", s.w[0].name(), if transpose { "ᵀ" } else { ", padded" });
    let packed = r.zeros(&name, &[sizes.matrices() * sizes.gates, tile.padded, tile.padded])?;
    let mut at = 0;
    for w in s.w.iter().chain(&s.w_ih) {
        at = pack::pack(r, w, &packed, at, [sizes.gates, tile.padded, tile.padded], transpose, tile.precision)?;
    }
    Ok(packed)
}
