//! Published networks give here what they give elsewhere. They are in the folder that ELMAN_PUBLISHED names, made by
//! `tests/fixtures/published`; `tests/run.sh --with-python` does both.

#![cfg(feature = "onnx")]

mod common;
#[path = "../examples/published/rnnoise.rs"]
#[allow(dead_code, reason = "the tests use the networks")]
mod rnnoise;
#[path = "../examples/published/silero.rs"]
#[allow(dead_code, reason = "the tests use the networks")]
mod silero;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{assert_close, f32_devices, not_tested, say_loudly, widen};
use elman::Device;
use elman::onnx::Model;
use safetensors::SafeTensors;

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("ELMAN_PUBLISHED").map(PathBuf::from);
    if folder.is_none() {
        say_loudly("published networks: skipped, for ELMAN_PUBLISHED names no folder (tests/run.sh --with-python)");
        if std::env::var_os("ELMAN_PYTHON").is_some() {
            not_tested("published networks");
        }
    }
    folder
}

/// A file of that folder; if it is not there, that is said.
fn read(folder: &Path, name: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(folder.join(name)).ok();
    if bytes.is_none() {
        not_tested(&format!("published networks: there is no {name}, which tests/run.sh --with-python makes"));
    }
    bytes
}

/// Of a tensor in such a file.
fn values<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(bytes: &[u8], name: &str) -> Vec<T> {
    bytemuck::pod_collect_to_vec(SafeTensors::deserialize(bytes).unwrap().tensor(name).unwrap().data())
}

/// The largest difference; NaN if there is one.
#[track_caller]
fn apart(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let each = got.iter().zip(want).map(|(got, want)| (got - want).abs());
    each.fold(0.0, |most, apart| if apart > most || apart.is_nan() { apart } else { most })
}

/// Runs something; how many of these it does a second, beside what it gives.
fn timed<T>(count: usize, run: impl FnOnce() -> elman::Result<T>) -> (T, f64) {
    let start = Instant::now();
    let result = run().unwrap();
    (result, count as f64 / start.elapsed().as_secs_f64())
}

/// Probabilities of 10,000 frames, in blocks and frame by frame; some hundred on a GPU.
#[test]
fn silero_vad() {
    let Some(folder) = folder() else { return };
    let Some(file) = read(&folder, "silero.safetensors") else { return };
    let model = Model::read(folder.join("silero.onnx")).unwrap();
    let (x, want) = (values::<f32>(&file, "x"), values::<f32>(&file, "probabilities"));
    for device in f32_devices() {
        let (frames, pushes) = if device.is_gpu() { (600, 70) } else { (10_000, 10_000) };
        let parameters = model.parameters(&device).unwrap();
        let state = silero::state(&device).unwrap();
        let mut predictor = silero::predictor(&model, &parameters, &state);
        let x = &x[..frames * silero::FRAME];
        let (in_blocks, of_blocks) = timed(frames, || silero::in_blocks(&mut predictor, x));
        let own = silero::state(&device).unwrap();
        let mut stream = silero::stream(&model, &parameters, own).unwrap();
        let x = &x[..pushes * silero::FRAME];
        let (one_by_one, of_pushes) = timed(pushes, || silero::one_by_one(&mut stream, x));
        let (from_theirs, from_blocks) = (apart(&in_blocks, &want[..frames]), apart(&one_by_one, &in_blocks[..pushes]));
        say_loudly(&format!(
            "silero on {device:?}: {frames} frames, {from_theirs:.1e} from onnxruntime's, {of_blocks:.0} a second; frame by frame \
             {from_blocks:.1e} from blocks, {of_pushes:.0} a second"
        ));
        assert!(from_theirs < 1e-5 && from_blocks < 1e-6, "{device:?}");
        if frames == want.len() {
            for (name, got) in state.save().unwrap() {
                let want = values::<f32>(&file, &name);
                assert_close(&name, &widen(&got), &widen(&want), 128, 1e-3);
            }
        }
    }
}

/// A recording of speech: the package's probabilities, and its segments, sample by sample.
#[test]
fn silero_segments() {
    let Some(folder) = folder() else { return };
    let Some(file) = read(&folder, "silero_speech.safetensors") else { return };
    let samples = silero::read_wav(&folder.join("speech.wav")).unwrap();
    let frames = silero::frames(&samples);
    let (want, segments) = (values::<f32>(&file, "speech"), values::<i64>(&file, "segments"));
    let segments: Vec<_> = segments.chunks(3).map(|row| row[1] as usize..row[2] as usize).collect();
    let model = Model::read(folder.join("silero.onnx")).unwrap();
    for device in f32_devices() {
        let parameters = model.parameters(&device).unwrap();
        let state = silero::state(&device).unwrap();
        let got = silero::in_blocks(&mut silero::predictor(&model, &parameters, &state), &frames).unwrap();
        let apart = apart(&got, &want);
        let found = silero::segments(&got, samples.len());
        say_loudly(&format!(
            "silero on {device:?}: {} frames of speech, {apart:.1e} from the package's, {} segments",
            got.len(),
            found.len()
        ));
        assert!(apart < 1e-5, "{device:?}");
        assert_eq!(found, segments, "{device:?}");
    }
}

/// Segments of probabilities that wander about, as the package has them.
#[test]
fn silero_segments_of_any_probabilities() {
    let Some(folder) = folder() else { return };
    let Some(file) = read(&folder, "silero_speech.safetensors") else { return };
    let (walks, segments) = (values::<f32>(&file, "walks"), values::<i64>(&file, "walk_segments"));
    const FRAMES: usize = 300;
    let mut found = Vec::new();
    for (i, walk) in walks.chunks(FRAMES).enumerate() {
        let segments = silero::segments(walk, FRAMES * 512 - 100);
        found.extend(segments.into_iter().flat_map(|segment| [i, segment.start, segment.end].map(|n| n as i64)));
    }
    assert!(found.len() > 300);
    assert_eq!(found, segments);
}

/// Frames a second beside onnxruntime's, in turn: `cargo test --release --test published -- --ignored --nocapture`.
#[test]
#[ignore = "it measures"]
fn silero_beside_onnxruntime() {
    let Some(folder) = folder() else { return };
    let Some(python) = std::env::var_os("ELMAN_PYTHON") else { return };
    let x = values::<f32>(&read(&folder, "silero.safetensors").unwrap(), "x");
    let model = Model::read(folder.join("silero.onnx")).unwrap();
    let device = Device::cpu();
    let parameters = model.parameters(&device).unwrap();
    let (state, own) = (silero::state(&device).unwrap(), silero::state(&device).unwrap());
    let mut predictor = silero::predictor(&model, &parameters, &state);
    let mut stream = silero::stream(&model, &parameters, own).unwrap();
    let few = &x[..2000 * silero::FRAME];
    for _ in 0..3 {
        let (_, of_blocks) = timed(10_000, || silero::in_blocks(&mut predictor, &x));
        let (_, of_pushes) = timed(2000, || silero::one_by_one(&mut stream, few));
        say_loudly(&format!("elman: in blocks {of_blocks:.0} frames a second, frame by frame {of_pushes:.0}"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/published/silero.py");
        let done = Command::new(&python).arg(script).arg("--speed").arg(&folder).status().unwrap();
        assert!(done.success());
    }
}

/// Gains and probabilities of a noisy recording, in blocks and frame by frame; some hundred frames on a GPU.
#[test]
fn rnnoise() {
    let Some(folder) = folder() else { return };
    let Some(file) = read(&folder, "rnnoise_frames.safetensors") else { return };
    let [features, gains, speech] = ["features", "gains", "speech"].map(|name| values::<f32>(&file, name));
    for device in f32_devices() {
        let (frames, pushes) = if device.is_gpu() { (600, 70) } else { (speech.len(), speech.len()) };
        let features = &features[..frames * rnnoise::FEATURES];
        let (network, parameters) = rnnoise::RnNoise::read(&device, &folder.join("rnnoise.safetensors")).unwrap();
        let states = network.states(&device).unwrap();
        let mut predictor = network.predictor(&parameters, &states);
        let (in_blocks, of_blocks) = timed(frames, || rnnoise::in_blocks(&mut predictor, features));
        let mut stream = network.stream(&parameters, network.states(&device).unwrap()).unwrap();
        let few = &features[..pushes * rnnoise::FEATURES];
        let (one_by_one, of_pushes) = timed(pushes, || rnnoise::one_by_one(&mut stream, few));
        let from_crate =
            [apart(&in_blocks.0, &gains[..frames * rnnoise::BANDS]), apart(&in_blocks.1, &speech[..frames])];
        let from_blocks = [
            apart(&one_by_one.0, &in_blocks.0[..pushes * rnnoise::BANDS]),
            apart(&one_by_one.1, &in_blocks.1[..pushes]),
        ];
        say_loudly(&format!(
            "rnnoise on {device:?}: {frames} frames, gains and speech {from_crate:?} from the crate's, {of_blocks:.0} a second; frame \
             by frame {from_blocks:?} from blocks, {of_pushes:.0} a second"
        ));
        assert!(from_crate.iter().all(|&apart| apart < 1e-4), "{device:?}");
        assert!(from_blocks.iter().all(|&apart| apart < 1e-5), "{device:?}");
    }
}
