//! Out of memory is an answer: with figures, before anything is allocated, and nothing of it stays.

mod common;

use common::own_gpu;
use elman::data::Array;
use elman::nn::functional::{InitialState, Reduction, linear, mse_loss};
use elman::nn::{Gru, Init, Linear, Parameters, RnnOptions};
use elman::optim::Sgd;
use elman::{DType, Device, Error, Graph, Recorder, Result, Trainer, Var, kernels, rng};

fn devices() -> impl Iterator<Item = Device> {
    [Some(Device::cpu()), own_gpu()].into_iter().flatten()
}

struct Network {
    gru: Gru,
    output: Linear,
    parameters: Parameters,
}

impl Network {
    fn new(device: &Device) -> Self {
        let mut init = Init::new(rng::manual_seed(1));
        let gru = Gru::new(&mut init, "gru", RnnOptions::new(4, 16)).unwrap();
        let output = Linear::new(&mut init, "output", 16, 2).unwrap();
        Self { gru, output, parameters: init.upload(device).unwrap() }
    }

    fn forward(&self, g: &mut Graph, x: Var) -> Result<Var> {
        let out = self.gru.forward(g, x, InitialState::Zero)?;
        self.output.forward(g, out.output)
    }

    /// A training of so many steps and sequences, whose inputs are the plan's own.
    fn trainer(&self, steps: usize, batch: usize) -> Result<Trainer> {
        let device = self.parameters.device();
        let (x, y) =
            (device.zeros("x", &[steps, batch, 4], DType::F32)?, device.zeros("y", &[steps, batch, 2], DType::F32)?);
        Trainer::new(&self.parameters, Sgd::new(0.1), |g| {
            let x = g.input(&x)?;
            let output = self.forward(g, x)?;
            mse_loss(g, output, &y, Reduction::Mean)
        })
    }
}

#[test]
fn what_is_too_large_leaves_nothing_behind() {
    for device in devices() {
        let network = Network::new(&device);
        let mut small = network.trainer(3, 4).unwrap();
        small.step().unwrap();
        let want = small.losses().unwrap();
        let before = device.live_bytes();
        device.set_most_bytes(before + 400_000);
        for round in 0..100 {
            let error = network.trainer(50 + round, 40).err().unwrap();
            let Error::OutOfMemory { what, needed, held, available, limit, largest, .. } = &error else {
                panic!("{error}")
            };
            assert_eq!((&what[..], *limit), ("the plan", Some(before + 400_000)));
            assert!(*held >= before && *available == before + 400_000 - held && needed > available, "{error}");
            assert!(largest.len() == 3 && largest[0].1 >= largest[1].1 && largest[0].1 < *needed, "{error}");
            for part in [&format!("`{}`", largest[0].0), "`Device::set_most_bytes`", "% of batch x window"] {
                assert!(error.to_string().contains(part), "{error}");
            }
            assert_eq!(device.live_bytes(), before, "{round}");
            // What there is works, and what fits is made.
            if round % 20 == 0 {
                let mut other = network.trainer(3, 4).unwrap();
                other.step().unwrap();
                other.losses().unwrap();
            }
            assert_eq!(device.live_bytes(), before, "{round}");
            small.step().unwrap();
            assert!(small.losses().unwrap()[0] < want[0], "{round}");
        }
        device.set_most_bytes(None);
        network.trainer(50, 40).unwrap().step().unwrap();
        assert_eq!(device.live_bytes(), before);
    }
}

/// A single tensor too.
#[test]
fn a_tensor_beyond_the_limit_is_refused_by_name() {
    for device in devices() {
        device.set_most_bytes(1000);
        let x = device.zeros("x", &[200], DType::F32).unwrap();
        let error = device.zeros("y", &[100], DType::F32).unwrap_err();
        let Error::OutOfMemory { what, needed, held, available, .. } = &error else { panic!("{error}") };
        assert_eq!((&what[..], *needed, *held, *available), ("`y`", 400, 800, 200));
        assert!(error.to_string().contains("50% of batch"), "{error}");
        drop(x);
        device.zeros("y", &[100], DType::F32).unwrap();
        assert_eq!((device.live_bytes(), device.count().peak_bytes), (0, 800));
    }
}

#[test]
fn a_plan_says_what_it_will_need() {
    for device in devices() {
        let network = Network::new(&device);
        let x = device.upload("x", &[3, 4, 4], &common::values(1, 48)).unwrap();
        let before = device.live_bytes();
        let mut g = Graph::inference(&network.parameters);
        assert_eq!(g.memory(), 0);
        let x = g.input(&x).unwrap();
        let y = network.forward(&mut g, x).unwrap();
        let y = g.tensor(y).unwrap();
        let needed = g.memory();
        let held = device.live_bytes();
        assert!(held - before < 100 && needed > 5000, "indices alone: {} of {needed}", held - before);
        let plan = g.finish().unwrap();
        assert_eq!(device.live_bytes(), held + needed);
        assert!(plan.count().memory > needed, "{plan}");
        assert!(plan.to_string().contains("of memory"));
        plan.run().unwrap();
        assert!(y.to_vec().unwrap().iter().all(|y| *y != 0.0));
        drop((plan, y));
        assert_eq!(device.live_bytes(), before);
    }
}

/// What another plan has used already is not counted, nor allocated, again.
/// Of values that share memory too.
#[test]
fn a_recorder_says_what_its_plan_will_take() {
    for device in devices() {
        let x = device.upload("x", &[64, 300], &common::values(1, 64 * 300)).unwrap();
        let w = device.upload("w", &[300, 300], &common::values(2, 300 * 300)).unwrap();
        let record = |shares: bool| {
            let mut g = Graph::without_parameters(&device);
            g.set_sharing(shares);
            let (mut y, w) = (g.input(&x).unwrap(), g.input(&w).unwrap());
            for _ in 0..5 {
                y = linear(&mut g, y, w, None).unwrap();
            }
            let y = g.tensor(y).unwrap();
            (g.into_recorder(), y)
        };
        let mut needs = [false, true].map(|shares| {
            let (recorder, y) = record(shares);
            let (needed, held, count) = (recorder.memory(), device.live_bytes(), recorder.count());
            let plan = recorder.finish().unwrap();
            assert_eq!(device.live_bytes(), held + needed, "{plan}");
            assert_eq!(plan.count().memory, count.memory);
            plan.run().unwrap();
            (needed, y.to_vec().unwrap())
        });
        assert_eq!(needs[0].1, needs[1].1, "{device:?}");
        // The last has a handle; of the four before it, two have the memory of the other two.
        needs.iter_mut().for_each(|(needed, _)| *needed /= 4 * 64 * 300);
        assert_eq!((needs[0].0, needs[1].0), (5, 3), "{device:?}");
    }
}

#[test]
fn plans_share_what_has_memory() {
    for device in devices() {
        let (x, y) = (device.zeros("x", &[5], DType::F32).unwrap(), device.zeros("y", &[5], DType::F32).unwrap());
        let mut r = Recorder::new(&device);
        kernels::accumulate::accumulate(&mut r, &x, &y).unwrap();
        assert_eq!(r.memory(), 0);
        device.set_most_bytes(0);
        r.finish().unwrap().run().unwrap();
    }
}

/// Where the next shape has no room, the plans of others go: those too that would only be run again if the device were lost.
#[test]
fn plans_of_other_shapes_make_room() {
    for (device, recoveries) in devices().zip([0, 0]).chain(own_gpu().map(|device| (device, 3))) {
        device.set_recoveries(recoveries).unwrap();
        let network = Network::new(&device);
        let mut trainer = Trainer::on_batches(&network.parameters, Sgd::new(0.1), |g, [x, y]| {
            let x = g.input(x)?;
            let output = network.forward(g, x)?;
            mse_loss(g, output, y, Reduction::Mean)
        })
        .unwrap();
        let batch = |steps: usize| {
            let array = |name: &str, columns: usize| {
                Array::new(name, &[steps, 9, columns], common::values(1, steps * 9 * columns)).unwrap()
            };
            [array("x", 4), array("y", 2)]
        };
        trainer.step_on(&batch(30)).unwrap();
        device.set_most_bytes(device.live_bytes() + 50_000);
        trainer.step_on(&batch(31)).unwrap();
        assert_eq!((trainer.plans().len(), trainer.plans().recorded()), (1, 2), "{recoveries} recoveries");
        device.lose();
        if recoveries > 0 || !device.is_gpu() {
            trainer.step_on(&batch(31)).unwrap();
            assert_eq!(trainer.losses().unwrap().len(), 3);
        }
    }
}
