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
