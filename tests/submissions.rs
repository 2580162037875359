//! Long work is cut into submissions, which changes nothing else.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{own_gpu, say_loudly};
use elman::nn::functional::{InitialState, Reduction, mse_loss};
use elman::nn::{Gru, Init, Linear, RnnOptions};
use elman::{Device, Trainer, optim::Adam, rng};

/// Some training steps on two sequences of so many steps: losses, parameters, and the submissions of each step.
fn train(device: &Device, steps: usize, runs: usize) -> (Vec<f32>, Vec<Vec<f32>>, Vec<u64>) {
    let mut init = Init::new(rng::manual_seed(1));
    let gru = Gru::new(&mut init, "gru", RnnOptions::new(4, 32)).unwrap();
    let output = Linear::new(&mut init, "output", 32, 2).unwrap();
    let parameters = init.upload(device).unwrap();
    let x = device.upload("x", &[steps, 2, 4], &common::values(1, steps * 8)).unwrap();
    let y = device.upload("y", &[steps, 2, 2], &common::values(2, steps * 4)).unwrap();
    let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        let x = g.input(&x)?;
        let out = gru.forward(g, x, InitialState::Zero)?;
        let output = output.forward(g, out.output)?;
        mse_loss(g, output, &y, Reduction::Mean)
    })
    .unwrap();
    let submits = (0..runs).map(|_| {
        let before = device.count().submits;
        trainer.step().unwrap();
        device.count().submits - before
    });
    let submits = submits.collect();
    let parameters = parameters.iter().map(|(_, tensor)| tensor.to_vec().unwrap()).collect();
    (trainer.losses().unwrap(), parameters, submits)
}

#[test]
fn twenty_thousand_steps_are_the_same_in_pieces() {
    let Some(device) = own_gpu() else { return };
    let of = |budget: Duration| {
        device.set_submission_budget(budget);
        train(&device, 20_000, 2)
    };
    let (losses, parameters, submits) = of(Duration::MAX);
    assert_eq!(submits, [1; 2]);
    assert!(losses[1] < losses[0]);
    for budget in [1, 100] {
        let (got, same, submits) = of(Duration::from_millis(budget));
        assert!(got == losses && same == parameters, "{budget} ms");
        // How many the later ones are is known from how long the first one took.
        assert!(submits[0] > 1, "{budget} ms: {submits:?}");
    }
}

/// What is surely short is one submission, and a chain of it is as few as do.
#[test]
fn short_work_is_not_cut() {
    let Some(device) = own_gpu() else { return };
    let (_, _, submits) = train(&device, 3, 2);
    assert_eq!(submits, [1; 2]);
    let x = device.upload("x", &[3], &[1.0, 2.0, 3.0]).unwrap();
    let y = device.upload("y", &[3], &[0.0; 3]).unwrap();
    let mut r = elman::Recorder::new(&device);
    elman::kernels::accumulate::accumulate(&mut r, &x, &y).unwrap();
    let plan = r.finish().unwrap();
    for (budget, submits) in
        [(Duration::MAX, 1..=1), (Duration::from_millis(100), 1..=50), (Duration::ZERO, 1000..=1000)]
    {
        device.set_submission_budget(budget);
        y.write(&[0.0; 3]).unwrap();
        let before = device.count().submits;
        plan.run_times(1000).unwrap();
        let got = device.count().submits - before;
        assert!(submits.contains(&got), "{got} submissions within {budget:?}");
        assert_eq!(y.to_vec().unwrap(), [1000.0, 2000.0, 3000.0]);
    }
}

/// A long run goes on where the device is lost in the midst of it.
#[test]
fn a_loss_between_pieces_changes_nothing() {
    let Some(device) = own_gpu() else { return };
    device.set_submission_budget(Duration::from_millis(1));
    let (losses, parameters, _) = train(&device, 500, 6);
    device.set_recoveries(4).unwrap();
    let (ended, mut lost) = (AtomicBool::new(false), 0);
    let (got, same, _) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for more in [3, 7, 2, 9] {
                let then = device.count().submits + more;
                while device.count().submits < then && !ended.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                device.lose();
                lost += 1;
            }
        });
        let trained = train(&device, 500, 6);
        ended.store(true, Ordering::Relaxed);
        trained
    });
    assert_eq!(lost, 4);
    assert!(got == losses && same == parameters);
}

#[test]
#[ignore = "measures"]
fn the_longest_submission() {
    let Some(device) = own_gpu() else { return };
    let (_, _, submits) = train(&device, 20_000, 3);
    let longest = device.count().longest_submission;
    say_loudly(&format!("{device:?}: submissions of each step: {submits:?}, the longest takes {longest:?}"));
    assert!(longest < std::time::Duration::from_secs(1), "far above the budget of 100 ms: {longest:?}");
}
