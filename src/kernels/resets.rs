//! Marks of the steps before which states become 0, as the sequence kernels take them.

use super::{expect, expect_len, expect_lengths, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads_u32, twin, wgsl, writes_u32};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { D: u32, T: u32, B: u32, reversed: u32 }

/// See `shaders/resets.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "resets",
    source: wgsl!("resets"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads_u32("lengths"), reads_u32("marks"), writes_u32("y")],
    twin: twin!(twin, alone),
};

/// Records the marks of some directions, each reversed or not, behind the lengths: `lengths` `[B]` from [`crate::Device::lengths`],
/// `marks` `[T, B]`, `y` `[B + D T B]`, all u32.
///
/// # Errors
/// The shapes do not fit, or there are more than 32 directions.
pub fn resets(r: &mut Recorder, lengths: &Tensor, marks: &Tensor, reversed: &[bool], y: &Tensor) -> Result<()> {
    let (&[steps, batch], directions) = (marks.shape(), reversed.len()) else {
        return Err(Error::shape("resets", marks.name(), "[T, B]", marks.shape()));
    };
    expect("resets", lengths, &[batch])?;
    expect_lengths("resets", lengths, batch, steps)?;
    expect_len("resets", y, batch + directions * steps * batch)?;
    if !(1..=32).contains(&directions) {
        return Err(Error::argument("resets", "directions", "1 to 32", directions));
    }
    let bits = reversed.iter().rev().fold(0, |bits, &reversed| bits << 1 | u32::from(reversed));
    let params = Params { D: directions as u32, T: steps as u32, B: batch as u32, reversed: bits };
    r.dispatch(&KERNEL, &[], params, &[lengths, marks, y], striding_grid(y.len() - batch))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [lengths, marks, y] = args.all();
    let (lengths, marks, batch, steps) = (lengths.read_u32(), marks.read_u32(), p.B as usize, p.T as usize);
    let (of_lengths, of_marks) = y.write_u32().split_at_mut(batch);
    of_lengths.copy_from_slice(lengths);
    for (i, y) in of_marks.iter_mut().enumerate() {
        let (direction, t, b) = (i / (steps * batch), i / batch % steps, i % batch);
        let length = lengths[b] as usize;
        *y = match p.reversed >> direction & 1 {
            0 => marks[t * batch + b],
            _ if t > 0 && t < length => marks[(length - t) * batch + b],
            _ => 0,
        };
    }
}
