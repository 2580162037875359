//! Shared by the tests: devices, test values, comparisons that can fail.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::Write as _;
use std::process::Command;
use std::sync::OnceLock;

use elman::Device;
use elman::kernels::generate::{Layer, Network, Sizes};
use elman::nn::{CharRnn, CharRnnOptions, Init, Parameters};
use safetensors::SafeTensors;

/// The GPU under test, a software one included. Without one: an error under `ELMAN_REQUIRE_GPU=1`, otherwise one loud
/// line, and the caller goes on without.
pub fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    GPU.get_or_init(own_gpu).clone()
}

/// [`gpu`], opened anew: for tests that count what a device does, or lose it.
pub fn own_gpu() -> Option<Device> {
    match Device::open("gpu") {
        Ok(device) => Some(device),
        Err(error) if std::env::var_os("ELMAN_REQUIRE_GPU").is_some_and(|value| value == "1") => {
            panic!("ELMAN_REQUIRE_GPU=1, but {error}")
        }
        Err(error) => {
            say_loudly(&format!("NO GPU TESTED: {error}"));
            None
        }
    }
}

/// Says what this adapter does not let a test look at; an error under `ELMAN_REQUIRE_ALL=1`, as where all of it is known to be
/// there.
#[track_caller]
pub fn not_tested(what: &str) {
    assert!(
        std::env::var_os("ELMAN_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "ELMAN_REQUIRE_ALL=1, but not tested: {what}"
    );
    say_loudly(&format!("NOT TESTED: {what}"));
}

/// How often: in the short form that runs with all tests, or the full one of `tests/run.sh --soak`.
pub fn soak(short: usize, full: usize) -> usize {
    let is_full = std::env::var_os("ELMAN_SOAK").is_some_and(|value| value == "1");
    if is_full { full } else { short }
}

/// Not `eprintln!`, which the test harness swallows when the test passes.
pub fn say_loudly(line: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{line}").unwrap();
}

/// An example beside the test's own binary; `cargo test` builds both.
pub fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let binary = folder.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(binary.exists(), "{} is missing: run `cargo build --examples` with the same profile", binary.display());
    let mut command = Command::new(binary);
    command.env_remove("ELMAN_DEVICE").env("ELMAN_BOUNDS_CHECKS", "1");
    command
}

/// The devices that compute in f32: the CPU, and the GPU where there is one.
pub fn f32_devices() -> Vec<Device> {
    [Some(Device::cpu()), gpu()].into_iter().flatten().collect()
}

/// `n` values in [-1, 1), irregular, the same everywhere.
pub fn values(seed: u32, n: usize) -> Vec<f32> {
    elman::rng::manual_seed(seed.into()).uniform(n, -1.0, 1.0)
}

/// A network of these sizes and its parameters, loud enough for texts that differ.
pub fn network(device: &Device, sizes: Sizes) -> elman::Result<(CharRnn, Parameters, Network)> {
    let Sizes { cell, layers, vocabulary, hidden } = sizes;
    let mut init = Init::new(elman::rng::manual_seed(9));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(vocabulary, 3, hidden).cell(cell).num_layers(layers))?;
    let parameters = init.upload(device)?;
    for (_, tensor) in parameters.iter() {
        tensor.write(&tensor.to_vec()?.iter().map(|w| 2.0 * w).collect::<Vec<_>>())?;
    }
    let get = |name: &str| parameters.get(name).unwrap_or_else(|| panic!("no {name}"));
    let layer = |i: usize| {
        let get = |name: &str| get(&format!("rnn.{name}_l{i}"));
        let [weight_ih, weight_hh] = ["weight_ih", "weight_hh"].map(get);
        let [bias_ih, bias_hh] = ["bias_ih", "bias_hh"].map(get);
        Layer { weight_ih, weight_hh, bias_ih, bias_hh }
    };
    let network = Network {
        cell,
        embedding: get("embedding_layer.weight"),
        layers: (0..layers).map(layer).collect(),
        weight: get("output_layer.weight"),
        bias: get("output_layer.bias"),
    };
    Ok((model, parameters, network))
}

/// `n` tokens below `vocabulary`.
pub fn tokens(seed: u32, n: usize, vocabulary: usize) -> Vec<u32> {
    let mut rng = elman::rng::manual_seed(seed.into());
    (0..n).map(|_| rng.next_u32() % vocabulary as u32).collect()
}

/// Compares rows of `columns` values: each within `tolerance` of the largest value of its row. NaN never passes.
pub fn compare(got: &[f64], want: &[f64], columns: usize, tolerance: f64) -> Result<(), String> {
    if got.len() != want.len() || got.is_empty() {
        return Err(format!("{} values, expected {}", got.len(), want.len()));
    }
    let mut worst: Option<(f64, usize)> = None;
    let mut wrong = 0;
    for (row, (g, w)) in got.chunks(columns).zip(want.chunks(columns)).enumerate() {
        let scale = w.iter().fold(0.0f64, |scale, w| scale.max(w.abs())).max(f64::MIN_POSITIVE);
        for (i, (g, w)) in g.iter().zip(w).enumerate() {
            let relative = (g - w).abs() / scale;
            let within = relative <= tolerance;
            if !within {
                wrong += 1;
                if !worst.is_some_and(|(most, _)| relative <= most) {
                    worst = Some((relative, row * columns + i));
                }
            }
        }
    }
    match worst {
        None => Ok(()),
        Some((relative, at)) => Err(format!(
            "{wrong} of {} wrong; worst at {at}: {} instead of {}, {relative:.2e} of the row's scale, allowed {tolerance:.0e}",
            got.len(),
            got[at],
            want[at],
        )),
    }
}

/// [`compare`], as an assertion.
#[track_caller]
pub fn assert_close(what: &str, got: &[f64], want: &[f64], columns: usize, tolerance: f64) {
    if let Err(problem) = compare(got, want, columns, tolerance) {
        panic!("{what}: {problem}");
    }
}

pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// A file that `tests/fixtures/generate.py` made, whole.
pub struct Fixture(Vec<u8>);

impl Fixture {
    pub fn open(name: &str) -> Self {
        let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Self(std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    pub fn try_get(&self, name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).ok()?;
        let values = match view.dtype() {
            safetensors::Dtype::F32 => widen(&bytemuck::pod_collect_to_vec::<u8, f32>(view.data())),
            safetensors::Dtype::F64 => bytemuck::pod_collect_to_vec(view.data()),
            safetensors::Dtype::I64 => {
                bytemuck::pod_collect_to_vec::<u8, i64>(view.data()).iter().map(|&i| i as f64).collect()
            }
            other => panic!("{name} is {other:?}"),
        };
        Some((view.shape().to_vec(), values))
    }

    pub fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.0).unwrap().names().iter().map(|&name| name.to_owned()).collect()
    }

    pub fn get(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        self.try_get(name).unwrap_or_else(|| panic!("no `{name}` in the fixture"))
    }

    pub fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, values) = self.get(name);
        (shape, values.iter().map(|&value| value as f32).collect())
    }
}

/// A network of texts that differ: initial weights are timid, and these are louder.
pub fn model_of(device: &Device, options: CharRnnOptions) -> (CharRnn, Parameters) {
    let mut init = Init::new(elman::rng::manual_seed(9));
    let model = CharRnn::new(&mut init, options).unwrap();
    let parameters = init.upload(device).unwrap();
    for (_, tensor) in parameters.iter() {
        tensor.write(&tensor.to_vec().unwrap().iter().map(|w| 3.0 * w).collect::<Vec<_>>()).unwrap();
    }
    (model, parameters)
}
