//! Whose turn it is: plans and transfers of a CPU device run at the same time where they share no written buffer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::memory::Buffer;

/// The buffers that a piece of work uses, by address and in its order, and whether it writes them.
#[derive(Clone)]
pub(crate) struct Footprint(Arc<[(usize, bool)]>);

impl Footprint {
    /// Of buffers that outlive it, each with whether it is written.
    pub fn new<'a>(uses: impl IntoIterator<Item = (&'a Buffer, bool)>) -> Self {
        let mut all = BTreeMap::new();
        for (buffer, is_written) in uses {
            *all.entry(std::ptr::from_ref(buffer) as usize).or_insert(false) |= is_written;
        }
        Self(all.into_iter().collect())
    }

    /// Whether one writes what the other uses.
    fn conflicts_with(&self, other: &Self) -> bool {
        let (few, many) = if self.0.len() < other.0.len() { (&self.0, &other.0) } else { (&other.0, &self.0) };
        let conflicts = |&(buffer, is_written): &(usize, bool)| {
            let at = many.binary_search_by_key(&buffer, |&(buffer, _)| buffer);
            at.is_ok_and(|at| is_written || many[at].1)
        };
        few.iter().any(conflicts)
    }
}

/// What a piece of work uses: the footprints of up to two plans.
pub(crate) type Uses<'a> = [Option<&'a Footprint>; 2];

/// Work that runs or waits, in the order in which it came.
#[derive(Default)]
struct Queue {
    requests: VecDeque<(u64, [Option<Footprint>; 2])>,
    next: u64,
    waiting: usize,
}

impl Queue {
    fn enter(&mut self, uses: Uses<'_>) -> u64 {
        self.next += 1;
        self.requests.push_back((self.next, uses.map(Option::<&_>::cloned)));
        self.next
    }

    fn position(&self, ticket: u64) -> usize {
        self.requests.binary_search_by_key(&ticket, |&(ticket, _)| ticket).expect("work leaves once")
    }

    /// Whether nothing that came earlier, running or waiting, is in its way: so whoever waits is not overtaken for good, and the
    /// earliest waits for nobody but those that run.
    fn may_start(&self, ticket: u64) -> bool {
        let at = self.position(ticket);
        let mut earlier = self.requests.range(..at).flat_map(|(_, uses)| uses.iter().flatten());
        let mine = &self.requests[at].1;
        !earlier.any(|theirs| mine.iter().flatten().any(|mine| mine.conflicts_with(theirs)))
    }

    fn leave(&mut self, ticket: u64) {
        self.requests.remove(self.position(ticket));
    }
}

/// The order of the work on one CPU device.
#[derive(Default)]
pub(crate) struct Turns {
    queue: Mutex<Queue>,
    left: Condvar,
}

/// While it lives, nothing else writes what its work uses, nor uses what it writes.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Turns {
    /// Waits for the turn of work that uses this.
    pub fn take(&self, uses: Uses<'_>) -> Turn<'_> {
        let mut queue = self.lock();
        let ticket = queue.enter(uses);
        while !queue.may_start(ticket) {
            queue.waiting += 1;
            queue = self.left.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiting -= 1;
        }
        Turn { turns: self, ticket }
    }

    /// How much work waits.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.turns.lock();
        queue.leave(self.ticket);
        let is_awaited = queue.waiting > 0;
        drop(queue);
        if is_awaited {
            self.turns.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footprint(uses: &[(usize, bool)]) -> Footprint {
        Footprint(uses.into())
    }

    #[test]
    fn who_writes_is_alone() {
        let (read, write) = (footprint(&[(1, false), (2, false), (9, true)]), footprint(&[(2, true), (3, false)]));
        let (apart, reader) = (footprint(&[(4, true)]), footprint(&[(1, false), (3, false)]));
        for (a, b, conflict) in
            [(&read, &write, true), (&write, &write, true), (&read, &apart, false), (&read, &reader, false)]
        {
            assert_eq!((a.conflicts_with(b), b.conflicts_with(a)), (conflict, conflict));
        }
    }

    #[test]
    fn the_first_to_come_is_the_first_to_start() {
        let (read, write, apart) = (footprint(&[(1, false)]), footprint(&[(1, true)]), footprint(&[(2, true)]));
        let mut queue = Queue::default();
        let [reader, writer, late_reader, other] =
            [[None, Some(&read)], [Some(&write), None], [Some(&read), None], [None, Some(&apart)]]
                .map(|uses| queue.enter(uses));
        let both = queue.enter([Some(&apart), Some(&read)]);
        let may_start = |queue: &Queue, tickets: &[u64]| -> Vec<bool> {
            tickets.iter().map(|&ticket| queue.may_start(ticket)).collect()
        };
        // A reader that comes after a waiting writer does not overtake it.
        assert_eq!(may_start(&queue, &[reader, writer, late_reader, other, both]), [true, false, false, true, false]);
        queue.leave(reader);
        assert_eq!(may_start(&queue, &[writer, late_reader, other, both]), [true, false, true, false]);
        queue.leave(writer);
        assert_eq!(may_start(&queue, &[late_reader, other, both]), [true, true, false]);
        queue.leave(other);
        assert_eq!(may_start(&queue, &[late_reader, both]), [true, true]);
    }
}
