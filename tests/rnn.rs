//! What a recurrent network must do, by name, on every device.

mod common;

use common::{assert_close, f32_devices, values, widen};
use elman::nn::functional::{self, InitialState, Reduction, States, cross_entropy};
use elman::nn::{
    Cell, Gru, GruCell, Init, Linear, Lstm, LstmCell, Nonlinearity, Parameters, Recurrent, Rnn, RnnCell, RnnOptions,
    State,
};
use elman::optim::Adam;
use elman::{Device, Error, Evaluator, Graph, Plan, Tensor, Trainer, Var, rng};

const INPUT: usize = 3;
const BATCH: usize = 5;

/// The devices, with a hidden size that takes all steps in one dispatch, and one that takes a dispatch per step.
fn cases() -> impl Iterator<Item = (Device, usize)> {
    f32_devices().into_iter().flat_map(|device| [(device.clone(), 7), (device, 1027)])
}

fn module(device: &Device, hidden: usize) -> (Rnn, Parameters) {
    let mut init = Init::new(rng::manual_seed(11));
    let rnn = Rnn::new(&mut init, "rnn", RnnOptions::new(INPUT, hidden)).unwrap();
    (rnn, init.upload(device).unwrap())
}

fn sequence(steps: usize) -> Vec<f32> {
    values(21, steps * BATCH * INPUT).iter().map(|x| 2.0 * x).collect()
}

enum Start<'a> {
    Zero,
    Given(&'a [f32]),
    Carried(&'a State),
}

/// Records a forward pass over `x` `[T, B, I]`; gives the plan, the output and the last state.
fn plan(rnn: &Rnn, parameters: &Parameters, x: &[f32], start: &Start<'_>) -> (Plan, Tensor, Tensor) {
    let device = parameters.device();
    let mut g = Graph::inference(parameters);
    let x = device.upload("x", &[x.len() / BATCH / INPUT, BATCH, INPUT], x).unwrap();
    let x = g.input(&x).unwrap();
    let initial = match start {
        Start::Zero => InitialState::Zero,
        Start::Carried(state) => InitialState::Carried(state),
        Start::Given(values) => {
            let h_0 = device.upload("h_0", &[1, BATCH, values.len() / BATCH], values).unwrap();
            InitialState::Given(g.input(&h_0).unwrap().into())
        }
    };
    let out = rnn.forward(&mut g, x, initial).unwrap();
    let (y, h_n) = (g.tensor(out.output).unwrap(), g.tensor(out.h_n).unwrap());
    (g.finish().unwrap(), y, h_n)
}

fn run(rnn: &Rnn, parameters: &Parameters, x: &[f32], start: &Start<'_>) -> (Vec<f32>, Vec<f32>) {
    let (plan, y, h_n) = plan(rnn, parameters, x, start);
    plan.run().unwrap();
    (y.to_vec().unwrap(), h_n.to_vec().unwrap())
}

/// The definition, in plain loops and f64.
fn unrolled(parameters: &Parameters, x: &[f32], h_0: &[f32]) -> Vec<f64> {
    let get = |name: &str| parameters.get(&format!("rnn.{name}_l0")).unwrap().to_vec_f64().unwrap();
    let (w_ih, w_hh, b_ih, b_hh) = (get("weight_ih"), get("weight_hh"), get("bias_ih"), get("bias_hh"));
    let hidden = b_hh.len();
    let mut h = widen(h_0);
    let mut y = Vec::new();
    for x in widen(x).chunks(BATCH * INPUT) {
        let mut next = vec![0.0; BATCH * hidden];
        for b in 0..BATCH {
            for j in 0..hidden {
                let mut sum = b_ih[j] + b_hh[j];
                for i in 0..INPUT {
                    sum += x[b * INPUT + i] * w_ih[j * INPUT + i];
                }
                for k in 0..hidden {
                    sum += h[b * hidden + k] * w_hh[j * hidden + k];
                }
                next[b * hidden + j] = sum.tanh();
            }
        }
        h = next;
        y.extend_from_slice(&h);
    }
    y
}

#[test]
fn equals_an_unrolled_loop() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let h_0 = values(31, BATCH * hidden);
        for steps in [1, 2, 5] {
            let (y, h_n) = run(&rnn, &parameters, &sequence(steps), &Start::Given(&h_0));
            let want = unrolled(&parameters, &sequence(steps), &h_0);
            assert_close("output", &widen(&y), &want, hidden, 2e-6);
            assert_eq!(h_n, y[y.len() - BATCH * hidden..], "h_n is the last output");
        }
    }
}

#[test]
fn one_step_is_a_sequence() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let x = sequence(3);
        let (y, _) = run(&rnn, &parameters, &x, &Start::Zero);
        let mut h = vec![0.0; BATCH * hidden];
        for (x, want) in x.chunks(BATCH * INPUT).zip(y.chunks(BATCH * hidden)) {
            h = run(&rnn, &parameters, x, &Start::Given(&h)).1;
            assert_eq!(h, want);
        }
    }
}

#[test]
fn no_state_is_zero_state() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let zero = run(&rnn, &parameters, &sequence(4), &Start::Given(&vec![0.0; BATCH * hidden]));
        assert_eq!(run(&rnn, &parameters, &sequence(4), &Start::Zero), zero);
    }
}

#[test]
fn no_state_is_zero_state_every_time() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let (plan, y, _) = plan(&rnn, &parameters, &sequence(4), &Start::Zero);
        plan.run().unwrap();
        let first = y.to_vec().unwrap();
        plan.run().unwrap();
        assert_eq!(y.to_vec().unwrap(), first);
    }
}

#[test]
fn carry_is_bit_equal() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let state = rnn.state(&device, BATCH).unwrap();
        let (y, h_n) = run(&rnn, &parameters, &sequence(4), &Start::Carried(&state));
        assert_eq!(state.save().unwrap()["h"], h_n);
        assert_eq!(h_n, y[3 * BATCH * hidden..]);
    }
}

#[test]
fn two_windows_with_carry_are_one_long_window() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let x = sequence(7);
        let (whole, _) = run(&rnn, &parameters, &x, &Start::Zero);
        let state = rnn.state(&device, BATCH).unwrap();
        let (first, second) = x.split_at(3 * BATCH * INPUT);
        let mut parts = run(&rnn, &parameters, first, &Start::Carried(&state)).0;
        parts.extend(run(&rnn, &parameters, second, &Start::Carried(&state)).0);
        assert_eq!(parts, whole);
    }
}

#[test]
fn states_are_zeroed_saved_restored_and_forked() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let state = rnn.state(&device, BATCH).unwrap();
        run(&rnn, &parameters, &sequence(2), &Start::Carried(&state));
        let saved = state.save().unwrap();
        assert!(saved["h"].iter().any(|&h| h != 0.0));
        let fork = state.fork().unwrap();
        state.zero().unwrap();
        assert!(state.save().unwrap()["h"].iter().all(|&h| h == 0.0));
        assert_eq!(fork.save().unwrap(), saved, "a fork has memory of its own");
        state.restore(&saved).unwrap();
        assert_eq!(state.save().unwrap(), saved);
        let wrong = [("h".to_owned(), vec![0.0; 3])].into();
        assert!(matches!(state.restore(&wrong), Err(Error::Shape { .. })));
        assert_eq!(state.save().unwrap(), saved, "a refused state changes nothing");
    }
}

/// Training with carried state gives the same losses whether or not an evaluation with a state of its own runs between.
#[test]
fn evaluation_leaves_the_training_state_alone() {
    for (device, hidden) in cases() {
        let losses = |evaluate: bool| {
            let (rnn, parameters) = module(&device, hidden);
            let targets = device.targets("targets", &[BATCH], 5).unwrap();
            targets.write_u32(&[0, 1, 2, 3, 4]).unwrap();
            let [training, evaluation] = [0, 1].map(|_| rnn.state(&device, BATCH).unwrap());
            let x = device.upload("x", &[2, BATCH, INPUT], &sequence(2)).unwrap();
            let build = |g: &mut Graph, state: &State| {
                let x = g.input(&x)?;
                let out = rnn.forward(g, x, InitialState::Carried(state))?;
                cross_entropy(g, out.h_n, &targets, Reduction::Mean)
            };
            let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| build(g, &training)).unwrap();
            let mut evaluator = Evaluator::new(&parameters, |g| build(g, &evaluation)).unwrap();
            for _ in 0..3 {
                trainer.step().unwrap();
                if evaluate {
                    evaluator.losses(2).unwrap();
                }
            }
            (trainer.losses().unwrap(), training.save().unwrap())
        };
        let without = losses(false);
        assert_eq!(losses(true), without);
        assert!(without.0[0] != without.0[2]);
    }
}

/// The gradient of a carried window is that of the same window from a constant state: nothing crosses its edge.
#[test]
fn no_gradient_crosses_a_window() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let h_0 = values(41, BATCH * hidden);
        let gradients = |carried: bool| {
            let mut g = Graph::new(&parameters);
            let x = g.input(&device.upload("x", &[4, BATCH, INPUT], &sequence(4)).unwrap()).unwrap();
            let state = rnn.state(&device, BATCH).unwrap();
            state.restore(&[("h".to_owned(), h_0.clone())].into()).unwrap();
            let constant = g.input(&device.upload("h_0", &[1, BATCH, hidden], &h_0).unwrap()).unwrap();
            let initial = if carried { InitialState::Carried(&state) } else { InitialState::Given(constant.into()) };
            let out = rnn.forward(&mut g, x, initial).unwrap();
            let seed = device.upload("seed", &[4, BATCH, hidden], &values(51, 4 * BATCH * hidden)).unwrap();
            g.backward(&[], &[(out.output, &seed)]).unwrap();
            g.finish().unwrap().run().unwrap();
            let names: Vec<_> = parameters.names().map(str::to_owned).collect();
            names.iter().map(|name| parameters.get_gradient(name).unwrap().to_vec().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(gradients(true), gradients(false));
    }
}

/// tanh of the recurrence at values where built-in functions of drivers fail.
#[test]
fn tanh_is_right_at_the_ends() {
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(0));
        let rnn = Rnn::new(&mut init, "rnn", RnnOptions::new(1, 1).bias(false)).unwrap();
        let parameters = init.upload(&device).unwrap();
        parameters.get("rnn.weight_ih_l0").unwrap().write(&[1.0]).unwrap();
        parameters.get("rnn.weight_hh_l0").unwrap().write(&[0.0]).unwrap();
        let x =
            [0.0, 1e-6, 1e-3, 0.5, 0.99, 1.01, 9.9, 10.1, 20.0, -20.0, 44.0, 89.0, 1e4, -1e4, f32::INFINITY, f32::NAN];
        let mut g = Graph::inference(&parameters);
        let input = g.input(&device.upload("x", &[1, x.len(), 1], &x).unwrap()).unwrap();
        let out = rnn.forward(&mut g, input, InitialState::Zero).unwrap();
        let y = g.tensor(out.output).unwrap();
        g.finish().unwrap().run().unwrap();
        let y = y.to_vec().unwrap();
        for (&x, y) in x[..15].iter().zip(&y) {
            let want = f64::from(x).tanh();
            assert!((f64::from(*y) - want).abs() <= 5e-7 * want.abs(), "tanh({x}) is {y} on {device:?}");
        }
        assert!(y[15].is_nan(), "NaN must stay NaN, not become {} on {device:?}", y[15]);
    }
}

#[test]
fn same_bits_every_time() {
    for (device, hidden) in cases() {
        let (rnn, parameters) = module(&device, hidden);
        let first = run(&rnn, &parameters, &sequence(6), &Start::Zero);
        for _ in 0..3 {
            assert_eq!(run(&rnn, &parameters, &sequence(6), &Start::Zero), first);
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let device = Device::cpu();
    let (rnn, parameters) = module(&device, 7);
    let forward = |shape: &[usize], h_0: Option<&[usize]>| {
        let mut g = Graph::new(&parameters);
        let tensor = |name: &str, shape: &[usize]| device.zeros(name, shape, elman::DType::F32).unwrap();
        let x = g.input(&tensor("x", shape)).unwrap();
        let initial =
            h_0.map_or(InitialState::Zero, |shape| InitialState::Given(g.input(&tensor("h_0", shape)).unwrap().into()));
        rnn.forward(&mut g, x, initial).unwrap_err().to_string()
    };
    assert_eq!(forward(&[5, 4], None), "rnn `rnn`: `x` must have shape [T, B, 3] or [T, 3], but has [5, 4]");
    assert_eq!(forward(&[4, 5, 2], None), "rnn `rnn`: `x` must have shape [T, B, 3] or [T, 3], but has [4, 5, 2]");
    assert_eq!(forward(&[4, 5, 3], Some(&[5, 7])), "rnn `rnn`: `h_0` must have shape [1, 5, 7], but has [5, 7]");
    let state = rnn.state(&device, 4).unwrap();
    let mut g = Graph::new(&parameters);
    let x = g.input(&device.zeros("x", &[2, 5, 3], elman::DType::F32).unwrap()).unwrap();
    let error = rnn.forward(&mut g, x, InitialState::Carried(&state)).unwrap_err().to_string();
    assert_eq!(error, "state `rnn`: `h` must have shape [1, 5, 7], but has [1, 4, 7]");
}

#[test]
fn wrong_options_states_and_lengths_are_refused() {
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(0));
    let options = RnnOptions::new(3, 4);
    for bad in [options.num_layers(0), options.dropout(1.0), options.dropout(-0.1), options.dropout(f64::NAN)] {
        assert!(matches!(Rnn::new(&mut init, "bad", bad), Err(Error::Argument { .. })), "{bad:?}");
    }
    let projected = options.proj_size(2);
    for refused in [
        Rnn::new(&mut init, "bad", projected).map(drop),
        Gru::new(&mut init, "bad", projected).map(drop),
        Lstm::new(&mut init, "bad", options.proj_size(4)).map(drop),
        LstmCell::new(&mut init, "bad", projected).map(drop),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Argument { argument: "proj_size" | "options", .. }), "{error}");
    }
    let relu = options.nonlinearity(Nonlinearity::Relu);
    assert!(matches!(Gru::new(&mut init, "bad", relu), Err(Error::Argument { argument: "nonlinearity", .. })));
    assert!(matches!(Lstm::new(&mut init, "bad", relu), Err(Error::Argument { argument: "nonlinearity", .. })));
    assert!(Lstm::new(&mut init, "bad", RnnOptions::new(3, usize::MAX)).is_err());

    let lstm = Lstm::new(&mut init, "lstm", options).unwrap();
    let gru = Gru::new(&mut init, "gru", options).unwrap();
    let parameters = init.upload(&device).unwrap();
    let mut g = Graph::new(&parameters);
    let tensor = |shape: &[usize]| device.zeros("t", shape, elman::DType::F32).unwrap();
    let x = g.input(&tensor(&[5, 2, 3])).unwrap();
    let h = g.input(&tensor(&[1, 2, 4])).unwrap();
    let both = InitialState::Given(States { h, c: Some(h) });
    assert!(gru.forward(&mut g, x, both).unwrap_err().to_string().contains("must be h alone, but is h and c"));
    let alone = InitialState::Given(h.into());
    assert!(lstm.forward(&mut g, x, alone).unwrap_err().to_string().contains("must be h and c, but is h alone"));

    let lengths = device.lengths("lengths", 2, 5).unwrap();
    for bad in [[0, 3], [3, 6]] {
        let error = lengths.write_u32(&bad).unwrap_err().to_string();
        assert!(error.contains("from 1 to 5 in `lengths`"), "{error}");
    }
    assert_eq!(lengths.to_vec_u32().unwrap(), [5, 5], "refused lengths change nothing");
    lstm.forward_with_lengths(&mut g, x, both, &lengths).unwrap();
    let unchecked = device.upload_u32("unchecked", &[2], &[1, 9]).unwrap();
    // Tokens may be 0, lengths not.
    let tokens = device.tokens("tokens", &[2], 6).unwrap();
    for bad in [device.lengths("of three", 3, 5).unwrap(), device.lengths("longer", 2, 6).unwrap(), unchecked, tokens] {
        let error = gru.forward_with_lengths(&mut g, x, InitialState::Zero, &bad).unwrap_err();
        assert!(matches!(&error, Error::Shape { .. } | Error::Argument { argument: "lengths", .. }), "{error}");
        assert!(error.to_string().contains(&format!("`{}`", bad.name())), "{error}");
    }
}

/// A stateful LSTM of two layers and a window cut in two: what is carried is all that matters.
#[test]
fn every_kind_carries_its_state() {
    // Layer by layer, and as a wavefront of step after step.
    for (device, wavefront) in f32_devices().into_iter().flat_map(|device| [(device.clone(), false), (device, true)]) {
        let x = sequence(6);
        let run = |windows: &[&[f32]]| {
            let mut init = Init::new(rng::manual_seed(8));
            let lstm = Lstm::new(&mut init, "lstm", RnnOptions::new(INPUT, 6).num_layers(2)).unwrap();
            let gru = Gru::new(&mut init, "gru", RnnOptions::new(6, 5)).unwrap();
            let parameters = init.upload(&device).unwrap();
            let states = [lstm.state(&device, BATCH).unwrap(), gru.state(&device, BATCH).unwrap()];
            let mut all = Vec::new();
            for window in windows {
                let shape = [window.len() / BATCH / INPUT, BATCH, INPUT];
                let mut g = Graph::inference(&parameters);
                if wavefront {
                    g.set_wide(true);
                    g.set_stepwise(true);
                }
                let x = g.input(&device.upload("x", &shape, window).unwrap()).unwrap();
                let below = lstm.forward(&mut g, x, InitialState::Carried(&states[0])).unwrap();
                let out = gru.forward(&mut g, below.output, InitialState::Carried(&states[1])).unwrap();
                let y = g.tensor(out.output).unwrap();
                let plan = g.finish().unwrap();
                assert_eq!(plan.to_string().contains("each a step behind"), wavefront);
                plan.run().unwrap();
                all.extend(y.to_vec().unwrap());
            }
            (all, states.map(|state| state.save().unwrap()))
        };
        let whole = run(&[&x]);
        let cut = 2 * BATCH * INPUT;
        let parts = run(&[&x[..cut], &x[cut..]]);
        // Products of other sizes round otherwise; the recurrence itself does not.
        assert_close("outputs", &widen(&parts.0), &widen(&whole.0), 5, 2e-6);
        for (parts, whole) in parts.1.iter().zip(&whole.1) {
            assert_eq!(parts.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
            for (name, whole) in whole {
                assert_close(name, &widen(&parts[name]), &widen(whole), whole.len(), 2e-6);
            }
        }
        assert_eq!(whole.1[0].keys().collect::<Vec<_>>(), ["c", "h"]);
    }
}

#[test]
fn relu_and_gates_do_not_hide_a_nan() {
    for device in f32_devices() {
        let options = RnnOptions::new(1, 2);
        let output = |module: &dyn Fn(&mut Graph, Var) -> Var, init: &Init| {
            let parameters = init.upload(&device).unwrap();
            let mut g = Graph::inference(&parameters);
            let x = g.input(&device.upload("x", &[2, 1, 1], &[f32::NAN, 1.0]).unwrap()).unwrap();
            let y = module(&mut g, x);
            let y = g.tensor(y).unwrap();
            g.finish().unwrap().run().unwrap();
            y.to_vec().unwrap()
        };
        let mut init = Init::new(rng::manual_seed(1));
        let relu = Rnn::new(&mut init, "m", options.nonlinearity(Nonlinearity::Relu)).unwrap();
        let y = output(&|g, x| relu.forward(g, x, InitialState::Zero).unwrap().output, &init);
        assert!(y.iter().all(|y| y.is_nan()), "relu on {device:?}: {y:?}");
        let mut init = Init::new(rng::manual_seed(1));
        let lstm = Lstm::new(&mut init, "m", options).unwrap();
        let y = output(&|g, x| lstm.forward(g, x, InitialState::Zero).unwrap().output, &init);
        assert!(y.iter().all(|y| y.is_nan()), "lstm on {device:?}: {y:?}");
    }
}

/// A cell in a loop over the letters of a sequence gives what the module gives, and its gradients flow.
#[test]
fn cells_in_a_loop_are_the_module() {
    type Build = Box<dyn Fn(&mut Graph, Var) -> elman::Result<Var>>;
    type Step<'a> = Box<dyn Fn(&mut Graph, Var, Option<States>) -> elman::Result<States> + 'a>;
    for device in f32_devices() {
        for kind in ["rnn", "gru", "lstm"] {
            let options = RnnOptions::new(INPUT, 4);
            let outputs = |as_cell: bool| {
                let mut init = Init::new(rng::manual_seed(6));
                let h_all = |g: &mut Graph, x: Var, step: Step<'_>| {
                    let (mut states, mut all) = (None, Vec::new());
                    for t in 0..3 {
                        let x = functional::narrow(g, x, 0, t, 1)?;
                        let x = functional::reshape(g, x, &[BATCH, INPUT])?;
                        let next = step(g, x, states)?;
                        all.push(functional::reshape(g, next.h, &[1, BATCH, 4])?);
                        states = Some(next);
                    }
                    functional::concat(g, &all, 0)
                };
                let build: Build = match (kind, as_cell) {
                    ("rnn", true) => {
                        let cell = RnnCell::new(&mut init, "m", options).unwrap();
                        Box::new(move |g, x| h_all(g, x, Box::new(|g, x, s| cell.forward(g, x, s))))
                    }
                    ("gru", true) => {
                        let cell = GruCell::new(&mut init, "m", options).unwrap();
                        Box::new(move |g, x| h_all(g, x, Box::new(|g, x, s| cell.forward(g, x, s))))
                    }
                    (_, true) => {
                        let cell = LstmCell::new(&mut init, "m", options).unwrap();
                        Box::new(move |g, x| h_all(g, x, Box::new(|g, x, s| cell.forward(g, x, s))))
                    }
                    ("rnn", false) => {
                        let m = Rnn::new(&mut init, "m", options).unwrap();
                        Box::new(move |g, x| Ok(m.forward(g, x, InitialState::Zero)?.output))
                    }
                    ("gru", false) => {
                        let m = Gru::new(&mut init, "m", options).unwrap();
                        Box::new(move |g, x| Ok(m.forward(g, x, InitialState::Zero)?.output))
                    }
                    (_, false) => {
                        let m = Lstm::new(&mut init, "m", options).unwrap();
                        Box::new(move |g, x| Ok(m.forward(g, x, InitialState::Zero)?.output))
                    }
                };
                let parameters = init.upload(&device).unwrap();
                let mut g = Graph::new(&parameters);
                let x = device.upload("x", &[3, BATCH, INPUT], &sequence(3)).unwrap();
                let x = g.input_with_gradient(&x).unwrap();
                let output = build(&mut g, x).unwrap();
                let y = g.tensor(output).unwrap();
                let seed = device.upload("seed", &[3, BATCH, 4], &values(61, 12 * BATCH)).unwrap();
                g.backward(&[], &[(output, &seed)]).unwrap();
                let dx = g.gradient(x).unwrap();
                g.finish().unwrap().run().unwrap();
                let names: Vec<_> = parameters.names().map(|name| name.replace("_l0", "")).collect();
                let gradients = parameters.names().map(|name| parameters.get_gradient(name).unwrap());
                let tensors: Vec<_> = [y, dx].into_iter().chain(gradients).collect();
                (names, tensors.iter().map(|t| t.to_vec_f64().unwrap()).collect::<Vec<_>>())
            };
            let ((cell_names, cell), (names, module)) = (outputs(true), outputs(false));
            assert_eq!(cell_names, names);
            for (i, (cell, module)) in cell.iter().zip(&module).enumerate() {
                assert_close(&format!("{kind} {i} on {}", device.describe()), cell, module, module.len(), 2e-6);
            }
        }
    }
    let mut init = Init::new(rng::manual_seed(6));
    assert!(RnnCell::new(&mut init, "m", RnnOptions::new(3, 4).num_layers(2)).is_err());
}

/// A state of one's own network: read at the start of a run, left at its end; the gradient uses what was read.
#[test]
fn a_network_of_ones_own_carries_its_state() {
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(4));
        let layer = Linear::without_bias(&mut init, "layer", 3, 3).unwrap();
        let parameters = init.upload(&device).unwrap();
        parameters.get("layer.weight").unwrap().write(&[2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0]).unwrap();
        let state = State::zeros(&device, &[("h", [1, 1, 3])]).unwrap();
        state.restore(&[("h".into(), vec![1.0, 2.0, 3.0])].into()).unwrap();
        let mut g = Graph::new(&parameters);
        let h = state.get(&mut g, "h").unwrap();
        let next = layer.forward(&mut g, h).unwrap();
        state.set(&mut g, "h", next).unwrap();
        let seed = device.upload("seed", &[1, 1, 3], &[1.0, 0.0, 0.0]).unwrap();
        g.backward(&[], &[(next, &seed)]).unwrap();
        assert!(state.get(&mut g, "c").unwrap_err().to_string().contains("h"));
        let plan = g.finish().unwrap();
        plan.run().unwrap();
        assert_eq!(state.save().unwrap()["h"], [2.0, 4.0, 6.0]);
        let gradient = parameters.get_gradient("layer.weight").unwrap();
        assert_eq!(gradient.to_vec().unwrap()[..3], [1.0, 2.0, 3.0], "of what the state was before");
        plan.run().unwrap();
        assert_eq!(state.save().unwrap()["h"], [4.0, 8.0, 12.0]);
        assert_eq!(gradient.to_vec().unwrap()[..3], [2.0, 4.0, 6.0]);
    }
}

/// Back-propagation truncated after k steps: the gradient of one long window whose state is detached at every k-th step.
#[test]
fn truncated_windows_equal_a_detached_loop() {
    let (steps, k) = (6, 2);
    for device in f32_devices() {
        for &cell in Cell::ALL {
            let x = sequence(steps);
            let network = || {
                let mut init = Init::new(rng::manual_seed(8));
                let rnn = Recurrent::new(&mut init, "rnn", cell, RnnOptions::new(INPUT, 5)).unwrap();
                (rnn, init.upload(&device).unwrap())
            };
            let gradients = |parameters: &Parameters| -> Vec<f64> {
                let of = |name| parameters.get_gradient(name).unwrap().to_vec_f64().unwrap();
                parameters.names().flat_map(of).collect()
            };

            // Windows of k steps, the state carried; their gradients are summed on the host.
            let (rnn, parameters) = network();
            let state = rnn.state(&device, BATCH).unwrap();
            let window = device.zeros("window", &[k, BATCH, INPUT], elman::DType::F32).unwrap();
            let mut g = Graph::new(&parameters);
            let input = g.input(&window).unwrap();
            let (output, _) = rnn.forward(&mut g, input, InitialState::Carried(&state)).unwrap();
            let seed = device.upload("seed", &[k, BATCH, 5], &vec![1.0; k * BATCH * 5]).unwrap();
            g.backward(&[], &[(output, &seed)]).unwrap();
            let plan = g.finish().unwrap();
            let mut truncated: Vec<f64> = Vec::new();
            for part in x.chunks(k * BATCH * INPUT) {
                window.write(part).unwrap();
                plan.run().unwrap();
                let part = gradients(&parameters);
                truncated.resize(part.len(), 0.0);
                truncated.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }

            // One graph of all steps, cut by `detach`.
            let (rnn, parameters) = network();
            let all = device.upload("x", &[steps, BATCH, INPUT], &x).unwrap();
            let mut g = Graph::new(&parameters);
            let all = g.input(&all).unwrap();
            let (mut initial, mut outputs) = (InitialState::Zero, Vec::new());
            for start in (0..steps).step_by(k) {
                let part = functional::narrow(&mut g, all, 0, start, k).unwrap();
                let (output, end) = rnn.forward(&mut g, part, initial).unwrap();
                outputs.push(output);
                let h = functional::detach(&mut g, end.h).unwrap();
                let c = end.c.map(|c| functional::detach(&mut g, c).unwrap());
                initial = InitialState::Given(States { h, c });
            }
            let output = functional::concat(&mut g, &outputs, 0).unwrap();
            let seed = device.upload("seed", &[steps, BATCH, 5], &vec![1.0; steps * BATCH * 5]).unwrap();
            g.backward(&[], &[(output, &seed)]).unwrap();
            g.finish().unwrap().run().unwrap();
            let want = gradients(&parameters);
            assert_close(&format!("{cell:?} on {}", device.describe()), &truncated, &want, want.len(), 1e-5);
        }
    }
}

/// Between layers, in training alone: other masks in every step and in every layer, and its gradient is its own.
#[test]
fn dropout_between_layers() {
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(4));
        let options = RnnOptions::new(INPUT, 40).num_layers(2);
        let rnn = Rnn::new(&mut init, "rnn", options.dropout(0.5)).unwrap();
        let parameters = init.upload(&device).unwrap();
        let x = device.upload("x", &[4, BATCH, INPUT], &sequence(4)).unwrap();
        let output = |g: &mut Graph, rnn: &Rnn| {
            let x = g.input(&x).unwrap();
            let out = rnn.forward(g, x, InitialState::Zero).unwrap();
            g.tensor(out.output).unwrap()
        };
        // Without gradients it is the network without dropout.
        let mut again = Init::new(rng::manual_seed(4));
        let plain = Rnn::new(&mut again, "rnn", options).unwrap();
        let same_parameters = again.upload(&device).unwrap();
        let run = |mut g: Graph, rnn: &Rnn| {
            let tensor = output(&mut g, rnn);
            g.finish().unwrap().run().unwrap();
            tensor.to_vec().unwrap()
        };
        let want = run(Graph::new(&same_parameters), &plain);
        assert_eq!(run(Graph::inference(&parameters), &rnn), want);
        let dropped = run(Graph::new(&parameters), &rnn);
        assert_ne!(dropped, want);
        assert!(dropped.iter().all(|&y| y != 0.0), "nothing is dropped above the last layer");

        // Two calls in one graph draw for themselves.
        let mut g = Graph::new(&parameters);
        let (first, second) = (output(&mut g, &rnn), output(&mut g, &rnn));
        g.finish().unwrap().run().unwrap();
        assert_ne!(first.to_vec().unwrap(), second.to_vec().unwrap());

        // Each step of a trainer draws anew.
        let target = device.zeros("target", &[4, BATCH, 40], elman::DType::F32).unwrap();
        let mut trainer = Trainer::new(&parameters, Adam::new(0.0), |g| {
            let x = g.input(&x)?;
            let out = rnn.forward(g, x, InitialState::Zero)?;
            functional::mse_loss(g, out.output, &target, Reduction::Mean)
        })
        .unwrap();
        (0..2).for_each(|_| trainer.step().unwrap());
        let losses = trainer.losses().unwrap();
        assert_ne!(losses[0], losses[1]);
    }
}

/// With one layer there is nothing between layers: as in PyTorch dropout does nothing then, and the plan says so.
#[test]
fn dropout_of_one_layer_is_noted() {
    let device = Device::cpu();
    let notes = |layers: usize, rate: f64, training: bool| {
        let mut init = Init::new(rng::manual_seed(4));
        let rnn = Rnn::new(&mut init, "rnn", RnnOptions::new(INPUT, 8).num_layers(layers).dropout(rate)).unwrap();
        let parameters = init.upload(&device).unwrap();
        let mut g = if training { Graph::new(&parameters) } else { Graph::inference(&parameters) };
        let x = g.input(&device.upload("x", &[4, BATCH, INPUT], &sequence(4)).unwrap()).unwrap();
        rnn.forward(&mut g, x, InitialState::Zero).unwrap();
        g.finish().unwrap().notes().iter().filter(|note| note.contains("dropout of 0.5")).count()
    };
    assert_eq!(notes(1, 0.5, true), 1);
    assert_eq!([notes(2, 0.5, true), notes(1, 0.5, false), notes(1, 0.0, true)], [0; 3]);
}
