//! Choosing a device.

mod common;

use common::gpu;
use elman::{Device, Error};

#[test]
fn cpu_by_name() {
    let device = Device::open(" CPU ").unwrap();
    assert!(!device.is_gpu() && device.describe().starts_with("CPU ("), "{}", device.describe());
}

#[test]
fn auto_never_takes_a_software_driver_and_says_why() {
    let device = Device::open("auto").unwrap();
    let real = Device::list().iter().any(|adapter| !adapter.is_software());
    assert!(device.is_gpu() <= real, "{device:?}");
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
