//! Checkpoints: what is read of one is an error that says why, or goes on; what does not fit changes nothing.
#![no_main]

use std::cell::RefCell;

use elman::schedule::{EarlyStopping, ReduceOnPlateau};
use elman::{Checkpoint, rng::Rng};
use elman_fuzz::{Training, in_file, mended, says_why};
use libfuzzer_sys::fuzz_target;

thread_local!(static TRAINING: RefCell<Training> = Training::new(1).expect("a training").into());

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    if let Some(bytes) = mended(bytes) {
        read(&bytes);
    }
});

fn read(bytes: &[u8]) {
    match in_file(bytes, |path| Checkpoint::load(path)) {
        Err(error) => says_why(&error),
        Ok(checkpoint) => TRAINING.with_borrow_mut(|training| go_on(&checkpoint, training)),
    }
}

fn go_on(checkpoint: &Checkpoint, Training { trainer, state, windows, .. }: &mut Training) {
    match checkpoint.to_bytes() {
        Ok(bytes) => assert_eq!(in_file(&bytes, |path| Checkpoint::load(path)).expect("just written"), *checkpoint),
        Err(error) => says_why(&error),
    }
    if let Ok(mut rng) = checkpoint.get::<Rng>("rng") {
        rng.randn(17);
        assert!(rng.randperm(5).into_iter().all(|place| place < 5));
    }
    if let Ok(mut stopping) = checkpoint.get::<EarlyStopping>("stopping") {
        stopping.stop(1.0);
    }
    if let Ok(mut plateau) = checkpoint.get::<ReduceOnPlateau>("plateau") {
        plateau.step(1.0);
    }
    match checkpoint.order("order") {
        Ok(order) => drop(windows.set_order(&order).map_err(|error| says_why(&error))),
        Err(error) => says_why(&error),
    }
    let before = state.save().expect("f32 on the CPU");
    if let Err(error) = checkpoint.restore_state("training", state) {
        says_why(&error);
        assert_eq!(format!("{:?}", state.save().expect("f32 on the CPU")), format!("{before:?}"));
    }
    let before = trainer.checkpoint().expect("a checkpoint");
    match trainer.restore(checkpoint) {
        Err(error) => {
            says_why(&error);
            assert_eq!(trainer.checkpoint().expect("a checkpoint"), before);
        }
        Ok(()) => {
            assert_eq!(trainer.steps(), checkpoint.steps());
            // Parameters that diverge are an error of the losses.
            let step = trainer.step().and_then(|()| trainer.losses());
            drop(step.map_err(|error| says_why(&error)));
        }
    }
}
