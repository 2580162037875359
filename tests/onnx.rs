//! ONNX files that others wrote, with their inputs and outputs: what the package `onnx` asks of operators, and what PyTorch's exporters,
//! tf2onnx and Keras make of recurrent networks.

#![cfg(feature = "onnx")]

mod common;

use std::collections::BTreeMap;

use common::{assert_close, f32_devices};
use elman::onnx::{Input, Model};
use elman::{Device, Graph};
use safetensors::{Dtype, SafeTensors};

/// A file, what goes in, and what comes out.
#[derive(Default)]
struct Case {
    model: Vec<u8>,
    inputs: Vec<(String, Values)>,
    outputs: Vec<(String, Values)>,
}

struct Values {
    shape: Vec<usize>,
    reals: Vec<f32>,
    /// Of whole numbers.
    wholes: Option<Vec<u32>>,
}

fn cases() -> BTreeMap<String, Case> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx_cases.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    for (key, view) in file.tensors() {
        let (name, what) = key.split_once('/').unwrap();
        let case = cases.entry(name.into()).or_default();
        let data = view.data();
        let reals = |data: &[u8]| bytemuck::pod_collect_to_vec::<u8, f32>(data);
        let (reals, wholes) = match view.dtype() {
            Dtype::F32 => (reals(data), None),
            Dtype::I32 => {
                (vec![], Some(bytemuck::pod_collect_to_vec::<u8, i32>(data).iter().map(|&x| x as u32).collect()))
            }
            Dtype::I64 => {
                (vec![], Some(bytemuck::pod_collect_to_vec::<u8, i64>(data).iter().map(|&x| x as u32).collect()))
            }
            _ => (vec![], None),
        };
        let values = Values { shape: view.shape().to_vec(), reals, wholes };
        match what.split_once('/') {
            Some(("input", port)) => case.inputs.push((port.into(), values)),
            Some((_, port)) => case.outputs.push((port.into(), values)),
            None => case.model = data.to_vec(),
        }
    }
    cases
}

/// Runs a model on a device, with its own parameters.
fn run(name: &str, case: &Case, device: &Device) -> Vec<(String, Vec<usize>, Vec<f64>)> {
    let model = Model::from_bytes(&case.model).unwrap_or_else(|error| panic!("{name}: {error}"));
    let parameters = model.has_parameters().then(|| model.parameters(device).unwrap());
    let mut g = parameters.as_ref().map_or_else(|| Graph::without_parameters(device), Graph::inference);
    let mut inputs: Vec<(&str, Input)> = Vec::new();
    for (port, values) in &case.inputs {
        let input: Input = match &values.wholes {
            None => g.input(&device.upload(port, &values.shape, &values.reals).unwrap()).unwrap().into(),
            Some(wholes) if port.contains("len") => {
                let steps = case.inputs.iter().find(|(port, _)| port == "X").unwrap().1.shape[0];
                let lengths = device.lengths(port, wholes.len(), steps).unwrap();
                lengths.write_u32(wholes).unwrap();
                (&lengths).into()
            }
            Some(wholes) => {
                let tokens = device.tokens(port, &values.shape, 9).unwrap();
                tokens.write_u32(wholes).unwrap();
                (&tokens).into()
            }
        };
        inputs.push((port, input));
    }
    let outputs = model.record(&mut g, &inputs).unwrap_or_else(|error| panic!("{name} on {device:?}: {error}"));
    let tensors: Vec<_> = outputs.iter().map(|(port, var)| (port.to_owned(), g.tensor(var).unwrap())).collect();
    g.finish().unwrap().run().unwrap();
    let read = |(port, tensor): (String, elman::Tensor)| (port, tensor.shape().to_vec(), tensor.to_vec_f64().unwrap());
    tensors.into_iter().map(read).collect()
}

#[test]
fn others_files_give_the_same_numbers() {
    let cases = cases();
    let of_onnx = cases.keys().filter(|name| name.starts_with("test_")).count();
    assert_eq!(of_onnx, 18, "cases of the package `onnx`");
    for (name, case) in &cases {
        for device in f32_devices() {
            let outputs = run(name, case, &device);
            for (port, want) in &case.outputs {
                let what = format!("{name}: {port} on {device:?}");
                let (_, shape, got) = outputs.iter().find(|(other, ..)| other == port).expect(&what);
                assert_eq!(shape, &want.shape, "{what}");
                let wanted: Vec<_> = want.reals.iter().map(|&value| f64::from(value)).collect();
                assert_close(&what, got, &wanted, wanted.len(), 1e-5);
            }
        }
    }
}
