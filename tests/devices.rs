//! Choosing a device.

mod common;

use std::path::Path;
use std::process::Command;

use common::gpu;
use elman::{DType, Device, Error, Graph, Precision};

#[test]
fn cpu_by_name() {
    let device = Device::open(" CPU ").unwrap();
    assert!(!device.is_gpu() && device.describe().starts_with("CPU ("), "{}", device.describe());
}

/// What it takes of adapters that other machines have, `src/open.rs` tests.
#[test]
fn auto_takes_a_gpu_and_never_a_software_driver() {
    let device = Device::open("auto").unwrap();
    let real: Vec<_> = Device::list().into_iter().filter(|adapter| !adapter.is_software()).collect();
    let is_named = |text: &str| real.iter().any(|adapter| text.contains(adapter.name()));
    assert_eq!(device.is_gpu(), is_named(&device.describe()), "{device:?}");
    assert!(device.is_gpu() || real.is_empty() || is_named(device.reason()), "{}", device.reason());
    assert!(!device.reason().is_empty());
}

#[test]
fn an_unknown_name_is_refused_with_what_there_is() {
    for name in ["no such adapter", ""] {
        let error = Device::open(name).unwrap_err();
        assert!(matches!(&error, Error::NoDevice { wanted, .. } if wanted == name), "{error}");
        assert!(error.to_string().contains("cpu"), "{error}");
    }
}

#[test]
fn an_adapter_by_part_of_its_name() {
    let Some(device) = gpu() else { return };
    let adapter = &Device::list()[0];
    let part: String = adapter.name().chars().take(5).collect::<String>().to_uppercase();
    let same = Device::open(&part).unwrap();
    assert_eq!(same.describe(), device.describe());
    assert!(same.reason().contains(&part.to_lowercase()), "{}", same.reason());
    assert!(adapter.limits().contains("MiB per binding"));
}

/// Run by the next two tests, with a cache folder of its own.
#[test]
#[ignore = "a part of other tests"]
fn open_and_say() {
    match Device::open("gpu") {
        Ok(device) => {
            println!("reason: {}", device.reason());
            println!("f16: {:?}", Graph::without_parameters(&device).set_precision(Precision::F16).err());
            println!("256 MiB: {:?}", device.zeros("x", &[64 << 20], DType::F32).err());
        }
        Err(error) => println!("error: {error}"),
    }
}

/// [`open_and_say`], with a setting.
fn opened_with(folder: &Path, variable: &str, value: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "open_and_say", "--ignored", "--nocapture"]);
    command.env("XDG_CACHE_HOME", folder).env(variable, value);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn an_adapter_can_be_limited_to_what_webgpu_promises() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let open = |limits: &str| opened_with(folder.path(), "ELMAN_LIMITS", limits);
    let limited = open("webgpu");
    let allowed = (128 << 20).to_string();
    assert!(limited.contains("no f16") && limited.contains(&allowed), "{limited}");
    assert!(open("").contains("reason: ") && open("") != limited, "{limited}");
    assert!(open("webgl").contains("error: ") && open("webgl").contains("ELMAN_LIMITS"), "{}", open("webgl"));
}

/// What an adapter has computed wrong is not used, from then on.
#[test]
#[cfg(target_os = "linux")]
fn a_verdict_is_kept_and_obeyed() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let open = |check: &str| opened_with(folder.path(), "ELMAN_SELF_CHECK", check);
    let file = folder.path().join("elman").join("self_check.json");
    assert!(open("0").contains("reason: ") && !file.exists());
    assert!(open("1").contains("reason: "));
    let kept = std::fs::read_to_string(&file).unwrap();
    let plant = |what: &str| {
        let mut json: serde_json::Value = serde_json::from_str(&kept).unwrap();
        for (_, verdict) in json["verdicts"].as_object_mut().unwrap() {
            verdict[what] = "planted".into();
        }
        std::fs::write(&file, json.to_string()).unwrap();
    };
    plant("subgroups");
    assert!(open("1").contains("subgroups are not used, since planted"), "{}", open("1"));
    plant("basics");
    assert!(open("1").contains("computes wrong values (planted)"), "{}", open("1"));
    assert!(open("0").contains("reason: the best adapter\n"), "{}", open("0"));
}

/// What asks for a GPU is told why there is none, and what to do about it.
#[test]
#[cfg(not(feature = "gpu"))]
fn without_the_feature_there_is_the_cpu_alone() {
    assert!(Device::list().is_empty());
    let device = Device::open("auto").unwrap();
    assert!(!device.is_gpu() && device.reason().contains("without its feature `gpu`"), "{}", device.reason());
    let error = Device::open("gpu").unwrap_err();
    assert!(matches!(&error, Error::NoDevice { .. }), "{error}");
    for part in ["cpu", "without its feature `gpu`", "build it with the feature `gpu`"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}
