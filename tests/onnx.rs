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

/// Every option of a module, written and read again: the same outputs, states, and, of what was read, gradients.
#[test]
fn what_is_written_is_what_was_there() {
    use elman::kernels::cell::Cell;
    use elman::kernels::sequence::Activation;
    use elman::nn::functional::{InitialState, States};
    use elman::nn::{Init, Recurrent, RnnOptions};
    use elman::onnx::{Size, Writer};

    let plain = RnnOptions::new(3, 4);
    let squash = [Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }, Activation::Tanh, Activation::Softsign];
    let [gate, new, out] = squash;
    let cases = [
        (Cell::Tanh, plain),
        (Cell::Relu, plain.num_layers(3).bidirectional(true)),
        (Cell::Tanh, plain.activations(&[Activation::Elu { alpha: 0.7 }])),
        (Cell::Gru, plain.num_layers(2).batch_first(true)),
        (Cell::Gru, plain.reset_after(false).bias(false)),
        (Cell::Gru, plain.activations(&[gate, gate, new]).bidirectional(true)),
        (Cell::Lstm, plain.bidirectional(true).num_layers(2)),
        (Cell::Lstm, plain.peepholes(true)),
        (Cell::Lstm, plain.peepholes(true).clip(0.4)),
        (Cell::Lstm, plain.coupled(true)),
        (Cell::Lstm, plain.activations(&[gate, gate, new, gate, out]).batch_first(true)),
    ];
    // What onnxruntime says of the files, if it is there.
    let folder = tempfile::tempdir().unwrap();
    let mut written = 0;
    for (cell, options) in cases {
        for device in f32_devices() {
            let what = format!("{cell:?} {options:?} on {device:?}");
            let mut init = Init::new(elman::rng::manual_seed(4));
            let module = Recurrent::new(&mut init, "rnn", cell, options).unwrap();
            let parameters = init.upload(&device).unwrap();
            let rows = options.num_layers * if options.bidirectional { 2 } else { 1 };
            let states = if cell == Cell::Lstm { 2 } else { 1 };
            let x = device.upload("x", &[5, 2, 3], &common::values(1, 30)).unwrap();
            let starts: Vec<_> = (0..states)
                .map(|i| device.upload("state", &[rows, 2, 4], &common::values(2 + i, rows * 8)).unwrap())
                .collect();
            let x = if options.batch_first { x.reshape(&[2, 5, 3]).unwrap() } else { x };

            let mut writer = Writer::new(&parameters);
            let sizes: Vec<_> = x.shape().iter().map(|_| Size::Any("any")).collect();
            let from = writer.input("x", &sizes);
            let names: Vec<_> = ["h", "c"][..states as usize].iter().map(|name| format!("{name}_0")).collect();
            let state = [Size::Fixed(rows), Size::Any("batch"), Size::Fixed(4)];
            let given: Vec<_> = names.iter().map(|name| writer.input(name, &state)).collect();
            let recurrence = writer.recurrent(&module, &from, &given).unwrap();
            writer.output("y", &recurrence.output);
            recurrence.states.iter().enumerate().for_each(|(i, state)| writer.output(&format!("s{i}"), state));
            let bytes = writer.to_bytes().unwrap();
            let model = Model::from_bytes(&bytes).unwrap_or_else(|e| panic!("{what}: {e}"));

            let ones = |g: &mut Graph, y| {
                let shape = g.shape(y).to_vec();
                device.upload("ones", &shape, &vec![1.0; shape.iter().product()]).unwrap()
            };
            // Ours.
            let mut g = Graph::new(&parameters);
            let xs = g.input_with_gradient(&x).unwrap();
            let vars: Vec<_> = starts.iter().map(|start| g.input(start).unwrap()).collect();
            let initial = InitialState::Given(States { h: vars[0], c: vars.get(1).copied() });
            let (y, end) = module.forward(&mut g, xs, initial).unwrap();
            let results: Vec<_> =
                [Some(y), Some(end.h), end.c].into_iter().flatten().map(|v| g.tensor(v).unwrap()).collect();
            let dy = ones(&mut g, y);
            g.backward(&[], &[(y, &dy)]).unwrap();
            let dx = g.gradient(xs).unwrap();
            let plan = g.finish().unwrap();
            plan.run().unwrap();
            let wanted: Vec<_> = results.iter().chain([&dx]).map(|tensor| tensor.to_vec_f64().unwrap()).collect();

            // What onnxruntime clips is not what comes into each function.
            if !device.is_gpu() && options.clip.is_none() {
                let inputs = names.iter().map(String::as_str).zip(&starts).chain([("x", &x)]);
                let results = ["y", "s0", "s1"].into_iter().zip(&results);
                let tensors = inputs.map(|(name, tensor)| (format!("input/{name}"), tensor));
                let tensors = tensors.chain(results.map(|(name, tensor)| (format!("output/{name}"), tensor)));
                let values: Vec<_> =
                    tensors.map(|(name, tensor)| (name, tensor.shape().to_vec(), tensor.to_vec().unwrap())).collect();
                let views = values.iter().map(|(name, shape, values)| {
                    let bytes = bytemuck::cast_slice(values);
                    (name, safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
                });
                let at = |kind: &str| folder.path().join(format!("{written}.{kind}"));
                std::fs::write(at("safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
                std::fs::write(at("onnx"), &bytes).unwrap();
                written += 1;
            }

            // What was read.
            let read = model.parameters(&device).unwrap();
            let mut g = Graph::new(&read);
            let xs = g.input_with_gradient(&x).unwrap();
            let mut inputs: Vec<(&str, Input)> = vec![("x", xs.into())];
            for (name, start) in names.iter().zip(&starts) {
                inputs.push((name, g.input(start).unwrap().into()));
            }
            let outputs = model.record(&mut g, &inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
            let vars: Vec<_> = outputs.iter().map(|(_, var)| var).collect();
            let got: Vec<_> = vars.iter().map(|&var| g.tensor(var).unwrap()).collect();
            let dy = ones(&mut g, vars[0]);
            g.backward(&[], &[(vars[0], &dy)]).unwrap();
            let dx = g.gradient(xs).unwrap();
            g.finish().unwrap().run().unwrap();
            for (i, (got, want)) in got.iter().chain([&dx]).zip(&wanted).enumerate() {
                assert_close(&format!("{what}: {i}"), &got.to_vec_f64().unwrap(), want, want.len(), 1e-5);
            }
        }
    }
    let Some(python) = std::env::var_os("ELMAN_PYTHON") else {
        return common::say_loudly(
            "NOT TESTED WITH ONNXRUNTIME: run `tests/run.sh --with-python`, or set ELMAN_PYTHON",
        );
    };
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/with_onnxruntime.py");
    let done = std::process::Command::new(python).arg(script).arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains(&format!("{written} files")), "{said}");
}

/// Bytes of files changed at random, cut, and doubled: an error or a model, whose recording is an error or a plan; nothing panics.
#[test]
fn damaged_files_are_errors() {
    let cases = cases();
    let mut random = elman::rng::manual_seed(17);
    let device = Device::cpu();
    let each = 10_000usize.div_ceil(cases.len());
    let mut read = 0;
    for (name, case) in &cases {
        for _ in 0..each {
            let mut bytes = case.model.clone();
            for _ in 0..1 + random.next_u32() % 4 {
                let at = random.next_u32() as usize % bytes.len();
                match random.next_u32() % 4 {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes[at] = random.next_u32() as u8,
                    2 => bytes[at] ^= 1 << (random.next_u32() % 8),
                    _ => bytes.extend_from_within(at..),
                }
            }
            let Ok(model) = Model::from_bytes(&bytes) else { continue };
            read += 1;
            let parameters = if model.has_parameters() { model.parameters(&device).ok() } else { None };
            let mut g = parameters.as_ref().map_or_else(|| Graph::without_parameters(&device), Graph::inference);
            let mut inputs: Vec<(String, Input)> = Vec::new();
            for (port, values) in &case.inputs {
                let input = match &values.wholes {
                    None => g.input(&device.upload(port, &values.shape, &values.reals).unwrap()).unwrap().into(),
                    Some(_) => (&device.tokens(port, &values.shape, 9).unwrap()).into(),
                };
                inputs.push((port.clone(), input));
            }
            let inputs: Vec<_> = inputs.iter().map(|(name, input)| (name.as_str(), input.clone())).collect();
            let _ = model.record(&mut g, &inputs).map(|outputs| outputs.iter().count());
        }
        assert!(!name.is_empty());
    }
    assert!(read > 100, "{read} of the changed files were models still");
}

#[test]
fn what_is_not_read_is_named() {
    let refused = |bytes: &[u8]| Model::from_bytes(bytes).map(drop).unwrap_err().to_string();
    assert!(refused(b"").contains("no graph"), "{}", refused(b""));
    assert!(refused(b"PK\x03\x04 no model").contains("ONNX"), "{}", refused(b"PK\x03\x04 no model"));
    let cases = cases();
    // An operator and an attribute of other names, in one file.
    let mut bytes = cases["test_lstm_defaults"].model.clone();
    let replace = |bytes: &mut Vec<u8>, from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
    };
    replace(&mut bytes, b"LSTM", b"LSTX");
    assert!(refused(&bytes).contains("the operator `LSTX`"), "{}", refused(&bytes));
    let mut bytes = cases["test_gru_defaults"].model.clone();
    replace(&mut bytes, b"hidden_size", b"hidden_sizf");
    assert!(refused(&bytes).contains("the attribute `hidden_sizf` of `GRU`"), "{}", refused(&bytes));

    let case = &cases["torch_jit_frames"];
    let model = Model::from_bytes(&case.model).unwrap();
    let device = Device::cpu();
    let mut g = Graph::inference(&model.parameters(&device).unwrap());
    let missing = model.record(&mut g, &[]).unwrap_err().to_string();
    assert!(missing.contains("all of x, h, c"), "{missing}");
    let other = device.upload("x", &[2, 4, 11], &[0.0; 88]).unwrap();
    let other = g.input(&other).unwrap();
    let misfit = model.record(&mut g, &[("x", other.into())]).unwrap_err().to_string();
    assert!(misfit.contains("[2, 3, any]"), "{misfit}");
}

/// A GRU of PyTorch's whose file says that it resets before its product is one that an exporter wrote wrongly.
#[test]
fn a_gru_that_pytorch_does_not_have_is_warned_of() {
    let mut bytes = cases()["torch_jit_GRU"].model.clone();
    assert_eq!(Model::from_bytes(&bytes).unwrap().warning(), None);
    let name = b"linear_before_reset";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    // The field `i` of the attribute.
    assert_eq!(bytes[at..at + 2], [0x18, 1]);
    bytes[at + 1] = 0;
    let is_told = |bytes: &[u8]| {
        let warning = Model::from_bytes(bytes).unwrap().warning().unwrap();
        assert!(warning.contains("linear_before_reset = 0") && warning.contains("2.5.1"), "{warning}");
    };
    is_told(&bytes);
    // In a branch: the node of the GRU as the graph of a node's attribute, of the type of graphs.
    let graph =
        message(1, &[message(4, b"GRU"), ["x", "w", "r"].map(|name| message(1, name.as_bytes())).concat()].concat());
    let branch = [&message(1, b"then_branch")[..], &message(6, &graph), &[20 << 3 | 0x80, 1, 5]].concat();
    let around = message(1, &[message(4, b"If"), message(1, b"c"), message(2, b"y"), message(5, &branch)].concat());
    let producer = [message(2, b"pytorch"), message(3, b"2.5.1")].concat();
    is_told(&[producer, message(8, &[0x10, 17]), message(7, &around)].concat());
}

/// A field of a message that has these bytes.
fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut length = bytes.len();
    let mut message = vec![number << 3 | 2];
    while length > 0x7f {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    [&message, bytes].concat()
}

/// Lengths that are not true, and messages without end in one another: errors, soon.
#[test]
fn lengths_are_checked() {
    let whole = cases()["test_gru_defaults"].model.clone();
    // Of a field that nobody knows, of the producer's name, of a graph's node and of a tensor's bytes: 2^64 - 1, and 2^40.
    let lengths = [vec![0xff; 9].into_iter().chain([1]).collect(), vec![0x80, 0x80, 0x80, 0x80, 0x80, 0x20]];
    for length in &lengths {
        let field = |number: u8| [&[number << 3 | 2], &length[..]].concat();
        let broken = [field(15), field(2), message(7, &field(1)), message(7, &message(5, &field(9)))];
        for broken in broken {
            let error = Model::from_bytes(&[&whole[..], &broken].concat()).err().expect("an error").to_string();
            assert!(error.contains("lengths are not true"), "{error}");
        }
    }
    // Numbers without an end: a tag, and among a tensor's sizes and an attribute's numbers.
    let number = [0x80; 12];
    let of_tensor = message(7, &message(5, &message(1, &number)));
    let of_attribute = message(7, &message(1, &message(5, &message(8, &number))));
    for broken in [number.to_vec(), of_tensor, of_attribute] {
        let error = Model::from_bytes(&[&whole[..], &broken].concat()).err().expect("an error").to_string();
        assert!(error.contains("without an end"), "{error}");
    }
    // A graph of a node of an attribute of a graph of ...
    let mut deep = Vec::new();
    for _ in 0..2000 {
        deep = message(1, &message(5, &message(6, &deep)));
    }
    let error = Model::from_bytes(&[&whole[..], &message(7, &deep)].concat()).err().expect("an error").to_string();
    assert!(error.contains("in one another"), "{error}");
}
