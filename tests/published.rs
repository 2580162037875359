//! Published networks give here what they give elsewhere. They are in the folder that ELMAN_PUBLISHED names, made by
//! `tests/fixtures/published`; `tests/run.sh --with-python` does both.

#![cfg(feature = "onnx")]

mod common;
#[allow(dead_code, reason = "what the program alone needs")]
#[path = "../examples/published/g2p.rs"]
mod g2p;
#[allow(dead_code, reason = "what the program alone needs")]
#[path = "../examples/published/textgenrnn.rs"]
mod textgenrnn;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{assert_close, f32_devices, not_tested, say_loudly};
use elman::onnx::Model;
use elman::{Device, Graph, Tensor, rng};
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
        say_loudly(&format!("silero on {device:?}: {} frames, {:.0} a second", got.len(), got.len() as f64 / seconds));
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

/// g2p-en: a GRU reads, another writes. The phonemes of its own program for 5,000 words on the CPU, and for some hundred on a GPU.
#[test]
fn g2p_en() {
    let Some(folder) = folder() else { return };
    let answers = std::fs::read_to_string(folder.join("g2p.txt")).unwrap();
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
    let bytes = std::fs::read(folder.join("textgenrnn_answers.safetensors")).unwrap();
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

/// The program of both: words, an error, and lines that are learned, kept and gone on from.
#[test]
fn the_program_says_words_and_learns_lines() {
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

    std::fs::write(path("lines.txt"), "Lamp lit at six.\n\nLamp lit at seven. Ж\n").unwrap();
    let draws = ["--lines", "2", "--length", "20", "--prefix", "Lamp", "--temperature", "0"];
    let (is_done, said, error) =
        run(&[&["textgenrnn", "--train", &path("lines.txt"), "--epochs", "20"], &draws[..]].concat());
    assert!(is_done && error.contains("1 characters"), "{error}");
    let said: Vec<_> = said.lines().skip(1).collect();
    assert!(said[19].starts_with("epoch 20: loss 0."), "{said:?}");
    // At temperature 0, all lines are the likeliest.
    assert!(said[21] == said[22] && said[21].starts_with("Lamp lit at s"), "{said:?}");
    let (is_done, again, _) = run(&[&["textgenrnn", "--model", &path("lines.safetensors")], &draws[..]].concat());
    assert!(is_done && again.lines().skip(1).eq(said[21..].iter().copied()), "{again}");
}
