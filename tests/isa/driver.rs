//! A kernel as wgpu gives it to Mesa's driver for AMD, which compiles for hardware that is not there, and the driver's statistics of it.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt;

use anyhow::{Context as _, Result, ensure};
use ash::{ext, khr, vk};
use elman::kernel::Kernel;
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// RDNA2 and RDNA3, by the names that the driver has for a chip of each.
pub const FAMILIES: [&str; 2] = ["navi21", "gfx1100"];

/// What the compiler makes of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Vector registers of a thread.
    pub registers: u64,
    /// Those that did not fit, vector and scalar.
    pub spilled: u64,
    /// Bytes that a wave keeps outside registers.
    pub scratch: u64,
    /// Waves that fit beside each other.
    pub waves: u64,
    pub instructions: u64,
    /// Cycles of a wave, as the compiler estimates them.
    pub cycles: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registers, waves, instructions, cycles, .. } = self;
        write!(f, "{registers:3} {waves:2} {instructions:5} {cycles:7}")
    }
}

/// A driver, and an open device of it. The driver is not unloaded.
pub struct Compiler {
    device: ash::Device,
    properties: khr::pipeline_executable_properties::Device,
    _entry: ash::Entry,
}

impl Compiler {
    /// For a family of chips, which the driver takes from the environment: not while another thread has to do with that or with a driver.
    pub fn open(family: &str) -> Result<Self> {
        // SAFETY: the caller's threads do not read or write the environment meanwhile.
        unsafe { std::env::set_var("RADV_FORCE_FAMILY", family) };
        // SAFETY: plain use of Vulkan, of what is alive.
        unsafe {
            let entry = ash::Entry::load()?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let instance =
                entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&application), None)?;
            let all = instance.enumerate_physical_devices()?;
            let chip = all.into_iter().find(|&chip| {
                let name = instance.get_physical_device_properties(chip);
                name.device_name_as_c_str().is_ok_and(|name| name.to_string_lossy().to_lowercase().contains(family))
            });
            let chip = chip.with_context(|| format!("no driver compiles for {family}"))?;
            let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
            let extensions = [khr::pipeline_executable_properties::NAME, ext::robustness2::NAME].map(CStr::as_ptr);
            let mut statistics =
                vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
            // Of what wgpu asks a device for, that which a kernel of this crate may depend on.
            let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
            let mut v11 = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true);
            let mut v12 = vk::PhysicalDeviceVulkan12Features::default().vulkan_memory_model(true).shader_float16(true);
            let mut v13 = vk::PhysicalDeviceVulkan13Features::default().subgroup_size_control(true);
            let features = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true);
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&extensions)
                .enabled_features(&features)
                .push_next(&mut statistics)
                .push_next(&mut robust)
                .push_next(&mut v11)
                .push_next(&mut v12)
                .push_next(&mut v13);
            let device = instance.create_device(chip, &info, None)?;
            let properties = khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Self { device, properties, _entry: entry })
        }
    }

    /// Compiles a kernel.
    pub fn figures(&self, kernel: &Kernel, constants: &[(&str, u32)]) -> Result<Figures> {
        let code = spirv(kernel, constants)?;
        let storage = kernel.bindings.iter().map(|_| vk::DescriptorType::STORAGE_BUFFER);
        let bindings: Vec<_> = std::iter::once(vk::DescriptorType::UNIFORM_BUFFER)
            .chain(storage)
            .zip(0..)
            .map(|(kind, number)| {
                vk::DescriptorSetLayoutBinding::default()
                    .binding(number)
                    .descriptor_type(kind)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        let device = &self.device;
        // SAFETY: plain use of Vulkan, of what is alive.
        unsafe {
            let layout = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let layouts = [device.create_descriptor_set_layout(&layout, None)?];
            let layout =
                device.create_pipeline_layout(&vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts), None)?;
            let module = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&code), None)?;
            let name = CString::new(kernel.name)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&name)
                .flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE);
            let info = vk::ComputePipelineCreateInfo::default()
                .stage(stage)
                .layout(layout)
                .flags(vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR);
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
            let pipeline = made.map_err(|(_, error)| error)?[0];
            let statistics = self.statistics(pipeline);
            device.destroy_pipeline(pipeline, None);
            device.destroy_shader_module(module, None);
            device.destroy_pipeline_layout(layout, None);
            device.destroy_descriptor_set_layout(layouts[0], None);
            Figures::of(&statistics?)
        }
    }

    fn statistics(&self, pipeline: vk::Pipeline) -> Result<BTreeMap<String, u64>> {
        // SAFETY: the pipeline is alive, and was made to be asked.
        unsafe {
            let parts = self
                .properties
                .get_pipeline_executable_properties(&vk::PipelineInfoKHR::default().pipeline(pipeline))?;
            ensure!(parts.len() == 1, "{} parts of a kernel", parts.len());
            let of = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
            let all = self.properties.get_pipeline_executable_statistics(&of)?.into_iter();
            let counts = all.filter(|one| one.format == vk::PipelineExecutableStatisticFormatKHR::UINT64);
            counts.map(|one| Ok((one.name_as_c_str()?.to_str()?.to_owned(), one.value.u64))).collect()
        }
    }
}

impl Figures {
    fn of(statistics: &BTreeMap<String, u64>) -> Result<Self> {
        let get = |name: &str| {
            statistics.get(name).copied().with_context(|| format!("the driver does not say {name:?}: {statistics:?}"))
        };
        Ok(Self {
            registers: get("VGPRs")?,
            spilled: get("Spilled VGPRs")? + get("Spilled SGPRs")?,
            scratch: get("Scratch size")?,
            waves: get("Subgroups per SIMD")?,
            instructions: get("Instructions")?,
            cycles: get("Latency")?,
        })
    }
}

/// As `src/device/gpu/live.rs` has wgpu translate it.
fn spirv(kernel: &Kernel, constants: &[(&str, u32)]) -> Result<Vec<u32>> {
    let source = kernel.source_with(constants);
    let module = naga::front::wgsl::parse_str(&source)?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module)?;
    let unchecked = BoundsCheckPolicies {
        index: BoundsCheckPolicy::Unchecked,
        buffer: BoundsCheckPolicy::Unchecked,
        image_load: BoundsCheckPolicy::Unchecked,
        binding_array: BoundsCheckPolicy::Unchecked,
    };
    let options = spv::Options {
        lang_version: (1, 6),
        bounds_check_policies: unchecked,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ..Default::default()
    };
    let entry = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: kernel.name.into() };
    Ok(spv::write_vec(&module, &info, &options, Some(&entry))?)
}
