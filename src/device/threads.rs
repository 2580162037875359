//! The threads of the CPU twins.

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

impl Device {
    /// Runs twins that use this when it is their turn.
    pub(crate) fn run_twins(&self, uses: Uses<'_>, work: impl FnOnce() + Send) {
        let _turn = self.turn(uses);
        install(work);
    }
}
