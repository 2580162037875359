//! One device, many threads: rayon's or not, beside training and generation.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::{f32_devices, soak, tokens};
use elman::generate::{Generator, Sampling};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Init, LanguageModel, Parameters};
use elman::optim::Adam;
use elman::{Device, Tensor, Trainer, rng};
use rayon::prelude::*;

const V: usize = 11;

/// Runs the work on a thread of its own, and fails if it hangs.
fn without_hanging<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    wait.recv_timeout(Duration::from_secs(600)).expect("it hangs, or has panicked")
}

fn model(device: &Device, seed: u32) -> (CharRnn, Parameters) {
    let mut init = Init::new(rng::manual_seed(seed.into()));
    let cell = Cell::ALL[seed as usize % Cell::ALL.len()];
    let model = CharRnn::new(&mut init, CharRnnOptions::new(V, 8, 40).cell(cell)).unwrap();
    (model, init.upload(device).unwrap())
}

fn trainer(device: &Device, seed: u32) -> (Trainer, Tensor) {
    let (model, parameters) = model(device, seed);
    let batch = device.tokens("batch", &[7, 30], V).unwrap();
    batch.write_u32(&tokens(seed, 210, V)).unwrap();
    let targets = device.targets("targets", &[30], V).unwrap();
    targets.write_u32(&tokens(seed + 1, 30, V)).unwrap();
    let trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        let logits = model.forward(g, &batch, InitialState::Zero)?;
        cross_entropy(g, logits, &targets, Reduction::Mean)
    });
    (trainer.unwrap(), batch)
}

/// What a thread does: training, or text.
fn work(device: &Device, seed: u32) -> Vec<u32> {
    if seed.is_multiple_of(2) {
        let (mut trainer, _) = trainer(device, seed);
        (0..soak(20, 200)).for_each(|_| trainer.step().unwrap());
        return trainer.losses().unwrap().iter().map(|loss| loss.to_bits()).collect();
    }
    let (model, parameters) = model(device, seed);
    let mut generator = Generator::new(&model, &parameters, 2).unwrap();
    generator.set_sampling(Sampling { temperature: 1.0, seed, ..Sampling::default() }).unwrap();
    generator.prime(&[1, 2]).unwrap();
    let mut text = Vec::new();
    generator
        .generate(soak(100, 1000), |tokens| {
            text.extend_from_slice(tokens);
            true
        })
        .unwrap();
    text
}

/// Tasks of rayon's pool that read and write a tensor beside a trainer's steps.
#[test]
fn tasks_of_rayon_use_tensors_beside_training() {
    for device in f32_devices() {
        let losses = without_hanging(move || {
            let (mut trainer, batch) = trainer(&device, 0);
            let batch = Arc::new(batch);
            let (stop, ended) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
            let tasks = 2 * rayon::current_num_threads();
            for _ in 0..tasks {
                let (batch, stop, ended) = (batch.clone(), stop.clone(), ended.0.clone());
                rayon::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let values = batch.to_vec_u32().unwrap();
                        batch.write_u32(&values).unwrap();
                    }
                    ended.send(()).unwrap();
                });
            }
            (0..20).for_each(|_| trainer.step().unwrap());
            stop.store(true, Ordering::Relaxed);
            (0..tasks).for_each(|_| ended.1.recv().unwrap());
            trainer.losses().unwrap()
        });
        assert_eq!(losses.len(), 20);
    }
}

/// Eight threads, and as many tasks of rayon's, give what each gives alone.
#[test]
fn many_threads_on_one_device_give_what_each_gives_alone() {
    for device in f32_devices() {
        let alone: Vec<_> = (0..8).map(|seed| work(&device, seed)).collect();
        let of_threads = {
            let device = device.clone();
            without_hanging(move || {
                let start = |seed| {
                    let device = device.clone();
                    std::thread::spawn(move || work(&device, seed))
                };
                let threads: Vec<_> = (0..8).map(start).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            })
        };
        assert_eq!(of_threads, alone, "{}", device.describe());
        let of_tasks = without_hanging({
            let device = device.clone();
            move || (0..8u32).into_par_iter().map(|seed| work(&device, seed)).collect::<Vec<_>>()
        });
        assert_eq!(of_tasks, alone, "tasks on {}", device.describe());
    }
}
