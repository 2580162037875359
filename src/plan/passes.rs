//! A plan as a GPU runs it. `no_passes.rs` stands for it in a build without the feature `gpu`.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rayon::prelude::*;

use super::Command;
use crate::device::gpu::{Buffer, Entry, Gpu, Live, Pipeline};
use crate::device::memory::Memory;
use crate::device::{Counters, threads};
use crate::error::Result;
use crate::kernel::Kernel;
use crate::tensor::Tensor;

/// A plan's commands, and, for the device that is open, what it makes of them. It holds no device: one that is to be made anew remembers
/// plans that were run.
pub(super) struct Passes {
    work: Vec<Work>,
    /// What they write.
    written: Vec<Arc<Buffer>>,
    made: Mutex<(u64, Arc<Vec<Step>>)>,
    costs: Mutex<Costs>,
}

/// The seconds of each command: estimates, high ones, until a run was timed.
#[derive(Clone)]
struct Costs {
    seconds: Arc<[f64]>,
    are_measured: bool,
}

/// A command, by buffers that outlive a device.
enum Work {
    Dispatch {
        kernel: &'static Kernel,
        constants: Vec<(&'static str, u32)>,
        params: Vec<u32>,
        tensors: Vec<Place>,
        workgroups: [u32; 3],
    },
    Copy {
        from: Place,
        to: Place,
    },
    Clear {
        place: Place,
    },
}

/// Bytes of a buffer.
struct Place {
    buffer: Arc<Buffer>,
    offset: u64,
    bytes: u64,
}

impl Place {
    fn of(tensor: &Tensor) -> Self {
        let Memory::Gpu(buffer) = tensor.buffer().memory() else { unreachable!("`Recorder` checks the device") };
        Self { buffer: buffer.clone(), offset: 4 * tensor.offset() as u64, bytes: 4 * tensor.len() as u64 }
    }
}

impl Work {
    fn of(command: &Command) -> Self {
        match command {
            Command::Dispatch(d) => Self::Dispatch {
                kernel: d.kernel,
                constants: d.constants.clone(),
                params: d.params.clone(),
                tensors: d.tensors.iter().map(Place::of).collect(),
                workgroups: d.workgroups,
            },
            Command::Copy { from, to } => Self::Copy { from: Place::of(from), to: Place::of(to) },
            Command::Clear { tensor } => Self::Clear { place: Place::of(tensor) },
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Dispatch { kernel, .. } => kernel.name,
            Self::Copy { .. } | Self::Clear { .. } => "transfer",
        }
    }
}

/// Plans that run one after the other: how often each.
pub(super) type Runs = Vec<(Arc<Passes>, usize)>;

/// A command as WebGPU wants it.
enum Step {
    Dispatch(Arc<Pipeline>, wgpu::BindGroup, [u32; 3]),
    Copy { from: (wgpu::Buffer, u64), to: (wgpu::Buffer, u64), bytes: u64 },
    Clear { buffer: wgpu::Buffer, offset: u64, bytes: u64 },
}

impl Step {
    fn is_dispatch(&self) -> bool {
        matches!(self, Self::Dispatch(..))
    }
}

/// Dispatches side by side are a pass, the rest is between passes.
fn encode(
    encoder: &mut wgpu::CommandEncoder,
    steps: &[Step],
    timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
) {
    for group in steps.chunk_by(|a, b| a.is_dispatch() && b.is_dispatch()) {
        match &group[0] {
            Step::Clear { buffer, offset, bytes } => encoder.clear_buffer(buffer, *offset, Some(*bytes)),
            Step::Copy { from, to, bytes } => encoder.copy_buffer_to_buffer(&from.0, from.1, &to.0, to.1, *bytes),
            Step::Dispatch(..) => {
                let timestamp_writes = timestamp_writes.clone();
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                for step in group {
                    let Step::Dispatch(pipeline, bind_group, [x, y, z]) = step else { unreachable!("all are") };
                    pass.set_pipeline(&pipeline.pipeline);
                    pass.set_bind_group(0, bind_group, &[]);
                    pass.dispatch_workgroups(*x, *y, *z);
                }
            }
        }
    }
}

/// What is to be submitted at once, until it takes as long as a submission shall.
struct Submission<'a> {
    live: &'a Live,
    encoder: Option<wgpu::CommandEncoder>,
    seconds: f64,
}

impl<'a> Submission<'a> {
    fn new(live: &'a Live) -> Self {
        Self { live, encoder: None, seconds: 0.0 }
    }

    fn add(&mut self, steps: &[Step], seconds: f64) {
        let encoder = self.encoder.get_or_insert_with(|| {
            self.live.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("plan") })
        });
        encode(encoder, steps, None);
        self.seconds += seconds;
    }

    fn submit(&mut self) -> Result<()> {
        self.seconds = 0.0;
        let Some(encoder) = self.encoder.take() else { return Ok(()) };
        Counters::add(&self.live.counters.submits, 1);
        self.live.submit([encoder.finish()])
    }
}

/// Where steps that take so many seconds each are cut, so that each piece, and the first after what is `before` it, takes as long
/// as the budget at most, or is one step.
fn pieces(seconds: &[f64], before: f64, budget: f64) -> Vec<Range<usize>> {
    let (mut pieces, mut start, mut sum) = (Vec::new(), 0, before);
    for (i, seconds) in seconds.iter().enumerate() {
        if sum > 0.0 && sum + seconds > budget {
            pieces.push(start..i);
            (start, sum) = (i, 0.0);
        }
        sum += seconds;
    }
    pieces.push(start..seconds.len());
    pieces
}

/// How many seconds a command may well take: less than it does only of what is slow in a way that its work does not show.
fn estimate(command: &Command, is_software: bool) -> f64 {
    // Of a workgroup, and of how many at the same time; of memory; of a command.
    let (flops_per_second, at_once, bytes_per_second, least) =
        if is_software { (0.5e9, threads::count() as f64, 1e9, 2e-5) } else { (0.5e9, 64.0, 1e10, 1e-5) };
    least
        + match command {
            Command::Dispatch(d) => {
                let workgroups = d.workgroups.iter().map(|&n| f64::from(n)).product::<f64>().min(at_once).max(1.0);
                let bytes = (d.bytes() + d.work.rereads) as f64 / bytes_per_second;
                d.work.flops as f64 / (flops_per_second * workgroups) + bytes
            }
            Command::Copy { from: tensor, .. } | Command::Clear { tensor } => {
                8.0 * tensor.len() as f64 / bytes_per_second
            }
        }
}

fn estimates<'a>(gpu: &Gpu, commands: impl IntoIterator<Item = &'a Command>) -> Vec<f64> {
    commands.into_iter().map(|command| estimate(command, gpu.is_software())).collect()
}

/// wgpu's alignment of a uniform binding's offset (the default limit, which every adapter meets).
const UNIFORM_ALIGNMENT: usize = 256;

impl Passes {
    /// Compiles the pipelines and makes the bind groups.
    pub fn new(gpu: &Gpu, commands: &[Command]) -> Result<Self> {
        let work: Vec<_> = commands.iter().map(Work::of).collect();
        let made = gpu.attempt(|live| Ok((live.generation, Arc::new(make(live, &work)?))))?;
        let mut written: Vec<_> =
            commands.iter().flat_map(Command::writes).map(|tensor| Place::of(tensor).buffer).collect();
        written.sort_by_key(Arc::as_ptr);
        written.dedup_by_key(|buffer| Arc::as_ptr(buffer));
        let seconds = estimates(gpu, commands).into();
        let costs = Mutex::new(Costs { seconds, are_measured: false });
        Ok(Self { work, written, made: Mutex::new(made), costs })
    }

    fn costs(&self) -> MutexGuard<'_, Costs> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many submissions a run of commands would be, before any was timed.
    pub fn estimated_submits<'a>(gpu: &Gpu, commands: impl IntoIterator<Item = &'a Command>) -> usize {
        pieces(&estimates(gpu, commands), 0.0, gpu.budget().seconds()).len()
    }

    /// How many submissions a run is.
    pub fn submits(&self, gpu: &Gpu) -> usize {
        pieces(&self.costs().seconds, 0.0, gpu.budget().seconds()).len()
    }

    /// Runs it in pieces, of which each is waited for, if it may take long and that is not known better.
    fn sound(&self, steps: &[Step], submission: &mut Submission<'_>) -> Result<bool> {
        let (mut costs, live) = (self.costs(), submission.live);
        let budget = live.budget.seconds();
        // A browser does not wait.
        if costs.are_measured || costs.seconds.iter().sum::<f64>() <= budget || cfg!(target_arch = "wasm32") {
            return Ok(false);
        }
        submission.submit()?;
        live.wait()?;
        // What each kernel takes, as a share of its estimate.
        let mut shares: HashMap<&str, f64> = HashMap::new();
        let (mut seconds, mut start) = (Vec::new(), 0);
        while start < steps.len() {
            let mut sum = 0.0;
            let fits = |seconds: &f64| {
                let fits = sum == 0.0 || sum + seconds <= budget;
                sum += seconds;
                fits
            };
            let rest = self.work[start..].iter().zip(&costs.seconds[start..]);
            let expected = rest.map(|(work, estimate)| estimate * shares.get(work.name()).unwrap_or(&1.0));
            let expected: Vec<_> = expected.take_while(fits).collect();
            let end = start + expected.len();
            let began = Instant::now();
            submission.add(&steps[start..end], 0.0);
            submission.submit()?;
            live.wait()?;
            let took = began.elapsed();
            live.counters.longest_submission.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
            let share = took.as_secs_f64() / expected.iter().sum::<f64>();
            seconds.extend(expected.iter().map(|seconds| seconds * share));
            let kernels: HashSet<_> = self.work[start..end].iter().map(Work::name).collect();
            for kernel in kernels {
                // So that a piece has at most twice the work of the one before it.
                *shares.entry(kernel).or_insert(1.0) *= share.max(0.5);
            }
            start = end;
        }
        *costs = Costs { seconds: seconds.into(), are_measured: true };
        Ok(true)
    }

    /// What this device runs, made anew if it is another than before.
    fn on(&self, live: &Live) -> Result<Arc<Vec<Step>>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.0 != live.generation {
            *made = (live.generation, Arc::new(make(live, &self.work)?));
        }
        Ok(made.1.clone())
    }

    /// Submits plans, at once if that does not take long.
    pub fn submit(gpu: &Gpu, runs: &Runs) -> Result<()> {
        let again = || {
            let runs = runs.clone();
            Entry::new(move |live| submit(live, &runs))
        };
        gpu.perform(|live| submit(live, runs), again)
    }

    /// A pass of its own for each dispatch, between two timestamps; copies and clears have none.
    pub fn run_with_timestamps(self: &Arc<Self>, gpu: &Gpu) -> Result<Vec<Option<(f64, f64)>>> {
        let again = || {
            let runs = vec![(self.clone(), 1)];
            Entry::new(move |live| submit(live, &runs))
        };
        gpu.perform(|live| self.time(live), again)
    }

    fn time(self: &Arc<Self>, gpu: &Live) -> Result<Vec<Option<(f64, f64)>>> {
        self.written.iter().for_each(|buffer| buffer.change());
        let dispatches = self.work.iter().filter(|work| matches!(work, Work::Dispatch { .. })).count() as u32;
        if dispatches == 0 {
            submit(gpu, &vec![(self.clone(), 1)])?;
            return Ok(vec![None; self.work.len()]);
        }
        let timestamps = gpu.timestamps(2 * dispatches)?;
        let encoder = || gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("profile") });
        let (mut commands, mut next, mut ticks) = (encoder(), 0, Vec::new());
        let (budget, costs, mut seconds) = (gpu.budget.seconds(), self.costs().clone(), 0.0);
        for (step, cost) in self.on(gpu)?.iter().zip(&*costs.seconds) {
            if !step.is_dispatch() {
                encode(&mut commands, std::slice::from_ref(step), None);
                continue;
            }
            if next == timestamps.count || (next > 0 && seconds + cost > budget) {
                let full = std::mem::replace(&mut commands, encoder());
                ticks.extend(pollster::block_on(gpu.read_timestamps(full, &timestamps, next))?);
                (next, seconds) = (0, 0.0);
            }
            let writes = wgpu::ComputePassTimestampWrites {
                query_set: &timestamps.queries,
                beginning_of_pass_write_index: Some(next),
                end_of_pass_write_index: Some(next + 1),
            };
            next += 2;
            seconds += cost;
            encode(&mut commands, std::slice::from_ref(step), Some(writes));
        }
        ticks.extend(pollster::block_on(gpu.read_timestamps(commands, &timestamps, next))?);
        let first = ticks.first().copied().unwrap_or(0);
        let microseconds = |tick: u64| tick.wrapping_sub(first) as f64 * timestamps.nanoseconds_per_tick / 1e3;
        let mut pairs = ticks.chunks_exact(2).map(|pair| {
            let (start, end) = (microseconds(pair[0]), microseconds(pair[1]));
            (start, (end - start).max(0.0))
        });
        let of = |work: &Work| match work {
            Work::Dispatch { .. } => pairs.next(),
            Work::Copy { .. } | Work::Clear { .. } => None,
        };
        Ok(self.work.iter().map(of).collect())
    }
}

fn submit(live: &Live, runs: &Runs) -> Result<()> {
    let mut submission = Submission::new(live);
    for (plan, times) in runs {
        plan.written.iter().for_each(|buffer| buffer.change());
        let steps = plan.on(live)?;
        for _ in 0..*times {
            if plan.sound(&steps, &mut submission)? {
                continue;
            }
            let Costs { seconds, .. } = plan.costs().clone();
            for (i, piece) in pieces(&seconds, submission.seconds, live.budget.seconds()).into_iter().enumerate() {
                if i > 0 {
                    submission.submit()?;
                }
                submission.add(&steps[piece.clone()], seconds[piece].iter().sum());
            }
        }
    }
    submission.submit()
}

/// Compiles the pipelines and makes the bind groups.
fn make(live: &Live, all: &[Work]) -> Result<Vec<Step>> {
    compile(live, all);
    let uniforms = upload_params(live, all)?;
    let mut uniform_offset = 0;
    let mut steps = Vec::new();
    for work in all {
        match work {
            Work::Dispatch { kernel, constants, params, tensors, workgroups } => {
                let pipeline = live.pipeline(kernel, constants)?;
                let words = params.len();
                let params = binding(&uniforms, uniform_offset as u64, 4 * words as u64);
                uniform_offset += (4 * words).next_multiple_of(UNIFORM_ALIGNMENT);
                let buffers: Vec<_> = tensors.iter().map(|place| place.buffer.now()).collect();
                let tensors = tensors.iter().zip(&buffers);
                let tensors = tensors.map(|(place, buffer)| binding(buffer, place.offset, place.bytes));
                let entries: Vec<_> = std::iter::once(params)
                    .chain(tensors)
                    .zip(0..)
                    .map(|(buffer, binding)| wgpu::BindGroupEntry {
                        binding,
                        resource: wgpu::BindingResource::Buffer(buffer),
                    })
                    .collect();
                let (label, layout) = (kernel.name, &pipeline.layout);
                let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
                let bind_group = live.create(label, 0, |device| device.create_bind_group(&descriptor))?;
                Counters::add(&live.counters.bind_groups, 1);
                steps.push(Step::Dispatch(pipeline, bind_group, *workgroups));
            }
            Work::Copy { from, to } => {
                let bytes = from.bytes;
                steps.push(Step::Copy {
                    from: (from.buffer.now(), from.offset),
                    to: (to.buffer.now(), to.offset),
                    bytes,
                });
            }
            Work::Clear { place } => {
                steps.push(Step::Clear { buffer: place.buffer.now(), offset: place.offset, bytes: place.bytes });
            }
        }
    }
    live.check()?;
    live.keep_pipelines();
    Ok(steps)
}

/// Compiles what a plan needs, on all threads where there are threads: a driver takes a tenth of a second to seconds for
/// one pipeline. An error is found again, and reported, where the pipeline is used.
fn compile(gpu: &Live, all: &[Work]) {
    if cfg!(target_arch = "wasm32") {
        return;
    }
    let mut wanted: Vec<(&'static Kernel, &[(&'static str, u32)])> = Vec::new();
    for work in all {
        if let Work::Dispatch { kernel, constants, .. } = work
            && !wanted.iter().any(|(other, others)| std::ptr::eq(*other, *kernel) && others == constants)
        {
            wanted.push((kernel, constants));
        }
    }
    threads::install(|| {
        wanted.into_par_iter().for_each(|(kernel, constants)| {
            let _ = gpu.pipeline(kernel, constants);
        });
    });
}

/// All parameter structs of a plan in one uniform buffer, in the order of the dispatches.
fn upload_params(gpu: &Live, all: &[Work]) -> Result<wgpu::Buffer> {
    let mut bytes = Vec::new();
    for work in all {
        if let Work::Dispatch { params, .. } = work {
            bytes.extend_from_slice(bytemuck::cast_slice(params));
            bytes.resize(bytes.len().next_multiple_of(UNIFORM_ALIGNMENT), 0);
        }
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let buffer = gpu.create_buffer("params", bytes.len().max(UNIFORM_ALIGNMENT) as u64, usage)?;
    Counters::add(&gpu.counters.buffers, 1);
    Counters::add(&gpu.counters.bytes, buffer.size());
    gpu.write(&buffer, 0, &bytes)?;
    Ok(buffer)
}

fn binding(buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset, size: std::num::NonZero::new(bytes) }
}
