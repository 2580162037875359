//! Nothing relies on an allocator that aligns more than it is asked to.

use std::alloc::{GlobalAlloc, Layout, System};

use elman::nn::functional::{InitialState, Reduction, mse_loss};
use elman::nn::{Init, Lstm, RnnOptions};
use elman::{Device, Trainer, optim::Adam, rng};

/// Memory for which no alignment was asked begins at an odd address.
struct Odd;

// SAFETY: as `System`, whose memory is one byte longer where it begins one byte later.
unsafe impl GlobalAlloc for Odd {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > 1 {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        }
        let longer = Layout::from_size_align(layout.size() + 1, 2).expect("a layout");
        // SAFETY: the size is not 0; what comes is a byte longer than what is given on.
        unsafe {
            let start = System.alloc(longer);
            if start.is_null() { start } else { start.add(1) }
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if layout.align() > 1 {
            // SAFETY: the caller's promise.
            return unsafe { System.dealloc(start, layout) };
        }
        let longer = Layout::from_size_align(layout.size() + 1, 2).expect("a layout");
        // SAFETY: `alloc` has made it so.
        unsafe { System.dealloc(start.sub(1), longer) }
    }
}

#[global_allocator]
static ODD: Odd = Odd;

#[test]
fn a_network_trains_on_odd_addresses() {
    let bytes = [1u8, 2].to_vec();
    assert!(!(bytes.as_ptr() as usize).is_multiple_of(2));
    let device = Device::cpu();
    let mut init = Init::new(rng::manual_seed(1));
    let lstm = Lstm::new(&mut init, "lstm", RnnOptions::new(3, 5)).unwrap();
    let parameters = init.upload(&device).unwrap();
    let x = device.upload("x", &[4, 2, 3], &rng::manual_seed(2).randn(24)).unwrap();
    let y = device.upload("y", &[4, 2, 5], &rng::manual_seed(3).randn(40)).unwrap();
    let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        let x = g.input(&x)?;
        let out = lstm.forward(g, x, InitialState::Zero)?;
        mse_loss(g, out.output, &y, Reduction::Mean)
    })
    .unwrap();
    (0..5).for_each(|_| trainer.step().unwrap());
    let losses = trainer.losses().unwrap();
    assert!(losses[4] < losses[0]);
}
