//! ONNX files: reading one is an error that says why, or a model, whose recording is an error that says why, or a graph.
#![no_main]

use elman::onnx::{Input, Model};
use elman::{DType, Device, Graph};
use elman_fuzz::says_why;
use libfuzzer_sys::fuzz_target;

/// Sizes that the file leaves open are this, and a graph's inputs have no more elements than so many.
const ANY: usize = 2;
const MOST: usize = 1 << 12;

thread_local!(static DEVICE: Device = Device::cpu());

fuzz_target!(|bytes: &[u8]| {
    DEVICE.with(|device| {
        let recorded = Model::from_bytes(bytes).and_then(|model| record(&model, device));
        recorded.unwrap_or_else(|error| says_why(&error));
    });
});

fn record(model: &Model, device: &Device) -> elman::Result<()> {
    model.warning().inspect(|warning| assert!(!warning.is_empty()));
    let parameters = model.has_parameters().then(|| model.parameters(device)).transpose()?;
    let mut g = parameters.as_ref().map_or_else(|| Graph::without_parameters(device), Graph::inference);
    let mut inputs: Vec<(&str, Input)> = Vec::new();
    for port in model.inputs() {
        let shape: Vec<_> = port.shape.iter().flatten().map(|size| size.unwrap_or(ANY)).collect();
        if shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size)).is_none_or(|len| len > MOST) {
            return Ok(());
        }
        let input = match port.is_integer {
            true => Input::from(&device.tokens(&port.name, &shape, ANY)?),
            false => g.input(&device.zeros(&port.name, &shape, DType::F32)?)?.into(),
        };
        inputs.push((&port.name, input));
    }
    let outputs = model.record(&mut g, &inputs)?;
    assert_eq!(outputs.iter().count(), model.outputs().len());
    Ok(())
}
