//! The threads of the CPU twins.

use std::cell::Cell;
use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Device;
use super::turns::Uses;

/// A pool of their own, so that no task of a user's is taken up in the midst of a twin; none where there are no threads.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let build = || ThreadPoolBuilder::new().thread_name(|i| format!("elman twin {i}")).build().ok();
    POOL.get_or_init(build).as_ref()
}

/// How many there are.
pub(crate) fn count() -> usize {
    pool().map_or(1, ThreadPool::current_num_threads)
}

/// Runs work on these threads, and waits. A task of rayon's waits in a thread of its own: while it waits itself, it takes up other
/// tasks, which may wait for this one's turn to end.
pub(crate) fn install(work: impl FnOnce() + Send) {
    match pool() {
        None => work(),
        Some(pool) if rayon::current_thread_index().is_none() => pool.install(work),
        Some(pool) => std::thread::scope(|scope| {
            let ended = scope.spawn(|| pool.install(work)).join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }),
    }
}

thread_local!(static ALONE: Cell<bool> = const { Cell::new(false) });

/// Whether this thread runs twins that are to keep to it: waking another would take longer than they do.
pub(crate) fn is_alone() -> bool {
    ALONE.get()
}

/// How many a twin of this thread has.
pub(crate) fn at_hand() -> usize {
    if is_alone() { 1 } else { rayon::current_num_threads() }
}

/// Runs work on this thread alone.
fn alone(work: impl FnOnce()) {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    work();
}

impl Device {
    /// Runs twins that use this when it is their turn; `is_short` if this thread shall do it by itself.
    pub(crate) fn run_twins(&self, uses: Uses<'_>, is_short: bool, work: impl FnOnce() + Send) {
        let _turn = self.turn(uses);
        if is_short { alone(work) } else { install(work) }
    }
}
