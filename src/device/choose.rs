//! Finding adapters, and choosing one by name.

use std::fmt;
use std::sync::Mutex;

use super::{Device, Kind, gpu::Gpu};
use crate::error::{Error, Result};

/// The environment variable that names a device where no argument does.
pub const ENVIRONMENT_VARIABLE: &str = "ELMAN_DEVICE";

/// A GPU, or a software driver that acts as one.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(super) info: wgpu::AdapterInfo,
    pub(super) limits: wgpu::Limits,
}

impl Adapter {
    /// The driver's name for it.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Whether it is a software driver (a CPU that acts as a GPU).
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    fn kind(&self) -> &'static str {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software driver",
            wgpu::DeviceType::Other => "unknown type",
        }
    }

    pub(super) fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// The limits that matter to kernels, in one line.
    pub fn limits(&self) -> String {
        let l = &self.limits;
        format!(
            "{} MiB per binding, {} MiB per buffer, {} KiB of workgroup memory, {} invocations per workgroup, {} storage buffers",
            l.max_storage_buffer_binding_size >> 20,
            l.max_buffer_size >> 20,
            l.max_compute_workgroup_storage_size >> 10,
            l.max_compute_invocations_per_workgroup,
            l.max_storage_buffers_per_shader_stage,
        )
    }

    /// Smaller is better.
    fn rank(&self) -> u8 {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        }
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}, {}", self.info.name, self.info.backend, self.kind())?;
        for part in [&self.info.driver, &self.info.driver_info] {
            if !part.is_empty() && !self.info.name.contains(part.as_str()) {
                write!(f, ", {part}")?;
            }
        }
        write!(f, ")")
    }
}

/// All adapters, best first. No loader, no driver and no adapter are all an empty list.
async fn adapters() -> Vec<(wgpu::Adapter, Adapter)> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    // The driver's own validation layers are for debugging drivers; they print, and nothing here needs them.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let mut found: Vec<_> = instance
        .enumerate_adapters(wgpu::Backends::PRIMARY)
        .await
        .into_iter()
        .map(|adapter| {
            let summary = Adapter { info: adapter.get_info(), limits: adapter.limits() };
            (adapter, summary)
        })
        .collect();
    found.sort_by_key(|(_, summary)| summary.rank());
    found
}

impl Device {
    /// All adapters of this machine, the one `auto` would prefer first.
    pub fn list() -> Vec<Adapter> {
        pollster::block_on(Self::list_async())
    }

    /// [`Self::list`] without blocking.
    pub async fn list_async() -> Vec<Adapter> {
        adapters().await.into_iter().map(|(_, summary)| summary).collect()
    }

    /// Opens the device that [`ENVIRONMENT_VARIABLE`] names, or `auto`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_environment() -> Result<Self> {
        let name = std::env::var(ENVIRONMENT_VARIABLE).unwrap_or_default();
        Self::open(if name.is_empty() { "auto" } else { &name })
    }

    /// Opens a device by name.
    ///
    /// * `auto`: a discrete GPU, else an integrated one, else a virtual one, else the CPU. A software driver is never chosen.
    /// * `cpu`: the CPU twins in f32.
    /// * `gpu`: the best adapter, a software one included.
    /// * anything else: the best adapter with that in its name, whatever the case.
    ///
    /// # Errors
    /// [`Error::NoDevice`] with the list of what there is; [`Error::Gpu`] if the driver refuses to open it.
    pub fn open(name: &str) -> Result<Self> {
        pollster::block_on(Self::open_async(name))
    }

    /// [`Self::open`] without blocking.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_async(name: &str) -> Result<Self> {
        let wanted = name.trim().to_lowercase();
        if wanted == "cpu" {
            return Ok(Self::cpu());
        }
        let fits = |adapter: &Adapter| match wanted.as_str() {
            "auto" => adapter.rank() <= 2,
            "gpu" => true,
            "" => false,
            part => adapter.info.name.to_lowercase().contains(part),
        };
        let reason = |adapter: &Adapter| match wanted.as_str() {
            "auto" => format!("the first {}", adapter.kind()),
            "gpu" => "the best adapter".into(),
            part => format!("its name contains `{part}`"),
        };
        let found = adapters().await;
        let names: Vec<_> = found.iter().map(|(_, adapter)| adapter.info.name.clone()).collect();
        let kinds: Vec<_> = found.iter().map(|(_, adapter)| adapter.kind()).collect();
        let mut refused = None;
        for (adapter, summary) in found {
            if fits(&summary) {
                let reason = reason(&summary);
                match Gpu::open(adapter, summary).await {
                    Ok(gpu) => return Ok(Self::new(Kind::Gpu(Box::new(gpu)), reason)),
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
        }
        match (wanted.as_str(), refused) {
            ("auto", Some(error)) => Ok(Self::new(Kind::Cpu(Mutex::default()), format!("{error}"))),
            ("auto", None) => {
                let reason = match (names.first(), kinds.first()) {
                    (Some(name), Some(kind)) => format!("the best adapter, {name}, is a {kind}; `gpu` would take it"),
                    _ => "no GPU driver answers".into(),
                };
                Ok(Self::new(Kind::Cpu(Mutex::default()), reason))
            }
            (_, Some(error)) => Err(error),
            (_, None) => {
                let available = names.into_iter().chain(["cpu".into()]).collect::<Vec<_>>().join(", ");
                Err(Error::NoDevice { wanted: name.into(), available })
            }
        }
    }
}
