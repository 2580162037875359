//! A stream of a small network takes no memory on the CPU. One test, since it counts what the process asks for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use elman::nn::functional::{self, InitialState};
use elman::nn::{Cell, Init, LayerNorm, Linear, Recurrent, RnnOptions};
use elman::{Device, Result, Stream, rng};

/// Counts what is asked for, by any thread.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: as `System`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn stream(device: &Device, cell: Cell, options: RnnOptions, lanes: usize) -> Result<Stream<1, 1>> {
    let mut init = Init::new(rng::manual_seed(7));
    let rnn = Recurrent::new(&mut init, "rnn", cell, options)?;
    let width = if options.proj_size > 0 { options.proj_size } else { options.hidden_size };
    let norm = LayerNorm::new(&mut init, "norm", width)?;
    let output = Linear::new(&mut init, "output", width, 2)?;
    let parameters = init.upload(device)?;
    let states = [rnn.state(device, lanes)?];
    Stream::new(&parameters, [lanes, options.input_size], states, |g, x, [state]| {
        let x = g.input(x)?;
        let (out, _) = rnn.forward(g, x, InitialState::Carried(state))?;
        let out = norm.forward(g, out)?;
        let out = functional::relu(g, out)?;
        Ok([output.forward(g, out)?])
    })
}

/// After the first push of each kind.
#[test]
fn the_cpu_takes_no_memory() {
    let device = Device::cpu();
    let small = RnnOptions::new(3, 32);
    // The threads of the twins take memory when they start, which large weights have them do.
    stream(&device, Cell::Lstm, RnnOptions::new(128, 128), 1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    for (cell, options, lanes) in [
        (Cell::Tanh, small, 1),
        (Cell::Gru, small, 8),
        (Cell::Gru, small.num_layers(2), 1),
        (Cell::Gru, small.reset_after(false), 2),
        (Cell::Lstm, small, 3),
        (Cell::Lstm, small.num_layers(2), 8),
        (Cell::Lstm, small.proj_size(5), 8),
        (Cell::Lstm, small.peepholes(true), 1),
        (Cell::Lstm, RnnOptions::new(128, 128), 1),
    ] {
        let mut stream = stream(&device, cell, options, lanes).unwrap();
        let x = rng::manual_seed(1).randn(3 * lanes * options.input_size);
        let marks = vec![true; 3 * lanes];
        let all = |stream: &mut Stream<1, 1>| {
            stream.push(&x[..lanes * options.input_size]).unwrap();
            stream.push_block(&x).unwrap();
            stream.push_some(&x, &marks).unwrap();
        };
        all(&mut stream);
        let before = COUNT.load(Ordering::Relaxed);
        (0..100).for_each(|_| all(&mut stream));
        assert_eq!(COUNT.load(Ordering::Relaxed) - before, 0, "{cell:?} {options:?}, {lanes} lanes");
    }
}
