//! What a GPU's compiler makes of the kernels, without a GPU: Mesa's driver for AMD compiles for hardware that is not there.
//!
//! `tests/run.sh --isa` runs it, over every kernel of the plans that GPUs get, and prints of each, for RDNA2 and for RDNA3: registers of a
//! thread, waves that fit beside each other, instructions, and the compiler's estimate of cycles. That counts a loop as eight turns, also
//! one of a single turn that is too long to be unrolled: it compares forms of a kernel, and is no time.
#![cfg(test)]

mod driver;
mod plans;
#[path = "../../src/cli/workloads.rs"]
mod workloads;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use driver::{Compiler, FAMILIES, Figures};
use elman::nn::Cell;
use elman::{Device, Precision};
use plans::{GPUS, Variant, Variants, Way};

/// Of each variant, in order, what the compiler of each family makes of it. One test after the other, for the environment is changed.
fn compile(variants: &[Variant]) -> Vec<[Figures; 2]> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let [rdna2, rdna3] = FAMILIES.map(|family| {
        let compiler = Compiler::open(family).unwrap_or_else(|error| panic!("{family}: {error:#}"));
        let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || {
            while let (i, Some(variant)) = next_of(variants, &next) {
                let figures = compiler.figures(variant.kernel, &variant.constants);
                let figures = figures.unwrap_or_else(|error| panic!("{family}: {}: {error:#}", variant.name()));
                done.lock().unwrap().insert(i, figures);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        done.into_inner().unwrap()
    });
    rdna2.into_values().zip(rdna3.into_values()).map(<[Figures; 2]>::from).collect()
}

fn next_of<'a>(variants: &'a [Variant], next: &AtomicUsize) -> (usize, Option<&'a Variant>) {
    let i = next.fetch_add(1, Ordering::Relaxed);
    (i, variants.get(i))
}

/// Those that are not all in registers, with what is not.
fn outside(variants: &[Variant], figures: &[[Figures; 2]]) -> Vec<String> {
    let of = |(variant, figures): (&Variant, &[Figures; 2])| {
        let is_outside = figures.iter().any(|figures| figures.spilled + figures.scratch > 0);
        is_outside.then(|| format!("{}: {figures:?}", variant.name()))
    };
    variants.iter().zip(figures).filter_map(of).collect()
}

/// Every plan that a GPU may get: W1 to W6, and every cell over sizes and batches; of GPUs without subgroups and with them, and, over fewer
/// sizes, of others.
fn variants() -> Vec<Variant> {
    let mut variants = Variants::default();
    for (i, gpu) in GPUS.into_iter().enumerate() {
        let device = Device::in_place_of(gpu);
        plans::workloads(&mut variants, &device).unwrap();
        let sizes: &[usize] = if i < 2 { &[32, 64, 100, 128, 256, 512, 1024, 2048] } else { &[32, 64, 256] };
        for precision in [Precision::F32, Precision::F16] {
            let way = Way { precision, stacked: 1, resets: false };
            let mut add = |cell, size, way| plans::recurrence(&mut variants, &device, cell, size, way).unwrap();
            for (&hidden, batch) in sizes.iter().flat_map(|size| [1, 2, 16, 128, 1024].map(|batch| (size, batch))) {
                for cell in plans::cells() {
                    add(cell, [8, batch, hidden], way);
                    // A single step, of more workgroups, and a wavefront.
                    if hidden == 512 {
                        add(cell, [1, batch, hidden], way);
                        add(cell, [8, batch, hidden], Way { stacked: 2, ..way });
                    }
                }
            }
            for (batch, hidden) in [(4, 256), (1024, 256), (64, 1024)] {
                for cell in plans::cells() {
                    add(cell, [8, batch, hidden], Way { resets: true, ..way });
                    add(plans::with_other_functions(cell), [8, batch, hidden], way);
                }
            }
        }
    }
    variants.all()
}

#[test]
#[ignore = "needs Mesa's driver for AMD: tests/run.sh --isa"]
fn nothing_is_kept_outside_registers() {
    let variants = variants();
    for constant in ["SUBGROUPS", "F16", "KEPT", "STACKED", "FUSED", "RESETS", "ACTIVATIONS"] {
        let is_set = |variant: &Variant| variant.constants.iter().any(|&(name, value)| name == constant && value != 0);
        assert!(variants.iter().any(is_set), "{constant}");
    }
    let figures = compile(&variants);
    println!("RDNA2: registers, waves, instructions, estimate | RDNA3: the same | kernel ({} of them)", variants.len());
    for (variant, [rdna2, rdna3]) in variants.iter().zip(&figures) {
        println!("{rdna2} | {rdna3} | {}", variant.name());
    }
    let outside = outside(&variants, &figures);
    assert!(outside.is_empty(), "{} kernels keep something outside registers:\n{}", outside.len(), outside.join("\n"));
}

/// A software driver's tile, of sixteen rows, is too large for a GPU.
#[test]
#[ignore = "needs Mesa's driver for AMD: tests/run.sh --isa"]
fn a_tile_that_is_too_large_is_found() {
    let mut variants = Variants::default();
    let way = Way { precision: Precision::F32, stacked: 1, resets: false };
    plans::recurrence(&mut variants, &Device::cpu(), Cell::Lstm.into(), [8, 512, 256], way).unwrap();
    let variants = variants.all();
    let names: Vec<_> = variants.iter().map(|variant| variant.kernel.name).collect();
    assert_eq!(names, ["lstm_backward", "lstm_forward", "pack"]);
    let outside = outside(&variants, &compile(&variants));
    assert!(outside.iter().any(|line| line.starts_with("lstm_forward")), "{outside:?}");
}
