//! Where plans run: a GPU that wgpu reaches, or the CPU twins of the same kernels.

/// Without the feature `gpu`, a module of the same names, whose types have no values.
#[cfg_attr(not(feature = "gpu"), path = "no_gpu.rs")]
pub(crate) mod gpu;
pub(crate) mod memory;
pub(crate) mod threads;
pub(crate) mod turns;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use gpu::Adapter;

use crate::error::{Error, Result};
use crate::tensor::{Bounds, DType, Tensor, checked_len};
use gpu::Gpu;
use memory::Buffer;
use turns::{Turn, Turns, Uses};

/// The environment variable that names a device where no argument does.
pub const ENVIRONMENT_VARIABLE: &str = "ELMAN_DEVICE";

/// The environment variable that says what adapters are opened with.
pub(crate) const LIMITS_VARIABLE: &str = "ELMAN_LIMITS";

/// A place where plans run: a GPU, the CPU in f32, or the f64 reference that tests compare with.
///
/// Cloning is cheap and gives the same device.
///
/// ```
/// let device = elman::Device::cpu();
/// let x = device.upload("x", &[2, 3], &[1., 2., 3., 4., 5., 6.])?;
/// assert_eq!(x.to_vec()?[4], 5.0);
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    kind: Kind,
    reason: String,
    counters: Arc<Counters>,
    most_bytes: AtomicU64,
    in_place_of: Option<AbsentGpu>,
}

/// A GPU that is not there: what plans depend on.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct AbsentGpu {
    /// Threads of a subgroup, from least to most, if it has them.
    pub subgroups: Option<(usize, usize)>,
    /// Workgroup memory.
    pub workgroup_bytes: usize,
}

pub(crate) enum Kind {
    Gpu(Box<Gpu>),
    /// The CPU twins. A plan or a transfer takes its turn while it touches memory.
    Cpu(Floats, Turns),
}

/// What the CPU twins compute in.
#[derive(Clone, Copy)]
pub(crate) enum Floats {
    F32,
    #[cfg(feature = "reference")]
    F64,
}

/// What a device has made and done since it was opened; a steady state adds only `submits` and `dispatches`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Count {
    /// Buffers allocated on the device.
    pub buffers: u64,
    /// Bytes allocated on the device, freed ones included.
    pub bytes: u64,
    /// The most bytes of tensors that were on the device at one time.
    pub peak_bytes: u64,
    /// Bind groups made.
    pub bind_groups: u64,
    /// Pipelines compiled.
    pub pipelines: u64,
    /// Writes from the host.
    pub uploads: u64,
    /// Reads to the host.
    pub downloads: u64,
    /// Command buffers submitted.
    pub submits: u64,
    /// Kernels dispatched.
    pub dispatches: u64,
    /// Times that it was lost and made anew ([`Device::set_recoveries`]).
    pub recoveries: u64,
    /// The longest submission of those that were waited for: of the first run of a long plan ([`Device::set_submission_budget`]).
    pub longest_submission: Duration,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub buffers: AtomicU64,
    pub bytes: AtomicU64,
    pub live_bytes: AtomicU64,
    pub peak_bytes: AtomicU64,
    pub bind_groups: AtomicU64,
    pub pipelines: AtomicU64,
    pub uploads: AtomicU64,
    pub downloads: AtomicU64,
    pub submits: AtomicU64,
    pub dispatches: AtomicU64,
    pub recoveries: AtomicU64,
    /// In microseconds.
    pub longest_submission: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// A tensor's buffer was made, for which the bytes were claimed.
    pub fn allocated(&self, bytes: u64) {
        Self::add(&self.buffers, 1);
        Self::add(&self.bytes, bytes);
        self.peak_bytes.fetch_max(self.live_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Bytes of workgroup memory of a workgroup: WebGPU's default limit.
pub(crate) const WORKGROUP_BYTES: usize = 16 << 10;

/// Sizes that kernels and buffers must stay within; unlimited on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub binding_bytes: u64,
    pub buffer_bytes: u64,
    pub workgroups_per_dimension: u32,
    /// A tensor that starts inside a buffer must start at a multiple of this.
    pub offset_alignment: u64,
    /// Of workgroup memory.
    pub workgroup_bytes: usize,
    /// Whether kernels can have f16.
    pub f16: bool,
    /// The sizes that subgroups may have, from least to most, if kernels can have them.
    pub subgroups: Option<(usize, usize)>,
}

impl Limits {
    /// The bytes of the largest tensor: it has a buffer, all of which kernels bind.
    pub fn tensor_bytes(&self) -> u64 {
        self.buffer_bytes.min(self.binding_bytes)
    }
}

impl Device {
    /// The CPU: every kernel's twin in f32, on all cores.
    pub fn cpu() -> Self {
        Self::new(Kind::Cpu(Floats::F32, Turns::default()), "asked for by name")
    }

    /// The CPU twins in f64: the oracle that tests compare the other devices with. Slow. Has the feature `reference`, which comes
    /// with `gpu`.
    #[cfg(feature = "reference")]
    pub fn reference() -> Self {
        Self::new(Kind::Cpu(Floats::F64, Turns::default()), "asked for by name")
    }

    #[doc(hidden)]
    /// The CPU, with the plans of a GPU that is not there.
    pub fn in_place_of(gpu: AbsentGpu) -> Self {
        Self::with(Kind::Cpu(Floats::F32, Turns::default()), "in place of a GPU".into(), Some(gpu))
    }

    pub(crate) fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Self::with(kind, reason.into(), None)
    }

    fn with(kind: Kind, reason: String, in_place_of: Option<AbsentGpu>) -> Self {
        let counters = match &kind {
            Kind::Gpu(gpu) => gpu.counters().clone(),
            Kind::Cpu(..) => Arc::default(),
        };
        Self(Arc::new(Inner { kind, reason, counters, most_bytes: AtomicU64::new(u64::MAX), in_place_of }))
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.0.kind
    }

    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        match &self.0.kind {
            Kind::Gpu(gpu) => Some(gpu),
            Kind::Cpu(..) => None,
        }
    }

    /// Waits for the turn of a plan or transfer that uses this, which ends with the value, be it by a panic in a twin; a GPU
    /// orders its own work.
    pub(crate) fn turn(&self, uses: Uses<'_>) -> Option<Turn<'_>> {
        match &self.0.kind {
            Kind::Gpu(_) => None,
            Kind::Cpu(_, turns) => Some(turns.take(uses)),
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn limits(&self) -> Limits {
        match &self.0.kind {
            Kind::Gpu(gpu) => gpu.limits(),
            Kind::Cpu(..) => Limits {
                binding_bytes: u64::MAX,
                buffer_bytes: u64::MAX,
                workgroups_per_dimension: u32::MAX,
                offset_alignment: 4,
                workgroup_bytes: self.0.in_place_of.map_or(WORKGROUP_BYTES, |gpu| gpu.workgroup_bytes),
                f16: true,
                subgroups: self.0.in_place_of.and_then(|gpu| gpu.subgroups),
            },
        }
    }

    /// What [`crate::Graph::is_wide`] is for a graph on this device.
    pub(crate) fn is_wide(&self) -> bool {
        self.0.in_place_of.is_some() || self.gpu().is_some_and(|gpu| !gpu.is_software())
    }

    /// Whether its plans are those of a GPU, a software one included.
    pub(crate) fn plans_as_gpu(&self) -> bool {
        self.is_gpu() || self.is_wide()
    }

    /// One line for people: name, kind, driver.
    pub fn describe(&self) -> String {
        match &self.0.kind {
            Kind::Gpu(gpu) => gpu.adapter().to_string(),
            Kind::Cpu(Floats::F32, _) => {
                let vectors = crate::real::vectors().map_or(String::new(), |name| format!(", {name}"));
                format!("CPU ({} threads{vectors})", threads::count())
            }
            #[cfg(feature = "reference")]
            Kind::Cpu(Floats::F64, _) => "CPU reference (f64)".into(),
        }
    }

    /// The adapter, if it is a GPU or a software driver that acts as one.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.gpu().map(Gpu::adapter)
    }

    /// Why this device was chosen.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// Whether plans run as WGSL on an adapter (a software one included).
    pub fn is_gpu(&self) -> bool {
        self.gpu().is_some()
    }

    /// What the device has made and done so far.
    pub fn count(&self) -> Count {
        let c = &self.0.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Count {
            buffers: get(&c.buffers),
            bytes: get(&c.bytes),
            peak_bytes: get(&c.peak_bytes),
            bind_groups: get(&c.bind_groups),
            pipelines: get(&c.pipelines),
            uploads: get(&c.uploads),
            downloads: get(&c.downloads),
            submits: get(&c.submits),
            dispatches: get(&c.dispatches),
            recoveries: get(&c.recoveries),
            longest_submission: Duration::from_micros(get(&c.longest_submission)),
        }
    }

    /// Bytes that tensors hold now. A plan's own tensors are allocated together, when it is finished.
    pub fn live_bytes(&self) -> u64 {
        self.0.counters.live_bytes.load(Ordering::Relaxed)
    }

    /// From here on, tensors hold at most so many bytes, all together: what would need more is [`crate::Error::OutOfMemory`], with
    /// the figures, and allocates nothing. None, as at first: whatever the driver gives.
    ///
    /// ```
    /// use elman::{DType, Device, Error};
    ///
    /// let device = Device::cpu();
    /// device.set_most_bytes(Some(1000));
    /// assert!(matches!(device.zeros("x", &[300], DType::F32), Err(Error::OutOfMemory { needed: 1200, .. })));
    /// ```
    pub fn set_most_bytes(&self, most_bytes: impl Into<Option<u64>>) {
        self.0.most_bytes.store(most_bytes.into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts so many bytes as live, if they are within the limit; otherwise how many would be, and the limit.
    pub(crate) fn claim(&self, bytes: u64) -> Result<(), (u64, u64)> {
        let limit = self.0.most_bytes.load(Ordering::Relaxed);
        let held = self.0.counters.live_bytes.fetch_add(bytes, Ordering::Relaxed);
        let available = limit.saturating_sub(held);
        if bytes <= available {
            return Ok(());
        }
        self.release(bytes);
        Err((available, limit))
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.0.counters.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether memory was let go that is needed by nothing but what would follow a loss of the device.
    pub(crate) fn lets_go(&self) -> bool {
        self.gpu().is_some_and(|gpu| gpu.lets_go())
    }

    /// The error of what needs more bytes than are available.
    pub(crate) fn out_of_memory(&self, what: &str, needed: u64, available: u64, limit: Option<u64>) -> Error {
        let (held, device) = (self.live_bytes(), self.describe());
        Error::OutOfMemory { what: what.into(), needed, held, available, limit, largest: Vec::new(), device }
    }

    /// Waits until everything submitted so far is done.
    ///
    /// # Errors
    /// The device was lost, or its driver reported an error.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu().map_or(Ok(()), |gpu| gpu.wait())
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// A dimension of 0, more than 2³⁰ elements, or more bytes than the device allows in one buffer, or has.
    pub fn zeros(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let tensor = self.reserve(name, shape, dtype)?;
        tensor.buffer().touch()?;
        Ok(tensor)
    }

    /// [`Self::zeros`] that take memory when they are first needed.
    pub(crate) fn reserve(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let len = checked_len("zeros", name, shape)?;
        Ok(Tensor::new(name, shape, Buffer::new(self, name, len, dtype)?))
    }

    /// A tensor of f32 with these values, row-major.
    ///
    /// # Errors
    /// The shape does not have `values.len()` elements, or the tensor is larger than the device allows.
    pub fn upload(&self, name: &str, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        let tensor = self.zeros(name, shape, DType::F32)?;
        tensor.write(values)?;
        Ok(tensor)
    }

    /// A tensor of u32 (tokens, lengths, indices) with these values, row-major.
    ///
    /// # Errors
    /// As [`Self::upload`].
    pub fn upload_u32(&self, name: &str, shape: &[usize], values: &[u32]) -> Result<Tensor> {
        let tensor = self.zeros(name, shape, DType::U32)?;
        tensor.write_u32(values)?;
        Ok(tensor)
    }

    /// A tensor of u32 tokens, all 0: every write to it is checked against the vocabulary.
    ///
    /// # Errors
    /// As [`Self::zeros`].
    pub fn tokens(&self, name: &str, shape: &[usize], vocabulary: usize) -> Result<Tensor> {
        Ok(self.zeros(name, shape, DType::U32)?.with_bounds(Bounds::Tokens(vocabulary)))
    }

    /// A tensor of u32 targets of a loss over `classes` classes, all 0: every write to it is checked to be below
    /// `classes`, or [`crate::NO_TARGET`] for a row that does not count.
    ///
    /// # Errors
    /// As [`Self::zeros`].
    pub fn targets(&self, name: &str, shape: &[usize], classes: usize) -> Result<Tensor> {
        Ok(self.zeros(name, shape, DType::U32)?.with_bounds(Bounds::Targets(classes)))
    }

    /// Lengths of a batch of sequences of at most `steps` steps, `[B]` u32, all `steps`: every write to it is checked to
    /// be from 1 to `steps`.
    ///
    /// # Errors
    /// `batch` sequences of `steps` steps are none, or more than the 2³⁰ elements of a tensor.
    pub fn lengths(&self, name: &str, batch: usize, steps: usize) -> Result<Tensor> {
        checked_len("lengths", name, &[steps, batch])?;
        let lengths = self.zeros(name, &[batch], DType::U32)?.with_bounds(Bounds::Lengths(steps));
        lengths.write_u32(&vec![steps as u32; batch])?;
        Ok(lengths)
    }

    /// How long a submission to a GPU shall take, about: 100 ms if nothing is said. Systems reset a device that works for seconds
    /// on one. A plan that may take longer is cut between its commands: its first run is submitted in pieces that are waited for and
    /// timed, later runs in pieces of as many commands as take that long. It changes no value. One command is not cut here, but
    /// none is recorded that has more than a bounded amount of work.
    pub fn set_submission_budget(&self, budget: Duration) {
        if let Some(gpu) = self.gpu() {
            gpu.budget().set(budget);
        }
    }

    /// From here on, a GPU that is lost (its driver was reset, say) is opened again up to so many times, and everything goes on by
    /// itself, to the same bits, from a snapshot that the host has of all tensors and a journal of what was done since: a call that
    /// finds the device lost takes longer, and does what it was to do. When none are left, or the adapter does not open again, every
    /// call gives [`crate::Error::DeviceLost`], which without this method is so from the start.
    ///
    /// It takes host memory for what tensors hold, and about a twentieth of the time, for snapshots of what has changed. Say it
    /// before other threads use the device. For the CPU, which is not lost, it does nothing.
    ///
    /// # Errors
    /// The device was lost already, or has no memory to be read through; in a browser, where a device cannot be waited for.
    pub fn set_recoveries(&self, recoveries: u32) -> Result<()> {
        if cfg!(target_arch = "wasm32") && recoveries > 0 {
            return Err(Error::argument("set_recoveries", "recoveries", "0 in a browser", recoveries));
        }
        self.gpu().map_or(Ok(()), |gpu| gpu.set_recoveries(recoveries))
    }

    /// Takes a snapshot for [`Self::set_recoveries`] now: for tests, of which none may depend on when.
    #[doc(hidden)]
    pub fn snapshot(&self) -> Result<()> {
        self.gpu().map_or(Ok(()), Gpu::snapshot)
    }

    /// Destroys a GPU device as a driver reset would: for tests of what follows.
    #[doc(hidden)]
    pub fn lose(&self) {
        if let Some(gpu) = self.gpu() {
            gpu.lose();
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.describe())
    }
}
