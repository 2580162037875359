//! The command, as a process: what it trains, writes and says, and how it takes bad input.

mod common;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use elman::generate::{Generator, Sampling};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{CharRnn, CharRnnOptions, Init, LanguageModel as _};
use elman::text::Vocabulary;
use elman::{Device, Evaluator, io, rng};

fn elman() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elman"));
    command.env_remove("ELMAN_DEVICE").env("ELMAN_BOUNDS_CHECKS", "1").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    elman().args(args).output().unwrap()
}

#[track_caller]
fn success(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{out}\n{err}");
    out
}

/// Fails with this exit code, one line on stderr that has all of these, and nothing on stdout.
#[track_caller]
fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let output = run(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    assert!(code == 2 || error.lines().count() == 1, "{args:?}: {error}");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What it takes to be quick.
const QUICK: [&str; 14] = [
    "--device",
    "cpu",
    "--layers",
    "1",
    "--hidden",
    "12",
    "--embedding",
    "4",
    "--window",
    "16",
    "--batch",
    "4",
    "--sample-length",
    "20",
];

/// A text that a small network learns.
fn text() -> String {
    (0..400).map(|i| format!("line {} of \u{201c}many\u{201d}, the {}th.\n", i % 7, i % 10)).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Trains on it, and gives the run's folder.
    fn train(&self, name: &str, text: &str, more: &[&str]) -> (PathBuf, String) {
        let out = self.path(name);
        let args = [&["train", text, "-o", path(&out)], &QUICK[..], more].concat();
        let said = success(&run(&args));
        (out, said)
    }
}

fn losses(folder: &Path) -> Vec<String> {
    fs::read_to_string(folder.join("losses.csv")).unwrap().lines().skip(1).map(str::to_owned).collect()
}

fn parameters(file: &Path) -> Vec<u8> {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + length..].to_vec()
}

#[test]
fn a_run_learns_and_goes_on_to_the_bit() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    let (whole, said) = folder.train("whole", &text, &["--epochs", "3", "--eval-every", "50"]);
    for part in [
        "device    CPU",
        "network   gru, 1 layer of 12 units",
        "held out",
        "MiB on the device",
        "best: step",
        "elman sample",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    let metrics = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let values: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let loss = |i: usize| values[i]["val_loss"].as_f64().unwrap();
    assert!(values.len() > 3 && loss(values.len() - 1) < 0.7 * loss(0), "{metrics}");
    for file in ["config.json", "best.safetensors", "last.safetensors", "loss.svg"] {
        assert!(whole.join(file).exists(), "{file}");
    }
    // Ended by a number of steps, and gone on with: in the midst of a pass, and where an evaluation was.
    let constant = ["--epochs", "3", "--eval-every", "50", "--schedule", "constant", "--warmup", "0"];
    let (constantly, _) = folder.train("constant", &text, &constant);
    for (name, steps) in [("midst", "77"), ("evaluated", "100")] {
        let (parts, _) = folder.train(name, &text, &[&constant[..], &["--max-steps", steps]].concat());
        let resumed = ["train", "--resume", "-o", path(&parts), "--max-steps", "1000000", "--device", "cpu"];
        success(&run(&resumed));
        assert_eq!(losses(&parts), losses(&constantly), "{name}");
        let best = |folder: &Path| parameters(&folder.join("best.safetensors"));
        assert!(best(&parts) == best(&constantly), "{name}");
    }
    // What is told of a run is what an evaluation of it says.
    let (config, parameters) = (io::metadata(whole.join("best.safetensors")).unwrap(), whole.join("best.safetensors"));
    let vocabulary = Vocabulary::try_from(config["vocabulary"].clone()).unwrap();
    let tokens = vocabulary.encode(&fs::read_to_string(&text).unwrap()).unwrap();
    let mut init = Init::new(rng::manual_seed(0));
    let sizes = CharRnnOptions::new(vocabulary.len(), 4, 12).cell(elman::nn::Cell::Gru);
    let network = CharRnn::new(&mut init, sizes).unwrap();
    let loaded = init.upload(&Device::cpu()).unwrap();
    io::load(&parameters, &loaded).unwrap();
    let said = success(&run(&["eval", path(&whole), &text, "--json", "--device", "cpu"]));
    let said: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
    let n = tokens.len() - 1;
    let device = loaded.device();
    let [input, targets] = [
        device.tokens("tokens", &[n, 1], vocabulary.len()).unwrap(),
        device.targets("targets", &[n, 1], vocabulary.len()).unwrap(),
    ];
    input.write_u32(&tokens[..n]).unwrap();
    targets.write_u32(&tokens[1..]).unwrap();
    let mut evaluator = Evaluator::new(&loaded, |g| {
        let logits = network.forward_every_step(g, &input, InitialState::Zero)?;
        cross_entropy(g, logits, &targets, Reduction::Mean)
    })
    .unwrap();
    let want = f64::from(evaluator.losses(1).unwrap()[0]);
    assert!((said["loss"].as_f64().unwrap() - want).abs() < 1e-4, "{said} {want}");
    assert_eq!(said["tokens"], n);
    assert!((said["perplexity"].as_f64().unwrap() - want.exp()).abs() < 1e-2);

    // And a text is what the library draws.
    let output = run(&[
        "sample",
        path(&whole),
        "-p",
        "line 3",
        "-n",
        "70",
        "--seed",
        "5",
        "--temp",
        "0.7",
        "--top-k",
        "9",
        "--device",
        "cpu",
    ]);
    let mut generator = Generator::new(&network, &loaded, 1).unwrap();
    generator
        .set_sampling(Sampling { temperature: 0.7, top_k: Some(9), seed: 5, never: Some(0), ..Sampling::default() })
        .unwrap();
    generator.prime(&vocabulary.encode("line 3").unwrap()).unwrap();
    let mut drawn = Vec::new();
    generator
        .generate(70, |tokens| {
            drawn.extend_from_slice(tokens);
            true
        })
        .unwrap();
    assert_eq!(success(&output), format!("line 3{}", vocabulary.decode(&drawn)));
    let closing = String::from_utf8(output.stderr).unwrap();
    assert!(closing.contains("70 characters in") && closing.contains("seed 5"), "{closing}");
}

#[test]
fn samples_stop_and_have_lanes() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    let (model, _) = folder.train("model", &text, &["--epochs", "2", "--quiet"]);
    let sample = |more: &[&str]| run(&[&["sample", path(&model), "--device", "cpu", "--seed", "1"], more].concat());
    let whole = success(&sample(&["-p", "line", "-n", "300"]));
    // The stop is not printed, nor what is after it.
    let at = whole[4..].find("\u{201d}").map(|at| at + 4);
    let stopped = sample(&["-p", "line", "-n", "300", "--stop", "\u{201d}"]);
    assert_eq!(success(&stopped), whole[..at.expect("a quote is learned")]);
    let drawn = success(&stopped)[4..].chars().count() + 1;
    let closing = String::from_utf8(stopped.stderr).unwrap();
    assert!(closing.starts_with(&format!("{drawn} characters in")), "{closing}");
    let only = success(&sample(&["-p", "line", "-n", "300", "--no-echo"]));
    assert_eq!(format!("line{only}"), whole);
    // A file of prompts: each is what it is alone, but for its draws.
    let lines = folder.file("lines.txt", "line 1\nthe\n\nof \u{201c}m\n");
    let said = success(&sample(&["--lines", &lines, "-n", "40", "--json", "--temp", "0"]));
    let texts: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(texts.len(), 3);
    for (text, prompt) in texts.iter().zip(["line 1", "the", "of \u{201c}m"]) {
        let alone = success(&sample(&["-p", prompt, "-n", "40", "--temp", "0"]));
        assert_eq!(format!("{prompt}{}", text["text"].as_str().unwrap()), alone);
    }
    let two = success(&sample(&["-p", "line", "-n", "60", "--lanes", "2", "--json"]));
    let texts: Vec<serde_json::Value> = two.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_ne!(texts[0]["text"], texts[1]["text"], "each lane has draws of its own");
    // From a pipe, and with a seed that is told.
    let mut child = elman()
        .args(["sample", path(&model), "--device", "cpu", "-n", "10"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"the line").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(success(&output).starts_with("the line"));
    let closing = String::from_utf8(output.stderr).unwrap();
    let seed = closing.split("seed ").nth(1).unwrap().split(';').next().unwrap();
    let again =
        success(&run(&["sample", path(&model), "--device", "cpu", "-n", "10", "-p", "the line", "--seed", seed]));
    assert_eq!(again.as_bytes(), output.stdout);
    // Whoever reads a part has it, and nobody complains.
    let mut child = elman()
        .args(["sample", path(&model), "--device", "cpu", "-n", "-1", "-p", "line"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut part = [0; 2000];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut part).unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn bytes_folders_patterns_and_encodings_are_texts() {
    let folder = Folder::new();
    let plain = folder.file("texts/b/two.txt", text());
    folder.file("texts/a.txt", text());
    folder.file("texts/.hidden", b"\xff\xff");
    let (of_folder, said) = folder.train("of_folder", path(&folder.path("texts")), &["--max-steps", "3"]);
    assert!(said.contains("in 2 files"), "{said}");
    let (of_pattern, _) = folder.train("of_pattern", path(&folder.path("texts/**/*.txt")), &["--max-steps", "3"]);
    assert_eq!(losses(&of_folder), losses(&of_pattern));
    // The same text in other encodings gives the same steps.
    let (want, _) = folder.train("utf8", &plain, &["--max-steps", "3"]);
    let utf16: Vec<u8> = text().encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf16 = folder.file("utf16.txt", utf16);
    let (got, _) = folder.train("utf16", &utf16, &["--max-steps", "3", "--encoding", "utf-16le"]);
    assert_eq!(losses(&got), losses(&want));
    let crlf = folder.file("crlf.txt", format!("\u{feff}{}", text().replace('\n', "\r\n")));
    let (got, _) = folder.train("crlf", &crlf, &["--max-steps", "3", "--normalize-newlines"]);
    assert_eq!(losses(&got), losses(&want));
    let piped = folder.path("piped");
    let args = [&["train", "-", "-o", path(&piped), "--max-steps", "3"], &QUICK[..]].concat();
    let output = elman().args(args).stdin(fs::File::open(&plain).unwrap()).output().unwrap();
    success(&output);
    assert_eq!(losses(&piped), losses(&want));
    // Any bytes.
    let noise: Vec<u8> = (0..20_000u32).map(|i| (i * i / 7) as u8).collect();
    let noise = folder.file("noise.bin", noise);
    let (bytes, said) = folder.train("bytes", &noise, &["--max-steps", "3", "--bytes"]);
    assert!(said.contains("20,000 bytes, 256 different"), "{said}");
    let output = run(&["sample", path(&bytes), "--device", "cpu", "-n", "50", "-p", "\u{e9}", "--seed", "1"]);
    assert!(output.status.success() && output.stdout.len() == 2 + 50);
    success(&run(&["eval", path(&bytes), &noise, "--device", "cpu"]));
}

#[test]
fn settings_of_the_command_line_go_before_a_file_before_what_suits() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    let toml = folder.file("settings.toml", "hidden = 9\nlr = 0.01\ncell = \"lstm\"\nheld-out = 0.2\nbytes = true\n");
    let out = folder.path("run");
    let args = [
        "train",
        &text,
        "-o",
        path(&out),
        "--config",
        &toml,
        "--hidden",
        "7",
        "--max-steps",
        "2",
        "--device",
        "cpu",
        "--json",
    ];
    let said = success(&run(&args));
    let start: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let recipe = &start["recipe"];
    assert_eq!((&recipe["hidden"], &recipe["lr"], &recipe["cell"]), (&7.into(), &0.01.into(), &"lstm".into()));
    assert_eq!(start["vocabulary"], 256);
    let length = fs::metadata(&text).unwrap().len();
    assert_eq!(start["held_out"], length / 5);
    let end: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&end["event"], &end["step"]), (&"end".into(), &2.into()));
    let wrong = folder.file("wrong.toml", "hiden = 9\n");
    fails(&["train", &text, "-o", path(&out), "--config", &wrong], 1, &["wrong.toml", "hiden"]);
    fails(&["train", &text, "-o", path(&out), "--config", "none.toml"], 1, &["none.toml cannot be read"]);
}

#[test]
fn a_model_goes_on_with_another_text() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    let (first, _) = folder.train("first", &text, &["--epochs", "2"]);
    let start = |more: &[&str]| {
        let out = folder.path("second");
        let args = [
            "train",
            &text,
            "-o",
            path(&out),
            "--device",
            "cpu",
            "--max-steps",
            "2",
            "--json",
            "--overwrite",
            "--eval-every",
            "1",
        ];
        let said = success(&run(&[&args[..], more].concat()));
        let said: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        said[1]["val_loss"].as_f64().unwrap()
    };
    let sizes = ["--hidden", "12", "--embedding", "4"];
    assert!(start(&["--init-from", path(&first)]) < 0.6 * start(&sizes), "sizes and parameters are the model's");
    let other = folder.file("other.txt", "\u{2603}".repeat(500));
    fails(
        &["train", &other, "--init-from", path(&first), "-o", path(&folder.path("third"))],
        1,
        &["does not know '\u{2603}' at position 0"],
    );
}

#[test]
fn bad_input_is_one_sentence() {
    let folder = Folder::new();
    let out = folder.path("out");
    let good = folder.file("good.txt", text());
    let empty = folder.file("empty.txt", "");
    let latin = folder.file("latin.txt", b"caf\xe9 au lait, and more of it");
    let marked = folder.file("marked.txt", b"\xff\xfea\0b\0");
    let short = folder.file("short.txt", "too short");
    fs::create_dir(folder.path("nothing")).unwrap();
    let train = |text: &str, more: &[&str], parts: &[&str]| {
        fails(&[&["train", text, "-o", path(&out), "--device", "cpu"], more].concat(), 1, parts);
        assert!(!out.exists(), "{parts:?}: nothing is written");
    };
    train(&empty, &[], &["empty.txt is empty"]);
    train(&latin, &[], &["latin.txt", "byte 3 is 0xe9", "--encoding", "--bytes"]);
    train(&latin, &["--encoding", "klingon"], &["no encoding klingon"]);
    train(&marked, &[], &["marked.txt", "--encoding utf-16le"]);
    train(&short, &[], &["9 characters", "use a longer text"]);
    train("missing.txt", &[], &["missing.txt cannot be read"]);
    train(path(&folder.path("nothing")), &[], &["nothing has no files"]);
    train(path(&folder.path("*.none")), &[], &["no file fits"]);
    fails(&["train", &good, "--hidden", "0"], 2, &["at least 1"]);
    train(&good, &["--lr", "-1"], &["--lr must be above 0"]);
    train(&good, &["--layers", "1", "--dropout", "0.5"], &["--layers 2"]);
    train(&good, &["--held-out", "1"], &["below 1"]);
    train(&good, &["--window", "100000"], &["smaller --window"]);
    train(&good, &["--prompt", "\u{2603}"], &["'\u{2603}' at position 0"]);
    train(&good, &["--resume"], &["no run to go on with"]);
    fails(&["train"], 2, &["TEXT"]);
    fails(&["train", &good, "--cell", "x"], 2, &["possible values"]);
    fails(&["sample", "missing.safetensors"], 1, &["missing.safetensors"]);
    fails(&["sample", path(&folder.path("nothing"))], 1, &["neither best.safetensors"]);
    fails(&["sample", &good], 1, &["good.txt", "no safetensors file"]);

    let (model, _) = folder.train("model", &good, &["--max-steps", "2"]);
    let model = path(&model);
    fails(
        &["sample", model, "-p", "li\u{2603}ne\u{e9}"],
        1,
        &["'\u{2603}' at position 2, 'é' at position 5", "--unknown skip"],
    );
    assert!(
        success(&run(&["sample", model, "-p", "li\u{2603}ne", "--unknown", "skip", "-n", "0"])).starts_with("line")
    );
    fails(&["sample", model, "-p", ""], 1, &["at least one character"]);
    fails(&["sample", model, "-p", "l", "--temp", "-1"], 2, &["--temp", "0 or above"]);
    fails(&["sample", model, "-p", "l", "--top-p", "2"], 2, &["--top-p", "at most 1"]);
    fails(&["sample", model, "-p", "l", "--min-p", "-0.1"], 2, &["--min-p", "from 0 to 1"]);
    fails(&["sample", model, "-p", "l", "--seed", "-2"], 2, &["--seed"]);
    fails(&["sample", model, "-p", "l", "-n", "-2"], 1, &["--length"]);
    fails(&["sample", model, "-p", "l", "--lanes", "0"], 1, &["--lanes"]);
    fails(&["eval", model, &short, "--device", "cpu"], 1, &["short.txt", "does not know"]);
    fails(&["eval", model, &empty], 1, &["empty.txt is empty"]);
    // Damaged, of a later version, of another network.
    let file = Path::new(model).join("best.safetensors");
    let bytes = fs::read(&file).unwrap();
    let cut = folder.file("cut.safetensors", &bytes[..bytes.len() - 1]);
    fails(&["sample", &cut, "-p", "l"], 1, &["cut.safetensors"]);
    for (name, config, part) in [
        ("later", r#"{"version":99}"#, "later version"),
        ("other", r#"{"model":"Transformer"}"#, "is Transformer"),
        ("bad", r#"{"model":"Gru"}"#, "damaged"),
        ("none", "nothing", "damaged"),
    ] {
        let mut init = Init::new(rng::manual_seed(1));
        elman::nn::Linear::new(&mut init, "layer", 2, 2).unwrap();
        let path = folder.path(&format!("{name}.safetensors"));
        io::save(&path, &init.upload(&Device::cpu()).unwrap(), [("config".to_owned(), config.to_owned())].into())
            .unwrap();
        fails(&["sample", path.to_str().unwrap(), "-p", "l"], 1, &[part]);
    }
    // A run that goes on is the one that was started.
    fails(&["train", &good, "--resume", "-o", model, "--hidden", "13", "--device", "cpu"], 1, &["was started with"]);
    let other = folder.file("other.txt", text().replace("line", "enil"));
    fails(&["train", &other, "--resume", "-o", model, "--device", "cpu"], 1, &["the text is another"]);
}

#[test]
fn the_manual_and_completions_are_written() {
    let folder = Folder::new();
    success(&run(&["man", path(&folder.path("man"))]));
    let page = fs::read_to_string(folder.path("man/elman-train.1")).unwrap();
    assert!(page.contains("contiguous streams"));
    let output = elman().args(["completions", "bash"]).stdout(Stdio::null()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(success(&run(&["completions", shell])).contains("elman"));
    }
    let help = success(&run(&["--help"]));
    assert!(help.contains("elman train book.txt") && help.contains("Exit codes"), "{help}");
}

#[test]
fn devices_are_listed_whatever_else_is_missing() {
    for command in
        [&["train"][..], &["train", "--resume"], &["sample"], &["write"], &["eval"], &["look"], &["doctor"], &["bench"]]
    {
        let said = success(&run(&[command, &["--device", "list"]].concat()));
        assert!(said.lines().any(|line| line.starts_with("CPU")), "{command:?}: {said}");
    }
    assert_eq!(
        success(&run(&["look", "--device=list"])),
        success(&elman().arg("look").env("ELMAN_DEVICE", "list").output().unwrap())
    );
    fails(&["look", "--device", "cpu"], 2, &["MODEL"]);
}

#[test]
fn a_run_is_not_replaced_unasked() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    let (run_folder, _) = folder.train("run", &text, &["--max-steps", "2"]);
    let model = run_folder.join("best.safetensors");
    let before = fs::read(&model).unwrap();
    let again = [&["train", &text, "-o", path(&run_folder), "--max-steps", "3"], &QUICK[..]].concat();
    fails(&again, 1, &["holds a run already", "--resume", "--overwrite"]);
    assert!(fs::read(&model).unwrap() == before);
    success(&run(&[&again[..], &["--overwrite"]].concat()));
    assert!(fs::read(&model).unwrap() != before);
    // Without a folder, each has its own.
    for name in ["text", "text-2"] {
        let mut command = elman();
        command.args([&["train", &text, "--max-steps", "1"], &QUICK[..]].concat()).current_dir(folder.0.path());
        success(&command.output().unwrap());
        assert!(folder.path("runs").join(name).join("best.safetensors").exists(), "{name}");
    }
}

/// What a run was started with is remembered, wherever it goes on from; and more of it may be asked for.
#[test]
fn a_run_goes_on_from_anywhere_with_what_is_asked() {
    let folder = Folder::new();
    fs::write(folder.path("text.txt"), text()).unwrap();
    let first = folder.path("first");
    let train = |more: &[&str]| {
        let mut command = elman();
        let args = [&["train", "text.txt", "--device", "cpu", "--json", "--sample-length", "0"], more].concat();
        command.args(args).current_dir(folder.0.path()).output().unwrap()
    };
    let sizes = ["--hidden", "12", "--embedding", "4", "--window", "16", "--batch", "4"];
    success(&train(&[&["-o", path(&first), "--max-steps", "20"], &sizes[..]].concat()));
    let second = folder.path("second");
    success(&train(&[
        "-o",
        path(&second),
        "--init-from",
        "first",
        "--window",
        "16",
        "--batch",
        "4",
        "--max-steps",
        "5",
    ]));
    // Neither the model nor the folder that it was started in is needed any more.
    fs::rename(&first, folder.path("moved")).unwrap();
    let going_on = ["train", "--resume", "-o", path(&second), "--epochs", "1", "--device", "cpu", "--json"];
    let said = success(&run(&going_on));
    let end: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(end["step"].as_u64().unwrap() > 100, "--epochs goes before the --max-steps of before: {end}");
    fails(&going_on, 1, &["more --epochs"]);
    // Its patience at an end, it goes on with more.
    let third = folder.path("third");
    let hopeless = ["--lr", "1e-9", "--warmup", "0", "--eval-every", "3", "--epochs", "1", "--patience", "2"];
    let said = success(&train(&[&["-o", path(&third)], &sizes[..], &hopeless].concat()));
    let steps = |said: &str| {
        let end: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        end["step"].as_u64().unwrap()
    };
    let resumed =
        |more: &[&str]| run(&[&["train", "--resume", "-o", path(&third), "--device", "cpu", "--json"], more].concat());
    if steps(&said) < 100 {
        fails(&["train", "--resume", "-o", path(&third), "--device", "cpu"], 1, &["more --patience"]);
        assert!(steps(&success(&resumed(&["--patience", "0"]))) > 100);
    }
    // Bytes and characters are not mixed up.
    let moved = folder.path("moved");
    fails(
        &[
            "train",
            path(&folder.path("text.txt")),
            "--init-from",
            path(&moved),
            "--bytes",
            "-o",
            path(&folder.path("x")),
        ],
        1,
        &["contradicts"],
    );
}

/// A schedule counts updates: its end is the end of the training, however many steps make an update.
#[test]
fn schedules_end_with_the_training() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    for accumulate in ["1", "4"] {
        let out = folder.path(accumulate);
        let args = [
            "train",
            &text,
            "-o",
            path(&out),
            "--json",
            "--max-steps",
            "80",
            "--schedule",
            "linear",
            "--lr",
            "0.01",
            "--accumulate",
            accumulate,
        ];
        let said = success(&run(&[&args[..], &QUICK].concat()));
        let evaluation = said.lines().rev().nth(1).unwrap();
        let evaluation: serde_json::Value = serde_json::from_str(evaluation).unwrap();
        assert!(evaluation["lr"].as_f64().unwrap() < 0.0015, "{evaluation}");
    }
}

/// Whoever reads along may leave: it ends without a word, and goes on to the bit.
#[test]
fn a_closed_pipe_ends_a_run_quietly() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    let settings = ["--epochs", "3", "--eval-every", "50", "--patience", "0"];
    let (whole, _) = folder.train("whole", &text, &settings);
    for (name, lines) in [("at once", 0), ("later", 12)] {
        let parts = folder.path(name);
        let args = [&["train", &text, "-o", path(&parts)], &QUICK[..], &settings].concat();
        let mut child = elman().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::lines(out).take(lines).for_each(|line| drop(line.unwrap()));
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {error}");
        success(&run(&["train", "--resume", "-o", path(&parts), "--device", "cpu"]));
        assert_eq!(losses(&parts), losses(&whole), "{name}");
    }
}

/// Ended by Ctrl-C it has saved all, says so by its exit code, and goes on to the bit.
#[cfg(unix)]
#[test]
fn ctrl_c_costs_nothing() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    let settings = [
        "--epochs",
        "6",
        "--accumulate",
        "2",
        "--average",
        "0.9",
        "--dropout",
        "0.2",
        "--patience",
        "0",
        "--eval-every",
        "40",
    ];
    let mut quick = QUICK;
    quick[3] = "2";
    let train = |out: &Path, more: &[&str]| {
        let mut command = elman();
        command.args(["train", &text, "-o", path(out), "--json"]).args(quick).args(settings).args(more);
        command
    };
    let whole = folder.path("whole");
    success(&train(&whole, &["--live"]).output().unwrap());
    let page = fs::read_to_string(whole.join("live.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Sample at temperature 1.1") && !page.contains("http-equiv"));
    let parts = folder.path("parts");
    let mut child = train(&parts, &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    lines.by_ref().take(2).for_each(|line| drop(line.unwrap()));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(losses(&parts).len() < losses(&whole).len());
    success(&run(&["train", "--resume", "-o", path(&parts), "--device", "cpu"]));
    assert_eq!(losses(&parts), losses(&whole));
    assert!(parameters(&parts.join("best.safetensors")) == parameters(&whole.join("best.safetensors")));
}

/// The file gives the characters that `sample` writes, each by its logits and states; it is not replaced unasked.
#[test]
fn an_exported_model_writes_the_same_text() {
    let folder = Folder::new();
    let text = folder.file("text.txt", text());
    for name in ["gru", "lstm"] {
        let (model, _) = folder.train(name, &text, &["--epochs", "2", "--quiet", "--cell", name]);
        let file = folder.path(&format!("{name}.onnx"));
        success(&run(&["export", path(&model), path(&file)]));
        fails(&["export", path(&model), path(&file)], 1, &["is there", "--overwrite"]);
        success(&run(&["export", path(&model), path(&file), "--overwrite"]));
        let want = success(&run(&["sample", path(&model), "-p", "line", "-n", "40", "--temp", "0", "--device", "cpu"]));

        let config = io::metadata(model.join("best.safetensors")).unwrap();
        let vocabulary = Vocabulary::try_from(config["vocabulary"].clone()).unwrap();
        let network = elman::onnx::Model::read(&file).unwrap();
        let device = Device::cpu();
        let loaded = network.parameters(&device).unwrap();
        let mut states = vec![vec![0.0; 12]; 2];
        states.truncate(network.inputs().len() - 1);
        let mut next = |token: u32| {
            let mut g = elman::Graph::inference(&loaded);
            let tokens = device.tokens("tokens", &[1, 1], vocabulary.len()).unwrap();
            tokens.write_u32(&[token]).unwrap();
            let mut inputs = vec![("tokens", (&tokens).into())];
            for (name, state) in ["h_0", "c_0"].into_iter().zip(&states) {
                let state = device.upload(name, &[1, 1, 12], state).unwrap();
                inputs.push((name, g.input(&state).unwrap().into()));
            }
            let outputs = network.record(&mut g, &inputs).unwrap();
            let mut of = |name: &str| g.tensor(outputs.get(name).unwrap()).unwrap();
            let logits = of("logits");
            let ends: Vec<_> = ["h_n", "c_n"].into_iter().take(states.len()).map(&mut of).collect();
            g.finish().unwrap().run().unwrap();
            states = ends.iter().map(|end| end.to_vec().unwrap()).collect();
            logits.to_vec().unwrap()
        };
        let mut written: Vec<_> = vocabulary.encode("line").unwrap();
        let mut logits = Vec::new();
        for &token in &written {
            logits = next(token);
        }
        for _ in 0..40 {
            // Token 0 stands for what is not in the text.
            let best = (1..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            written.push(best);
            logits = next(best);
        }
        assert_eq!(vocabulary.decode(&written), want, "{name}");
    }
    fails(&["export", "nothing-is-here", path(&folder.path("x.onnx"))], 1, &["nothing-is-here"]);
}
