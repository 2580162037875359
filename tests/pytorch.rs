//! Against PyTorch 2.5.1: fixtures made by `tests/fixtures/generate.py`.

mod common;

use common::{Fixture, assert_close, f32_devices, widen};
use elman::nn::functional::{self, InitialState, Loss, Reduction, States};
use elman::nn::{
    CharRnn, CharRnnOptions, Embedding, Gru, Init, LanguageModel, Linear, Lstm, LstmOutput, Nonlinearity, Rnn,
    RnnOptions, RnnOutput,
};
use elman::optim::{Adagrad, Adam, AdamW, Clip, Optimizer, RmsProp, Sgd};
use elman::text::{Corpus, Windows};
use elman::{Device, Evaluator, Graph, Result, Tensor, Trainer, Var, rng};

/// Uniform draws have PyTorch's bits; normal ones differ in the last bits of log, sin and cos.
const NORMAL_TOLERANCE: f64 = 3e-6;

#[test]
fn generator_draws() {
    let fixture = Fixture::open("rng");
    let f64s = |values: Vec<f32>| widen(&values);
    let u32s = |values: Vec<u32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
    let exactly = |name: &str, got: Vec<f64>| assert_eq!(got, fixture.get(name).1, "{name}");
    let closely = |name: &str, got: Vec<f64>| {
        let want = fixture.get(name).1;
        assert_close(name, &got, &want, want.len(), NORMAL_TOLERANCE);
    };
    exactly("rand_20", f64s(rng::manual_seed(777).rand(20)));
    exactly("uniform_-0.3_0.7", f64s(rng::manual_seed(777).uniform(40, -0.3, 0.7)));
    exactly("randperm_1000", u32s(rng::manual_seed(777).randperm(1000)));
    for n in [1, 5, 12, 16, 35] {
        closely(&format!("randn_{n}"), f64s(rng::manual_seed(777).randn(n)));
    }
    let mut chain = rng::manual_seed(777);
    exactly("chain_rand", f64s(chain.rand(3)));
    closely("chain_randn", f64s(chain.randn(19)));
    exactly("chain_perm", u32s(chain.randperm(10)));
    closely("chain_randn_small", f64s(chain.randn(3)));
    exactly("chain_rand_2", f64s(chain.rand(3)));
}

#[test]
fn initial_values() {
    let fixture = Fixture::open("rng");
    type Build = fn(&mut Init, &str) -> Result<()>;
    let modules: [(&str, f64, Build); 6] = [
        ("embedding_85_42", NORMAL_TOLERANCE, |init, name| Embedding::new(init, name, 85, 42).map(|_| ())),
        ("embedding_3_4", NORMAL_TOLERANCE, |init, name| Embedding::new(init, name, 3, 4).map(|_| ())),
        ("linear_37_11", 0.0, |init, name| Linear::new(init, name, 37, 11).map(|_| ())),
        ("linear_9_4_nobias", 0.0, |init, name| Linear::without_bias(init, name, 9, 4).map(|_| ())),
        ("rnn_13_48", 0.0, |init, name| Rnn::new(init, name, RnnOptions::new(13, 48)).map(|_| ())),
        ("rnn_6_5_nobias", 0.0, |init, name| Rnn::new(init, name, RnnOptions::new(6, 5).bias(false)).map(|_| ())),
    ];
    for (name, tolerance, build) in modules {
        let mut init = Init::new(rng::manual_seed(777));
        build(&mut init, name).unwrap();
        let parameters = init.upload(&Device::cpu()).unwrap();
        for (key, tensor) in parameters.iter() {
            let (shape, want) = fixture.get(key);
            assert_eq!(tensor.shape(), shape, "{key}");
            assert_close(key, &tensor.to_vec_f64().unwrap(), &want, want.len(), tolerance);
        }
    }
}

/// Outputs and final states within 1e-5 of the row's scale, gradients within 1e-5 of their largest.
#[test]
fn rnn_outputs_states_and_gradients() {
    let fixture = Fixture::open("rnn");
    let devices: Vec<_> = f32_devices().into_iter().chain([Device::reference()]).collect();
    for device in devices {
        for case in ["plain", "batch_first", "no_bias", "no_state", "one_step", "tile_edges"] {
            check_rnn(&device, false, &fixture, case);
            check_rnn(&device, true, &fixture, case);
        }
    }
}

fn check_rnn(device: &Device, wide: bool, fixture: &Fixture, case: &str) {
    let key = |name: &str| format!("{case}.{name}");
    let upload = |name: &str| {
        let (shape, values) = fixture.f32(&key(name));
        device.upload(name, &shape, &values).unwrap()
    };
    let (shape, _) = fixture.get(&key("weight_ih_l0"));
    let bias = fixture.try_get(&key("bias_ih_l0")).is_some();
    let batch_first = ["batch_first", "no_state"].contains(&case);
    let mut init = Init::new(rng::manual_seed(0));
    let options = RnnOptions::new(shape[1], shape[0]).bias(bias).batch_first(batch_first);
    let rnn = Rnn::new(&mut init, "rnn", options).unwrap();
    let parameters = init.upload(device).unwrap();
    for (name, tensor) in parameters.iter() {
        let name = name.strip_prefix("rnn.").unwrap();
        tensor.write(&fixture.f32(&key(name)).1).unwrap();
    }

    let mut g = Graph::new(&parameters);
    g.set_wide(wide);
    let x = g.input_with_gradient(&upload("x")).unwrap();
    let h_0 = fixture.try_get(&key("h_0")).map(|_| g.input_with_gradient(&upload("h_0")).unwrap());
    let initial = h_0.map_or(InitialState::Zero, |h_0| InitialState::Given(h_0.into()));
    let out = rnn.forward(&mut g, x, initial).unwrap();
    let y = g.tensor(out.output).unwrap();
    let h_n = g.tensor(out.h_n).unwrap();
    g.backward(&[], &[(out.output, &upload("grad_y")), (out.h_n, &upload("grad_h_n"))]).unwrap();
    let grad_x = g.gradient(x).unwrap();
    let grad_h_0 = h_0.map(|h_0| g.gradient(h_0).unwrap());
    // Twice: what a run leaves behind must not reach the next.
    g.finish().unwrap().run_times(2).unwrap();

    let check = |name: &str, got: &elman::Tensor, columns: Option<usize>| {
        let (shape, want) = fixture.get(&key(name));
        assert_eq!(got.shape(), shape, "{case}: {name}");
        let what = format!("{case}: {name} on {}", device.describe());
        assert_close(&what, &got.to_vec_f64().unwrap(), &want, columns.unwrap_or(want.len()), 1e-5);
    };
    check("y", &y, Some(shape[0]));
    check("h_n", &h_n, Some(shape[0]));
    check("grad_x", &grad_x, None);
    if let Some(grad_h_0) = grad_h_0 {
        check("grad_h_0", &grad_h_0, None);
    }
    for name in parameters.names() {
        let key = format!("grad_{}", name.strip_prefix("rnn.").unwrap());
        check(&key, &parameters.get_gradient(name).unwrap(), None);
    }
}

/// The generator of `generate.py`, which wrote the losses.
fn synthetic_corpus(n: u64) -> Vec<u32> {
    let mut state = 12345u64;
    let next = |i: u64| {
        state = (state * 1_103_515_245 + 12345) & 0x7fff_ffff;
        (1 + (i * i / 7 + (state >> 16) % 5) % 84) as u32
    };
    (0..n).map(next).collect()
}

/// Fifty steps of the published configuration: 512 windows of 8, embedding 42, hidden 256, Adam at 1e-3.
#[test]
fn first_fifty_training_losses() {
    let fixture = Fixture::open("losses");
    let corpus = synthetic_corpus(30_000);
    let head: Vec<f64> = corpus[..100].iter().map(|&token| token.into()).collect();
    assert_eq!(head, fixture.get("corpus_head").1);
    let want = fixture.get("losses").1;
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(777));
        let order = init.rng.randperm(corpus.len() - 8);
        let options = CharRnnOptions::new(85, 42, 256);
        let model = CharRnn::new(&mut init, options).unwrap();
        let parameters = init.upload(&device).unwrap();
        let text = Corpus::new(&device, &corpus, 85).unwrap();
        let windows = Windows::new(&text, order, 8).unwrap();
        let mut trainer = Trainer::new(&parameters, Adam::new(1e-3), |g| {
            let batch = windows.batch(g, 512)?;
            let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
            functional::cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        })
        .unwrap();
        for _ in 0..50 {
            trainer.step().unwrap();
        }
        let got = trainer.losses().unwrap();
        assert_eq!(got.len(), want.len());
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            let difference = (f64::from(*got) - want).abs();
            assert!(difference <= 1e-4, "step {step} on {}: {got}, PyTorch {want}", device.describe());
        }
    }
}

/// Every kind x layers x directions x batch_first x bias x lengths x initial state, but for three layers batch first, sizes all different, on
/// every device:
/// outputs and states within 1e-5, gradients within 1e-4 of their largest.
#[test]
fn recurrent_family() {
    let fixture = Fixture::open("family");
    for device in f32_devices() {
        let (mut number, mut cases) = (0, 0);
        for kind in ["tanh", "relu", "gru", "lstm", "projected"] {
            for layers in [1, 2, 3] {
                for bits in 0..32 {
                    let flag = |place: usize| bits >> (4 - place) & 1 == 1;
                    let (bidirectional, batch_first, bias) = (flag(0), flag(1), flag(2));
                    let (lengths, state) = (flag(3), flag(4));
                    number += 1;
                    if layers == 3 && batch_first {
                        continue;
                    }
                    cases += 1;
                    let options = RnnOptions::new(2, 5)
                        .num_layers(layers)
                        .bidirectional(bidirectional)
                        .batch_first(batch_first)
                        .bias(bias);
                    let name = format!(
                        "{kind} {layers} {} {} {} {} {}",
                        u8::from(bidirectional),
                        u8::from(batch_first),
                        u8::from(bias),
                        u8::from(lengths),
                        u8::from(state)
                    );
                    let want = fixture.get(&name).1;
                    check_family(&device, kind, &name, number, options, lengths, state, &want);
                }
            }
        }
        assert_eq!((cases, fixture.names().len()), (400, 400));
    }
}

#[allow(clippy::too_many_arguments, reason = "the options of a case")]
fn check_family(
    device: &Device,
    kind: &str,
    name: &str,
    seed: u64,
    options: RnnOptions,
    with_lengths: bool,
    with_state: bool,
    want: &[f64],
) {
    let (steps, batch, hidden) = (6, 3, options.hidden_size);
    let directions = if options.bidirectional { 2 } else { 1 };
    let mut init = Init::new(rng::manual_seed(seed));
    let module = match kind {
        "gru" => Module::Gru(Gru::new(&mut init, "m", options).unwrap()),
        "lstm" => Module::Lstm(Lstm::new(&mut init, "m", options).unwrap()),
        "projected" => Module::Lstm(Lstm::new(&mut init, "m", options.proj_size(4)).unwrap()),
        "relu" => Module::Rnn(Rnn::new(&mut init, "m", options.nonlinearity(Nonlinearity::Relu)).unwrap()),
        _ => Module::Rnn(Rnn::new(&mut init, "m", options).unwrap()),
    };
    let parameters = init.upload(device).unwrap();
    let mut draw = |name: &str, shape: &[usize]| {
        device.upload(name, shape, &init.rng.uniform(shape.iter().product(), -1.0, 1.0)).unwrap()
    };
    let outer = if options.batch_first { [batch, steps] } else { [steps, batch] };
    let sizes: &[usize] = match kind {
        "projected" => &[4, hidden],
        "lstm" => &[hidden; 2],
        _ => &[hidden],
    };
    let lengths = device.lengths("lengths", batch, steps).unwrap();
    if with_lengths {
        lengths.write_u32(&[3, 6, 1]).unwrap();
    }

    let mut g = Graph::new(&parameters);
    // Of three cases one all steps at once, one step by step, as a large hidden size is, and one with its layers as a
    // wavefront.
    g.set_stepwise(!seed.is_multiple_of(3));
    g.set_wide(seed % 3 == 2);
    let x = g.input_with_gradient(&draw("x", &[outer[0], outer[1], options.input_size])).unwrap();
    let mut states = Vec::new();
    for &size in sizes.iter().filter(|_| with_state) {
        let state = draw("state", &[directions * options.num_layers, batch, size]);
        states.push(g.input_with_gradient(&state).unwrap());
    }
    let initial = match states[..] {
        [] => InitialState::Zero,
        [h] => InitialState::Given(h.into()),
        [h, c, ..] => InitialState::Given(States { h, c: Some(c) }),
    };
    let lengths = with_lengths.then_some(&lengths);
    let results = module.forward(&mut g, x, initial, lengths);
    let shall_stack = seed % 3 == 2 && kind != "projected" && options.num_layers > 1 && directions == 1;
    let mut tensors: Vec<_> = results.iter().map(|&var| g.tensor(var).unwrap()).collect();
    let forward = tensors.len();
    let seeds: Vec<_> = tensors.iter().map(|tensor| draw("seed", tensor.shape())).collect();
    let seeds: Vec<_> = results.iter().copied().zip(&seeds).collect();
    g.backward(&[], &seeds).unwrap();
    tensors.extend([x].iter().chain(&states).map(|&var| g.gradient(var).expect("a gradient")));
    // Twice: what a run leaves behind must not reach the next.
    let plan = g.finish().unwrap();
    assert_eq!(plan.to_string().contains("each a step behind"), shall_stack, "{name}: {plan}");
    plan.run_times(2).unwrap();
    tensors.extend(parameters.names().map(|name| parameters.get_gradient(name).unwrap()));

    let mut at = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        let want = &want[at..at + tensor.len()];
        at += tensor.len();
        // What relu lets through may all but cancel: there it is the largest of the tensor that counts.
        let row = if kind == "relu" { tensor.len() } else { *tensor.shape().last().unwrap() };
        let (tolerance, columns) = if i < forward { (1e-5, row) } else { (1e-4, tensor.len()) };
        let what = format!("{name}: result {i}, {tensor:?}, on {}", device.describe());
        assert_close(&what, &tensor.to_vec_f64().unwrap(), want, columns, tolerance);
    }
    assert_eq!(at, want.len(), "{name}");
}

enum Module {
    Rnn(Rnn),
    Gru(Gru),
    Lstm(Lstm),
}

impl Module {
    /// Output, h_n, and c_n.
    fn forward(&self, g: &mut Graph, x: Var, initial: InitialState<'_>, lengths: Option<&Tensor>) -> Vec<Var> {
        let of_rnn = |out: RnnOutput| vec![out.output, out.h_n];
        let of_lstm = |out: LstmOutput| vec![out.output, out.h_n, out.c_n];
        match (self, lengths) {
            (Self::Rnn(m), None) => m.forward(g, x, initial).map(of_rnn),
            (Self::Rnn(m), Some(lengths)) => m.forward_with_lengths(g, x, initial, lengths).map(of_rnn),
            (Self::Gru(m), None) => m.forward(g, x, initial).map(of_rnn),
            (Self::Gru(m), Some(lengths)) => m.forward_with_lengths(g, x, initial, lengths).map(of_rnn),
            (Self::Lstm(m), None) => m.forward(g, x, initial).map(of_lstm),
            (Self::Lstm(m), Some(lengths)) => m.forward_with_lengths(g, x, initial, lengths).map(of_lstm),
        }
        .unwrap()
    }
}

/// Runs a case of the toolbox on a fresh input and compares value and gradient with PyTorch's.
fn check_values(
    name: &str,
    seed: u64,
    scale: f64,
    shape: [usize; 2],
    build: impl Fn(&mut Graph, Var, &mut rng::Rng) -> Built,
) {
    let want = Fixture::open("toolbox").get(name).1;
    for device in f32_devices() {
        let mut rng = rng::manual_seed(seed);
        let n = shape[0] * shape[1];
        let x: Vec<f32> = rng.uniform(n, -1.0, 1.0).iter().map(|x| scale as f32 * x).collect();
        let x = device.upload("x", &shape, &x).unwrap();
        let mut g = Graph::without_parameters(&device);
        let x = g.input_with_gradient(&x).unwrap();
        let built = build(&mut g, x, &mut rng);
        match &built {
            Built::Value(y) => {
                let seed = device.upload("seed", &shape, &rng.uniform(n, -1.0, 1.0)).unwrap();
                g.backward(&[], &[(*y, &seed)]).unwrap();
            }
            Built::Loss(loss, _) => g.backward(&[loss], &[]).unwrap(),
        }
        let dx = g.gradient(x).unwrap();
        let y = match &built {
            Built::Value(y) => g.tensor(*y).unwrap(),
            Built::Loss(loss, _) => loss.rows().clone(),
        };
        g.finish().unwrap().run_times(2).unwrap();
        let mut y = y.to_vec_f64().unwrap();
        if let Built::Loss(_, counted) = built {
            y = vec![y.iter().sum::<f64>() / counted];
        }
        let what = format!("{name} on {}", device.describe());
        let (value, gradient) = want.split_at(y.len());
        assert_close(&what, &y, value, y.len(), 1e-5);
        assert_close(&format!("d {what}"), &dx.to_vec_f64().unwrap(), gradient, n, 1e-5);
    }
}

/// What a case of the toolbox computes: values, or a loss and what the sum of its rows is divided by.
enum Built {
    Value(Var),
    Loss(Loss, f64),
}

#[test]
fn activations_and_losses() {
    type Activation = fn(&mut Graph, Var) -> Result<Var>;
    let activations: [(&str, Activation); 4] = [
        ("relu", functional::relu),
        ("tanh", functional::tanh),
        ("sigmoid", functional::sigmoid),
        ("log_softmax", functional::log_softmax),
    ];
    let mut seed = 0;
    for (name, f) in activations {
        seed += 1;
        check_values(name, seed, 4.0, [7, 5], |g, x, _| Built::Value(f(g, x).unwrap()));
    }
    for (name, reduction) in [("mean", Reduction::Mean), ("sum", Reduction::Sum)] {
        // What the mean divides by.
        let over = |rows: f64| if reduction == Reduction::Mean { rows } else { 1.0 };
        let mut case = |kind: &str, rows: f64, f: &dyn Fn(&mut Graph, Var, &mut rng::Rng) -> Result<Loss>| {
            seed += 1;
            check_values(&format!("{kind} {name}"), seed, 100.0, [6, 5], |g, x, rng| {
                Built::Loss(f(g, x, rng).unwrap(), over(rows))
            });
        };
        let classes = |g: &Graph| {
            let classes = g.device().targets("classes", &[6], 5).unwrap();
            classes.write_u32(&[3, 0, 4, 0, 2, 1]).unwrap();
            classes
        };
        let ignoring = reduction.ignoring(0);
        case("cross_entropy", 6.0, &|g, x, _| functional::cross_entropy(g, x, &classes(g), reduction));
        case("cross_entropy ignoring 0", 4.0, &|g, x, _| functional::cross_entropy(g, x, &classes(g), ignoring));
        case("nll_loss", 6.0, &|g, x, _| functional::nll_loss(g, x, &classes(g), reduction));
        case("nll_loss ignoring 0", 4.0, &|g, x, _| functional::nll_loss(g, x, &classes(g), ignoring));
        case("nll_loss of log_softmax", 6.0, &|g, x, _| {
            let x = functional::log_softmax(g, x)?;
            functional::nll_loss(g, x, &classes(g), reduction)
        });
        case("mse_loss", 30.0, &|g, x, rng| {
            let targets = g.device().upload("targets", &[6, 5], &rng.uniform(30, -1.0, 1.0))?;
            functional::mse_loss(g, x, &targets, reduction)
        });
        case("binary_cross_entropy_with_logits", 30.0, &|g, x, rng| {
            let targets = g.device().upload("targets", &[6, 5], &rng.rand(30))?;
            functional::binary_cross_entropy_with_logits(g, x, &targets, reduction)
        });
    }
}

/// Losses of rows that are weighted, or count up to a length, as an evaluator gives them, and their gradients.
#[test]
fn weighted_losses() {
    let fixture = Fixture::open("weighted");
    for device in f32_devices() {
        let mut rng = rng::manual_seed(1);
        let [x, y, p] = [(); 3].map(|()| rng.uniform(60, -1.0, 1.0));
        let mut init = Init::new(rng::manual_seed(0));
        let x = init.add("x".into(), &[4, 3, 5], x.iter().map(|x| 3.0 * x).collect()).unwrap();
        let y = device.upload("y", &[4, 3, 5], &y).unwrap();
        let p = device.upload("p", &[4, 3, 5], &p.iter().map(|p| (p + 1.0) / 2.0).collect::<Vec<_>>()).unwrap();
        let rows = device.upload("rows", &[4, 3], &rng.rand(12)).unwrap();
        let batch = device.upload("batch", &[3], &rng.rand(3)).unwrap();
        let lengths = device.lengths("lengths", 3, 4).unwrap();
        lengths.write_u32(&[4, 2, 1]).unwrap();
        let classes = device.targets("classes", &[4, 3], 5).unwrap();
        classes.write_u32(&[3, 0, 4, 0, 2, 1, 1, 1, 0, 4, 3, 2]).unwrap();
        let parameters = init.upload(&device).unwrap();
        for (reduction, of) in [(Reduction::Mean, "mean"), (Reduction::Sum, "sum")] {
            for (kind, weighted) in [
                ("rows", reduction.weighted(&rows)),
                ("batch", reduction.weighted(&batch)),
                ("lengths", reduction.up_to(&lengths)),
                ("both", reduction.up_to(&lengths).weighted(&batch)),
            ] {
                for name in [
                    "cross_entropy",
                    "cross_entropy ignoring 1",
                    "nll_loss",
                    "accuracy",
                    "mse_loss",
                    "absolute_error",
                    "binary_cross_entropy_with_logits",
                    "mean",
                ] {
                    let build = |g: &mut Graph| {
                        let x = g.parameter(x)?;
                        match name {
                            "cross_entropy" => functional::cross_entropy(g, x, &classes, weighted),
                            "cross_entropy ignoring 1" => {
                                functional::cross_entropy(g, x, &classes, weighted.ignoring(1))
                            }
                            "nll_loss" => {
                                let x = functional::log_softmax(g, x)?;
                                functional::nll_loss(g, x, &classes, weighted)
                            }
                            "accuracy" => functional::accuracy(g, x, &classes, weighted),
                            "mse_loss" => functional::mse_loss(g, x, &y, weighted),
                            "absolute_error" => functional::absolute_error(g, x, &y, weighted),
                            "mean" => functional::reduce(g, x, weighted),
                            _ => functional::binary_cross_entropy_with_logits(g, x, &p, weighted),
                        }
                    };
                    let what = format!("{name} {kind} {of}");
                    let want = fixture.get(&what).1;
                    let got = Evaluator::new(&parameters, build).unwrap().losses(1).unwrap()[0];
                    assert_close(&what, &[got.into()], &want[..1], 1, 1e-5);
                    if name != "accuracy" {
                        let mut g = Graph::new(&parameters);
                        let loss = build(&mut g).unwrap();
                        g.backward(&[&loss], &[]).unwrap();
                        g.finish().unwrap().run_times(2).unwrap();
                        let got = parameters.get_gradient("x").unwrap().to_vec_f64().unwrap();
                        assert_close(&format!("d {what} on {}", device.describe()), &got, &want[1..], 60, 1e-5);
                    }
                }
            }
        }
    }
}

/// Parameters after five steps on a linear regression.
#[test]
fn optimizers() {
    let fixture = Fixture::open("toolbox");
    let (beta, eps, weight_decay) = ((0.8, 0.95), 1e-3, 0.2);
    let momentum = Sgd { momentum: 0.9, ..Sgd::new(0.1) };
    let adam = Adam { betas: beta, eps, weight_decay, ..Adam::new(0.1) };
    let centered = RmsProp { alpha: 0.9, eps, weight_decay, momentum: 0.8, centered: true, ..RmsProp::new(0.01) };
    let cases: [(&str, Optimizer); 14] = [
        ("sgd", Sgd::new(0.1).into()),
        ("sgd momentum", momentum.into()),
        ("sgd dampening", Sgd { dampening: 0.3, weight_decay, ..momentum }.into()),
        ("sgd nesterov", Sgd { weight_decay, nesterov: true, ..momentum }.into()),
        ("adam", Adam::new(0.1).into()),
        ("adam decay", adam.into()),
        ("adamw", AdamW::new(0.1).into()),
        ("adamw decay", AdamW(adam).into()),
        ("rmsprop", RmsProp::new(0.01).into()),
        ("rmsprop centered", centered.into()),
        ("clip norm", Optimizer::from(Sgd::new(0.1)).clip(Clip::Norm(0.5))),
        ("clip value", Optimizer::from(Sgd::new(0.1)).clip(Clip::Value(0.1))),
        ("adagrad", Adagrad::new(0.1).into()),
        ("adagrad decay", Adagrad { lr_decay: 0.5, weight_decay, eps, ..Adagrad::new(0.1) }.into()),
    ];
    for (number, (name, optimizer)) in (19..).zip(cases) {
        let want = fixture.get(&format!("optimizer {name}")).1;
        for device in f32_devices() {
            let mut init = Init::new(rng::manual_seed(number));
            let linear = Linear::new(&mut init, "linear", 3, 4).unwrap();
            let parameters = init.upload(&device).unwrap();
            let x = device.upload("x", &[6, 3], &init.rng.uniform(18, -1.0, 1.0)).unwrap();
            let y: Vec<f32> = init.rng.uniform(24, -1.0, 1.0).iter().map(|y| 3.0 * y).collect();
            let y = device.upload("y", &[6, 4], &y).unwrap();
            let mut trainer = Trainer::new(&parameters, optimizer.clone(), |g| {
                let x = g.input(&x)?;
                let out = linear.forward(g, x)?;
                functional::mse_loss(g, out, &y, Reduction::Mean)
            })
            .unwrap();
            (0..5).for_each(|_| trainer.step().unwrap());
            assert_eq!(trainer.losses().unwrap().len(), 5);
            let got: Vec<f64> = parameters.iter().flat_map(|(_, tensor)| tensor.to_vec_f64().unwrap()).collect();
            assert_close(&format!("{name} on {}", device.describe()), &got, &want, got.len(), 1e-5);
        }
    }
}
