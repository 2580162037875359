//! A mistake that Vulkan's validation layer must find: `tests/run.sh --validation` looks whether it does.

#[test]
#[ignore = "a part of `tests/run.sh --validation`"]
#[cfg(target_os = "linux")]
fn a_fence_is_never_destroyed() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let (device, _queue) = pollster::block_on(adapters[0].request_device(&Default::default())).unwrap();
    // SAFETY: a fence is made on a device that is there, and leaks.
    unsafe {
        let device = device.as_hal::<wgpu::hal::api::Vulkan>().unwrap();
        device.raw_device().create_fence(&Default::default(), None).unwrap();
    }
}
