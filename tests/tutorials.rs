//! The small examples, as processes: the tutorials' printed numbers for seed 777, digit for digit, on every device.

mod common;

use common::{example, gpu};

/// Runs an example; its output.
fn run(name: &str, args: &[&str]) -> String {
    let output = example(name).args(args).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{name} {args:?}: {stdout}\n{stderr}");
    stdout
}

fn devices() -> Vec<&'static str> {
    [Some("cpu"), gpu().map(|_| "gpu")].into_iter().flatten().collect()
}

/// Loss and predicted string by epoch: hidden size 5, no other layer, Adam 0.1.
const HIDDEN: [(&str, &str); 19] = [
    ("1.693", "llllll"),
    ("1.523", "llllll"),
    ("1.393", "llllll"),
    ("1.263", "llllll"),
    ("1.146", "llllll"),
    ("1.055", "lhelll"),
    ("1.002", "ihelll"),
    ("0.965", "ihelll"),
    ("0.913", "ihelll"),
    ("0.879", "ihelll"),
    ("0.840", "ihelll"),
    ("0.805", "ihello"),
    ("0.779", "ihello"),
    ("0.758", "ihello"),
    ("0.738", "ihello"),
    ("0.717", "ihello"),
    ("0.694", "ihello"),
    ("0.667", "ihelll"),
    ("0.643", "ihelll"),
];

/// Hidden size 4 and a linear layer, Adam 0.1.
const LINEAR: [(&str, &str); 15] = [
    ("1.756", "eeeeee"),
    ("1.626", "ehhhhh"),
    ("1.485", "elllll"),
    ("1.405", "llllll"),
    ("1.293", "illlll"),
    ("1.217", "iiilll"),
    ("1.057", "iollll"),
    ("0.967", "ielllo"),
    ("0.837", "ihlllo"),
    ("0.696", "ihello"),
    ("0.615", "ihello"),
    ("0.535", "ihhllo"),
    ("0.452", "ihhllo"),
    ("0.387", "ihello"),
    ("0.322", "ihello"),
];

#[test]
fn hihell_prints_the_tutorials_numbers() {
    for device in devices() {
        for (model, want) in [("hidden", &HIDDEN[..]), ("linear", &LINEAR[..])] {
            let stdout = run("hihell", &["--model", model, "--device", device, "--seed", "777"]);
            let printed = want
                .iter()
                .zip(1..)
                .map(|((loss, string), epoch)| format!("epoch: {epoch}, loss: {loss}\nPredicted string: {string}\n"));
            let printed: String = printed.collect();
            assert!(stdout.starts_with(&printed), "{model} on {device}:\n{stdout}");
        }
    }
}

#[test]
fn hihell_learns_in_every_way() {
    for model in ["hidden", "step-by-step", "sequence", "embedding"] {
        for cell in ["rnn", "gru", "lstm"] {
            let stdout = run("hihell", &["--model", model, "--cell", cell, "--device", "cpu"]);
            let string = stdout.lines().last().unwrap();
            // A gated cell whose state is the prediction itself learns slowly: its loss must fall.
            if model != "embedding" && cell != "rnn" {
                let losses: Vec<f64> = stdout
                    .lines()
                    .filter_map(|line| line.split_once("loss: "))
                    .map(|(_, l)| l.parse().unwrap())
                    .collect();
                assert!(losses[99] < 0.95 * losses[0], "{cell}: {losses:?}");
            } else {
                assert_eq!(string, "Predicted string: ihello", "{model} {cell}");
            }
        }
    }
}

/// Letter by letter, as a sequence, as a batch, time first.
#[test]
fn hello_is_the_same_in_every_form() {
    for device in devices() {
        for cell in ["rnn", "gru", "lstm"] {
            let stdout = run("hello", &["--device", device, "--cell", cell]);
            assert_eq!(stdout.matches(": yes\n").count(), 4, "{stdout}");
            for shape in ["output [1, 1, 2]", "output [1, 5, 2]", "output [3, 5, 2]", "output [5, 3, 2]"] {
                assert!(stdout.contains(shape), "{stdout}");
            }
        }
    }
}

#[test]
fn sentences_are_completed() {
    for device in devices() {
        let stdout = run("sentences", &["--device", device]);
        assert!(stdout.contains("Input shape: [3, 14, 17] -->"), "{stdout}");
        let last = stdout.lines().find(|line| line.starts_with("Epoch: 100/100")).unwrap();
        let loss: f64 = last.rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!((0.1..0.3).contains(&loss), "{loss}");
        for sentence in ["\"good i am fine \"", "\"hey how are you\"", "\"have a nice day\""] {
            assert!(stdout.contains(sentence), "{stdout}");
        }
    }
}

/// Many to one, on reviews that it has not seen.
#[test]
fn sentiment_is_recognised() {
    for seed in ["777", "2"] {
        let stdout = run("sentiment", &["--device", "cpu", "--seed", seed]);
        assert!(stdout.contains("336 reviews to learn, 84 held out"), "{stdout}");
        let accuracy: f64 = stdout.lines().last().unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(accuracy >= 0.85, "{stdout}");
    }
}

/// The number at the end of the line that starts so.
fn number(stdout: &str, start: &str) -> f64 {
    let line = stdout.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start}\n{stdout}"));
    line.rsplit(' ').next().unwrap().trim_end_matches('%').parse().unwrap()
}

/// An example at its full size on the CPU; in a short form on the GPU too, where its losses are the same.
fn learns(name: &str, result: &str, at_least: f64) {
    let stdout = run(name, &["--device", "cpu"]);
    let got = number(&stdout, result);
    assert!(got >= at_least, "{name}: {got}\n{stdout}");
    if gpu().is_some() {
        let [cpu, gpu] =
            ["cpu", "gpu"].map(|device| number(&run(name, &["--device", device, "--steps", "3"]), "step 3"));
        assert!((cpu - gpu).abs() <= 1e-4, "{name}: CPU {cpu}, GPU {gpu}");
    }
}

/// One to many: exact sentences about pictures that it has not seen.
#[test]
fn captions_are_written() {
    learns("caption", "held-out exact sentences:", 0.95);
}

/// Many to many with other lengths: exact dates.
#[test]
fn dates_are_translated() {
    learns("translate", "held-out exact dates:", 0.95);
}

/// Many to many, step by step.
#[test]
fn frames_are_labelled() {
    learns("frames", "held-out frame accuracy:", 0.95);
}

/// Percent better than the better of the forecasts that repeat the day or the week before.
#[test]
fn the_forecast_beats_the_season() {
    learns("forecast", "better than seasonal-naive by", 30.0);
    let folder = tempfile::tempdir().unwrap();
    run("forecast", &["--device", "cpu", "--steps", "1", "--out", folder.path().to_str().unwrap()]);
    assert!(std::fs::read_to_string(folder.path().join("forecast.svg")).unwrap().starts_with("<svg"));
}

/// Many to many, in batches of any shape.
#[test]
fn words_are_tagged() {
    let accuracy = |stdout: &str| number(stdout.lines().last().unwrap(), "epoch 4:");
    assert!(accuracy(&run("tag", &["--device", "cpu"])) >= 0.99);
}

/// A second process follows the series with nothing but the files of the first, and a third goes on where it ended.
#[test]
fn a_series_is_followed_in_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("stream.safetensors");
    let model = model.to_str().unwrap();
    let stdout = run("stream", &["--device", "cpu", "--model", model]);
    let series = std::fs::read_to_string(folder.path().join("stream.txt")).unwrap();
    let lines: Vec<_> = series.lines().collect();
    let follow = |lines: &[&str]| {
        let input = folder.path().join("input");
        std::fs::write(&input, lines.join("\n")).unwrap();
        let input = std::fs::File::open(&input).unwrap();
        let mut command = example("stream");
        let output = command.args(["--device", "cpu", "--follow", "--model", model]).stdin(input).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let state = folder.path().join("stream.state");
    let whole = follow(&lines);
    std::fs::remove_file(&state).unwrap();
    let [first, second] = [&lines[..400], &lines[400..]].map(follow);
    assert_eq!(first + &second, whole);
    let said: Vec<[f64; 2]> = whole
        .lines()
        .map(|line| {
            let (value, next) = line.split_once(", and next").unwrap();
            [value, next].map(|number| number.trim().parse().unwrap())
        })
        .collect();
    let squares: f64 = said.windows(2).map(|pair| (pair[0][1] - pair[1][0]).powi(2)).sum();
    let error = (squares / (said.len() - 1) as f64).sqrt();
    assert!(said.len() == 1000 && error < 0.13, "{error}\n{stdout}");
    // Without a model: a sentence.
    let output = example("stream").args(["--device", "cpu", "--follow", "--model", "missing"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: missing: "));
}

#[test]
fn a_thousand_writers_write_what_they_must() {
    for device in devices() {
        let stdout = run("lanes", &["--device", device]);
        assert!(stdout.contains("every one wrote what it must"), "{stdout}");
    }
}
