//! `elman doctor`, `elman plan` and `elman bench` as a user runs them.

mod common;

use std::process::{Command, Output};

use elman::kernels;
use serde_json::Value;

fn elman(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elman"));
    command.env_remove("ELMAN_DEVICE").env("ELMAN_BOUNDS_CHECKS", "1").env("NODEVICE_SELECT", "1");
    command.args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What it prints as JSON, and its exit code.
fn json(arguments: &[&str]) -> (Value, Option<i32>) {
    let output = elman(arguments);
    let value = serde_json::from_slice(&output.stdout);
    (value.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}")), output.status.code())
}

/// `cpu`, and `gpu` where there is one.
fn devices() -> Vec<&'static str> {
    let gpu = common::gpu().map(|_| "gpu");
    std::iter::once("cpu").chain(gpu).collect()
}

#[test]
fn doctor_compares_every_kernel() {
    for device in devices() {
        let (report, code) = json(&["doctor", "--device", device, "--json"]);
        assert_eq!((code, &report["verdict"], &report["problems"]), (Some(0), &"right".into(), &Value::Array(vec![])));
        assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
        let of = |value: &Value| value["kernel"].as_str().unwrap().to_owned();
        let listed: Vec<_> = report["kernels"].as_array().unwrap().iter().map(of).collect();
        assert_eq!(listed, kernels::ALL.iter().map(|kernel| kernel.name).chain(["map"]).collect::<Vec<_>>());
        for kernel in report["kernels"].as_array().unwrap() {
            assert!(kernel["comparisons"].as_u64().unwrap() > 0, "{kernel}");
            assert!(kernel["error"].as_f64().unwrap() <= 1e-4 || kernel["kernel"] == "pack", "{kernel}");
        }
        for check in report["checks"].as_array().unwrap() {
            assert!(["right", "absent"].contains(&check["result"].as_str().unwrap()), "{check}");
        }
        for cost in ["dispatch_us", "round_trip_us", "read_us", "gflop_per_second", "gb_per_second"] {
            assert!(report["costs"][cost].as_f64().unwrap() > 0.0, "{cost}: {report}");
        }
        let is_examined = |adapter: &Value| adapter["is_examined"] == true;
        let adapters = report["adapters"].as_array().unwrap();
        assert_eq!(adapters.iter().any(is_examined), device == "gpu", "{adapters:?}");
    }
}

#[test]
fn doctor_is_read_by_people() {
    let output = elman(&["doctor", "--device", "cpu"]);
    let text = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    for part in ["adapters", "examined: CPU", "lstm_backward", "exponentials", "GFLOP/s", "verdict: right", "subgroups"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// An adapter that was refused when it was opened is examined all the same.
#[test]
#[cfg(all(feature = "gpu", target_os = "linux"))]
fn doctor_examines_what_is_refused() {
    if common::gpu().is_none() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let doctor = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elman"));
        command.env_remove("ELMAN_DEVICE").env("XDG_CACHE_HOME", cache.path()).env("NODEVICE_SELECT", "1");
        command.args(["doctor", "--device", "gpu", "--json"]).output().unwrap()
    };
    assert!(doctor().status.success());
    let kept = cache.path().join("elman/self_check.json");
    let verdict = std::fs::read_to_string(&kept).unwrap().replacen("\"basics\": null", "\"basics\": \"planted\"", 1);
    std::fs::write(kept, verdict).unwrap();
    let output = doctor();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["verdict"]), (Some(1), &"wrong".into()));
    let problems = report["problems"].as_array().unwrap();
    assert!(problems.len() == 1 && problems[0].as_str().unwrap().contains("planted"), "{problems:?}");
    assert!(report["kernels"].as_array().unwrap().iter().all(|kernel| kernel["is_right"] == true));
}

#[test]
fn doctor_of_no_such_device() {
    let (report, code) = json(&["doctor", "--device", "no such", "--json"]);
    assert_eq!((code, &report["verdict"]), (Some(1), &"wrong".into()));
    assert!(report["problems"][0].as_str().unwrap().contains("no such"), "{report}");
    assert_eq!(elman(&["doctor", "--no-such-option"]).status.code(), Some(2));
}

#[test]
fn plans_are_shown() {
    for device in devices() {
        let sizes = ["--cell", "lstm", "--layers", "2", "--hidden", "33", "--device", device, "--json"];
        let train = ["plan", "train", "--window", "5", "--batch", "7", "--optimizer", "rmsprop"];
        let (train, code) = json(&[&train[..], &sizes].concat());
        assert_eq!((code, &train["problems"]), (Some(0), &Value::Array(vec![])), "{train}");
        let names: Vec<_> =
            train["kernels"].as_array().unwrap().iter().map(|of| of["kernel"].as_str().unwrap()).collect();
        assert!(names.contains(&"lstm_backward") && names.contains(&"rms_prop"), "{names:?}");
        assert!(train["flops"].as_u64().unwrap() > 0 && train["memory"].as_u64().unwrap() > 0);
        assert!(train["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains("steps")));
        let (sample, code) = json(&[&["plan", "sample", "--lanes", "3"][..], &sizes].concat());
        assert_eq!(code, Some(0), "{sample}");
    }
    let output =
        elman(&["plan", "train", "--device", "cpu", "--commands", "--last-step", "--cell", "rnn", "--hidden", "256"]);
    let text = text(&output.stdout);
    for part in ["training step: Tanh, 1 x 256", "rnn_forward", "MFLOP", "largest tensors", "it fits", "-> "] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// What cannot be, is said with figures, and takes no memory to say.
#[test]
fn plans_that_do_not_fit() {
    let large = ["plan", "train", "--hidden", "30000", "--batch", "2000", "--window", "200", "--json"];
    for device in devices() {
        let output = elman(&[&large[..], &["--device", device]].concat());
        assert_eq!(output.status.code(), Some(1), "{device}: {output:?}");
        let said = [text(&output.stdout), text(&output.stderr)].concat();
        assert!(
            said.contains(" GB") || said.contains("elements") || said.contains("bytes in one buffer"),
            "{device}: {said}"
        );
    }
    for wrong in [["--hidden", "0"], ["--batch", "-1"], ["--window", "x"], ["--cell", "no"]] {
        assert_eq!(elman(&[&["plan", "train"], &wrong[..]].concat()).status.code(), Some(2), "{wrong:?}");
    }
    let most = "2147483647";
    let all = ["plan", "train", "--hidden", most, "--batch", most, "--layers", "3", "--device", "cpu"];
    let output = elman(&all);
    assert!(output.status.code() == Some(1) && text(&output.stderr).starts_with("error: "), "{output:?}");
}

#[test]
fn workloads_are_timed_beside_ceilings() {
    let output = elman(&["bench", "w1", "w4", "--device", "cpu", "--runs", "2", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["gflop_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!((&lines[1]["workload"], &lines[2]["workload"]), (&"w1".into(), &"w4".into()));
    for line in &lines[1..] {
        assert!(line["median_ms"].as_f64().unwrap() > 0.0 && line["share_of_most"].as_f64().unwrap() > 0.0, "{line}");
    }
}
