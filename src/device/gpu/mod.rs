//! The part that talks to wgpu: opening, buffers, pipelines, submitting, reading back, and going on where a device is lost.
//! `no_gpu.rs` stands for it in a build without the feature `gpu`.

mod adapters;
mod live;
mod recovery;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

pub use adapters::Adapter;
pub(crate) use adapters::adapters;
pub(crate) use live::{Live, Pipeline, cache_folder};
pub(crate) use recovery::Entry;
pub use wgpu::{WasmNotSend, WasmNotSync};

use super::{Counters, Limits};
use crate::error::Result;
use recovery::{Buffers, Kept, Recovery};

/// Why no adapter is found.
pub(crate) const NO_ADAPTER: &str = "no GPU driver answers";

/// An adapter, what has been done on it, and the device that is open on it now.
pub(crate) struct Gpu {
    counters: Arc<Counters>,
    budget: Arc<Budget>,
    adapter: Adapter,
    /// What of it is not used, though it is there.
    without: wgpu::Features,
    features: wgpu::Features,
    live: RwLock<Arc<Live>>,
    buffers: Mutex<Buffers>,
    recovery: Recovery,
}

/// How long a submission shall take, in microseconds.
pub(crate) struct Budget(AtomicU64);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU64::new(100_000))
    }
}

impl Budget {
    pub fn set(&self, budget: Duration) {
        self.0.store(u64::try_from(budget.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn seconds(&self) -> f64 {
        self.0.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// A tensor's memory, which outlives the device that has it.
pub(crate) struct Buffer {
    name: Box<str>,
    bytes: u64,
    now: Mutex<wgpu::Buffer>,
    kept: Kept,
}

impl Buffer {
    /// What has its values, on the device of now.
    pub fn now(&self) -> wgpu::Buffer {
        lock(&self.now).clone()
    }
}

/// Locks a mutex whose contents stay valid even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens an adapter, `without` some of what is used where it is there.
    pub async fn open(adapter: &wgpu::Adapter, summary: Adapter, without: wgpu::Features) -> Result<Self> {
        let (counters, budget) = (Arc::<Counters>::default(), Arc::<Budget>::default());
        let live = Live::open(adapter, summary.clone(), without, (0, counters.clone(), budget.clone())).await?;
        Ok(Self {
            counters,
            budget,
            adapter: summary,
            without,
            features: live.device.features(),
            live: RwLock::new(Arc::new(live)),
            buffers: Mutex::default(),
            recovery: Recovery::default(),
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
        let limits = &self.adapter.limits;
        Limits {
            binding_bytes: limits.max_storage_buffer_binding_size,
            buffer_bytes: limits.max_buffer_size,
            workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            offset_alignment: limits.min_storage_buffer_offset_alignment.into(),
            workgroup_bytes: limits.max_compute_workgroup_storage_size as usize,
            f16: self.features.contains(wgpu::Features::SHADER_F16),
            subgroups: self.features.contains(wgpu::Features::SUBGROUP).then(|| {
                let info = self.adapter.info();
                (info.subgroup_min_size as usize, info.subgroup_max_size as usize)
            }),
        }
    }

    /// The device that is open now.
    pub fn live(&self) -> Arc<Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long a submission shall take.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    pub fn lose(&self) {
        self.live().device.destroy();
    }

    pub fn wait(&self) -> Result<()> {
        self.attempt(|live| live.wait())
    }

    /// A tensor's buffer.
    pub fn create_tensor(&self, name: &str, bytes: u64) -> Result<Arc<Buffer>> {
        self.attempt(|_| {
            // The device is made anew with all of these.
            let mut buffers = lock(&self.buffers);
            let now = Mutex::new(self.live().create_tensor(name, bytes)?);
            let buffer = Arc::new(Buffer { name: name.into(), bytes, now, kept: Kept::default() });
            buffers.add(&buffer);
            Ok(buffer)
        })
    }

    /// Queues a write.
    pub fn write(&self, buffer: &Arc<Buffer>, offset: u64, bytes: &[u8]) -> Result<()> {
        let write = |live: &Arc<Live>| {
            buffer.change();
            live.write(&buffer.now(), offset, bytes)
        };
        self.perform(write, || Entry::write(buffer, offset, bytes))
    }

    /// The bytes of a range of a buffer, once everything submitted before is done.
    pub async fn read(&self, buffer: &Buffer, range: Range<u64>) -> Result<Vec<u8>> {
        loop {
            let live = self.live();
            match live.read(&buffer.now(), range.clone()).await {
                Err(error) => self.go_on(&live, error)?,
                read => return read,
            }
        }
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
        let Memory::Gpu(buffer) = tensor.buffer().memory() else { unreachable!() };
        let (live, buffer) = (device.gpu().unwrap().live(), buffer.now());
        for (range, piece) in [(0..4012, 4096), (0..4012, 1024), (0..4012, 64), (8..3008, 256), (4..8, 4)] {
            let before = device.count();
            let bytes = pollster::block_on(live.read_in_pieces(&buffer, range.clone(), piece)).unwrap();
            let want = &values[range.start as usize / 4..range.end as usize / 4];
            assert_eq!(bytes, bytemuck::cast_slice::<f32, u8>(want), "{range:?} in pieces of {piece}");
            let (buffers, bytes) = (device.count().buffers - before.buffers, device.count().bytes - before.bytes);
            assert!(bytes <= buffers * piece, "{buffers} buffers of at most {piece} bytes: {bytes}");
        }
    }

    /// The driver tells one thread that the device was lost; another may come to it before that thread has told the rest.
    #[test]
    fn a_loss_is_found_that_nobody_has_told() {
        let Some(device) = gpu() else { return };
        device.set_recoveries(3).unwrap();
        let x = device.upload("x", &[3], &[1.0, 2.0, 3.0]).unwrap();
        for at_large in [3, 1 << 20] {
            device.gpu().unwrap().live().device.set_device_lost_callback(|_, _| {});
            device.lose();
            let y = device.upload("y", &[at_large], &vec![4.0; at_large]).unwrap();
            assert_eq!(y.to_vec().unwrap(), vec![4.0; at_large]);
            assert_eq!(x.to_vec().unwrap(), [1.0, 2.0, 3.0]);
        }
        assert_eq!(device.count().recoveries, 2);
    }

    /// A device made anew may be lost before it is used: a plan's work that has brought one down does so again.
    #[test]
    fn a_device_made_anew_is_lost_too() {
        let Some(device) = gpu() else { return };
        device.set_recoveries(7).unwrap();
        let [x, y] = ["x", "y"].map(|name| device.upload(name, &[3], &[1.0, 2.0, 3.0]).unwrap());
        let mut r = crate::Recorder::new(&device);
        crate::kernels::accumulate::accumulate(&mut r, &x, &y).unwrap();
        let plan = r.finish().unwrap();
        for (run, again) in [(1.0, 0), (2.0, 1), (3.0, 2)] {
            plan.run().unwrap();
            device.gpu().unwrap().recovery.lose_again.store(again, std::sync::atomic::Ordering::Relaxed);
            device.lose();
            assert_eq!(y.to_vec().unwrap(), [1.0, 2.0, 3.0].map(|x| x * (1.0 + run)));
        }
        assert_eq!(device.count().recoveries, 3, "each took the attempts it needed");
    }

    /// What is remembered of a device does not keep it.
    #[test]
    fn a_device_that_is_dropped_is_gone() {
        let Some(device) = gpu() else { return };
        device.set_recoveries(5).unwrap();
        let [x, y] = ["x", "y"].map(|name| device.upload(name, &[3], &[1.0, 2.0, 3.0]).unwrap());
        let mut r = crate::Recorder::new(&device);
        crate::kernels::accumulate::accumulate(&mut r, &x, &y).unwrap();
        let plan = r.finish().unwrap();
        plan.run().unwrap();
        let live = std::sync::Arc::downgrade(&device.gpu().unwrap().live());
        drop((device, x, y, plan));
        assert_eq!(live.strong_count(), 0);
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
        let live = gpu.live();
        let error = live.create_buffer("too much", too_much, usage).unwrap_err();
        assert!(error.to_string().contains("too much"), "{error}");
        works();
        let _ = live.device.create_buffer(&descriptor);
        assert!(device.zeros("y", &[3], DType::F32).is_err());
        works();
        device.lose();
        for _ in 0..2 {
            assert!(matches!(device.synchronize(), Err(crate::Error::DeviceLost(_))));
        }
    }
}
