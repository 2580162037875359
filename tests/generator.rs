//! Generation on the device gives what a plain host loop gives.

mod common;

use common::{f32_devices, model_of};
use elman::generate::{Generator, Sampling, SlidingWindow};
use elman::nn::functional::{self, InitialState};
use elman::nn::{
    Activation, Cell, CharRnn, CharRnnOptions, Embedding, Hidden, Init, LanguageModel, Linear, Parameters, Recurrent,
    RnnOptions, State,
};
use elman::{Device, Error, Graph, Result, Tensor, Var};

const VOCABULARY: usize = 11;

fn model(device: &Device) -> (CharRnn, Parameters) {
    model_of(device, CharRnnOptions::new(VOCABULARY, 4, 8))
}

/// The logits after these tokens, from a zero state.
fn logits(model: &impl LanguageModel, parameters: &Parameters, tokens: &[u32]) -> Vec<f32> {
    let input = parameters.device().tokens("tokens", &[tokens.len(), 1], VOCABULARY).unwrap();
    input.write_u32(tokens).unwrap();
    let mut g = Graph::inference(parameters);
    let out = model.forward(&mut g, &input, InitialState::Zero).unwrap();
    let out = g.tensor(out).unwrap();
    g.finish().unwrap().run().unwrap();
    out.to_vec().unwrap()
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

fn collect(generator: &mut Generator, length: usize) -> Vec<u32> {
    let mut all = Vec::new();
    generator
        .generate(length, |tokens| {
            all.extend_from_slice(tokens);
            true
        })
        .unwrap();
    all
}

/// Of every cell, stacked, and of a hidden size that goes step by step.
#[test]
fn greedy_equals_the_host_loop() {
    let small = CharRnnOptions::new(VOCABULARY, 4, 8);
    let (gru, lstm) = (small.cell(Cell::Gru), small.cell(Cell::Lstm).num_layers(2));
    let large = CharRnnOptions::new(VOCABULARY, 4, 1030);
    for device in f32_devices() {
        for (options, length) in [(small, 70), (gru, 30), (lstm, 30), (large, 8)] {
            let (model, parameters) = model_of(&device, options);
            let prompt = [3, 1, 4];
            let mut want = prompt.to_vec();
            for _ in 0..length {
                want.push(argmax(&logits(&model, &parameters, &want)));
            }
            let mut generator = Generator::new(&model, &parameters, 1).unwrap();
            generator.prime(&prompt).unwrap();
            // More than the ring holds, in calls that do not divide it.
            let mut got = collect(&mut generator, length - 5);
            got.extend(collect(&mut generator, 5));
            assert_eq!(got, want[3..], "{options:?} on {}", device.describe());
        }
    }
}

/// A network of a cell that `shaders/generate.wgsl` does not know takes the chain of dispatches.
struct Asked {
    embedding: Embedding,
    rnn: Recurrent,
    output: Linear,
}

impl LanguageModel for Asked {
    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn state(&self, device: &Device, batch: usize) -> Result<State> {
        self.rnn.state(device, batch)
    }

    fn hidden(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Hidden> {
        let x = self.embedding.forward(g, tokens)?;
        let (all, end) = self.rnn.forward(g, x, initial)?;
        Ok(Hidden { output: all, last: end.h })
    }

    fn logits(&self, g: &mut Graph, hidden: Var) -> Result<Var> {
        self.output.forward(g, hidden)
    }
}

#[test]
fn cells_with_options_write_too() {
    let options = RnnOptions::new(4, 8);
    let lstm = options.peepholes(true).coupled(true).clip(2.0);
    let gru = options.activations(&[Activation::Sigmoid, Activation::Softsign, Activation::Elu { alpha: 1.0 }]);
    for (device, (cell, options)) in f32_devices().into_iter().flat_map(|device| {
        [(Cell::Lstm, lstm), (Cell::Gru, gru), (Cell::Gru, options.reset_after(false))].map(|of| (device.clone(), of))
    }) {
        let mut init = Init::new(elman::rng::manual_seed(9));
        let model = Asked {
            embedding: Embedding::new(&mut init, "embedding", VOCABULARY, 4).unwrap(),
            rnn: Recurrent::new(&mut init, "rnn", cell, options).unwrap(),
            output: Linear::new(&mut init, "output", 8, VOCABULARY).unwrap(),
        };
        let parameters = init.upload(&device).unwrap();
        for (_, tensor) in parameters.iter() {
            tensor.write(&tensor.to_vec().unwrap().iter().map(|w| 3.0 * w).collect::<Vec<_>>()).unwrap();
        }
        let prompt = [3, 1, 4];
        let mut want = prompt.to_vec();
        for _ in 0..20 {
            want.push(argmax(&logits(&model, &parameters, &want)));
        }
        let mut generator = Generator::new(&model, &parameters, 1).unwrap();
        generator.prime(&prompt).unwrap();
        assert_eq!(collect(&mut generator, 20), want[3..], "{cell:?} on {}", device.describe());
    }
}

#[test]
fn sliding_window_equals_the_host_loop() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let mut want = vec![3, 1, 4, 1];
        for i in 0..20 {
            want.push(argmax(&logits(&model, &parameters, &want[i..i + 4])));
        }
        let mut window = SlidingWindow::new(&model, &parameters, 4).unwrap();
        assert_eq!(window.extend(&want[..4], 20).unwrap(), want);
    }
}

#[test]
fn sampling_follows_the_distribution() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let (lanes, heat) = (4000, 1.3);
        let mut generator = Generator::new(&model, &parameters, lanes).unwrap();
        generator.set_sampling(Sampling { temperature: heat, seed: 5, ..Sampling::default() }).unwrap();
        generator.prime(&[7]).unwrap();
        let mut counts = [0.0f64; VOCABULARY];
        for token in collect(&mut generator, 1) {
            counts[token as usize] += 1.0;
        }
        let weights: Vec<f64> =
            logits(&model, &parameters, &[7]).iter().map(|&z| (f64::from(z) / f64::from(heat)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let chi_square: f64 = counts
            .iter()
            .zip(weights)
            .map(|(count, weight)| {
                let expected = lanes as f64 * weight / total;
                (count - expected).powi(2) / expected
            })
            .sum();
        // 99.9% of the chi-square distribution with 10 degrees of freedom.
        assert!(chi_square <= 29.6, "{chi_square} {counts:?}");
    }
}

/// The same tokens as from a plain loop on the host that sorts, keeps, and draws by the same generator.
#[test]
fn top_k_and_top_p_draw_among_the_most_likely() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let logits = logits(&model, &parameters, &[7]);
        let mut order: Vec<u32> = (0..VOCABULARY as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        let probability = |temperature: f32| {
            let weight = |token: &u32| (f64::from(logits[*token as usize]) / f64::from(temperature)).exp();
            let total: f64 = order.iter().map(weight).sum();
            order.iter().map(|token| weight(token) / total).collect::<Vec<_>>()
        };
        for (top_k, top_p) in [(Some(3), None), (None, Some(0.6)), (Some(4), Some(0.5)), (Some(1), Some(1.0))] {
            let sampling = Sampling { temperature: 2.0, top_k, top_p, seed: 9, ..Sampling::default() };
            let kept_by_k = top_k.unwrap_or(VOCABULARY);
            let probabilities = &probability(2.0)[..kept_by_k];
            let enough = f64::from(top_p.unwrap_or(1.0)) * probabilities.iter().sum::<f64>() - 1e-9;
            let mut sum = 0.0;
            let kept = probabilities.iter().position(|p| {
                sum += p;
                sum >= enough
            });
            let kept = &order[..=kept.unwrap()];
            let mut generator = Generator::new(&model, &parameters, 2000).unwrap();
            generator.set_sampling(sampling).unwrap();
            generator.prime(&[7]).unwrap();
            let drawn: std::collections::BTreeSet<u32> = collect(&mut generator, 1).into_iter().collect();
            let kept: std::collections::BTreeSet<u32> = kept.iter().copied().collect();
            assert_eq!(drawn, kept, "{top_k:?} {top_p:?} on {}", device.describe());
        }
    }
}

/// Lanes of one generator differ in settings as generators do.
#[test]
fn lanes_have_settings_of_their_own() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let greedy = Sampling::default();
        let settings = [
            greedy,
            Sampling { temperature: 1.5, seed: 4, ..greedy },
            Sampling { temperature: 2.0, top_k: Some(3), seed: 5, ..greedy },
            Sampling { temperature: 1.0, top_p: Some(0.5), seed: 6, ..greedy },
        ];
        let text = |settings: [Sampling; 4]| {
            let mut generator = Generator::new(&model, &parameters, 4).unwrap();
            generator.set_sampling_of_lanes(&settings).unwrap();
            generator.prime(&[1, 2]).unwrap();
            collect(&mut generator, 30)
        };
        let together = text(settings);
        let lane = |text: &[u32], i: usize| text.iter().skip(i).step_by(4).copied().collect::<Vec<_>>();
        for (i, &setting) in settings.iter().enumerate() {
            assert_eq!(lane(&text([setting; 4]), i), lane(&together, i), "lane {i} on {}", device.describe());
        }
    }
}

/// After steps run by hand, whose tokens nobody sees, the text goes on from there.
#[test]
fn steps_run_by_hand_are_counted() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let primed = || {
            let mut generator = Generator::new(&model, &parameters, 1).unwrap();
            generator.prime(&[1, 2]).unwrap();
            let text = collect(&mut generator, 3);
            (generator, text)
        };
        let (mut plain, mut text) = primed();
        text.extend(collect(&mut plain, 10));
        let (mut generator, _) = primed();
        generator.plan().run_times(4).unwrap();
        assert_eq!(collect(&mut generator, 6), text[7..]);
    }
}

/// A lane that has drawn its stop token draws nothing else, and generation ends when all have.
#[test]
fn stop_tokens_end_a_lane() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let lanes = 3;
        let mut generator = Generator::new(&model, &parameters, lanes).unwrap();
        let free = Sampling { temperature: 1.0, seed: 8, ..Sampling::default() };
        generator.set_sampling(free).unwrap();
        generator.prime(&[1]).unwrap();
        let text = collect(&mut generator, 400);
        let stop = text[0];
        // A prompt that ends with the stop token does not stop the text.
        generator.set_sampling(Sampling { stop: Some(stop), ..free }).unwrap();
        generator.prime(&[1]).unwrap();
        let stopped = collect(&mut generator, 400);
        for lane in 0..lanes {
            let of = |text: &[u32]| text.iter().skip(lane).step_by(lanes).copied().collect::<Vec<_>>();
            let (free, stopped) = (of(&text), of(&stopped));
            let end = free.iter().position(|&token| token == stop).unwrap_or(free.len()).min(stopped.len());
            assert_eq!(free[..end], stopped[..end]);
            assert!(stopped[end..].iter().all(|&token| token == stop), "{stopped:?}");
        }
        assert!(stopped.len() < text.len(), "all lanes had drawn it after some chunks");
        generator.prime(&[1, stop]).unwrap();
        assert!(collect(&mut generator, 64).iter().any(|&token| token != stop));
    }
}

#[test]
fn the_seed_decides_the_text() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let text = |seed: u32| {
            let mut generator = Generator::new(&model, &parameters, 2).unwrap();
            generator.set_sampling(Sampling { temperature: 1.0, seed, ..Sampling::default() }).unwrap();
            generator.prime(&[1, 2]).unwrap();
            let text = collect(&mut generator, 40);
            generator.prime(&[1, 2]).unwrap();
            assert_eq!(collect(&mut generator, 40), text, "primed again, it starts again");
            text
        };
        let first = text(1);
        assert_eq!(first, text(1));
        assert_ne!(first, text(2));
        let lanes: (Vec<u32>, Vec<u32>) = first.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
        assert_ne!(lanes.0, lanes.1, "lanes have draws of their own");
    }
}

#[test]
fn generation_stops_when_told() {
    let (model, parameters) = model(&Device::cpu());
    let mut generator = Generator::new(&model, &parameters, 1).unwrap();
    generator.prime(&[1]).unwrap();
    let mut chunks = 0;
    generator
        .generate(1000, |_| {
            chunks += 1;
            chunks < 3
        })
        .unwrap();
    assert_eq!(chunks, 3);
}

#[test]
fn a_chunk_of_characters_is_one_submission() {
    for device in [Some(Device::cpu()), common::own_gpu()].into_iter().flatten() {
        let (model, parameters) = model(&device);
        let mut generator = Generator::new(&model, &parameters, 1).unwrap();
        generator.prime(&[1]).unwrap();
        let before = device.count();
        collect(&mut generator, 320);
        let after = device.count();
        assert_eq!((after.submits - before.submits, after.downloads - before.downloads), (5, 5));
        assert_eq!(after.uploads - before.uploads, 1, "the counter, once");
    }
}

/// A network that the generator does not know to be a `CharRnn`.
struct Unknown(CharRnn);

impl LanguageModel for Unknown {
    fn vocabulary(&self) -> usize {
        self.0.vocabulary()
    }

    fn state(&self, device: &Device, batch: usize) -> Result<State> {
        self.0.state(device, batch)
    }

    fn hidden(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Hidden> {
        self.0.hidden(g, tokens, initial)
    }

    fn logits(&self, g: &mut Graph, hidden: Var) -> Result<Var> {
        self.0.logits(g, hidden)
    }
}

/// A reserved token is drawn by no sampler, however bold, and greedily neither.
#[test]
fn a_reserved_token_is_never_drawn() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        for lanes in [2, 20] {
            let mut generator = Generator::new(&model, &parameters, lanes).unwrap();
            let mut counts = |temperature: f32, top_p: Option<f32>, never: Option<u32>| {
                let sampling = Sampling { temperature, top_p, never, seed: 7, ..Sampling::default() };
                generator.set_sampling(sampling).unwrap();
                generator.prime(&[1]).unwrap();
                let mut counts = vec![0; VOCABULARY];
                collect(&mut generator, 300).iter().for_each(|&token| counts[token as usize] += 1);
                counts
            };
            for (temperature, top_p) in [(0.0, None), (2.0, None), (2.0, Some(0.9))] {
                let free = counts(temperature, top_p, None);
                let most = (0..VOCABULARY).max_by_key(|&token| free[token]).unwrap();
                let without = counts(temperature, top_p, Some(most as u32));
                assert!(free[most] > 0 && without[most] == 0, "{temperature} {top_p:?} {free:?} {without:?}");
                assert_eq!(without.iter().sum::<usize>(), 300 * lanes);
            }
        }
        let mut sliding = SlidingWindow::new(&model, &parameters, 2).unwrap();
        let free = sliding.next(&[1, 2]).unwrap();
        sliding.set_never(Some(free)).unwrap();
        assert_ne!(sliding.next(&[1, 2]).unwrap(), free, "on {}", device.describe());
    }
}

/// A network around a `CharRnn`: `scaled` doubles its logits, `busy` does more than that network.
struct Around {
    inner: CharRnn,
    scaled: bool,
    busy: bool,
}

impl LanguageModel for Around {
    fn vocabulary(&self) -> usize {
        self.inner.vocabulary()
    }

    fn state(&self, device: &Device, batch: usize) -> Result<State> {
        self.inner.state(device, batch)
    }

    fn hidden(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Hidden> {
        self.inner.hidden(g, tokens, initial)
    }

    fn logits(&self, g: &mut Graph, hidden: Var) -> Result<Var> {
        self.inner.logits(g, hidden)
    }

    fn forward(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Var> {
        let logits = self.inner.forward(g, tokens, initial)?;
        if self.busy {
            functional::relu(g, logits)?;
        }
        if self.scaled { functional::add(g, logits, logits) } else { Ok(logits) }
    }
}

/// Many tokens are drawn in one dispatch where the network is all that was recorded, whatever the type of the model.
#[test]
fn one_dispatch_is_for_the_network_alone() {
    let Some(device) = common::gpu() else { return };
    let (inner, parameters) = model(&device);
    for (scaled, busy, kernel) in [(false, false, "generate"), (true, false, "sample"), (false, true, "sample")] {
        let model = Around { inner: inner.clone(), scaled, busy };
        let generator = Generator::new(&model, &parameters, 1).unwrap();
        assert!(generator.plan().kernels().contains(&kernel), "{scaled} {busy} {}", generator.plan());
    }
}

/// Greedy and drawn, on one adapter: the same tokens, whatever the pieces.
#[test]
fn one_dispatch_and_the_chain_agree() {
    let Some(device) = common::gpu() else { return };
    let small = CharRnnOptions::new(VOCABULARY, 4, 8);
    let sizes = [
        small,
        small.cell(Cell::Relu).num_layers(3),
        CharRnnOptions::new(VOCABULARY, 4, 7).cell(Cell::Gru).num_layers(2),
        CharRnnOptions::new(VOCABULARY, 4, 70).cell(Cell::Lstm).num_layers(2),
    ];
    for options in sizes {
        let (model, parameters) = model_of(&device, options);
        let greedy = Sampling::default();
        let drawn = Sampling {
            temperature: 1.0,
            top_k: Some(7),
            top_p: Some(0.9),
            min_p: Some(0.02),
            repeat_penalty: 1.2,
            repeat_last_n: 5,
            seed: 3,
            draws_of: None,
            stop: Some(2),
            never: Some(5),
        };
        let text = |model: &dyn LanguageModel, kernel: &str| {
            let mut generator = Generator::new(model, &parameters, 3).unwrap();
            assert!(generator.plan().kernels().contains(&kernel), "{}", generator.plan());
            generator.set_sampling_of_lanes(&[greedy, drawn, Sampling { seed: 4, stop: None, ..drawn }]).unwrap();
            generator.prime(&[3, 1, 4]).unwrap();
            [64, 3, 64, 10].map(|length| collect(&mut generator, length)).concat()
        };
        let drawn = text(&model, "generate");
        assert_eq!(drawn, text(&Unknown(model.clone()), "sample"), "{options:?}");
        let without_stop: std::collections::BTreeSet<_> = drawn.iter().skip(2).step_by(3).collect();
        // Three layers of relu are sure of one token.
        assert!(options.cell == Cell::Relu || without_stop.len() > 2, "{options:?}: {without_stop:?}");
    }
}

#[test]
fn one_dispatch_draws_many_tokens() {
    let Some(device) = common::own_gpu() else { return };
    let (model, parameters) = model(&device);
    let mut generator = Generator::new(&model, &parameters, 1).unwrap();
    let dispatches = |generator: &mut Generator, length| {
        let before = device.count();
        collect(generator, length);
        device.count().dispatches - before.dispatches
    };
    let chunk = dispatches(&mut generator, 64);
    let constants = chunk - 1;
    assert!(constants < 10, "{constants} for what depends on the parameters alone");
    assert_eq!(dispatches(&mut generator, 64), chunk);
    assert_eq!(dispatches(&mut generator, 3) - constants, 3, "less than the ring holds goes token by token");
}

/// The plan says which way was taken, and why not the other.
#[test]
fn what_does_not_fit_takes_the_chain() {
    let options = CharRnnOptions::new(VOCABULARY, 4, 8);
    let large = CharRnnOptions::new(VOCABULARY, 4, 700).cell(Cell::Lstm).num_layers(2);
    let check = |device: &Device, options, lanes, unknown: bool, note: &str| {
        let (model, parameters) = model_of(device, options);
        let unknown = unknown.then(|| Unknown(model.clone()));
        let model: &dyn LanguageModel = unknown.as_ref().map_or(&model, |unknown| unknown);
        let generator = Generator::new(model, &parameters, lanes).unwrap();
        let plan = generator.plan();
        assert_eq!(plan.kernels() == ["generate"], note.contains("64 tokens in one dispatch"), "{plan}");
        assert!(plan.to_string().contains(note), "{note:?} is not in {plan}");
    };
    check(&Device::cpu(), options, 1, false, "need a GPU");
    let Some(device) = common::gpu() else { return };
    check(&device, options, 2, false, "64 tokens in one dispatch, a workgroup for each of 2 lanes");
    check(&device, options, 17, false, "lanes, not 17");
    check(&device, options, 1, true, "need a `CharRnn`");
    check(&device, large, 1, false, "need at most 16384 bytes of workgroup memory, not ");
}

/// What is made of the parameters alone is made anew for each piece of text, primed or not.
#[test]
fn changed_parameters_are_used_at_once() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let set = |name: &str, at: &[(usize, f32)]| {
            let tensor = parameters.get(name).unwrap();
            let mut values = vec![0.0; tensor.len()];
            at.iter().for_each(|&(i, value)| values[i] = value);
            tensor.write(&values).unwrap();
        };
        // The bias of the first unit says which of two tokens comes, whatever came before.
        for name in ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_hh_l0", "output_layer.bias"] {
            set(name, &[]);
        }
        set("output_layer.weight", &[(5 * 8, 10.0), (2 * 8, -10.0)]);
        set("rnn.bias_ih_l0", &[(0, 10.0)]);
        let mut generator = Generator::new(&model, &parameters, 1).unwrap();
        generator.prime(&[1, 3]).unwrap();
        assert_eq!(collect(&mut generator, 3), [5, 5, 5]);
        set("rnn.bias_ih_l0", &[(0, -10.0)]);
        assert_eq!(collect(&mut generator, 3), [2, 2, 2]);
        assert!(!generator.plan().kernels().contains(&"pack"), "{}", generator.plan());
    }
}

#[test]
fn bad_input_is_refused() {
    let (model, parameters) = model(&Device::cpu());
    let mut generator = Generator::new(&model, &parameters, 1).unwrap();
    assert!(matches!(generator.prime(&[]), Err(Error::Argument { argument: "prompt", .. })));
    generator.prime(&[1]).unwrap();
    let text = collect(&mut generator, 5);
    generator.prime(&[1]).unwrap();
    assert!(matches!(generator.prime(&[1, 11]), Err(Error::Token { token: 11, .. })));
    assert_eq!(collect(&mut generator, 5), text, "a refused prompt changes nothing");
    let good = Sampling::default();
    let bad = [
        ("temperature", Sampling { temperature: -0.1, ..good }),
        ("temperature", Sampling { temperature: f32::NAN, ..good }),
        ("temperature", Sampling { temperature: f32::INFINITY, ..good }),
        ("top_k", Sampling { top_k: Some(0), ..good }),
        ("top_p", Sampling { top_p: Some(0.0), ..good }),
        ("top_p", Sampling { top_p: Some(f32::NAN), ..good }),
        ("min_p", Sampling { min_p: Some(-0.1), ..good }),
        ("min_p", Sampling { min_p: Some(1.1), ..good }),
        ("min_p", Sampling { min_p: Some(f32::NAN), ..good }),
        ("repeat_penalty", Sampling { repeat_penalty: 0.0, ..good }),
        ("repeat_penalty", Sampling { repeat_penalty: f32::NAN, ..good }),
        ("repeat_penalty", Sampling { repeat_penalty: f32::INFINITY, ..good }),
        ("stop", Sampling { stop: Some(11), ..good }),
        ("never", Sampling { never: Some(11), ..good }),
    ];
    for (name, sampling) in bad {
        let error = generator.set_sampling(sampling).unwrap_err();
        assert!(matches!(error, Error::Argument { argument, .. } if argument == name), "{error}");
    }
    assert!(generator.set_sampling_of_lanes(&[good; 2]).is_err());
    generator.prime(&[1]).unwrap();
    assert_eq!(collect(&mut generator, 5), text, "refused settings change nothing");
    assert!(Generator::new(&model, &parameters, 0).is_err());
    assert!(SlidingWindow::new(&model, &parameters, 0).is_err());
    assert!(SlidingWindow::new(&model, &parameters, 3).unwrap().next(&[1, 2]).is_err());
}
