//! A plan as a GPU runs it. `no_passes.rs` stands for it in a build without the feature `gpu`.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::Command;
use crate::device::gpu::{Buffer, Entry, Gpu, Live, Pipeline};
use crate::device::memory::Memory;
use crate::device::{Counters, threads};
use crate::error::Result;
use crate::kernel::Kernel;
use crate::tensor::Tensor;

/// A plan's commands, and, for the device that is open, what it makes of them.
pub(super) struct Passes {
    commands: Arc<[Command]>,
    /// What they write.
    written: Vec<Arc<Buffer>>,
    made: Mutex<(u64, Arc<Vec<Pass>>)>,
}

/// Plans that run one after the other: how often each.
pub(super) type Runs = Vec<(Arc<Passes>, usize)>;

/// A run of commands as WebGPU wants them: dispatches inside a compute pass, the rest between passes.
enum Pass {
    Compute(Vec<PreparedDispatch>),
    Copy { from: (wgpu::Buffer, u64), to: (wgpu::Buffer, u64), bytes: u64 },
    Clear { buffer: wgpu::Buffer, offset: u64, bytes: u64 },
}

type PreparedDispatch = (Arc<Pipeline>, wgpu::BindGroup, [u32; 3]);

impl Pass {
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        match self {
            Self::Compute(dispatches) => encode_dispatches(encoder, dispatches, None),
            Self::Clear { buffer, offset, bytes } => encoder.clear_buffer(buffer, *offset, Some(*bytes)),
            Self::Copy { from, to, bytes } => encoder.copy_buffer_to_buffer(&from.0, from.1, &to.0, to.1, *bytes),
        }
    }
}

fn encode_dispatches(
    encoder: &mut wgpu::CommandEncoder,
    dispatches: &[PreparedDispatch],
    timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
    for (pipeline, bind_group, [x, y, z]) in dispatches {
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, bind_group, &[]);
        pass.dispatch_workgroups(*x, *y, *z);
    }
}

/// wgpu's alignment of a uniform binding's offset (the default limit, which every adapter meets).
const UNIFORM_ALIGNMENT: usize = 256;

impl Passes {
    /// Compiles the pipelines and makes the bind groups.
    pub fn new(gpu: &Gpu, commands: Arc<[Command]>) -> Result<Self> {
        let made = gpu.attempt(|live| Ok((live.generation, Arc::new(make(live, &commands)?))))?;
        let mut written: Vec<_> =
            commands.iter().flat_map(Command::writes).map(|tensor| gpu_buffer(tensor).clone()).collect();
        written.sort_by_key(Arc::as_ptr);
        written.dedup_by_key(|buffer| Arc::as_ptr(buffer));
        Ok(Self { commands, written, made: Mutex::new(made) })
    }

    /// What this device runs, made anew if it is another than before.
    fn on(&self, live: &Live) -> Result<Arc<Vec<Pass>>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.0 != live.generation {
            *made = (live.generation, Arc::new(make(live, &self.commands)?));
        }
        Ok(made.1.clone())
    }

    /// Submits plans at once.
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
        let plan = &*self.commands;
        self.written.iter().for_each(|buffer| buffer.change());
        let dispatches = plan.iter().filter(|command| matches!(command, Command::Dispatch(_))).count() as u32;
        if dispatches == 0 {
            submit(gpu, &vec![(self.clone(), 1)])?;
            return Ok(vec![None; plan.len()]);
        }
        let timestamps = gpu.timestamps(2 * dispatches)?;
        let encoder = || gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("profile") });
        let (mut commands, mut next, mut ticks) = (encoder(), 0, Vec::new());
        for pass in &*self.on(gpu)? {
            let Pass::Compute(dispatches) = pass else {
                pass.encode(&mut commands);
                continue;
            };
            for dispatch in dispatches {
                if next == timestamps.count {
                    let full = std::mem::replace(&mut commands, encoder());
                    ticks.extend(pollster::block_on(gpu.read_timestamps(full, &timestamps, next))?);
                    next = 0;
                }
                let writes = wgpu::ComputePassTimestampWrites {
                    query_set: &timestamps.queries,
                    beginning_of_pass_write_index: Some(next),
                    end_of_pass_write_index: Some(next + 1),
                };
                next += 2;
                encode_dispatches(&mut commands, std::slice::from_ref(dispatch), Some(writes));
            }
        }
        ticks.extend(pollster::block_on(gpu.read_timestamps(commands, &timestamps, next))?);
        let first = ticks.first().copied().unwrap_or(0);
        let microseconds = |tick: u64| tick.wrapping_sub(first) as f64 * timestamps.nanoseconds_per_tick / 1e3;
        let mut pairs = ticks.chunks_exact(2).map(|pair| {
            let (start, end) = (microseconds(pair[0]), microseconds(pair[1]));
            (start, (end - start).max(0.0))
        });
        let of_command = |command: &Command| match command {
            Command::Dispatch(_) => pairs.next(),
            Command::Copy { .. } | Command::Clear { .. } => None,
        };
        Ok(plan.iter().map(of_command).collect())
    }
}

fn submit(live: &Live, runs: &Runs) -> Result<()> {
    let mut encoder = live.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("plan") });
    for (plan, times) in runs {
        plan.written.iter().for_each(|buffer| buffer.change());
        let passes = plan.on(live)?;
        (0..*times).for_each(|_| passes.iter().for_each(|pass| pass.encode(&mut encoder)));
    }
    live.submit(encoder.finish())
}

/// Compiles the pipelines and makes the bind groups.
fn make(live: &Live, commands: &[Command]) -> Result<Vec<Pass>> {
    compile(live, commands);
    let uniforms = upload_params(live, commands)?;
    let mut uniform_offset = 0;
    let mut passes = Vec::new();
    for command in commands {
        match command {
            Command::Dispatch(dispatch) => {
                let pipeline = live.pipeline(dispatch.kernel, &dispatch.constants)?;
                let buffers: Vec<_> = dispatch.tensors.iter().map(|tensor| gpu_buffer(tensor).now()).collect();
                let params = wgpu::BufferBinding {
                    buffer: &uniforms,
                    offset: uniform_offset as u64,
                    size: std::num::NonZero::new(4 * dispatch.params.len() as u64),
                };
                uniform_offset += UNIFORM_ALIGNMENT;
                let tensors = dispatch.tensors.iter().zip(&buffers);
                let bindings = std::iter::once(params).chain(tensors.map(|(tensor, buffer)| binding(tensor, buffer)));
                let entries: Vec<_> = bindings
                    .zip(0..)
                    .map(|(buffer, binding)| wgpu::BindGroupEntry {
                        binding,
                        resource: wgpu::BindingResource::Buffer(buffer),
                    })
                    .collect();
                let label = dispatch.kernel.name;
                let layout = &pipeline.layout;
                let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
                let bind_group = live.create(label, 0, |device| device.create_bind_group(&descriptor))?;
                Counters::add(&live.counters.bind_groups, 1);
                let item = (pipeline, bind_group, dispatch.workgroups);
                match passes.last_mut() {
                    Some(Pass::Compute(dispatches)) => dispatches.push(item),
                    _ => passes.push(Pass::Compute(vec![item])),
                }
            }
            Command::Copy { from, to } => {
                passes.push(Pass::Copy { from: place(from), to: place(to), bytes: 4 * from.len() as u64 });
            }
            Command::Clear { tensor } => {
                let (buffer, offset) = place(tensor);
                passes.push(Pass::Clear { buffer, offset, bytes: 4 * tensor.len() as u64 });
            }
        }
    }
    live.check()?;
    live.keep_pipelines();
    Ok(passes)
}

/// Compiles what a plan needs, on all threads where there are threads: a driver takes a tenth of a second to seconds for
/// one pipeline. An error is found again, and reported, where the pipeline is used.
fn compile(gpu: &Live, commands: &[Command]) {
    if cfg!(target_arch = "wasm32") {
        return;
    }
    let mut wanted: Vec<(&'static Kernel, &[(&'static str, u32)])> = Vec::new();
    for command in commands {
        if let Command::Dispatch(d) = command
            && !wanted.iter().any(|(kernel, constants)| kernel.name == d.kernel.name && *constants == d.constants)
        {
            wanted.push((d.kernel, &d.constants));
        }
    }
    threads::install(|| {
        wanted.into_par_iter().for_each(|(kernel, constants)| {
            let _ = gpu.pipeline(kernel, constants);
        });
    });
}

/// All parameter structs of a plan in one uniform buffer, in the order of the dispatches.
fn upload_params(gpu: &Live, commands: &[Command]) -> Result<wgpu::Buffer> {
    let mut bytes = Vec::new();
    for command in commands {
        if let Command::Dispatch(dispatch) = command {
            bytes.extend_from_slice(bytemuck::cast_slice(&dispatch.params));
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

fn gpu_buffer(tensor: &Tensor) -> &Arc<Buffer> {
    let Memory::Gpu(buffer) = tensor.buffer().memory() else { unreachable!("`Recorder` checks the device") };
    buffer
}

fn binding<'a>(tensor: &Tensor, buffer: &'a wgpu::Buffer) -> wgpu::BufferBinding<'a> {
    wgpu::BufferBinding {
        buffer,
        offset: 4 * tensor.offset() as u64,
        size: std::num::NonZero::new(4 * tensor.len() as u64),
    }
}

fn place(tensor: &Tensor) -> (wgpu::Buffer, u64) {
    (gpu_buffer(tensor).now(), 4 * tensor.offset() as u64)
}
