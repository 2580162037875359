//! The part that talks to wgpu: opening, buffers, pipelines, submitting, reading back. `no_gpu.rs` stands for it in a build without
//! the feature `gpu`.

mod adapters;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use futures_intrusive::channel::shared::oneshot_channel;

pub use adapters::Adapter;
pub(crate) use adapters::adapters;
pub use wgpu::{Buffer, WasmNotSend, WasmNotSync};

use super::{Counters, Limits};
use crate::error::{Error, Result};
use crate::kernel::{Access, Kernel};

/// Why no adapter is found.
pub(crate) const NO_ADAPTER: &str = "no GPU driver answers";

/// How many submissions may be queued before the next one waits: enough to hide the host, little enough that memory
/// stays flat and a stop is prompt.
const QUEUE_DEPTH: usize = 4;

pub(crate) struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub counters: Arc<Counters>,
    adapter: Adapter,
    limits: wgpu::Limits,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    cache: Option<PipelineCache>,
    in_flight: Mutex<VecDeque<wgpu::SubmissionIndex>>,
    staging: Mutex<VecDeque<wgpu::Buffer>>,
    failure: Arc<Mutex<Option<Failure>>>,
}

/// How many read-back buffers are kept for the next read of about the same size; the oldest goes first.
const STAGING_POOL: usize = 8;

/// The largest that is kept.
const LARGEST_KEPT: u64 = 16 << 20;

/// The largest staging buffer, a power of 2: every adapter has at least WebGPU's default limit, and one of 1 GiB or more rounded up
/// would be more than many drivers allow.
const LARGEST_STAGING: u64 = 256 << 20;

/// What is used where the adapter has it. In a browser subgroups need a directive that naga does not know.
const OPTIONAL_FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY
    .union(wgpu::Features::PIPELINE_CACHE)
    .union(wgpu::Features::SHADER_F16)
    .union(if cfg!(target_arch = "wasm32") { wgpu::Features::empty() } else { wgpu::Features::SUBGROUP });

/// A kernel and the values of its constants.
type PipelineKey = (&'static str, Vec<(&'static str, u32)>);

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

/// Locks a mutex whose contents stay valid even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens an adapter, `without` some of what is used where it is there.
    pub async fn open(adapter: &wgpu::Adapter, summary: Adapter, without: wgpu::Features) -> Result<Self> {
        let limits = adapter.limits();
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
            required_features: adapter.features() & (OPTIONAL_FEATURES - without),
            required_limits: limits.clone(),
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
            device,
            queue,
            counters: Arc::default(),
            adapter: summary,
            limits,
            pipelines: Mutex::default(),
            cache,
            in_flight: Mutex::default(),
            staging: Mutex::default(),
            failure,
        })
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    pub fn is_software(&self) -> bool {
        self.adapter.is_software()
    }

    pub fn limits(&self) -> Limits {
        Limits {
            binding_bytes: self.limits.max_storage_buffer_binding_size,
            buffer_bytes: self.limits.max_buffer_size,
            workgroups_per_dimension: self.limits.max_compute_workgroups_per_dimension,
            offset_alignment: self.limits.min_storage_buffer_offset_alignment.into(),
            workgroup_bytes: self.limits.max_compute_workgroup_storage_size as usize,
            f16: self.device.features().contains(wgpu::Features::SHADER_F16),
            subgroups: self.device.features().contains(wgpu::Features::SUBGROUP).then(|| {
                let info = self.adapter.info();
                (info.subgroup_min_size as usize, info.subgroup_max_size as usize)
            }),
        }
    }

    pub fn lose(&self) {
        self.device.destroy();
    }

    /// Reports what callbacks have left behind: an error once, for good that the device was lost.
    pub fn check(&self) -> Result<()> {
        let mut failure = lock(&self.failure);
        match failure.take() {
            None => Ok(()),
            Some(Failure::Lost(message)) => {
                *failure = Some(Failure::Lost(message.clone()));
                Err(Error::DeviceLost(message))
            }
            Some(Failure::Error(message)) => Err(Error::Gpu(message)),
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
            use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
            let scopes = [OutOfMemory, Validation, Internal].map(|filter| self.device.push_error_scope(filter));
            let made = make(&self.device);
            let mut errors = scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop()));
            let first = errors.next();
            errors.for_each(drop);
            match first {
                None => Ok(made),
                Some(wgpu::Error::OutOfMemory { .. }) => {
                    let device = self.adapter.to_string();
                    Err(Error::OutOfMemory { tensor: name.into(), needed: bytes, device })
                }
                Some(error) => Err(Error::Gpu(format!("`{name}`: {error}"))),
            }
        }
    }

    pub fn create_buffer(&self, name: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let descriptor = wgpu::BufferDescriptor { label: Some(name), size: bytes, usage, mapped_at_creation: false };
        self.create(name, bytes, |device| device.create_buffer(&descriptor))
    }

    /// A tensor's buffer.
    pub fn create_tensor(&self, name: &str, bytes: u64) -> Result<Buffer> {
        use wgpu::BufferUsages as Usages;
        self.create_buffer(name, bytes, Usages::STORAGE | Usages::COPY_SRC | Usages::COPY_DST)
    }

    /// Queues a write. The driver keeps a copy until it is done, for which it may have no memory.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.create("upload", bytes.len() as u64, |_| self.queue.write_buffer(buffer, offset, bytes))
    }

    /// The pipeline of a kernel with these constants, compiled on first use.
    pub async fn pipeline(&self, kernel: &'static Kernel, constants: &[(&'static str, u32)]) -> Result<Arc<Pipeline>> {
        let key = (kernel.name, constants.to_vec());
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
            bounds_checks: std::env::var("ELMAN_BOUNDS_CHECKS").is_ok_and(|value| value == "1"),
            // Loop bounding has made kernels up to 100 times slower; every loop here ends by its own counter.
            force_loop_bounding: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: the kernels are this crate's own. Their host functions check every shape, and that every index they
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
    pub fn submit(&self, commands: wgpu::CommandBuffer) -> Result<()> {
        self.check()?;
        let index = self.queue.submit([commands]);
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
        polled.map(|_| ()).map_err(|error| Error::Gpu(error.to_string()))
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
        self.submit(commands.finish())?;
        let bytes = self.read(&place.resolved, 0..8 * u64::from(count)).await?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// The bytes of a range of a buffer, once everything submitted before is done.
    pub async fn read(&self, buffer: &wgpu::Buffer, range: Range<u64>) -> Result<Vec<u8>> {
        self.read_in_pieces(buffer, range, LARGEST_STAGING).await
    }

    /// [`Self::read`] through staging buffers of at most `piece` bytes, a power of 2. All are filled in one submission, so what is
    /// read is of one time.
    async fn read_in_pieces(&self, buffer: &wgpu::Buffer, range: Range<u64>, piece: u64) -> Result<Vec<u8>> {
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
                    return Err(Error::Gpu(format!("a buffer cannot be read: {error}")));
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

#[cfg(test)]
mod tests {
    use crate::DType;
    use crate::device::Device;
    use crate::device::memory::Memory;

    /// The GPU, a software one included; opened anew, since what happens to it here others must not see.
    fn gpu() -> Option<Device> {
        let device = Device::open("gpu").ok();
        assert!(device.is_some() || std::env::var_os("ELMAN_REQUIRE_GPU").is_none_or(|value| value != "1"));
        device
    }

    #[test]
    fn pieces_are_the_whole() {
        let Some(device) = gpu() else { return };
        let values: Vec<f32> = (0..1003).map(|i| i as f32).collect();
        let tensor = device.upload("x", &[1003], &values).unwrap();
        let Memory::Gpu(buffer) = &tensor.buffer().memory else { unreachable!() };
        for (range, piece) in [(0..4012, 4096), (0..4012, 1024), (0..4012, 64), (8..3008, 256), (4..8, 4)] {
            let before = device.count();
            let read = device.gpu().unwrap().read_in_pieces(buffer, range.clone(), piece);
            let bytes = pollster::block_on(read).unwrap();
            let want = &values[range.start as usize / 4..range.end as usize / 4];
            assert_eq!(bytes, bytemuck::cast_slice::<f32, u8>(want), "{range:?} in pieces of {piece}");
            let (buffers, bytes) = (device.count().buffers - before.buffers, device.count().bytes - before.bytes);
            assert!(bytes <= buffers * piece, "{buffers} buffers of at most {piece} bytes: {bytes}");
        }
    }

    /// What the call that caused it has reported is over; what no call has, the next reports.
    #[test]
    fn an_error_is_reported_once() {
        let Some(device) = gpu() else { return };
        let gpu = device.gpu().unwrap();
        let usage = wgpu::BufferUsages::STORAGE;
        let too_much = gpu.limits().buffer_bytes.saturating_add(4) / 4 * 4;
        let descriptor = wgpu::BufferDescriptor { label: None, size: too_much, usage, mapped_at_creation: false };
        let works = || {
            let x = device.upload("x", &[3], &[1.0, 2.0, 3.0]).unwrap();
            assert_eq!(x.to_vec().unwrap(), [1.0, 2.0, 3.0]);
            device.synchronize().unwrap();
        };
        let error = gpu.create_buffer("too much", too_much, usage).unwrap_err();
        assert!(error.to_string().contains("too much"), "{error}");
        works();
        let _ = gpu.device.create_buffer(&descriptor);
        assert!(device.zeros("y", &[3], DType::F32).is_err());
        works();
        device.lose();
        for _ in 0..2 {
            assert!(matches!(device.synchronize(), Err(crate::Error::DeviceLost(_))));
        }
    }
}
