//! Losses add up, rows are weighted, metrics are logged, and the log has every part; errors say whose they are.

mod common;

use common::{f32_devices, gpu, values};
use elman::nn::functional::{
    self, InitialState, Loss, Reduction, absolute_error, accuracy, cross_entropy, mean, mse_loss, reduce,
};
use elman::nn::{Embedding, Gru, GruCell, Init, Linear, Lstm, ParameterId, Parameters, RnnOptions};
use elman::optim::{Adagrad, Adam, AdamW, Clip, Optimizer, RmsProp, Sgd};
use elman::schedule::{CosineAnnealing, Schedule, Step};
use elman::{Device, Error, Evaluator, Graph, NO_TARGET, Result, Tensor, Trainer, Var, rng};

/// Parameters that are one value alone, `w`.
fn one_parameter(device: &Device, shape: &[usize], values: &[f32]) -> (Parameters, ParameterId) {
    let mut init = Init::new(rng::manual_seed(0));
    let id = init.add("w".into(), shape, values.into()).unwrap();
    (init.upload(device).unwrap(), id)
}

fn devices() -> Vec<Device> {
    [f32_devices(), vec![Device::reference()]].concat()
}

fn gradient(parameters: &Parameters, build: impl Fn(&mut Graph) -> Result<Loss>) -> (Vec<f32>, Vec<&'static str>) {
    let mut g = Graph::new(parameters);
    let loss = build(&mut g).unwrap();
    g.backward(&[&loss], &[]).unwrap();
    let plan = g.finish().unwrap();
    plan.run_times(2).unwrap();
    (parameters.get_gradient("w").unwrap().to_vec().unwrap(), plan.kernels())
}

fn assert_near(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((f64::from(*got) - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} instead of {want}");
    }
}

#[test]
fn gradients_of_a_sum_are_weighted_sums_of_gradients() {
    for device in devices() {
        let (parameters, id) = one_parameter(&device, &[3, 4], &values(1, 12));
        let y = device.upload("y", &[3, 4], &values(2, 12)).unwrap();
        let (square, size) = (
            |g: &mut Graph| {
                let w = g.parameter(id)?;
                mse_loss(g, w, &y, Reduction::Mean)
            },
            |g: &mut Graph| {
                let w = g.parameter(id)?;
                absolute_error(g, w, &y, Reduction::Mean)
            },
        );
        let (d_square, kernels) = gradient(&parameters, square);
        let (d_size, _) = gradient(&parameters, size);
        let sum = |a: f64, b: f64| {
            d_square.iter().zip(&d_size).map(|(x, y)| a * f64::from(*x) + b * f64::from(*y)).collect::<Vec<_>>()
        };
        let got = |build: &dyn Fn(&mut Graph) -> Result<Loss>| gradient(&parameters, build).0;
        assert_near(&got(&|g| Ok(square(g)? + 0.3 * size(g)?)), &sum(1.0, 0.3));
        assert_near(&got(&|g| Ok((square(g)? + size(g)?) * -2.0 + size(g)?)), &sum(-2.0, -1.0));
        assert_near(&got(&|g| Ok(0.0 * square(g)? + size(g)?)), &sum(0.0, 1.0));
        assert_near(&got(&|g| square(g).map(|loss| loss.clone() + loss)), &sum(2.0, 0.0));
        // A weight of 1 is no command, and no other bits.
        assert_eq!(gradient(&parameters, |g| Ok(1.0 * square(g)?)), (d_square, kernels));

        for bad in [f64::NAN, f64::INFINITY, 1e39] {
            let error = Trainer::new(&parameters, Sgd::new(0.1), |g| Ok(square(g)? + bad * size(g)?.named("size")));
            let error = error.err().unwrap();
            assert!(matches!(error, Error::Argument { argument: "weight", .. }), "{error}");
            assert!(error.to_string().contains("`size`"), "{error}");
            assert!(Evaluator::new(&parameters, |g| Ok(bad * square(g)?)).is_err());
        }
        let mut other = Graph::new(&parameters);
        let stranger = square(&mut other).unwrap();
        let error = Trainer::new(&parameters, Sgd::new(0.1), |g| Ok(square(g)? + stranger.clone())).err().unwrap();
        assert!(error.to_string().contains("another graph"), "{error}");
    }
}

/// Parts and their sum, over more steps than the rings hold; one term alone is what it was, bit for bit.
#[test]
fn the_log_has_every_part() {
    for device in f32_devices() {
        let build = |terms: usize| {
            let (parameters, id) = one_parameter(&device, &[3], &[0.5, -1.0, 2.0]);
            let y = device.upload("y", &[3], &[0.1, 0.2, 0.3]).unwrap();
            let trainer = Trainer::new(&parameters, Sgd::new(1e-3), |g| {
                let w = g.parameter(id)?;
                let main = mse_loss(g, w, &y, Reduction::Mean)?;
                Ok(match terms {
                    1 => main,
                    _ => main + 0.0 * mean(g, w)?.named("size") + 0.25 * absolute_error(g, w, &y, Reduction::Sum)?,
                })
            });
            trainer.unwrap()
        };
        let mut parts = build(3);
        let mut steps = 0;
        while steps < 1500 {
            steps += parts.step_up_to(1500 - steps).unwrap();
        }
        let losses = parts.losses_by_name().unwrap();
        let names: Vec<_> = losses.terms.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["mse_loss", "size", "absolute_error"]);
        assert_eq!([losses.total.len(), losses.get("size").unwrap().len()], [1500; 2]);
        let (main, error) = (losses.get("mse_loss").unwrap(), losses.get("absolute_error").unwrap());
        for (i, &total) in losses.total.iter().enumerate() {
            assert_near(&[total], &[f64::from(main[i]) + 0.25 * f64::from(error[i])]);
        }
        assert_near(&[losses.get("size").unwrap()[0], error[0]], &[0.5, 0.4 + 1.2 + 1.7]);
        assert!(main[1499] < 0.9 * main[0] && losses.get("nothing").is_none());
        // What one of the two has read, the other does not give again.
        parts.step().unwrap();
        assert_eq!((parts.losses().unwrap().len(), parts.losses_by_name().unwrap().total.len()), (1, 0));

        let mut single = build(1);
        (0..3).for_each(|_| single.step().unwrap());
        let losses = single.losses_by_name().unwrap();
        assert_eq!(losses.terms, [("mse_loss".to_owned(), losses.total.clone())]);
        assert_eq!(losses.total[0], main[0]);
    }
}

#[test]
fn terms_have_names() {
    let device = Device::cpu();
    let (parameters, id) = one_parameter(&device, &[2], &[1.0, 2.0]);
    let mut evaluator = Evaluator::new(&parameters, |g| {
        let w = g.parameter(id)?;
        let (a, b) = (mean(g, w)?, reduce(g, w, Reduction::Sum)?.named("all"));
        Ok((a + 2.0 * b).named("aux") + mean(g, w)?.named("main"))
    })
    .unwrap();
    let losses = evaluator.losses_by_name(1).unwrap();
    let parts = [("aux.mean", vec![1.5]), ("aux.all", vec![3.0]), ("main", vec![1.5])];
    assert_eq!(losses.terms, parts.map(|(name, values)| (name.to_owned(), values)));
    assert_eq!((losses.total, evaluator.losses(1).unwrap()), (vec![9.0], vec![9.0]));
}

#[test]
fn backward_is_not_for_closures() {
    let device = Device::cpu();
    let (parameters, id) = one_parameter(&device, &[2], &[1.0, 2.0]);
    let build = |g: &mut Graph| {
        let w = g.parameter(id)?;
        let (a, b) = (mean(g, w)?, reduce(g, w, Reduction::Sum)?);
        g.backward(&[&a], &[])?;
        Ok(b)
    };
    let of_trainer = Trainer::new(&parameters, Sgd::new(0.1), build).err().unwrap();
    let of_evaluator = Evaluator::new(&parameters, build).err().unwrap();
    for (error, words) in [(of_trainer, ["Trainer", "a + 0.3 * b"]), (of_evaluator, ["Evaluator", "left out"])] {
        assert!(matches!(error, Error::Argument { argument: "backward", .. }), "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
}

/// What stands past a length, however large, is as if it were not there; where nothing counts, loss and gradient are 0.
#[test]
fn padding_counts_nothing() {
    for device in devices() {
        let (steps, batch, v) = (4, 3, 5);
        let mut x = values(1, steps * batch * v);
        let lengths = device.lengths("lengths", batch, steps).unwrap();
        lengths.write_u32(&[4, 1, 2]).unwrap();
        let is_past = |row: usize| row / batch >= [4, 1, 2][row % batch];
        for row in (0..steps * batch).filter(|&row| is_past(row)) {
            x[row * v..][..v].copy_from_slice(&[3e38, -3e38, 1e30, 0.0, -1e30]);
        }
        let classes = device.targets("classes", &[steps, batch], v).unwrap();
        classes.write_u32(&common::tokens(3, steps * batch, v)).unwrap();
        let y = device.upload("y", &[steps, batch, v], &values(2, 60)).unwrap();
        let none = device.upload("weights", &[batch], &[0.0; 3]).unwrap();
        let no_classes = device.targets("classes", &[steps, batch], v).unwrap();
        no_classes.write_u32(&[NO_TARGET; 12]).unwrap();
        type Build<'a> = &'a dyn Fn(&mut Graph, Var) -> Result<Loss>;
        let up_to = Reduction::Mean.up_to(&lengths);
        let losses: [Build<'_>; 4] = [
            &|g, x| cross_entropy(g, x, &classes, up_to),
            &|g, x| mse_loss(g, x, &y, up_to),
            &|g, x| functional::binary_cross_entropy_with_logits(g, x, &y, up_to),
            &|g, x| reduce(g, x, up_to),
        ];
        for (i, build) in losses.into_iter().enumerate() {
            let run = |x: &[f32]| {
                let (parameters, id) = one_parameter(&device, &[steps, batch, v], x);
                let of = |g: &mut Graph| {
                    let x = g.parameter(id)?;
                    build(g, x)
                };
                (Evaluator::new(&parameters, of).unwrap().losses(1).unwrap(), gradient(&parameters, of).0)
            };
            let (loss, dx) = run(&x);
            assert!(loss[0].is_finite() && loss[0] != 0.0, "{loss:?}");
            for (row, dx) in dx.chunks(v).enumerate() {
                assert_eq!(dx.iter().all(|&dx| dx == 0.0), is_past(row), "loss {i}, row {row}: {dx:?}");
            }
            let mut other = x.clone();
            (0..steps * batch).filter(|&row| is_past(row)).for_each(|row| other[row * v] = 0.25);
            assert_eq!(run(&other), (loss, dx), "loss {i}");
        }
        let nothing: [Build<'_>; 4] = [
            &|g, x| cross_entropy(g, x, &classes, Reduction::Mean.weighted(&none)),
            &|g, x| cross_entropy(g, x, &no_classes, Reduction::Mean),
            &|g, x| mse_loss(g, x, &y, Reduction::Mean.weighted(&none)),
            &|g, x| reduce(g, x, Reduction::Mean.weighted(&none)),
        ];
        for build in nothing {
            let (parameters, id) = one_parameter(&device, &[steps, batch, v], &x);
            let of = |g: &mut Graph| {
                let x = g.parameter(id)?;
                build(g, x)
            };
            assert_eq!(Evaluator::new(&parameters, of).unwrap().losses(1).unwrap(), [0.0]);
            assert!(gradient(&parameters, of).0.iter().all(|&dx| dx == 0.0));
        }
    }
}

#[test]
fn weights_and_lengths_must_fit() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let tensor = |name: &str, shape: &[usize]| device.upload(name, shape, &vec![1.0; shape.iter().product()]).unwrap();
    let targets = |shape: &[usize]| device.targets("targets", shape, 5).unwrap();
    let x = g.input(&tensor("x", &[4, 3, 5])).unwrap();
    let flat = g.input(&tensor("flat", &[12, 5])).unwrap();
    let classes = targets(&[4, 3]);
    for good in [&[4, 3][..], &[3]] {
        cross_entropy(&mut g, x, &classes, Reduction::Mean.weighted(&tensor("w", good))).unwrap();
    }
    cross_entropy(&mut g, flat, &targets(&[12]), Reduction::Mean.weighted(&tensor("w", &[12]))).unwrap();
    for good in [&[4, 3][..], &[3], &[4, 3, 5]] {
        mse_loss(&mut g, x, &tensor("y", &[4, 3, 5]), Reduction::Mean.weighted(&tensor("w", good))).unwrap();
    }
    let mut fails = |x: Var, weights: &[usize], words: &[&str]| {
        let classes = if g.shape(x).len() == 3 { targets(&[4, 3]) } else { targets(&[12]) };
        let error = cross_entropy(&mut g, x, &classes, Reduction::Mean.weighted(&tensor("w", weights)))
            .unwrap_err()
            .to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    fails(x, &[4], &["cross_entropy: `w`", "[4, 3]", "[3]", "has [4]"]);
    fails(x, &[3, 4], &["`w`", "has [3, 4]"]);
    fails(x, &[4, 3, 5], &["`w`"]);
    fails(flat, &[4, 3], &["`w`", "[12]"]);
    let lengths = |batch, steps| device.lengths("lengths", batch, steps).unwrap();
    let mut fails = |x: Var, lengths: &Tensor, words: &[&str]| {
        let classes = if g.shape(x).len() == 3 { targets(&[4, 3]) } else { targets(&[12]) };
        let error = cross_entropy(&mut g, x, &classes, Reduction::Mean.up_to(lengths)).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    fails(x, &lengths(4, 3), &["`lengths`", "[3], a length for each", "has [4]"]);
    fails(x, &lengths(3, 5), &["the 4 steps", "up to 5"]);
    fails(x, &device.upload_u32("unchecked", &[3], &[1; 3]).unwrap(), &["`unchecked`", "not checked"]);
    fails(flat, &lengths(12, 1), &["`flat`", "time first", "[12, 5]"]);
}

#[test]
fn metrics_are_logged_and_not_trained() {
    for device in f32_devices() {
        let logits = [[1.0, 3.0, 3.0], [0.0, -1.0, -2.0], [5.0, 1.0, 7.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]].concat();
        let (parameters, id) = one_parameter(&device, &[5, 3], &logits);
        let targets = device.targets("targets", &[5], 3).unwrap();
        targets.write_u32(&[1, 0, 0, 0, NO_TARGET]).unwrap();
        let y = device.upload("y", &[5, 3], &[0.5; 15]).unwrap();
        let weights = device.upload("weights", &[5], &[1.0, 2.0, 3.0, 2.0, 9.0]).unwrap();
        let mut evaluator = Evaluator::new(&parameters, |g| {
            let w = g.parameter(id)?;
            let plain = accuracy(g, w, &targets, Reduction::Mean)?;
            let ignoring = accuracy(g, w, &targets, Reduction::Mean.ignoring(1))?;
            let weighted = accuracy(g, w, &targets, Reduction::Mean.weighted(&weights))?;
            let count = accuracy(g, w, &targets, Reduction::Sum)?;
            Ok(plain + ignoring + weighted + count + absolute_error(g, w, &y, Reduction::Mean)?)
        })
        .unwrap();
        let losses = evaluator.losses_by_name(1).unwrap();
        let got: Vec<_> = losses.terms.iter().map(|(_, values)| values[0]).collect();
        let error = logits.iter().map(|z| f64::from((z - 0.5f32).abs())).sum::<f64>() / 15.0;
        assert_near(&got, &[0.75, 2.0 / 3.0, 5.0 / 8.0, 3.0, error]);

        let train = |weight: Option<f64>| {
            let (parameters, id) = one_parameter(&device, &[5, 3], &logits);
            let trainer = Trainer::new(&parameters, Sgd::new(0.1), |g| {
                let w = g.parameter(id)?;
                let loss = cross_entropy(g, w, &targets, Reduction::Mean)?;
                Ok(match weight {
                    None => loss,
                    Some(weight) => loss + weight * accuracy(g, w, &targets, Reduction::Mean)?,
                })
            });
            trainer.map(|mut trainer| {
                (0..3).for_each(|_| trainer.step().unwrap());
                let losses = trainer.losses_by_name().unwrap();
                let accuracy = losses.get("accuracy").map(<[f32]>::to_vec);
                (losses.total, parameters.get("w").unwrap().to_vec().unwrap(), accuracy)
            })
        };
        let (without, beside) = (train(None).unwrap(), train(Some(0.0)).unwrap());
        assert_eq!((&without.0, &without.1), (&beside.0, &beside.1));
        assert_eq!(beside.2.unwrap()[0], 0.75);
        let error = train(Some(1.0)).unwrap_err();
        assert!(error.to_string().contains("metric `accuracy`"), "{error}");
    }
}

#[test]
fn a_loss_that_is_not_finite_has_a_cause() {
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(1));
        let layer = Linear::new(&mut init, "layer", 2, 2).unwrap();
        let parameters = init.upload(&device).unwrap();
        let [x, y] = ["x", "y"].map(|name| device.upload(name, &[3, 2], &values(1, 6)).unwrap());
        let build = |g: &mut Graph| {
            let input = g.input(&x)?;
            let output = layer.forward(g, input)?;
            mse_loss(g, output, &y, Reduction::Mean)
        };
        let mut trainer = Trainer::new(&parameters, Sgd::new(0.0), build).unwrap();
        let mut evaluator = Evaluator::new(&parameters, build).unwrap();
        let mut cause = |words: &str| {
            trainer.step().unwrap();
            for error in [trainer.losses().unwrap_err(), evaluator.losses(1).unwrap_err()] {
                assert!(matches!(error, Error::NotFinite { .. }) && error.to_string().contains(words), "{error}");
            }
        };
        let mut bad = values(1, 6);
        bad[4] = f32::NAN;
        // What is written where a training reads it is looked at then.
        let error = x.write(&bad).unwrap_err().to_string();
        assert!(error.contains("a training reads `x`") && error.contains("NaN at position 4"), "{error}");
        bad[4] = f32::INFINITY;
        y.write(&bad).unwrap();
        cause("the input `y` holds inf at position 4");
        y.write(&values(1, 6)).unwrap();
        parameters.get("layer.weight").unwrap().write(&[f32::NAN; 4]).unwrap();
        cause("the parameter `layer.weight` holds NaN at position 0: lower the learning rate");
        parameters.get("layer.weight").unwrap().write(&[3e38; 4]).unwrap();
        parameters.get("layer.bias").unwrap().write(&[1.0; 2]).unwrap();
        cause("can no longer be trusted: lower the learning rate");
    }
}

#[test]
fn errors_are_in_the_users_terms() {
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(1));
    let embedding = Embedding::new(&mut init, "embedding", 11, 3).unwrap();
    let lstm = Lstm::new(&mut init, "encoder", RnnOptions::new(3, 5).bidirectional(true)).unwrap();
    let gru = Gru::new(&mut init, "decoder", RnnOptions::new(3, 5).batch_first(true)).unwrap();
    let cell = GruCell::new(&mut init, "cell", RnnOptions::new(3, 5)).unwrap();
    let output = Linear::new(&mut init, "output", 6, 2).unwrap();
    let parameters = init.upload(&device).unwrap();
    let mut g = Graph::new(&parameters);
    let x = g.input(&device.upload("x", &[4, 2, 3], &[0.5; 24]).unwrap()).unwrap();
    let out = lstm.forward(&mut g, x, InitialState::Zero).unwrap();
    let entries = gru.forward(&mut g, x, InitialState::Zero).unwrap();
    let tokens = device.tokens("tokens", &[4, 2], 11).unwrap();
    let looked_up = embedding.forward(&mut g, &tokens).unwrap();
    let first = functional::select(&mut g, x, 0, 0).unwrap();
    let state = cell.forward(&mut g, first, None).unwrap();
    for (var, name) in [
        (out.output, "encoder.output"),
        (out.h_n, "encoder.h_n"),
        (out.c_n, "encoder.c_n"),
        (entries.output, "decoder.output"),
        (looked_up, "embedding"),
        (state.h, "cell.h"),
    ] {
        let error = output.forward(&mut g, var).unwrap_err().to_string();
        assert!(error.starts_with(&format!("linear `output`: `{name}` must have shape [.., 6]")), "{error}");
        assert_eq!(g.tensor(var).unwrap().name(), name);
    }
    let wide = g.input(&device.upload("wide", &[4, 2, 6], &[0.5; 48]).unwrap()).unwrap();
    let y = output.forward(&mut g, wide).unwrap();
    assert_eq!(g.tensor(y).unwrap().name(), "output");
    let error = lstm.forward(&mut g, wide, InitialState::Zero).unwrap_err().to_string();
    assert_eq!(error, "lstm `encoder`: `wide` must have shape [T, B, 3] or [T, 3], but has [4, 2, 6]");
    let error = cell.forward(&mut g, x, None).unwrap_err().to_string();
    assert_eq!(error, "cell `cell`: `x` must have shape [B, 3], but has [4, 2, 3]");

    let lengths = device.lengths("sizes", 2, 5).unwrap();
    let error = lstm.forward_with_lengths(&mut g, x, InitialState::Zero, &lengths).unwrap_err().to_string();
    let words = ["lstm `encoder`: `lengths`", "at most the 4 steps", "`sizes`, which may hold up to 5"];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    let lengths = device.lengths("sizes", 3, 4).unwrap();
    let error = gru.forward_with_lengths(&mut g, x, InitialState::Zero, &lengths).unwrap_err().to_string();
    assert!(error.starts_with("gru `decoder`: `sizes` must have shape [4], a length"), "{error}");

    let error = functional::select(&mut g, x, 0, 4).unwrap_err().to_string();
    assert_eq!(error, "select: `x` must have shape [at least 5, 2, 3], but has [4, 2, 3]");
    let line = g.input(&device.upload("line", &[3], &[0.0; 3]).unwrap()).unwrap();
    assert!(functional::last(&mut g, line).unwrap_err().to_string().starts_with("last: `line`"));

    let targets = device.targets("targets", &[2], 9).unwrap();
    let error = targets.write_u32(&[3, -100i32 as u32]).unwrap_err();
    assert!(["-100", "elman::NO_TARGET", "position 1"].iter().all(|word| error.to_string().contains(word)), "{error}");
    let error = targets.write_u32(&[9, 3]).unwrap_err();
    assert!(!error.to_string().contains("i32"), "{error}");
    // What `main` prints.
    assert_eq!(format!("{error:?}"), error.to_string());
}

/// A gradient of 1 in every step: the parameter says which learning rates there were.
#[test]
fn a_schedule_sets_the_rate_of_every_step() {
    for device in f32_devices() {
        let start = |optimizer: Optimizer| {
            let (parameters, id) = one_parameter(&device, &[1], &[0.0]);
            let build = |g: &mut Graph| {
                let w = g.parameter(id)?;
                mean(g, w)
            };
            (Trainer::new(&parameters, optimizer, build).unwrap(), parameters)
        };
        let value = |parameters: &Parameters| f64::from(parameters.get("w").unwrap().to_vec().unwrap()[0]);
        let cosine = CosineAnnealing::new(0.1, 10, 0.0).unwrap();
        let (mut trainer, parameters) = start(Sgd::new(7.0).schedule(cosine));
        let mut moved = 0.0;
        for step in 0..10 {
            assert_eq!(trainer.lr(), cosine.lr(step));
            // However many steps may be taken, those of one submission have one rate.
            assert_eq!(trainer.step_up_to(5).unwrap(), 1);
            moved -= cosine.lr(step);
            assert!((value(&parameters) - moved).abs() <= 1e-6, "step {step}: {} not {moved}", value(&parameters));
        }
        let error = trainer.set_lr(0.1).unwrap_err();
        assert!(error.to_string().contains("schedule"), "{error}");

        // By epochs of 70 steps, in submissions of as many as there may be.
        let halves = Step::new(0.1, 1, 0.5).unwrap().every(70).unwrap();
        let (mut trainer, parameters) = start(Sgd::default().clip(Clip::Norm(1.0)).schedule(halves));
        let (mut steps, mut most) = (0, 0);
        for total in [30, 210] {
            while steps < total {
                let taken = trainer.step_up_to(total - steps).unwrap();
                (steps, most) = (steps + taken, most.max(taken));
            }
            trainer.losses().unwrap();
        }
        let want = -70.0 * (0.1 + 0.05 + 0.025);
        assert!((value(&parameters) - want).abs() <= 1e-4, "{} not {want}", value(&parameters));
        assert_eq!(most > 1, device.is_gpu(), "{most} steps at once");
        assert!(Step::new(0.1, 1, 0.5).unwrap().every(0).is_err());

        // Without a schedule, as before.
        let (mut trainer, parameters) = start(Sgd::new(0.5).clip(Clip::Value(0.25)));
        trainer.step().unwrap();
        trainer.set_lr(1.0).unwrap();
        trainer.step().unwrap();
        assert_eq!((value(&parameters), trainer.lr()), (-0.375, 1.0));
    }
    assert!(gpu().is_some() || f32_devices().len() == 1);
    struct Bad;
    impl Schedule for Bad {
        fn lr(&self, step: usize) -> f64 {
            [0.1, f64::NAN][step]
        }
    }
    let (parameters, id) = one_parameter(&Device::cpu(), &[1], &[0.0]);
    let mut trainer = Trainer::new(&parameters, Adam::default().schedule(Bad), |g| {
        let w = g.parameter(id)?;
        mean(g, w)
    })
    .unwrap();
    trainer.step().unwrap();
    assert!(matches!(trainer.step(), Err(Error::Argument { argument: "lr", .. })));
}

#[test]
fn optimizers_have_pytorchs_rates() {
    let rates = [Adam::default().lr, AdamW::default().0.lr, Sgd::default().lr, RmsProp::default().lr];
    assert_eq!((rates, Adagrad::default().lr), ([1e-3, 1e-3, 1e-3, 1e-2], 1e-2));
    assert_eq!(AdamW::default(), AdamW::new(1e-3));
}
