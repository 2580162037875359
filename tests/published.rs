//! Published networks give here what they give elsewhere. They are in the folder that ELMAN_PUBLISHED names, made by
//! `tests/fixtures/published`; `tests/run.sh --with-python` does both.

#![cfg(feature = "onnx")]

mod common;
#[path = "../examples/published/fetched.rs"]
mod fetched;
#[path = "../examples/published/g2p.rs"]
#[allow(dead_code, reason = "the tests use the networks")]
mod g2p;
#[path = "../examples/published/rnnoise.rs"]
#[allow(dead_code, reason = "the tests use the networks")]
mod rnnoise;
#[path = "../examples/published/silero.rs"]
#[allow(dead_code, reason = "the tests use the networks")]
mod silero;
#[path = "../examples/published/textgenrnn.rs"]
#[allow(dead_code, reason = "the tests use the networks")]
mod textgenrnn;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{assert_close, f32_devices, not_tested, say_loudly, widen};
use elman::onnx::Model;
use elman::{Device, rng};
use safetensors::SafeTensors;
use textgenrnn::TextGenRnn;

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
    assert!(segments.len() > 5);
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

/// Frames a second beside onnxruntime's, in turn: `cargo test --release --features onnx --test published -- --ignored --nocapture`.
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
    assert!(speech.len() > 1000);
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

/// g2p-en: a GRU reads, another writes. The phonemes of its own program for 5,000 words on the CPU, and for some hundred on a GPU.
#[test]
fn g2p_en() {
    let Some(folder) = folder() else { return };
    let Some(answers) = read(&folder, "g2p.txt") else { return };
    let answers = String::from_utf8(answers).unwrap();
    let answers: Vec<_> = answers.lines().map(|line| line.split_once(' ').unwrap_or((line, ""))).collect();
    assert_eq!(answers.len(), 5_000);
    for device in f32_devices() {
        let network = g2p::G2p::open(&device, &folder).unwrap();
        let answers: Vec<_> = answers.iter().step_by(if device.is_gpu() { 20 } else { 1 }).collect();
        let words: Vec<_> = answers.iter().map(|(word, _)| word).collect();
        let start = Instant::now();
        let said = network.phonemes(&words).unwrap();
        let wrong: Vec<_> = said.iter().zip(&answers).filter(|(said, (_, want))| said.join(" ") != *want).collect();
        let [right, seconds] = [(words.len() - wrong.len()) as f64, start.elapsed().as_secs_f64()];
        say_loudly(&format!("g2p on {device:?}: {right} of {} words in {seconds:.1} s", words.len()));
        assert!(wrong.is_empty(), "on {device:?}: {wrong:?}");
    }
    let network = g2p::G2p::open(&Device::cpu(), &folder).unwrap();
    assert_eq!(network.phonemes(&["Nietzsche"]).unwrap()[0].join(" "), "N IY1 T SH IH2 CH");
    for word in ["", "naïve", "don't"] {
        let error = network.phonemes(&["good", word]).unwrap_err().to_string();
        assert!(error.contains(&format!("{word:?}")), "{error}");
    }
}

/// textgenrnn: an embedding, two LSTMs, attention over time. All windows on the CPU, some on a GPU.
#[test]
fn textgenrnn_probabilities() {
    let Some(folder) = folder() else { return };
    let Some(bytes) = read(&folder, "textgenrnn_answers.safetensors") else { return };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| file.tensor(name).unwrap().data();
    let want = bytemuck::pod_collect_to_vec::<u8, f32>(data("probabilities"));
    let [windows, targets] = ["windows", "targets"].map(|name| bytemuck::pod_collect_to_vec::<u8, u32>(data(name)));
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let lines: Vec<String> = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["lines"]).unwrap();
    for device in f32_devices() {
        let network = TextGenRnn::published(&device, &folder).unwrap();
        let lesson: Vec<_> = lines.iter().flat_map(|line| network.lesson(line)).collect();
        let (ours, our_targets): (Vec<_>, Vec<_>) = lesson.into_iter().unzip();
        assert_eq!((ours.concat(), our_targets), (windows.clone(), targets.clone()));
        let some = if device.is_gpu() { &ours[100..164] } else { &ours[..] };
        let [got] = network.predictor().run(&[network.batch(some).unwrap()]).unwrap();
        let start = if device.is_gpu() { 100 * got.shape()[1] } else { 0 };
        let off = got.values().iter().zip(&want[start..]).map(|(got, want)| (got - want).abs());
        let worst = off.fold(0.0, |worst, off| if off <= worst { worst } else { off }); // a NaN is the worst
        say_loudly(&format!("textgenrnn on {device:?}: {} windows, {worst:.1e} apart at most", some.len()));
        assert!(worst < 1e-5 && got.values().len() == some.len() * got.shape()[1], "on {device:?}: {worst}");
    }
}

/// textgenrnn, fine-tuned on 50 lines of a lighthouse's log, writes words of that log; a GPU's first losses are the CPU's.
#[test]
fn textgenrnn_learns_a_manner() {
    let Some(folder) = folder() else { return };
    let lines: Vec<_> = include_str!("fixtures/published/lines.txt").lines().collect();
    assert_eq!(lines.len(), 50);
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
    };
    let known: HashSet<_> = lines.iter().flat_map(|line| words(line)).collect();
    // The share of words that are the log's.
    let share = |network: &TextGenRnn| {
        let text = network.write("", 20, 100, 0.5, &mut rng::manual_seed(1)).unwrap();
        let words: Vec<_> = text.iter().flat_map(|line| words(line)).collect();
        assert!(words.len() > 20, "{text:?}");
        (words.iter().filter(|word| known.contains(*word)).count() as f64 / words.len() as f64, text)
    };
    let network = TextGenRnn::published(&Device::cpu(), &folder).unwrap();
    let (before, _) = share(&network);
    let start = Instant::now();
    let losses = network.fine_tune(&lines, 6, &mut rng::manual_seed(1), |_, _| Ok(())).unwrap();
    let (after, text) = share(&network);
    let seconds = start.elapsed().as_secs_f64();
    say_loudly(&format!(
        "textgenrnn on 50 lines: losses {losses:.3?}, of its words the log's {before:.2} before and {after:.2} after, in {seconds:.0} s; {text:#?}"
    ));
    assert!(losses.is_sorted_by(|a, b| a > b) && losses[5] < 0.5 * losses[0], "{losses:?}");
    assert!(before < 0.5 && after > 0.8, "{before} before, {after} after: {text:?}");

    // What is kept is what learned.
    let kept = tempfile::tempdir().unwrap();
    let path = kept.path().join("tuned.safetensors");
    network.save(&path).unwrap();
    assert_eq!(share(&TextGenRnn::open(&Device::cpu(), &path).unwrap()).1, text);

    let few = |device: &Device| {
        let network = TextGenRnn::published(device, &folder).unwrap();
        network.fine_tune(&lines[..3], 2, &mut rng::manual_seed(1), |_, _| Ok(())).unwrap()
    };
    let want = few(&Device::cpu());
    for device in f32_devices() {
        assert_close("losses", &common::widen(&few(&device)), &common::widen(&want), 1, 1e-3);
    }
}

/// The program: words, recordings, errors, and lines that are learned, kept and gone on from.
#[test]
fn the_program_runs_each() {
    let Some(published) = folder() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
    let run_in = |folder: &Path, arguments: &[&str]| {
        let mut command = common::example("published");
        let output = command.arg("--folder").arg(folder).args(["--device", "cpu"]).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let run = |arguments: &[&str]| run_in(&published, arguments);
    let (is_done, said, _) = run(&["g2p", "nietzsche", "Able"]);
    assert!(is_done && said.ends_with("nietzsche: N IY1 T SH IH2 CH\nAble: EY1 B AH0 L\n"), "{said}");
    let (is_done, _, error) = run(&["g2p", "naïve"]);
    assert!(!is_done && error.contains("letters a to z"), "{error}");
    let (is_done, _, error) = run_in(temporary.path(), &["g2p", "word"]);
    assert!(!is_done && error.contains("tests/run.sh --with-python"), "{error}");

    let (is_done, said, _) = run(&["silero", published.join("speech.wav").to_str().unwrap()]);
    assert!(is_done && said.lines().count() > 6, "{said}");
    let samples = silero::read_wav(&published.join("speech.wav")).unwrap();
    let write = |name: &str, sample_rate, samples: &[f32]| {
        let spec =
            hound::WavSpec { channels: 1, sample_rate, bits_per_sample: 32, sample_format: hound::SampleFormat::Float };
        let mut writer = hound::WavWriter::create(path(name), spec).unwrap();
        samples.iter().for_each(|&sample| writer.write_sample(sample).unwrap());
        writer.finalize().unwrap();
    };
    write("floats.wav", 16_000, &samples);
    assert_eq!(run(&["silero", &path("floats.wav"), "--one-by-one"]).1, said);
    write("fast.wav", 48_000, &samples[..100]);
    write("nan.wav", 16_000, &[0.0, f32::NAN]);
    for (name, problem) in [("fast.wav", "16000"), ("nan.wav", "finite"), ("none.wav", "cannot be read")] {
        let (is_done, _, error) = run(&["silero", &path(name)]);
        assert!(!is_done && error.contains(problem), "{error}");
    }
    let (is_done, said, _) = run(&["rnnoise"]);
    assert!(is_done && said.lines().last().unwrap().split('\t').count() == 24, "{said}");

    std::fs::write(path("lines.txt"), "Lamp lit at six.\n\nLamp lit at seven. Ж\n").unwrap();
    let draws = ["--lines", "2", "--length", "20", "--prefix", "Lamp", "--temperature", "0"];
    let (is_done, said, error) =
        run(&[&["textgenrnn", "--train", &path("lines.txt"), "--epochs", "20"], &draws[..]].concat());
    assert!(is_done && error.contains("1 characters"), "{error}");
    let said: Vec<_> = said.lines().skip(1).collect();
    assert!(said[19].starts_with("epoch 20: loss 0."), "{said:?}");
    // At temperature 0, all lines are the likeliest.
    assert!(said[21] == said[22] && said[21].starts_with("Lamp lit at s"), "{said:?}");
    let (is_done, _, error) = run(&["textgenrnn", "--train", &path("lines.txt"), "--epochs", "1"]);
    assert!(!is_done && error.contains("is there"), "{error}");
    let (is_done, again, _) = run(&[&["textgenrnn", "--model", &path("lines.safetensors")], &draws[..]].concat());
    assert!(is_done && again.lines().skip(1).eq(said[21..].iter().copied()), "{again}");
}
