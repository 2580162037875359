//! `elman look`, as a process: the page holds what a reader in the test says, whatever stands in the text.
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use elman::nn::{Cell, CharRnn, CharRnnOptions, Init, Parameters};
use elman::text::Vocabulary;
use elman::{Device, Reader, io, rng};
use serde_json::{Value, json};

const HOSTILE: &str =
    "</script><script>alert(1)</script><!-- \u{0} \"'&amp;\\ \u{202e}שלום\u{2028}\t\r\n😀e\u{301}\u{7f}\n";

struct Tiny {
    folder: tempfile::TempDir,
    network: CharRnn,
    parameters: Parameters,
    vocabulary: Vocabulary,
    bytes: bool,
}

impl Tiny {
    fn new(cell: Cell, layers: usize, bytes: bool) -> Self {
        let vocabulary = Vocabulary::of(HOSTILE);
        let tokens = if bytes { 256 } else { vocabulary.len() };
        let sizes = CharRnnOptions::new(tokens, 4, 6).cell(cell).num_layers(layers);
        let mut init = Init::new(rng::manual_seed(7));
        let network = CharRnn::new(&mut init, sizes).unwrap();
        let parameters = init.upload(&Device::cpu()).unwrap();
        let tiny = Self { folder: tempfile::tempdir().unwrap(), network, parameters, vocabulary, bytes };
        let name = match cell {
            Cell::Gru => "Gru",
            Cell::Lstm => "Lstm",
            _ => "Rnn",
        };
        tiny.save(&json!({ "version": 1, "model": name, "sizes": sizes, "window": 8, "bytes": bytes }));
        tiny
    }

    fn save(&self, config: &Value) {
        let metadata = [("config".into(), config.to_string()), ("vocabulary".into(), self.vocabulary.to_string())];
        io::save(self.model(), &self.parameters, metadata.into()).unwrap();
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model.safetensors")
    }

    fn text(&self, text: &str) -> PathBuf {
        let path = self.folder.path().join("text.txt");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        if self.bytes { text.bytes().map(u32::from).collect() } else { self.vocabulary.encode(text).unwrap() }
    }

    fn look(&self, text: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elman"));
        command.arg("look").arg(self.model()).arg(text).arg("-o").arg(self.page()).args(["--device", "cpu"]).args(args);
        command.output().unwrap()
    }

    fn page(&self) -> PathBuf {
        self.folder.path().join("page.html")
    }

    #[track_caller]
    fn look_well(&self, text: &str, args: &[&str]) -> String {
        let output = self.look(&self.text(text), args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read_to_string(self.page()).unwrap()
    }

    #[track_caller]
    fn refuses(&self, text: &Path, args: &[&str], says: &str) {
        let output = self.look(text, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(says) && said.lines().count() == 1, "{said}");
        assert!(!self.page().exists());
    }
}

/// What stands in the script of this id.
fn script<'a>(page: &'a str, id: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("id=\"{id}\">")).unwrap();
    rest.split_once("</script>").unwrap().0
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// States, surprise, ranks and shares, from the place where the page starts.
#[track_caller]
fn check(tiny: &Tiny, page: &str, text: &str, from: usize, length: usize) {
    let data: Value = serde_json::from_str(script(page, "data")).unwrap();
    let tokens = tiny.tokens(text);
    let mut reader = Reader::new(&tiny.network, &tiny.parameters, 0).unwrap();
    let all = reader.read_with_states(&tokens).unwrap();
    let shown = from..from + length;
    assert_eq!(data["tokens"], json!(tokens[shown.clone()]));
    assert_eq!((data["from"].as_u64(), data["total"].as_u64()), (Some(from as u64), Some(tokens.len() as u64)));
    let states = data["states"].as_array().unwrap();
    let (layers, hidden) = (data["layers"].as_u64().unwrap() as usize, 6);
    assert_eq!(states.len(), layers * all.states.len());
    for state in states {
        let (name, layer) = (state["name"].as_str().unwrap(), state["layer"].as_u64().unwrap() as usize);
        let (values, steps) = (script(page, &format!("{name}{layer}")).as_bytes(), numbers(&state["steps"]));
        assert_eq!(values.len(), hidden * length);
        for (row, place) in shown.clone().enumerate() {
            let want = &all.states[name][(place * layers + layer) * hidden..][..hidden];
            for (unit, &want) in want.iter().enumerate() {
                let code = i32::from(values[unit * length + row]);
                let got = f64::from(code - 35 - i32::from(code > 60) - 45) * steps[unit];
                assert!((got - f64::from(want)).abs() < 0.51 * steps[unit] + 1e-6, "{name}{layer} {place} {unit}");
            }
            let norm = want.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            assert!((state["norms"][row].as_f64().unwrap() - norm).abs() < 1e-4);
        }
    }
    let vocabulary = all.logits.len() / tokens.len();
    let shares = |place: usize| {
        let logits = &all.logits[place * vocabulary..][..vocabulary];
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        logits.iter().map(|&logit| f64::from(logit).exp() / sum).collect::<Vec<_>>()
    };
    for (row, place) in shown.enumerate() {
        match place.checked_sub(1).map(shares) {
            None => assert!(data["bits"][row].is_null() && data["ranks"][row].is_null()),
            Some(shares) => {
                let share = shares[tokens[place] as usize];
                assert!((data["bits"][row].as_f64().unwrap() + share.log2()).abs() < 1e-3, "{place}");
                let likelier = shares.iter().filter(|&&other| other > share).count() as u64;
                assert_eq!(data["ranks"][row], likelier + 1);
            }
        }
        let mut shares: Vec<_> = shares(place).into_iter().map(|share| share * 1e4).collect();
        let likeliest = shares[data["likeliest"][5 * row].as_u64().unwrap() as usize];
        shares.sort_by(|a, b| b.total_cmp(a));
        assert!((likeliest - shares[0]).abs() < 1e-6);
        for k in 0..5 {
            assert!((data["shares"][5 * row + k].as_f64().unwrap() - shares[k]).abs() < 0.51);
        }
    }
}

#[test]
fn the_page_holds_what_the_network_made_of_the_text() {
    for (cell, layers, bytes) in
        [(Cell::Gru, 1, false), (Cell::Lstm, 2, false), (Cell::Tanh, 2, true), (Cell::Relu, 1, false)]
    {
        let (tiny, text) = (Tiny::new(cell, layers, bytes), HOSTILE.repeat(4));
        let page = tiny.look_well(&text, &[]);
        let tokens = tiny.tokens(&text).len();
        check(&tiny, &page, &text, 0, tokens);
        let page = tiny.look_well(&text, &["--from", "70", "--length", "33"]);
        check(&tiny, &page, &text, 70, 33);
        let data: Value = serde_json::from_str(script(&page, "data")).unwrap();
        let gates: Vec<_> =
            data["gates"].as_array().unwrap().iter().map(|gate| gate["name"].as_str().unwrap()).collect();
        let want: &[&str] = match cell {
            Cell::Gru => &["r", "z"],
            Cell::Lstm => &["i", "f", "o", "i", "f", "o"],
            Cell::Tanh => &["h", "h"],
            _ => &["h"],
        };
        assert_eq!(gates, want);
        for gate in data["gates"].as_array().unwrap() {
            let (low, high) = (numbers(&gate["low"]), numbers(&gate["high"]));
            assert!(low.iter().zip(high).all(|(low, high)| *low >= 0.0 && high >= 0.0 && low + high <= 1.0));
        }
        assert_eq!(data["name"], "text.txt", "the folder is left out");
    }
}

#[test]
fn the_page_loads_nothing_and_no_text_gets_out_of_its_place() {
    let tiny = Tiny::new(Cell::Lstm, 1, false);
    let page = tiny.look_well(&HOSTILE.repeat(3), &[]);
    for load in ["http://", "https://", "src=", "@import", "url(", "fetch(", "XMLHttpRequest", "import("] {
        assert!(!page.contains(load), "{load}");
    }
    assert!(page.contains("default-src 'none'"));
    // Data, h, c and the page's own.
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (4, 4));
    assert_eq!((page.matches("</title").count(), page.matches("alert(1)").count()), (1, 0));
    // What a browser would change or stop at is escaped.
    assert!(!page.contains(['\u{0}', '\r']));
    let data: Value = serde_json::from_str(script(&page, "data")).unwrap();
    let vocabulary: Vec<_> =
        data["vocabulary"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
    let shown: String =
        data["tokens"].as_array().unwrap().iter().map(|t| vocabulary[t.as_u64().unwrap() as usize]).collect();
    assert_eq!(shown, HOSTILE.repeat(3));
}

#[test]
fn errors_say_what_to_do() {
    let tiny = Tiny::new(Cell::Gru, 1, false);
    tiny.refuses(&tiny.text(""), &[], "is empty: there must be text to read");
    tiny.refuses(&tiny.text("a\u{e9}"), &[], "the model does not know 'é' at position 1; --unknown skip");
    tiny.refuses(&tiny.text("aaa"), &["--from", "3"], "--from 3 is past the end of the text, which has 3 characters");
    tiny.refuses(&tiny.text("aaa"), &["--length", "0"], "--length is 0, and a page shows 1 to");
    tiny.refuses(&tiny.folder.path().join("none.txt"), &[], "none.txt cannot be read");
    tiny.save(&json!({ "version": 1, "model": "Transformer" }));
    tiny.refuses(&tiny.text("aaa"), &[], "is Transformer, and this command knows Rnn, Gru, Lstm");
}

#[test]
fn one_character_is_a_text() {
    let page = Tiny::new(Cell::Gru, 1, false).look_well("a", &[]);
    let data: Value = serde_json::from_str(script(&page, "data")).unwrap();
    assert_eq!((&data["features"], &data["bits"]), (&json!([]), &json!([null])));
}
