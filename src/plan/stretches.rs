//! Which commands the CPU runs at the same time: each as soon as those that it depends on are done.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::Scope;

use super::Command;
use crate::tensor::Tensor;

/// What two threads must save, in nanoseconds, to be worth waking.
const LEAST_SAVING: u64 = 15_000;

/// What a command takes, in nanoseconds, that is not worth dividing.
const MOST_ALONE: u64 = 50_000;

/// Commands of a stretch, at most: each is compared with all before it.
const MOST: usize = 64;

/// What a twin takes on one thread, in nanoseconds, roughly: 50 GFLOP/s and 10 GB/s.
fn nanoseconds(command: &Command) -> u64 {
    match command {
        Command::Dispatch(d) => d.flops() / 50 + d.bytes() / 10,
        Command::Copy { from, .. } => 8 * from.len() as u64 / 10,
        Command::Clear { tensor } => 4 * tensor.len() as u64 / 10,
    }
}

/// A range of a buffer that a command uses, and whether it writes it.
struct Use {
    buffer: usize,
    range: Range<usize>,
    is_written: bool,
}

fn uses(command: &Command) -> Vec<Use> {
    let used = |is_written| {
        move |tensor: &Tensor| Use {
            buffer: Arc::as_ptr(tensor.buffer()) as usize,
            range: tensor.elements(),
            is_written,
        }
    };
    command.reads().map(used(false)).chain(command.writes().map(used(true))).collect()
}

/// Whether one writes what the other reads or writes.
fn conflict(a: &[Use], b: &[Use]) -> bool {
    let overlap = |a: &Use, b: &Use| {
        (a.is_written || b.is_written)
            && a.buffer == b.buffer
            && a.range.start < b.range.end
            && b.range.start < a.range.end
    };
    a.iter().any(|a| b.iter().any(|b| overlap(a, b)))
}

/// Neighbouring commands, and, if several threads are worth waking for them, what depends on what. That is decided by the plan alone,
/// and each command is computed as it would be by itself: the threads there are do not change the result.
pub(super) struct Stretch {
    range: Range<usize>,
    flow: Option<Flow>,
}

/// For each command of a stretch: how many others it waits for, and which wait for it.
struct Flow {
    before: Vec<usize>,
    after: Vec<Vec<usize>>,
}

/// The commands, in order, as stretches.
pub(super) fn stretches(commands: &[Command]) -> Vec<Stretch> {
    let starts = (0..commands.len()).step_by(MOST);
    let range = |start| start..commands.len().min(start + MOST);
    starts.map(range).map(|range| Stretch { flow: Flow::of(&commands[range.clone()]), range }).collect()
}

/// Whether one thread runs these as fast as several: none is worth dividing, and the twins then keep to their thread.
pub(super) fn are_short(stretches: &[Stretch], commands: &[Command]) -> bool {
    let is_short = |command: &Command| match command {
        // A product of few rows is as fast as its weights are read, by one thread.
        Command::Dispatch(d) if d.flops() > 0 => d.kernel.twin.can_be_alone && d.flops() / 50 <= MOST_ALONE,
        Command::Dispatch(d) => d.kernel.twin.can_be_alone && nanoseconds(command) <= MOST_ALONE,
        Command::Copy { .. } | Command::Clear { .. } => true,
    };
    stretches.iter().all(|stretch| stretch.flow.is_none()) && commands.iter().all(is_short)
}

impl Flow {
    fn of(commands: &[Command]) -> Option<Self> {
        let (mut before, mut after) = (vec![0; commands.len()], vec![Vec::new(); commands.len()]);
        // When each is done if it never waits for a thread.
        let mut done = vec![0; commands.len()];
        let uses: Vec<_> = commands.iter().map(uses).collect();
        for (i, command) in commands.iter().enumerate() {
            let mut ready = 0;
            for j in (0..i).filter(|&j| conflict(&uses[j], &uses[i])) {
                before[i] += 1;
                after[j].push(i);
                ready = ready.max(done[j]);
            }
            done[i] = ready + nanoseconds(command);
        }
        let all: u64 = commands.iter().map(nanoseconds).sum();
        let saved = all - done.iter().max().unwrap_or(&0).max(&(all / 2));
        (saved >= LEAST_SAVING).then_some(Self { before, after })
    }
}

/// A stretch that runs on several threads: how many others each of its commands still waits for.
struct Run<'a, W> {
    commands: &'a [Command],
    after: &'a [Vec<usize>],
    left: Vec<AtomicUsize>,
    work: W,
}

impl<W: Fn(&Command) + Sync> Run<'_, W> {
    /// Runs a command, and then those that waited for nothing else: one here, the others as tasks.
    fn go<'s>(&'s self, scope: &Scope<'s>, first: usize) {
        let mut next = Some(first);
        while let Some(i) = next.take() {
            (self.work)(&self.commands[i]);
            for &j in &self.after[i] {
                if self.left[j].fetch_sub(1, Ordering::AcqRel) > 1 {
                    continue;
                }
                match next {
                    None => next = Some(j),
                    Some(_) => scope.spawn(move |scope| self.go(scope, j)),
                }
            }
        }
    }
}

impl Stretch {
    /// Does its part of the work.
    pub fn run(&self, commands: &[Command], work: impl Fn(&Command) + Sync) {
        let commands = &commands[self.range.clone()];
        let Some(Flow { before, after }) = &self.flow else { return commands.iter().for_each(work) };
        let run = Run { commands, after, left: before.iter().map(|&n| AtomicUsize::new(n)).collect(), work };
        rayon::scope(|scope| {
            let run = &run;
            for first in (0..before.len()).filter(|&i| before[i] == 0) {
                scope.spawn(move |scope| run.go(scope, first));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::device::Device;
    use crate::tensor::DType;

    /// Whatever depends on another comes after it, and everything is done once, in stretches on several threads too.
    #[test]
    fn what_depends_on_another_comes_after_it() {
        let device = Device::cpu();
        let tensor = |n: usize| device.zeros("x", &[n], DType::F32).unwrap();
        for n in [10, 1 << 16] {
            let tensors: Vec<_> = (0..12).map(|_| tensor(2 * n)).collect();
            let half = |i: usize| tensors[i % 12].view("half", i / 12 % 2 * n, &[n]);
            let mut rng = crate::rng::manual_seed(3);
            let mut commands = Vec::new();
            while commands.len() < 150 {
                let [from, to] = [0; 2].map(|_| half(rng.next_u32() as usize % 24));
                if !Arc::ptr_eq(from.buffer(), to.buffer()) {
                    commands.push(Command::Copy { from, to });
                }
            }
            let stretches = stretches(&commands);
            assert_eq!(stretches.iter().map(|stretch| stretch.range.len()).collect::<Vec<_>>(), [64, 64, 22]);
            assert!(stretches.iter().all(|stretch| stretch.flow.is_some() == (n > 10)));
            let done = Mutex::new(Vec::new());
            let index = |command: &Command| commands.iter().position(|c| std::ptr::eq(c, command)).unwrap();
            crate::device::threads::install(|| {
                for stretch in &stretches {
                    stretch.run(&commands, |command| done.lock().unwrap().push(index(command)));
                }
            });
            let done = done.into_inner().unwrap();
            let place = |i: usize| done.iter().position(|&d| d == i).unwrap();
            assert_eq!(done.len(), commands.len());
            for j in 0..commands.len() {
                for i in (0..j).filter(|&i| conflict(&uses(&commands[i]), &uses(&commands[j]))) {
                    assert!(place(i) < place(j), "{i} {j}");
                }
            }
        }
    }

    /// Views of one buffer that do not overlap do not depend on each other; a chain gains nothing by threads.
    #[test]
    fn a_chain_is_run_by_one_thread() {
        let device = Device::cpu();
        let n = 1 << 16;
        let [x, y, z] = ["x", "y", "z"].map(|name| device.zeros(name, &[2 * n], DType::F32).unwrap());
        let copy = |from: &Tensor, to: &Tensor| Command::Copy { from: from.clone(), to: to.clone() };
        let half = |tensor: &Tensor, which: usize| tensor.view("half", which * n, &[n]);
        let is_flow = |commands: &[Command]| Flow::of(commands).is_some();
        assert!(is_flow(&[copy(&half(&x, 0), &half(&y, 0)), copy(&half(&x, 0), &half(&y, 1))]));
        assert!(!is_flow(&[copy(&x, &y), copy(&y, &z)]));
        assert!(!is_flow(&[copy(&x, &y), copy(&x, &y)]));
        assert!(!is_flow(&[copy(&x, &y), copy(&z, &x)]));
    }
}
