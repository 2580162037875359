//! Memory that intermediate values share: those of which the last command comes before the first one of another.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Command;
use crate::device::memory::{Buffer, Keeps};
use crate::error::Result;
use crate::kernel::Access;
use crate::tensor::{DType, Tensor};

/// Smaller ones have memory of their own.
const LEAST_BYTES: u64 = 1 << 16;

/// Of a tensor, what may have to be set to zero to let it share memory: an eighth.
const MOST_CLEARED: usize = 8;

/// Elements of a buffer, as ranges in order that do not touch each other.
#[derive(Clone, Debug, Default)]
struct Elements(Vec<Range<usize>>);

impl Elements {
    fn add(&mut self, mut range: Range<usize>) {
        let touches = |other: &Range<usize>| other.start <= range.end && range.start <= other.end;
        let (joined, mut others): (Vec<_>, Vec<_>) = self.0.drain(..).partition(touches);
        for other in joined {
            range = range.start.min(other.start)..range.end.max(other.end);
        }
        others.push(range);
        others.sort_by_key(|range| range.start);
        self.0 = others;
    }

    /// What of a range is not among them.
    fn missing(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let (mut missing, mut start) = (Vec::new(), range.start);
        for have in self.0.iter().filter(|have| have.end > range.start && have.start < range.end) {
            if have.start > start {
                missing.push(start..have.start);
            }
            start = start.max(have.end);
        }
        if start < range.end {
            missing.push(start..range.end);
        }
        missing
    }
}

/// A buffer that only the commands of a plan know, from the first of them that uses it to the last.
struct Life<'a> {
    tensor: &'a Tensor,
    commands: (usize, usize),
    /// Handles that commands have.
    held: usize,
    /// What the commands so far have given values.
    made: Elements,
    /// What they may read although none of them has: it has to be 0.
    zeros: Elements,
}

impl Life<'_> {
    fn may_share(&self) -> bool {
        let buffer = self.tensor.buffer();
        let cleared: usize = self.zeros.0.iter().map(Range::len).sum();
        buffer.may_share()
            && buffer.bytes() >= LEAST_BYTES
            && Arc::strong_count(buffer) == self.held
            && cleared * MOST_CLEARED <= buffer.len()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.commands.0 <= other.commands.1 && other.commands.0 <= self.commands.1
    }
}

/// Which buffers are to share memory.
pub(super) struct Sharing<'a> {
    /// Each at least two, the largest first.
    groups: Vec<Vec<Life<'a>>>,
}

impl<'a> Sharing<'a> {
    pub fn of(commands: impl Iterator<Item = &'a Command>) -> Self {
        let mut lives: Vec<Life<'a>> = Vec::new();
        let mut places = HashMap::new();
        for (i, command) in commands.enumerate() {
            // What a command reads, or may read, comes before what it has made when it is done.
            for (access, tensor) in command.bound() {
                let place = *places.entry(Arc::as_ptr(tensor.buffer())).or_insert(lives.len());
                if place == lives.len() {
                    let (made, zeros) = (Elements::default(), Elements::default());
                    lives.push(Life { tensor, commands: (i, i), held: 0, made, zeros });
                }
                let life = &mut lives[place];
                life.held += 1;
                life.commands.1 = i;
                if let Command::Dispatch(d) = command {
                    let overwritten = d.overwrites.iter().filter(|&&(binding, _)| d.tensors[binding].is(tensor));
                    overwritten.for_each(|(_, range)| life.made.add(range.clone()));
                }
                if matches!(command, Command::Dispatch(_)) || access == Access::Read {
                    for range in life.made.missing(tensor.elements()) {
                        life.zeros.add(range);
                    }
                }
                life.made.add(tensor.elements());
            }
        }
        lives.retain(Life::may_share);
        lives.sort_by_key(|life| std::cmp::Reverse(life.tensor.buffer().bytes()));
        let mut groups: Vec<Vec<Life<'a>>> = Vec::new();
        for life in lives {
            match groups.iter_mut().find(|group| !group.iter().any(|other| other.overlaps(&life))) {
                Some(group) => group.push(life),
                None => groups.push(vec![life]),
            }
        }
        groups.retain(|group| group.len() > 1);
        debug_assert!(
            groups.iter().flatten().all(|life| life.tensor.dtype() == DType::F32),
            "`Recorder::zeros` makes no others"
        );
        Self { groups }
    }

    /// Bytes that it saves.
    pub fn saved(&self) -> u64 {
        self.groups.iter().flat_map(|group| &group[1..]).map(|life| life.tensor.buffer().bytes()).sum()
    }

    fn decide(self) -> Result<Decision> {
        let (mut shared, mut clears) = (HashMap::new(), Vec::new());
        for group in self.groups {
            let largest = group[0].tensor.buffer();
            let buffer = Buffer::new(&largest.device, largest.name(), largest.len(), largest.dtype)?;
            let buffer = Arc::new(buffer.that_keeps(Keeps::Shared));
            for Life { tensor, commands, zeros, .. } in group {
                for range in zeros.0 {
                    clears.push((commands.0, tensor.elsewhere(&buffer, range)));
                }
                shared.insert(Arc::as_ptr(tensor.buffer()), buffer.clone());
            }
        }
        clears.sort_by_key(|&(command, _)| command);
        Ok(Decision { shared, clears })
    }
}

struct Decision {
    /// For each buffer the one whose memory it gets.
    shared: HashMap<*const Buffer, Arc<Buffer>>,
    /// What is to be cleared, and before which command.
    clears: Vec<(usize, Tensor)>,
}

/// The same commands, of tensors that share memory where they can.
pub(super) fn share(commands: Vec<Command>) -> Result<Vec<Command>> {
    let Decision { shared, clears } = Sharing::of(commands.iter()).decide()?;
    if shared.is_empty() {
        return Ok(commands);
    }
    let mut clears = clears.into_iter().peekable();
    let mut all = Vec::with_capacity(commands.len() + clears.len());
    for (i, mut command) in commands.into_iter().enumerate() {
        while let Some((_, tensor)) = clears.next_if(|&(before, _)| before == i) {
            all.push(Command::Clear { tensor });
        }
        for tensor in command.tensors_mut() {
            if let Some(buffer) = shared.get(&Arc::as_ptr(tensor.buffer())) {
                *tensor = tensor.elsewhere(buffer, tensor.elements());
            }
        }
        all.push(command);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_joined_and_missed() {
        let mut elements = Elements::default();
        for range in [10..20, 30..40, 0..5, 20..25] {
            elements.add(range);
        }
        assert_eq!(elements.0, [0..5, 10..25, 30..40]);
        assert_eq!(elements.missing(0..50), [5..10, 25..30, 40..50]);
        assert_eq!(elements.missing(12..24), []);
        elements.add(4..31);
        elements.add(50..60);
        assert_eq!(elements.0, [0..40, 50..60]);
    }
}
