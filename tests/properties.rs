//! Any sizes, settings, shapes and files: what is public gives a result that makes sense, or an error that says why. Nothing panics,
//! and nothing takes memory because a number is large.

use elman::data::{self, Array};
use elman::generate::{Generator, Sampling, SlidingWindow};
use elman::io::{self, Load};
use elman::kernels::map::{Operand, copy};
use elman::kernels::matmul::{Factor, matmul};
use elman::map::Layout;
use elman::nn::functional::{
    self, ClassReduction, InitialState, Loss, Reduction, RunOptions, States, WeightedReduction,
};
use elman::nn::{
    Activation, Cell, CharRnn, CharRnnOptions, Embedding, Init, LanguageModel as _, Linear, Nonlinearity, Parameters,
};
use elman::nn::{Recurrent, RnnOptions, State};
use elman::optim::{Adagrad, Adam, AdamW, Clip, Optimizer, RmsProp, Sgd};
use elman::schedule::{self, OneCycleOptions, PlateauOptions, Schedule as _, Threshold};
use elman::text::{Corpus, FileWindows, TextFile, Vocabulary, Windows, hold_out};
use elman::{
    Checkpoint, DType, Device, Error, Evaluator, Graph, NO_TARGET, Predictor, Reader, Result, Tensor, Trainer, Var, rng,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::FileFailurePersistence;

/// So many cases of each property, in the same order every time: what fails is printed, and kept in no file.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None::<Box<FileFailurePersistence>>.map(|none| none as _),
        rng_seed: proptest::test_runner::RngSeed::Fixed(777),
        ..ProptestConfig::default()
    }
}

/// None of a size, a few, or more than any tensor has.
fn size() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![
        8 => 0usize..7,
        1 => select(vec![1usize << 31, 1 << 32, (1 << 32) + 1, 1 << 40, usize::MAX / 2, usize::MAX / 2 + 1, usize::MAX - 1, usize::MAX]),
    ]
}

fn small() -> impl Strategy<Value = usize> + Clone {
    1usize..5
}

/// Of one to four dimensions mostly.
fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![1 => Just(vec![]), 20 => vec(size(), 1..5)]
}

fn small_shape() -> impl Strategy<Value = Vec<usize>> {
    vec(small(), 1..4)
}

/// Numbers that settings have, and such as none should.
fn number() -> impl Strategy<Value = f64> + Clone {
    prop_oneof![
        6 => 0.0..1.0,
        2 => -2.0..2.0,
        3 => select(vec![
            0.0, -0.0, 1.0, -1.0, 1e-3, 1e-8, 0.999, 1e-46, 1e39, 1e-308, 1e308, f64::MAX, f64::MIN_POSITIVE, f64::EPSILON,
            f64::NAN, f64::INFINITY, f64::NEG_INFINITY,
        ]),
    ]
}

/// An error says something, and no more than a page of it.
#[track_caller]
fn says_why(error: &Error) {
    let text = error.to_string();
    assert!(!text.trim().is_empty() && text.len() < 4000, "{text:?}");
}

/// What there is, of a result; an error has been looked at.
#[track_caller]
fn ok<T>(result: Result<T>) -> Option<T> {
    result.map_err(|error| says_why(&error)).ok()
}

#[track_caller]
fn all_finite(values: &[f32]) {
    assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
}

/// Some values of about 1.
fn values(len: usize) -> Vec<f32> {
    rng::manual_seed(len as u64).uniform(len, -1.0, 1.0)
}

fn upload(device: &Device, shape: &[usize]) -> Tensor {
    device.upload("x", shape, &values(shape.iter().product())).unwrap()
}

/// A layer of two inputs and an output, trained on four rows.
fn trainer(optimizer: impl Into<Optimizer>) -> Result<Trainer> {
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(1));
    let layer = Linear::new(&mut init, "layer", 2, 1)?;
    let parameters = init.upload(&device)?;
    let (x, y) = (upload(&device, &[4, 2]), upload(&device, &[4, 1]));
    Trainer::new(&parameters, optimizer, |g| {
        let x = g.input(&x)?;
        let output = layer.forward(g, x)?;
        functional::mse_loss(g, output, &y, Reduction::Mean)
    })
}

/// Three steps: the losses are finite, or an error.
fn train(trainer: Result<Trainer>) {
    let Some(mut trainer) = ok(trainer) else { return };
    for _ in 0..3 {
        if ok(trainer.step()).is_none() {
            return;
        }
    }
    assert!(trainer.lr() >= 0.0 && trainer.lr().is_finite());
    if let Some(losses) = ok(trainer.losses()) {
        assert_eq!(losses.len(), 3);
        all_finite(&losses);
    }
}

fn network() -> (CharRnn, Parameters) {
    let mut init = Init::new(rng::manual_seed(1));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(5, 2, 3).cell(Cell::Gru)).unwrap();
    let parameters = init.upload(&Device::cpu()).unwrap();
    (model, parameters)
}

fn bits(parameters: &Parameters) -> Vec<u32> {
    parameters.iter().flat_map(|(_, tensor)| tensor.to_vec().unwrap()).map(f32::to_bits).collect()
}

// ---- tensors and arrays --------------------------------------------------------------------------------------------

/// The largest tensor takes memory where it is written, and a larger one is refused.
#[test]
fn the_largest_tensor_is_made_at_once() {
    let device = Device::cpu();
    for dtype in [DType::F32, DType::U32] {
        let result = device.zeros("largest", &[1 << 10, 1 << 20], dtype);
        assert!(
            result.map_or_else(|error| matches!(error, Error::OutOfMemory { .. }), |tensor| tensor.len() == 1 << 30)
        );
        assert!(matches!(device.zeros("larger", &[(1 << 30) + 1], dtype), Err(Error::Shape { .. })));
    }
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn tensors_of_any_shape(shape in shape(), other in shape(), len in 0usize..40, bound in size()) {
        let device = Device::cpu();
        for dtype in [DType::F32, DType::U32] {
            if let Some(tensor) = ok(device.zeros("zeros", &shape, dtype)) {
                prop_assert_eq!(tensor.len(), shape.iter().product::<usize>());
                if let Some(reshaped) = ok(tensor.reshape(&other)) {
                    prop_assert_eq!(reshaped.len(), tensor.len());
                }
                let floats = ok(tensor.write(&vec![0.5; len])).is_some();
                let numbers = ok(tensor.write_u32(&vec![7; len])).is_some();
                prop_assert_eq!(floats || numbers, len == tensor.len());
            }
        }
        if let Some(uploaded) = ok(device.upload("upload", &shape, &vec![0.5; len])) {
            prop_assert_eq!(uploaded.to_vec().unwrap(), vec![0.5; len]);
        }
        ok(device.upload_u32("upload", &shape, &vec![7; len]));
        for tensor in [device.tokens("tokens", &shape, bound), device.targets("targets", &shape, bound)] {
            let Some(tensor) = ok(tensor) else { continue };
            let fits = ok(tensor.write_u32(&vec![3; tensor.len()])).is_some();
            prop_assert_eq!(fits, bound > 3);
        }
        if let Some(lengths) = ok(device.lengths("lengths", len, bound)) {
            prop_assert!(lengths.to_vec_u32().unwrap().iter().all(|&length| length as usize == bound));
        }
        if let &[a, b, c, ..] = &shape[..]
            && let Some(state) = ok(State::zeros(&device, &[("h", [a, b, c]), ("c", [a, b, c])]))
        {
            ok(state.zero_row(len));
            state.restore(&state.save().unwrap()).unwrap();
        }
    }

    #[test]
    fn arrays_of_any_shape(
        shape in shape(), other in shape(), len in 0usize..40, bound in size(), features in size(),
        lengths in vec(0usize..5, 0..5), starts in vec(size(), 0..4), window in (size(), size()),
    ) {
        let floats = ok(Array::new("floats", &shape, values(len)));
        let tokens = ok(Array::tokens("tokens", &shape, vec![1; len], bound));
        let targets = ok(Array::targets("targets", &shape[..shape.len().saturating_sub(1)], vec![NO_TARGET; len], bound));
        for array in [&floats, &tokens, &targets].into_iter().flatten() {
            prop_assert_eq!(array.shape().iter().product::<usize>(), len);
            if let Some(swapped) = ok(array.clone().swap_axes()) {
                prop_assert_eq!(&swapped.swap_axes().unwrap(), array);
            }
            ok(array.clone().reshape(&other));
            array.argmax();
            for other in [&floats, &tokens, &targets].into_iter().flatten() {
                if let Some(accuracy) = ok(array.accuracy(other)) {
                    prop_assert!((0.0..=1.0).contains(&accuracy));
                }
            }
        }
        ok(Array::lengths("lengths", vec![1; len], bound));
        let sequences: Vec<_> = lengths.iter().map(|&steps| values(steps)).collect();
        if let Some(padded) = ok(Array::pad("padded", &sequences, features)) {
            prop_assert_eq!(padded.shape()[1..].to_vec(), [lengths.len(), features]);
        }
        let tokens: Vec<_> = lengths.iter().map(|&steps| vec![1; steps]).collect();
        let padded = ok(Array::pad_tokens("padded", &tokens, 0, bound));
        prop_assert_eq!(padded.is_some(), ok(Array::lengths_of("lengths", &tokens)).is_some());
        ok(Array::pad_targets("padded", &tokens, bound));
        if let Some(windows) = ok(Array::windows("windows", &values(len), features, &starts, window.0..window.1)) {
            all_finite(windows.values());
        }
    }

    #[test]
    fn orders_of_any_size(n in 0usize..40, batch in size(), share in number(), lengths in vec(0usize..9, 0..20)) {
        let mut rng = rng::manual_seed(1);
        let all: Vec<usize> = (0..n).collect();
        let (training, held_out) = data::split(&mut rng, &all, share);
        prop_assert_eq!(training.len() + held_out.len(), n);
        let (training, held_out) = hold_out(&rng.randperm(n), share);
        prop_assert_eq!(training.len() + held_out.len(), n);
        let sorted = |batches: Vec<Vec<usize>>| { let mut all = batches.concat(); all.sort(); all };
        prop_assert_eq!(sorted(data::batches(&mut rng, n, batch)), all);
        prop_assert_eq!(sorted(data::batches_by_length(&mut rng, &lengths, batch)).len(), lengths.len());
        let draws = [rng.uniform(n, share, 1.0), rng.rand(n), rng.randn(n)];
        draws[1..].iter().for_each(|draws| all_finite(draws));
        prop_assert!(rng.randint(batch as u32, n).len() == n);
    }
}

// ---- texts ---------------------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn windows_of_any_size(
        tokens in vec(0u32..4, 0..60), vocabulary in size(), stretch in (size(), 0usize..60), batch in size(), window in size(),
        starts in vec(0u32..60, 0..6), order in vec(0u32..8, 0..8),
    ) {
        let device = Device::cpu();
        let Some(corpus) = ok(Corpus::new(&device, &tokens, vocabulary)) else { return Ok(()) };
        let made = [Windows::new(&corpus, starts, window), Windows::streams(&corpus, stretch.0..stretch.1, batch, window)];
        for windows in made.into_iter().filter_map(ok) {
            ok(windows.set_order(&order));
            for every_step in [false, true] {
                let mut g = Graph::without_parameters(&device);
                let batch = if every_step { windows.batch_of_every_step(&mut g, batch) } else { windows.batch(&mut g, batch) };
                let Some(batch) = ok(batch) else { continue };
                g.finish().unwrap().run().unwrap();
                prop_assert!(batch.tokens.to_vec_u32().unwrap().iter().all(|token| tokens.contains(token) || *token == 0));
            }
            prop_assert!(windows.mean(&vec![1.0; windows.batches(batch)], batch.max(1)).is_finite());
        }
    }

    #[test]
    fn texts_of_any_bytes(
        text in prop_oneof![vec(any::<u8>(), 0..60), "[a-cé☃😀\u{feff}\0]{0,60}".prop_map(String::into_bytes)],
        stretch in (size(), 0usize..120), batch in size(), window in size(), byte in size(), most in size(), other in ".{0,9}",
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        ok(Vocabulary::of(&String::from_utf8_lossy(&text)).encode(&other));
        let _ = Vocabulary::try_from(other);
        let Some(open) = ok(TextFile::open(file.path())) else { return Ok(()) };
        prop_assert!(open.text_at(byte, most).chars().count() <= most);
        let device = Device::cpu();
        prop_assert_eq!(Corpus::of_file(&device, &open).unwrap().len(), open.characters());
        let windows = FileWindows::new(&open, &device, stretch.0..stretch.1, batch, window, rng::manual_seed(1));
        if let Some(mut windows) = ok(windows) {
            windows.draw().unwrap();
        }
    }
}

// ---- networks ------------------------------------------------------------------------------------------------------

fn cell() -> impl Strategy<Value = Cell> {
    select(Cell::ALL)
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn modules_of_any_size(inputs in size(), outputs in size(), rows in small(), bound in number()) {
        let device = Device::cpu();
        let mut init = Init::new(rng::manual_seed(1));
        let linear = ok(Linear::new(&mut init, "linear", inputs, outputs));
        let embedding = ok(Embedding::new(&mut init, "embedding", inputs, outputs));
        ok(init.uniform("uniform".into(), &[inputs, outputs], bound));
        ok(init.normal("normal".into(), &[outputs]));
        ok(init.add("added".into(), &[inputs, outputs], vec![0.5; rows]));
        let Some(parameters) = ok(init.upload(&device)) else { return Ok(()) };
        parameters.iter().for_each(|(_, tensor)| all_finite(&tensor.to_vec().unwrap()));
        let mut g = Graph::inference(&parameters);
        let x = g.input(&upload(&device, &[rows, 3])).unwrap();
        if let Some(linear) = linear {
            ok(linear.forward(&mut g, x));
        }
        let tokens = device.tokens("tokens", &[rows], 3).unwrap();
        if let Some(embedding) = embedding {
            ok(embedding.forward(&mut g, &tokens));
        }
        ok(g.finish()).unwrap().run().unwrap();
    }

    #[test]
    fn recurrent_modules_of_any_options(
        cell in cell(), sizes in (size(), size(), prop_oneof![4 => Just(0usize), 1 => size()]), num_layers in size(), dropout in number(),
        (bias, batch_first, bidirectional, relu) in any::<(bool, bool, bool, bool)>(), x in small_shape(), batch in size(),
        steps in 1usize..4, (carried, lengths, resets) in any::<(bool, bool, bool)>(),
        (asks, before, peepholes, coupled) in any::<(bool, bool, bool, bool)>(), (functions, clip) in (0usize..7, number()),
    ) {
        let device = Device::cpu();
        let mut init = Init::new(rng::manual_seed(1));
        let nonlinearity = if relu { Nonlinearity::Relu } else { Nonlinearity::Tanh };
        let (input_size, hidden_size, proj_size) = sizes;
        let options = RnnOptions::new(input_size, hidden_size).num_layers(num_layers).nonlinearity(nonlinearity).bias(bias);
        let options = options.batch_first(batch_first).dropout(if dropout < 0.5 { 0.0 } else { dropout });
        let options = options.bidirectional(bidirectional).proj_size(proj_size);
        let options = if asks {
            let functions = vec![Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }; functions];
            let options = if clip < 0.5 { options } else { options.clip(clip as f32) };
            let options = if functions.is_empty() { options } else { options.activations(&functions) };
            options.reset_after(!before).peepholes(peepholes).coupled(coupled)
        } else {
            options
        };
        ok(elman::nn::LstmCell::new(&mut init, "cell", options));
        let Some(module) = ok(Recurrent::new(&mut init, "rnn", cell, options)) else { return Ok(()) };
        let state = ok(module.state(&device, batch));
        let parameters = init.upload(&device).unwrap();
        let fitting = if batch_first { [2, steps, input_size] } else { [steps, 2, input_size] };
        let counts = device.lengths("lengths", 2, steps).unwrap();
        let marks = device.upload_u32("marks", &[steps, 2], &vec![1; 2 * steps]).unwrap();
        for shape in [&x[..], &fitting] {
            let x = upload(&device, shape);
            let trainer = Trainer::new(&parameters, Sgd::new(0.1), |g| {
                let x = g.input(&x)?;
                let initial = state.as_ref().filter(|_| carried).map_or(InitialState::Zero, InitialState::Carried);
                let mut run = RunOptions::from(lengths.then_some(&counts));
                if resets {
                    run = run.resets(&marks);
                }
                let (output, _) = module.forward_with(g, x, initial, run)?;
                functional::mean(g, output)
            });
            let is_fitting = shape == fitting && (!carried || state.is_none() || batch == 2);
            prop_assert!(trainer.is_ok() || !is_fitting, "{:?}", trainer.err());
            if let Some(mut trainer) = ok(trainer) {
                trainer.step().unwrap();
                all_finite(&trainer.losses().unwrap());
            }
        }
    }

    #[test]
    fn language_models_of_any_options(
        cell in cell(), sizes in (size(), size(), size()), num_layers in size(), dropout in number(), lanes in size(), window in size(),
        prompt in vec(0u32..8, 0..4), length in 0usize..70,
    ) {
        let mut init = Init::new(rng::manual_seed(1));
        let options = CharRnnOptions::new(sizes.0, sizes.1, sizes.2).cell(cell).num_layers(num_layers).dropout(dropout);
        let Some(model) = ok(CharRnn::new(&mut init, options)) else { return Ok(()) };
        let device = Device::cpu();
        let parameters = init.upload(&device).unwrap();
        if let Some(mut generator) = ok(Generator::new(&model, &parameters, lanes))
            && ok(generator.prime(&prompt)).is_some()
        {
            let mut drawn = Vec::new();
            generator.generate(length, |tokens| { drawn.extend_from_slice(tokens); true }).unwrap();
            prop_assert_eq!(drawn.len(), lanes * length);
            prop_assert!(drawn.iter().all(|&token| (token as usize) < sizes.0));
        }
        if let Some(mut sliding) = ok(SlidingWindow::new(&model, &parameters, window)) {
            ok(sliding.extend(&prompt, 2));
        }
    }

    #[test]
    fn readers_of_any_options(
        cell in cell(), sizes in (size(), size(), size()), num_layers in size(), kept in size(), text in vec(0u32..8, 0..90), to in size(),
    ) {
        let mut init = Init::new(rng::manual_seed(1));
        let options = CharRnnOptions::new(sizes.0, sizes.1, sizes.2).cell(cell).num_layers(num_layers);
        let Some(model) = ok(CharRnn::new(&mut init, options)) else { return Ok(()) };
        let parameters = init.upload(&Device::cpu()).unwrap();
        let Some(mut reader) = ok(Reader::new(&model, &parameters, kept)) else { return Ok(()) };
        let read = ok(reader.read(&text));
        prop_assert!(read.is_some() || text.iter().any(|&token| token as usize >= sizes.0));
        if let Some(logits) = read {
            prop_assert_eq!(logits.len(), text.len() * sizes.0);
            prop_assert_eq!(ok(reader.rewind(to)).is_some(), to <= text.len());
            prop_assert_eq!(reader.text(), &text[..to.min(text.len())]);
            if let Some(at) = reader.text().len().checked_sub(1) {
                prop_assert_eq!(&reader.logits().unwrap()[..], &logits[at * sizes.0..][..sizes.0]);
            }
            let reading = reader.read_with_states(&text).unwrap();
            prop_assert_eq!(reading.states["h"].len(), text.len() * num_layers * sizes.2);
        }
    }

    #[test]
    fn lanes_of_any_prompts(
        prompts in vec(vec(0u32..6, 0..5), 0..4), (from, to) in (size(), size()), length in 0usize..70,
    ) {
        let (model, parameters) = network();
        let mut generator = Generator::new(&model, &parameters, 2).unwrap();
        generator.set_sampling(Sampling { temperature: 1.0, draws_of: Some(0), ..Sampling::default() }).unwrap();
        let is_good = prompts.len() == 2 && prompts.iter().all(|prompt| !prompt.is_empty() && prompt.iter().all(|&token| token < 5));
        prop_assert_eq!(ok(generator.prime_lanes(&prompts)).is_some(), is_good);
        generator.generate(length, |_| true).unwrap();
        let saved = ok(generator.save_lane(from));
        prop_assert_eq!(saved.is_some(), from < 2);
        prop_assert_eq!(ok(generator.fork_lane(from, to)).is_some(), from < 2 && to < 2);
        if let Some(saved) = saved {
            prop_assert_eq!(ok(generator.restore_lane(to, &saved)).is_some(), to < 2);
            prop_assert_eq!(generator.save_lane(from).unwrap(), saved);
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn sampling_of_any_settings(
        temperature in number(), top_k in proptest::option::of(size()), top_p in proptest::option::of(number()), min_p in proptest::option::of(number()),
        repeat_penalty in number(), repeat_last_n in size(), seed in any::<u32>(), draws_of in proptest::option::of(any::<u32>()),
        stop in proptest::option::of(prop_oneof![0u32..8, Just(u32::MAX)]), never in proptest::option::of(prop_oneof![0u32..8, Just(u32::MAX)]),
        lanes in 0usize..4,
    ) {
        let (model, parameters) = network();
        let mut generator = Generator::new(&model, &parameters, 2).unwrap();
        let (temperature, repeat_penalty) = (temperature as f32, repeat_penalty as f32);
        let [top_p, min_p] = [top_p, min_p].map(|share| share.map(|p| p as f32));
        let sampling = Sampling { temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed, draws_of, stop, never };
        let set = ok(generator.set_sampling_of_lanes(&vec![sampling; lanes]));
        prop_assert!(lanes == 2 || set.is_none());
        let set = ok(generator.set_sampling(sampling)).is_some();
        generator.prime(&[1, 2]).unwrap();
        let mut drawn = Vec::new();
        generator.generate(9, |tokens| { drawn.extend_from_slice(tokens); true }).unwrap();
        prop_assert!(drawn.iter().all(|&token| token < 5 && !(set && Some(token) == never)), "{:?} {:?}", drawn, sampling);
        let mut sliding = SlidingWindow::new(&model, &parameters, 2).unwrap();
        if ok(sliding.set_never(never)).is_some() {
            sliding.extend(&[1, 2], 3).unwrap();
        }
    }
}

// ---- operations ----------------------------------------------------------------------------------------------------

/// An operation on two values, with numbers.
type Operation = fn(&mut Graph, [Var; 2], [usize; 3], f64) -> Result<Vec<Var>>;

const OPERATIONS: &[Operation] = &[
    |g, [x, y], _, _| functional::add(g, x, y).map(|z| vec![z]),
    |g, [x, y], _, _| functional::mul(g, x, y).map(|z| vec![z]),
    |g, [x, y], _, _| functional::linear(g, x, y, None).map(|z| vec![z]),
    |g, [x, y], _, _| functional::linear(g, x, y, Some(x)).map(|z| vec![z]),
    |g, [x, y], _, _| functional::concat(g, &[x, y, x], 0).map(|z| vec![z]),
    |g, [x, y], _, _| functional::concat(g, &[x, y, x], -1).map(|z| vec![z]),
    |g, _, _, _| functional::concat(g, &[], -1).map(|z| vec![z]),
    |g, _, _, _| functional::concat(g, &[], 0).map(|z| vec![z]),
    |g, [x, _], [start, length, _], _| functional::narrow(g, x, 0, start, length).map(|z| vec![z]),
    |g, [x, _], [index, ..], _| functional::select(g, x, 0, index).map(|z| vec![z]),
    |g, [x, _], _, _| functional::last(g, x).map(|z| vec![z]),
    |g, [x, _], _, _| functional::unbind(g, x),
    |g, [x, _], shape, _| functional::reshape(g, x, &shape).map(|z| vec![z]),
    |g, [x, _], _, _| functional::transpose(g, x, 0, 1).map(|z| vec![z]),
    |g, [x, _], _, _| functional::detach(g, x).map(|z| vec![z]),
    |g, [x, _], _, rate| functional::dropout(g, x, rate, 7).map(|z| vec![z]),
    |g, [x, _], [axis, ..], rate| functional::locked_dropout(g, x, axis as isize - 3, rate, 7).map(|z| vec![z]),
    |g, [x, _], [row, ..], _| functional::without_gradient_of_row(g, x, row).map(|z| vec![z]),
    |g, [x, _], _, _| functional::relu(g, x).map(|z| vec![z]),
    |g, [x, _], _, _| functional::tanh(g, x).map(|z| vec![z]),
    |g, [x, _], _, _| functional::sigmoid(g, x).map(|z| vec![z]),
    |g, [x, _], _, _| functional::log_softmax(g, x).map(|z| vec![z]),
    |g, [x, y], [vocabulary, batch, _], _| {
        let index = g.device().tokens("index", &[batch], vocabulary)?;
        let rows = functional::embedding(g, x, &index)?;
        Ok(vec![rows, functional::linear(g, rows, y, None)?])
    },
    |g, [x, _], [batch, steps, _], _| {
        let lengths = g.device().lengths("lengths", batch, steps)?;
        functional::reverse(g, x, &lengths).map(|z| vec![z])
    },
    |g, [x, y], [cell, start, _], _| {
        let cell = Cell::ALL[cell % Cell::ALL.len()];
        let start = (start > 3).then_some(States { h: x, c: None });
        let (output, end) = functional::recurrence(g, cell, x, y, None, start, None)?;
        Ok([output, end.h].into_iter().chain(end.c).collect())
    },
    |g, [x, y], [cell, ..], _| {
        let cell = Cell::ALL[cell % Cell::ALL.len()];
        let start = Some(States { h: y, c: Some(y) });
        let (output, end) = functional::recurrence(g, cell, x, y, Some(y), start, None)?;
        Ok([output, end.h].into_iter().chain(end.c).collect())
    },
];

/// All of them, on inputs of these shapes; where the dtype is not f32, none.
fn operate(device: &Device, shapes: [&[usize]; 2], numbers: [usize; 3], rate: f64, wants_u32: bool) {
    let inputs = shapes.map(|shape| match wants_u32 {
        true => device.upload_u32("numbers", shape, &vec![1; shape.iter().product()]).unwrap(),
        false => upload(device, shape),
    });
    for operation in OPERATIONS {
        let mut g = Graph::without_parameters(device);
        let xs = inputs.each_ref().map(|input| g.input_with_gradient(input).unwrap());
        let Some(results) = ok(operation(&mut g, xs, numbers, rate)) else { continue };
        let Some(tensors) = ok(results.iter().map(|&result| g.tensor(result)).collect::<Result<Vec<_>>>()) else {
            continue;
        };
        let loss = functional::mean(&mut g, results[0]);
        let Some(loss) = ok(loss) else { continue };
        if ok(g.backward(&[&loss], &[])).is_none() {
            continue;
        }
        let gradients: Vec<_> = xs.into_iter().filter_map(|x| g.gradient(x)).collect();
        let Some(plan) = ok(g.finish()) else { continue };
        plan.run().unwrap();
        for tensor in tensors.iter().chain(&gradients).filter(|tensor| tensor.dtype() == DType::F32) {
            all_finite(&tensor.to_vec().unwrap());
        }
    }
}

fn reductions<'a>(
    weights: &'a Tensor,
    lengths: Option<&'a Tensor>,
    class: u32,
    rate: f64,
) -> (Vec<WeightedReduction<'a>>, Vec<ClassReduction<'a>>) {
    let mut weighted = Vec::new();
    for reduction in [Reduction::Mean, Reduction::Sum] {
        weighted.extend([reduction.into(), reduction.weighted(weights)]);
        if let Some(lengths) = lengths {
            weighted.extend([reduction.up_to(lengths), reduction.weighted(weights).up_to(lengths)]);
        }
    }
    let ignoring = weighted.iter().map(|weighted| weighted.ignoring(class));
    let mut classes: Vec<ClassReduction<'_>> =
        weighted.iter().map(|&weighted| weighted.into()).chain(ignoring).collect();
    let optional = [
        Reduction::Mean.label_smoothing(rate),
        Reduction::Mean.class_weights(weights),
        Reduction::Sum.weighted(weights).class_weights(weights).label_smoothing(rate).ignoring(class),
    ];
    classes.extend(optional);
    (weighted, classes)
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn operations_on_any_shapes(
        x in small_shape(), y in small_shape(), same in any::<bool>(), numbers in [size(), size(), size()], rate in number(),
        wants_u32 in proptest::bool::weighted(0.1),
    ) {
        operate(&Device::cpu(), [&x, if same { &x } else { &y }], numbers, rate, wants_u32);
    }

    #[test]
    fn losses_of_any_shapes(
        x in small_shape(), other in small_shape(), same in any::<bool>(), weights in small_shape(), weight in -1.0f32..3.0,
        (batch, steps) in (0usize..5, 0usize..5), classes in size(), class in any::<u32>(), factor in number(),
    ) {
        let device = Device::cpu();
        let weights = device.upload("weights", &weights, &vec![weight.max(0.0); weights.iter().product()]).unwrap();
        let lengths = ok(device.lengths("lengths", batch, steps));
        let rows = if same { &x[..x.len() - 1] } else { &other };
        let targets = ok(device.targets("targets", if rows.is_empty() { &[1] } else { rows }, classes));
        let values = upload(&device, if same { &x } else { &other });
        let (weighted, of_classes) = reductions(&weights, lengths.as_ref(), class, factor);
        let x = upload(&device, &x);
        let look = |loss: &dyn Fn(&mut Graph, Var) -> Result<Loss>| {
            let mut g = Graph::without_parameters(&device);
            let x = g.input_with_gradient(&x).unwrap();
            let Some(loss) = ok(loss(&mut g, x)) else { return };
            let loss = loss * factor;
            if ok(g.backward(&[&loss], &[])).is_none() {
                return;
            }
            let gradient = g.gradient(x);
            g.finish().unwrap().run().unwrap();
            all_finite(&loss.rows().to_vec().unwrap());
            // A factor of 1e38 may be more than a gradient holds.
            if let Some(gradient) = gradient.filter(|_| factor.abs() < 1e6) {
                all_finite(&gradient.to_vec().unwrap());
            }
        };
        for reduction in weighted {
            look(&|g, x| functional::mse_loss(g, x, &values, reduction));
            look(&|g, x| functional::absolute_error(g, x, &values, reduction));
            look(&|g, x| functional::binary_cross_entropy_with_logits(g, x, &values, reduction));
            look(&|g, x| functional::reduce(g, x, reduction));
            look(&|g, x| functional::huber_loss(g, x, &values, factor as f32, reduction));
            look(&|g, x| functional::smooth_l1_loss(g, x, &values, factor as f32, reduction));
            look(&|g, x| functional::quantile_loss(g, x, &values, &[0.1, factor as f32, 0.9][..classes.min(3)], reduction));
            look(&|g, x| {
                let variance = g.input(&values)?;
                functional::gaussian_nll_loss(g, x, &values, variance, true, 1e-3, reduction)
            });
        }
        for (targets, &reduction) in targets.iter().flat_map(|targets| of_classes.iter().map(move |of| (targets, of))) {
            look(&|g, x| functional::cross_entropy(g, x, targets, reduction));
            look(&|g, x| functional::nll_loss(g, x, targets, reduction));
            look(&|g, x| functional::accuracy(g, x, targets, reduction));
            look(&|g, x| {
                let counts = g.device().zeros("counts", &[classes, classes], DType::U32)?;
                functional::confusion(g, x, targets, &counts)?;
                functional::mean(g, x)
            });
        }
    }

    #[test]
    fn blocks_of_any_size(
        a in small_shape(), b in small_shape(), c in small_shape(), block in [size(), size(), size(), size()],
        (transposed_a, transposed_b, is_b) in any::<(bool, bool, bool)>(),
    ) {
        let device = Device::cpu();
        let [x, y, z] = [&a, &b, &c].map(|shape| upload(&device, shape));
        let mut g = Graph::without_parameters(&device);
        let [offset, rows, columns, stride] = block;
        let part = Factor::block(if is_b { &y } else { &x }, offset, rows, columns, stride);
        let (left, right) = if is_b { (Factor::from(&x), part) } else { (part, Factor::from(&y)) };
        let left = if transposed_a { left.t() } else { left };
        let right = if transposed_b { right.t() } else { right };
        ok(matmul(&mut g, left, right, None, &z, false));
        let shape = z.shape().to_vec();
        let layout = |offset| Layout { offset, strides: (0..shape.len()).map(|d| [rows, columns, stride][d % 3]).collect() };
        ok(copy(&mut g, &shape, Operand::strided(&x, layout(offset)), (&z).into(), true));
        ok(copy(&mut g, &shape, (&x).into(), Operand::strided(&z, layout(rows)), is_b));
        g.finish().unwrap().run().unwrap();
        all_finite(&z.to_vec().unwrap());
    }
}

/// Faults that properties, and reading for them, have found.
#[test]
fn what_was_found_is_an_error() {
    let device = Device::cpu();
    let numbers = Array::targets("numbers", &[2], vec![1, 1], 2).unwrap();
    let floats = Array::new("floats", &[2, 1], vec![0.5; 2]).unwrap();
    says_why(&numbers.accuracy(&floats).unwrap_err());
    says_why(&floats.accuracy(&floats).unwrap_err());
    // In 32 bits it is 1.
    says_why(&device.lengths("lengths", 2, (1 << 32) + 1).unwrap_err());
    let mut init = Init::new(rng::manual_seed(1));
    says_why(&init.uniform("nan".into(), &[2], f64::NAN).unwrap_err());
    for layers in [usize::MAX, 1 << 40] {
        let options = RnnOptions::new(1, 1).num_layers(layers);
        let error = Recurrent::new(&mut init, "rnn", Cell::Gru, options).unwrap_err().to_string();
        assert!(error.contains("num_layers") && error.contains(&layers.to_string()), "{error}");
    }
    // A right factor of more rows than there are, and of none.
    let (x, y, z) = (upload(&device, &[2, 3]), upload(&device, &[2, 4]), upload(&device, &[2, 4]));
    let mut g = Graph::without_parameters(&device);
    says_why(&matmul(&mut g, &x, Factor::block(&y, 0, 3, 4, 4), None, &z, false).unwrap_err());
    let (left, right) = (Factor::block(&x, 0, 2, 0, 0), Factor::block(&y, 0, 0, 4, 4));
    says_why(&matmul(&mut g, left, right, None, &z, false).unwrap_err());
    // As many epochs as can be counted.
    let stopping = schedule::EarlyStopping::new(schedule::Mode::Min, 3, 0.0).unwrap();
    let mut text = serde_json::to_value(&stopping).unwrap();
    text["epochs"] = usize::MAX.into();
    text["best"]["bad_epochs"] = usize::MAX.into();
    let mut stopping: schedule::EarlyStopping = serde_json::from_value(text).unwrap();
    assert!(stopping.stop(f64::NAN) && stopping.stop(f64::NAN));
}

// ---- training ------------------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn optimizers_of_any_settings(n in [number(), number(), number(), number()], flag in any::<bool>(), clip in proptest::option::of(number())) {
        let [lr, a, b, c] = n;
        let adam = Adam { lr, betas: (a, b), eps: c, ..Adam::default() };
        let optimizers: [Optimizer; 7] = [
            adam.into(),
            Adam { lr, weight_decay: a, ..Adam::default() }.into(),
            AdamW(adam).into(),
            Sgd { lr, momentum: a, dampening: b, weight_decay: c, nesterov: flag }.into(),
            RmsProp { lr, alpha: a, eps: b, momentum: c, centered: flag, ..RmsProp::default() }.into(),
            RmsProp { lr, weight_decay: a, ..RmsProp::default() }.into(),
            Adagrad { lr, lr_decay: a, weight_decay: b, eps: c }.into(),
        ];
        for optimizer in optimizers {
            train(trainer(match clip {
                Some(most) if flag => optimizer.clip(Clip::Norm(most)),
                Some(most) => optimizer.clip(Clip::Value(most)),
                None => optimizer,
            }));
        }
        let mut trainer = trainer(Sgd::new(0.1)).unwrap();
        let before = trainer.lr();
        let set = ok(trainer.set_lr(lr)).is_some();
        prop_assert_eq!(trainer.lr(), if set { lr } else { before });
        prop_assert_eq!(set, lr >= 0.0 && (lr as f32).is_finite());
    }

    #[test]
    fn schedules_of_any_settings(
        n in [number(), number(), number(), number()], steps in size(), every in size(), at in size(), patience in size(), max in any::<bool>(),
    ) {
        let [lr, a, b, c] = n;
        let mode = if max { schedule::Mode::Max } else { schedule::Mode::Min };
        if let Some(schedule) = ok(schedule::Step::new(lr, steps, a)) {
            train(trainer(Sgd::default().schedule(schedule)));
        }
        if let Some(schedule) = ok(schedule::Exponential::new(lr, a)) {
            train(trainer(Sgd::default().schedule(schedule)));
        }
        if let Some(schedule) = ok(schedule::CosineAnnealing::new(lr, steps, a)) {
            prop_assert!(schedule.lr(at).is_finite());
            if let Some(schedule) = ok(schedule.every(every)) {
                prop_assert!(schedule.lr(at).is_finite());
                train(trainer(Sgd::default().schedule(schedule)));
            }
        }
        let options = OneCycleOptions { pct_start: a, div_factor: b, final_div_factor: c };
        if let Some(schedule) = ok(schedule::OneCycle::new(lr, steps, options)) {
            train(trainer(Sgd::default().schedule(schedule)));
        }
        let threshold = if max { Threshold::Relative(b) } else { Threshold::Absolute(b) };
        let options = PlateauOptions { mode, factor: a, patience, threshold, cooldown: every, min_lr: c, eps: b };
        if let Some(mut plateau) = ok(schedule::ReduceOnPlateau::new(lr, options)) {
            for metric in n {
                let next = plateau.step(metric);
                prop_assert!(next.is_finite() && next >= 0.0);
            }
        }
        if let Some(mut stopping) = ok(schedule::EarlyStopping::new(mode, patience, a)) {
            n.into_iter().for_each(|metric| _ = stopping.stop(metric));
            prop_assert!(stopping.best().is_none_or(|best| !best.is_nan()));
        }
    }

    #[test]
    fn steps_of_any_number(most in 0usize..3, batches in 0usize..3, rows in size(), columns in size(), bad in number()) {
        let mut trainer = trainer(Adam::default()).unwrap();
        if let Some(steps) = ok(trainer.step_up_to(most)) {
            prop_assert!((1..=most).contains(&steps));
        }
        prop_assert_eq!(trainer.losses().unwrap().len() as u64, trainer.steps());
        let (model, parameters) = network();
        let device = parameters.device();
        let tokens = device.tokens("tokens", &[2, 3], 5).unwrap();
        let targets = device.targets("targets", &[1, 3], 5).unwrap();
        let mut evaluator = Evaluator::new(&parameters, |g| {
            let logits = model.forward(g, &tokens, InitialState::Zero)?;
            functional::cross_entropy(g, logits, &targets, Reduction::Mean)
        }).unwrap();
        if let Some(losses) = ok(evaluator.losses(batches)) {
            prop_assert_eq!(losses.len(), batches);
        }
        let mut predictor = Predictor::new(&parameters, |g, [x]| Ok([g.input(x)?]));
        if rows < 9 && columns < 9
            && let Some(x) = ok(Array::new("x", &[rows, columns], vec![bad as f32; rows * columns]))
            && let Some([y]) = ok(predictor.run(&[x]))
        {
            prop_assert_eq!(y.shape(), [rows, columns]);
        }
    }
}

// ---- files ---------------------------------------------------------------------------------------------------------

/// A change of a file's bytes.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    /// A number of the header, if there is one from there on, becomes this.
    Number(Index, u64),
}

/// Names that mean something in a file, or might.
const SPECIAL: &[&str] =
    &["", ".", "__metadata__", "checkpoint", "config", "optimizer.x", "state.h", "data.x", "\0", "\"", "{", "a.b"];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![".{0,12}", select(SPECIAL).prop_map(String::from)]
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    prop_oneof![
        4 => (place(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        2 => (place(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => place().prop_map(Change::Cut),
        1 => (place(), 1usize..9).prop_map(|(at, n)| Change::Remove(at, n)),
        1 => (place(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        4 => (place(), prop_oneof![0u64..300, any::<u64>()]).prop_map(|(at, number)| Change::Number(at, number)),
    ]
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        match self {
            Self::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Self::Set(at, byte) => bytes[at.index(len)] = *byte,
            Self::Cut(at) => bytes.truncate(at.index(len)),
            Self::Remove(at, n) => drop(bytes.drain(at.index(len)..len.min(at.index(len) + n))),
            Self::Insert(at, new) => drop(bytes.splice(at.index(len)..at.index(len), new.iter().copied())),
            Self::Number(at, number) => {
                let is_digit = |byte: &u8| byte.is_ascii_digit();
                let start = at.index(len);
                let Some(first) = bytes[start..].iter().position(is_digit).map(|skip| start + skip) else { return };
                let end = bytes[first..].iter().position(|byte| !is_digit(byte)).map_or(len, |n| first + n);
                bytes.splice(first..end, number.to_string().into_bytes());
                // The header may have another length now.
                if let Some((word, rest)) = bytes.split_first_chunk_mut::<8>()
                    && let Some(end) = rest.iter().rposition(|&byte| byte == b'}')
                {
                    *word = (end as u64 + 1).to_le_bytes();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(2048))]

    #[test]
    fn files_with_any_damage(changes in vec(change(), 1..4), of in 0usize..3, strict in any::<bool>(), finite in any::<bool>()) {
        thread_local!(static FILES: (tempfile::TempDir, [Vec<u8>; 3]) = {
            let folder = tempfile::tempdir().unwrap();
            let (model, parameters) = network();
            let path = folder.path().join("file");
            let bytes = |save: &dyn Fn()| { save(); std::fs::read(&path).unwrap() };
            let files = [
                bytes(&|| io::save_with_config(&path, &parameters, &(1, "a")).unwrap()),
                bytes(&|| io::save_state(&path, &model.state(&Device::cpu(), 2).unwrap()).unwrap()),
                bytes(&|| {
                    let mut checkpoint = trainer(Adam::default()).unwrap().checkpoint().unwrap();
                    checkpoint.set_order("order", &[2, 0, 1]);
                    checkpoint.set("rng", &rng::manual_seed(1)).unwrap();
                    checkpoint.save(&path).unwrap();
                }),
            ];
            (folder, files)
        });
        FILES.with(|(folder, files)| {
            let mut bytes = files[of].clone();
            changes.iter().for_each(|change| change.apply(&mut bytes));
            let path = folder.path().join("file");
            std::fs::write(&path, &bytes).unwrap();
            let (model, parameters) = network();
            let before = bits(&parameters);
            if ok(io::load_with(&path, &parameters, Load { strict, finite })).is_none() {
                assert_eq!(bits(&parameters), before);
            } else if finite {
                assert!(bits(&parameters).into_iter().all(|bits| f32::from_bits(bits).is_finite()));
            }
            ok(io::load_state(&path, &model.state(&Device::cpu(), 2).unwrap()));
            ok(io::metadata(&path));
            ok(io::config::<(usize, String)>(&path));
            if let Some(checkpoint) = ok(Checkpoint::load(&path)) {
                assert!(bytes == files[of] || checkpoint.to_bytes().unwrap() == files[of], "damage that the checksum misses");
            }
        });
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn model_files_of_any_names(names in vec(name(), 1..4), key in name(), value in name()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let device = Device::cpu();
        let mut init = Init::new(rng::manual_seed(1));
        let ids: Vec<_> = names.iter().filter_map(|name| ok(init.normal(name.clone(), &[2, 3]))).collect();
        let (parameters, others) = (init.upload(&device).unwrap(), init.upload(&device).unwrap());
        others.iter().for_each(|(_, tensor)| tensor.write(&[0.0; 6]).unwrap());
        if ok(io::save(&path, &parameters, [(key.clone(), value.clone())].into())).is_some() {
            io::load(&path, &others).unwrap();
            prop_assert_eq!(bits(&others), bits(&parameters));
            prop_assert_eq!(&io::metadata(&path).unwrap()[&key], &value);
        }
        let states: Vec<_> = names.iter().map(|name| (name.as_str(), [1, 2, 3])).collect();
        let state = State::zeros(&device, &states).unwrap();
        if ok(io::save_state(&path, &state)).is_some() {
            io::load_state(&path, &state).unwrap();
        }
        let trainer = || Trainer::new(&parameters, Adam::default(), |g| {
            let x = g.parameter(ids[0])?;
            functional::mean(g, x)
        });
        let (mut trainer, mut other) = (trainer().unwrap(), trainer().unwrap());
        trainer.step().unwrap();
        if let Some(mut checkpoint) = ok(trainer.checkpoint())
            && ok(checkpoint.set_state(&key, &state)).is_some()
            && ok(checkpoint.save(&path)).is_some()
        {
            let read = Checkpoint::load(&path).unwrap();
            prop_assert_eq!(&read, &checkpoint);
            read.restore_state(&key, &state).unwrap();
            other.restore(&read).unwrap();
            prop_assert_eq!(other.steps(), 1);
        }
    }

    #[test]
    fn a_checkpoint_of_any_names(name in ".{0,12}", other in ".{0,12}", order in vec(any::<u32>(), 0..9), value in any::<f64>()) {
        let mut trainer = trainer(Adam::default()).unwrap();
        let mut checkpoint = trainer.checkpoint().unwrap();
        checkpoint.set_order(&name, &order);
        let set = ok(checkpoint.set(&name, &value)).is_some();
        prop_assert_eq!(checkpoint.order(&name).unwrap(), order);
        ok(checkpoint.order(&other));
        if let Some(back) = ok(checkpoint.get::<f64>(&name)) {
            prop_assert!(set && back.to_bits() == value.to_bits());
        }
        ok(checkpoint.get::<String>(&other));
        trainer.restore(&checkpoint).unwrap();
        let folder = tempfile::tempdir().unwrap();
        if ok(checkpoint.save(folder.path().join("checkpoint"))).is_some() {
            prop_assert_eq!(Checkpoint::load(folder.path().join("checkpoint")).unwrap(), checkpoint);
        }
    }
}
