//! Published networks give here what they give elsewhere. They are in the folder that ELMAN_PUBLISHED names, made by
//! `tests/fixtures/published`; `tests/run.sh --with-python` does both.

#![cfg(feature = "onnx")]

mod common;

use std::path::PathBuf;

use common::{assert_close, f32_devices, not_tested};
use elman::onnx::Model;
use elman::{Graph, Tensor};
use safetensors::SafeTensors;

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("ELMAN_PUBLISHED").map(PathBuf::from);
    if folder.is_none() {
        common::say_loudly(
            "published networks: skipped, for ELMAN_PUBLISHED names no folder (tests/run.sh --with-python)",
        );
        if std::env::var_os("ELMAN_PYTHON").is_some() {
            not_tested("published networks");
        }
    }
    folder
}

/// Silero VAD: a transform, four convolutions, an LSTM. 10,000 frames at once on the CPU, blocks of some hundred on each device, with
/// the states handed on.
#[test]
fn silero_vad() {
    let Some(folder) = folder() else { return };
    let model = Model::read(folder.join("silero.onnx")).unwrap();
    let bytes = std::fs::read(folder.join("silero.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| bytemuck::pod_collect_to_vec::<u8, f32>(file.tensor(name).unwrap().data());
    let (x, want) = (read("x"), read("probabilities"));
    let want: Vec<_> = want.iter().map(|&value| f64::from(value)).collect();
    for device in f32_devices() {
        let is_cpu = !device.is_gpu();
        let (frames_of_a_block, blocks) = if is_cpu { (1000, 10) } else { (100, 10) };
        let parameters = model.parameters(&device).unwrap();
        let frames = device.zeros("frames", &[frames_of_a_block, 576], elman::DType::F32).unwrap();
        let states = ["h", "c"].map(|name| device.zeros(name, &[1, 1, 128], elman::DType::F32).unwrap());
        let mut g = Graph::inference(&parameters);
        let [input, h, c] = [&frames, &states[0], &states[1]].map(|tensor| g.input(tensor).unwrap());
        let out = model.record(&mut g, &[("input", input.into()), ("h", h.into()), ("c", c.into())]).unwrap();
        let [p, h, c] = ["speech_probs", "hn", "cn"].map(|name| g.tensor(out.get(name).unwrap()).unwrap());
        let plan = g.finish().unwrap();
        let mut got = Vec::new();
        let start = std::time::Instant::now();
        for block in x.chunks(frames_of_a_block * 576).take(blocks) {
            frames.write(block).unwrap();
            plan.run().unwrap();
            got.extend(p.to_vec_f64().unwrap());
            let hand_on = |from: &Tensor, to: &Tensor| to.write(&from.to_vec().unwrap()).unwrap();
            hand_on(&h, &states[0]);
            hand_on(&c, &states[1]);
        }
        let seconds = start.elapsed().as_secs_f64();
        common::say_loudly(&format!(
            "silero on {device:?}: {} frames, {:.0} a second",
            got.len(),
            got.len() as f64 / seconds
        ));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() < 1e-5, "frame {i} on {device:?}: {got}, where {want} belongs");
        }
        if got.len() == want.len() {
            for (name, tensor) in [("h", &h), ("c", &c)] {
                let want: Vec<_> = read(name).iter().map(|&value| f64::from(value)).collect();
                assert_close(name, &tensor.to_vec_f64().unwrap(), &want, 128, 1e-3);
            }
        }
    }
}
