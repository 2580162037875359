//! Where a plan's time goes.

use std::fmt;

use serde::Serialize;

/// The time of every command of a plan, over some runs; made by [`crate::Plan::profile`]. Prints as a table by kernel.
///
/// ```
/// use elman::{Device, Graph, nn};
/// # let device = Device::cpu();
/// # let mut init = nn::Init::new(elman::rng::manual_seed(1));
/// # let layer = nn::Linear::new(&mut init, "layer", 30, 20)?;
/// # let parameters = init.upload(&device)?;
/// # let mut g = Graph::new(&parameters);
/// # let x = g.input(&device.upload("x", &[10, 30], &[0.5; 300])?)?;
/// # layer.forward(&mut g, x)?;
/// let plan = g.finish()?;
/// let profile = plan.profile(10)?;
/// println!("{profile}");
/// assert_eq!(profile.rows()[0].kernel, "matmul");
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Profile {
    pub(crate) device: String,
    pub(crate) commands: Vec<Timed>,
}

/// A command and its times.
#[derive(Clone, Debug)]
pub(crate) struct Timed {
    pub kernel: &'static str,
    /// What it writes.
    pub result: String,
    pub flops: u64,
    pub bytes: u64,
    /// Start in microseconds from the start of the run, and duration, for each run.
    pub times: Vec<(f64, f64)>,
}

/// All dispatches of one kernel in one run of a plan.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ProfileRow {
    /// The kernel's name.
    pub kernel: &'static str,
    /// How often a run dispatches it.
    pub calls: usize,
    /// Microseconds of all calls of a run: the sum of each call's median.
    pub microseconds: f64,
    /// Their part of the whole, 0 to 1.
    pub share: f64,
    /// 10⁹ multiplications and additions of matrix products a second.
    pub gflop_per_second: f64,
    /// 10⁹ bytes a second, each tensor of a dispatch counted once.
    pub gb_per_second: f64,
}

/// An event of Chrome's trace format.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    cat: &'a str,
    ph: &'a str,
    ts: f64,
    dur: f64,
    pid: u32,
    tid: u32,
}

impl Timed {
    fn median(&self) -> f64 {
        let mut durations: Vec<_> = self.times.iter().map(|&(_, duration)| duration).collect();
        durations.sort_by(f64::total_cmp);
        durations.get(durations.len() / 2).copied().unwrap_or(0.0)
    }
}

impl Profile {
    /// By kernel, the longest first.
    pub fn rows(&self) -> Vec<ProfileRow> {
        let total = self.microseconds();
        let mut rows: Vec<ProfileRow> = Vec::new();
        let mut work: Vec<(u64, u64)> = Vec::new();
        for command in &self.commands {
            let at = rows.iter().position(|row| row.kernel == command.kernel).unwrap_or_else(|| {
                let kernel = command.kernel;
                let empty = (0.0, 0.0, 0.0, 0.0);
                let (microseconds, share, gflop_per_second, gb_per_second) = empty;
                rows.push(ProfileRow { kernel, calls: 0, microseconds, share, gflop_per_second, gb_per_second });
                work.push((0, 0));
                rows.len() - 1
            });
            rows[at].calls += 1;
            rows[at].microseconds += command.median();
            work[at] = (work[at].0 + command.flops, work[at].1 + command.bytes);
        }
        for (row, (flops, bytes)) in rows.iter_mut().zip(work) {
            row.share = row.microseconds / total.max(f64::MIN_POSITIVE);
            row.gflop_per_second = flops as f64 / row.microseconds.max(1e-3) / 1e3;
            row.gb_per_second = bytes as f64 / row.microseconds.max(1e-3) / 1e3;
        }
        rows.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));
        rows
    }

    /// The sum of the medians of all commands.
    pub fn microseconds(&self) -> f64 {
        self.commands.iter().map(Timed::median).sum()
    }

    /// The last run as a trace for Chrome's `about:tracing` or Perfetto: JSON.
    pub fn trace(&self) -> String {
        let event = |command: &'_ Timed| {
            let &(ts, dur) = command.times.last()?;
            let event = Event { name: command.kernel, cat: &command.result, ph: "X", ts, dur, pid: 1, tid: 1 };
            serde_json::to_string(&event).ok()
        };
        let events: Vec<_> = self.commands.iter().filter_map(event).collect();
        format!("[{}]\n", events.join(",\n"))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {:.1} us a run", self.device, self.microseconds())?;
        writeln!(f, "{:24} calls        us  share   GFLOP/s      GB/s", "kernel")?;
        for row in self.rows() {
            let ProfileRow { kernel, calls, microseconds, share, gflop_per_second, gb_per_second } = row;
            if microseconds == 0.0 {
                writeln!(f, "{kernel:24} {calls:5} not timed")?;
                continue;
            }
            let percent = 100.0 * share;
            writeln!(
                f,
                "{kernel:24} {calls:5} {microseconds:9.1} {percent:5.1}% {gflop_per_second:9.1} {gb_per_second:9.1}"
            )?;
        }
        Ok(())
    }
}
