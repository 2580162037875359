//! Plans beside each other on a CPU device.

use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use super::*;
use crate::device::threads;
use crate::kernel::{Binding, Twin, params, reads, twin, writes};
use crate::tensor::DType;

params! { unused: u32 }

const fn kernel(name: &'static str, twin: Twin) -> Kernel {
    const BINDINGS: &[Binding] = &[reads("x"), writes("y")];
    Kernel { name, source: "", constants: &[], params: FIELDS, bindings: BINDINGS, twin }
}

/// Copies x to y when the test has met it twice: inside, and to let it go on.
static WAITS: Kernel = kernel("waits", twin!(waits));
static MEETING: Barrier = Barrier::new(2);

fn waits<F: Real>(p: &Params, args: Args<'_, F>) {
    MEETING.wait();
    MEETING.wait();
    copies(p, args);
}

static COPIES: Kernel = kernel("copies", twin!(copies));

fn copies<F: Real>(_: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    y.write().copy_from_slice(x.read());
}

static PANICS: Kernel = kernel("panics", twin!(panics));

fn panics<F: Real>(_: &Params, _: Args<'_, F>) {
    panic!("planted");
}

fn plan(kernel: &'static Kernel, x: &Tensor, y: &Tensor) -> Plan {
    let mut r = Recorder::new(x.device());
    r.dispatch(kernel, &[], Params { unused: 0 }, &[x, y], [1; 3]).unwrap();
    r.finish().unwrap()
}

/// Runs the work on a thread of its own, and fails if it hangs.
fn within_a_minute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    wait.recv_timeout(Duration::from_secs(60)).expect("it hangs, or has panicked");
}

/// While a plan is inside a twin: what does not use what it writes goes on, what does waits.
#[test]
fn what_shares_no_written_tensor_runs_at_the_same_time() {
    within_a_minute(|| {
        for device in [Device::cpu(), Device::reference()] {
            let x = device.upload("x", &[3], &[1., 2., 3.]).unwrap();
            let [y, z] = ["y", "z"].map(|name| device.zeros(name, &[3], DType::F32).unwrap());
            let Kind::Cpu(_, turns) = device.kind() else { unreachable!() };
            let (inside, apart, after) = (plan(&WAITS, &x, &y), plan(&COPIES, &x, &z), plan(&COPIES, &y, &z));
            thread::scope(|scope| {
                scope.spawn(|| inside.run().unwrap());
                MEETING.wait();
                assert_eq!(x.to_vec().unwrap(), [1., 2., 3.]);
                z.write(&[7.; 3]).unwrap();
                assert_eq!(z.to_vec().unwrap(), [7.; 3]);
                if threads::count() > 1 {
                    apart.run().unwrap();
                    assert_eq!(z.to_vec().unwrap(), [1., 2., 3.]);
                }
                let writer = scope.spawn(|| x.write(&[0.; 3]).unwrap());
                let reader = scope.spawn(|| y.to_vec().unwrap());
                let user = scope.spawn(|| after.run().unwrap());
                while turns.waiting() < 3 {
                    thread::yield_now();
                }
                assert!(!writer.is_finished() && !reader.is_finished() && !user.is_finished());
                MEETING.wait();
                assert_eq!(reader.join().unwrap(), [1., 2., 3.]);
            });
            assert_eq!((x.to_vec().unwrap(), z.to_vec().unwrap()), (vec![0.; 3], vec![1., 2., 3.]));
        }
    });
}

#[test]
fn a_panic_in_a_twin_ends_its_turn() {
    within_a_minute(|| {
        let device = Device::cpu();
        let x = device.upload("x", &[3], &[1., 2., 3.]).unwrap();
        let y = device.zeros("y", &[3], DType::F32).unwrap();
        let broken = plan(&PANICS, &x, &y);
        assert!(thread::scope(|scope| scope.spawn(|| broken.run()).join()).is_err());
        plan(&COPIES, &x, &y).run().unwrap();
        assert_eq!(y.to_vec().unwrap(), [1., 2., 3.]);
    });
}
