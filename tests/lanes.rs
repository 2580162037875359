//! Samplers, lanes and readers against plain loops on the host, generators of one lane, and the network's own forward pass.

mod common;

use std::collections::BTreeSet;

use common::{assert_close, f32_devices, model_of, own_gpu, widen};
use elman::data::Array;
use elman::generate::{Generator, Lane, Sampling};
use elman::nn::functional::InitialState;
use elman::nn::{Cell, CharRnn, CharRnnOptions, LanguageModel, Parameters, Snapshot, State};
use elman::{Device, Error, Graph, Predictor, Reader, rng};

fn small(cell: Cell, layers: usize) -> CharRnnOptions {
    CharRnnOptions::new(11, 4, 8).cell(cell).num_layers(layers)
}

/// What each lane draws.
fn collect(generator: &mut Generator, lanes: usize, length: usize) -> Vec<Vec<u32>> {
    let mut texts = vec![Vec::new(); lanes];
    generator
        .generate(length, |tokens| {
            tokens.iter().enumerate().for_each(|(i, &token)| texts[i % lanes].push(token));
            true
        })
        .unwrap();
    texts
}

fn lively(seed: u32) -> Sampling {
    Sampling { temperature: 1.0, repeat_penalty: 1.2, repeat_last_n: 7, seed, ..Sampling::default() }
}

// ---- samplers ------------------------------------------------------------------------------------------------------

/// The logits after each token of a text, in f64, by the network's forward pass over all of it.
fn logits(model: &CharRnn, parameters: &Parameters, text: &[u32]) -> Vec<f64> {
    let device = parameters.device();
    let tokens = device.tokens("tokens", &[text.len(), 1], model.vocabulary()).unwrap();
    tokens.write_u32(text).unwrap();
    let mut g = Graph::inference(parameters);
    let out = model.forward_every_step(&mut g, &tokens, InitialState::Zero).unwrap();
    let out = g.tensor(out).unwrap();
    g.finish().unwrap().run().unwrap();
    out.to_vec_f64().unwrap()
}

/// The token drawn after a text, by the definitions.
fn naive(logits: &[f64], text: &[u32], s: &Sampling, uniform: f64) -> u32 {
    let lately: BTreeSet<u32> = text.iter().rev().take(s.repeat_last_n).copied().collect();
    let penalty = f64::from(s.repeat_penalty);
    let scores: Vec<f64> = (0u32..)
        .zip(logits)
        .map(|(v, &z)| match z {
            _ if Some(v) == s.never => f64::NEG_INFINITY,
            z if !lately.contains(&v) => z,
            z if z > 0.0 => z / penalty,
            z => z * penalty,
        })
        .collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    if s.temperature == 0.0 {
        return order[0] as u32;
    }
    let most = scores[order[0]];
    let weight = |v: usize| ((scores[v] - most) / f64::from(s.temperature)).exp();
    order.truncate(s.top_k.unwrap_or(usize::MAX));
    let total: f64 = order.iter().map(|&v| weight(v)).sum();
    let mut sum = 0.0;
    let enough = f64::from(s.top_p.unwrap_or(1.0)) * total * (1.0 - 1e-12);
    if let Some(last) = order.iter().position(|&v| {
        sum += weight(v);
        sum >= enough
    }) {
        order.truncate(last + 1);
    }
    order.retain(|&v| weight(v) >= f64::from(s.min_p.unwrap_or(0.0)));
    order.sort_unstable();
    let mut left = uniform * order.iter().map(|&v| weight(v)).sum::<f64>();
    for &v in &order {
        left -= weight(v);
        if left < 0.0 {
            return v as u32;
        }
    }
    *order.last().unwrap() as u32
}

/// Every token that rounding may make of it: a little more or less of what it depends on.
fn naive_about(logits: &[f64], text: &[u32], s: &Sampling, uniform: f64) -> BTreeSet<u32> {
    let shares = [1.0, 1.0 - 1e-5, 1.0 + 1e-5];
    let of = |share: Option<f32>, by: f64| share.map(|p| (f64::from(p) * by).min(1.0) as f32);
    let noise = common::values(3, logits.len());
    let near = |by: f64| logits.iter().zip(&noise).map(|(z, n)| z + by * f64::from(*n)).collect::<Vec<_>>();
    let mut all = BTreeSet::new();
    for logits in [near(0.0), near(2e-5), near(-2e-5)] {
        for (share, shift) in shares.into_iter().flat_map(|share| [-1e-5, 0.0, 1e-5].map(|shift| (share, shift))) {
            let s = Sampling { top_p: of(s.top_p, share), min_p: of(s.min_p, share), ..*s };
            all.insert(naive(&logits, text, &s, (uniform + shift).max(0.0)));
        }
    }
    all
}

/// Any settings, of which about half are off.
fn settings(rng: &mut rng::Rng, vocabulary: usize) -> Sampling {
    let mut pick = |n: usize| rng.next_u32() as usize % n;
    let some = |is: usize, share: f32| (is == 0).then_some(share);
    Sampling {
        temperature: [0.0, 0.7, 1.0, 1.8][pick(4)],
        top_k: [None, None, Some(1 + pick(vocabulary)), Some(5)][pick(4)],
        top_p: some(pick(2), [0.3, 0.8, 0.95][pick(3)]),
        min_p: some(pick(2), [0.01, 0.1, 0.5][pick(3)]),
        repeat_penalty: [1.0, 1.1, 1.5, 0.7][pick(4)],
        repeat_last_n: [0, 1, 3, 8, 64, usize::MAX][pick(6)],
        seed: pick(1000) as u32,
        draws_of: [None, Some(pick(9) as u32)][pick(2)],
        stop: None,
        never: [None, Some(pick(vocabulary) as u32)][if vocabulary > 1 { pick(2) } else { 0 }],
    }
}

/// Each lane with settings and a prompt of its own, around each edge of the runs that a draw has, in one dispatch and in a chain.
#[test]
fn draws_follow_the_definitions() {
    let mut rng = rng::manual_seed(5);
    let (mut checked, mut unsure) = (0, 0);
    for vocabulary in [1, 2, 7, 63, 64, 65, 127, 128, 129] {
        let options = CharRnnOptions::new(vocabulary, 4, 8);
        let (oracle, oracle_parameters) = model_of(&Device::reference(), options);
        for lanes in [3, 20] {
            let prompts: Vec<Vec<u32>> = (0..lanes)
                .map(|_| (0..1 + rng.next_u32() % 6).map(|_| rng.next_u32() % vocabulary as u32).collect())
                .collect();
            let sampling: Vec<_> = (0..lanes).map(|_| settings(&mut rng, vocabulary)).collect();
            for device in f32_devices() {
                let (model, parameters) = model_of(&device, options);
                let mut generator = Generator::new(&model, &parameters, lanes).unwrap();
                generator.set_sampling_of_lanes(&sampling).unwrap();
                generator.prime_lanes(&prompts).unwrap();
                let drawn = collect(&mut generator, lanes, 70);
                for (lane, (sampling, prompt)) in sampling.iter().zip(&prompts).enumerate() {
                    let text = [&prompt[..], &drawn[lane]].concat();
                    let logits = logits(&oracle, &oracle_parameters, &text);
                    for (n, at) in (prompt.len()..text.len()).enumerate() {
                        let key = [sampling.seed, sampling.draws_of.unwrap_or(lane as u32)];
                        let bits = rng::threefry2x32(key, [n as u32, 0])[0] >> 8;
                        let row = &logits[(at - 1) * vocabulary..][..vocabulary];
                        let want = naive_about(row, &text[..at], sampling, f64::from(bits) / f64::from(1 << 24));
                        let what = format!("{vocabulary} tokens, lane {lane} of {lanes}, draw {n}, {sampling:?}");
                        assert!(
                            want.contains(&text[at]),
                            "{} not in {want:?}: {what}, {}",
                            text[at],
                            device.describe()
                        );
                        checked += 1;
                        unsure += usize::from(want.len() > 1);
                    }
                }
            }
        }
    }
    assert!(unsure * 50 < checked, "{unsure} of {checked} may be one token or another");
}

/// What changes nothing changes no bit, and what does changes a text.
#[test]
fn neutral_settings_change_nothing() {
    for device in f32_devices() {
        let (model, parameters) = model_of(&device, small(Cell::Gru, 1));
        for lanes in [2, 20] {
            let text = |sampling: Sampling| {
                let mut generator = Generator::new(&model, &parameters, lanes).unwrap();
                generator.set_sampling(sampling).unwrap();
                generator.prime(&[1, 2]).unwrap();
                collect(&mut generator, lanes, 100)
            };
            for temperature in [0.0, 1.0] {
                let plain = Sampling { temperature, seed: 3, ..Sampling::default() };
                let want = text(plain);
                let neutral = [
                    Sampling { min_p: Some(0.0), ..plain },
                    Sampling { repeat_last_n: usize::MAX, ..plain },
                    Sampling { repeat_penalty: 1.5, repeat_last_n: 0, ..plain },
                ];
                neutral.into_iter().for_each(|neutral| assert_eq!(text(neutral), want, "{neutral:?}"));
                assert_ne!(text(Sampling { repeat_penalty: 1.5, ..plain }), want);
            }
            let greedy = text(Sampling { temperature: 1.0, min_p: Some(1.0), ..Sampling::default() });
            assert_eq!(greedy, text(Sampling::default()), "the most likely token alone");
        }
    }
}

// ---- lanes ---------------------------------------------------------------------------------------------------------

/// Prompts of different lengths give what each gives alone.
#[test]
fn a_lane_is_a_generator_of_its_own() {
    let prompts: [&[u32]; 7] =
        [&[3], &[1, 4, 1, 5, 9, 2, 6], &[5, 3], &[5, 8], &[9, 7, 9], &[3], &[2, 7, 1, 8, 2, 8, 1]];
    for device in f32_devices() {
        for (options, lanes) in [(small(Cell::Tanh, 1), 3), (small(Cell::Lstm, 2), 7), (small(Cell::Gru, 1), 4)] {
            let (model, parameters) = model_of(&device, options);
            let mut many = Generator::new(&model, &parameters, lanes).unwrap();
            many.set_sampling(lively(2)).unwrap();
            many.generate(5, |_| true).unwrap();
            many.prime_lanes(&prompts[..lanes]).unwrap();
            let got = collect(&mut many, lanes, 80);
            for (lane, prompt) in prompts[..lanes].iter().enumerate() {
                let mut one = Generator::new(&model, &parameters, 1).unwrap();
                one.set_sampling(Sampling { draws_of: Some(lane as u32), ..lively(2) }).unwrap();
                one.prime(prompt).unwrap();
                assert_eq!(collect(&mut one, 1, 80)[0], got[lane], "lane {lane} on {}", device.describe());
            }
        }
    }
}

/// A lane goes back, onto itself, another, and one of another generator, while the others go on.
#[test]
fn a_lane_goes_back() {
    for device in f32_devices() {
        for (options, lanes) in [(small(Cell::Lstm, 2), 3), (small(Cell::Tanh, 1), 20)] {
            let (model, parameters) = model_of(&device, options);
            let new = |lanes: usize, draws_of: Option<u32>| {
                let mut generator = Generator::new(&model, &parameters, lanes).unwrap();
                generator.set_sampling(Sampling { draws_of, ..lively(4) }).unwrap();
                generator.prime(&[1, 2, 3]).unwrap();
                generator
            };
            let want = collect(&mut new(lanes, None), lanes, 180);
            let mut generator = new(lanes, None);
            let start = generator.save_lane(1).unwrap();
            collect(&mut generator, lanes, 13);
            let saved = generator.save_lane(1).unwrap();
            assert_ne!(saved, start);
            assert_eq!(saved, generator.save_lane(1).unwrap(), "saving changes nothing");
            assert_eq!(collect(&mut generator, lanes, 70)[1], want[1][13..83]);
            for (lane, from, place) in [(1, &saved, 13), (1, &start, 0), (1, &saved, 13)] {
                generator.restore_lane(lane, from).unwrap();
                assert_eq!(collect(&mut generator, lanes, 5)[1], want[1][place..place + 5], "{}", device.describe());
            }
            let texts = collect(&mut generator, lanes, 82);
            for lane in (0..lanes).filter(|lane| *lane != 1) {
                assert_eq!(texts[lane], want[lane][98..], "the others went on");
            }
            assert_eq!(texts[1], want[1][18..100]);
            let mut other = new(2, Some(1));
            other.restore_lane(0, &saved).unwrap();
            let texts = collect(&mut other, 2, 30);
            assert_eq!((&texts[0][..], &texts[1][..]), (&want[1][13..43], &want[1][..30]));
        }
    }
}

/// A fork writes what its original writes if it is greedy or has its draws, and a text of its own if not; nothing is read back.
#[test]
fn a_fork_goes_on_as_its_original() {
    for device in [Some(Device::cpu()), own_gpu()].into_iter().flatten() {
        for (options, lanes) in [(small(Cell::Lstm, 2), 4), (small(Cell::Tanh, 1), 20)] {
            let (model, parameters) = model_of(&device, options);
            let mut generator = Generator::new(&model, &parameters, lanes).unwrap();
            let mut sampling = vec![lively(4); lanes];
            sampling[2].draws_of = Some(0);
            generator.set_sampling_of_lanes(&sampling).unwrap();
            let prompts: Vec<_> = (0..lanes as u32).map(|lane| vec![lane % 11; 1 + lane as usize % 3]).collect();
            generator.prime_lanes(&prompts).unwrap();
            collect(&mut generator, lanes, 9);
            let (before, others) = (device.count(), [0, 3].map(|lane| generator.save_lane(lane).unwrap()));
            let downloads = device.count().downloads;
            generator.fork_lane(0, 2).unwrap();
            generator.fork_lane(0, 1).unwrap();
            generator.fork_lane(3, 3).unwrap();
            assert_eq!(device.count().downloads, downloads);
            assert!(downloads > before.downloads);
            assert_eq!([0, 3].map(|lane| generator.save_lane(lane).unwrap()), others);
            assert_eq!([1, 2].map(|lane| generator.save_lane(lane).unwrap()), [&others[0]; 2].map(Lane::clone));
            let texts = collect(&mut generator, lanes, 70);
            assert_eq!(texts[2], texts[0], "with the draws of its original, on {}", device.describe());
            assert_ne!(texts[1], texts[0], "with draws of its own");
            generator.set_sampling(Sampling { temperature: 0.0, ..lively(4) }).unwrap();
            generator.fork_lane(3, 1).unwrap();
            let texts = collect(&mut generator, lanes, 70);
            assert_eq!(texts[1], texts[3], "greedy");
        }
    }
}

#[test]
fn lanes_that_are_not_there_are_refused() {
    let device = Device::cpu();
    let (model, parameters) = model_of(&device, small(Cell::Gru, 1));
    let mut generator = Generator::new(&model, &parameters, 2).unwrap();
    generator.set_sampling(lively(1)).unwrap();
    generator.prime(&[1]).unwrap();
    let saved = generator.save_lane(0).unwrap();
    let is_lane = |refused: Error| matches!(refused, Error::Argument { argument: "lane", .. });
    assert!(is_lane(generator.save_lane(2).unwrap_err()));
    assert!(is_lane(generator.restore_lane(2, &saved).unwrap_err()));
    assert!(is_lane(generator.fork_lane(0, 2).unwrap_err()) && is_lane(generator.fork_lane(7, 0).unwrap_err()));
    for options in [small(Cell::Gru, 2), small(Cell::Lstm, 1), CharRnnOptions::new(12, 4, 8).cell(Cell::Gru)] {
        let (model, parameters) = model_of(&device, options);
        let other = Generator::new(&model, &parameters, 1).unwrap();
        let mut reader = Reader::new(&model, &parameters, 1).unwrap();
        assert!(generator.go_on_from(0, &reader).is_err(), "nothing was read");
        reader.skip(&[1, 2, 3]).unwrap();
        assert!(generator.go_on_from(0, &reader).is_err(), "{options:?}");
        assert!(generator.restore_lane(0, &other.save_lane(0).unwrap()).is_err(), "{options:?}");
    }
    for prompts in [vec![vec![1]], vec![vec![1], vec![]], vec![vec![1], vec![11]], vec![vec![1]; 3]] {
        assert!(generator.prime_lanes(&prompts).is_err());
    }
    let text = collect(&mut generator, 2, 9);
    generator.prime(&[1]).unwrap();
    assert_eq!(collect(&mut generator, 2, 9), text, "what is refused changes nothing");
}

#[test]
fn rows_of_states_move() {
    for device in f32_devices().into_iter().chain([Device::reference()]) {
        let state = |batch: usize| State::zeros(&device, &[("c", [2, batch, 3]), ("h", [1, batch, 5])]).unwrap();
        let fill = |state: &State, batch: usize, from: f32| {
            let part = |n: usize, from: f32| (0..n).map(|i| from + i as f32).collect::<Vec<_>>();
            let values: Snapshot =
                [("c".into(), part(6 * batch, from)), ("h".into(), part(5 * batch, from + 500.0))].into();
            state.restore(&values).unwrap();
            values
        };
        let (three, four) = (state(3), state(4));
        let (of_three, mut of_four) = (fill(&three, 3, 0.0), fill(&four, 4, 1000.0));
        let put = |of: &mut Snapshot, to: usize, from: &Snapshot, from_batch: usize, row: usize| {
            for (name, layers, hidden) in [("c", 2, 3), ("h", 1, 5)] {
                for (layer, unit) in (0..layers).flat_map(|layer| (0..hidden).map(move |unit| (layer, unit))) {
                    let value = from[name][(layer * from_batch + row) * hidden + unit];
                    of.get_mut(name).unwrap()[(layer * 4 + to) * hidden + unit] = value;
                }
            }
        };
        four.copy_row(3, &three, 1).unwrap();
        put(&mut of_four, 3, &of_three, 3, 1);
        four.copy_row(0, &four, 3).unwrap();
        put(&mut of_four, 0, &of_three, 3, 1);
        four.copy_row(2, &four, 2).unwrap();
        let row = three.save_row(2).unwrap();
        assert_eq!(row["c"], [6.0, 7.0, 8.0, 15.0, 16.0, 17.0]);
        four.restore_row(1, &row).unwrap();
        put(&mut of_four, 1, &of_three, 3, 2);
        assert_eq!(four.save().unwrap(), of_four, "{}", device.describe());
        assert_eq!(three.save().unwrap(), of_three);
        let others = [[("c", [2, 3, 3]), ("h", [1, 3, 6])], [("c", [1, 3, 3]), ("h", [1, 3, 5])]];
        let refused = [
            four.copy_row(4, &three, 0),
            four.copy_row(0, &three, 3),
            four.copy_row(usize::MAX, &three, 0),
            four.copy_row(0, &State::zeros(&device, &[("h", [1, 3, 5])]).unwrap(), 0),
            four.copy_row(0, &State::zeros(&device, &others[0]).unwrap(), 0),
            four.copy_row(0, &State::zeros(&device, &others[1]).unwrap(), 0),
            four.copy_row(0, &State::zeros(&Device::cpu(), &[("c", [2, 1, 3]), ("h", [1, 1, 5])]).unwrap(), 0),
            four.restore_row(4, &row),
            four.restore_row(0, &of_three),
            four.save_row(4).map(|_| ()),
        ];
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
        assert_eq!(four.save().unwrap(), of_four, "what is refused changes nothing");
    }
}

// ---- readers -------------------------------------------------------------------------------------------------------

fn text(seed: u32, length: usize) -> Vec<u32> {
    common::tokens(seed, length, 11)
}

/// The logits after each token, by a `Predictor`, and the states, by a plan that is run token by token.
fn read_plainly(model: &CharRnn, parameters: &Parameters, text: &[u32]) -> (Vec<f32>, Snapshot) {
    let device = parameters.device();
    let mut predictor =
        Predictor::new(parameters, |g, [tokens]| Ok([model.forward_every_step(g, tokens, InitialState::Zero)?]));
    let [logits] = predictor.run(&[Array::tokens("text", &[text.len(), 1], text.to_vec(), 11).unwrap()]).unwrap();
    let (state, token) = (model.state(device, 1).unwrap(), device.tokens("token", &[1, 1], 11).unwrap());
    let mut g = Graph::inference(parameters);
    model.hidden(&mut g, &token, InitialState::Carried(&state)).unwrap();
    let plan = g.finish().unwrap();
    let mut states = Snapshot::new();
    for &next in text {
        token.write_u32(&[next]).unwrap();
        plan.run().unwrap();
        for (name, values) in state.save().unwrap() {
            states.entry(name).or_default().extend(values);
        }
    }
    (logits.values().to_vec(), states)
}

#[test]
fn a_reader_says_what_the_network_makes_of_each_token() {
    for device in f32_devices() {
        for options in [small(Cell::Tanh, 1), small(Cell::Gru, 2), small(Cell::Lstm, 3)] {
            let (model, parameters) = model_of(&device, options);
            let text = text(1, 300);
            let (logits, states) = read_plainly(&model, &parameters, &text);
            let mut reader = Reader::new(&model, &parameters, 70).unwrap();
            let mut at = 0;
            for length in [1, 7, 8, 9, 63, 0, 64, 65, 83] {
                let reading = reader.read_with_states(&text[at..at + length]).unwrap();
                let compare = |what: &str, got: &[f32], want: &[f32], width: usize| {
                    let want = &want[at * width..(at + length) * width];
                    let what = format!("{what} of {length} at {at}, {options:?} on {}", device.describe());
                    assert_eq!(got.len(), want.len(), "{what}");
                    if length > 0 {
                        assert_close(&what, &widen(got), &widen(want), width, 1e-4);
                    }
                };
                compare("logits", &reading.logits, &logits, 11);
                assert_eq!(reading.states.keys().collect::<Vec<_>>(), states.keys().collect::<Vec<_>>());
                for (name, want) in &states {
                    compare(name, &reading.states[name], want, 8 * options.num_layers);
                }
                at += length;
            }
            assert_eq!((at, reader.text()), (300, &text[..]));
            let mut again = Reader::new(&model, &parameters, 0).unwrap();
            let whole = again.read(&text).unwrap();
            assert_close("in one", &widen(&whole), &widen(&logits), 11, 1e-4);
            assert_eq!(again.logits().unwrap(), whole[299 * 11..]);
        }
    }
}

/// Any way back and forth leads to the same: whatever is kept, and by reading anew where it is not.
#[test]
fn a_reader_goes_back() {
    let mut rng = rng::manual_seed(8);
    for device in f32_devices() {
        for cell in [Cell::Tanh, Cell::Lstm] {
            let (model, parameters) = model_of(&device, small(cell, 1));
            let mut reader = Reader::new(&model, &parameters, 100).unwrap();
            let mut plain = Reader::new(&model, &parameters, 0).unwrap();
            for round in 0..25 {
                let more = text(round, rng.next_u32() as usize % [3, 20, 150][round as usize % 3]);
                let before = reader.text().len();
                let got = reader.read(&more).unwrap();
                plain.rewind(0).unwrap();
                let want = plain.read(reader.text()).unwrap();
                assert_eq!(got, want[before * 11..], "round {round} on {}", device.describe());
                let length = reader.text().len();
                let back = rng.next_u32() as usize % [2, 9, 110, 300][round as usize % 4];
                reader.rewind(length.saturating_sub(back)).unwrap();
                if let Some(at) = reader.text().len().checked_sub(1) {
                    assert_eq!(reader.logits().unwrap(), want[at * 11..][..11], "round {round}");
                }
            }
        }
    }
}

/// What is kept is not read again; a long text is a submission and a read for 64 tokens.
#[test]
fn reading_is_few_submissions() {
    for device in [Some(Device::cpu()), own_gpu()].into_iter().flatten() {
        let (model, parameters) = model_of(&device, small(Cell::Gru, 1));
        let mut reader = Reader::new(&model, &parameters, 100).unwrap();
        let text = text(3, 64 * 8);
        reader.read(&text[..64]).unwrap();
        let before = device.count();
        reader.read(&text[64..]).unwrap();
        let after = device.count();
        assert_eq!((after.submits - before.submits, after.downloads - before.downloads), (1 + 7, 7));
        reader.rewind(64 * 8 - 100).unwrap();
        assert_eq!(device.count().dispatches, after.dispatches, "100 are kept");
        reader.rewind(7).unwrap();
        assert!(device.count().dispatches > after.dispatches, "it was read again");
        assert_eq!(reader.text(), &text[..7]);
    }
}

/// A generator goes on from a reader, wherever that stands, as if it had read the same itself; the reader does not notice.
#[test]
fn a_generator_goes_on_from_a_reader() {
    for device in f32_devices() {
        for (options, lanes) in [(small(Cell::Lstm, 2), 2), (small(Cell::Tanh, 1), 20)] {
            let (model, parameters) = model_of(&device, options);
            let mut reader = Reader::new(&model, &parameters, 100).unwrap();
            let text = text(4, 200);
            reader.skip(&text).unwrap();
            let (logits, mut generator) =
                (reader.logits().unwrap(), Generator::new(&model, &parameters, lanes).unwrap());
            let mut plain = Generator::new(&model, &parameters, lanes).unwrap();
            let drawn = Sampling { repeat_last_n: usize::MAX, ..lively(6) };
            [&mut generator, &mut plain].into_iter().for_each(|generator| generator.set_sampling(drawn).unwrap());
            plain.prime(&text).unwrap();
            for lane in 0..lanes {
                generator.go_on_from(lane, &reader).unwrap();
            }
            assert_eq!(collect(&mut generator, lanes, 70), collect(&mut plain, lanes, 70), "{}", device.describe());
            assert_eq!((reader.logits().unwrap(), reader.text()), (logits, &text[..]));
            for length in [101, 100, 2, 1] {
                reader.rewind(length).unwrap();
                generator.go_on_from(1, &reader).unwrap();
                plain.prime(&text[..length]).unwrap();
                assert_eq!(collect(&mut generator, lanes, 20)[1], collect(&mut plain, lanes, 20)[1], "after {length}");
            }
        }
    }
}

#[test]
fn a_reader_refuses_what_is_not_there() {
    let device = Device::cpu();
    let (model, parameters) = model_of(&device, small(Cell::Tanh, 1));
    let mut reader = Reader::new(&model, &parameters, 5).unwrap();
    assert!(reader.logits().is_err());
    assert!(reader.rewind(1).is_err());
    reader.read(&[1, 2]).unwrap();
    let logits = reader.logits().unwrap();
    for refused in [reader.read(&[1, 11]).map(|_| ()), reader.skip(&[11]), reader.read_with_states(&[12]).map(|_| ())] {
        assert!(matches!(refused, Err(Error::Token { .. })), "{refused:?}");
    }
    assert!(matches!(reader.rewind(3), Err(Error::Argument { argument: "to", .. })));
    assert_eq!((reader.text(), reader.logits().unwrap()), (&[1, 2][..], logits));
    reader.rewind(0).unwrap();
    assert_eq!((reader.text(), reader.logits().is_err()), (&[][..], true));
    assert!(reader.read(&[]).unwrap().is_empty());
    for kept in [1 << 40, usize::MAX - 64, usize::MAX - 1, usize::MAX] {
        assert!(Reader::new(&model, &parameters, kept).is_err());
    }
    let elsewhere = model_of(&Device::cpu(), small(Cell::Tanh, 1));
    let mut generator = Generator::new(&elsewhere.0, &elsewhere.1, 1).unwrap();
    reader.read(&[1, 2, 3]).unwrap();
    assert!(matches!(generator.go_on_from(0, &reader), Err(Error::WrongDevice { .. })));
}
