//! A program on the CPU: each instruction on a block of elements after the other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use rayon::prelude::*;
use smallvec::SmallVec;

use super::{Binary, Instruction, Layout, Map, Unary};
use crate::device::threads;
use crate::kernel::{Arg, Args};
use crate::real::{Real, Scratch};

/// Elements that an instruction takes at a time: what all instructions keep stays in the cache.
const BLOCK: usize = 256;

/// Elements that a thread takes at a time.
const SHARE: usize = 16 * BLOCK;

/// Programs that a thread keeps as they are walked.
const MOST_KEPT: usize = 256;

thread_local!(static KEPT: RefCell<HashMap<Box<[u32]>, Rc<Map>>> = RefCell::default());

/// What the words say, taken apart when they come first.
fn kept(words: &[u32]) -> Rc<Map> {
    KEPT.with_borrow_mut(|kept| {
        if let Some(map) = kept.get(words) {
            return map.clone();
        }
        if kept.len() == MOST_KEPT {
            kept.clear();
        }
        let map = Rc::new(Map::from_words(words));
        kept.insert(words.into(), map.clone());
        map
    })
}

pub(super) fn twin<F: Real>(words: &[u32], args: Args<'_, F>) {
    let map = &*kept(words);
    let (mut inputs, mut outputs) = (SmallVec::<[&[F]; 8]>::new(), SmallVec::<[&mut [F]; 8]>::new());
    for arg in args.into_all() {
        match arg {
            Arg::Write(output) => outputs.push(output),
            other => inputs.push(other.read()),
        }
    }
    let n = map.len();
    let output_layouts = &map.layouts[map.program.inputs..];
    if output_layouts.iter().any(Option::is_some) || n <= SHARE || threads::is_alone() {
        let mut scratch = map.scratch();
        for start in (0..n).step_by(BLOCK) {
            let range = start..n.min(start + BLOCK);
            map.run(range.clone(), &inputs, &mut scratch, |output, values, adds| match &output_layouts[output] {
                None => put(&mut outputs[output][range.clone()], values, adds),
                Some(layout) => scatter(layout, &map.sizes, range.start, values, outputs[output], adds),
            });
        }
        return;
    }
    let mut shares: Vec<Vec<&mut [F]>> = (0..n.div_ceil(SHARE)).map(|_| Vec::new()).collect();
    for output in outputs {
        output[..n].chunks_mut(SHARE).zip(&mut shares).for_each(|(part, share)| share.push(part));
    }
    shares.into_par_iter().enumerate().for_each(|(share, mut parts)| {
        let mut scratch = map.scratch();
        let (first, len) = (share * SHARE, parts[0].len());
        for start in (0..len).step_by(BLOCK) {
            let range = start..len.min(start + BLOCK);
            let of_all = first + range.start..first + range.end;
            map.run(of_all, &inputs, &mut scratch, |output, values, adds| {
                put(&mut parts[output][range.clone()], values, adds);
            });
        }
    });
}

fn put<F: Real>(to: &mut [F], values: &[F], adds: bool) {
    match adds {
        false => to.copy_from_slice(values),
        true => to.iter_mut().zip(values).for_each(|(to, &value)| *to = *to + value),
    }
}

/// Calls `each` for every stretch of elements that differ in the last dimension alone: where it starts in the tensor, how far apart
/// its elements are there, where they are among the `len` from element `start` of the results on, how many there are.
fn stretches(
    layout: &Layout,
    sizes: &[usize],
    start: usize,
    len: usize,
    mut each: impl FnMut(usize, usize, usize, usize),
) {
    let (&last, &stride) = sizes.last().zip(layout.strides.last()).expect("there is a dimension");
    let mut done = 0;
    while done < len {
        let mut rest = start + done;
        let column = rest % last;
        let mut at = layout.offset + column * stride;
        rest /= last;
        for (&size, &stride) in sizes.iter().zip(&layout.strides).rev().skip(1) {
            at += rest % size * stride;
            rest /= size;
        }
        let run = (last - column).min(len - done);
        each(at, stride, done, run);
        done += run;
    }
}

fn gather<F: Real>(layout: &Layout, sizes: &[usize], start: usize, from: &[F], to: &mut [F]) {
    let len = to.len();
    stretches(layout, sizes, start, len, |at, stride, first, run| {
        let to = &mut to[first..][..run];
        match stride {
            0 => to.fill(from[at]),
            1 => to.copy_from_slice(&from[at..][..run]),
            _ => to.iter_mut().zip(from[at..].iter().step_by(stride)).for_each(|(to, &from)| *to = from),
        }
    });
}

fn scatter<F: Real>(layout: &Layout, sizes: &[usize], start: usize, values: &[F], to: &mut [F], adds: bool) {
    stretches(layout, sizes, start, values.len(), |at, stride, first, run| {
        let values = &values[first..][..run];
        match stride {
            1 => put(&mut to[at..][..run], values, adds),
            _ => to[at..].iter_mut().step_by(stride).zip(values).for_each(|(to, &value)| {
                *to = if adds { *to + value } else { value };
            }),
        }
    });
}

impl Map {
    fn scratch<F: Real>(&self) -> Scratch<F> {
        let mut scratch = Scratch::zeros(BLOCK * self.program.code.len());
        for (at, instruction) in self.program.code.iter().enumerate() {
            if let Instruction::Constant(bits) = *instruction {
                scratch[at * BLOCK..][..BLOCK].fill(F::of(f32::from_bits(bits).into()));
            }
        }
        scratch
    }

    /// Makes these elements of the results.
    fn run<F: Real>(
        &self,
        range: std::ops::Range<usize>,
        inputs: &[&[F]],
        scratch: &mut [F],
        mut give: impl FnMut(usize, &[F], bool),
    ) {
        let len = range.len();
        let code = &self.program.code;
        // An input that lies as the results do is read where it is.
        let in_place = |at: usize| match code[at] {
            Instruction::Input(input) if self.layouts[input].is_none() => Some(&inputs[input][range.clone()]),
            _ => None,
        };
        for (at, instruction) in code.iter().enumerate() {
            let (done, to) = scratch.split_at_mut(at * BLOCK);
            let (done, to) = (&*done, &mut to[..len]);
            let value = |at: usize| in_place(at).unwrap_or_else(|| &done[at * BLOCK..][..len]);
            match *instruction {
                Instruction::Constant(_) => {}
                Instruction::Input(input) => {
                    if let Some(layout) = &self.layouts[input] {
                        gather(layout, &self.sizes, range.start, inputs[input], to);
                    }
                }
                Instruction::Unary(f, a) => unary(f, value(a), to),
                Instruction::Binary(f, a, b) => binary(f, value(a), value(b), to),
                Instruction::Where(condition, a, b) => {
                    let both = value(a).iter().zip(value(b));
                    for ((to, &condition), (&a, &b)) in to.iter_mut().zip(value(condition)).zip(both) {
                        *to = if condition != F::zero() { a } else { b };
                    }
                }
            }
        }
        for (output, (&at, &adds)) in self.program.outputs.iter().zip(&self.adds).enumerate() {
            give(output, in_place(at).unwrap_or_else(|| &scratch[at * BLOCK..][..len]), adds);
        }
    }
}

fn unary<F: Real>(f: Unary, x: &[F], to: &mut [F]) {
    let (zero, one) = (F::zero(), F::one());
    let mut each = |f: fn(F) -> F| to.iter_mut().zip(x).for_each(|(to, &x)| *to = f(x));
    match f {
        Unary::Neg => each(|x| -x),
        Unary::Abs => each(|x| x.abs()),
        Unary::Sign => to.iter_mut().zip(x).for_each(|(to, &x)| {
            *to = if x > zero {
                one
            } else if x < zero {
                -one
            } else {
                x
            }
        }),
        Unary::Log => each(|x| x.ln()),
        Unary::Sqrt => each(|x| x.sqrt()),
        Unary::Erf => each(|x| x.erf()),
        Unary::Exp | Unary::Tanh | Unary::Sigmoid => {
            to.copy_from_slice(x);
            match f {
                Unary::Exp => F::exp_in_place(to),
                Unary::Tanh => F::tanh_in_place(to),
                _ => F::sigmoid_in_place(to),
            }
        }
        // max(0, x) + log(1 + exp(-|x|))
        Unary::Softplus => {
            to.iter_mut().zip(x).for_each(|(to, &x)| *to = -x.abs());
            F::exp_in_place(to);
            to.iter_mut().zip(x).for_each(|(to, &x)| *to = to.ln_1p() + if x > zero { x } else { zero });
        }
    }
}

fn binary<F: Real>(f: Binary, a: &[F], b: &[F], to: &mut [F]) {
    fn each<F: Real>(a: &[F], b: &[F], to: &mut [F], f: impl Fn(F, F) -> F) {
        to.iter_mut().zip(a.iter().zip(b)).for_each(|(to, (&a, &b))| *to = f(a, b));
    }
    let truth = |is: bool| if is { F::one() } else { F::zero() };
    match f {
        Binary::Add => each(a, b, to, |a, b| a + b),
        Binary::Sub => each(a, b, to, |a, b| a - b),
        Binary::Mul => each(a, b, to, |a, b| a * b),
        Binary::Div => each(a, b, to, |a, b| a / b),
        // A NaN stays one.
        Binary::Minimum => each(a, b, to, |a, b| if a < b || a.is_nan() { a } else { b }),
        Binary::Maximum => each(a, b, to, |a, b| if a > b || a.is_nan() { a } else { b }),
        Binary::Lt => each(a, b, to, |a, b| truth(a < b)),
        Binary::Le => each(a, b, to, |a, b| truth(a <= b)),
        Binary::Eq => each(a, b, to, |a, b| truth(a == b)),
    }
}
