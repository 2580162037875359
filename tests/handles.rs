//! Handles know their owner, and what has no gradient stays as it is.

mod common;

use common::{f32_devices, values};
use elman::generate::{Generator, SlidingWindow};
use elman::nn::functional::{self, InitialState, Reduction, States};
use elman::nn::{CharRnn, CharRnnOptions, Embedding, GruCell, Init, Linear, Parameters, Recurrent, RnnOptions};
use elman::optim::{Adagrad, Adam, AdamW, Clip, Optimizer, RmsProp, Sgd};
use elman::{Device, Error, Evaluator, Graph, Result, Tensor, Trainer, Var, rng};

/// x `[4, 3]` -> first `[4, 5]` -> second `[4, 2]`, and a third that nothing needs.
struct Network {
    first: Linear,
    second: Linear,
    third: Linear,
    parameters: Parameters,
    x: Tensor,
    y: Tensor,
}

fn network(device: &Device) -> Network {
    let mut init = Init::new(rng::manual_seed(5));
    let [first, second, third] = [("first", 3, 5), ("second", 5, 2), ("third", 5, 4)]
        .map(|(name, inputs, outputs)| Linear::new(&mut init, name, inputs, outputs).unwrap());
    Network {
        first,
        second,
        third,
        parameters: init.upload(device).unwrap(),
        x: device.upload("x", &[4, 3], &values(1, 12)).unwrap(),
        y: device.upload("y", &[4, 2], &values(2, 8)).unwrap(),
    }
}

impl Network {
    fn loss(&self, g: &mut Graph, detach: bool) -> Result<functional::Loss> {
        let x = g.input(&self.x)?;
        let mut hidden = self.first.forward(g, x)?;
        if detach {
            hidden = functional::detach(g, hidden)?;
        }
        let y = self.second.forward(g, hidden)?;
        functional::mse_loss(g, y, &self.y, Reduction::Mean)
    }

    fn values(&self, name: &str) -> Vec<Vec<f32>> {
        let of = self.parameters.iter().filter(|(full, _)| full.starts_with(name));
        of.map(|(_, tensor)| tensor.to_vec().unwrap()).collect()
    }
}

#[track_caller]
fn assert_of_another(result: Result<impl Sized>, what: &str) {
    match result {
        Err(Error::Argument { argument, got, .. }) => assert_eq!((argument, &got[..]), (what, "one of another graph")),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("taken for its own"),
    }
}

/// Whatever takes a value refuses one of another graph, whether that has fewer values or more.
#[test]
fn values_of_another_graph_are_refused() {
    let device = Device::cpu();
    let Network { first, parameters, x, y, .. } = &network(&device);
    let mut init = Init::new(rng::manual_seed(1));
    let recurrent = Recurrent::new(&mut init, "rnn", elman::nn::Cell::Gru, RnnOptions::new(3, 4)).unwrap();
    let cell = GruCell::new(&mut init, "cell", RnnOptions::new(3, 4)).unwrap();
    let others = init.upload(&device).unwrap();
    let index = device.tokens("index", &[2], 3).unwrap();
    type Use<'a> = &'a dyn Fn(&mut Graph, Var) -> Result<()>;
    let uses: [Use<'_>; 14] = [
        &|g, v| functional::relu(g, v).map(drop),
        &|g, v| functional::log_softmax(g, v).map(drop),
        &|g, v| functional::reshape(g, v, &[12]).map(drop),
        &|g, v| functional::narrow(g, v, 0, 0, 1).map(drop),
        &|g, v| functional::select(g, v, 0, 0).map(drop),
        &|g, v| functional::last(g, v).map(drop),
        &|g, v| functional::unbind(g, v).map(drop),
        &|g, v| functional::concat(g, &[v, v], 0).map(drop),
        &|g, v| functional::embedding(g, v, &index).map(drop),
        &|g, v| functional::dropout(g, v, 0.5, 1).map(drop),
        &|g, v| functional::mse_loss(g, v, y, Reduction::Mean).map(drop),
        &|g, v| functional::mul(g, v, v).map(drop),
        &|g, v| g.backward(&[], &[(v, x)]),
        &|g, v| g.tensor(v).map(drop),
    ];
    let mut other = Graph::new(parameters);
    let early = other.input(x).unwrap();
    let late = (0..50).map(|_| other.input(x).unwrap()).last().unwrap();
    for of_use in uses {
        for stranger in [early, late] {
            let mut g = Graph::new(parameters);
            g.input(x).unwrap();
            assert_of_another(of_use(&mut g, stranger), "value");
        }
    }
    let mut g = Graph::new(parameters);
    assert_of_another(first.forward(&mut g, early), "value");
    let mut g = Graph::new(&others);
    let own = g.input(&device.upload("x", &[2, 4, 3], &values(1, 24)).unwrap()).unwrap();
    let state = InitialState::Given(States::from(late));
    assert_of_another(recurrent.forward(&mut g, late, InitialState::Zero), "value");
    assert_of_another(recurrent.forward(&mut g, own, state), "value");
    assert_of_another(cell.forward(&mut g, early, None), "value");
    assert_of_another(functional::recurrence(&mut g, elman::nn::Cell::Tanh, own, late, None, None, None), "value");
    assert_eq!((g.shape(late), g.is_differentiable(late), g.gradient(late).is_none()), (&[][..], false, true));
}

/// As people trip over it: a value made before the closure, and a loss of another graph.
#[test]
fn a_trainer_takes_values_of_its_own_graph_alone() {
    let device = Device::cpu();
    let network = network(&device);
    let mut outside = Graph::new(&network.parameters);
    let x = outside.input(&network.x).unwrap();
    let trainer = Trainer::new(&network.parameters, Sgd::new(0.1), |g| {
        let hidden = network.first.forward(g, x)?;
        let y = network.second.forward(g, hidden)?;
        functional::mse_loss(g, y, &network.y, Reduction::Mean)
    });
    assert_of_another(trainer, "value");
    let loss = network.loss(&mut outside, false).unwrap();
    assert_of_another(Trainer::new(&network.parameters, Sgd::new(0.1), |_| Ok(loss.clone())), "loss");
    assert_of_another(Evaluator::new(&network.parameters, |_| Ok(loss)), "loss");
}

#[test]
fn a_clone_of_init_has_parameters_of_its_own() {
    let device = Device::cpu();
    let mut one = Init::new(rng::manual_seed(0));
    let shared = Linear::new(&mut one, "shared", 3, 2).unwrap();
    let mut other = one.clone();
    let own = Linear::new(&mut one, "layer", 3, 2).unwrap();
    let others = Linear::new(&mut other, "layer", 3, 2).unwrap();
    for (init, layer, stranger) in [(&one, &own, &others), (&other, &others, &own)] {
        let mut g = Graph::new(&init.upload(&device).unwrap());
        let x = g.input(&device.upload("x", &[1, 3], &[1., 2., 3.]).unwrap()).unwrap();
        assert!(shared.forward(&mut g, x).is_ok() && layer.forward(&mut g, x).is_ok());
        let error = stranger.forward(&mut g, x).unwrap_err();
        assert!(matches!(error, Error::Argument { argument: "module", .. }), "{error}");
    }
}

#[test]
fn backward_is_for_graphs_with_gradients_and_once() {
    let network = network(&Device::cpu());
    let mut g = Graph::inference(&network.parameters);
    let loss = network.loss(&mut g, false).unwrap();
    assert!(g.backward(&[&loss], &[]).unwrap_err().to_string().contains("inference"));
    let mut g = Graph::new(&network.parameters);
    let loss = network.loss(&mut g, false).unwrap();
    g.backward(&[&loss], &[]).unwrap();
    assert!(g.backward(&[&loss], &[]).unwrap_err().to_string().contains("already"));
    // A closure that does it itself.
    let trainer = Trainer::new(&network.parameters, Sgd::new(0.1), |g| {
        let loss = network.loss(g, false)?;
        g.backward(&[&loss], &[])?;
        Ok(loss)
    });
    assert!(trainer.err().unwrap().to_string().contains("in the closure of the Trainer"));
}

#[test]
fn a_loss_that_no_parameter_changes_is_refused() {
    let network = network(&Device::cpu());
    let constant = Trainer::new(&network.parameters, Sgd::new(0.1), |g| {
        let y = g.input(&network.y)?;
        functional::mse_loss(g, y, &network.y, Reduction::Mean)
    });
    assert!(constant.err().unwrap().to_string().contains("no gradient reaches any"));
    let names: Vec<_> = network.parameters.names().collect();
    network.parameters.freeze(&names).unwrap();
    let frozen = Trainer::new(&network.parameters, Sgd::new(0.1), |g| network.loss(g, false));
    assert!(frozen.err().unwrap().to_string().contains("not frozen"));
}

/// A parameter without a gradient stays as it is, to the bit, whatever the optimizer would do with a gradient of 0; the others
/// train as if it were not there.
#[test]
fn parameters_without_a_gradient_stay_as_they_are() {
    let momentum = Sgd { momentum: 0.9, weight_decay: 0.1, ..Sgd::new(0.1) };
    let rms = RmsProp { momentum: 0.9, weight_decay: 0.1, centered: true, ..RmsProp::new(0.01) };
    let optimizers: [Optimizer; 5] = [
        AdamW::new(0.1).into(),
        Optimizer::from(momentum).clip(Clip::Norm(0.1)),
        rms.into(),
        Adam { weight_decay: 0.1, ..Adam::new(0.1) }.into(),
        Adagrad { weight_decay: 0.1, ..Adagrad::new(0.1) }.into(),
    ];
    for (device, optimizer) in f32_devices().into_iter().flat_map(|d| optimizers.clone().map(|o| (d.clone(), o))) {
        // Which layers stay: those that are not in the loss, behind `detach`, and frozen.
        for (detach, frozen, stays) in [
            (false, None, &["third"][..]),
            (true, None, &["first", "third"]),
            (false, Some("second"), &["second", "third"]),
        ] {
            let network = network(&device);
            if let Some(layer) = frozen {
                network.parameters.freeze(&[&format!("{layer}.weight"), &format!("{layer}.bias")]).unwrap();
            }
            let before = ["first", "second", "third"].map(|name| (name, network.values(name)));
            // What another graph has left there counts for nothing.
            let mut other = Graph::new(&network.parameters);
            let x = other.input(&network.x).unwrap();
            let hidden = network.first.forward(&mut other, x).unwrap();
            let third = network.third.forward(&mut other, hidden).unwrap();
            let seed = device.upload("seed", &[4, 4], &[100.0; 16]).unwrap();
            other.backward(&[], &[(third, &seed)]).unwrap();
            let other = other.finish().unwrap();

            let mut trainer =
                Trainer::new(&network.parameters, optimizer.clone(), |g| network.loss(g, detach)).unwrap();
            for _ in 0..3 {
                other.run().unwrap();
                trainer.step().unwrap();
            }
            let losses = trainer.losses().unwrap();
            for (name, before) in before {
                let is_same = network.values(name) == before;
                assert_eq!(is_same, stays.contains(&name), "{name}, {optimizer:?} on {}", device.describe());
            }
            if frozen.is_none() && !detach {
                let mut init = Init::new(rng::manual_seed(5));
                let first = Linear::new(&mut init, "first", 3, 5).unwrap();
                let second = Linear::new(&mut init, "second", 5, 2).unwrap();
                let parameters = init.upload(&device).unwrap();
                let alone = Network { first, second, parameters, ..network };
                let mut trainer = Trainer::new(&alone.parameters, optimizer.clone(), |g| alone.loss(g, false)).unwrap();
                (0..3).for_each(|_| trainer.step().unwrap());
                assert_eq!(trainer.losses().unwrap(), losses, "{optimizer:?} on {}", device.describe());
            }
        }
    }
    let error = network(&Device::cpu()).parameters.freeze(&["first.weight", "fourth.weight"]).unwrap_err();
    assert!(error.to_string().contains("fourth.weight"), "{error}");
}

#[test]
fn a_loss_that_is_not_finite_is_one_error() {
    for device in f32_devices() {
        let network = network(&device);
        let mut trainer = Trainer::new(&network.parameters, Sgd::new(0.1), |g| network.loss(g, false)).unwrap();
        (0..3).for_each(|_| trainer.step().unwrap());
        let (_, weight) = network.parameters.iter().next().unwrap();
        weight.write(&vec![f32::NAN; weight.len()]).unwrap();
        (0..300).for_each(|_| trainer.step().unwrap());
        let error = trainer.losses().unwrap_err();
        assert!(matches!(error, Error::NotFinite { step: 3, .. }), "{error}");
        assert_eq!(trainer.losses().unwrap().len(), 3);
        assert!(trainer.losses().unwrap().is_empty());
    }
}

/// An evaluator gives its own losses and no more, also after its plan was run by hand.
#[test]
fn an_evaluation_is_of_as_many_batches_as_were_asked_for() {
    for device in f32_devices() {
        let network = network(&device);
        let mut evaluator = Evaluator::new(&network.parameters, |g| network.loss(g, false)).unwrap();
        let want = evaluator.losses(1).unwrap()[0];
        evaluator.plan().run_times(3).unwrap();
        network.y.write(&values(9, 8)).unwrap();
        let losses = evaluator.losses(1).unwrap();
        assert!(losses.len() == 1 && losses[0] != want, "{losses:?} after {want}");
        network.y.write(&values(2, 8)).unwrap();
        evaluator.plan().run_times(3).unwrap();
        assert_eq!(evaluator.losses(1).unwrap(), [want]);
    }
}

/// Settings are checked as the f32 that kernels take.
#[test]
fn settings_are_checked_as_what_they_will_be() {
    let network = network(&Device::cpu());
    let sgd = Sgd::new(0.1);
    let cases: [(&str, Optimizer); 6] = [
        ("clip norm", Optimizer::from(sgd).clip(Clip::Norm(1e-46))),
        ("clip value", Optimizer::from(sgd).clip(Clip::Value(1e-50))),
        ("lr", Sgd::new(1e39).into()),
        ("eps", Adam { eps: 1e-50, ..Adam::new(0.1) }.into()),
        ("betas", Adam { betas: (0.9, 1.0 - 1e-12), ..Adam::new(0.1) }.into()),
        ("weight_decay", Sgd { weight_decay: 1e39, ..sgd }.into()),
    ];
    for (name, optimizer) in cases {
        let error = Trainer::new(&network.parameters, optimizer, |g| network.loss(g, false)).err().unwrap().to_string();
        assert!(error.contains(&format!("`{name}`")) && error.contains("f32"), "{name}: {error}");
    }
    let mut trainer = Trainer::new(&network.parameters, sgd, |g| network.loss(g, false)).unwrap();
    assert!(trainer.set_lr(1e39).is_err());
    trainer.set_lr(0.0).unwrap();
}

/// Everything that has an async form, on an executor that moves futures between threads.
#[test]
fn futures_travel_between_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for device in f32_devices() {
        let work = async move {
            let network = network(&device);
            let mut g = Graph::new(&network.parameters);
            let loss = network.loss(&mut g, false)?;
            g.backward(&[&loss], &[])?;
            g.finish_async().await?.run()?;
            let build = |g: &mut Graph| network.loss(g, false);
            let mut trainer = Trainer::new_async(&network.parameters, Sgd::new(0.1), build).await?;
            trainer.step_async().await?;
            trainer.step_up_to_async(1).await?;
            let mut losses = trainer.losses_async().await?;
            let mut evaluator = Evaluator::new_async(&network.parameters, |g| network.loss(g, false)).await?;
            losses.extend(evaluator.losses_async(1).await?);

            let mut init = Init::new(rng::manual_seed(1));
            let model = CharRnn::new(&mut init, CharRnnOptions::new(9, 3, 5))?;
            Embedding::new(&mut init, "unused", 2, 2)?;
            let parameters = init.upload(&device)?;
            let mut generator = Generator::new_async(&model, &parameters, 1).await?;
            generator.prime(&[1])?;
            let mut text = Vec::new();
            generator
                .generate_async(5, |tokens| {
                    text.extend_from_slice(tokens);
                    true
                })
                .await?;
            SlidingWindow::new_async(&model, &parameters, 2).await?.next_async(&[1, 2]).await?;
            network.x.to_vec_async().await?;
            Device::list_async().await;
            Device::open_async("cpu").await?;
            let state = model_state(&model, &device)?;
            state.fork_async().await?.save_async().await?;
            elman::io::to_bytes_async(&parameters, Default::default(), Default::default()).await?;
            Ok::<_, Error>((losses.len(), text.len()))
        };
        assert_eq!(runtime.block_on(runtime.spawn(work)).unwrap().unwrap(), (3, 5));
    }
}

fn model_state(model: &CharRnn, device: &Device) -> Result<elman::nn::State> {
    elman::nn::LanguageModel::state(model, device, 1)
}
