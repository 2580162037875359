//! Which commands the CPU runs at the same time.

use std::ops::Range;
use std::sync::Arc;

use super::Command;
use crate::tensor::Tensor;

/// What two threads must save, in nanoseconds, to be worth waking.
const LEAST_SAVING: u64 = 15_000;

/// Commands of a batch, at most: each is compared with all before it.
const MOST: usize = 16;

/// What a twin takes on one thread, in nanoseconds, roughly: 50 GFLOP/s and 10 GB/s.
fn nanoseconds(command: &Command) -> u64 {
    match command {
        Command::Dispatch(d) => d.flops() / 50 + d.bytes() / 10,
        Command::Copy { from, .. } => 8 * from.len() as u64 / 10,
        Command::Clear { tensor } => 4 * tensor.len() as u64 / 10,
    }
}

fn overlaps(a: &Tensor, b: &Tensor) -> bool {
    let shares = Arc::ptr_eq(a.buffer(), b.buffer());
    shares && a.offset() < b.offset() + b.len() && b.offset() < a.offset() + a.len()
}

/// Whether one writes what the other reads or writes.
fn conflict(a: &Command, b: &Command) -> bool {
    let writes_into = |a: &Command, b: &Command| {
        a.writes().any(|written| b.reads().chain(b.writes()).any(|used| overlaps(written, used)))
    };
    writes_into(a, b) || writes_into(b, a)
}

/// The commands, in order, as batches: those of one do not depend on each other, and are worth several threads, or it is of one
/// command. It depends on the plan alone, and each command is computed as it would be by itself: the threads there are do not change the
/// result.
pub(super) fn batches(commands: &[Command]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    for (i, command) in commands.iter().enumerate() {
        match batches.last_mut() {
            Some(batch) if batch.len() < MOST && !commands[batch.clone()].iter().any(|c| conflict(c, command)) => {
                batch.end += 1;
            }
            _ => batches.push(i..i + 1),
        }
    }
    let is_worth_it = |batch: &Range<usize>| {
        let times = || commands[batch.clone()].iter().map(nanoseconds);
        times().sum::<u64>() - times().max().unwrap_or(0) >= LEAST_SAVING
    };
    let one_by_one = |batch: Range<usize>| batch.map(|i| i..i + 1).collect();
    batches.into_iter().flat_map(|batch| if is_worth_it(&batch) { vec![batch] } else { one_by_one(batch) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::tensor::DType;

    #[test]
    fn a_batch_has_no_command_that_depends_on_another() {
        let device = Device::cpu();
        let tensor = |name: &str, n: usize| device.zeros(name, &[n], DType::F32).unwrap();
        let copy = |from: &Tensor, to: &Tensor| Command::Copy { from: from.clone(), to: to.clone() };
        let sizes =
            |commands: &[Command]| -> Vec<usize> { batches(commands).iter().map(|batch| batch.len()).collect() };
        let n = 1 << 16;
        let (x, y, z) = (tensor("x", n), tensor("y", n), tensor("z", 2 * n));
        let [low, high] = [0, n].map(|start| z.view("half", start, &[n]));
        let both = [copy(&x, &y), copy(&x, &low), copy(&x, &high)];
        assert_eq!(sizes(&both), [3]);
        assert_eq!(sizes(&[copy(&x, &low), copy(&y, &high), copy(&high, &y), copy(&low, &x)]), [2, 2]);
        for (first, second) in
            [(copy(&x, &y), copy(&x, &y)), (copy(&x, &y), copy(&y, &low)), (copy(&x, &y), copy(&low, &x))]
        {
            assert_eq!(sizes(&[first, second]), [1, 1]);
        }
        let small = ["a", "b", "c", "d"].map(|name| tensor(name, 10));
        assert_eq!(sizes(&[copy(&small[0], &small[1]), copy(&small[2], &small[3])]), [1, 1]);
    }
}
