//! What is around an optimizer's update: groups of parameters, several batches for each update, a moving average, and what happens
//! where a loss or a gradient is not finite.

mod common;

use common::{Fixture, f32_devices, values};
use elman::data::Array;
use elman::nn::functional::{Loss, Reduction, mse_loss, tanh};
use elman::nn::{Init, Linear, Parameters};
use elman::optim::{Adam, AdamW, Clip, NotFinite, Optimizer, Sgd};
use elman::schedule::Schedule;
use elman::{Device, Error, Evaluator, Graph, Plans, Tensor, Trainer, rng};

struct Network {
    first: Linear,
    second: Linear,
    parameters: Parameters,
}

impl Network {
    fn new(device: &Device) -> Self {
        let mut init = Init::new(rng::manual_seed(777));
        let first = Linear::new(&mut init, "first", 3, 5).unwrap();
        let second = Linear::new(&mut init, "second", 5, 2).unwrap();
        Self { first, second, parameters: init.upload(device).unwrap() }
    }

    fn loss(&self, g: &mut Graph, x: &Tensor, y: &Tensor) -> elman::Result<Loss> {
        let x = g.input(x)?;
        let hidden = self.first.forward(g, x)?;
        let hidden = tanh(g, hidden)?;
        let output = self.second.forward(g, hidden)?;
        mse_loss(g, output, y, Reduction::Mean)
    }

    fn trainer(&self, optimizer: impl Into<Optimizer>) -> Trainer<Plans<'_, 2, Loss>> {
        Trainer::on_batches(&self.parameters, optimizer, |g, [x, y]| self.loss(g, x, y)).unwrap()
    }
}

/// The batch of a step of the fixture.
fn batch(step: usize) -> [Array; 2] {
    let of = |columns: usize, factor: f64, f: fn(f64) -> f64, by: f64| {
        let value = |i: usize| f(((i / columns) as f64 * factor + (i % columns) as f64) * by) as f32;
        Array::new("x", &[4, columns], (0..4 * columns).map(value).collect()).unwrap()
    };
    [of(3, 3.0, f64::sin, 1.0 + step as f64), of(2, 2.0, f64::cos, 2.0 + step as f64)]
}

/// `lr / (1 + update)`.
struct Harmonic(f64);

impl Schedule for Harmonic {
    fn lr(&self, step: usize) -> f64 {
        self.0 / (1.0 + step as f64)
    }
}

fn all_options() -> Optimizer {
    let adam = |lr, weight_decay| AdamW(Adam { weight_decay, ..Adam::new(lr) });
    adam(1e-2, 0.1)
        .group(&["first"], adam(2e-2, 0.0))
        .group(&["first.bias"], adam(1e-2, 0.1))
        .group(&["second.weight"], adam(1e-2, 0.5))
        .schedule(Harmonic(1e-2))
        .clip(Clip::Norm(0.2))
        .accumulate(3)
        .average(0.7)
}

fn assert_near(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let near = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() < 1e-5;
    assert!(got.iter().zip(want).all(near), "{what}: {got:?} {want:?}");
}

#[test]
fn updates_are_pytorchs() {
    let want = Fixture::open("updates");
    for device in f32_devices() {
        let network = Network::new(&device);
        let mut trainer = network.trainer(all_options());
        (0..12).for_each(|step| trainer.step_on(&batch(step)).unwrap());
        assert_near("losses", &trainer.losses().unwrap(), &want.get("losses").1);
        for (name, tensor) in network.parameters.iter() {
            assert_near(name, &tensor.to_vec().unwrap(), &want.get(name).1);
        }
        let averaged = trainer.averaged().unwrap().clone();
        for (name, tensor) in averaged.iter() {
            assert_near(name, &tensor.to_vec().unwrap(), &want.get(&format!("average.{name}")).1);
        }
        // It is what the same modules take elsewhere.
        let of = |parameters: &Parameters| {
            let mut evaluator = Evaluator::on_batches(parameters, |g, [x, y]| Ok([network.loss(g, x, y)?])).unwrap();
            evaluator.means([batch(0)]).unwrap()[0]
        };
        assert_ne!(of(&averaged), of(&network.parameters));
    }
}

/// In the midst of an update's batches too.
#[test]
fn all_of_it_is_in_a_checkpoint() {
    for device in f32_devices() {
        let network = || Network::new(&device);
        let (whole, first, second) = (network(), network(), network());
        let [mut a, mut b, mut c] = [&whole, &first, &second].map(|network| network.trainer(all_options()));
        (0..12).for_each(|step| a.step_on(&batch(step)).unwrap());
        (0..5).for_each(|step| b.step_on(&batch(step)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("last.safetensors");
        b.save(&file).unwrap();
        c.resume(&file).unwrap();
        (5..12).for_each(|step| c.step_on(&batch(step)).unwrap());
        assert_eq!(a.losses().unwrap()[5..], c.losses().unwrap(), "{device:?}");
        assert_eq!(a.checkpoint().unwrap(), c.checkpoint().unwrap(), "{device:?}");
    }
}

#[test]
fn settings_of_groups_are_checked() {
    let network = Network::new(&Device::cpu());
    let refused = |optimizer: Optimizer, words: &str| {
        let Err(error) = Trainer::on_batches(&network.parameters, optimizer, |g, [x, y]| network.loss(g, x, y)) else {
            panic!("{words:?} was taken");
        };
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(Adam::new(0.1).group(&["third"], Adam::new(0.1)), "`name` must be one of [\"first.weight\"");
    refused(Adam::new(0.1).group(&["firs"], Adam::new(0.1)), "or of a module");
    refused(Adam::new(0.1).group(&["first"], Sgd::new(0.1)), "exp_avg");
    refused(Adam::new(0.1).group(&["first"], Adam::new(-0.1)), "lr");
    refused(Adam::new(0.1).accumulate(0), "accumulate");
    refused(Adam::new(0.1).average(1.0), "average");
    refused(Adam::new(0.1).average(f64::NAN), "average");
    let mut trainer = network.trainer(Sgd::new(0.1).group(&["first"], Sgd::new(1e30)));
    assert!(trainer.set_lr(1e10).unwrap_err().to_string().contains("lr"));
}

/// The parameters after each number of steps.
fn parameters(network: &Network) -> Vec<Vec<f32>> {
    network.parameters.iter().map(|(_, tensor)| tensor.to_vec().unwrap()).collect()
}

/// A batch whose targets are so far away: of 1e19, the gradient is finite, its squared norm and the loss are not; of 3e38, the
/// gradient of the first layer is not either.
fn far(y: f32) -> [Array; 2] {
    let [x, _] = batch(0);
    [x, Array::new("y", &[4, 2], vec![y; 8]).unwrap()]
}

#[test]
fn a_training_stops_before_what_is_not_finite() {
    let bad = [(1e19, "their squares are not"), (3e38, "the gradient of `first.weight` was not finite at position 0")];
    for (device, (y, words)) in f32_devices().into_iter().flat_map(|device| bad.map(|bad| (device.clone(), bad))) {
        let network = Network::new(&device);
        // So that a gradient grows on its way to the first layer.
        network.parameters.get("second.weight").unwrap().write(&[1e3; 10]).unwrap();
        let mut trainer = network.trainer(Adam::new(1e-2).average(0.9));
        (0..3).for_each(|step| trainer.step_on(&batch(step)).unwrap());
        let checkpoint = trainer.checkpoint().unwrap();
        let good = parameters(&network);
        trainer.step_on(&far(y)).unwrap();
        (4..9).for_each(|step| trainer.step_on(&batch(step)).unwrap());
        assert_eq!(parameters(&network), good, "{device:?}");
        // It is no time to write a checkpoint, and it says so as often as it is asked.
        for _ in 0..2 {
            let error = trainer.checkpoint().unwrap_err();
            assert!(matches!(error, Error::NotFinite { step: 3, .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let error = trainer.losses().unwrap_err();
        assert!(matches!(error, Error::NotFinite { step: 3, .. }), "{error}");
        assert_eq!(trainer.losses().unwrap().len(), 3);
        // Told once, it goes on if it is asked to; or from the checkpoint.
        trainer.step_on(&batch(3)).unwrap();
        assert_eq!(trainer.losses().unwrap().len(), 1);
        assert_ne!(parameters(&network), good, "{device:?}");
        trainer.restore(&checkpoint).unwrap();
        assert_eq!(parameters(&network), good, "{device:?}");
    }
}

#[test]
fn a_bad_update_is_left_out_if_asked() {
    for device in f32_devices() {
        let (with, without) = (Network::new(&device), Network::new(&device));
        let mut trainer = with.trainer(Adam::new(1e-2).not_finite(NotFinite::Skip));
        let mut expected = without.trainer(Adam::new(1e-2));
        for step in 0..6 {
            if step % 2 == 1 {
                trainer.step_on(&far(3e38)).unwrap();
            }
            trainer.step_on(&batch(step)).unwrap();
            expected.step_on(&batch(step)).unwrap();
        }
        assert_eq!(trainer.updates_left_out().unwrap(), 3);
        assert_eq!(parameters(&with), parameters(&without), "{device:?}");
        // Nobody has to be told of what was left out, who goes on from there.
        let network = Network::new(&device);
        let mut strict = network.trainer(Adam::new(1e-2));
        strict.restore(&trainer.checkpoint().unwrap()).unwrap();
        strict.step_on(&batch(6)).unwrap();
        assert_eq!((strict.losses().unwrap().len(), strict.updates_left_out().unwrap()), (1, 3));
        let (losses, expected) = (trainer.losses().unwrap(), expected.losses().unwrap());
        assert_eq!(losses.len(), 9);
        assert_eq!([losses[0], losses[2], losses[8]], [expected[0], expected[1], expected[5]]);
    }
}

/// In the midst of the steps of one update, a bad one costs that update, and a checkpoint of any of them is finite and goes on to the
/// same bits.
#[test]
fn a_bad_step_among_several_of_an_update() {
    for (device, not_finite) in
        f32_devices().into_iter().flat_map(|device| [NotFinite::Skip, NotFinite::Stop].map(|how| (device.clone(), how)))
    {
        let optimizer = || Adam::new(1e-2).accumulate(4).not_finite(not_finite);
        let run = |save_at: Option<usize>| {
            let network = Network::new(&device);
            let mut trainer = network.trainer(optimizer());
            for step in 0..12 {
                trainer.step_on(&if step == 5 { far(3e38) } else { batch(step) }).unwrap();
                if step == 5 && not_finite == NotFinite::Stop {
                    trainer.losses().unwrap_err();
                }
                if save_at == Some(step) {
                    let bytes = trainer.checkpoint().unwrap().to_bytes().unwrap();
                    let file = tempfile::NamedTempFile::new().unwrap();
                    std::fs::write(file.path(), bytes).unwrap();
                    let later = Network::new(&device);
                    let mut trainer = later.trainer(optimizer());
                    trainer.resume(file.path()).unwrap();
                    (step + 1..12).for_each(|step| trainer.step_on(&batch(step)).unwrap());
                    return (parameters(&later), trainer.updates_left_out().unwrap());
                }
            }
            (parameters(&network), trainer.updates_left_out().unwrap())
        };
        let want = run(None);
        assert_eq!(want.1, 1, "{device:?}");
        for save_at in 5..12 {
            assert!(run(Some(save_at)) == want, "{device:?}, {not_finite:?}, saved after step {save_at}");
        }
    }
}

/// A rate at which any training explodes.
#[test]
fn an_explosion_leaves_finite_parameters() {
    for device in f32_devices() {
        let network = Network::new(&device);
        let mut trainer = network.trainer(Sgd::new(1e6));
        let error =
            (0..500).find_map(|step| trainer.step_on(&batch(step)).and_then(|()| trainer.losses().map(|_| ())).err());
        let error = error.expect("it explodes").to_string();
        assert!(error.contains("lower the learning rate"), "{error}");
        assert!(parameters(&network).concat().iter().all(|value| value.is_finite()), "{device:?}");
        elman::io::save(tempfile::NamedTempFile::new().unwrap().path(), &network.parameters, Default::default())
            .unwrap();
    }
}

/// A NaN planted in a weight, a state of the optimizer, or an input is named.
#[test]
fn what_went_bad_first_is_named() {
    for device in f32_devices() {
        let network = Network::new(&device);
        let mut trainer = network.trainer(Adam::new(1e-2));
        trainer.step_on(&batch(0)).unwrap();
        trainer.losses().unwrap();
        let weight = network.parameters.get("second.weight").unwrap();
        let good = weight.to_vec().unwrap();
        let mut bad = good.clone();
        bad[7] = f32::NAN;
        weight.write(&bad).unwrap();
        trainer.step_on(&batch(1)).unwrap();
        let error = trainer.losses().unwrap_err().to_string();
        assert!(error.contains("step 1") && error.contains("`second.weight` holds NaN at position 7"), "{error}");
        weight.write(&good).unwrap();
        trainer.step_on(&batch(2)).unwrap();
        trainer.losses().unwrap();
        let bad = Array::new("x", &[4, 3], [values(1, 11), vec![f32::NAN]].concat()).unwrap();
        let [_, y] = batch(3);
        let error = trainer.step_on(&[bad, y]).unwrap_err().to_string();
        assert!(error.contains("`x`") && error.contains("11"), "{error}");
    }
}
