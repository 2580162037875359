//! With PyTorch itself: it loads what elman saves, and elman what it saves, and both compute the same. `tests/run.sh --with-python` runs
//! this; `ELMAN_PYTHON` names an interpreter that has PyTorch.

mod common;

use std::path::Path;
use std::process::Command;

use elman::io::{self, Load, ModelFile};
use elman::nn::functional::{Conv1dOptions, InitialState, transpose};
use elman::nn::{Cell, Conv1d, Embedding, Init, LayerNorm, Linear, Nonlinearity, Parameters, Recurrent, RnnOptions};
use elman::{Device, Graph, Result, rng};
use serde_json::{Value, json};

const STEPS: usize = 7;
const BATCH: usize = 3;
const VOCABULARY: usize = 11;
const CONVOLUTION: Conv1dOptions = Conv1dOptions { stride: 1, padding: 1, dilation: 1, groups: 2 };

/// That of `Network` in with_python.py.
struct Network {
    embedding: Embedding,
    conv: Conv1d,
    norm: LayerNorm,
    rnn: Recurrent,
    output: Linear,
}

impl Network {
    fn new(init: &mut Init, cell: Cell, options: RnnOptions) -> Result<Self> {
        let width = if options.proj_size > 0 { options.proj_size } else { options.hidden_size };
        let width = if options.bidirectional { 2 * width } else { width };
        Ok(Self {
            embedding: Embedding::new(init, "embedding", VOCABULARY, 4)?,
            conv: Conv1d::new(init, "conv", 4, 6, 3, CONVOLUTION)?,
            norm: LayerNorm::new(init, "norm", 6)?,
            rnn: Recurrent::new(init, "rnn", cell, options)?,
            output: match options.bias {
                true => Linear::new(init, "output", width, 3)?,
                false => Linear::without_bias(init, "output", width, 3)?,
            },
        })
    }

    /// Of nothing but the file; it does not say that an RNN has relu.
    fn from_file(init: &mut Init, file: &ModelFile, cell: Cell) -> Result<Self> {
        Ok(Self {
            embedding: Embedding::from_file(init, "embedding")?,
            conv: Conv1d::from_file(init, "conv", CONVOLUTION)?,
            norm: LayerNorm::from_file(init, "norm")?,
            rnn: match cell {
                Cell::Relu => {
                    let options = RnnOptions::from_file(file, "rnn")?.nonlinearity(Nonlinearity::Relu);
                    Recurrent::new(init, "rnn", cell, options)?
                }
                _ => Recurrent::from_file(init, "rnn")?,
            },
            output: Linear::from_file(init, "output")?,
        })
    }

    fn outputs(&self, parameters: &Parameters) -> Result<Vec<f32>> {
        let device = parameters.device();
        let tokens = device.tokens("tokens", &[STEPS, BATCH], VOCABULARY)?;
        tokens.write_u32(&self::tokens())?;
        let mut g = Graph::inference(parameters);
        let x = self.embedding.forward(&mut g, &tokens)?; // [T, B, E]
        let x = transpose(&mut g, x, 0, 1)?;
        let x = transpose(&mut g, x, 1, 2)?; // [B, E, T]
        let x = self.conv.forward(&mut g, x)?;
        let x = transpose(&mut g, x, 1, 2)?;
        let x = transpose(&mut g, x, 0, 1)?;
        let x = self.norm.forward(&mut g, x)?;
        let (x, _) = self.rnn.forward(&mut g, x, InitialState::Zero)?;
        let y = self.output.forward(&mut g, x)?;
        let y = g.tensor(y)?;
        g.finish()?.run()?;
        y.to_vec()
    }
}

fn tokens() -> Vec<u32> {
    common::tokens(5, STEPS * BATCH, VOCABULARY)
}

fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5, "{what}: {worst}");
    assert!(got.iter().all(|y| y.is_finite()), "{what}");
}

fn values(path: &Path, name: &str) -> Vec<f32> {
    ModelFile::open(path).unwrap().values(name).unwrap()
}

/// Every kind with everything that changes names or shapes.
fn networks() -> Vec<(&'static str, Cell, RnnOptions)> {
    let mut all = Vec::new();
    for (kind, cell, proj_size) in [
        ("tanh", Cell::Tanh, 0),
        ("relu", Cell::Relu, 0),
        ("gru", Cell::Gru, 0),
        ("lstm", Cell::Lstm, 0),
        ("lstm", Cell::Lstm, 2),
    ] {
        for (layers, bidirectional, bias) in [(1, false, true), (2, true, true), (3, false, false), (1, true, false)] {
            let options = RnnOptions::new(6, 6).num_layers(layers).bidirectional(bidirectional).bias(bias);
            let options = options.proj_size(proj_size);
            let is_relu = cell == Cell::Relu;
            all.push((kind, cell, if is_relu { options.nonlinearity(Nonlinearity::Relu) } else { options }));
        }
    }
    all
}

fn described(kind: &str, options: &RnnOptions) -> Value {
    let RnnOptions { num_layers, bidirectional, bias, proj_size, .. } = *options;
    json!({ "kind": kind, "layers": num_layers, "bidirectional": bidirectional, "bias": bias, "proj_size": proj_size })
}

#[test]
fn models_go_to_pytorch_and_come_back() {
    let Some(python) = std::env::var_os("ELMAN_PYTHON") else {
        return common::say_loudly("NOT TESTED WITH PYTORCH: run `tests/run.sh --with-python`, or set ELMAN_PYTHON");
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (mut saved, mut wanted) = (Vec::new(), Vec::new());
    let kinds = [
        ("float32", "", false),
        ("float16", "module.", false),
        ("bfloat16", "", true),
        ("float64", "model._orig_mod.", true),
        ("float32", "net.", false),
    ];
    for (i, (kind, cell, options)) in networks().into_iter().enumerate() {
        let mut init = Init::new(rng::manual_seed(i as u64));
        Network::new(&mut init, cell, options).unwrap();
        io::save(at(&format!("saved{i}.safetensors")), &init.upload(&Device::cpu()).unwrap(), Default::default())
            .unwrap();
        let network = described(kind, &options);
        saved.push(json!({ "name": format!("saved{i}"), "network": network }));
        let (dtype, prefix, sharded) = kinds[i % kinds.len()];
        let name = format!("wanted{i}");
        wanted.push(json!({ "name": name, "network": network, "dtype": dtype, "prefix": prefix, "sharded": sharded }));
    }
    let rows: Vec<_> = tokens().chunks(BATCH).map(<[u32]>::to_vec).collect();
    let cases = json!({ "tokens": rows, "saved": saved, "wanted": wanted });
    std::fs::write(at("cases.json"), cases.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/with_python.py");
    let status = Command::new(python).arg(script).arg(folder.path()).status().unwrap();
    assert!(status.success(), "{script} failed");

    for (i, (kind, cell, options)) in networks().into_iter().enumerate() {
        for device in common::f32_devices() {
            let what = format!("{kind} {options:?} on {device:?}", device = device.describe());
            let mut init = Init::new(rng::manual_seed(i as u64));
            let network = Network::new(&mut init, cell, options).unwrap();
            let parameters = init.upload(&device).unwrap();
            let y = values(&at(&format!("saved{i}.y.safetensors")), "y");
            close(&what, &network.outputs(&parameters).unwrap(), &y);

            let (dtype, prefix, sharded) = kinds[i % kinds.len()];
            let place = at(&format!("wanted{i}"));
            let path = place.join(if sharded { "model.safetensors.index.json" } else { "model.safetensors" });
            let y = values(&place.join("y.safetensors"), "y");
            // Of the file alone.
            let file = ModelFile::open(&path).unwrap().rename(&[(prefix, "")]).unwrap();
            let mut made = Init::from_file(&file);
            let from_file = Network::from_file(&mut made, &file, cell).unwrap();
            assert_eq!(made.unused(), [""; 0]);
            close(&what, &from_file.outputs(&made.upload(&device).unwrap()).unwrap(), &y);
            // Into one that is there; a wrapper's prefix goes by itself.
            let report = match prefix {
                "net." => file.load(&parameters, Load::default()),
                _ => io::load_with(&path, &parameters, Load::default()),
            };
            let report = report.unwrap();
            let count = parameters.names().count();
            assert_eq!(report.converted.len(), if dtype == "float32" { 0 } else { count });
            assert_eq!(report.renamed.len(), if prefix.is_empty() { 0 } else { count });
            close(&what, &network.outputs(&parameters).unwrap(), &y);
        }
    }

    let mut init = Init::new(rng::manual_seed(777));
    Conv1d::new(&mut init, "conv", 4, 6, 3, CONVOLUTION).unwrap();
    Conv1d::without_bias(&mut init, "plain", 3, 2, 5, Conv1dOptions::default()).unwrap();
    LayerNorm::new(&mut init, "norm", 3).unwrap();
    for (name, tensor) in init.upload(&Device::cpu()).unwrap().iter() {
        assert_eq!(tensor.to_vec().unwrap(), values(&at("initial.safetensors"), name), "{name}");
    }

    // A state_dict of nn.LSTM itself, and back under the same names.
    let file = ModelFile::open(at("alone.safetensors")).unwrap();
    let mut init = Init::from_file(&file);
    let lstm = Recurrent::from_file(&mut init, "").unwrap();
    let parameters = init.upload(&Device::cpu()).unwrap();
    assert!(parameters.names().eq(["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"].into_iter().chain([
        "weight_ih_l1",
        "weight_hh_l1",
        "bias_ih_l1",
        "bias_hh_l1"
    ])));
    let mut g = Graph::inference(&parameters);
    let x = Device::upload(parameters.device(), "x", &[5, 2, 3], &values(&at("alone.y.safetensors"), "x")).unwrap();
    let x = g.input(&x).unwrap();
    let (y, _) = lstm.forward(&mut g, x, InitialState::Zero).unwrap();
    let y = g.tensor(y).unwrap();
    g.finish().unwrap().run().unwrap();
    close("alone", &y.to_vec().unwrap(), &values(&at("alone.y.safetensors"), "y"));
}
