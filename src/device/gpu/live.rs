//! A device of wgpu, open, and what dies with it: queue, pipelines, staging.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_intrusive::channel::shared::oneshot_channel;

use super::{Adapter, Budget, lock};
use crate::device::Counters;
use crate::error::{Error, Result};
use crate::kernel::{Access, Kernel};

/// How many submissions may be queued before the next one waits: enough to hide the host, little enough that memory
/// stays flat and a stop is prompt.
const QUEUE_DEPTH: usize = 4;

/// An open device. What belongs to another generation than the device's is to be made anew.
pub(crate) struct Live {
    pub generation: u64,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub counters: Arc<Counters>,
    pub budget: Arc<Budget>,
    adapter: Adapter,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    cache: Option<PipelineCache>,
    in_flight: Mutex<VecDeque<wgpu::SubmissionIndex>>,
    /// Bytes of writes that wait for a submission.
    written: AtomicU64,
    staging: Mutex<VecDeque<wgpu::Buffer>>,
    failure: Arc<Mutex<Option<Failure>>>,
}

/// Writes with no submission after them are submitted by themselves beyond so many bytes, for copies of them are kept until then: a
/// program may load a thousand models and run none.
const MOST_WRITTEN: u64 = 1 << 20;

/// What a write takes at least.
const LEAST_WRITE: u64 = 256;

/// How many read-back buffers are kept for the next read of about the same size; the oldest goes first.
const STAGING_POOL: usize = 8;

/// The largest that is kept.
const LARGEST_KEPT: u64 = 16 << 20;

/// The largest staging buffer, a power of 2: every adapter has at least WebGPU's default limit, and one of 1 GiB or more rounded up
/// would be more than many drivers allow.
const LARGEST_STAGING: u64 = 256 << 20;

/// A kernel and the values of its constants.
/// Its address: two may have one name.
type PipelineKey = (usize, Vec<(&'static str, u32)>);

pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Where this crate keeps what it need not find out again.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    Some(directories::ProjectDirs::from("", "", "elman")?.cache_dir().to_path_buf())
}

/// Vulkan's compiled pipelines, kept in a file for each adapter and driver in the user's cache folder. That they cannot be
/// read or kept costs time and nothing else, so no error is reported.
struct PipelineCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    /// How many pipelines the file has.
    saved: Mutex<u64>,
}

impl PipelineCache {
    fn open(device: &wgpu::Device, adapter: &Adapter) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = cache_folder()?.join(wgpu::util::pipeline_cache_key(adapter.info())?);
        let data = std::fs::read(&path).ok();
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("elman"), data: data.as_deref(), fallback: true };
        // SAFETY: the file holds what `get_data` gave for an adapter of this name, and `save` writes it whole or not at all;
        // what another version of the driver made, wgpu refuses by its header.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { cache, path, saved: Mutex::new(0) })
    }

    fn save(&self, pipelines: u64) {
        let mut saved = lock(&self.saved);
        if *saved == pipelines {
            return;
        }
        *saved = pipelines;
        if let (Some(data), Some(folder)) = (self.cache.get_data(), self.path.parent()) {
            let _ = std::fs::create_dir_all(folder)
                .and_then(|()| crate::files::write_atomically(&self.path, &data).map_err(std::io::Error::other));
        }
    }
}

/// Where a profiled plan leaves its timestamps.
pub(crate) struct Timestamps {
    pub queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    /// At most as many as were asked for.
    pub count: u32,
    pub nanoseconds_per_tick: f64,
}

/// The first thing that went wrong outside a call that could have reported it.
enum Failure {
    Lost(String),
    Error(String),
}

impl Live {
    /// Opens an adapter, `without` some of what is used where it is there.
    pub async fn open(
        adapter: &wgpu::Adapter,
        summary: Adapter,
        without: wgpu::Features,
        (generation, counters, budget): (u64, Arc<Counters>, Arc<Budget>),
    ) -> Result<Self> {
        let limits = summary.limits.clone();
        let mut lacking = None;
        wgpu::Limits::default().check_limits_with_fail_fn(&limits, false, |name, needed, allowed| {
            // Textures and vertices are no concern of compute shaders.
            if ["compute", "storage_buffer", "buffer_size", "uniform"].iter().any(|part| name.contains(part)) {
                lacking = Some(format!("{name} is {allowed}, and kernels need {needed}"));
            }
        });
        if let Some(lacking) = lacking {
            return Err(Error::Gpu(format!("{} is below WebGPU's default limits: {lacking}", summary.name())));
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("elman"),
            required_features: summary.features - without,
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|error| Error::Gpu(format!("{} cannot be opened: {error}", summary.name())))?;
        let cache = PipelineCache::open(&device, &summary);
        let failure = Arc::new(Mutex::new(None));
        let slot = failure.clone();
        device.set_device_lost_callback(move |_, message| {
            *lock(&slot) = Some(Failure::Lost(message));
        });
        let slot = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&slot).get_or_insert(Failure::Error(error.to_string()));
        }));
        Ok(Self {
            generation,
            device,
            queue,
            counters,
            budget,
            adapter: summary,
            pipelines: Mutex::default(),
            cache,
            in_flight: Mutex::default(),
            written: AtomicU64::new(0),
            staging: Mutex::default(),
            failure,
        })
    }

    /// Reports what callbacks have left behind: an error once, for good that the device was lost.
    pub fn check(&self) -> Result<()> {
        let failure = lock(&self.failure).take_if(|failure| matches!(failure, Failure::Error(_)));
        match failure {
            Some(Failure::Error(message)) => Err(self.refused(message)),
            _ => self.lost_before().map_or(Ok(()), |message| Err(Error::DeviceLost(message))),
        }
    }

    /// The error of what the driver refused, which a lost device is the reason for, if it was lost.
    fn refused(&self, message: String) -> Error {
        self.lost().map_or(Error::Gpu(message), Error::DeviceLost)
    }

    /// Why it was lost, if it was; waits for what is queued, after which the driver says so.
    pub fn lost(&self) -> Option<String> {
        let _ = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.lost_before().or_else(|| self.is_gone().then(|| "nothing can be made on it any more".into()))
    }

    /// Whether what is made is nothing. The driver says that the device was lost, but perhaps to another thread, which has not come
    /// to tell us.
    fn is_gone(&self) -> bool {
        // A browser has one thread, and there what is made can be written to, device or none.
        #[cfg(target_arch = "wasm32")]
        return false;
        #[cfg(not(target_arch = "wasm32"))]
        {
            let usage = wgpu::BufferUsages::COPY_SRC;
            let probe = wgpu::BufferDescriptor { label: Some("probe"), size: 4, usage, mapped_at_creation: true };
            let (made, error) = self.try_making(|device| device.create_buffer(&probe));
            error.is_none() && made.get_mapped_range(..).is_err()
        }
    }

    fn lost_before(&self) -> Option<String> {
        match &*lock(&self.failure) {
            Some(Failure::Lost(message)) => Some(message.clone()),
            _ => None,
        }
    }

    /// Makes something on the device, that takes so many bytes. What goes wrong is this call's error, and the device goes on.
    pub fn create<T>(&self, name: &str, bytes: u64, make: impl FnOnce(&wgpu::Device) -> T) -> Result<T> {
        self.check()?;
        // A browser answers later; what it refuses there is found by `check`.
        #[cfg(target_arch = "wasm32")]
        return Ok(make(&self.device));
        #[cfg(not(target_arch = "wasm32"))]
        {
            let (made, error) = self.try_making(make);
            match error {
                None => Ok(made),
                Some(wgpu::Error::OutOfMemory { .. }) => Err(Error::OutOfMemory {
                    what: format!("`{name}`"),
                    needed: bytes,
                    held: self.counters.live_bytes.load(Ordering::Relaxed),
                    available: 0,
                    limit: None,
                    largest: Vec::new(),
                    device: self.adapter.to_string(),
                }),
                Some(error) => Err(self.refused(format!("`{name}`: {error}"))),
            }
        }
    }

    /// What was made, and the first error of it.
    #[cfg(not(target_arch = "wasm32"))]
    fn try_making<T>(&self, make: impl FnOnce(&wgpu::Device) -> T) -> (T, Option<wgpu::Error>) {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let scopes = [OutOfMemory, Validation, Internal].map(|filter| self.device.push_error_scope(filter));
        let made = make(&self.device);
        let mut errors = scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop()));
        let first = errors.next();
        errors.for_each(drop);
        (made, first)
    }

    pub fn create_buffer(&self, name: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let descriptor = wgpu::BufferDescriptor { label: Some(name), size: bytes, usage, mapped_at_creation: false };
        self.create(name, bytes, |device| device.create_buffer(&descriptor))
    }

    /// A tensor's buffer.
    pub fn create_tensor(&self, name: &str, bytes: u64) -> Result<wgpu::Buffer> {
        use wgpu::BufferUsages as Usages;
        self.create_buffer(name, bytes, Usages::STORAGE | Usages::COPY_SRC | Usages::COPY_DST)
    }

    /// Queues a write. The driver keeps a copy until it is done, for which it may have no memory.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let size = bytes.len() as u64;
        self.create("upload", size, |_| self.queue.write_buffer(buffer, offset, bytes))?;
        let written = self.written.fetch_add(size.max(LEAST_WRITE), Ordering::Relaxed);
        if written > MOST_WRITTEN { self.submit(None) } else { Ok(()) }
    }

    /// The pipeline of a kernel with these constants, compiled on first use.
    pub fn pipeline(&self, kernel: &'static Kernel, constants: &[(&'static str, u32)]) -> Result<Arc<Pipeline>> {
        let key = (std::ptr::from_ref(kernel).addr(), constants.to_vec());
        if let Some(pipeline) = lock(&self.pipelines).get(&key) {
            return Ok(pipeline.clone());
        }
        self.check()?;
        let what = format!("kernel {} {constants:?}", kernel.name);
        let pipeline = self.create(&what, 0, |device| self.compile(device, kernel, constants))?;
        Counters::add(&self.counters.pipelines, 1);
        let pipeline = Arc::new(pipeline);
        lock(&self.pipelines).insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn compile(&self, device: &wgpu::Device, kernel: &'static Kernel, constants: &[(&'static str, u32)]) -> Pipeline {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(kernel.source_with(constants).into()),
        };
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: !kernel.twin.is_own || std::env::var("ELMAN_BOUNDS_CHECKS").is_ok_and(|value| value == "1"),
            // Loop bounding has made kernels up to 100 times slower; every loop here ends by its own counter.
            force_loop_bounding: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: those that are not this crate's own are checked. Of its own: Their host functions check every shape, and that every index they
        // follow is a tensor whose values are checked on each write; the tests run with bounds checks on.
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let uniform = wgpu::BufferBindingType::Uniform;
        let storage = kernel
            .bindings
            .iter()
            .map(|binding| wgpu::BufferBindingType::Storage { read_only: binding.access == Access::Read });
        let entries: Vec<_> = std::iter::once(uniform)
            .chain(storage)
            .zip(0..)
            .map(|(ty, binding)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            })
            .collect();
        let layout = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache.as_ref().map(|cache| &cache.cache),
        });
        Pipeline { pipeline, layout }
    }

    /// Writes what the driver has compiled to the disk, for the next program.
    pub fn keep_pipelines(&self) {
        if let Some(cache) = &self.cache {
            cache.save(self.counters.pipelines.load(Ordering::Relaxed));
        }
    }

    /// Submits, and waits for the submission `QUEUE_DEPTH` before it.
    pub fn submit(&self, commands: impl IntoIterator<Item = wgpu::CommandBuffer>) -> Result<()> {
        self.check()?;
        self.written.store(0, Ordering::Relaxed);
        let index = self.queue.submit(commands);
        let mut in_flight = lock(&self.in_flight);
        in_flight.push_back(index);
        if in_flight.len() > QUEUE_DEPTH {
            let oldest = in_flight.pop_front();
            drop(in_flight);
            self.poll(wgpu::PollType::Wait { submission_index: oldest, timeout: None })?;
        }
        Ok(())
    }

    pub fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    fn poll(&self, kind: wgpu::PollType) -> Result<()> {
        let polled = self.device.poll(kind);
        self.check()?;
        polled.map(|_| ()).map_err(|error| self.refused(error.to_string()))
    }

    /// A place for so many timestamps.
    pub fn timestamps(&self, count: u32) -> Result<Timestamps> {
        if !self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::argument("profile", "device", "an adapter with timestamp queries", &self.adapter));
        }
        let count = count.min(wgpu::QUERY_SET_MAX_QUERIES);
        let descriptor = wgpu::QuerySetDescriptor { label: Some("profile"), ty: wgpu::QueryType::Timestamp, count };
        let bytes = u64::from(count) * 8;
        let queries = self.create("profile", bytes, |device| device.create_query_set(&descriptor))?;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = self.create_buffer("timestamps", bytes, usage)?;
        let nanoseconds_per_tick = self.queue.get_timestamp_period().into();
        Ok(Timestamps { queries, resolved, count, nanoseconds_per_tick })
    }

    /// Submits commands that write the first so many timestamps, and gives the ticks.
    pub async fn read_timestamps(
        &self,
        mut commands: wgpu::CommandEncoder,
        place: &Timestamps,
        count: u32,
    ) -> Result<Vec<u64>> {
        commands.resolve_query_set(&place.queries, 0..count, &place.resolved, 0);
        self.submit([commands.finish()])?;
        let bytes = self.read(&place.resolved, 0..8 * u64::from(count)).await?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// The bytes of a range of a buffer, once everything submitted before is done.
    pub async fn read(&self, buffer: &wgpu::Buffer, range: Range<u64>) -> Result<Vec<u8>> {
        self.read_in_pieces(buffer, range, LARGEST_STAGING).await
    }

    /// All of a buffer that nothing writes meanwhile, with little memory beside it.
    pub fn read_bit_by_bit(&self, buffer: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>> {
        let mut all = Vec::with_capacity(bytes as usize);
        for start in (0..bytes).step_by(LARGEST_KEPT as usize) {
            let bit = start..bytes.min(start + LARGEST_KEPT);
            all.extend(pollster::block_on(self.read(buffer, bit))?);
        }
        Ok(all)
    }

    /// [`Self::read`] through staging buffers of at most `piece` bytes, a power of 2. All are filled in one submission, so what is
    /// read is of one time.
    pub async fn read_in_pieces(&self, buffer: &wgpu::Buffer, range: Range<u64>, piece: u64) -> Result<Vec<u8>> {
        let pieces = range.clone().step_by(piece as usize).map(|start| start..range.end.min(start + piece));
        let pieces: Vec<_> =
            pieces.map(|part| Ok((self.take_staging(part.end - part.start)?, part))).collect::<Result<_>>()?;
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("read") });
        for (staging, part) in &pieces {
            encoder.copy_buffer_to_buffer(buffer, part.start, staging, 0, part.end - part.start);
        }
        self.queue.submit([encoder.finish()]);
        let mut answers = Vec::new();
        for (staging, part) in &pieces {
            let (sender, receiver) = oneshot_channel();
            staging.map_async(wgpu::MapMode::Read, 0..part.end - part.start, move |result| {
                // The receiver is gone only if the reader was dropped; then nobody wants the answer.
                let _ = sender.send(result);
            });
            answers.push(receiver);
        }
        // Natively somebody has to drive the device; a browser does so itself.
        #[cfg(not(target_arch = "wasm32"))]
        self.wait()?;
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for ((staging, part), answer) in pieces.into_iter().zip(answers) {
            match answer.receive().await {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    self.check()?;
                    return Err(self.refused(format!("a buffer cannot be read: {error}")));
                }
                None => return Err(Error::DeviceLost("a read was never answered".into())),
            }
            let view = staging.get_mapped_range(0..part.end - part.start);
            let copied = view.map(|view| bytes.extend_from_slice(&view));
            staging.unmap();
            if staging.size() <= LARGEST_KEPT {
                let mut pool = lock(&self.staging);
                if pool.len() == STAGING_POOL {
                    pool.pop_front();
                }
                pool.push_back(staging);
            }
            copied.map_err(|error| Error::Gpu(error.to_string()))?;
        }
        Ok(bytes)
    }

    /// A buffer to read through: one that an earlier read gave back, or a new one.
    fn take_staging(&self, bytes: u64) -> Result<wgpu::Buffer> {
        self.check()?;
        let bytes = bytes.next_power_of_two();
        let mut pool = lock(&self.staging);
        let fitting = pool.iter().position(|buffer| buffer.size() == bytes);
        if let Some(staging) = fitting.and_then(|position| pool.remove(position)) {
            return Ok(staging);
        }
        drop(pool);
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        let staging = self.create_buffer("staging", bytes, usage)?;
        Counters::add(&self.counters.buffers, 1);
        Counters::add(&self.counters.bytes, bytes);
        Ok(staging)
    }
}
