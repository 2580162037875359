//! Going on where a device is lost: what its tensors held at one time, what has been done since, and doing it again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{Buffer, Gpu, Live, adapters, lock};
use crate::device::Counters;
use crate::error::{Error, Result};

/// The least time between two snapshots.
const LEAST_BETWEEN: Duration = Duration::from_secs(1);

/// How many times as long as it takes there is between a snapshot and the next: it is a twentieth of the time.
const TIMES_AS_LONG: u32 = 19;

/// What the host has written since a snapshot, at most: a new one is taken then.
const MOST_WRITTEN: usize = 256 << 20;

/// How many snapshots may fail, one after the other, for want of memory, say: what is kept grows meanwhile.
const MOST_FAILED: usize = 4;

/// How much is restored before the host waits for the device, which keeps a copy meanwhile.
const MOST_QUEUED: u64 = 256 << 20;

/// How often an adapter is asked for; a driver that resets a device may need a while. The pause doubles each time.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// What a device can be made anew from.
#[derive(Default)]
pub(super) struct Recovery {
    is_on: AtomicBool,
    /// Devices that were opened after the first: each has a number of its own, whether or not it lived to be used.
    opened: AtomicU64,
    journal: Mutex<Journal>,
    /// How many devices made anew are lost once more before they are used.
    #[cfg(test)]
    pub(super) lose_again: std::sync::atomic::AtomicU32,
}

/// What has been done since the last snapshot, in order.
#[derive(Default)]
struct Journal {
    /// How many times more.
    recoveries: u32,
    entries: Vec<Entry>,
    written: usize,
    /// Snapshots that failed since the last, on a device that is there.
    failed: usize,
    /// When the last snapshot was taken, and how long that took.
    snapshot: Option<(Instant, Duration)>,
}

/// Something done to the values of tensors, to be done again.
pub(crate) struct Entry {
    again: Box<Again>,
    written: usize,
}

type Again = dyn Fn(&Arc<Live>) -> Result<()> + Send + Sync;

impl Entry {
    pub fn new(again: impl Fn(&Arc<Live>) -> Result<()> + Send + Sync + 'static) -> Self {
        Self { again: Box::new(again), written: 0 }
    }

    /// A write of the host; nobody needs it when the buffer is gone.
    pub fn write(buffer: &Arc<Buffer>, offset: u64, bytes: &[u8]) -> Self {
        let (buffer, bytes) = (Arc::downgrade(buffer), bytes.to_vec());
        let written = bytes.len();
        let again = move |live: &Arc<Live>| match buffer.upgrade() {
            Some(buffer) => live.write(&buffer.now(), offset, &bytes),
            None => Ok(()),
        };
        Self { written, ..Self::new(again) }
    }
}

/// What a buffer held when the last snapshot was taken.
#[derive(Default)]
pub(super) struct Kept {
    has_changed: AtomicBool,
    /// None: zeros.
    values: Mutex<Option<Vec<u8>>>,
}

impl Buffer {
    /// Something is about to be written to it.
    pub fn change(&self) {
        self.kept.has_changed.store(true, Ordering::Relaxed);
    }
}

/// All buffers of tensors.
#[derive(Default)]
pub(super) struct Buffers(Vec<Weak<Buffer>>);

impl Buffers {
    pub fn add(&mut self, buffer: &Arc<Buffer>) {
        // Looks for those that are gone where there is no place for one more: a few times in all.
        if self.0.len() == self.0.capacity() {
            self.0.retain(|buffer| buffer.strong_count() > 0);
            self.0.reserve(self.0.len().max(64));
        }
        self.0.push(Arc::downgrade(buffer));
    }

    fn iter(&self) -> impl Iterator<Item = Arc<Buffer>> {
        self.0.iter().filter_map(Weak::upgrade)
    }
}

impl Journal {
    fn push(&mut self, entry: Entry) {
        self.written += entry.written;
        self.entries.push(entry);
    }

    fn wants_snapshot(&self) -> bool {
        let is_old = |(when, took): (Instant, Duration)| when.elapsed() > LEAST_BETWEEN.max(TIMES_AS_LONG * took);
        self.written > (1 + self.failed) * MOST_WRITTEN || self.snapshot.is_none_or(is_old)
    }
}

impl Gpu {
    /// From here on, a lost device is made anew so many times.
    pub fn set_recoveries(&self, recoveries: u32) -> Result<()> {
        let mut journal = lock(&self.recovery.journal);
        journal.recoveries = recoveries;
        if recoveries == 0 {
            self.stop(&mut journal);
            return Ok(());
        }
        if !self.recovery.is_on.swap(true, Ordering::Relaxed) {
            lock(&self.buffers).iter().for_each(|buffer| buffer.change());
            let taken = self.take_snapshot(&mut journal, &self.live());
            return taken.inspect_err(|_| self.stop(&mut journal));
        }
        Ok(())
    }

    fn stop(&self, journal: &mut Journal) {
        self.recovery.is_on.store(false, Ordering::Relaxed);
        *journal = Journal::default();
        lock(&self.buffers).iter().for_each(|buffer| *lock(&buffer.kept.values) = None);
    }

    fn is_on(&self) -> bool {
        self.recovery.is_on.load(Ordering::Relaxed)
    }

    /// Takes a snapshot now, if any are taken. What only earlier runs needed is let go.
    pub fn snapshot(&self) -> Result<()> {
        if !self.is_on() {
            return Ok(());
        }
        let mut journal = lock(&self.recovery.journal);
        self.repeat(&mut journal, |journal, live| self.take_snapshot(journal, live))
    }

    /// Whether memory was let go that only recoveries would need.
    pub fn lets_go(&self) -> bool {
        // What was let go is free when the device has noticed it.
        self.is_on() && self.snapshot().is_ok() && self.wait().is_ok()
    }

    /// Does what changes no values; again where the device was lost.
    pub fn attempt<T>(&self, work: impl Fn(&Arc<Live>) -> Result<T>) -> Result<T> {
        loop {
            let live = self.live();
            match work(&live) {
                Err(error) => self.go_on(&live, error)?,
                done => return done,
            }
        }
    }

    /// Does what changes values, having said so to each buffer; again where the device was lost, now or later, as `entry` says.
    pub fn perform<T>(&self, work: impl Fn(&Arc<Live>) -> Result<T>, entry: impl FnOnce() -> Entry) -> Result<T> {
        if !self.is_on() {
            return self.attempt(work);
        }
        let mut journal = lock(&self.recovery.journal);
        let done = self.repeat(&mut journal, |_, live| work(live))?;
        if self.is_on() {
            journal.push(entry());
            if journal.wants_snapshot() {
                match self.repeat(&mut journal, |journal, live| self.take_snapshot(journal, live)) {
                    Err(error @ Error::DeviceLost(_)) => return Err(error),
                    Err(_) if journal.failed == MOST_FAILED => self.stop(&mut journal),
                    // There is no memory for it, say: the next one comes later.
                    Err(_) => {
                        journal.failed += 1;
                        journal.snapshot = Some((Instant::now(), Duration::ZERO));
                    }
                    Ok(()) => {}
                }
            }
        }
        Ok(done)
    }

    /// Whether a call that failed on this device is to be repeated, on one made anew; otherwise it is this error's.
    pub(super) fn go_on(&self, live: &Live, error: Error) -> Result<()> {
        if !self.is_on() && live.generation == self.live().generation {
            return Err(error);
        }
        self.recover(&mut lock(&self.recovery.journal), live, error)
    }

    fn repeat<T>(
        &self,
        journal: &mut Journal,
        mut work: impl FnMut(&mut Journal, &Arc<Live>) -> Result<T>,
    ) -> Result<T> {
        loop {
            let live = self.live();
            match work(journal, &live) {
                Err(error) => self.recover(journal, &live, error)?,
                done => return done,
            }
        }
    }

    /// Reads what has changed since the last snapshot.
    fn take_snapshot(&self, journal: &mut Journal, live: &Live) -> Result<()> {
        live.wait()?;
        let start = Instant::now();
        let has_changed = |buffer: &Arc<Buffer>| buffer.kept.has_changed.load(Ordering::Relaxed);
        let changed: Vec<_> = lock(&self.buffers).iter().filter(has_changed).collect();
        let read = |buffer: &Arc<Buffer>| live.read_bit_by_bit(&buffer.now(), buffer.bytes);
        let values = changed.iter().map(read).collect::<Result<Vec<_>>>()?;
        // All together: what has been read is of no use if the device is lost before the rest is.
        for (buffer, values) in changed.iter().zip(values) {
            *lock(&buffer.kept.values) = Some(values);
            buffer.kept.has_changed.store(false, Ordering::Relaxed);
        }
        (journal.entries, journal.written, journal.failed) = (Vec::new(), 0, 0);
        journal.snapshot = Some((Instant::now(), start.elapsed()));
        Ok(())
    }

    /// Makes a lost device anew, unless somebody has done so already.
    fn recover(&self, journal: &mut Journal, live: &Live, error: Error) -> Result<()> {
        if live.generation != self.live().generation {
            return Ok(());
        }
        let Some(reason) = live.lost() else { return Err(error) };
        while journal.recoveries > 0 {
            journal.recoveries -= 1;
            match self.make_anew(journal) {
                Ok(()) => {
                    Counters::add(&self.counters.recoveries, 1);
                    if journal.recoveries == 0 {
                        self.stop(journal);
                    }
                    return Ok(());
                }
                Err(Error::DeviceLost(_)) => {}
                Err(error) => return Err(Error::DeviceLost(format!("{reason}; and it cannot be made anew: {error}"))),
            }
        }
        Err(Error::DeviceLost(reason))
    }

    /// Opens the adapter again, puts every buffer's values back, and does again what has been done since.
    fn make_anew(&self, journal: &Journal) -> Result<()> {
        let live = Arc::new(self.open_again(1 + self.recovery.opened.fetch_add(1, Ordering::Relaxed))?);
        let buffers = lock(&self.buffers);
        let mut queued = 0;
        for buffer in buffers.iter() {
            let now = live.create_tensor(&buffer.name, buffer.bytes)?;
            if let Some(values) = &*lock(&buffer.kept.values) {
                live.write(&now, 0, values)?;
                queued += buffer.bytes;
            }
            *lock(&buffer.now) = now;
            if queued > MOST_QUEUED {
                live.queue.submit([]);
                live.wait()?;
                queued = 0;
            }
        }
        journal.entries.iter().try_for_each(|entry| (entry.again)(&live))?;
        #[cfg(test)]
        if self.recovery.lose_again.load(Ordering::Relaxed) > 0 {
            self.recovery.lose_again.fetch_sub(1, Ordering::Relaxed);
            live.device.destroy();
        }
        live.wait()?;
        // From here on the others see it.
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
        Ok(())
    }

    fn open_again(&self, generation: u64) -> Result<Live> {
        let open = || {
            let found =
                pollster::block_on(adapters(false)).into_iter().find(|(_, found)| found.info == self.adapter.info);
            let (adapter, _) = found.ok_or_else(|| Error::Gpu(format!("{} is gone", self.adapter.name())))?;
            let of_all = (generation, self.counters.clone(), self.budget.clone());
            let opening = Live::open(&adapter, self.adapter.clone(), self.without, of_all);
            let live = pollster::block_on(opening)?;
            if live.device.features() != self.features {
                return Err(Error::Gpu(format!("{} has other features than before", self.adapter.name())));
            }
            Ok(live)
        };
        let mut opened = open();
        for tries in 0..TRIES {
            if opened.is_ok() {
                break;
            }
            std::thread::sleep(PAUSE * 2u32.pow(tries));
            opened = open();
        }
        opened
    }
}
