//! Memory of a long run stays flat: that of the device, and the process's. One test, since it looks at the process.

mod common;

use std::ops::Range;

use common::{own_gpu, soak, tokens};
use elman::generate::Generator;
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Init, LanguageModel as _, Parameters};
use elman::optim::Adam;
use elman::{Device, Trainer, rng};

/// Bytes of the process that are in memory; None where the system does not say so in this way.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
}

/// What an allocator and a driver may take and keep in the second half of some work.
const SLACK: u64 = 4 << 20;

/// Does it some times, and as often again: the second half adds nothing.
fn is_flat(what: &str, device: &Device, times: usize, mut work: impl FnMut(Range<usize>)) {
    // What recoveries need is let go with each snapshot: here after equal small parts of the work, not when a second is over.
    let part = times / soak(10, 50);
    let mut half = |from: usize| {
        for start in (from..from + times / 2).step_by(part) {
            work(start..start + part);
            device.snapshot().unwrap();
        }
    };
    half(0);
    let (before, bytes) = (resident(), device.live_bytes());
    half(times / 2);
    assert_eq!(device.live_bytes(), bytes, "{what} on {device:?}");
    let Some((before, after)) = before.zip(resident()) else {
        return common::not_tested("the memory of the process: this system does not say it in /proc");
    };
    assert!(after <= before + SLACK, "{what} on {device:?}: {before} bytes, then {after}, in {times} times");
    common::say_loudly(&format!(
        "{what} on {device:?}: {} KiB more in the second half of {times}",
        (after.max(before) - before) >> 10
    ));
}

fn model(device: &Device) -> (CharRnn, Parameters) {
    let mut init = Init::new(rng::manual_seed(5));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(11, 8, 32).cell(Cell::Gru)).unwrap();
    (model, init.upload(device).unwrap())
}

fn trainer(device: &Device, model: &CharRnn, parameters: &Parameters) -> Trainer {
    let batch = device.tokens("batch", &[7, 30], 11).unwrap();
    batch.write_u32(&tokens(1, 210, 11)).unwrap();
    let targets = device.targets("targets", &[30], 11).unwrap();
    let trainer = Trainer::new(parameters, Adam::new(1e-3), |g| {
        let logits = model.forward(g, &batch, InitialState::Zero)?;
        cross_entropy(g, logits, &targets, Reduction::Mean)
    });
    trainer.unwrap()
}

#[test]
fn memory_is_flat() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let recovering = own_gpu().inspect(|device| device.set_recoveries(3).unwrap());
    for device in [Some(Device::cpu()), own_gpu(), recovering].into_iter().flatten() {
        let (model, parameters) = model(&device);
        let mut training = trainer(&device, &model, &parameters);
        is_flat("steps", &device, soak(1000, 10_000), |steps| {
            for step in steps {
                training.step().unwrap();
                if step % 100 == 0 {
                    training.losses().unwrap();
                }
            }
        });
        elman::io::save(&file, &parameters, Default::default()).unwrap();
        is_flat("loads", &device, soak(100, 1000), |times| {
            times.for_each(|_| elman::io::load(&file, &parameters).unwrap());
        });
        is_flat("generators", &device, soak(100, 1000), |times| {
            for _ in times {
                let mut generator = Generator::new(&model, &parameters, 2).unwrap();
                generator.prime(&[1, 2]).unwrap();
                generator.generate(4, |_| true).unwrap();
            }
        });
        is_flat("plans", &device, soak(60, 300), |times| {
            for _ in times {
                let mut training = trainer(&device, &model, &parameters);
                training.step().unwrap();
                training.losses().unwrap();
            }
        });
    }
}
