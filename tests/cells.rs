//! What cells and recurrences have beyond PyTorch's modules, against loops in PyTorch (`tests/fixtures/cells.py`), on every device,
//! all steps at once, step by step, and with layers as a wavefront.

mod common;

use common::{Fixture, assert_close, f32_devices, values};
use elman::nn::functional::{InitialState, RunOptions, States};
use elman::nn::{Activation, Cell, Init, Nonlinearity, Recurrent, RnnOptions};
use elman::{DType, Device, Error, Graph, rng};

const STEPS: usize = 5;
const BATCH: usize = 3;
const INPUT: usize = 2;
const HIDDEN: usize = 4;
const PROJECTED: usize = 3;
const LENGTHS: [u32; BATCH] = [3, 5, 1];
const RESETS: [u32; STEPS * BATCH] = [0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0];

/// What a case's name says.
struct Case<'a> {
    name: &'a str,
    cell: Cell,
    options: RnnOptions,
    lengths: bool,
    resets: bool,
    state: bool,
    seed: u64,
}

impl<'a> Case<'a> {
    fn new(name: &'a str) -> Self {
        let [kind, asked, flags, seed] = name.split(';').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let flags: Vec<usize> = flags.split(' ').map(|flag| flag.parse().unwrap()).collect();
        let [layers, directions, lengths, resets, state] = flags[..] else { panic!("{name}") };
        let options = RnnOptions::new(INPUT, HIDDEN).num_layers(layers).bidirectional(directions == 2);
        let (cell, mut options) = match kind {
            "tanh" => (Cell::Tanh, options),
            "relu" => (Cell::Relu, options.nonlinearity(Nonlinearity::Relu)),
            "gru" => (Cell::Gru, options),
            "lstm" => (Cell::Lstm, options),
            _ => (Cell::Lstm, options.proj_size(PROJECTED)),
        };
        for part in asked.split_whitespace() {
            options = with(options, part);
        }
        let [lengths, resets, state] = [lengths, resets, state].map(|flag| flag == 1);
        Self { name, cell, options, lengths, resets, state, seed: seed.parse().unwrap() }
    }

    fn check(&self, device: &Device, (stepwise, wide): (bool, bool), want: &[f64]) {
        let mut init = Init::new(rng::manual_seed(self.seed));
        let module = Recurrent::new(&mut init, "m", self.cell, self.options).unwrap();
        let parameters = init.upload(device).unwrap();
        let mut draw = |name: &str, shape: &[usize]| {
            device.upload(name, shape, &init.rng.uniform(shape.iter().product(), -1.0, 1.0)).unwrap()
        };
        let lengths = device.lengths("lengths", BATCH, STEPS).unwrap();
        lengths.write_u32(&LENGTHS).unwrap();
        let resets = device.upload_u32("resets", &[STEPS, BATCH], &RESETS).unwrap();
        let mut g = Graph::new(&parameters);
        g.set_stepwise(stepwise);
        g.set_wide(wide);
        let x = g.input_with_gradient(&draw("x", &[STEPS, BATCH, INPUT])).unwrap();
        let chains = self.options.num_layers * if self.options.bidirectional { 2 } else { 1 };
        let of_h = if self.options.proj_size > 0 { PROJECTED } else { HIDDEN };
        let mut states = Vec::new();
        for &size in [of_h, HIDDEN][..self.cell.states()].iter().filter(|_| self.state) {
            states.push(g.input_with_gradient(&draw("state", &[chains, BATCH, size])).unwrap());
        }
        let initial = match states[..] {
            [] => InitialState::Zero,
            [h, ..] => InitialState::Given(States { h, c: states.get(1).copied() }),
        };
        let mut run = RunOptions::from(self.lengths.then_some(&lengths));
        if self.resets {
            run = run.resets(&resets);
        }
        let (output, end) = module.forward_with(&mut g, x, initial, run).unwrap();
        let results: Vec<_> = [Some(output), Some(end.h), end.c].into_iter().flatten().collect();
        let mut tensors: Vec<_> = results.iter().map(|&var| g.tensor(var).unwrap()).collect();
        let forward = tensors.len();
        let seeds: Vec<_> = tensors.iter().map(|tensor| draw("seed", tensor.shape())).collect();
        g.backward(&[], &results.iter().copied().zip(&seeds).collect::<Vec<_>>()).unwrap();
        tensors.extend([x].iter().chain(&states).map(|&var| g.gradient(var).expect("a gradient")));
        // Twice: what a run leaves behind must not reach the next.
        g.finish().unwrap().run_times(2).unwrap();
        tensors.extend(parameters.names().map(|name| parameters.get_gradient(name).unwrap()));
        let mut at = 0;
        for (i, tensor) in tensors.iter().enumerate() {
            let want = &want[at..at + tensor.len()];
            at += tensor.len();
            let tolerance = if i < forward { 1e-5 } else { 1e-4 };
            let what = format!(
                "{}: result {i}, {tensor:?}, stepwise {stepwise}, wide {wide}, on {}",
                self.name,
                device.describe()
            );
            assert_close(&what, &tensor.to_vec_f64().unwrap(), want, tensor.len(), tolerance);
        }
        assert_eq!(at, want.len(), "{}", self.name);
    }
}

/// The options with what a part of a case's name asks for.
fn with(options: RnnOptions, part: &str) -> RnnOptions {
    match part.split_once('=').unwrap_or((part, "")) {
        ("clip", clip) => options.clip(clip.parse().unwrap()),
        ("peepholes", _) => options.peepholes(true),
        ("before", _) => options.reset_after(false),
        ("coupled", _) => options.coupled(true),
        ("activations", functions) => options
            .nonlinearity(Nonlinearity::Tanh)
            .activations(&functions.split(',').map(activation).collect::<Vec<_>>()),
        _ => panic!("{part}"),
    }
}

fn activation(text: &str) -> Activation {
    let mut parts = text.split(':');
    let name = parts.next().unwrap();
    let [alpha, beta] = [0, 1].map(|_| parts.next().map_or(0.0, |number| number.parse().unwrap()));
    match name {
        "Affine" => Activation::Affine { alpha, beta },
        "Relu" => Activation::Relu,
        "LeakyRelu" => Activation::LeakyRelu { alpha },
        "ThresholdedRelu" => Activation::ThresholdedRelu { alpha },
        "Tanh" => Activation::Tanh,
        "ScaledTanh" => Activation::ScaledTanh { alpha, beta },
        "Sigmoid" => Activation::Sigmoid,
        "HardSigmoid" => Activation::HardSigmoid { alpha, beta },
        "Elu" => Activation::Elu { alpha },
        "Softsign" => Activation::Softsign,
        "Softplus" => Activation::Softplus,
        _ => panic!("{name}"),
    }
}

#[test]
fn equal_loops_in_pytorch() {
    let fixture = Fixture::open("cells");
    let names = fixture.names();
    assert!(names.len() >= 80, "{} cases", names.len());
    for device in f32_devices() {
        for case in names.iter().map(|name| Case::new(name)) {
            let want = fixture.get(case.name).1;
            // A GPU, which compiles for each, takes one of them.
            let all = [(false, false), (true, false), (true, true)];
            let one = (case.seed % 3) as usize;
            let modes = if device.is_gpu() { &all[one..=one] } else { &all[..] };
            modes.iter().for_each(|&mode| case.check(&device, mode, &want));
        }
    }
}

/// What lies before a mark, NaN or not, does not reach what comes after; marks of another plan's run are not kept.
#[test]
fn nothing_crosses_a_reset() {
    for device in f32_devices() {
        for (&cell, hidden) in Cell::ALL.iter().flat_map(|cell| [(cell, 5), (cell, 1027)]) {
            let mut init = Init::new(rng::manual_seed(3));
            let mut options = RnnOptions::new(INPUT, hidden);
            if cell == Cell::Relu {
                options = options.nonlinearity(Nonlinearity::Relu);
            }
            let module = Recurrent::new(&mut init, "m", cell, options).unwrap();
            let parameters = init.upload(&device).unwrap();
            let mut x = values(1, 4 * INPUT);
            let resets = device.zeros("resets", &[4, 1], DType::U32).unwrap();
            let input = device.upload("x", &[4, 1, INPUT], &x).unwrap();
            let mut g = Graph::inference(&parameters);
            let x_var = g.input(&input).unwrap();
            let run = RunOptions::new().resets(&resets);
            let (output, _) = module.forward_with(&mut g, x_var, InitialState::Zero, run).unwrap();
            let y = g.tensor(output).unwrap();
            let plan = g.finish().unwrap();
            let after = || {
                plan.run().unwrap();
                y.to_vec().unwrap()[2 * hidden..].to_vec()
            };
            let whole = after();
            resets.write_u32(&[0, 0, 7, 0]).unwrap();
            let cut = after();
            assert_ne!(whole, cut);
            x[..2 * INPUT].fill(f32::NAN);
            input.write(&x).unwrap();
            assert_eq!(after(), cut, "{cell:?}, {hidden} on {}", device.describe());
            resets.write_u32(&[0; 4]).unwrap();
            assert!(after().iter().all(|y| y.is_nan()));
        }
    }
}

#[test]
fn wrong_resets_are_refused() {
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(0));
    let gru = Recurrent::new(&mut init, "gru", Cell::Gru, RnnOptions::new(2, 3)).unwrap();
    let parameters = init.upload(&device).unwrap();
    let mut g = Graph::new(&parameters);
    let x = g.input(&device.zeros("x", &[4, 5, 2], DType::F32).unwrap()).unwrap();
    for (shape, dtype) in [(&[5, 4][..], DType::U32), (&[20], DType::U32), (&[4, 5], DType::F32)] {
        let resets = device.zeros("resets", shape, dtype).unwrap();
        let error = gru.forward_with(&mut g, x, InitialState::Zero, RunOptions::new().resets(&resets)).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        assert!(error.to_string().starts_with("gru `gru`: `resets` must have shape [4, 5], of u32"), "{error}");
    }
}

#[test]
fn wrong_forms_are_refused() {
    const TANH: Activation = Activation::Tanh;
    type Change = fn(RnnOptions) -> RnnOptions;
    let cases: [(Cell, Change, &str); 9] = [
        (Cell::Gru, |o| o.activations(&[TANH; 5]), "as many as Gru has, 3"),
        (Cell::Lstm, |o| o.activations(&[TANH; 6]), "as many as Lstm has, 5"),
        (Cell::Tanh, |o| o.activations(&[Activation::Elu { alpha: f32::NAN }]), "of finite numbers"),
        (Cell::Relu, |o| o.nonlinearity(Nonlinearity::Relu).activations(&[TANH]), "left alone where activations are"),
        (Cell::Tanh, |o| o.clip(0.0), "above 0"),
        (Cell::Tanh, |o| o.clip(f32::NAN), "above 0"),
        (Cell::Gru, |o| o.peepholes(true), "left alone, but for an LSTM"),
        (Cell::Gru, |o| o.coupled(true), "left alone, but for an LSTM"),
        (Cell::Lstm, |o| o.reset_after(false), "left alone, but for a GRU"),
    ];
    for (cell, change, what) in cases {
        let mut init = Init::new(rng::manual_seed(0));
        let error = Recurrent::new(&mut init, "m", cell, change(RnnOptions::new(2, 3))).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let mut init = Init::new(rng::manual_seed(0));
    let options = RnnOptions::new(2, 3).num_layers(2).bidirectional(true).peepholes(true);
    Recurrent::new(&mut init, "m", Cell::Lstm, options).unwrap();
    let parameters = init.upload(&Device::cpu()).unwrap();
    for name in ["m.weight_ph_l0", "m.weight_ph_l0_reverse", "m.weight_ph_l1", "m.weight_ph_l1_reverse"] {
        assert_eq!(parameters.get(name).unwrap().shape(), [9]);
    }
}
