//! The threads of the CPU twins.

use std::sync::OnceLock;
use std::sync::mpsc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Device;

/// A pool of their own, so that no task of a user's is taken up in the midst of a twin; none where there are no threads.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let build = || ThreadPoolBuilder::new().thread_name(|i| format!("elman twin {i}")).build().ok();
    POOL.get_or_init(build).as_ref()
}

/// How many there are.
pub(super) fn count() -> usize {
    pool().map_or(1, ThreadPool::current_num_threads)
}

impl Device {
    /// Runs twins while the device's lock is held, and waits: also from a task of rayon's, which takes up no other meanwhile, since
    /// that may want the lock.
    pub(crate) fn run_twins(&self, work: impl FnOnce() + Send) {
        let Some(pool) = pool() else {
            let _guard = self.lock();
            return work();
        };
        pool.in_place_scope(|scope| {
            let _guard = self.lock();
            let (running, ended) = mpsc::channel::<()>();
            scope.spawn(move |_| {
                // Ends with the work, be it by a panic.
                let _running = running;
                work();
            });
            let _ = ended.recv();
        });
    }
}
