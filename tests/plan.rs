//! Plans: what they contain, what they refuse, and what they cost.

mod common;

use common::{f32_devices, gpu, own_gpu};
use elman::kernels::{self, accumulate, matmul};
use elman::nn::functional::{self, InitialState, Reduction, cross_entropy};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Init, LanguageModel, Nonlinearity, Parameters, Recurrent, RnnOptions};
use elman::optim::{Adam, AdamW, Clip, Optimizer, RmsProp, Sgd};
use elman::text::{Corpus, Windows};
use elman::{DType, Device, Error, Evaluator, Graph, PlanCount, Tensor, Trainer, rng};

fn zeros(device: &Device, name: &str, shape: &[usize]) -> Tensor {
    device.zeros(name, shape, DType::F32).unwrap()
}

/// A training step of the main job's network over a small text.
fn trainer(device: &Device, sizes: CharRnnOptions, window: usize, batch: usize, wide: bool) -> (Trainer, Parameters) {
    let mut init = Init::new(rng::manual_seed(1));
    let model = CharRnn::new(&mut init, sizes).unwrap();
    let parameters = init.upload(device).unwrap();
    let tokens = common::tokens(2, 4 * batch + window, sizes.vocabulary);
    let corpus = Corpus::new(device, &tokens, sizes.vocabulary).unwrap();
    let windows = Windows::new(&corpus, (0..4 * batch as u32 - 1).collect(), window).unwrap();
    let trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        if wide {
            g.set_wide(true);
        }
        let batch = windows.batch(g, batch)?;
        let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    });
    (trainer.unwrap(), parameters)
}

const SMALL: CharRnnOptions = CharRnnOptions::new(9, 5, 6);

/// Dispatches of a training step, as planned for a GPU and for a software driver; one submission.
#[test]
fn a_training_step_is_few_dispatches() {
    let tutorial = CharRnnOptions::new(85, 42, 256);
    let device = Device::cpu();
    for wide in [false, true] {
        // The GRU's second bias has a gradient of its own.
        for (cell, most) in [(Cell::Tanh, 21), (Cell::Lstm, 21), (Cell::Gru, 23)] {
            let (trainer, _) = trainer(&device, tutorial.cell(cell), 8, 512, wide);
            let count = trainer.plan().count();
            assert!(count.dispatches <= most && count.submits == 1, "{}", trainer.plan());
        }
        // Two layers of 512 on streams of 64 steps, and of twice as many. All steps are in one dispatch; on a GPU, whose
        // workgroups would each read all weights in every step, two dispatches a step do both layers.
        let of_steps = |steps: usize, stepwise: Option<bool>| {
            let mut init = Init::new(rng::manual_seed(1));
            let options = CharRnnOptions::new(85, 64, 512).cell(Cell::Lstm).num_layers(2);
            let model = CharRnn::new(&mut init, options).unwrap();
            let parameters = init.upload(&device).unwrap();
            let corpus = Corpus::new(&device, &common::tokens(2, 20_000, 85), 85).unwrap();
            let streams = Windows::streams(&corpus, 0..20_000, 64, steps).unwrap();
            let state = model.state(&device, 64).unwrap();
            let trainer = Trainer::new(&parameters, Adam::new(1e-3), |g| {
                g.set_wide(wide);
                g.set_stepwise(stepwise);
                let batch = streams.batch_of_every_step(g, 64)?;
                let logits = model.forward_every_step(g, &batch.tokens, InitialState::Carried(&state))?;
                cross_entropy(g, logits, &batch.targets, Reduction::Mean)
            });
            let count = trainer.unwrap().plan().count();
            assert_eq!(count.submits, 1);
            count
        };
        for steps in [64, 128] {
            let (one_for_all, count) = (of_steps(steps, Some(false)), of_steps(steps, None));
            let most = if wide { 40 + 2 * steps } else { 40 };
            assert!(count.dispatches <= most, "{count:?} of {steps} steps, wide: {wide}");
            assert_eq!(count.flops, one_for_all.flops);
        }
    }
}

/// The directions of a layer run side by side, both in one dispatch, and their inputs are computed where it reads them.
#[test]
fn two_directions_are_one_dispatch() {
    let (steps, batch) = (5, 4);
    for (cell, proj_size) in [(Cell::Tanh, 0), (Cell::Relu, 0), (Cell::Gru, 0), (Cell::Lstm, 0), (Cell::Lstm, 8)] {
        let device = Device::cpu();
        let mut init = Init::new(rng::manual_seed(1));
        let mut options = RnnOptions::new(16, 32).num_layers(2).bidirectional(true).proj_size(proj_size);
        if cell == Cell::Relu {
            options = options.nonlinearity(Nonlinearity::Relu);
        }
        let rnn = Recurrent::new(&mut init, "rnn", cell, options).unwrap();
        let parameters = init.upload(&device).unwrap();
        let x = zeros(&device, "x", &[steps, batch, 16]);
        let trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
            let x = g.input(&x)?;
            let (output, _) = rnn.forward(g, x, InitialState::Zero)?;
            let targets = zeros(&device, "y", g.shape(output));
            functional::mse_loss(g, output, &targets, Reduction::Mean)
        })
        .unwrap();
        let (plan, kernels) = (trainer.plan(), trainer.plan().kernels());
        let recurrence = match cell {
            Cell::Gru => "gru",
            Cell::Lstm => "lstm",
            _ => "rnn",
        };
        for kernel in [format!("{recurrence}_forward"), format!("{recurrence}_backward")] {
            assert_eq!(kernels.iter().filter(|&&name| name == kernel).count(), 2, "{kernel}\n{plan}");
        }
        let listing = plan.to_string();
        assert!(listing.contains("all 5 steps of 2 directions side by side in one dispatch"), "{listing}");
        assert!(!listing.lines().any(|line| line.contains("copy") && line.contains("inputs")), "{listing}");
    }
}

/// Where each step of a layer is a dispatch, layers are a wavefront, one step more for each layer; unless something is
/// between them, each fills a GPU by itself, or there is no GPU that a single step would leave idle.
#[test]
fn layers_are_a_wavefront() {
    let of = |options: RnnOptions| options.num_layers(3);
    let plain = of(RnnOptions::new(16, 1028));
    let narrow = of(RnnOptions::new(16, 32));
    for (what, options, batch, training, wide, wavefront, dispatches) in [
        ("plain", plain, 4, true, true, true, 7 + 7),
        ("no gradients", plain, 4, false, true, true, 7),
        ("dropout", plain.dropout(0.5), 4, true, true, false, 3 * 5 + 3 * 5),
        ("dropout, not in training", plain.dropout(0.5), 4, false, true, true, 7),
        ("two directions", plain.bidirectional(true), 4, false, true, false, 3 * 5),
        ("projected", plain.proj_size(8), 4, false, true, false, 3 * 5),
        ("one layer", plain.num_layers(1), 4, false, true, false, 5),
        ("large batch", plain, 400, false, true, false, 3 * 5),
        ("software driver", plain, 4, false, false, false, 3 * 5),
        ("all steps in one dispatch", narrow, 4, true, true, false, 3 + 3),
    ] {
        let device = Device::cpu();
        let mut init = Init::new(rng::manual_seed(1));
        let rnn = Recurrent::new(&mut init, "rnn", Cell::Lstm, options).unwrap();
        let parameters = init.upload(&device).unwrap();
        let mut g = if training { Graph::new(&parameters) } else { Graph::inference(&parameters) };
        g.set_wide(wide);
        let x = g.input(&zeros(&device, "x", &[5, batch, 16])).unwrap();
        let (output, _) = rnn.forward(&mut g, x, InitialState::Zero).unwrap();
        let dy = zeros(&device, "dy", g.shape(output));
        if training {
            g.backward(&[], &[(output, &dy)]).unwrap();
        }
        let plan = g.finish().unwrap();
        let count = plan.kernels().iter().filter(|name| name.starts_with("lstm")).count();
        assert_eq!(count, dispatches, "{what}: {plan}");
        assert_eq!(plan.to_string().contains("each a step behind"), wavefront, "{what}: {plan}");
    }
}

/// A step of the published network moves at most one and a half times the bytes that it must: saved states and their
/// gradients written once and read once, likewise logits and their gradient, the output layer's input and its gradient;
/// weights, gradients and moments read and written once, gradients read once more for their norm.
#[test]
fn a_training_step_moves_few_bytes() {
    let (steps, batch, hidden, vocabulary) = (8, 512, 256, 85);
    for wide in [false, true] {
        let (trainer, parameters) = trainer(&Device::cpu(), CharRnnOptions::new(85, 42, 256), 8, 512, wide);
        let activations = 2 * steps * batch * hidden + 2 * batch * (vocabulary + hidden);
        let least = 4 * (2 * activations + 9 * parameters.count()) as u64;
        let count = trainer.plan().count();
        assert!(
            count.bytes >= least && count.bytes as f64 <= 1.5 * least as f64,
            "{} bytes, at least {least}\n{}",
            count.bytes,
            trainer.plan()
        );
        assert!(count.rereads > 0 && count.flops > 1_400_000_000, "{}", trainer.plan());
    }
}

#[test]
fn a_plan_lists_its_commands_and_says_which_path_it_took() {
    let (trainer, _) = trainer(&Device::cpu(), SMALL, 3, 4, false);
    let listing = trainer.plan().to_string();
    for part in
        ["plan on CPU", "all 3 steps in one dispatch", "rnn_forward", "rnn.weight_hh_l0ᵀ[1, 8, 8]", "adam", "copy"]
    {
        assert!(listing.contains(part), "{part:?} is not in\n{listing}");
    }
}

/// After the first step: no buffer, bind group or pipeline is made, nothing is uploaded; one submission a step.
#[test]
fn a_thousand_steps_allocate_nothing() {
    for device in [Some(Device::cpu()), own_gpu()].into_iter().flatten() {
        let (mut trainer, _) = trainer(&device, SMALL, 3, 4, false);
        trainer.start_epoch().unwrap();
        trainer.step().unwrap();
        trainer.losses().unwrap();
        let before = device.count();
        for _ in 0..1000 {
            trainer.step().unwrap();
        }
        assert_eq!(trainer.losses().unwrap().len(), 1000);
        let mut expected = before;
        expected.submits += 1000;
        expected.dispatches += 1000 * trainer.plan().count().dispatches as u64;
        expected.downloads += 3; // losses, clock, and whether the training has stopped
        assert_eq!(device.count(), expected, "{}", device.describe());
    }
}

/// Several steps of a submission are the steps that they are one by one; on the CPU each is its own.
#[test]
fn several_steps_are_one_submission() {
    for device in [Some(Device::cpu()), own_gpu()].into_iter().flatten() {
        let of = |together: bool| {
            let (mut trainer, parameters) = trainer(&device, SMALL, 3, 4, false);
            trainer.start_epoch().unwrap();
            let (mut losses, mut done, mut calls) = (Vec::new(), 0, 0);
            let before = device.count().submits;
            // More than the log holds between two reads.
            while done < 1300 {
                let most = if together { 1300 - done } else { 1 };
                let steps = trainer.step_up_to(most).unwrap();
                assert!((1..=most).contains(&steps));
                done += steps;
                calls += 1;
                if done == 1 || done > 1250 {
                    losses.extend(trainer.losses().unwrap());
                }
            }
            assert_eq!((trainer.steps(), device.count().submits - before), (1300, calls));
            let parameters: Vec<_> = parameters.iter().map(|(_, tensor)| tensor.to_vec().unwrap()).collect();
            (losses, parameters, calls)
        };
        let ((losses, parameters, calls), (one_by_one, same, _)) = (of(true), of(false));
        assert_eq!(losses.len(), 1300);
        assert!(losses == one_by_one && parameters == same, "{}", device.describe());
        if !device.is_gpu() {
            assert_eq!(calls, 1300);
        } else if calls == 1300 {
            common::not_tested(&format!("several steps of a submission: {} is too slow", device.describe()));
        }
    }
    let (mut trainer, _) = trainer(&Device::cpu(), SMALL, 3, 4, false);
    assert!(trainer.step_up_to(0).unwrap_err().to_string().contains("at least 1"));
}

/// The log of losses is a ring: more steps than it holds are all there, once and in order.
#[test]
fn no_loss_is_lost() {
    let (mut twice, _) = trainer(&Device::cpu(), SMALL, 3, 4, false);
    let (mut once, _) = trainer(&Device::cpu(), SMALL, 3, 4, false);
    let mut one_by_one = Vec::new();
    for _ in 0..2500 {
        once.step().unwrap();
        one_by_one.extend(once.losses().unwrap());
        twice.step().unwrap();
    }
    assert_eq!(one_by_one.len(), 2500);
    assert_eq!(twice.losses().unwrap(), one_by_one);
    assert_eq!(twice.steps(), 2500);
}

#[test]
fn every_parameter_moves_after_one_step() {
    for (device, wide) in f32_devices().into_iter().flat_map(|device| [(device.clone(), false), (device, true)]) {
        let (mut trainer, parameters) = trainer(&device, SMALL, 3, 4, wide);
        let before: Vec<_> = parameters.iter().map(|(_, tensor)| tensor.to_vec().unwrap()).collect();
        trainer.step().unwrap();
        trainer.losses().unwrap();
        for ((name, tensor), before) in parameters.iter().zip(before) {
            assert_ne!(tensor.to_vec().unwrap(), before, "{name} on {}", device.describe());
        }
    }
}

#[test]
fn evaluation_changes_nothing() {
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(1));
        let model = CharRnn::new(&mut init, SMALL).unwrap();
        let parameters = init.upload(&device).unwrap();
        let corpus = Corpus::new(&device, &common::tokens(3, 30, 9), 9).unwrap();
        let windows = Windows::new(&corpus, (0..25).collect(), 4).unwrap();
        let mut evaluator = Evaluator::new(&parameters, |g| {
            let batch = windows.batch(g, 10)?;
            let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
            cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        })
        .unwrap();
        let before: Vec<_> = parameters.iter().map(|(_, tensor)| tensor.to_vec().unwrap()).collect();
        let first = evaluator.losses(windows.batches(10)).unwrap();
        assert_eq!(evaluator.losses(windows.batches(10)).unwrap(), first);
        assert!(parameters.iter().zip(before).all(|((_, tensor), before)| tensor.to_vec().unwrap() == before));
        // The mean over batches of 10, 10 and 5 is the mean over one batch of 25.
        let mut whole = Evaluator::new(&parameters, |g| {
            let batch = windows.batch(g, 25)?;
            let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
            cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        })
        .unwrap();
        let whole = f64::from(whole.losses(1).unwrap()[0]);
        assert!((windows.mean(&first, 10) - whole).abs() <= 1e-6, "{} {whole}", windows.mean(&first, 10));
    }
}

/// The same seed gives the same parameters, bit for bit.
#[test]
fn same_seed_same_bits() {
    for (device, wide) in f32_devices().into_iter().flat_map(|device| [(device.clone(), false), (device, true)]) {
        let end = || {
            let (mut trainer, parameters) = trainer(&device, SMALL, 3, 40, wide);
            (0..20).for_each(|_| trainer.step().unwrap());
            parameters.iter().map(|(_, tensor)| tensor.to_vec().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(end(), end(), "{} {wide}", device.describe());
    }
}

/// Two losses over one network; only the one that is returned is trained on.
#[test]
fn a_loss_that_is_only_computed_does_not_train() {
    let device = Device::cpu();
    let end = |watched: bool| {
        let mut init = Init::new(rng::manual_seed(1));
        let layer = elman::nn::Linear::new(&mut init, "layer", 3, 4).unwrap();
        let parameters = init.upload(&device).unwrap();
        let x = device.upload("x", &[2, 3], &common::values(1, 6)).unwrap();
        let targets = |values: &[u32]| {
            let targets = device.targets("targets", &[2], 4).unwrap();
            targets.write_u32(values).unwrap();
            targets
        };
        let mut trainer = Trainer::new(&parameters, Adam::new(0.1), |g| {
            let x = g.input(&x)?;
            let logits = layer.forward(g, x)?;
            if watched {
                cross_entropy(g, logits, &targets(&[3, 3]), Reduction::Mean)?;
            }
            cross_entropy(g, logits, &targets(&[0, 1]), Reduction::Mean)
        })
        .unwrap();
        trainer.step().unwrap();
        parameters.get("layer.weight").unwrap().to_vec().unwrap()
    };
    assert_eq!(end(true), end(false));
}

/// Two trainers over one set of parameters: what one does not use, the gradients of the other do not move.
#[test]
fn gradients_of_another_trainer_are_not_applied() {
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(1));
        let layers = ["a", "b"].map(|name| elman::nn::Linear::new(&mut init, name, 3, 4).unwrap());
        let parameters = init.upload(&device).unwrap();
        let x = device.upload("x", &[2, 3], &common::values(1, 6)).unwrap();
        let targets = device.targets("targets", &[2], 2).unwrap();
        targets.write_u32(&[0, 1]).unwrap();
        let mut trainers = layers.map(|layer| {
            Trainer::new(&parameters, Adam::new(0.1), |g| {
                let x = g.input(&x)?;
                let logits = layer.forward(g, x)?;
                cross_entropy(g, logits, &targets, Reduction::Mean)
            })
            .unwrap()
        });
        trainers[0].step().unwrap();
        let before = parameters.get("a.weight").unwrap().to_vec().unwrap();
        trainers[1].step().unwrap();
        assert_eq!(parameters.get("a.weight").unwrap().to_vec().unwrap(), before, "{}", device.describe());
    }
}

/// More sizes are read than read-back buffers are kept.
#[test]
fn reads_of_many_sizes_reuse_their_buffers() {
    let Some(device) = own_gpu() else { return };
    let tensors: Vec<_> = (0..12).map(|i| zeros(&device, "x", &[1 << i])).collect();
    tensors.iter().for_each(|tensor| assert_eq!(tensor.to_vec().unwrap(), vec![0.0; tensor.len()]));
    let small = &tensors[3];
    small.to_vec().unwrap();
    let before = device.count();
    for _ in 0..50 {
        small.to_vec().unwrap();
    }
    assert_eq!(device.count().buffers, before.buffers);
}

#[test]
fn sizes_beyond_counting_are_refused() {
    let device = Device::cpu();
    for shape in [&[1 << 31][..], &[usize::MAX, 3], &[1 << 40, 1 << 40]] {
        let error = device.zeros("huge", shape, DType::F32).unwrap_err();
        assert!(matches!(&error, Error::Shape { argument, .. } if argument == "huge"), "{error}");
    }
    let mut init = Init::new(rng::manual_seed(0));
    assert!(elman::nn::Linear::new(&mut init, "layer", usize::MAX, 7).is_err());
    assert!(elman::nn::Embedding::new(&mut init, "table", 1 << 20, 1 << 20).is_err());
}

/// Twice the learning rate gives other parameters; the rate is an input, not baked into the plan.
#[test]
fn the_learning_rate_can_change_between_steps() {
    for device in f32_devices() {
        let end = |lr: f64| {
            let (mut trainer, parameters) = trainer(&device, SMALL, 3, 4, false);
            trainer.step().unwrap();
            trainer.set_lr(lr).unwrap();
            trainer.step().unwrap();
            parameters.get("rnn.bias_ih_l0").unwrap().to_vec().unwrap()
        };
        assert_eq!(end(1e-2), end(1e-2));
        assert_ne!(end(1e-2), end(2e-2));
        let (mut trainer, parameters) = trainer(&device, SMALL, 3, 4, false);
        trainer.set_lr(0.0).unwrap();
        let before = parameters.get("rnn.bias_ih_l0").unwrap().to_vec().unwrap();
        trainer.step().unwrap();
        assert_eq!(parameters.get("rnn.bias_ih_l0").unwrap().to_vec().unwrap(), before);
        for bad in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(matches!(trainer.set_lr(bad), Err(Error::Argument { argument: "lr", .. })));
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_training() {
    for device in f32_devices() {
        let (mut trainer, parameters) = trainer(&device, SMALL, 3, 4, false);
        trainer.step().unwrap();
        trainer.step().unwrap();
        trainer.losses().unwrap();
        parameters.get("output_layer.bias").unwrap().write(&[f32::NAN; 9]).unwrap();
        trainer.step().unwrap();
        let error = trainer.losses().unwrap_err();
        assert!(matches!(error, Error::NotFinite { step: 2, .. }), "{error}");
    }
}

// ---- what a plan refuses -------------------------------------------------------------------------------------------

#[test]
fn a_wrong_shape_is_refused_by_name() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let (a, b, c) = (zeros(&device, "left", &[2, 3]), zeros(&device, "right", &[4, 5]), zeros(&device, "out", &[2, 5]));
    let error = matmul::matmul(&mut g, &a, &b, None, &c, false).unwrap_err().to_string();
    assert!(error.contains("`right`") && error.contains("[4, 5]") && error.contains("[3, n]"), "{error}");
    let b = zeros(&device, "right", &[3, 4]);
    let error = matmul::matmul(&mut g, &a, &b, None, &c, false).unwrap_err().to_string();
    assert!(error.contains("`out`") && error.contains("8 elements"), "{error}");
}

#[test]
fn a_buffer_bound_twice_with_one_write_is_refused_by_name() {
    for device in f32_devices() {
        let mut g = Graph::without_parameters(&device);
        let x = zeros(&device, "state", &[128]);
        let error = accumulate::accumulate(&mut g, &x, &x).unwrap_err();
        assert!(matches!(&error, Error::Aliased { kernel: "accumulate", .. }), "{error}");
        assert!(error.to_string().contains("`state`"), "{error}");
        // Reading one buffer twice is fine.
        let (w, y) = (zeros(&device, "w", &[4, 4]), zeros(&device, "y", &[4, 4]));
        matmul::matmul(&mut g, &w, &w, None, &y, false).unwrap();
        g.finish().unwrap().run().unwrap();
        device.synchronize().unwrap();
    }
}

#[test]
fn a_buffer_over_the_limit_is_refused_by_name() {
    let Some(device) = gpu() else { return };
    // 4 GiB: more than adapters bind.
    let error = device.zeros("activations", &[1 << 15, 1 << 15], DType::F32).unwrap_err();
    assert!(matches!(&error, Error::Limit { needed: 0x1_0000_0000, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("`activations`") && text.contains("smaller batch"), "{text}");
    assert_eq!(device.zeros("small", &[3], DType::F32).unwrap().to_vec().unwrap(), [0.0; 3], "the device still works");
}

#[test]
fn a_module_of_other_parameters_is_refused() {
    let device = Device::cpu();
    let layer = |init: &mut Init| elman::nn::Linear::new(init, "layer", 3, 2).unwrap();
    let (mut one, mut other) = (Init::new(rng::manual_seed(0)), Init::new(rng::manual_seed(0)));
    let (_, stranger) = (layer(&mut one), layer(&mut other));
    for mut g in [Graph::new(&one.upload(&device).unwrap()), Graph::without_parameters(&device)] {
        let x = g.input(&zeros(&device, "x", &[4, 3])).unwrap();
        let error = stranger.forward(&mut g, x).unwrap_err();
        assert!(matches!(error, Error::Argument { argument: "module", .. }), "{error}");
    }
    assert!(matches!(Init::new(rng::manual_seed(0)).upload(&device), Err(Error::Argument { .. })));
    assert!(matches!(elman::nn::Linear::new(&mut one, "layer", 3, 2), Err(Error::Argument { argument: "name", .. })));
}

#[test]
fn tensors_of_another_device_are_refused_by_name() {
    let (device, other) = (Device::cpu(), Device::cpu());
    let mut g = Graph::without_parameters(&device);
    let error = g.input(&zeros(&other, "stranger", &[3])).unwrap_err().to_string();
    assert!(error.contains("`stranger`") && error.contains("CPU"), "{error}");
    let error = accumulate::accumulate(&mut g, &zeros(&other, "x", &[3]), &zeros(&device, "y", &[3])).unwrap_err();
    assert!(matches!(error, Error::WrongDevice { .. }), "{error}");
}

#[test]
fn wrong_element_types_are_refused() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let (logits, losses) = (zeros(&device, "logits", &[4, 2]), zeros(&device, "losses", &[4]));
    let (targets, scale) = (zeros(&device, "targets", &[4]), zeros(&device, "scale", &[1]));
    let error = kernels::cross_entropy::cross_entropy(
        &mut g,
        kernels::cross_entropy::ClassLoss {
            x: &logits,
            targets: &targets,
            ignore_index: None,
            class_weights: None,
            label_smoothing: 0.0,
            counts: false,
            scale: &scale,
            losses: &losses,
            dx: None,
        },
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "cross_entropy: `dtype` must be u32 for `targets` (`targets`), but is f32");
    assert!(targets.to_vec_u32().is_err() && targets.write_u32(&[0; 4]).is_err());
    assert!(matches!(targets.write(&[0.0; 3]), Err(Error::Shape { .. })));
    assert!(matches!(device.zeros("nothing", &[2, 0], DType::F32), Err(Error::Shape { .. })));
}

#[test]
fn tokens_outside_the_vocabulary_never_reach_a_table() {
    let device = Device::cpu();
    let tokens = device.tokens("tokens", &[3], 5).unwrap();
    let error = tokens.write_u32(&[1, 2, 5]).unwrap_err();
    assert!(matches!(error, Error::Token { token: 5, position: 2, vocabulary: 5, .. }), "{error}");
    assert_eq!(tokens.to_vec_u32().unwrap(), [0; 3], "a refused write changes nothing");
    let mut init = Init::new(rng::manual_seed(0));
    let embedding = elman::nn::Embedding::new(&mut init, "e", 4, 2).unwrap();
    let parameters = init.upload(&device).unwrap();
    let mut g = Graph::new(&parameters);
    assert!(matches!(embedding.forward(&mut g, &tokens), Err(Error::Argument { argument: "index", .. })));
    let unchecked = device.zeros("unchecked", &[3], DType::U32).unwrap();
    assert!(matches!(embedding.forward(&mut g, &unchecked), Err(Error::Argument { argument: "index", .. })));
    assert!(matches!(Corpus::new(&device, &[0, 9], 9), Err(Error::Token { token: 9, .. })));
}

#[test]
fn a_lost_device_is_an_error_and_no_panic() {
    let Some(device) = own_gpu() else { return };
    let (mut trainer, parameters) = trainer(&device, SMALL, 3, 4, false);
    trainer.step().unwrap();
    device.lose();
    let errors = (0..20).find_map(|_| trainer.step().and_then(|()| device.synchronize()).err());
    assert!(matches!(errors, Some(Error::DeviceLost(_))), "{errors:?}");
    assert!(matches!(parameters.get("rnn.bias_ih_l0").unwrap().to_vec(), Err(Error::DeviceLost(_))));
    assert!(matches!(device.zeros("more", &[3], DType::F32), Err(Error::DeviceLost(_))));
}

/// Each stream goes on where its last window ended; targets are the token after each token.
#[test]
fn streams_are_contiguous() {
    let device = Device::cpu();
    let corpus = Corpus::new(&device, &(0..30).collect::<Vec<_>>(), 30).unwrap();
    // 2 streams of 9 tokens each in 10..29 and a token after the last: 3 windows of 3.
    let streams = Windows::streams(&corpus, 10..29, 2, 3).unwrap();
    assert_eq!((streams.len(), streams.batches(2)), (6, 3));
    let mut g = Graph::without_parameters(&device);
    let batch = streams.batch_of_every_step(&mut g, 2).unwrap();
    g.finish().unwrap().run().unwrap();
    assert_eq!(batch.tokens.to_vec_u32().unwrap(), [10, 19, 11, 20, 12, 21]);
    assert_eq!(batch.targets.to_vec_u32().unwrap(), [11, 20, 12, 21, 13, 22]);
    for (stretch, batch, window) in [(0..31, 2, 3), (0..7, 2, 4), (0..30, 0, 3), (0..30, 2, 0), (5..5, 1, 1)] {
        assert!(Windows::streams(&corpus, stretch, batch, window).is_err());
    }
}

/// Over an epoch each token of a stream comes once, in order.
#[test]
fn streams_cover_their_stretch() {
    for device in f32_devices() {
        let text: Vec<u32> = (0..50).collect();
        let corpus = Corpus::new(&device, &text, 50).unwrap();
        let streams = Windows::streams(&corpus, 0..50, 3, 4).unwrap();
        let mut seen = vec![Vec::new(); 3];
        let mut init = Init::new(rng::manual_seed(1));
        let layer = elman::nn::Embedding::new(&mut init, "embedding", 50, 50).unwrap();
        let parameters = init.upload(&device).unwrap();
        let mut cut = None;
        let mut trainer = Trainer::new(&parameters, Adam::new(0.0), |g| {
            let batch = streams.batch_of_every_step(g, 3)?;
            cut = Some(batch.tokens.clone());
            let logits = layer.forward(g, &batch.tokens)?;
            cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        })
        .unwrap();
        let tokens = cut.unwrap();
        for _ in 0..streams.batches(3) {
            trainer.step().unwrap();
            for row in tokens.to_vec_u32().unwrap().chunks(3) {
                seen.iter_mut().zip(row).for_each(|(stream, &token)| stream.push(token));
            }
        }
        assert_eq!(seen, [(0..16).collect::<Vec<u32>>(), (16..32).collect(), (32..48).collect()]);
    }
}

#[test]
fn targets_outside_the_classes_are_refused() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let logits = g.input(&zeros(&device, "logits", &[2, 3])).unwrap();
    let targets = device.targets("targets", &[2], 3).unwrap();
    assert!(matches!(targets.write_u32(&[0, 3]), Err(Error::Token { token: 3, position: 1, vocabulary: 3, .. })));
    targets.write_u32(&[2, elman::NO_TARGET]).unwrap();
    cross_entropy(&mut g, logits, &targets, Reduction::Sum.ignoring(7)).unwrap();
    let unchecked = device.upload_u32("unchecked", &[2], &[0, 3]).unwrap();
    let more = device.targets("more", &[2], 4).unwrap();
    for (bad, what) in [(&unchecked, "unchecked"), (&more, "one with 4")] {
        let error = cross_entropy(&mut g, logits, bad, Reduction::Mean).unwrap_err().to_string();
        assert!(error.contains("at most 3 classes") && error.contains(what), "{error}");
    }
    let three = device.targets("three", &[3], 3).unwrap();
    assert!(cross_entropy(&mut g, logits, &three, Reduction::Mean).unwrap_err().to_string().contains("[2], or [2]"));
    let error = functional::mse_loss(&mut g, logits, &zeros(&device, "y", &[3, 2]), Reduction::Mean).unwrap_err();
    assert!(error.to_string().contains("[2, 3]"), "{error}");
    for refused in [functional::select(&mut g, logits, 0, 2), functional::narrow(&mut g, logits, 0, 1, 2)] {
        assert!(matches!(refused, Err(Error::Shape { .. })));
    }
    let flat = functional::reshape(&mut g, logits, &[6]).unwrap();
    assert!(functional::unbind(&mut g, flat).is_err() && functional::last(&mut g, flat).is_err());
}

#[test]
fn optimizer_settings_out_of_range_are_refused() {
    let mut init = Init::new(rng::manual_seed(1));
    let layer = elman::nn::Linear::new(&mut init, "layer", 3, 4).unwrap();
    let device = Device::cpu();
    let parameters = init.upload(&device).unwrap();
    let sgd = Sgd::new(0.1);
    let cases: [(&str, Optimizer); 12] = [
        ("lr", Adam::new(-1.0).into()),
        ("lr", RmsProp::new(f64::NAN).into()),
        ("betas", Adam { betas: (1.0, 0.9), ..Adam::new(0.1) }.into()),
        ("eps", AdamW(Adam { eps: 0.0, ..Adam::new(0.1) }).into()),
        ("weight_decay", AdamW(Adam { weight_decay: -0.1, ..Adam::new(0.1) }).into()),
        ("momentum", Sgd { momentum: -0.1, ..sgd }.into()),
        ("momentum", Sgd { nesterov: true, ..sgd }.into()),
        ("dampening", Sgd { nesterov: true, momentum: 0.9, dampening: 0.1, ..sgd }.into()),
        ("alpha", RmsProp { alpha: 1.1, ..RmsProp::new(0.1) }.into()),
        ("momentum", RmsProp { momentum: f64::INFINITY, ..RmsProp::new(0.1) }.into()),
        ("clip norm", Optimizer::from(sgd).clip(Clip::Norm(0.0))),
        ("clip value", Optimizer::from(sgd).clip(Clip::Value(f64::NAN))),
    ];
    for (name, optimizer) in cases {
        let refused = Trainer::new(&parameters, optimizer, |g| {
            let x = g.input(&zeros(&device, "x", &[2, 3]))?;
            let y = layer.forward(g, x)?;
            functional::mse_loss(g, y, &zeros(&device, "y", &[2, 4]), Reduction::Mean)
        });
        let error = refused.err().expect("refused").to_string();
        assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
    }
}

/// Timestamps of more dispatches than one set of queries has room for.
#[test]
fn long_plans_are_profiled() {
    for device in f32_devices() {
        let mut g = Graph::without_parameters(&device);
        let (x, y) = (device.upload("x", &[3], &[1.0, 2.0, 3.0]).unwrap(), zeros(&device, "y", &[3]));
        (0..2100).for_each(|_| accumulate::accumulate(&mut g, &x, &y).unwrap());
        let plan = g.finish().unwrap();
        let profile = match plan.profile(1) {
            Err(error @ Error::Argument { argument: "device", .. }) => {
                common::not_tested(&format!("timestamps: {error}"));
                continue;
            }
            profile => profile.unwrap(),
        };
        assert_eq!(profile.rows()[0].calls, 2100, "{}", device.describe());
        assert_eq!(y.to_vec().unwrap(), [2100.0, 4200.0, 6300.0], "{}", device.describe());
    }
}

/// A step run by hand, here to profile it, is a step like the others: its loss is in its place in the log.
#[test]
fn a_profiled_step_is_in_the_log() {
    for device in f32_devices() {
        let (mut trainer, _) = trainer(&device, SMALL, 3, 4, false);
        let (mut plain, _) = self::trainer(&device, SMALL, 3, 4, false);
        trainer.step().unwrap();
        let profile = match trainer.plan().profile(2) {
            Err(error @ Error::Argument { argument: "device", .. }) => {
                common::not_tested(&format!("timestamps: {error}"));
                continue;
            }
            profile => profile.unwrap(),
        };
        trainer.step().unwrap();
        (0..4).for_each(|_| plain.step().unwrap());
        assert_eq!(trainer.losses().unwrap(), plain.losses().unwrap());
        let rows = profile.rows();
        assert!(rows.iter().any(|row| row.kernel == "rnn_forward" && row.calls == 1), "{profile}");
        let shares: f64 = rows.iter().map(|row| row.share).sum();
        assert!((shares - 1.0).abs() <= 1e-9 && profile.microseconds() > 0.0, "{profile}");
        let trace: serde_json::Value = serde_json::from_str(&profile.trace()).unwrap();
        let PlanCount { dispatches, copies, clears, .. } = trainer.plan().count();
        let timed = if device.is_gpu() { dispatches } else { dispatches + copies + clears };
        assert_eq!(trace.as_array().unwrap().len(), timed);
    }
}

/// The losses of some steps of a network of two layers, and what its plan takes; `spoil` sets all shared memory to NaN before each.
fn steps_of(
    device: &Device,
    (cell, bidirectional, lengths): (Cell, bool, bool),
    (stepwise, shares, spoil): (Option<bool>, bool, bool),
) -> (Vec<f32>, Vec<f32>, u64) {
    const SIZES: [usize; 4] = [40, 12, 33, 40]; // T, B, I, H
    let [steps, batch, inputs, hidden] = SIZES;
    let mut init = Init::new(rng::manual_seed(3));
    let options = RnnOptions::new(inputs, hidden).num_layers(2).bidirectional(bidirectional);
    let recurrent = Recurrent::new(&mut init, "rnn", cell, options).unwrap();
    let output = elman::nn::Linear::new(&mut init, "output", hidden * if bidirectional { 2 } else { 1 }, 50).unwrap();
    let parameters = init.upload(device).unwrap();
    let x = device.upload("x", &[steps, batch, inputs], &common::values(5, steps * batch * inputs)).unwrap();
    let targets = device.targets("targets", &[steps, batch], 50).unwrap();
    targets.write_u32(&common::tokens(6, steps * batch, 50)).unwrap();
    let each = device.lengths("lengths", batch, steps).unwrap();
    each.write_u32(&(0..batch as u32).map(|i| 40 - 3 * i).collect::<Vec<_>>()).unwrap();
    let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        g.set_stepwise(stepwise);
        g.set_sharing(shares);
        let x = g.input(&x)?;
        let x = functional::tanh(g, x)?;
        let (y, _) = match lengths {
            true => recurrent.forward_with_lengths(g, x, InitialState::Zero, &each)?,
            false => recurrent.forward(g, x, InitialState::Zero)?,
        };
        let logits = output.forward(g, y)?;
        cross_entropy(g, logits, &targets, Reduction::Mean)
    })
    .unwrap();
    for _ in 0..3 {
        for memory in trainer.plan().shared_memory().iter().filter(|_| spoil) {
            memory.write(&vec![f32::NAN; memory.len()]).unwrap();
        }
        trainer.step().unwrap();
    }
    let memory = trainer.plan().count().memory;
    let values = parameters.iter().flat_map(|(_, tensor)| tensor.to_vec().unwrap()).collect();
    (trainer.losses().unwrap(), values, memory)
}

/// What intermediate values leave in memory that they share is nothing to those after them; all results are the same, to the bit.
#[test]
fn shared_memory_changes_nothing() {
    for device in f32_devices() {
        for &cell in Cell::ALL {
            for (bidirectional, lengths) in [(false, false), (true, true)] {
                for stepwise in [None, Some(true)] {
                    let network = (cell, bidirectional, lengths);
                    let (losses, parameters, memory) = steps_of(&device, network, (stepwise, false, false));
                    let (shared_losses, shared_parameters, shared) = steps_of(&device, network, (stepwise, true, true));
                    assert!(losses.iter().all(|loss| loss.is_finite()));
                    assert_eq!(losses, shared_losses, "{network:?}, {stepwise:?}");
                    assert!(parameters == shared_parameters, "{network:?}, {stepwise:?}");
                    assert!(shared < memory, "{network:?}, {stepwise:?}: {shared} of {memory} bytes");
                }
            }
        }
    }
}
