//! Finding adapters.

use std::fmt;

/// What is used where the adapter has it. In a browser subgroups need a directive that naga does not know.
const OPTIONAL_FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY
    .union(wgpu::Features::PIPELINE_CACHE)
    .union(wgpu::Features::SHADER_F16)
    .union(if cfg!(target_arch = "wasm32") { wgpu::Features::empty() } else { wgpu::Features::SUBGROUP });

/// A GPU, or a software driver that acts as one.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(crate) info: wgpu::AdapterInfo,
    /// What it is opened with.
    pub(crate) limits: wgpu::Limits,
    /// Of those that are optional, what it may be opened with.
    pub(crate) features: wgpu::Features,
}

impl Adapter {
    fn new(adapter: &wgpu::Adapter, is_least: bool) -> Self {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        if is_least {
            let limits = wgpu::Limits::default().or_worse_values_from(&limits);
            return Self { info, limits, features: wgpu::Features::empty() };
        }
        Self { info, limits, features: adapter.features() & OPTIONAL_FEATURES }
    }

    /// The driver's name for it.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Whether it is a software driver (a CPU that acts as a GPU).
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// What it is: "discrete GPU", "integrated GPU", "virtual GPU", "software driver" or "unknown type".
    pub fn kind(&self) -> &'static str {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software driver",
            wgpu::DeviceType::Other => "unknown type",
        }
    }

    /// What wgpu reaches it through: "Vulkan", "Metal" or "Dx12".
    pub fn backend(&self) -> String {
        format!("{:?}", self.info.backend)
    }

    /// The driver's name and version, as far as it says them.
    pub fn driver(&self) -> String {
        [&self.info.driver[..], &self.info.driver_info].join(" ").trim().to_owned()
    }

    /// What only some adapters have, and kernels or measurements use: each by its name here, and whether it is there.
    pub fn features(&self) -> [(&'static str, bool); 4] {
        let has = |feature| self.features.contains(feature);
        [
            ("subgroups", has(wgpu::Features::SUBGROUP)),
            ("f16", has(wgpu::Features::SHADER_F16)),
            ("timestamps", has(wgpu::Features::TIMESTAMP_QUERY)),
            ("pipeline cache", has(wgpu::Features::PIPELINE_CACHE)),
        ]
    }

    /// Threads of a subgroup, from least to most.
    pub fn subgroup_sizes(&self) -> (u32, u32) {
        (self.info.subgroup_min_size, self.info.subgroup_max_size)
    }

    /// Bytes of the largest tensor: of a buffer, all of which a kernel binds.
    pub fn largest_tensor(&self) -> u64 {
        self.limits.max_buffer_size.min(self.limits.max_storage_buffer_binding_size)
    }

    pub(crate) fn info(&self) -> &wgpu::AdapterInfo {
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
    pub(crate) fn rank(&self) -> u8 {
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

/// All adapters, best first; with the least that WebGPU promises and no more, if so asked. No loader, no driver and no adapter are
/// all an empty list.
pub(crate) async fn adapters(is_least: bool) -> Vec<(wgpu::Adapter, Adapter)> {
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
            let summary = Adapter::new(&adapter, is_least);
            (adapter, summary)
        })
        .collect();
    found.sort_by_key(|(_, summary)| summary.rank());
    found
}
