//! Generation on the device gives what a plain host loop gives.

mod common;

use common::f32_devices;
use elman::generate::{Generator, SlidingWindow};
use elman::nn::functional::InitialState;
use elman::nn::{CharRnn, CharRnnOptions, Init, LanguageModel, Parameters};
use elman::{Device, Error, Graph, rng};

const VOCABULARY: usize = 11;

fn model(device: &Device) -> (CharRnn, Parameters) {
    let mut init = Init::new(rng::manual_seed(9));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(VOCABULARY, 4, 8)).unwrap();
    let parameters = init.upload(device).unwrap();
    // Initial weights are timid; louder ones make texts that differ.
    for (_, tensor) in parameters.iter() {
        tensor.write(&tensor.to_vec().unwrap().iter().map(|w| 3.0 * w).collect::<Vec<_>>()).unwrap();
    }
    (model, parameters)
}

/// The logits after these tokens, from a zero state.
fn logits(model: &CharRnn, parameters: &Parameters, tokens: &[u32]) -> Vec<f32> {
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

#[test]
fn greedy_equals_the_host_loop() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let prompt = [3, 1, 4];
        let mut want = prompt.to_vec();
        for _ in 0..70 {
            want.push(argmax(&logits(&model, &parameters, &want)));
        }
        let mut generator = Generator::new(&model, &parameters, 1).unwrap();
        generator.prime(&prompt).unwrap();
        // More than the ring holds, in calls that do not divide it.
        let mut got = collect(&mut generator, 45);
        got.extend(collect(&mut generator, 25));
        assert_eq!(got, want[3..]);
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
        generator.set_temperature(heat).unwrap();
        generator.set_seed(5).unwrap();
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

#[test]
fn the_seed_decides_the_text() {
    for device in f32_devices() {
        let (model, parameters) = model(&device);
        let text = |seed: u32| {
            let mut generator = Generator::new(&model, &parameters, 2).unwrap();
            generator.set_temperature(1.0).unwrap();
            generator.set_seed(seed).unwrap();
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
        assert_eq!(after.uploads, before.uploads);
    }
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
    for heat in [-0.1, f32::NAN, f32::INFINITY] {
        assert!(matches!(generator.set_temperature(heat), Err(Error::Argument { argument: "temperature", .. })));
    }
    assert!(Generator::new(&model, &parameters, 0).is_err());
    assert!(SlidingWindow::new(&model, &parameters, 0).is_err());
    assert!(SlidingWindow::new(&model, &parameters, 3).unwrap().next(&[1, 2]).is_err());
}
