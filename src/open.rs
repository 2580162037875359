//! Opening a device by name. It is above the kernels, since an adapter computes a few things before it is trusted.

use std::env;
use std::ffi::OsString;

use crate::device::gpu::{Adapter, Gpu, NO_ADAPTER, adapters};
#[cfg(not(feature = "gpu"))]
use crate::device::gpu::{open_checked, open_unchecked};
use crate::device::turns::Turns;
use crate::device::{Device, ENVIRONMENT_VARIABLE, Floats, Kind, LIMITS_VARIABLE};
use crate::error::{Error, Result};
#[cfg(feature = "gpu")]
use crate::self_check::{open_checked, open_unchecked};

impl Device {
    /// All adapters of this machine, the one `auto` would prefer first.
    pub fn list() -> Vec<Adapter> {
        pollster::block_on(Self::list_async())
    }

    /// [`Self::list`] without blocking.
    pub async fn list_async() -> Vec<Adapter> {
        adapters(false).await.into_iter().map(|(_, summary)| summary).collect()
    }

    /// Opens the device that [`crate::device::ENVIRONMENT_VARIABLE`] names, or `auto`.
    ///
    /// # Errors
    /// As [`Self::open`]; what the variable holds is not UTF-8.
    pub fn from_environment() -> Result<Self> {
        Self::open(&name_in(env::var_os(ENVIRONMENT_VARIABLE))?)
    }

    /// Opens a device by name.
    ///
    /// * `auto`: a discrete GPU, else an integrated one, else a virtual one, else the CPU. A software driver is never chosen.
    /// * `cpu`: the CPU twins in f32.
    /// * `gpu`: the best adapter, a software one included.
    /// * anything else: the best adapter with that in its name, whatever the case.
    ///
    /// The first time that a crate of this version opens an adapter with its driver, the adapter computes a few things whose
    /// results are known: functions, a product, a sum, a recurrence. If they are wrong, it is refused; if only those made with
    /// subgroups or f16 are, they are not used, and [`Self::reason`] says so. The answer is kept in the user's cache folder, in
    /// `self_check.json`. `ELMAN_SELF_CHECK=0` trusts every adapter.
    ///
    /// With `ELMAN_LIMITS=webgpu` an adapter has WebGPU's default limits and none of its optional features (f16, subgroups,
    /// timestamps), whatever it is: what runs so, runs everywhere.
    ///
    /// In a build without the feature `gpu` there are no adapters.
    ///
    /// # Errors
    /// [`Error::NoDevice`] with the list of what there is; [`Error::Gpu`] if the driver refuses to open it, or computes wrong
    /// values; `ELMAN_LIMITS` has another value.
    pub fn open(name: &str) -> Result<Self> {
        pollster::block_on(Self::open_async(name))
    }

    /// [`Self::open`] without blocking, but for the first time that an adapter is opened.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_async(name: &str) -> Result<Self> {
        if name.trim().eq_ignore_ascii_case("cpu") {
            return Ok(Self::cpu());
        }
        let is_least = is_least(env::var_os(LIMITS_VARIABLE))?;
        Self::chosen(choose(name, adapters(is_least).await, open_checked).await?)
    }

    /// [`Self::open`] without a look at what the adapter computes, and with all that it has, be it wrong: to examine a driver.
    ///
    /// # Errors
    /// As [`Self::open`], but for wrong values.
    pub fn open_unchecked(name: &str) -> Result<Self> {
        if name.trim().eq_ignore_ascii_case("cpu") {
            return Ok(Self::cpu());
        }
        let is_least = is_least(env::var_os(LIMITS_VARIABLE))?;
        let found = async { choose(name, adapters(is_least).await, open_unchecked).await };
        Self::chosen(pollster::block_on(found)?)
    }

    fn chosen(choice: Choice<(Gpu, Vec<String>)>) -> Result<Self> {
        match choice {
            Choice::Opened((gpu, unused), reason) => {
                let reason = std::iter::once(reason).chain(unused).collect::<Vec<_>>().join("; ");
                Ok(Self::new(Kind::Gpu(Box::new(gpu)), reason))
            }
            Choice::Cpu(reason) => Ok(Self::new(Kind::Cpu(Floats::F32, Turns::default()), reason)),
        }
    }
}

/// The device that a setting names. One that cannot be read is not one that is not there.
fn name_in(setting: Option<OsString>) -> Result<String> {
    match setting.map(OsString::into_string) {
        None => Ok("auto".into()),
        Some(Ok(name)) => Ok(if name.is_empty() { "auto".into() } else { name }),
        Some(Err(name)) => {
            Err(Error::argument("open", ENVIRONMENT_VARIABLE, "the name of a device, in UTF-8", format!("{name:?}")))
        }
    }
}

/// Whether a setting asks for the least that WebGPU promises.
fn is_least(setting: Option<OsString>) -> Result<bool> {
    match setting {
        Some(value) if value == "webgpu" => Ok(true),
        Some(value) if !value.is_empty() => {
            Err(Error::argument("open", LIMITS_VARIABLE, "`webgpu`, or nothing", format!("{value:?}")))
        }
        _ => Ok(false),
    }
}

/// What is chosen, and why.
#[derive(Debug)]
enum Choice<T> {
    Opened(T, String),
    Cpu(String),
}

/// The first adapter that fits the name and opens.
async fn choose<A, T>(
    name: &str,
    found: Vec<(A, Adapter)>,
    open: impl AsyncFn(A, Adapter) -> Result<T>,
) -> Result<Choice<T>> {
    let wanted = name.trim().to_lowercase();
    let fits = |adapter: &Adapter| match wanted.as_str() {
        "auto" => adapter.rank() <= 2,
        "gpu" => true,
        "" => false,
        part => adapter.name().to_lowercase().contains(part),
    };
    let reason = |adapter: &Adapter| match wanted.as_str() {
        "auto" => format!("the first {}", adapter.kind()),
        "gpu" => "the best adapter".into(),
        part => format!("its name contains `{part}`"),
    };
    let names: Vec<_> = found.iter().map(|(_, adapter)| adapter.name().to_owned()).collect();
    let best = found.first().map(|(_, adapter)| format!("{}, is a {}", adapter.name(), adapter.kind()));
    let mut refused = Vec::new();
    for (adapter, summary) in found.into_iter().filter(|(_, adapter)| fits(adapter)) {
        let reason = reason(&summary);
        match open(adapter, summary).await {
            Ok(opened) => {
                let refused = refused.iter().map(Error::to_string);
                return Ok(Choice::Opened(
                    opened,
                    std::iter::once(reason).chain(refused).collect::<Vec<_>>().join("; "),
                ));
            }
            Err(error) => refused.push(error),
        }
    }
    if wanted == "auto" {
        return Ok(Choice::Cpu(match (refused.is_empty(), best) {
            (false, _) => refused.iter().map(Error::to_string).collect::<Vec<_>>().join("; "),
            (true, Some(best)) => format!("the best adapter, {best}; `gpu` would take it"),
            (true, None) => NO_ADAPTER.into(),
        }));
    }
    Err(refused.into_iter().next().unwrap_or_else(|| {
        let mut available = names.into_iter().chain(["cpu".into()]).collect::<Vec<_>>().join(", ");
        if !cfg!(feature = "gpu") {
            available += &format!(", for {NO_ADAPTER}; build it with the feature `gpu`");
        }
        Error::NoDevice { wanted: name.into(), available }
    }))
}

#[cfg(feature = "gpu")]
#[cfg(test)]
mod tests {
    use wgpu::DeviceType::{self, Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};

    use super::*;

    /// What is chosen of adapters of these kinds, in this order, of which some do not open.
    fn chosen(name: &str, kinds: &[DeviceType], broken: &[DeviceType]) -> Result<Choice<DeviceType>> {
        let adapter = |&kind: &DeviceType| {
            let mut info = wgpu::AdapterInfo::new(kind, wgpu::Backend::Vulkan);
            info.name = format!("{kind:?} of a test");
            ((), Adapter { info, limits: wgpu::Limits::default(), features: wgpu::Features::empty() })
        };
        let open = async |(), adapter: Adapter| match adapter.info().device_type {
            kind if broken.contains(&kind) => Err(Error::Gpu(format!("{} cannot be opened: planted", adapter.name()))),
            kind => Ok(kind),
        };
        pollster::block_on(choose(name, kinds.iter().map(adapter).collect(), open))
    }

    fn opened(choice: Result<Choice<DeviceType>>) -> (DeviceType, String) {
        match choice {
            Ok(Choice::Opened(kind, reason)) => (kind, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn auto_takes_a_gpu_and_never_a_software_driver() {
        for kind in [DiscreteGpu, IntegratedGpu, VirtualGpu] {
            let (taken, reason) = opened(chosen("auto", &[kind, Cpu], &[]));
            assert_eq!(taken, kind);
            assert!(reason.starts_with("the first "), "{reason}");
        }
        for kinds in [&[][..], &[Cpu], &[Other], &[Other, Cpu]] {
            let choice = chosen(" Auto ", kinds, &[]).unwrap();
            let Choice::Cpu(reason) = choice else { panic!("{choice:?}") };
            assert!(reason.contains(kinds.first().map_or("no GPU", |_| "`gpu` would take it")), "{reason}");
        }
    }

    #[test]
    fn a_gpu_that_does_not_open_is_named_in_the_reason() {
        let (taken, reason) = opened(chosen("auto", &[DiscreteGpu, IntegratedGpu, Cpu], &[DiscreteGpu]));
        assert_eq!(taken, IntegratedGpu);
        assert!(reason.contains("DiscreteGpu of a test cannot be opened: planted"), "{reason}");
        let choice = chosen("auto", &[DiscreteGpu, IntegratedGpu, Cpu], &[DiscreteGpu, IntegratedGpu]).unwrap();
        let Choice::Cpu(reason) = choice else { panic!("{choice:?}") };
        assert!(reason.contains("DiscreteGpu of") && reason.contains("IntegratedGpu of"), "{reason}");
    }

    #[test]
    fn by_name() {
        assert_eq!(opened(chosen("gpu", &[Cpu], &[])).0, Cpu);
        assert_eq!(opened(chosen("INTEGRATED", &[DiscreteGpu, IntegratedGpu], &[])).0, IntegratedGpu);
        assert!(matches!(chosen("discrete", &[DiscreteGpu, Cpu], &[DiscreteGpu]), Err(Error::Gpu(_))));
        let error = chosen("no such", &[DiscreteGpu], &[]).unwrap_err();
        assert!(matches!(&error, Error::NoDevice { .. }) && error.to_string().contains("DiscreteGpu"), "{error}");
    }

    #[test]
    fn a_setting_that_cannot_be_read_is_an_error() {
        assert_eq!(name_in(None).unwrap(), "auto");
        assert_eq!(name_in(Some("".into())).unwrap(), "auto");
        assert_eq!(name_in(Some("cpu".into())).unwrap(), "cpu");
        assert_eq!(
            [None, Some(""), Some("webgpu")].map(|setting| is_least(setting.map(Into::into)).unwrap()),
            [false, false, true]
        );
        let error = is_least(Some("WebGL".into())).unwrap_err().to_string();
        assert!(["ELMAN_LIMITS", "`webgpu`", "WebGL"].iter().all(|part| error.contains(part)), "{error}");
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStringExt as _;
            let error = name_in(Some(OsString::from_vec(vec![b'c', 0xff]))).unwrap_err();
            assert!(error.to_string().contains(ENVIRONMENT_VARIABLE) && error.to_string().contains("xFF"), "{error}");
        }
    }
}
