//! Batches of any shape: one trainer, one optimizer, a plan for each shape; evaluations and predictions of what is handed over.

mod common;

use common::{Fixture, assert_close, f32_devices, widen};
use elman::data::{self, Array};
use elman::nn::functional::{InitialState, Loss, Reduction, cross_entropy, dropout, mse_loss};
use elman::nn::{Embedding, Gru, Init, Linear, Lstm, Parameters, RnnOptions, State};
use elman::optim::{Adam, Sgd};
use elman::{Device, Error, Evaluator, Graph, NO_TARGET, Predictor, Result, Tensor, Trainer, Var, rng};

/// The tagger of the fixture `shapes`.
struct Tagger {
    embedding: Embedding,
    lstm: Lstm,
    output: Linear,
    parameters: Parameters,
}

impl Tagger {
    fn new(device: &Device) -> Result<Self> {
        let mut init = Init::new(rng::manual_seed(777));
        Ok(Self {
            embedding: Embedding::new(&mut init, "embedding", 50, 8)?,
            lstm: Lstm::new(&mut init, "lstm", RnnOptions::new(8, 12).bidirectional(true))?,
            output: Linear::new(&mut init, "output", 24, 5)?,
            parameters: init.upload(device)?,
        })
    }

    fn logits(&self, g: &mut Graph, words: &Tensor, lengths: &Tensor, rate: f64) -> Result<Var> {
        let x = self.embedding.forward(g, words)?;
        let x = dropout(g, x, rate, 3)?;
        let out = self.lstm.forward_with_lengths(g, x, InitialState::Zero, lengths)?;
        self.output.forward(g, out.output)
    }

    fn loss(&self, g: &mut Graph, [words, tags, lengths]: &[Tensor; 3], rate: f64) -> Result<Loss> {
        let logits = self.logits(g, words, lengths, rate)?;
        cross_entropy(g, logits, tags, Reduction::Mean)
    }
}

/// Batch i: 1 + 17 i mod 40 steps, 1 + 7 i mod 6 sentences, as in the fixture.
fn sentences(i: usize) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let (steps, batch) = (1 + 17 * i % 40, 1 + 7 * i % 6);
    let length = |b: usize| if b == 0 { steps } else { 1 + (5 * b + i) % steps };
    let word = |t: usize, b: usize| ((7 * t + 3 * b + 11 * i) % 50) as u32;
    let words = (0..batch).map(|b| (0..length(b)).map(|t| word(t, b)).collect());
    let tags = (0..batch).map(|b| (0..length(b)).map(|t| (word(t, b) + t as u32) % 5).collect());
    (words.collect(), tags.collect())
}

fn batch(i: usize) -> Result<[Array; 3]> {
    let (words, tags) = sentences(i);
    Ok([
        Array::pad_tokens("words", &words, 0, 50)?,
        Array::pad_targets("tags", &tags, 5)?,
        Array::lengths_of("lengths", &words)?,
    ])
}

/// A step for each of 40 shapes in mixed order is 40 steps of PyTorch: the losses on the way, and the weights at the end.
#[test]
fn forty_shapes_are_one_training() {
    let fixture = Fixture::open("shapes");
    for device in f32_devices() {
        let tagger = Tagger::new(&device).unwrap();
        let build = |g: &mut Graph, batch: &[Tensor; 3]| tagger.loss(g, batch, 0.0);
        let mut trainer = Trainer::on_batches(&tagger.parameters, Adam::new(1e-2), build).unwrap();
        (0..40).for_each(|i| trainer.step_on(&batch(i).unwrap()).unwrap());
        assert_eq!((trainer.steps(), trainer.plans().len()), (40, 40));
        let losses = widen(&trainer.losses().unwrap());
        assert_close(&format!("losses on {device:?}"), &losses, &fixture.get("losses").1, 40, 1e-4);
        for (name, tensor) in tagger.parameters.iter() {
            let (got, want) = (widen(&tensor.to_vec().unwrap()), fixture.get(name).1);
            assert_close(&format!("{name} on {device:?}"), &got, &want, want.len(), 1e-4);
        }
    }
}

/// Batches of one shape train as a trainer of fixed tensors does, to the bit; plans that memory has no room for are recorded again,
/// and nothing else changes.
#[test]
fn plans_share_what_a_training_is_made_of() {
    for device in f32_devices() {
        let run = |most_bytes: Option<u64>, batches: &[usize]| {
            let tagger = Tagger::new(&device).unwrap();
            let build = |g: &mut Graph, batch: &[Tensor; 3]| tagger.loss(g, batch, 0.3);
            let mut trainer = Trainer::on_batches(&tagger.parameters, Adam::new(1e-2), build).unwrap();
            most_bytes.into_iter().for_each(|bytes| trainer.plans_mut().set_most_bytes(bytes));
            batches.iter().for_each(|&i| trainer.step_on(&batch(i).unwrap()).unwrap());
            let weights: Vec<_> = tagger.parameters.iter().map(|(_, tensor)| tensor.to_vec().unwrap()).collect();
            let (kept, recorded, bytes) = (trainer.plans().len(), trainer.plans().recorded(), trainer.plans().bytes());
            (trainer.losses().unwrap(), weights, kept, recorded, bytes)
        };
        let order = [3, 1, 7, 3, 1, 7, 3, 3, 9, 1];
        let (losses, weights, kept, recorded, bytes) = run(None, &order);
        assert_eq!((kept, recorded), (4, 4), "{device:?}");
        // The same bits on a second run, with dropout.
        let again = run(None, &order);
        assert_eq!((&losses, &weights), (&again.0, &again.1), "{device:?}");
        // A plan too large by itself is no reason for others to go, but is the first to go.
        let tagger = Tagger::new(&device).unwrap();
        let build = |g: &mut Graph, batch: &[Tensor; 3]| tagger.loss(g, batch, 0.3);
        let mut trainer = Trainer::on_batches(&tagger.parameters, Adam::new(1e-2), build).unwrap();
        [0, 2].into_iter().for_each(|i| trainer.step_on(&batch(i).unwrap()).unwrap());
        let most = trainer.plans().bytes();
        trainer.plans_mut().set_most_bytes(most);
        // The longest, of six sentences.
        trainer.step_on(&batch(23).unwrap()).unwrap();
        let held = trainer.plans().bytes();
        assert!(trainer.plans().len() == 3 && held > 2 * most, "{device:?}: {held} of {most}");
        trainer.step_on(&batch(2).unwrap()).unwrap();
        trainer.step_on(&batch(12).unwrap()).unwrap();
        assert!(trainer.plans().bytes() <= most, "{device:?}");

        // With room for some of the plans, and for none.
        for (most, least_recorded) in [(bytes - 1, 5), (0, 9)] {
            let few = run(Some(most), &order);
            assert!(few.2 < 4 && few.3 >= least_recorded && (few.2 == 1 || few.4 <= most), "{device:?}: {few:?}");
            assert_eq!((&losses, &weights), (&few.0, &few.1), "{device:?}");
        }

        // As a trainer whose tensors are filled by hand.
        let tagger = Tagger::new(&device).unwrap();
        let [words, tags, lengths] = batch(3).unwrap();
        let shape = words.shape();
        let tensors = [
            device.tokens("words", shape, 50).unwrap(),
            device.targets("tags", shape, 5).unwrap(),
            device.lengths("lengths", shape[1], shape[0]).unwrap(),
        ];
        let arrays = [&words, &tags, &lengths];
        tensors.iter().zip(arrays).for_each(|(tensor, array)| tensor.write_u32(array.values_u32()).unwrap());
        let mut fixed = Trainer::new(&tagger.parameters, Adam::new(1e-2), |g| tagger.loss(g, &tensors, 0.3)).unwrap();
        (0..5).for_each(|_| fixed.step().unwrap());
        assert_eq!(fixed.losses().unwrap(), run(None, &[3; 5]).0, "{device:?}");
        // Dropout drops.
        let tagger = Tagger::new(&device).unwrap();
        let without = |g: &mut Graph, batch: &[Tensor; 3]| tagger.loss(g, batch, 0.0);
        let mut trainer = Trainer::on_batches(&tagger.parameters, Adam::new(1e-2), without).unwrap();
        trainer.step_on(&batch(3).unwrap()).unwrap();
        assert_ne!(trainer.losses().unwrap()[0], losses[0], "{device:?}");
    }
}

/// The mean over batches of other sizes, with other numbers of targets that count, is that of all sentences in one batch.
#[test]
fn evaluations_are_of_what_is_handed_over() {
    for device in f32_devices() {
        let tagger = Tagger::new(&device).unwrap();
        let mut evaluator = Evaluator::on_batches(&tagger.parameters, |g, [words, tags, lengths]| {
            let logits = tagger.logits(g, words, lengths, 0.5)?;
            let mean = cross_entropy(g, logits, tags, Reduction::Mean)?;
            Ok([mean, cross_entropy(g, logits, tags, Reduction::Sum)?])
        })
        .unwrap();
        let [mean, sum] = evaluator.means((0..6).map(|i| batch(i).unwrap())).unwrap();
        let counted: usize = (0..6).flat_map(|i| sentences(i).0).map(|sentence| sentence.len()).sum();
        assert!((mean * counted as f64 - sum * 6.0).abs() < 1e-4 * sum, "{device:?}: {mean} {sum} {counted}");

        let all: (Vec<_>, Vec<_>) = (0..6).map(sentences).fold(Default::default(), |mut all, (words, tags)| {
            all.0.extend(words);
            all.1.extend(tags);
            all
        });
        let whole = [
            Array::pad_tokens("words", &all.0, 0, 50).unwrap(),
            Array::pad_targets("tags", &all.1, 5).unwrap(),
            Array::lengths_of("lengths", &all.0).unwrap(),
        ];
        let [in_one, _] = evaluator.means([&whole]).unwrap();
        assert!((mean - in_one).abs() < 1e-5, "{device:?}: {mean} {in_one}");
        assert!(evaluator.means(std::iter::empty::<[Array; 3]>()).unwrap_err().to_string().contains("at least one"));

        // A plan of fixed tensors gives one loss, not the same one several times.
        let [x, y] = ["x", "y"].map(|name| device.upload(name, &[2, 24], &[0.5; 48]).unwrap());
        let targets = device.upload("targets", &[2, 5], &[0.5; 10]).unwrap();
        let mut fixed = Evaluator::new(&tagger.parameters, |g| {
            let x = g.input(&x)?;
            let output = tagger.output.forward(g, x)?;
            mse_loss(g, output, &targets, Reduction::Mean)
        })
        .unwrap();
        assert_eq!(fixed.losses(1).unwrap().len(), 1);
        let error = fixed.losses(3).unwrap_err().to_string();
        assert!(error.contains("on_batches"), "{error}");
        // One that carries a state gives as many as are asked for.
        let mut init = Init::new(rng::manual_seed(1));
        let gru = Gru::new(&mut init, "gru", RnnOptions::new(24, 24)).unwrap();
        let parameters = init.upload(&device).unwrap();
        let state = gru.state(&device, 2).unwrap();
        let mut carried = Evaluator::new(&parameters, |g| {
            let x = g.input(&y.reshape(&[1, 2, 24])?)?;
            let out = gru.forward(g, x, InitialState::Carried(&state))?;
            mse_loss(g, out.output, &y.reshape(&[1, 2, 24])?, Reduction::Mean)
        })
        .unwrap();
        let losses = carried.losses(3).unwrap();
        assert!(losses[0] != losses[1] && losses[1] != losses[2], "{losses:?}");
    }
}

/// A predictor made before the training predicts with what the training has reached, for any shape.
#[test]
fn predictions_are_the_networks_values() {
    for device in f32_devices() {
        let tagger = Tagger::new(&device).unwrap();
        let mut predictor =
            Predictor::new(&tagger.parameters, |g, [words, lengths]| Ok([tagger.logits(g, words, lengths, 0.5)?]));
        let predict = |predictor: &mut Predictor<'_, 2, 1>, i| {
            let [words, _, lengths] = batch(i).unwrap();
            let [logits] = predictor.run(&[words, lengths]).unwrap();
            logits
        };
        let before = predict(&mut predictor, 3);
        let build = |g: &mut Graph, batch: &[Tensor; 3]| tagger.loss(g, batch, 0.0);
        let mut trainer = Trainer::on_batches(&tagger.parameters, Adam::new(1e-2), build).unwrap();
        (0..60).for_each(|_| trainer.step_on(&batch(3).unwrap()).unwrap());
        let after = predict(&mut predictor, 3);
        assert_eq!(before.shape(), after.shape());
        let [_, tags, _] = batch(3).unwrap();
        let right = |logits: &Array| {
            let pairs = logits.argmax().into_iter().zip(tags.values_u32());
            let counted: Vec<_> = pairs.filter(|(_, tag)| **tag != NO_TARGET).collect();
            counted.iter().filter(|(got, want)| got == *want).count() as f64 / counted.len() as f64
        };
        assert!(right(&before) < 0.6 && right(&after) > 0.9, "{device:?}: {} {}", right(&before), right(&after));
        // As a plan by hand.
        let [words, _, lengths] = batch(3).unwrap();
        let by_hand = {
            let mut g = Graph::inference(&tagger.parameters);
            let tokens = device.tokens("words", words.shape(), 50).unwrap();
            tokens.write_u32(words.values_u32()).unwrap();
            let held = device.lengths("lengths", words.shape()[1], words.shape()[0]).unwrap();
            held.write_u32(lengths.values_u32()).unwrap();
            let logits = tagger.logits(&mut g, &tokens, &held, 0.0).unwrap();
            let logits = g.tensor(logits).unwrap();
            g.finish().unwrap().run().unwrap();
            logits.to_vec().unwrap()
        };
        assert_eq!(after.values(), by_hand, "{device:?}");
        predict(&mut predictor, 5);
        predict(&mut predictor, 3);
        assert_eq!((predictor.plans().len(), predictor.plans().recorded()), (2, 2));
    }
}

/// A carried state in pieces of any length, one entry begun anew while the other goes on, through a file, is what whole sequences
/// give.
#[test]
fn a_stream_goes_on_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.safetensors");
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(7));
        let lstm = Lstm::new(&mut init, "lstm", RnnOptions::new(3, 5).num_layers(2)).unwrap();
        let parameters = init.upload(&device).unwrap();
        let series = rng::manual_seed(2).randn(12 * 2 * 3);
        let steps = |range: std::ops::Range<usize>| {
            Array::new("x", &[range.len(), 2, 3], series[range.start * 6..range.end * 6].to_vec()).unwrap()
        };
        let whole = |state: &State, range| run(&parameters, &lstm, state, &steps(range));
        let state = lstm.state(&device, 2).unwrap();
        let all = whole(&state, 0..12);

        let state = lstm.state(&device, 2).unwrap();
        let mut pieces = whole(&state, 0..5);
        elman::io::save_state(&file, &state).unwrap();
        let state = lstm.state(&device, 2).unwrap();
        elman::io::load_state(&file, &state).unwrap();
        pieces.extend(whole(&state, 5..6));
        pieces.extend(whole(&state, 6..12));
        assert_close(&format!("{device:?}"), &widen(&pieces), &widen(&all), all.len(), 1e-6);

        // Entry 1 begins anew at step 7; entry 0 goes on.
        let state = lstm.state(&device, 2).unwrap();
        whole(&state, 0..7);
        state.zero_row(1).unwrap();
        let rest = whole(&state, 7..12);
        let fresh = whole(&lstm.state(&device, 2).unwrap(), 7..12);
        for (i, value) in rest.iter().enumerate() {
            let want = if (i / 5) % 2 == 0 { all[7 * 10 + i] } else { fresh[i] };
            assert!((value - want).abs() < 1e-6, "{device:?}, {i}: {value} {want}");
        }
        assert!(state.zero_row(2).unwrap_err().to_string().contains("below 2"));

        // Another network's state, and what is no state.
        let other = Gru::new(&mut Init::new(rng::manual_seed(7)), "gru", RnnOptions::new(3, 5)).unwrap();
        let other = other.state(&device, 2).unwrap();
        let before = other.save().unwrap();
        assert!(elman::io::load_state(&file, &other).unwrap_err().to_string().contains("`h` must be F32 [1, 2, 5]"));
        let larger = Gru::new(&mut Init::new(rng::manual_seed(7)), "gru", RnnOptions::new(3, 5).num_layers(2)).unwrap();
        let larger = larger.state(&device, 2).unwrap();
        assert!(
            elman::io::load_state(&file, &larger).unwrap_err().to_string().contains("`c` is none of this network's")
        );
        std::fs::write(&file, "not a state").unwrap();
        assert!(matches!(elman::io::load_state(&file, &other), Err(Error::ModelFile { .. })));
        assert_eq!(other.save().unwrap(), before);
    }
}

fn run(parameters: &Parameters, lstm: &Lstm, state: &State, x: &Array) -> Vec<f32> {
    let mut predictor = Predictor::new(parameters, |g, [x]| {
        let x = g.input(x)?;
        Ok([lstm.forward(g, x, InitialState::Carried(state))?.output])
    });
    let [output] = predictor.run(std::array::from_ref(x)).unwrap();
    output.values().to_vec()
}

/// What cannot be trained on is said, and the training goes on as if it had not come.
#[test]
fn a_bad_batch_changes_nothing() {
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(1));
    let layer = Linear::new(&mut init, "layer", 2, 3).unwrap();
    let parameters = init.upload(&device).unwrap();
    let mut trainer = Trainer::on_batches(&parameters, Sgd::new(0.1), |g, [x, y]| {
        let x = g.input(x)?;
        let logits = layer.forward(g, x)?;
        cross_entropy(g, logits, y, Reduction::Mean)
    })
    .unwrap();
    let x = |rows: usize, columns: usize, value: f32| Array::new("x", &[rows, columns], vec![value; rows * columns]);
    let y = |rows: usize, class: u32| Array::targets("y", &[rows], vec![class; rows], 3);
    let good = [x(4, 2, 0.5).unwrap(), y(4, 1).unwrap()];
    trainer.step_on(&good).unwrap();
    let before = parameters.get("layer.weight").unwrap().to_vec().unwrap();
    let bad: [([Array; 2], &str); 5] = [
        ([x(4, 2, f32::NAN).unwrap(), y(4, 1).unwrap()], "NaN at position 0 of `x`"),
        ([x(4, 2, f32::INFINITY).unwrap(), y(4, 1).unwrap()], "inf at position 0 of `x`"),
        ([x(4, 3, 0.5).unwrap(), y(4, 1).unwrap()], "[.., 2]"),
        ([x(4, 2, 0.5).unwrap(), y(4, 3).unwrap()], "at position 0 of `y` is outside the vocabulary of 3"),
        ([x(4, 2, 0.5).unwrap(), y(3, 1).unwrap()], "`y` must have shape"),
    ];
    for (batch, what) in bad {
        let error = trainer.step_on(&batch).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    assert_eq!(parameters.get("layer.weight").unwrap().to_vec().unwrap(), before);
    trainer.step_on(&good).unwrap();
    assert_eq!((trainer.steps(), trainer.losses().unwrap().len()), (2, 2));
    // Nothing that no plan could hold is made.
    for array in [Array::new("x", &[2, 2], vec![0.0; 3]), Array::new("x", &[0], vec![]), x(0, 2, 1.0)] {
        assert!(matches!(array, Err(Error::Shape { .. })), "{array:?}");
    }
}

#[test]
fn sequences_are_padded() {
    let words = [vec![1, 2, 3], vec![4], vec![5, 6]];
    let array = Array::pad_tokens("words", &words, 9, 10).unwrap();
    assert_eq!((array.shape(), array.values_u32()), (&[3, 3][..], &[1, 4, 5, 2, 9, 6, 3, 9, 9][..]));
    assert_eq!(array.clone().swap_axes().unwrap().values_u32(), [1, 2, 3, 4, 9, 9, 5, 6, 9]);
    assert_eq!(array.reshape(&[9]).unwrap().shape(), [9]);
    let lengths = Array::lengths_of("lengths", &words).unwrap();
    assert_eq!((lengths.shape(), lengths.values_u32()), (&[3][..], &[3, 1, 2][..]));
    let targets = Array::pad_targets("tags", &words, 10).unwrap();
    assert_eq!(targets.values_u32()[4], NO_TARGET);
    let pairs = Array::pad("x", [&[1.0, 2.0, 3.0, 4.0][..], &[5.0, 6.0]], 2).unwrap();
    assert_eq!((pairs.shape(), pairs.values()), (&[2, 2, 2][..], &[1., 2., 5., 6., 3., 4., 0., 0.][..]));
    for (error, what) in [
        (Array::pad("x", [&[1.0, 2.0, 3.0][..]], 2).unwrap_err(), "whole steps of 2"),
        (Array::pad("x", [&[1.0][..]], 0).unwrap_err(), "whole steps of 0"),
        (Array::pad("x", [&[1.0][..], &[]], 1).unwrap_err(), "empty at index 1"),
        (Array::pad_tokens("x", <[&[u32]; 0]>::default(), 0, 3).unwrap_err(), "at least one"),
        (Array::windows("x", &[0.0; 10], 2, &[1, 2], 0..4).unwrap_err(), "must be at most 1"),
        (Array::windows("x", &[0.0; 10], 0, &[0], 0..1).unwrap_err(), "whole steps of 0 values"),
        (Array::windows("x", &[0.0; 5], 2, &[0], 0..1).unwrap_err(), "whole steps of 2 values"),
        (Array::windows("x", &[0.0; 4], 2, &[0], 1..3).unwrap_err(), "at least the 3 of a window, but is of 4 values"),
    ] {
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

#[test]
fn every_example_is_in_one_batch() {
    let lengths: Vec<usize> = (0..103).map(|i| 1 + i * 7 % 13).collect();
    let mut rng = rng::manual_seed(5);
    for by_length in [false, true] {
        let mut draw = || match by_length {
            true => data::batches_by_length(&mut rng, &lengths, 8),
            false => data::batches(&mut rng, lengths.len(), 8),
        };
        let (first, second) = (draw(), draw());
        assert_ne!(first, second, "another order each time");
        let mut all: Vec<usize> = first.concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        assert_eq!((first.len(), first.iter().filter(|batch| batch.len() < 8).count()), (13, 1));
        let padded = |batch: &Vec<usize>| {
            let most = batch.iter().map(|&i| lengths[i]).max().unwrap();
            batch.iter().map(|&i| most - lengths[i]).sum::<usize>()
        };
        let padding: usize = first.iter().map(padded).sum();
        assert_eq!(padding < 60, by_length, "{padding}");
    }
    assert!(data::batches(&mut rng, 0, 8).is_empty() && data::batches(&mut rng, 3, 0).len() == 3);
}

#[test]
fn a_share_of_the_examples_is_held_out() {
    let examples: Vec<String> = (0..103).map(|i| i.to_string()).collect();
    let split = |seed, share| data::split(&mut rng::manual_seed(seed), &examples, share);
    let (training, held_out) = split(5, 0.2);
    assert_eq!((training.len(), held_out.len()), (83, 20));
    let mut all = [training, held_out].concat();
    assert_ne!(all, examples, "in random order");
    all.sort_by_key(|example| example.parse::<usize>().unwrap());
    assert_eq!(all, examples);
    assert!(split(5, 0.2) == split(5, 0.2) && split(5, 0.2) != split(6, 0.2));
    assert!(split(5, 0.0).1.is_empty() && split(5, 2.0).0.is_empty());
}

#[test]
fn an_accuracy_is_of_what_counts() {
    let logits = Array::new("logits", &[2, 2, 3], vec![0., 1., 2., 5., 4., 3., -1., 0., -1., 1., 1., 0.]).unwrap();
    let targets = |values: [u32; 4]| Array::targets("tags", &[2, 2], values.to_vec(), 3).unwrap();
    assert_eq!(logits.accuracy(&targets([2, 0, 1, 0])).unwrap(), 1.0);
    assert_eq!(logits.accuracy(&targets([2, 1, NO_TARGET, NO_TARGET])).unwrap(), 0.5);
    assert_eq!(logits.accuracy(&targets([NO_TARGET; 4])).unwrap(), 0.0);
    let flat = targets([2, 0, 0, 1]).reshape(&[4]).unwrap();
    assert_eq!(logits.accuracy(&flat).unwrap(), 0.5);
    let few = Array::targets("tags", &[3], vec![0; 3], 3).unwrap();
    let error = logits.accuracy(&few).unwrap_err().to_string();
    assert!(error.contains("`tags`") && error.contains("one of 4 targets"), "{error}");
}

/// What is drawn ahead comes in order, a few items before it is used; what is not used is not drawn; a panic comes through.
#[test]
fn batches_are_drawn_ahead() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let made = AtomicUsize::new(0);
    let items = || {
        (0..1000).inspect(|_| {
            made.fetch_add(1, Ordering::SeqCst);
        })
    };
    assert_eq!(data::ahead(items(), |items| items.collect::<Vec<_>>()), (0..1000).collect::<Vec<_>>());
    made.store(0, Ordering::SeqCst);
    let first = data::ahead(items(), |mut items| items.next());
    assert!(first == Some(0) && made.load(Ordering::SeqCst) < 10, "{made:?}");
    let panicked =
        std::panic::catch_unwind(|| data::ahead((0..3).map(|i| assert!(i < 2, "the third")), |items| items.count()));
    assert!(panicked.is_err());
    // On another thread than the one that uses them.
    let other = data::ahead(std::iter::once(()).map(|()| std::thread::current().id()), |mut ids| ids.next()).unwrap();
    assert_ne!(other, std::thread::current().id());
}

/// What a trainer is made of is what its plans are made of, whenever they are recorded: frozen parameters, the optimizer's clipping
/// and schedule; more steps than the log holds, of shapes that alternate.
#[test]
fn late_plans_are_like_early_ones() {
    use elman::optim::Clip;
    use elman::schedule::CosineAnnealing;
    for device in f32_devices() {
        let mut init = Init::new(rng::manual_seed(1));
        let layer = Linear::new(&mut init, "layer", 2, 3).unwrap();
        let optimizer = || {
            let schedule = CosineAnnealing::new(0.1, 700, 0.01).unwrap();
            Adam::default().clip(Clip::Norm(0.3)).schedule(schedule)
        };
        let rows = |step: usize| 1 + step % 3;
        let batch = |step: usize| {
            let n = rows(step);
            let x = rng::manual_seed(step as u64).randn(2 * n);
            [Array::new("x", &[n, 2], x).unwrap(), Array::targets("y", &[n], vec![step as u32 % 3; n], 3).unwrap()]
        };
        let build = |g: &mut Graph, [x, y]: &[Tensor; 2]| {
            // A mean by hand: a weight that depends on the shape.
            let (rows, x) = (x.shape()[0], g.input(x)?);
            let logits = layer.forward(g, x)?;
            Ok(1.0 / rows as f64 * cross_entropy(g, logits, y, Reduction::Sum)?)
        };
        let parameters = init.upload(&device).unwrap();
        parameters.freeze(&["layer.bias"]).unwrap();
        let mut trainer = Trainer::on_batches(&parameters, optimizer(), build).unwrap();
        trainer.step_on(&batch(0)).unwrap();
        parameters.unfreeze(&["layer.bias"]).unwrap();
        let bias = parameters.get("layer.bias").unwrap();
        let before = bias.to_vec().unwrap();
        let steps = 1500;
        (1..steps).for_each(|step| trainer.step_on(&batch(step)).unwrap());
        assert_eq!(bias.to_vec().unwrap(), before, "frozen when the trainer was made");
        let losses = trainer.losses().unwrap();
        assert_eq!(losses.len(), steps);

        // The same steps by a trainer of one shape, whose rows that are not there do not count.
        let parameters = init.upload(&device).unwrap();
        parameters.freeze(&["layer.bias"]).unwrap();
        let x = device.zeros("x", &[3, 2], elman::DType::F32).unwrap();
        let y = device.targets("y", &[3], 3).unwrap();
        let mut fixed = Trainer::new(&parameters, optimizer(), |g| {
            let x = g.input(&x)?;
            let logits = layer.forward(g, x)?;
            cross_entropy(g, logits, &y, Reduction::Mean)
        })
        .unwrap();
        for step in 0..steps {
            let [values, targets] = batch(step);
            let mut padded = [values.values().to_vec(), vec![0.0; 6]].concat();
            padded.truncate(6);
            x.write(&padded).unwrap();
            let mut padded = [targets.values_u32().to_vec(), vec![NO_TARGET; 3]].concat();
            padded.truncate(3);
            y.write_u32(&padded).unwrap();
            fixed.step().unwrap();
        }
        assert_close("losses", &widen(&losses), &widen(&fixed.losses().unwrap()), steps, 1e-4);
        assert_eq!(trainer.lr(), fixed.lr());
        // A schedule is in the checkpoint by its step.
        let checkpoint = trainer.checkpoint().unwrap();
        let mut resumed = Trainer::on_batches(&parameters, optimizer(), build).unwrap();
        resumed.restore(&checkpoint).unwrap();
        assert_eq!((resumed.lr(), resumed.steps()), (trainer.lr(), steps as u64));
    }
}

/// An evaluation that failed leaves the next one right, and losses are grouped as they were first.
#[test]
fn an_evaluation_that_failed_is_over() {
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(1));
    let layer = Linear::new(&mut init, "layer", 2, 1).unwrap();
    let parameters = init.upload(&device).unwrap();
    let mut evaluator = Evaluator::on_batches(&parameters, |g, [x, y]| {
        let (rows, x) = (x.shape()[0], g.input(x)?);
        let output = layer.forward(g, x)?;
        let mut loss = || mse_loss(g, output, y, Reduction::Mean);
        let (a, b, c) = (loss()?, loss()?, loss()?);
        match rows {
            2 => Ok([2.0 * a + b, c]),
            3 => Ok([a, b + c]),
            4 => Ok([a + b.named("other"), c]),
            _ => Ok([3.0 * a + 2.0 * b, c]),
        }
    })
    .unwrap();
    let batch = |rows: usize, value: f32| {
        [
            Array::new("x", &[rows, 2], vec![value; 2 * rows]).unwrap(),
            Array::new("y", &[rows, 1], vec![1.0; rows]).unwrap(),
        ]
    };
    let [first, one] = evaluator.means([batch(2, 0.5)]).unwrap();
    assert!((first - 3.0 * one).abs() < 1e-6);
    for rows in [3, 4] {
        let error = evaluator.means([batch(2, 0.5), batch(rows, 0.5)]).unwrap_err().to_string();
        assert!(error.contains("of the same terms for every shape"), "{error}");
        assert_eq!(evaluator.means([batch(2, 0.5)]).unwrap(), [first, one]);
    }
    let error = evaluator.means([batch(2, f32::NAN)]).unwrap_err().to_string();
    assert!(error.contains("NaN at position 0 of `x`"), "{error}");
    // Weights may differ from shape to shape: rows with 3 + 2 beside rows with 2 + 1.
    let [both, _] = evaluator.means([batch(2, 0.5), batch(6, 0.5)]).unwrap();
    assert!((both - one * (2.0 * 3.0 + 6.0 * 5.0) / 8.0).abs() < 1e-5, "{both} {one}");
}

/// A trainer and a predictor on one device, each on a thread of its own: what each gives alone.
#[test]
fn predictions_beside_a_training() {
    for device in f32_devices() {
        let tagger = Tagger::new(&device).unwrap();
        let train = |device: &Device| {
            let tagger = Tagger::new(device).unwrap();
            let build = |g: &mut Graph, batch: &[Tensor; 3]| tagger.loss(g, batch, 0.3);
            let mut trainer = Trainer::on_batches(&tagger.parameters, Adam::new(1e-2), build).unwrap();
            (0..30).for_each(|i| trainer.step_on(&batch(i % 5).unwrap()).unwrap());
            trainer.losses().unwrap()
        };
        let predict = || {
            let mut predictor =
                Predictor::new(&tagger.parameters, |g, [words, lengths]| Ok([tagger.logits(g, words, lengths, 0.0)?]));
            let predicted = (0..30).map(|i| {
                let [words, _, lengths] = batch(i % 5).unwrap();
                let [logits] = predictor.run(&[&words, &lengths]).unwrap();
                logits
            });
            predicted.collect::<Vec<_>>()
        };
        let alone = (train(&device), predict());
        let together = std::thread::scope(|scope| {
            let training = scope.spawn(|| train(&device));
            (predict(), training.join().unwrap())
        });
        assert!(alone.0 == together.1 && alone.1 == together.0, "{device:?}");
    }
}
