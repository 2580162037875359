//! A training that goes on from a checkpoint is the same, to the bit, as one that was never interrupted.

mod common;

use std::path::Path;

use common::f32_devices;
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Init, LanguageModel as _, Parameters, State};
use elman::optim::{Adagrad, Adam, AdamW, Clip, Optimizer, RmsProp, Sgd};
use elman::schedule::{CosineAnnealing, Schedule as _};
use elman::text::{Corpus, Windows};
use elman::{Checkpoint, Device, Error, Trainer, rng};

/// Two layers with dropout between them, on streams with the state carried, or on windows in an order of their own.
struct Training {
    trainer: Trainer,
    parameters: Parameters,
    state: State,
    windows: Windows,
    rng: rng::Rng,
    order: Vec<u32>,
    streams: bool,
}

const BATCH: usize = 3;

impl Training {
    fn new(device: &Device, cell: Cell, optimizer: impl Into<Optimizer>, streams: bool) -> Self {
        let mut init = Init::new(rng::manual_seed(5));
        let options = CharRnnOptions::new(11, 4, 6).cell(cell).num_layers(2).dropout(0.3);
        let model = CharRnn::new(&mut init, options).unwrap();
        let parameters = init.upload(device).unwrap();
        let tokens: Vec<u32> = (0..200).map(|i| i * i % 11).collect();
        let corpus = Corpus::new(device, &tokens, 11).unwrap();
        let windows = match streams {
            true => Windows::streams(&corpus, 0..200, BATCH, 5).unwrap(),
            false => Windows::new(&corpus, (0..40).collect(), 5).unwrap(),
        };
        let state = model.state(device, BATCH).unwrap();
        let trainer = Trainer::new(&parameters, optimizer, |g| {
            let batch = windows.batch_of_every_step(g, BATCH)?;
            let initial = if streams { InitialState::Carried(&state) } else { InitialState::Zero };
            let logits = model.forward_every_step(g, &batch.tokens, initial)?;
            cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        });
        Self { trainer: trainer.unwrap(), parameters, state, windows, rng: init.rng, order: Vec::new(), streams }
    }

    /// Steps, with an order for each epoch; the losses.
    fn run(&mut self, steps: usize) -> Vec<f32> {
        let epoch = self.windows.batches(BATCH) as u64;
        for _ in 0..steps {
            if self.trainer.steps().is_multiple_of(epoch) {
                self.trainer.start_epoch().unwrap();
                self.state.zero().unwrap();
                if !self.streams {
                    self.order = self.rng.randperm(self.windows.len());
                    self.windows.set_order(&self.order).unwrap();
                }
            }
            self.trainer.step().unwrap();
        }
        self.trainer.losses().unwrap()
    }

    fn checkpoint(&self) -> Checkpoint {
        let mut checkpoint = self.trainer.checkpoint().unwrap();
        checkpoint.set_state("training", &self.state).unwrap();
        checkpoint.set("rng", &self.rng).unwrap();
        checkpoint.set_order("order", &self.order);
        checkpoint
    }

    fn resume(&mut self, checkpoint: &Checkpoint) {
        self.trainer.restore(checkpoint).unwrap();
        checkpoint.restore_state("training", &self.state).unwrap();
        self.rng = checkpoint.get("rng").unwrap();
        self.order = checkpoint.order("order").unwrap();
        if !self.streams && !self.order.is_empty() {
            self.windows.set_order(&self.order).unwrap();
        }
    }
}

fn optimizers() -> Vec<Optimizer> {
    let cosine = || CosineAnnealing::new(2e-2, 30, 1e-3).unwrap();
    vec![
        Adam::new(1e-2).into(),
        AdamW::new(1e-2).clip(Clip::Norm(0.5)).schedule(cosine()),
        Sgd { momentum: 0.9, dampening: 0.2, ..Sgd::new(0.1) }.into(),
        Sgd::new(0.1).schedule(cosine().every(3).unwrap()),
        RmsProp { momentum: 0.5, centered: true, ..RmsProp::new(1e-2) }.into(),
        RmsProp::new(1e-2).into(),
        Adagrad { lr_decay: 0.1, ..Adagrad::new(1e-2) }.into(),
    ]
}

/// Each cell with each optimizer, on streams and on windows in random order: 40 steps are 17 steps, a file, and 23 steps of
/// another trainer; also where the epoch ends between.
#[test]
fn a_training_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("last.safetensors");
    for device in f32_devices() {
        for (cell, streams) in [(Cell::Tanh, true), (Cell::Gru, true), (Cell::Lstm, true), (Cell::Gru, false)] {
            for optimizer in optimizers() {
                let new = || Training::new(&device, cell, optimizer.clone(), streams);
                let what = format!("{device:?} {cell:?} {streams} {optimizer:?}");
                let (mut whole, mut first, mut second) = (new(), new(), new());
                let losses = whole.run(40);
                let mut parts = first.run(17);
                first.checkpoint().save(&file).unwrap();
                // It comes from another training.
                second.run(3);
                let checkpoint = Checkpoint::load(&file).unwrap();
                assert_eq!(checkpoint, first.checkpoint(), "{what}");
                second.resume(&checkpoint);
                assert_eq!((second.trainer.steps(), checkpoint.steps()), (17, 17));
                parts.extend(second.run(23));
                assert_eq!(parts, losses, "{what}");
                assert_eq!(second.checkpoint(), whole.checkpoint(), "{what}");
                assert!(second.checkpoint().to_bytes().unwrap() == whole.checkpoint().to_bytes().unwrap(), "{what}");
            }
        }
    }
}

/// A learning rate that was set by hand goes on; dropout and the order differ from step to step, so a checkpoint without the clock
/// would show.
#[test]
fn what_was_set_goes_on() {
    let device = Device::cpu();
    let new = || Training::new(&device, Cell::Gru, Adam::new(1e-2), true);
    let (mut first, mut second) = (new(), new());
    first.run(5);
    first.trainer.set_lr(3e-3).unwrap();
    second.resume(&first.checkpoint());
    assert_eq!(second.trainer.lr(), 3e-3);
    assert_eq!(first.run(5), second.run(5));
    let mut other = new();
    let mut without = first.checkpoint();
    without.set("rng", &rng::manual_seed(1)).unwrap();
    other.trainer.restore(&without).unwrap();
    assert_ne!(first.run(5), other.run(5), "the carried state is missing");
}

fn refused<T: std::fmt::Debug>(path: &Path, what: &str, result: elman::Result<T>) {
    let error = result.unwrap_err();
    assert!(
        matches!(error, Error::ModelFile { .. }) && error.to_string().contains(what),
        "{}: {error}",
        path.display()
    );
}

/// Damage anywhere, other files, other networks, other optimizers: an error, and nothing is changed.
#[test]
fn what_does_not_fit_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("last.safetensors");
    let device = Device::cpu();
    let mut training = Training::new(&device, Cell::Gru, Adam::new(1e-2), true);
    training.run(4);
    let checkpoint = training.checkpoint();
    checkpoint.save(&file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    // One bit, at many places; and an end that is missing.
    for at in (0..bytes.len()).step_by(97) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&file, &damaged).unwrap();
        assert!(Checkpoint::load(&file).is_err(), "byte {at} of {}", bytes.len());
    }
    for length in (0..bytes.len()).step_by(331) {
        std::fs::write(&file, &bytes[..length]).unwrap();
        assert!(matches!(Checkpoint::load(&file), Err(Error::ModelFile { .. })), "{length} bytes");
    }
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(Checkpoint::load(&file).unwrap(), checkpoint);
    // Its parameters alone; and a file of parameters alone.
    elman::io::load(&file, &training.parameters).unwrap();
    elman::io::save(&file, &training.parameters, Default::default()).unwrap();
    refused(&file, "it is no checkpoint", Checkpoint::load(&file));
    assert!(matches!(Checkpoint::load(folder.path().join("missing")), Err(Error::Io { .. })));

    let before = training.checkpoint();
    for (other, what) in [
        (Training::new(&device, Cell::Lstm, Adam::new(1e-2), true), "[18, 4]"),
        (Training::new(&device, Cell::Gru, Sgd::new(1e-2), true), "optimizer.exp_avg"),
    ] {
        let error = training.trainer.restore(&other.checkpoint()).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        let error = training.checkpoint().restore_state("evaluation", &training.state).unwrap_err();
        assert!(error.to_string().contains("state.training.h"), "{error}");
    }
    assert_eq!(training.checkpoint(), before);
    assert!(checkpoint.get::<u32>("nothing").unwrap_err().to_string().contains("rng"));
    assert!(checkpoint.get::<u32>("rng").is_err() && checkpoint.order("nothing").is_err());
}

/// What is not finite is not written over what is.
#[test]
fn what_is_not_finite_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("last.safetensors");
    let mut training = Training::new(&Device::cpu(), Cell::Gru, Adam::new(1e-2), true);
    training.run(2);
    training.checkpoint().save(&file).unwrap();
    let good = std::fs::read(&file).unwrap();
    let weight = training.parameters.iter().next().unwrap().1;
    let mut values = weight.to_vec().unwrap();
    values[1] = f32::NAN;
    weight.write(&values).unwrap();
    let error = training.checkpoint().save(&file).unwrap_err().to_string();
    assert!(error.contains("NaN at index 1"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), good);
}

/// A generator that serde kept goes on with the same draws, normal ones too, of which one may be left over.
#[test]
fn a_generator_is_kept() {
    let mut draws = rng::manual_seed(3);
    for n in [0, 1, 3, 700] {
        draws.randn(n);
        let text = serde_json::to_string(&draws).unwrap();
        let mut again: rng::Rng = serde_json::from_str(&text).unwrap();
        assert_eq!((again.randn(5), again.rand(3)), (draws.randn(5), draws.rand(3)));
    }
    let mut damaged: serde_json::Value = serde_json::to_value(&draws).unwrap();
    damaged["used"] = 625.into();
    assert!(serde_json::from_value::<rng::Rng>(damaged).is_err());
}

/// Names that would be taken for moments, states or data are refused at once, not when the training is to go on.
#[test]
fn names_of_parameters_do_not_collide() {
    let mut init = Init::new(rng::manual_seed(1));
    let layer = elman::nn::Linear::new(&mut init, "state", 2, 1).unwrap();
    let parameters = init.upload(&Device::cpu()).unwrap();
    let trainer = Trainer::on_batches(&parameters, Adam::new(0.1), |g, [x, y]| {
        let x = g.input(x)?;
        let output = layer.forward(g, x)?;
        elman::nn::functional::mse_loss(g, output, y, Reduction::Mean)
    });
    let error = trainer.unwrap().checkpoint().unwrap_err().to_string();
    assert!(error.contains("another name") && error.contains("state.weight"), "{error}");
}
