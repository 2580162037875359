//! A device that is lost, at whatever step, changes nothing of what is computed.

mod common;

use common::{own_gpu, say_loudly};
use elman::data::Array;
use elman::generate::{Generator, Sampling};
use elman::nn::functional::{InitialState, Reduction, cross_entropy, dropout};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Embedding, Gru, Init, LanguageModel, Linear, RnnOptions};
use elman::optim::Adam;
use elman::text::{Corpus, Windows};
use elman::{DType, Device, Error, Evaluator, Result, Tensor, Trainer, rng};

/// All that a run gives, to the bit.
type Outcome = Vec<Vec<u32>>;
type BeforeACall<'a> = &'a mut dyn FnMut() -> Result<()>;

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

fn whole() -> bool {
    std::env::var_os("ELMAN_SOAK").is_some_and(|value| value == "1")
}

/// How often a device is lost.
fn losses() -> u32 {
    if whole() { 50 } else { 5 }
}

/// Calls between a loss and the next, which are enough for it to be found.
const CALLS: u32 = 12;

/// Loses a device before some of the calls, and takes snapshots before others.
struct Trouble {
    device: Device,
    rng: rng::Rng,
    calls: u32,
    at: u32,
}

impl Trouble {
    fn new(device: &Device, seed: u64) -> Self {
        Self { device: device.clone(), rng: rng::manual_seed(seed), calls: 0, at: 0 }
    }

    fn before_a_call(&mut self) -> Result<()> {
        if self.calls.is_multiple_of(CALLS) {
            self.at = self.calls + self.rng.next_u32() % (CALLS / 2);
        }
        self.calls += 1;
        if self.calls - 1 == self.at && self.calls <= CALLS * losses() {
            self.device.lose();
        } else if self.rng.next_u32().is_multiple_of(5) && self.calls - 1 < self.at {
            self.device.snapshot()?;
        }
        Ok(())
    }
}

/// Streams with a carried state and dropout; evaluations, texts and another learning rate on the way.
fn streams(device: &Device, cell: Cell, before: BeforeACall<'_>) -> Result<Outcome> {
    let mut init = Init::new(rng::manual_seed(1));
    let options = CharRnnOptions::new(11, 6, 20).cell(cell).num_layers(2).dropout(0.3);
    let model = CharRnn::new(&mut init, options)?;
    before()?;
    let parameters = init.upload(device)?;
    let corpus = Corpus::new(device, &common::tokens(2, 2000, 11), 11)?;
    before()?;
    let windows = Windows::streams(&corpus, 0..1500, 4, 7)?;
    let held_out = Windows::streams(&corpus, 1500..2000, 4, 7)?;
    let state = model.state(device, 4)?;
    let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        let batch = windows.batch_of_every_step(g, 4)?;
        let logits = model.forward_every_step(g, &batch.tokens, InitialState::Carried(&state))?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    })?;
    before()?;
    let mut evaluator = Evaluator::new(&parameters, |g| {
        let batch = held_out.batch_of_every_step(g, 4)?;
        let logits = model.forward_every_step(g, &batch.tokens, InitialState::Zero)?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    })?;
    let mut generator = Generator::new(&model, &parameters, 2)?;
    generator.set_sampling(Sampling { temperature: 1.0, seed: 3, ..Sampling::default() })?;
    let mut outcome = Outcome::new();
    for step in 0..CALLS * losses() {
        before()?;
        match step % 20 {
            4 => outcome.push(bits(trainer.losses()?)),
            9 => outcome.push(bits(evaluator.losses(3)?)),
            11 => trainer.set_lr(1e-2 / f64::from(step))?,
            15 => {
                generator.prime(&[1, 2, 3])?;
                let mut text = Vec::new();
                generator.generate(9, |tokens| {
                    text.extend_from_slice(tokens);
                    true
                })?;
                outcome.push(text);
            }
            _ => {}
        }
        trainer.step()?;
    }
    outcome.push(bits(trainer.losses()?));
    // Parameters, moments, the step.
    outcome.push(trainer.checkpoint()?.to_bytes()?.into_iter().map(u32::from).collect());
    Ok(outcome)
}

/// Batches of the host, of several shapes, of which not all plans are kept.
fn batches(device: &Device, before: BeforeACall<'_>) -> Result<Outcome> {
    let mut init = Init::new(rng::manual_seed(1));
    let embedding = Embedding::new(&mut init, "embedding", 30, 8)?;
    let gru = Gru::new(&mut init, "gru", RnnOptions::new(8, 12).bidirectional(true))?;
    let output = Linear::new(&mut init, "output", 24, 5)?;
    let parameters = init.upload(device)?;
    let mut trainer = Trainer::on_batches(&parameters, Adam::new(1e-2), |g, [words, tags, lengths]: &[Tensor; 3]| {
        let x = embedding.forward(g, words)?;
        let x = dropout(g, x, 0.3, 3)?;
        let out = gru.forward_with_lengths(g, x, InitialState::Zero, lengths)?;
        let logits = output.forward(g, out.output)?;
        cross_entropy(g, logits, tags, Reduction::Mean)
    })?;
    trainer.plans_mut().set_most_bytes(200 << 10);
    for step in 0..(CALLS * losses()) as usize {
        before()?;
        let sentence = |b: usize| (0..1 + (5 * b + step) % 9).map(move |t| ((7 * t + 3 * b + 11 * step) % 30) as u32);
        let words: Vec<Vec<u32>> = (0..1 + step % 3).map(|b| sentence(b).collect()).collect();
        let tags: Vec<Vec<u32>> = words.iter().map(|words| words.iter().map(|word| word % 5).collect()).collect();
        trainer.step_on(&[
            Array::pad_tokens("words", &words, 0, 30)?,
            Array::pad_targets("tags", &tags, 5)?,
            Array::lengths_of("lengths", &words)?,
        ])?;
    }
    assert!(trainer.plans().recorded() > trainer.plans().len() as u64);
    let checkpoint = trainer.checkpoint()?.to_bytes()?;
    Ok(vec![bits(trainer.losses()?), checkpoint.into_iter().map(u32::from).collect()])
}

/// Runs it undisturbed, and where the device is lost; twice, at other steps.
fn assert_undisturbed(run: impl Fn(&Device, BeforeACall<'_>) -> Result<Outcome>) {
    let Some(device) = own_gpu() else { return };
    let want = run(&device, &mut || Ok(())).unwrap();
    for seed in [1, 2] {
        let device = own_gpu().unwrap();
        device.set_recoveries(losses()).unwrap();
        let mut trouble = Trouble::new(&device, seed);
        let got = run(&device, &mut || trouble.before_a_call()).unwrap();
        assert!(got == want, "{seed}: other bits");
        assert_eq!(device.count().recoveries, u64::from(losses()));
    }
}

#[test]
fn streams_of_tanh_cells_go_on_to_the_bit() {
    assert_undisturbed(|device, before| streams(device, Cell::Tanh, before));
}

#[test]
fn streams_of_gru_cells_go_on_to_the_bit() {
    assert_undisturbed(|device, before| streams(device, Cell::Gru, before));
}

#[test]
fn batches_of_the_host_go_on_to_the_bit() {
    assert_undisturbed(batches);
}

/// Every kind of call finds it out, and does what it was to do.
#[test]
fn every_call_goes_on() {
    let Some(device) = own_gpu() else { return };
    let x = device.upload("x", &[3], &[1.0, 2.0, 3.0]).unwrap();
    // What is there already is kept too.
    device.set_recoveries(100).unwrap();
    let y = device.zeros("y", &[3], DType::F32).unwrap();
    let record = || {
        let mut r = elman::Recorder::new(&device);
        elman::kernels::accumulate::accumulate(&mut r, &x, &y)?;
        r.finish()
    };
    let plan = record().unwrap();
    let mut runs = 0.0;
    for round in 0..3 {
        let calls: [&dyn Fn() -> Result<()>; 6] = [
            &|| device.synchronize(),
            &|| plan.run(),
            &|| plan.run_times(2),
            &|| record()?.run(),
            &|| device.upload("z", &[2], &[5.0, 6.0]).and_then(|z| z.to_vec()).map(|z| assert_eq!(z, [5.0, 6.0])),
            &|| x.write(&[1.0, 2.0, 3.0]),
        ];
        for (call, adds) in calls.into_iter().zip([0.0, 1.0, 2.0, 1.0, 0.0, 0.0]) {
            device.lose();
            call().unwrap();
            runs += adds;
            assert_eq!(y.to_vec().unwrap(), [runs, 2.0 * runs, 3.0 * runs], "round {round}");
        }
    }
    if plan.profile(1).is_ok() {
        device.lose();
        plan.profile(1).unwrap();
        assert_eq!(y.to_vec().unwrap()[0], runs + 2.0);
    }
    assert!(device.count().recoveries >= 18, "{:?}", device.count());
}

#[test]
fn used_up_recoveries_are_an_error_of_every_call() {
    let Some(device) = own_gpu() else { return };
    device.set_recoveries(1).unwrap();
    let x = device.upload("x", &[3], &[1.0, 2.0, 3.0]).unwrap();
    let mut r = elman::Recorder::new(&device);
    let y = device.zeros("y", &[3], DType::F32).unwrap();
    elman::kernels::accumulate::accumulate(&mut r, &x, &y).unwrap();
    let plan = r.finish().unwrap();
    device.lose();
    plan.run().unwrap();
    assert_eq!(y.to_vec().unwrap(), [1.0, 2.0, 3.0]);
    device.lose();
    let calls: [&dyn Fn() -> Result<()>; 6] = [
        &|| device.synchronize(),
        &|| plan.run(),
        &|| x.write(&[0.0; 3]),
        &|| y.to_vec().map(drop),
        &|| device.zeros("z", &[3], DType::F32).map(drop),
        &|| device.set_recoveries(1),
    ];
    for call in calls {
        assert!(matches!(call(), Err(Error::DeviceLost(_))), "{:?}", call());
    }
    assert_eq!(device.count().recoveries, 1);
}

/// Threads that run plans of their own on one device see one order of things.
#[test]
fn threads_go_on_together() {
    let Some(device) = own_gpu() else { return };
    device.set_recoveries(20).unwrap();
    let sums: Vec<f32> = std::thread::scope(|scope| {
        let work = |thread: usize| {
            let x = device.upload("x", &[1], &[1.0]).unwrap();
            let y = device.zeros("y", &[1], DType::F32).unwrap();
            let mut r = elman::Recorder::new(&device);
            elman::kernels::accumulate::accumulate(&mut r, &x, &y).unwrap();
            let plan = r.finish().unwrap();
            for run in 0..60 {
                if run % 20 == 5 * thread {
                    device.lose();
                }
                plan.run().unwrap();
                if run % 7 == thread {
                    assert_eq!(y.to_vec().unwrap(), [run as f32 + 1.0]);
                }
            }
            y.to_vec().unwrap()[0]
        };
        let threads: Vec<_> = (0..3).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(sums, [60.0; 3]);
    assert!(device.count().recoveries > 0);
}

/// How long it takes, of a training.
#[test]
#[ignore = "measures"]
fn the_time_of_a_recovery() {
    let Some(device) = own_gpu() else { return };
    device.set_recoveries(u32::MAX).unwrap();
    let times = std::cell::RefCell::new(Vec::new());
    let mut calls = 0;
    streams(&device, Cell::Gru, &mut || {
        calls += 1;
        if calls % 10 == 0 {
            let start = std::time::Instant::now();
            device.synchronize()?;
            let before = start.elapsed();
            device.lose();
            device.synchronize()?;
            times.borrow_mut().push((start.elapsed() - before).as_secs_f64() * 1e3);
        }
        Ok(())
    })
    .unwrap();
    say_loudly(&format!("milliseconds of each recovery: {:.0?}", times.borrow()));
}
