//! Time of one training step of the published Nietzsche network: windows of 8, batch 512, hidden 256.
//!
//! `cargo bench --bench training_step`. The devices are the CPU and, where there is one, the GPU of `ELMAN_DEVICE`
//! (default `gpu`). The first loss is checked before anything is timed.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use criterion::{Criterion, criterion_group, criterion_main};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{CharRnn, CharRnnOptions, Init, LanguageModel};
use elman::optim::Adam;
use elman::text::{Corpus, Windows};
use elman::{Device, Trainer, rng};

fn trainer(device: &Device) -> elman::Result<Trainer> {
    let mut init = Init::new(rng::manual_seed(777));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(85, 42, 256))?;
    let parameters = init.upload(device)?;
    let tokens: Vec<u32> = (0..20_000u32).map(|i| i * i / 7 % 85).collect();
    let corpus = Corpus::new(device, &tokens, 85)?;
    let windows = Windows::new(&corpus, init.rng.randperm(19_000), 8)?;
    Trainer::new(&parameters, Adam::new(1e-3), |g| {
        let batch = windows.batch(g, 512)?;
        let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    })
}

fn training_step(criterion: &mut Criterion) {
    let name = std::env::var(elman::device::ENVIRONMENT_VARIABLE).unwrap_or_else(|_| "gpu".into());
    let first_loss = |device: &Device| {
        let mut trainer = trainer(device).unwrap();
        trainer.step().unwrap();
        trainer.losses().unwrap()[0]
    };
    let want = first_loss(&Device::reference());
    let mut group = criterion.benchmark_group("training step, T 8, B 512, E 42, H 256, V 85, f32");
    group.sample_size(10);
    for device in [Ok(Device::cpu()), Device::open(&name)].into_iter().flatten() {
        let got = first_loss(&device);
        assert!((got - want).abs() <= 1e-5 * want, "{got} instead of {want} on {}", device.describe());
        let mut trainer = trainer(&device).unwrap();
        group.bench_function(device.describe(), |bencher| {
            bencher.iter(|| {
                trainer.step().unwrap();
                device.synchronize().unwrap();
            });
        });
        trainer.losses().unwrap();
    }
    group.finish();
}

criterion_group!(benches, training_step);
criterion_main!(benches);
