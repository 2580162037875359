//! The terms of the gradient of an LSTM's peepholes.

use super::{expect_len, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, B: u32, H: u32, marked: u32, first: u32 }

/// See `shaders/peephole_products.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "peephole_products",
    source: wgsl!("peephole_products"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("d"), reads("c"), reads_u32("marks"), writes("y")],
    twin: twin!(twin, alone),
};

/// Records the products, of which each column of `y` `[T, B, 3 H]` has those of one peephole: `d` `[T, B, 4 H]`, the gradient of the
/// gates, times `c` `[T + 1, B, H]`, the cells. Marks, from the `first` on, are of steps before which c became 0.
///
/// # Errors
/// The sizes do not fit.
pub fn peephole_products(
    r: &mut Recorder,
    (d, c): (&Tensor, &Tensor),
    marks: Option<(&Tensor, usize)>,
    y: &Tensor,
) -> Result<()> {
    let &[slots, batch, hidden] = c.shape() else {
        return Err(Error::shape("peephole_products", c.name(), "[T + 1, B, H]", c.shape()));
    };
    let rows = (slots - 1) * batch;
    expect_len("peephole_products", d, rows * 4 * hidden)?;
    expect_len("peephole_products", y, rows * 3 * hidden)?;
    if let Some((marks, first)) = marks
        && marks.len() < first + rows
    {
        let expected = format!("of at least {} elements", first + rows);
        return Err(Error::shape("peephole_products", marks.name(), expected, marks.shape()));
    }
    let none = r.tokens("no marks", &[4], 1)?;
    let (marks, first) = marks.map_or((&none, None), |(marks, first)| (marks, Some(first)));
    let params = Params {
        n: y.len() as u32,
        B: batch as u32,
        H: hidden as u32,
        marked: first.is_some().into(),
        first: first.unwrap_or(0) as u32,
    };
    r.dispatch(&KERNEL, &[], params, &[d, c, marks, y], striding_grid(y.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [d, c, marks, y] = args.all();
    let (d, c, marks, batch, hidden) = (d.read(), c.read(), marks.read_u32(), p.B as usize, p.H as usize);
    for (i, y) in y.write().chunks_exact_mut(hidden).enumerate() {
        let (row, peephole) = (i / 3, i % 3);
        let (gate, slot) = if peephole == 2 { (3, row + batch) } else { (peephole, row) };
        let (d, c) = (&d[(row * 4 + gate) * hidden..], &c[slot * hidden..]);
        if p.marked != 0 && peephole < 2 && marks[p.first as usize + row] != 0 {
            y.fill(F::zero());
            continue;
        }
        y.iter_mut().zip(d).zip(c).for_each(|((y, &d), &c)| *y = d * c);
    }
}
