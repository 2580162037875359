//! Frames that come one by one: pushes, blocks, lanes alone.

mod common;

use common::{f32_devices, values};
use elman::nn::functional::{self, InitialState, States};
use elman::nn::{Cell as Kind, Init, LayerNorm, Linear, LstmCell, Parameters, Recurrent, RnnOptions, State};
use elman::{Device, Error, Result, Stream, rng};

const INPUTS: usize = 3;
const OUTPUTS: usize = 2;

/// A network on a recurrence, with an operation of elements between: what comes out, and the top's state.
fn stream(device: &Device, kind: Kind, options: RnnOptions, lanes: usize) -> Result<(Stream<1, 2>, Parameters)> {
    let mut init = Init::new(rng::manual_seed(7));
    let rnn = Recurrent::new(&mut init, "rnn", kind, options)?;
    let width = if options.proj_size > 0 { options.proj_size } else { options.hidden_size };
    let norm = LayerNorm::new(&mut init, "norm", width)?;
    let output = Linear::new(&mut init, "output", width, OUTPUTS)?;
    let parameters = init.upload(device)?;
    let states = [rnn.state(device, lanes)?];
    let stream = Stream::new(&parameters, [lanes, INPUTS], states, |g, x, [state]| {
        let x = g.input(x)?;
        let (out, end) = rnn.forward(g, x, InitialState::Carried(state))?;
        let out = norm.forward(g, out)?;
        let out = functional::relu(g, out)?;
        Ok([output.forward(g, out)?, end.h])
    })?;
    Ok((stream, parameters))
}

fn owned<const M: usize>(result: [&[f32]; M]) -> [Vec<f32>; M] {
    result.map(<[f32]>::to_vec)
}

fn close(device: &Device, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        let tolerance = if device.is_gpu() { 1e-5 } else { 0.0 };
        assert!((got - want).abs() <= tolerance, "{got} and {want} on {device:?}");
    }
}

fn kinds(hidden: usize) -> Vec<(Kind, RnnOptions)> {
    let plain = RnnOptions::new(INPUTS, hidden);
    vec![
        (Kind::Tanh, plain),
        (Kind::Gru, plain.num_layers(2)),
        (Kind::Gru, plain.reset_after(false)),
        (Kind::Lstm, plain),
        (Kind::Lstm, plain.num_layers(2).proj_size(2)),
        (Kind::Lstm, plain.peepholes(true)),
    ]
}

/// A block is as many pushes, and both are what the network makes of the whole sequence.
#[test]
fn a_block_is_its_pushes() {
    for device in f32_devices() {
        for (kind, options) in kinds(5) {
            for lanes in [1, 3, 20] {
                // One in each size of plan: 64, 8, 1.
                let steps = 64 + 8 + 1;
                let x = values(1, steps * lanes * INPUTS);
                let (mut one, parameters) = stream(&device, kind, options, lanes).unwrap();
                let (mut all, _) = stream(&device, kind, options, lanes).unwrap();
                let mut pushed = [Vec::new(), Vec::new()];
                for frame in x.chunks(lanes * INPUTS) {
                    let result = owned(one.push(frame).unwrap());
                    pushed.iter_mut().zip(result).for_each(|(all, new)| all.extend(new));
                }
                let blocks = owned(all.push_block(&x).unwrap());
                for (pushed, block) in pushed.iter().zip(&blocks) {
                    close(&device, pushed, block);
                }
                assert_eq!(pushed[0].len(), steps * lanes * OUTPUTS);
                let (a, b) = (one.states()[0].save().unwrap(), all.states()[0].save().unwrap());
                a.iter().for_each(|(name, a)| close(&device, a, &b[name]));

                // As by a sequence's plan.
                let mut init = Init::new(rng::manual_seed(7));
                let rnn = Recurrent::new(&mut init, "rnn", kind, options).unwrap();
                let whole = init.upload(&device).unwrap();
                whole.iter().for_each(|(name, to)| to.write(&parameters.get(name).unwrap().to_vec().unwrap()).unwrap());
                let mut g = elman::Graph::inference(&whole);
                let x = g.input(&device.upload("x", &[steps, lanes, INPUTS], &x).unwrap()).unwrap();
                let (_, end) = rnn.forward(&mut g, x, InitialState::Zero).unwrap();
                let h = g.tensor(end.h).unwrap();
                g.finish().unwrap().run().unwrap();
                let last = &pushed[1][pushed[1].len() - h.len()..];
                for (got, want) in last.iter().zip(h.to_vec().unwrap()) {
                    assert!((got - want).abs() <= 1e-5, "{got} and {want}: {kind:?} on {device:?}");
                }
            }
        }
    }
}

/// Lanes that begin, wait and end at different times are streams by themselves.
#[test]
fn lanes_are_alone() {
    for device in f32_devices() {
        for (kind, options) in kinds(5) {
            let lanes = 3;
            let (mut stream_, _) = stream(&device, kind, options, lanes).unwrap();
            let (mut alone, _) = stream(&device, kind, options, 1).unwrap();
            // Which lanes get a frame at which step; lane 1 begins anew before step 6.
            let marks = [[true, false, true], [true, true, false], [false, true, false], [true, false, false]];
            let mut rng = rng::manual_seed(3);
            let mut seen = vec![Vec::new(); lanes];
            let mut given = vec![Vec::new(); lanes];
            for step in 0..12 {
                if step == 6 {
                    stream_.reset(1).unwrap();
                }
                let count = if step % 5 == 4 { 3 } else { 1 };
                let marks: Vec<bool> = (0..count).flat_map(|i| marks[(step + i) % 4]).collect();
                let mut frames = rng.randn(count * lanes * INPUTS);
                for (frame, is_given) in frames.chunks_mut(INPUTS).zip(&marks) {
                    // What is not given may be anything.
                    if !is_given {
                        frame.fill(f32::NAN);
                    }
                }
                let before = stream_.states()[0].save_row(2).unwrap();
                let [out, _] = owned(stream_.push_some(&frames, &marks).unwrap());
                if marks.chunks(lanes).all(|marks| !marks[2]) {
                    assert_eq!(stream_.states()[0].save_row(2).unwrap(), before);
                }
                for (i, _) in marks.iter().enumerate().filter(|(_, given)| **given) {
                    given[i % lanes].push((step, frames[i * INPUTS..][..INPUTS].to_vec()));
                    seen[i % lanes].push(out[i * OUTPUTS..][..OUTPUTS].to_vec());
                }
            }
            for (lane, (given, seen)) in given.iter().zip(&seen).enumerate() {
                alone.reset(0).unwrap();
                let mut is_new = lane == 1;
                for ((step, frame), seen) in given.iter().zip(seen) {
                    if is_new && *step >= 6 {
                        alone.reset(0).unwrap();
                        is_new = false;
                    }
                    let [out, _] = alone.push(frame).unwrap();
                    for (a, b) in out.iter().zip(seen) {
                        assert!((a - b).abs() <= 1e-5, "{a} and {b}: lane {lane} of {kind:?} on {device:?}");
                    }
                }
            }
        }
    }
}

/// Parameters that change are taken up where that is asked for.
#[test]
fn parameters_are_taken_up() {
    for device in f32_devices() {
        let (mut stream, parameters) = stream(&device, Kind::Gru, RnnOptions::new(INPUTS, 5), 1).unwrap();
        let [before, _] = owned(stream.push(&[0.5; 3]).unwrap());
        for (_, tensor) in parameters.iter() {
            tensor.write(&vec![0.25; tensor.len()]).unwrap();
        }
        stream.refresh().unwrap();
        stream.reset(0).unwrap();
        let [after, _] = owned(stream.push(&[0.5; 3]).unwrap());
        assert_ne!(before, after);
        assert_eq!(after[0], after[1], "all weights are the same");
    }
}

/// A cell with the state got and set, and no state at all.
#[test]
fn any_network_is_a_stream() {
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(7));
    let cell = LstmCell::new(&mut init, "cell", RnnOptions::new(INPUTS, 4)).unwrap();
    let parameters = init.upload(&device).unwrap();
    let states = [State::zeros(&device, &[("h", [1, 2, 4]), ("c", [1, 2, 4])]).unwrap()];
    let mut own = Stream::new(&parameters, [2, INPUTS], states, |g, x, [state]| {
        let x = g.input(x)?;
        let x = functional::reshape(g, x, &[2, INPUTS])?;
        let [h, c] = ["h", "c"].map(|name| state.get(g, name).and_then(|var| functional::reshape(g, var, &[2, 4])));
        let next = cell.forward(g, x, Some(States { h: h?, c: Some(c?) }))?;
        state.set(g, "h", next.h)?;
        state.set(g, "c", next.c.expect("a cell"))?;
        Ok([next.h])
    })
    .unwrap();
    let first = own.push(&[0.5; 6]).unwrap()[0].to_vec();
    let second = own.push(&[0.5; 6]).unwrap()[0].to_vec();
    assert_ne!(first, second);
    let mut none = Stream::new(&parameters, [1, 2], [], |g, x, []| {
        let x = g.input(x)?;
        Ok([functional::relu(g, x)?])
    })
    .unwrap();
    assert_eq!(none.push_block(&[1.0, -1.0, -2.0, 3.0]).unwrap(), [[1.0, 0.0, 0.0, 3.0]]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let device = Device::cpu();
    let options = RnnOptions::new(INPUTS, 5);
    let (mut stream, parameters) = stream(&device, Kind::Gru, options, 2).unwrap();
    for (error, expected) in [
        (stream.push(&[0.0; 5]).unwrap_err(), "push: `frame` must have shape [2, 3], but has [5]"),
        (stream.push(&[0.0; 12]).unwrap_err(), "push: `frame` must have shape [2, 3], but has [12]"),
        (stream.push_block(&[]).unwrap_err(), "`frames` must have shape [T, 2, 3]"),
        (stream.push_block(&[0.0; 7]).unwrap_err(), "`frames` must have shape [T, 2, 3], but has [7]"),
        (stream.push_some(&[0.0; 12], &[true; 2]).unwrap_err(), "`lanes` must have shape [2, 2], one for each"),
        (stream.reset(2).unwrap_err(), "`lane` must be below 2, the lanes, but is 2"),
    ] {
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut init = Init::new(rng::manual_seed(7));
    let rnn = Recurrent::new(&mut init, "rnn", Kind::Gru, options).unwrap();
    let other = rnn.state(&device, 3).unwrap();
    let made = Stream::new(&parameters, [2, INPUTS], [other], |g, x, _| Ok([g.input(x)?]));
    assert!(matches!(made.err(), Some(Error::Shape { .. })));
    let made = Stream::new(&parameters, [0, INPUTS], [], |g, x, _| Ok([g.input(x)?]));
    assert!(made.is_err());
}
