//! Options of losses, embeddings, dropout and recurrent modules, against PyTorch or against what they are put together from.

mod common;

use common::{Fixture, assert_close, f32_devices, tokens, values, widen};
use elman::data::Array;
use elman::nn::functional::{
    self as f, ClassReduction, InitialState, Loss, Reduction, States, WeightedReduction, confusion, cross_entropy,
};
use elman::nn::{Cell, Embedding, Init, Linear, Parameters, Recurrent, RnnCell, RnnOptions};
use elman::optim::Sgd;
use elman::{DType, Device, Error, Evaluator, Graph, NO_TARGET, Predictor, Result, Trainer, Var, rng};

fn devices() -> Vec<Device> {
    [f32_devices(), vec![Device::reference()]].concat()
}

/// `[4, 3, 5]` and what comes with it, as `options` of `generate.py` draws it.
struct Drawn {
    x: Vec<f32>,
    y: Vec<f32>,
    class_weights: Vec<f32>,
    rows: Vec<f32>,
    quantiles: Vec<f32>,
    variances: [Vec<f32>; 2],
}

fn drawn() -> Drawn {
    let mut rng = rng::manual_seed(1);
    let mut tripled = |n| rng.uniform(n, -1.0, 1.0).iter().map(|x| 3.0 * x).collect();
    let (x, y) = (tripled(60), tripled(60));
    let (mut class_weights, rows, quantiles) = (rng.rand(5), rng.rand(12), rng.rand(5));
    class_weights[3] = 0.0;
    let mut variances = [rng.rand(60), rng.rand(12)];
    variances.iter_mut().for_each(|v| v.iter_mut().step_by(4).for_each(|v| *v = 1e-9));
    Drawn { x, y, class_weights, rows, quantiles, variances }
}

const CLASSES: [u32; 12] = [3, 0, 4, 0, 2, 1, 1, 1, 0, 4, 3, 2];

/// A loss of x and of a variance, and the gradients of those that it has.
fn loss_and_gradients(
    device: &Device,
    leaves: &[(&[usize], &[f32])],
    build: impl Fn(&mut Graph, &[Var]) -> Result<Loss>,
) -> Vec<f64> {
    let mut init = Init::new(rng::manual_seed(0));
    let add = |(i, (shape, values)): (usize, &(&[usize], &[f32]))| {
        init.add(format!("leaf{i}"), shape, values.to_vec()).unwrap()
    };
    let ids: Vec<_> = leaves.iter().enumerate().map(add).collect();
    let parameters = init.upload(device).unwrap();
    let record = |g: &mut Graph| {
        let vars = ids.iter().map(|&id| g.parameter(id)).collect::<Result<Vec<_>>>()?;
        build(g, &vars)
    };
    let mut got = widen(&Evaluator::new(&parameters, record).unwrap().losses(1).unwrap());
    let mut g = Graph::new(&parameters);
    let loss = record(&mut g).unwrap();
    // Half of it twice: a loss is weighed after its rows.
    g.backward(&[&(0.5 * loss.clone()), &(0.5 * loss)], &[]).unwrap();
    g.finish().unwrap().run_times(2).unwrap();
    for name in parameters.names() {
        got.extend(parameters.get_gradient(name).unwrap().to_vec_f64().unwrap());
    }
    got
}

fn check(name: &str, device: &Device, got: &[f64]) {
    let want = Fixture::open("options").get(name).1;
    let what = format!("{name} on {}", device.describe());
    assert_close(&what, &got[..1], &want[..1], 1, 1e-5);
    assert_close(&what, &got[1..], &want[1..], want.len() - 1, 1e-5);
}

#[test]
fn class_losses_are_pytorchs() {
    let drawn = drawn();
    let shape: &[usize] = &[4, 3, 5];
    for device in devices() {
        let targets = device.targets("targets", &[4, 3], 5).unwrap();
        targets.write_u32(&CLASSES).unwrap();
        let class_weights = device.upload("class weights", &[5], &drawn.class_weights).unwrap();
        let rows = device.upload("rows", &[4, 3], &drawn.rows).unwrap();
        for (of, reduction) in [("mean", Reduction::Mean), ("sum", Reduction::Sum)] {
            for name in [
                "weights",
                "smooth",
                "smooth weights",
                "smooth ignoring 1",
                "weights ignoring 1",
                "smooth weights ignoring 1",
            ] {
                let with = |reduction: ClassReduction<'_>, is_flat: bool| {
                    let mut reduction = reduction;
                    if name.contains("weights") {
                        reduction = reduction.class_weights(&class_weights);
                    }
                    if name.contains("smooth") {
                        reduction = reduction.label_smoothing(0.25);
                    }
                    if name.contains("ignoring") {
                        reduction = reduction.ignoring(1);
                    }
                    loss_and_gradients(&device, &[(shape, &drawn.x)], |g, v| match is_flat {
                        false => cross_entropy(g, v[0], &targets, reduction),
                        true => {
                            let x = f::log_softmax(g, v[0])?;
                            f::nll_loss(g, x, &targets, reduction)
                        }
                    })
                };
                check(&format!("cross_entropy {name} {of}"), &device, &with(reduction.into(), false));
                let weighted = reduction.weighted(&rows).into();
                check(&format!("cross_entropy {name} rows {of}"), &device, &with(weighted, false));
                if !name.contains("smooth") {
                    check(&format!("nll_loss {name} {of}"), &device, &with(reduction.into(), true));
                }
            }
        }
    }
}

#[test]
fn element_losses_are_pytorchs() {
    let drawn = drawn();
    let shape: &[usize] = &[4, 3, 5];
    for device in devices() {
        let y = device.upload("y", shape, &drawn.y).unwrap();
        let first: Vec<f32> = drawn.y.iter().copied().step_by(5).collect();
        let of_rows = [[4, 3].as_slice(), &[4, 3, 1]].map(|shape| device.upload("first", shape, &first).unwrap());
        for (of, reduction) in [("mean", Reduction::Mean), ("sum", Reduction::Sum)] {
            type Build<'a> = &'a dyn Fn(&mut Graph, Var) -> Result<Loss>;
            let of_x: [(&str, Build<'_>); 4] = [
                ("huber_loss", &|g, x| f::huber_loss(g, x, &y, 0.75, reduction)),
                ("smooth_l1_loss", &|g, x| f::smooth_l1_loss(g, x, &y, 0.75, reduction)),
                ("quantile_loss", &|g, x| f::quantile_loss(g, x, &of_rows[0], &drawn.quantiles, reduction)),
                ("quantile_loss", &|g, x| f::quantile_loss(g, x, &of_rows[1], &drawn.quantiles, reduction)),
            ];
            for (name, build) in of_x {
                let got = loss_and_gradients(&device, &[(shape, &drawn.x)], |g, v| build(g, v[0]));
                check(&format!("{name} {of}"), &device, &got);
            }
            let whole: (&str, &[usize], usize) = ("", shape, 0);
            for (name, of_variance, which) in [whole, (" of rows", &[4, 3, 1], 1), (" of rows", &[4, 3], 1)] {
                for full in [false, true] {
                    let leaves = [(shape, &drawn.x[..]), (of_variance, &drawn.variances[which])];
                    let got = loss_and_gradients(&device, &leaves, |g, v| {
                        f::gaussian_nll_loss(g, v[0], &y, v[1], full, 0.125, reduction)
                    });
                    let name = format!("gaussian_nll_loss{name}{} {of}", if full { " full" } else { "" });
                    check(&name, &device, &got);
                }
            }
        }
    }
}

/// What has weight 0, or stands past a length, is as if it were not there, be it infinite or NaN.
#[test]
fn what_does_not_count_may_be_anything() {
    let (steps, batch, columns) = (4, 3, 5);
    for device in devices() {
        let lengths = device.lengths("lengths", batch, steps).unwrap();
        lengths.write_u32(&[4, 1, 2]).unwrap();
        let y = device.upload("y", &[steps, batch, columns], &values(2, 60)).unwrap();
        let of_rows = device.upload("rows", &[steps, batch], &values(3, 12)).unwrap();
        type Build<'a> = &'a dyn Fn(&mut Graph, Var, WeightedReduction<'_>) -> Result<Loss>;
        let losses: [Build<'_>; 5] = [
            &|g, x, reduction| f::huber_loss(g, x, &y, 0.5, reduction),
            &|g, x, reduction| f::smooth_l1_loss(g, x, &y, 0.5, reduction),
            &|g, x, reduction| f::quantile_loss(g, x, &of_rows, &[0.1, 0.3, 0.5, 0.7, 0.9], reduction),
            &|g, x, reduction| f::gaussian_nll_loss(g, x, &y, x, true, 1e-3, reduction),
            &|g, x, reduction| f::mse_loss(g, x, &y, reduction),
        ];
        let is_past = |row: usize| row / batch >= [4, 1, 2][row % batch];
        for (i, build) in losses.into_iter().enumerate() {
            let run = |padding: [f32; 5]| {
                let mut x = values(1, 60);
                for row in (0..steps * batch).filter(|&row| is_past(row)) {
                    x[row * columns..][..columns].copy_from_slice(&padding);
                }
                loss_and_gradients(&device, &[(&[steps, batch, columns], &x)], |g, v| {
                    build(g, v[0], Reduction::Mean.up_to(&lengths))
                })
            };
            let got = run([0.0; 5]);
            assert_eq!(run([f32::NAN, f32::INFINITY, -3e38, 0.0, 1.0]), got, "loss {i} on {device:?}");
            for (row, dx) in got[1..].chunks(columns).enumerate() {
                assert_eq!(dx.iter().all(|&dx| dx == 0.0), is_past(row), "loss {i}, row {row}: {dx:?}");
            }
        }
    }
}

/// PyTorch's initial values; no gradient for the row of padding, looked up or with the table in place of its rows.
#[test]
fn padding_has_no_gradient() {
    let fixture = Fixture::open("options");
    let (looked_up, d) = ([2, 0, 5, 2, 1, 0, 3, 2], (0..24).map(|i| (i as f32).cos()).collect::<Vec<_>>());
    for device in devices() {
        for is_table in [false, true] {
            let mut init = Init::new(rng::manual_seed(777));
            let embedding = Embedding::with_padding(&mut init, "embedding", 6, 3, 2).unwrap();
            let parameters = init.upload(&device).unwrap();
            let weight = parameters.get("embedding.weight").unwrap().to_vec_f64().unwrap();
            assert_close("initial values", &weight, &fixture.get("embedding").1, 18, 3e-6);
            assert_eq!(weight[6..9], [0.0; 3]);
            let tokens = device.tokens("tokens", &[8], 6).unwrap();
            tokens.write_u32(&looked_up).unwrap();
            let mut g = Graph::new(&parameters);
            let mut x = embedding.forward(&mut g, &tokens).unwrap();
            if is_table {
                x = f::neg(&mut g, x).unwrap();
                x = f::neg(&mut g, x).unwrap();
            }
            let seed = device.upload("d", &[8, 3], &d).unwrap();
            g.backward(&[], &[(x, &seed)]).unwrap();
            g.finish().unwrap().run_times(2).unwrap();
            let got = parameters.get_gradient("embedding.weight").unwrap().to_vec_f64().unwrap();
            assert_close("gradient", &got, &fixture.get("embedding gradient").1, 18, 1e-6);
            assert_eq!(got[6..9], [0.0; 3]);
        }
    }
    let mut init = Init::new(rng::manual_seed(777));
    let error = Embedding::with_padding(&mut init, "embedding", 6, 3, 6).unwrap_err();
    assert!(error.to_string().contains("below 6"), "{error}");
    // What is drawn next is what PyTorch draws.
    Embedding::with_padding(&mut init, "embedding", 6, 3, 5).unwrap();
    let mut other = Init::new(rng::manual_seed(777));
    Embedding::new(&mut other, "embedding", 6, 3).unwrap();
    assert_eq!(init.rng.rand(3), other.rng.rand(3));
}

/// A training leaves the row as it is; a layer that shares the table does not.
#[test]
fn padding_is_not_trained() {
    for device in f32_devices() {
        for is_tied in [false, true] {
            let mut init = Init::new(rng::manual_seed(5));
            let id = init.add("table".into(), &[4, 3], values(1, 12)).unwrap();
            let parameters = init.upload(&device).unwrap();
            let tokens = device.tokens("tokens", &[5], 4).unwrap();
            tokens.write_u32(&[0, 3, 0, 1, 2]).unwrap();
            let mut trainer = Trainer::new(&parameters, Sgd::new(0.1), |g| {
                let table = g.parameter(id)?;
                let padded = f::without_gradient_of_row(g, table, 0)?;
                let x = f::embedding(g, padded, &tokens)?;
                let y = if is_tied { f::linear(g, x, table, None)? } else { f::square(g, x)? };
                f::mean(g, y)
            })
            .unwrap();
            let before = parameters.get("table").unwrap().to_vec().unwrap();
            (0..3).for_each(|_| trainer.step().unwrap());
            let after = parameters.get("table").unwrap().to_vec().unwrap();
            assert_eq!(before[..3] != after[..3], is_tied, "{after:?} on {device:?}");
            assert!(before[3..].iter().zip(&after[3..]).all(|(before, after)| before != after), "{after:?}");
        }
    }
}

/// One mask for all entries of an axis, another in each step of a training, none in an evaluation.
#[test]
fn locked_dropout_has_one_mask() {
    let (steps, batch, columns) = (5, 4, 50);
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(0));
        let ones = init.add("x".into(), &[steps, batch, columns], vec![1.0; steps * batch * columns]).unwrap();
        let parameters = init.upload(&device).unwrap();
        let kept = device.zeros("kept", &[steps, batch, columns], DType::F32).unwrap();
        let drop = |g: &mut Graph, axis: isize| {
            let x = g.parameter(ones)?;
            let y = f::locked_dropout(g, x, axis, 0.4, 3)?;
            let tensor = g.tensor(y)?;
            elman::kernels::map::unary(g, |x| x, &tensor, &kept)?;
            f::reduce(g, y, Reduction::Sum)
        };
        for axis in [0, 2] {
            let mut trainer = Trainer::new(&parameters, Sgd::new(0.0), |g| drop(g, axis)).unwrap();
            let mut masks = Vec::new();
            for _ in 0..3 {
                trainer.step().unwrap();
                let mask = kept.to_vec().unwrap();
                // Its own gradient.
                assert_eq!(parameters.get_gradient("x").unwrap().to_vec().unwrap(), mask);
                assert!(mask.iter().all(|&y| y == 0.0 || (y - 1.0 / 0.6).abs() < 1e-6));
                if axis == 0 {
                    assert!(mask.chunks(batch * columns).all(|step| step == &mask[..batch * columns]));
                    assert!(mask[..columns] != mask[columns..2 * columns]);
                    let dropped = mask.iter().filter(|&&y| y == 0.0).count() as f64 / mask.len() as f64;
                    assert!((dropped - 0.4).abs() < 0.12, "{dropped}");
                } else {
                    assert!(mask.chunks(columns).all(|row| row.iter().all(|y| y == &row[0])));
                }
                assert!(!masks.contains(&mask));
                masks.push(mask);
            }
        }
        Evaluator::new(&parameters, |g| drop(g, 0)).unwrap().losses(1).unwrap();
        assert!(kept.to_vec().unwrap().iter().all(|&y| y == 1.0));
    }
}

/// Names and values.
type Weights = Vec<(String, Vec<f32>)>;

/// A module, the values it starts with, and an input: its output, last h, and the gradients of its parameters.
fn run_recurrent(
    device: &Device,
    cell: Cell,
    options: RnnOptions,
    stepwise: bool,
    weights: Option<&Weights>,
) -> (Vec<Vec<f64>>, Weights, Parameters) {
    let mut init = Init::new(rng::manual_seed(3));
    let rnn = Recurrent::new(&mut init, "rnn", cell, options).unwrap();
    let parameters = init.upload(device).unwrap();
    for (name, values) in weights.into_iter().flatten() {
        parameters.get(name).unwrap().write(values).unwrap();
    }
    let mut g = Graph::new(&parameters);
    g.set_stepwise(stepwise);
    g.set_wide(stepwise);
    let x = g.input(&device.upload("x", &[4, 3, 2], &values(1, 24)).unwrap()).unwrap();
    let (output, States { h, .. }) = rnn.forward(&mut g, x, InitialState::Zero).unwrap();
    let results = [g.tensor(output).unwrap(), g.tensor(h).unwrap()];
    let seeds = results.each_ref().map(|tensor| device.upload("d", tensor.shape(), &values(2, tensor.len())).unwrap());
    g.backward(&[], &[(output, &seeds[0]), (h, &seeds[1])]).unwrap();
    g.finish().unwrap().run_times(2).unwrap();
    let mut all: Vec<_> = results.iter().map(|tensor| tensor.to_vec_f64().unwrap()).collect();
    all.extend(parameters.names().map(|name| parameters.get_gradient(name).unwrap().to_vec_f64().unwrap()));
    let weights = parameters.iter().map(|(name, tensor)| (name.to_owned(), tensor.to_vec().unwrap())).collect();
    (all, weights, parameters)
}

/// With masks that the gradients of `weight_hh` show, the module is the one without dropout of weights that are masked: all cells, as one
/// dispatch, step by step, and as a wavefront.
#[test]
fn weight_dropout_is_one_mask_for_all_steps() {
    let rate = 0.4;
    for device in f32_devices() {
        // What ReLU does not let through has no gradient either.
        for &cell in Cell::ALL.iter().filter(|cell| **cell != Cell::Relu) {
            for (layers, bidirectional, stepwise) in [(1, true, false), (2, false, true), (2, true, true)] {
                let plain = RnnOptions::new(2, 7).num_layers(layers).bidirectional(bidirectional);
                let (got, mut weights, parameters) =
                    run_recurrent(&device, cell, plain.weight_dropout(rate), stepwise, None);
                let mut masks = Vec::new();
                let of_matrices = |(i, name): (usize, &str)| name.contains("weight_hh").then_some(i);
                let matrices: Vec<_> = parameters.names().enumerate().filter_map(of_matrices).collect();
                for &i in &matrices {
                    let (name, values) = &mut weights[i];
                    let mask: Vec<_> =
                        got[2 + i].iter().map(|&d| if d == 0.0 { 0.0 } else { 1.0 / (1.0 - rate) }).collect();
                    values.iter_mut().zip(&mask).for_each(|(w, &kept)| *w *= kept as f32);
                    let dropped = mask.iter().filter(|&&kept| kept == 0.0).count() as f64 / mask.len() as f64;
                    assert!((dropped - rate).abs() < 0.25, "{name}: {dropped}");
                    assert!(!masks.contains(&mask), "{name} has another's mask");
                    masks.push(mask);
                }
                let (mut want, ..) = run_recurrent(&device, cell, plain, stepwise, Some(&weights));
                for (&i, mask) in matrices.iter().zip(&masks) {
                    want[2 + i].iter_mut().zip(mask).for_each(|(d, kept)| *d *= kept);
                }
                for (got, want) in got.iter().zip(&want) {
                    let what = format!("{cell:?} of {layers} layers on {device:?}");
                    assert_close(&what, got, want, want.len(), 1e-5);
                }
            }
        }
    }
}

/// Each step of a training draws other masks; an evaluation none; the option changes no initial value.
#[test]
fn weight_dropout_is_for_training() {
    for device in f32_devices() {
        let build = |rate: f64| {
            let mut init = Init::new(rng::manual_seed(3));
            let options = RnnOptions::new(2, 6).num_layers(2).dropout(rate).locked_dropout(true).weight_dropout(rate);
            let rnn = Recurrent::new(&mut init, "rnn", Cell::Gru, options).unwrap();
            (rnn, init.upload(&device).unwrap())
        };
        let x = device.upload("x", &[4, 3, 2], &values(1, 24)).unwrap();
        let loss = |g: &mut Graph, rnn: &Recurrent| {
            let x = g.input(&x)?;
            let (output, _) = rnn.forward(g, x, InitialState::Zero)?;
            let squares = f::square(g, output)?;
            f::mean(g, squares)
        };
        let run = |rate: f64| {
            let (rnn, parameters) = build(rate);
            let mut trainer = Trainer::new(&parameters, Sgd::new(0.0), |g| loss(g, &rnn)).unwrap();
            (0..4).for_each(|_| trainer.step().unwrap());
            let mut evaluator = Evaluator::new(&parameters, |g| loss(g, &rnn)).unwrap();
            (trainer.losses().unwrap(), evaluator.losses(1).unwrap()[0])
        };
        let ((dropped, evaluated), (plain, alone)) = (run(0.3), run(0.0));
        assert_eq!(evaluated, alone);
        assert_eq!(run(0.3).0, dropped, "the same seed gives the same masks");
        assert!(plain.iter().all(|&loss| loss == plain[0]), "{plain:?}");
        for (i, loss) in dropped.iter().enumerate() {
            assert!(!dropped[..i].contains(loss) && *loss != plain[0], "{dropped:?}");
        }
    }
    let mut init = Init::new(rng::manual_seed(3));
    for bad in [-0.1, 1.0, f64::NAN] {
        let error = Recurrent::new(&mut init, "rnn", Cell::Gru, RnnOptions::new(2, 3).weight_dropout(bad)).unwrap_err();
        assert!(matches!(error, Error::Argument { argument: "weight_dropout", .. }), "{error}");
    }
    assert!(RnnCell::new(&mut init, "cell", RnnOptions::new(2, 3).weight_dropout(0.5)).is_err());
}

/// `[T, I]`, as PyTorch without an axis of the batch: results, and gradients of everything.
#[test]
fn a_sequence_alone_is_pytorchs() {
    let fixture = Fixture::open("options");
    for device in f32_devices() {
        for (seed, (kind, cell)) in
            [("rnn", Cell::Tanh), ("gru", Cell::Gru), ("lstm", Cell::Lstm)].into_iter().enumerate()
        {
            for batch_first in [false, true] {
                let mut init = Init::new(rng::manual_seed(seed as u64));
                let options = RnnOptions::new(2, 3).num_layers(2).bidirectional(true).batch_first(batch_first);
                let rnn = Recurrent::new(&mut init, "m", cell, options).unwrap();
                let parameters = init.upload(&device).unwrap();
                let mut draw = |shape: &[usize]| {
                    device.upload("drawn", shape, &init.rng.uniform(shape.iter().product(), -1.0, 1.0)).unwrap()
                };
                let mut g = Graph::new(&parameters);
                let x = g.input_with_gradient(&draw(&[5, 2])).unwrap();
                let mut state = || g.input_with_gradient(&draw(&[4, 3])).unwrap();
                let start = States { h: state(), c: (kind == "lstm").then(state) };
                let (output, end) = rnn.forward(&mut g, x, InitialState::Given(start)).unwrap();
                let results: Vec<_> = [output, end.h].into_iter().chain(end.c).collect();
                assert_eq!(g.shape(output), [5, 6]);
                let mut tensors: Vec<_> = results.iter().map(|&var| g.tensor(var).unwrap()).collect();
                let seeds: Vec<_> = tensors.iter().map(|tensor| draw(tensor.shape())).collect();
                g.backward(&[], &results.iter().copied().zip(&seeds).collect::<Vec<_>>()).unwrap();
                let leaves = [x, start.h].into_iter().chain(start.c);
                tensors.extend(leaves.map(|var| g.gradient(var).unwrap()));
                g.finish().unwrap().run_times(2).unwrap();
                tensors.extend(parameters.names().map(|name| parameters.get_gradient(name).unwrap()));
                let want = fixture.get(&format!("sequence {kind}")).1;
                let mut at = 0;
                for tensor in tensors {
                    let want = &want[at..at + tensor.len()];
                    at += tensor.len();
                    assert_close(&format!("{kind} {tensor:?}"), &tensor.to_vec_f64().unwrap(), want, want.len(), 1e-5);
                }
                assert_eq!(at, want.len());
            }
        }
    }
}

/// Tokens `[T]`, a carried state, lengths and resets: as a batch of one.
#[test]
fn a_sequence_alone_is_a_batch_of_one() {
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(3));
        let embedding = Embedding::new(&mut init, "embedding", 3, 2).unwrap();
        let rnn = Recurrent::new(&mut init, "rnn", Cell::Lstm, RnnOptions::new(2, 5).num_layers(2)).unwrap();
        let parameters = init.upload(&device).unwrap();
        let resets = device.upload_u32("resets", &[6, 1], &[0, 0, 1, 0, 0, 0]).unwrap();
        let lengths = device.lengths("lengths", 1, 6).unwrap();
        lengths.write_u32(&[4]).unwrap();
        let run = |shape: &[usize]| {
            let tokens = device.tokens("tokens", shape, 3).unwrap();
            tokens.write_u32(&tokens_of_six()).unwrap();
            let state = rnn.state(&device, 1).unwrap();
            let mut g = Graph::new(&parameters);
            let x = embedding.forward(&mut g, &tokens).unwrap();
            let run = f::RunOptions::new().lengths(&lengths).resets(&resets);
            let (output, end) = rnn.forward_with(&mut g, x, InitialState::Carried(&state), run).unwrap();
            let (rank, output) = (g.shape(output).len(), g.tensor(output).unwrap());
            let h = g.tensor(end.h).unwrap();
            let plan = g.finish().unwrap();
            plan.run_times(2).unwrap();
            (rank, h.shape().len(), output.to_vec().unwrap(), h.to_vec().unwrap(), plan.kernels())
        };
        let (alone, batch) = (run(&[6]), run(&[6, 1]));
        assert_eq!((alone.0, alone.1, batch.0, batch.1), (2, 2, 3, 3));
        assert_eq!((alone.2, alone.3, alone.4), (batch.2, batch.3, batch.4));
    }
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(3));
    let rnn = Recurrent::new(&mut init, "rnn", Cell::Lstm, RnnOptions::new(2, 5)).unwrap();
    let parameters = init.upload(&device).unwrap();
    let mut g = Graph::new(&parameters);
    let mut zeros = |shape: &[usize]| g.input(&device.zeros("zeros", shape, DType::F32).unwrap()).unwrap();
    let (x, state, of_batch, wide) = (zeros(&[6, 2]), zeros(&[1, 5]), zeros(&[1, 1, 5]), zeros(&[6, 3]));
    let mut fails = |x: Var, h: Var, c: Option<Var>, words: &[&str]| {
        let error = rnn.forward(&mut g, x, InitialState::Given(States { h, c })).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    fails(x, state, None, &["h and c", "h alone"]);
    fails(x, state, Some(of_batch), &["[1, 5], without an axis of the batch", "has [1, 1, 5]"]);
    fails(wide, state, Some(state), &["[T, B, 2] or [T, 2]", "has [6, 3]"]);
}

fn tokens_of_six() -> Vec<u32> {
    tokens(1, 6, 3)
}

/// Counted on the device over all batches, also such as have other shapes; what does not count is left out.
#[test]
fn confusion_is_counted_over_batches() {
    const CLASSES: usize = 7;
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(1));
        let layer = Linear::new(&mut init, "layer", 3, CLASSES).unwrap();
        let parameters = init.upload(&device).unwrap();
        let batch = |rows: usize| -> [Array; 2] {
            let mut targets = tokens(rows as u32, rows, CLASSES);
            targets[0] = NO_TARGET;
            [
                Array::new("x", &[rows, 3], values(rows as u32, 3 * rows)).unwrap(),
                Array::targets("y", &[rows], targets, CLASSES).unwrap(),
            ]
        };
        let batches = [batch(40), batch(40), batch(13), batch(1100)];
        let counts = device.zeros("confusion", &[CLASSES, CLASSES], DType::U32).unwrap();
        let mut evaluator = Evaluator::on_batches(&parameters, |g, [x, y]| {
            let x = g.input(x)?;
            let logits = layer.forward(g, x)?;
            confusion(g, logits, y, &counts)?;
            Ok([cross_entropy(g, logits, y, Reduction::Mean)?, f::accuracy(g, logits, y, Reduction::Mean)?])
        })
        .unwrap();
        let [loss, accuracy] = evaluator.means(&batches).unwrap();

        let mut predictor = Predictor::new(&parameters, |g, [x]| {
            let x = g.input(x)?;
            Ok([layer.forward(g, x)?])
        });
        let (mut want, mut log_likelihood, mut rows) = (vec![0; CLASSES * CLASSES], 0.0, 0.0);
        for [x, y] in &batches {
            let [logits] = predictor.run(std::array::from_ref(x)).unwrap();
            let targets = targets_of(y);
            let classes = logits.argmax();
            for ((row, class), target) in logits.values().chunks(CLASSES).zip(classes).zip(targets) {
                if target != NO_TARGET {
                    want[target as usize * CLASSES + class as usize] += 1;
                    let sum: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
                    log_likelihood += f64::from(row[target as usize]) - sum.ln();
                    rows += 1.0;
                }
            }
        }
        let got = counts.to_vec_u32().unwrap();
        assert_eq!(got, want, "{device:?}");
        let right: u32 = (0..CLASSES).map(|class| got[class * (CLASSES + 1)]).sum();
        assert!((accuracy - f64::from(right) / rows).abs() < 1e-6);
        let perplexity: f64 = (-log_likelihood / rows).exp();
        assert!((loss.exp() - perplexity).abs() < 1e-5 * perplexity, "{loss} {perplexity}");
        // They go on where they are, until they are written.
        evaluator.means(&batches[..1]).unwrap();
        assert_eq!(counts.to_vec_u32().unwrap().iter().sum::<u32>(), want.iter().sum::<u32>() + 39);
    }
}

fn targets_of(array: &Array) -> Vec<u32> {
    tokens(array.shape()[0] as u32, array.shape()[0], 7)
        .into_iter()
        .enumerate()
        .map(|(i, target)| if i == 0 { NO_TARGET } else { target })
        .collect()
}

#[test]
fn options_that_do_not_fit_are_errors() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let tensor = |name: &str, shape: &[usize]| device.upload(name, shape, &vec![0.5; shape.iter().product()]).unwrap();
    let x = g.input_with_gradient(&tensor("x", &[4, 3, 5])).unwrap();
    let targets = device.targets("targets", &[4, 3], 5).unwrap();
    let (y, rows, wrong) = (tensor("y", &[4, 3, 5]), tensor("rows", &[4, 3]), tensor("wrong", &[4]));
    let says = |result: Result<Loss>, words: &[&str]| {
        let error = result.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let mean = Reduction::Mean;
    says(cross_entropy(&mut g, x, &targets, mean.class_weights(&wrong)), &["`wrong`", "[5]", "has [4]"]);
    let u32s = device.upload_u32("whole", &[5], &[1; 5]).unwrap();
    says(cross_entropy(&mut g, x, &targets, mean.class_weights(&u32s)), &["`whole`", "f32"]);
    for bad in [-0.1, 1.5, f64::NAN] {
        says(cross_entropy(&mut g, x, &targets, mean.label_smoothing(bad)), &["label_smoothing", "at most 1"]);
    }
    says(f::nll_loss(&mut g, x, &targets, mean.label_smoothing(0.1)), &["label_smoothing", "cross_entropy alone"]);
    says(f::accuracy(&mut g, x, &targets, mean.label_smoothing(0.1)), &["label_smoothing", "cross_entropy alone"]);
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        says(f::huber_loss(&mut g, x, &y, bad, mean), &["huber_loss", "delta", "above 0"]);
        says(f::smooth_l1_loss(&mut g, x, &y, bad, mean), &["smooth_l1_loss", "beta", "above 0"]);
        says(f::gaussian_nll_loss(&mut g, x, &y, x, true, bad, mean), &["gaussian_nll_loss", "eps", "above 0"]);
    }
    says(f::huber_loss(&mut g, x, &rows, 1.0, mean), &["`rows`", "[4, 3, 5]", "has [4, 3]"]);
    says(f::quantile_loss(&mut g, x, &rows, &[0.5], mean), &["`x`", "[.., 1]", "has [4, 3, 5]"]);
    says(f::quantile_loss(&mut g, x, &wrong, &[0.5; 5], mean), &["`wrong`", "[4, 3] or [4, 3, 1]"]);
    says(f::quantile_loss(&mut g, x, &rows, &[0.5, 0.1, 0.0, 0.2, 0.3], mean), &["quantiles", "above 0"]);
    let variance = g.input(&wrong).unwrap();
    let result = f::gaussian_nll_loss(&mut g, x, &y, variance, true, 1e-6, mean);
    says(result, &["`wrong`", "[4, 3, 5], [4, 3] or [4, 3, 1]"]);
    let counts = |shape: &[usize], dtype| device.zeros("counts", shape, dtype).unwrap();
    for (counts, words) in
        [(counts(&[5, 4], DType::U32), ["`counts`", "[5, 5]"]), (counts(&[5, 5], DType::F32), ["`counts`", "u32"])]
    {
        let error = confusion(&mut g, x, &targets, &counts).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let refused: [Result<Var>; 4] = [
        f::locked_dropout(&mut g, x, 3, 0.5, 1),
        f::locked_dropout(&mut g, x, 0, 1.0, 1),
        f::without_gradient_of_row(&mut g, x, 0),
        f::without_gradient_of_row(&mut g, variance, 0),
    ];
    assert!(refused.iter().all(Result::is_err));
}
