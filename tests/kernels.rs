//! Every kernel, on every device, against its twin in f64.
//!
//! Sizes are all different and lie around each edge of a tile: 1, tile - 1, tile, tile + 1, 2 tile + 3.

mod common;

use std::collections::BTreeSet;
use std::sync::Mutex;

use common::{assert_close, f32_devices, gpu, tokens, values};
use elman::kernels::clip::{clip_norm, clip_value};
use elman::kernels::cross_entropy::ClassLoss;
use elman::kernels::generate::Sizes;
use elman::kernels::map::Operand;
use elman::kernels::matmul::{Factor, t};
use elman::kernels::row_weights::{RowWeights, Targets};
use elman::kernels::sample::{Draw, FIRST_PLACE};
use elman::kernels::sequence::{Activation as Function, Form, Sequence, SequenceGradients};
use elman::kernels::{self, Update};
use elman::map::{Layout, Program};
use elman::nn::LanguageModel;
use elman::nn::functional::{self, InitialState};
use elman::nn::{Cell, CellForm};
use elman::optim::{Adagrad, Adam, AdamW, RmsProp, Rule, Sgd};
use elman::{DType, Device, Error, Graph, NO_TARGET, Precision, Recorder, Result, Tensor, rng};

/// f32 rounding of a sum of products, relative to the row's largest value.
const TOLERANCE: f64 = 1e-5;

/// The kernels that [`check`] has compared.
static TESTED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// Runs what `record` records on the reference and on each f32 device, planned both ways, and compares the tensors it returns.
fn check(what: &str, tolerance: f64, record: impl Fn(&Device, &mut Graph) -> Result<Vec<Tensor>>) {
    let run = |device: &Device, wide: bool| {
        let mut g = Graph::without_parameters(device);
        g.set_wide(wide);
        let outputs = record(device, &mut g).unwrap_or_else(|error| panic!("{what}: {error}"));
        let plan = g.finish().unwrap();
        TESTED.lock().unwrap().extend(plan.kernels());
        plan.run().unwrap();
        outputs
    };
    let want = run(&Device::reference(), false);
    for (device, wide) in f32_devices().into_iter().flat_map(|device| [(device.clone(), false), (device, true)]) {
        for (got, want) in run(&device, wide).iter().zip(&want) {
            let what = format!("{what}, {want:?} on {}, wide {wide}", device.describe());
            let columns = *want.shape().last().unwrap();
            match want.dtype() {
                DType::F32 => {
                    let (got, want) = (got.to_vec_f64().unwrap(), want.to_vec_f64().unwrap());
                    assert_close(&what, &got, &want, columns, tolerance);
                }
                DType::U32 => assert_eq!(got.to_vec_u32().unwrap(), want.to_vec_u32().unwrap(), "{what}"),
            }
        }
    }
}

fn random(device: &Device, name: &str, shape: &[usize]) -> Result<Tensor> {
    let seed = name.bytes().map(u32::from).sum();
    device.upload(name, shape, &values(seed, shape.iter().product()))
}

fn indices(device: &Device, name: &str, shape: &[usize], below: usize) -> Result<Tensor> {
    let seed = name.bytes().map(u32::from).sum();
    let tensor = device.tokens(name, shape, below)?;
    tensor.write_u32(&tokens(seed, shape.iter().product(), below))?;
    Ok(tensor)
}

fn zeros(device: &Device, name: &str, shape: &[usize]) -> Result<Tensor> {
    device.zeros(name, shape, DType::F32)
}

#[test]
fn matmul() {
    let sizes = [
        (1, 1, 1),
        (63, 15, 65),
        (64, 16, 64),
        (65, 17, 63),
        (131, 35, 70),
        (1, 300, 67),
        (67, 2601, 3),
        (131, 300, 70),
        (67, 65, 130),
    ];
    sizes.iter().for_each(|&(m, k, n)| matmul_case(m, k, n));
}

fn matmul_case(m: usize, k: usize, n: usize) {
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        for (bias, accumulate) in [(false, false), (true, false), (false, true), (true, true)] {
            let what = format!("matmul {m} {k} {n} {ta} {tb} {bias} {accumulate}");
            check(&what, TOLERANCE, |device, g| {
                let a = random(device, "a", &if ta { [k, m] } else { [m, k] })?;
                let b = random(device, "b", &if tb { [n, k] } else { [k, n] })?;
                let c = random(device, "c", &[m, n])?;
                let bias = bias.then(|| random(device, "bias", &[n])).transpose()?;
                let a = if ta { t(&a) } else { Factor::from(&a) };
                let b = if tb { t(&b) } else { Factor::from(&b) };
                kernels::matmul::matmul(g, a, b, bias.as_ref(), &c, accumulate)?;
                Ok(vec![c])
            });
        }
    }
}

/// A left factor that lies inside a larger tensor.
#[test]
fn matmul_of_a_block() {
    for transposed in [false, true] {
        check(&format!("block {transposed}"), TOLERANCE, |device, g| {
            let a = random(device, "a", &[7, 90])?;
            let block = Factor::block(&a, 93, 5, 70, 90);
            let (block, b) = if transposed { (block.t(), [5, 67]) } else { (block, [70, 67]) };
            let b = random(device, "b", &b)?;
            let c = zeros(device, "c", &[if transposed { 70 } else { 5 }, 67])?;
            kernels::matmul::matmul(g, block, &b, None, &c, false)?;
            let sum = zeros(device, "sum", &[67])?;
            kernels::column_sum::first_columns(g, &a, &sum, false)?;
            Ok(vec![c, sum])
        });
    }
    let device = Device::cpu();
    // Bytes are those of the block, whatever is bound in place of biases.
    for biases in 0..=2 {
        let mut g = Graph::without_parameters(&device);
        let [a, b, c] = [("a", [100, 64]), ("b", [64, 3]), ("c", [10, 3])]
            .map(|(name, shape)| zeros(&device, name, &shape).unwrap());
        let bias = vec![zeros(&device, "bias", &[3]).unwrap(); biases];
        let biases: Vec<_> = bias.iter().collect();
        kernels::matmul::matmul_with_biases(&mut g, Factor::block(&a, 640, 10, 64, 64), &b, &biases, &c, false)
            .unwrap();
        let of_biases = 3 * biases.len().min(1);
        let bytes = g.finish().unwrap().dispatches().next().unwrap().bytes();
        assert_eq!(bytes, 4 * (10 * 64 + 64 * 3 + of_biases + 10 * 3) as u64, "{} biases", biases.len());
    }
    let mut g = Graph::without_parameters(&device);
    let (a, c) = (zeros(&device, "a", &[7, 90]).unwrap(), zeros(&device, "c", &[6, 90]).unwrap());
    let outside = Factor::block(&a, 93, 6, 90, 90);
    assert!(
        kernels::matmul::matmul(&mut g, outside, &zeros(&device, "b", &[90, 90]).unwrap(), None, &c, false).is_err()
    );
}

/// The sizes of recurrences: T, B, H around the edges of the row tile.
const SEQUENCES: [(usize, usize, usize); 9] =
    [(1, 1, 1), (3, 2, 5), (4, 5, 4), (5, 7, 31), (3, 17, 65), (3, 67, 33), (4, 35, 256), (2, 6, 1022), (3, 5, 1030)];

/// The sizes of a recurrence: D; T, B, H.
type Recurrence = (usize, (usize, usize, usize));

/// All sizes for the cell of one gate; for the others, which share its layout, those around which their own code bends.
fn sizes() -> Vec<(Cell, Recurrence)> {
    let few = [(1, 1, 1), (4, 5, 7), (3, 67, 33), (2, 6, 258), (3, 5, 1030), (3, 1, 65), (3, 3, 49)];
    let of = |cell| few.map(|size| (cell, (1, size)));
    let two = |cell| [few[0], few[1], few[2]].map(|size| (cell, (2, size)));
    let tanh = SEQUENCES.map(|size| (Cell::Tanh, (1, size)));
    // Batch and weights enough for a GPU's tile of eight rows.
    let shared = [(Cell::Tanh, (1, (2, 515, 184))), (Cell::Gru, (1, (2, 513, 108))), (Cell::Lstm, (2, (2, 515, 92)))];
    // Work enough for the large tile of a software driver.
    let large = [(Cell::Tanh, (1, (4, 200, 257))), (Cell::Gru, (1, (2, 70, 350))), (Cell::Lstm, (2, (2, 50, 364)))];
    // relu has the code of tanh.
    let others: Vec<_> = Cell::ALL.iter().copied().filter(|cell| ![Cell::Tanh, Cell::Relu].contains(cell)).collect();
    let one =
        [&tanh[..], &of(Cell::Relu)[1..3], &others.iter().flat_map(|&cell| of(cell)).collect::<Vec<_>>()].concat();
    let both = [&two(Cell::Tanh)[..], &two(Cell::Relu)[1..], &others.into_iter().flat_map(two).collect::<Vec<_>>()];
    [&one[..], &shared, &large, &both.concat(), &[(Cell::Gru, (2, (3, 5, 1030)))]].concat()
}

/// A recurrence with random tensors; the recurrent matrices keep their products near 1.
fn sequence(
    device: &Device,
    cell: impl Into<CellForm>,
    (directions, (steps, batch, hidden)): Recurrence,
) -> Result<Sequence> {
    let cell = cell.into().kind();
    let width = cell.gates * hidden;
    let scale = 1.7 / (hidden as f32).sqrt();
    let w = |d: usize| {
        let values: Vec<f32> = values(5 + d as u32, width * hidden).iter().map(|w| scale * w).collect();
        device.upload("w", &[width, hidden], &values)
    };
    let states = [directions, cell.states, steps + 1, batch, hidden];
    let lengths = device.lengths("lengths", batch, steps)?;
    lengths.write_u32(&tokens(4, batch, steps).iter().map(|t| t + 1).collect::<Vec<_>>())?;
    Ok(Sequence {
        x: random(device, "x", &[directions, 11, width])?,
        index: indices(device, "index", &[directions, steps, batch], 11)?,
        lengths,
        resets: None,
        w: (0..directions).map(w).collect::<Result<_>>()?,
        w_ih: Vec::new(),
        biases: cell.separate_bias.then(|| random(device, "bias", &[directions, width])).transpose()?,
        states: random(device, "h", &states)?,
        saved: (cell.saved > 0)
            .then(|| zeros(device, "saved", &[directions, steps, batch, cell.saved * hidden]))
            .transpose()?,
        form: None,
        peepholes: None,
        has_h_0: true,
        precision: Precision::F32,
    })
}

#[test]
fn recurrences_forward() {
    for (cell, size) in sizes() {
        check(&format!("{cell:?} {size:?}"), TOLERANCE, |device, g| {
            let s = sequence(device, cell, size)?;
            kernels::sequence::forward(g, cell.kind(), &s)?;
            Ok(vec![s.states])
        });
    }
}

#[test]
fn recurrences_backward() {
    for (cell, size) in sizes() {
        recurrence_backward(cell, size, (true, true));
        let (_, (_, _, hidden)) = size;
        for given in [(true, false), (false, true)].iter().filter(|_| hidden < 100) {
            recurrence_backward(cell, size, *given);
        }
    }
}

/// Its gradients, random where they are given.
fn gradients(
    device: &Device,
    cell: Cell,
    (directions, (steps, batch, hidden)): Recurrence,
    (has_dy, has_dend): (bool, bool),
) -> Result<SequenceGradients> {
    let states = [directions, cell.states(), batch, hidden];
    let of_dx = directions * steps * batch * cell.gates() * hidden;
    Ok(SequenceGradients {
        dy: has_dy.then(|| random(device, "dy", &[directions, steps, batch, hidden])).transpose()?,
        dend: has_dend.then(|| random(device, "dend", &states)).transpose()?,
        dx: zeros(device, "dx", &[of_dx.next_multiple_of(64) + states.iter().product::<usize>()])?,
        wants_dstart: true,
    })
}

fn recurrence_backward(cell: Cell, size: Recurrence, given @ (has_dy, has_dend): (bool, bool)) {
    check(&format!("{cell:?} {size:?} {has_dy} {has_dend}"), TOLERANCE, |device, g| {
        let s = sequence(device, cell, size)?;
        let d = gradients(device, cell, size, given)?;
        kernels::sequence::forward(g, cell.kind(), &s)?;
        kernels::sequence::backward(g, cell.kind(), &s, &d)?;
        Ok(d.parts(&s).to_vec())
    });
}

/// Marks of a third of the steps, in a recurrence of `flows` inputs, the last of them reversed.
fn with_resets(g: &mut Graph, flows: usize, s: Sequence) -> Result<Sequence> {
    let (device, batch, steps) = (s.x.device().clone(), s.lengths.len(), s.index.shape()[1]);
    let third: Vec<_> = tokens(6, steps * batch, 3).iter().map(|&token| u32::from(token == 0)).collect();
    let marks = device.upload_u32("marks", &[steps, batch], &third)?;
    let resets = device.zeros("resets", &[batch * (1 + flows * steps)], DType::U32)?;
    let reversed: Vec<_> = (0..flows).map(|flow| flow + 1 == flows).collect();
    kernels::resets::resets(g, &s.lengths, &marks, &reversed, &resets)?;
    Ok(Sequence { resets: Some(resets), ..s })
}

/// States become 0 before some steps: all steps at once, in dispatches of few, step by step, and as stacked layers.
#[test]
fn recurrences_with_resets() {
    let sizes = [(1, (1, 1, 1)), (2, (5, 5, 37))];
    for (&cell, size @ (directions, (steps, batch, hidden))) in Cell::ALL.iter().flat_map(|c| sizes.map(|s| (c, s))) {
        for (stepwise, turns) in [(false, usize::MAX), (false, 90), (true, usize::MAX)] {
            check(&format!("{cell:?} {size:?} {stepwise} {turns}"), TOLERANCE, |device, g| {
                if !is_reference(device) {
                    g.set_stepwise(stepwise);
                    g.set_most_work(turns, u64::MAX);
                }
                let s = sequence(device, cell, size)?;
                let s = with_resets(g, directions, s)?;
                let d = gradients(device, cell, size, (true, true))?;
                kernels::sequence::forward(g, cell.kind(), &s)?;
                kernels::sequence::backward(g, cell.kind(), &s, &d)?;
                Ok([&[s.states.clone(), s.resets.clone().unwrap()], &d.parts(&s)[..]].concat())
            });
        }
        check(&format!("{cell:?} {size:?} stacked"), TOLERANCE, |device, g| {
            let size = (3, size.1);
            let s = stack(device, cell, size)?;
            let s = with_resets(g, 1, s)?;
            let dy = Some(random(device, "dy", &[1, steps, batch, hidden])?);
            let d = SequenceGradients { dy, ..gradients(device, cell, size, (false, true))? };
            kernels::sequence::forward(g, cell.kind(), &s)?;
            kernels::sequence::backward(g, cell.kind(), &s, &d)?;
            Ok([std::slice::from_ref(&s.states), &d.parts(&s)[..]].concat())
        });
    }
}

#[test]
fn resets() {
    check("resets", 0.0, |device, g| {
        let (x, y) = (random(device, "x", &[5, 67])?, random(device, "y", &[5, 67])?);
        let marks = device.upload_u32("marks", &[7], &[9, 9, 0, 1, 0, 0, 2])?;
        kernels::reset_rows::reset_rows(g, &x, &marks, 2, &y)?;
        let s = sequence(device, Cell::Tanh, (3, (5, 61, 2)))?;
        Ok(vec![y, with_resets(g, 3, s)?.resets.unwrap()])
    });
}

/// The GRU that resets before its product: all steps at once, in dispatches of few, two dispatches a step, and stacked.
#[test]
fn gru_that_resets_before_its_product() {
    let cell = CellForm { reset_after: false, ..Cell::Gru.into() };
    let kind = cell.kind();
    for size @ (directions, (steps, batch, hidden)) in [(1, (1, 1, 1)), (2, (4, 5, 37)), (1, (3, 35, 258))] {
        for (stepwise, turns, marked) in [(false, usize::MAX, false), (false, 90, true), (true, usize::MAX, true)] {
            check(&format!("{size:?} {stepwise} {turns} {marked}"), TOLERANCE, |device, g| {
                if !is_reference(device) {
                    g.set_stepwise(stepwise);
                    g.set_most_work(turns, u64::MAX);
                }
                let mut s = sequence(device, cell, size)?;
                if marked {
                    s = with_resets(g, directions, s)?;
                }
                let d = gradients(device, Cell::Gru, size, (true, true))?;
                kernels::sequence::forward(g, kind, &s)?;
                kernels::sequence::backward(g, kind, &s, &d)?;
                Ok([&[s.states.clone(), s.saved.clone().unwrap()], &d.parts(&s)[..]].concat())
            });
        }
        check(&format!("{size:?} stacked"), TOLERANCE, |device, g| {
            let s = stack(device, cell, (3, size.1))?;
            let dy = Some(random(device, "dy", &[1, steps, batch, hidden])?);
            let d = SequenceGradients { dy, ..gradients(device, Cell::Gru, (3, size.1), (false, true))? };
            kernels::sequence::forward(g, kind, &s)?;
            kernels::sequence::backward(g, kind, &s, &d)?;
            Ok([std::slice::from_ref(&s.states), &d.parts(&s)[..]].concat())
        });
    }
}

/// Forms of a cell: other functions, bound; of the LSTM with peepholes and coupled gates too.
fn forms(cell: Cell) -> Vec<Form> {
    let mixed = [
        Function::HardSigmoid { alpha: 0.3, beta: 0.5 },
        Function::Sigmoid,
        Function::ScaledTanh { alpha: 1.2, beta: 0.7 },
        Function::Softplus,
        Function::Softsign,
    ];
    let others = [
        Function::Elu { alpha: 0.7 },
        Function::LeakyRelu { alpha: 0.1 },
        Function::Affine { alpha: 0.5, beta: 0.1 },
        Function::ThresholdedRelu { alpha: 0.2 },
        Function::Relu,
    ];
    let own = Form::new(cell.kind().functions);
    let coupled = cell == Cell::Lstm;
    vec![Form { activations: mixed, clip: 0.8, ..own }, Form { activations: others, clip: 1.5, coupled }]
}

/// Forward and backward, side by side and stacked, with resets in one of them.
#[test]
fn recurrences_of_forms() {
    let (steps, batch, hidden) = (4, 5, 37);
    for (&cell, i) in Cell::ALL.iter().flat_map(|cell| [(cell, 0), (cell, 1)]) {
        let with_form = |device: &Device, s: Sequence| {
            let form = Some(forms(cell)[i]);
            let (count, blocks) = (s.w.len(), Sequence { form, ..s.clone() }.saved_blocks(cell.kind()));
            let peepholes = (cell == Cell::Lstm).then(|| random(device, "peepholes", &[count, 3 * hidden]));
            let saved = Some(zeros(device, "saved", &[count, steps, batch, blocks * hidden])?);
            Ok::<_, Error>(Sequence { form, saved, peepholes: peepholes.transpose()?, ..s })
        };
        for (stepwise, turns) in [(false, usize::MAX), (false, 90), (true, usize::MAX)] {
            check(&format!("{cell:?} {i} {stepwise} {turns}"), TOLERANCE, |device, g| {
                if !is_reference(device) {
                    g.set_stepwise(stepwise);
                    g.set_most_work(turns, u64::MAX);
                }
                let size = (2, (steps, batch, hidden));
                let mut s = with_form(device, sequence(device, cell, size)?)?;
                if i == 1 {
                    s = with_resets(g, 2, s)?;
                }
                let d = gradients(device, cell, size, (true, true))?;
                kernels::sequence::forward(g, cell.kind(), &s)?;
                kernels::sequence::backward(g, cell.kind(), &s, &d)?;
                Ok([std::slice::from_ref(&s.states), &d.parts(&s)[..]].concat())
            });
        }
        check(&format!("{cell:?} {i} stacked"), TOLERANCE, |device, g| {
            let size = (3, (steps, batch, hidden));
            let s = with_form(device, stack(device, cell, size)?)?;
            let dy = Some(random(device, "dy", &[1, steps, batch, hidden])?);
            let d = SequenceGradients { dy, ..gradients(device, cell, size, (false, true))? };
            kernels::sequence::forward(g, cell.kind(), &s)?;
            kernels::sequence::backward(g, cell.kind(), &s, &d)?;
            Ok([std::slice::from_ref(&s.states), &d.parts(&s)[..]].concat())
        });
    }
}

#[test]
fn peephole_products() {
    for first in [None, Some(2)] {
        check(&format!("peephole_products {first:?}"), TOLERANCE, |device, g| {
            let (d, c) = (random(device, "d", &[3, 5, 4 * 17])?, random(device, "c", &[4, 5, 17])?);
            let (marks, y) = (indices(device, "marks", &[17], 2)?, random(device, "y", &[15, 51])?);
            let marks = first.map(|first| (&marks, first));
            kernels::peephole_products::peephole_products(g, (&d, &c), marks, &y)?;
            Ok(vec![y])
        });
    }
}

/// Two directions side by side are each what it is alone, bit for bit, in both modes.
#[test]
fn directions_do_not_touch_each_other() {
    let half = |tensor: &Tensor, d: usize| {
        let (mut shape, len) = (tensor.shape().to_vec(), tensor.len() / 2);
        shape[0] = 1;
        let half = tensor.device().zeros(tensor.name(), &shape, DType::F32).unwrap();
        half.write(&tensor.to_vec().unwrap()[d * len..][..len]).unwrap();
        half
    };
    let run = |device: &Device, cell: Cell, modes: (bool, bool), s: &Sequence, d: &SequenceGradients| {
        let mut g = Graph::without_parameters(device);
        g.set_wide(modes.0);
        g.set_stepwise(modes.1);
        kernels::sequence::forward(&mut g, cell.kind(), s).unwrap();
        kernels::sequence::backward(&mut g, cell.kind(), s, d).unwrap();
        g.finish().unwrap().run().unwrap();
        let [dx, dstart] = d.parts(s);
        let results = [Some(&s.states), s.saved.as_ref(), Some(&dx), Some(&dstart)];
        results.into_iter().flatten().map(|tensor| tensor.to_vec().unwrap()).collect::<Vec<_>>()
    };
    let modes = [(false, false), (true, false), (false, true)];
    for (device, mode) in f32_devices().into_iter().flat_map(|device| modes.map(|mode| (device.clone(), mode))) {
        for &cell in Cell::ALL {
            for size in [(1, 1, 1), (3, 67, 33), (5, 3, 18)] {
                let s = sequence(&device, cell, (2, size)).unwrap();
                let d = gradients(&device, cell, (2, size), (true, true)).unwrap();
                let alone = [0, 1].map(|i| {
                    let index = device.tokens("index", &[1, size.0, size.1], 11).unwrap();
                    index.write_u32(&s.index.to_vec_u32().unwrap()[i * index.len()..][..index.len()]).unwrap();
                    let of = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| half(tensor, i));
                    let one = Sequence {
                        x: half(&s.x, i),
                        index,
                        lengths: s.lengths.clone(),
                        resets: None,
                        w: vec![s.w[i].clone()],
                        w_ih: Vec::new(),
                        biases: of(&s.biases),
                        states: half(&s.states, i),
                        saved: of(&s.saved),
                        form: None,
                        peepholes: None,
                        has_h_0: true,
                        precision: Precision::F32,
                    };
                    let of_one = SequenceGradients {
                        dy: of(&d.dy),
                        dend: of(&d.dend),
                        dx: gradients(&device, cell, (1, size), (false, false)).unwrap().dx,
                        wants_dstart: true,
                    };
                    run(&device, cell, mode, &one, &of_one)
                });
                for (both, alone) in run(&device, cell, mode, &s, &d).iter().zip(alone[0].iter().zip(&alone[1])) {
                    let what = format!("{cell:?} {size:?} {mode:?} on {}", device.describe());
                    assert!(alone.0 != alone.1, "{what}");
                    assert_eq!(*both, [&alone.0[..], alone.1].concat(), "{what}");
                }
            }
        }
    }
}

/// The same as stacked layers in place of directions.
fn stack(
    device: &Device,
    cell: impl Into<CellForm>,
    size @ (layers, (steps, batch, hidden)): Recurrence,
) -> Result<Sequence> {
    let cell = cell.into();
    let kind = cell.kind();
    let width = kind.gates * hidden;
    let scale = 1.0 / (hidden as f32).sqrt();
    let w_ih = |layer: usize| {
        let values: Vec<f32> = values(31 + layer as u32, width * hidden).iter().map(|w| scale * w).collect();
        device.upload("w_ih", &[width, hidden], &values)
    };
    let separate = if kind.separate_bias { layers } else { 0 };
    Ok(Sequence {
        x: random(device, "x", &[1, 11, width])?,
        index: indices(device, "index", &[1, steps, batch], 11)?,
        w_ih: (1..layers).map(w_ih).collect::<Result<_>>()?,
        biases: Some(random(device, "b", &[separate + layers - 1, width])?),
        ..sequence(device, cell, size)?
    })
}

/// A wavefront of layers is what they are one after the other, each on a table of what the one below made.
#[test]
fn stacked_layers() {
    for &cell in Cell::ALL {
        for size @ (_, (steps, batch, hidden)) in
            [(2, (1, 1, 1)), (3, (2, 5, 7)), (4, (4, 35, 50)), (2, (2, 2, 66)), (2, (2, 33, 140))]
        {
            let wavefront = |device: &Device, g: &mut Graph| {
                let s = stack(device, cell, size)?;
                let dy = Some(random(device, "dy", &[1, steps, batch, hidden])?);
                let d = SequenceGradients { dy, ..gradients(device, cell, size, (false, true))? };
                kernels::sequence::forward(g, cell.kind(), &s)?;
                kernels::sequence::backward(g, cell.kind(), &s, &d)?;
                Ok((s, d))
            };
            check(&format!("{cell:?} {size:?}"), TOLERANCE, |device, g| {
                let (s, d) = wavefront(device, g)?;
                Ok([std::slice::from_ref(&s.states), &d.parts(&s)[..]].concat())
            });

            let device = Device::reference();
            let mut g = Graph::without_parameters(&device);
            let (s, d) = wavefront(&device, &mut g).unwrap();
            g.finish().unwrap().run().unwrap();
            one_after_the_other(cell, size, &s, &d);
        }
    }
}

/// Checks the results of stacked layers against each layer alone, whose products with the one below are plain loops.
fn one_after_the_other(cell: Cell, (layers, (steps, batch, hidden)): Recurrence, s: &Sequence, d: &SequenceGradients) {
    let (device, width, states) = (s.x.device(), cell.gates() * hidden, cell.states());
    let (w_ih, biases) = (&s.w_ih, s.biases.as_ref().unwrap());
    let of_inputs = biases.len() / width - (layers - 1);
    let part = |tensor: &Tensor, parts: usize, i: usize| {
        let each = tensor.len() / parts;
        tensor.to_vec_f64().unwrap()[i * each..][..each].to_vec()
    };
    let upload = |name: &str, shape: &[usize], values: &[f64]| {
        let tensor = device.zeros(name, shape, DType::F32).unwrap();
        tensor.write(&values.iter().map(|&x| x as f32).collect::<Vec<_>>()).unwrap();
        tensor
    };
    let every_row = device.tokens("every row", &[1, steps, batch], steps * batch).unwrap();
    every_row.write_u32(&(0..(steps * batch) as u32).collect::<Vec<_>>()).unwrap();
    // dy of a layer, from the one above.
    let mut dy = d.dy.clone();
    for layer in (0..layers).rev() {
        let (x, index) = if layer == 0 {
            (s.x.clone(), s.index.clone())
        } else {
            let (h, w, b) = (
                part(&s.states, layers * states, (layer - 1) * states),
                w_ih[layer - 1].to_vec_f64().unwrap(),
                part(biases, biases.len() / width, of_inputs + layer - 1),
            );
            let mut x = Vec::new();
            for row in h[batch * hidden..].chunks(hidden) {
                x.extend(w.chunks(hidden).zip(&b).map(|(w, b)| b + w.iter().zip(row).map(|(w, h)| w * h).sum::<f64>()));
            }
            (upload("x", &[1, steps * batch, width], &x), every_row.clone())
        };
        let mut start = part(&s.states, layers, layer);
        start.chunks_mut((steps + 1) * batch * hidden).for_each(|chain| chain[batch * hidden..].fill(f64::NAN));
        let alone = Sequence {
            x,
            index,
            lengths: s.lengths.clone(),
            resets: None,
            w: vec![s.w[layer].clone()],
            w_ih: Vec::new(),
            biases: (of_inputs > 0).then(|| upload("bias", &[1, width], &part(biases, biases.len() / width, layer))),
            states: upload("states", &[1, states, steps + 1, batch, hidden], &start),
            saved: s.saved.as_ref().map(|_| zeros(device, "saved", &[1, steps, batch, cell.saved() * hidden]).unwrap()),
            form: None,
            peepholes: None,
            has_h_0: true,
            precision: Precision::F32,
        };
        let of_alone = SequenceGradients {
            dy,
            dend: d.dend.as_ref().map(|dend| upload("dend", &[1, states, batch, hidden], &part(dend, layers, layer))),
            dx: gradients(device, cell, (1, (steps, batch, hidden)), (false, false)).unwrap().dx,
            wants_dstart: true,
        };
        let mut g = Graph::without_parameters(device);
        kernels::sequence::forward(&mut g, cell.kind(), &alone).unwrap();
        kernels::sequence::backward(&mut g, cell.kind(), &alone, &of_alone).unwrap();
        g.finish().unwrap().run().unwrap();
        let (of_stacked, [dx, dstart]) = (d.parts(s), of_alone.parts(&alone));
        let results = [(&s.states, &alone.states), (&of_stacked[0], &dx), (&of_stacked[1], &dstart)];
        for (stacked, alone) in results {
            let what = format!("{cell:?}, layer {layer} of {layers}: {alone:?}");
            // What goes through `upload` is rounded to f32.
            assert_close(&what, &part(stacked, layers, layer), &alone.to_vec_f64().unwrap(), alone.len(), 1e-5);
        }
        dy = layer.checked_sub(1).map(|below| {
            let (dx, w) = (dx.to_vec_f64().unwrap(), w_ih[below].to_vec_f64().unwrap());
            let row = |dx: &[f64]| {
                (0..hidden)
                    .map(|j| dx.iter().enumerate().map(|(i, dx)| dx * w[i * hidden + j]).sum())
                    .collect::<Vec<f64>>()
            };
            upload("dy", &[1, steps, batch, hidden], &dx.chunks(width).flat_map(row).collect::<Vec<_>>())
        });
    }
}

/// The twins themselves, in f64, against plain loops over the same values: on a machine without an adapter, what the other tests
/// compare is one code in two precisions.
#[test]
fn twins_are_what_plain_loops_give() {
    let device = Device::reference();
    let of = |tensor: &Tensor| tensor.to_vec_f64().unwrap();
    let run = |record: &dyn Fn(&mut Recorder) -> Result<()>| {
        let mut r = Recorder::new(&device);
        record(&mut r).unwrap();
        r.finish().unwrap().run().unwrap();
    };
    let (m, k, n) = (5, 7, 3);
    let [a, b, bias, c] = [("a", &[m, k][..]), ("b", &[k, n]), ("bias", &[n]), ("c", &[m, n])]
        .map(|(name, shape)| random(&device, name, shape).unwrap());
    let [av, bv, biasv, before] = [&a, &b, &bias, &c].map(of);
    run(&|r| kernels::matmul::matmul(r, &a, &b, Some(&bias), &c, true));
    let product = |i: usize| (0..k).map(|l| av[i / n * k + l] * bv[l * n + i % n]).sum::<f64>();
    let want: Vec<_> = (0..m * n).map(|i| before[i] + product(i) + biasv[i % n]).collect();
    assert_close("matmul", &of(&c), &want, n, 1e-12);

    let sum = random(&device, "sum", &[n]).unwrap();
    run(&|r| kernels::column_sum::column_sum(r, &c, &sum, false));
    let want: Vec<f64> = (0..n).map(|j| (0..m).map(|i| want[i * n + j]).sum()).collect();
    assert_close("column_sum", &of(&sum), &want, n, 1e-12);

    let (index, table) = (indices(&device, "index", &[m], 4).unwrap(), random(&device, "table", &[4, n]).unwrap());
    let (rows, dtable) = (zeros(&device, "rows", &[m, n]).unwrap(), zeros(&device, "dtable", &[4, n]).unwrap());
    run(&|r| {
        kernels::gather::gather(r, &table, &index, &rows)?;
        kernels::segment_sum::segment_sum(r, &rows, &index, &dtable, false)
    });
    let (at, tablev) = (index.to_vec_u32().unwrap(), of(&table));
    let want: Vec<_> = (0..m * n).map(|i| tablev[at[i / n] as usize * n + i % n]).collect();
    assert_eq!(of(&rows), want);
    let mut sums = vec![0.0; 4 * n];
    want.iter().enumerate().for_each(|(i, x)| sums[at[i / n] as usize * n + i % n] += x);
    assert_close("segment_sum", &of(&dtable), &sums, n, 1e-12);

    let (norm, y) = (zeros(&device, "norm", &[1]).unwrap(), random(&device, "y", &[m, k]).unwrap());
    let (swapped, clipped) = (zeros(&device, "swapped", &[k, m]).unwrap(), random(&device, "a", &[m, k]).unwrap());
    let summed = random(&device, "y", &[m, k]).unwrap();
    run(&|r| {
        kernels::squared_norm::squared_norm(r, &a, &norm)?;
        let turned = Operand::strided(&a, Layout { offset: 0, strides: vec![1, k] });
        kernels::map::copy(r, &[k, m], turned, (&swapped).into(), false)?;
        kernels::accumulate::accumulate(r, &a, &summed)?;
        clip_norm(r, &clipped, &norm, 0.5)
    });
    let squares: f64 = av.iter().map(|x| x * x).sum();
    assert_close("squared_norm", &of(&norm), &[squares], 1, 1e-12);
    assert_eq!(of(&swapped), (0..k * m).map(|i| av[i % m * k + i / m]).collect::<Vec<_>>());
    assert_eq!(of(&summed), av.iter().zip(of(&y)).map(|(x, y)| x + y).collect::<Vec<_>>());
    let want: Vec<_> = av.iter().map(|x| x * 0.5 / (squares.sqrt() + 1e-6)).collect();
    assert_close("clip", &of(&clipped), &want, want.len(), 1e-7);

    let (steps, batch) = (4, 3);
    let lengths = device.lengths("lengths", batch, steps).unwrap();
    lengths.write_u32(&[4, 1, 3]).unwrap();
    let [x, back] = ["x", "back"].map(|name| random(&device, name, &[steps, batch, n]).unwrap());
    let chain = random(&device, "chain", &[1, steps + 1, batch, n]).unwrap();
    let last = zeros(&device, "last", &[1, batch, n]).unwrap();
    run(&|r| {
        kernels::reverse::reverse(r, &x, &lengths, &back)?;
        kernels::last_step::last_step(r, &chain, &lengths, &last)
    });
    let (xv, chainv, long) = (of(&x), of(&chain), [4, 1, 3]);
    let place = |t: usize, b: usize, j: usize| (t * batch + b) * n + j;
    for (t, b, j) in (0..steps).flat_map(|t| (0..batch).flat_map(move |b| (0..n).map(move |j| (t, b, j)))) {
        let want = if t < long[b] { xv[place(long[b] - 1 - t, b, j)] } else { 0.0 };
        assert_eq!(of(&back)[place(t, b, j)], want, "reverse {t} {b} {j}");
        assert_eq!(of(&last)[b * n + j], chainv[place(long[b], b, j)], "last_step {b} {j}");
    }

    // A recurrence, step by step from its equation.
    let (cell, size) = (Cell::Gru, (1, (3, 2, 4)));
    let s = sequence(&device, cell, size).unwrap();
    let start = of(&s.states)[..8].to_vec();
    run(&|r| kernels::sequence::forward(r, cell.kind(), &s));
    let (xv, w, bias) = (of(&s.x), of(&s.w[0]), of(s.biases.as_ref().unwrap()));
    let (rows, long) = (s.index.to_vec_u32().unwrap(), s.lengths.to_vec_u32().unwrap());
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut h = start;
    for t in 0..3 {
        let before = h.clone();
        for (i, h) in h.iter_mut().enumerate() {
            let (entry, unit) = (i / 4, i % 4);
            let x = |gate: usize| xv[(rows[t * 2 + entry] as usize * 3 + gate) * 4 + unit];
            let hw = |gate: usize| {
                let row = gate * 4 + unit;
                bias[row] + (0..4).map(|l| w[row * 4 + l] * before[entry * 4 + l]).sum::<f64>()
            };
            let (r, z) = (sigmoid(x(0) + hw(0)), sigmoid(x(1) + hw(1)));
            let candidate = (x(2) + r * hw(2)).tanh();
            let next = (1.0 - z) * candidate + z * before[i];
            *h = if t < long[entry] as usize { next } else { 0.0 };
        }
        assert_close(&format!("gru step {t}"), &of(&s.states)[(t + 1) * 8..][..8], &h, 8, 1e-12);
    }
}

/// Work cut into dispatches of a few turns of their loops, or of few products, gives what it gives in one.
#[test]
fn work_is_cut() {
    for (&cell, (directions, size)) in
        Cell::ALL.iter().flat_map(|cell| [(1, (7, 5, 33)), (2, (5, 3, 70)), (1, (6, 2, 4))].map(|size| (cell, size)))
    {
        for (turns, flops, wants_dstart) in [(1, u64::MAX, true), (90, u64::MAX, false), (usize::MAX, 40_000, true)] {
            let what = format!("{cell:?} {directions} {size:?} in dispatches of {turns} turns, {flops} products");
            check(&what, TOLERANCE, |device, g| {
                let s = sequence(device, cell, (directions, size))?;
                let d =
                    SequenceGradients { wants_dstart, ..gradients(device, cell, (directions, size), (true, true))? };
                if !is_reference(device) {
                    g.set_most_work(turns, flops);
                    g.set_stepwise(false);
                }
                kernels::sequence::forward(g, cell.kind(), &s)?;
                kernels::sequence::backward(g, cell.kind(), &s, &d)?;
                let [dx, dstart] = d.parts(&s);
                Ok([Some(s.states), Some(dx), wants_dstart.then_some(dstart)].into_iter().flatten().collect())
            });
        }
    }
    for (turns, flops) in [(1, u64::MAX), (60, u64::MAX), (usize::MAX, 1), (30, 500_000)] {
        check(&format!("sums in dispatches of {turns} turns, {flops} products"), TOLERANCE, |device, g| {
            if !is_reference(device) {
                g.set_most_work(turns, flops);
            }
            let mut results = Vec::new();
            // Of the last, a GPU gets slices.
            for (m, k, n) in [(3, 5, 2), (130, 70, 33), (65, 100, 64), (2050, 2060, 3)] {
                let [a, b] = [("a", [m, k]), ("b", [k, n])].map(|(name, shape)| random(device, name, &shape).unwrap());
                let [at, bt] =
                    [("a", [k, m]), ("b", [n, k])].map(|(name, shape)| random(device, name, &shape).unwrap());
                let [one, two] = ["one", "two"].map(|name| random(device, name, &[n]).unwrap());
                let (c, wide) = (|| random(device, "c", &[m, n]), random(device, "wide", &[k, m + 10])?);
                results.extend([c()?, c()?, c()?]);
                let [.., x, y, z] = results.as_slice() else { unreachable!() };
                kernels::matmul::matmul_with_biases(g, &a, &b, &[&one, &two], x, false)?;
                kernels::matmul::matmul(g, t(&at), t(&bt), None, y, true)?;
                // A block of the left factor, transposed.
                kernels::matmul::matmul(g, Factor::block(&wide, 7, k, m, m + 10).t(), &b, None, z, false)?;
                let table = random(device, "table", &[7, n])?;
                let index = indices(device, "index", &[m], 7)?;
                kernels::segment_sum::segment_sum(g, x, &index, &table, true)?;
                let (sum, twice) = (random(device, "sum", &[n])?, zeros(device, "twice", &[2, n])?);
                kernels::column_sum::column_sum(g, x, &sum, true)?;
                kernels::column_sum::into_each_row(g, y, &twice)?;
                results.extend([table, sum, twice]);
            }
            Ok(results)
        });
    }
}

/// What a software driver, which ends a shader's loops after 65,535 turns and says nothing, made wrong.
#[test]
fn long_loops_are_right() {
    check("steps", 1e-4, |device, g| {
        let (cell, size) = (Cell::Gru, (1, (400, 2, 256)));
        let s = sequence(device, cell, size)?;
        let d = gradients(device, cell, size, (true, true))?;
        kernels::sequence::forward(g, cell.kind(), &s)?;
        kernels::sequence::backward(g, cell.kind(), &s, &d)?;
        let [dx, dstart] = d.parts(&s);
        Ok(vec![s.states.reshape(&[401 * 2, 256])?, dx.reshape(&[400 * 2, 3 * 256])?, dstart])
    });
    // What a thread owns counts too, most where a software driver gets large tiles: tanh, GRU and LSTM from 100 MFLOP on.
    for (cell, size) in [(Cell::Tanh, (1_000, 64, 32)), (Cell::Gru, (300, 16, 64)), (Cell::Lstm, (300, 16, 64))] {
        check(&format!("steps of large tiles, {cell:?}"), 1e-4, |device, g| {
            let (steps, batch, hidden) = size;
            let s = sequence(device, cell, (1, size))?;
            let d = gradients(device, cell, (1, size), (true, true))?;
            kernels::sequence::forward(g, cell.kind(), &s)?;
            kernels::sequence::backward(g, cell.kind(), &s, &d)?;
            let [dx, dstart] = d.parts(&s);
            let rows = steps * batch;
            let states = s.states.reshape(&[cell.states() * (steps + 1), batch * hidden])?;
            Ok(vec![states, dx.reshape(&[rows, cell.gates() * hidden])?, dstart])
        });
    }
    check("many steps", 1e-4, |device, g| {
        let s = sequence(device, Cell::Tanh, (1, (66_000, 1, 2)))?;
        s.lengths.write_u32(&[66_000])?;
        kernels::sequence::forward(g, Cell::Tanh.kind(), &s)?;
        Ok(vec![s.states.reshape(&[66_001, 2])?])
    });
    check("rows", 1e-4, |device, g| {
        let (dy, x) = (random(device, "dy", &[53_000, 3])?, random(device, "x", &[53_000, 5])?);
        let dw = zeros(device, "dw", &[3, 5])?;
        kernels::matmul::matmul(g, t(&dy), &x, None, &dw, false)?;
        let (index, dtable) = (device.tokens("index", &[70_000], 3)?, zeros(device, "dtable", &[3, 2])?);
        index.write_u32(&vec![1; 70_000])?;
        kernels::segment_sum::segment_sum(g, &random(device, "rows", &[70_000, 2])?, &index, &dtable, false)?;
        let db = zeros(device, "db", &[2])?;
        kernels::column_sum::column_sum(g, &random(device, "d", &[420_000, 2])?, &db, false)?;
        Ok(vec![dw, dtable, db])
    });
    // Bounds of a draw among many tokens, of which few are likely.
    for (v, top_k, top_p) in [(180_000, 3, 0.9), (290_000, 0, 0.9), (310_000, 2, 1.0)] {
        check(&format!("a draw among {v}"), 0.0, |device, g| {
            let mut logits = values(1, v);
            [logits[5], logits[70_000], logits[v - 1], logits[v - 2]] = [21.0, 20.5, 20.0, 12.0];
            let ring = device.zeros("ring", &[40, 1], DType::U32)?;
            let draw = Draw {
                shape: &device.upload("shape", &[1, 4], &[1.0, top_p, 0.01, 1.1])?,
                control: &device.upload_u32("control", &[1, 6], &[42, 0, top_k, NO_TARGET, NO_TARGET, 3])?,
                history: &device.zeros("history", &[1 + v, 1], DType::U32)?,
                tokens: &device.zeros("tokens", &[1], DType::U32)?,
                ring: &ring,
            };
            let logits = device.upload("logits", &[1, v], &logits)?;
            (0..40).try_for_each(|_| kernels::sample::sample(g, &logits, draw))?;
            Ok(vec![ring])
        });
    }
    // What cannot be cut is refused before anything runs; the CPU has no such limit.
    for device in f32_devices() {
        let mut g = Recorder::new(&device);
        let huge = zeros(&device, "huge", &[1, 800_000]).unwrap();
        let refused = kernels::log_softmax::log_softmax(&mut g, &huge, &zeros(&device, "y", &[800_000]).unwrap());
        match refused {
            Err(Error::Limit { unit: "turns of a loop", .. }) => assert!(device.is_gpu()),
            refused => assert!(refused.is_ok() && !device.is_gpu()),
        }
    }
}

fn is_reference(device: &Device) -> bool {
    device.describe().contains("f64")
}

#[test]
fn recurrences_take_the_path_that_fits() {
    let plan = |directions: usize, hidden: usize| {
        let device = Device::cpu();
        let mut g = Graph::without_parameters(&device);
        let s = sequence(&device, Cell::Lstm, (directions, (3, 2, hidden))).unwrap();
        kernels::sequence::forward(&mut g, Cell::Lstm.kind(), &s).unwrap();
        g.finish().unwrap()
    };
    assert_eq!(plan(1, 1024).kernels(), ["pack", "lstm_forward"]);
    assert_eq!(plan(1, 1025).kernels(), ["pack", "lstm_forward", "lstm_forward", "lstm_forward"]);
    assert_eq!(plan(2, 1024).kernels(), ["pack", "pack", "lstm_forward"]);
    assert_eq!(plan(2, 1025).kernels(), ["pack", "pack", "lstm_forward", "lstm_forward", "lstm_forward"]);
    for hidden in [1024, 1025] {
        assert_eq!(plan(2, hidden).count().flops, 2 * plan(1, hidden).count().flops);
    }
    // On a GPU, weights that are too many for a workgroup, and a single step, are spread over more of them.
    for (size, precision, dispatches, why) in [
        ((3, 2, 256), Precision::F32, 1, "all 3 steps in one dispatch"),
        ((3, 2, 257), Precision::F32, 3, "would read 264196 weights a step, more than 262144"),
        ((3, 2, 257), Precision::F16, 1, "weights in f16"),
        ((3, 2, 362), Precision::F16, 1, "all 3 steps in one dispatch"),
        ((3, 2, 363), Precision::F16, 3, "more than 524288"),
        ((1, 2, 512), Precision::F32, 1, "more workgroups share its one step"),
        ((1, 2, 8), Precision::F32, 1, "all 1 steps in one dispatch"),
    ] {
        let device = Device::cpu();
        let mut g = Graph::without_parameters(&device);
        g.set_wide(true);
        let s = Sequence { precision, ..sequence(&device, Cell::Lstm, (1, size)).unwrap() };
        kernels::sequence::forward(&mut g, Cell::Lstm.kind(), &s).unwrap();
        let plan = g.finish().unwrap();
        assert_eq!(plan.kernels().iter().filter(|&&kernel| kernel == "lstm_forward").count(), dispatches, "{plan}");
        assert!(plan.notes()[0].contains(why), "{plan}");
    }
}

/// Where a recurrence of few weights reads them in every step, a workgroup keeps them, if its memory has room.
#[test]
fn few_weights_are_kept() {
    let keeps = |device: &Device, cell: Cell, steps: usize, hidden: usize, wide: bool, precision: Precision| {
        let mut g = Graph::without_parameters(device);
        g.set_wide(wide);
        let s = Sequence { precision, ..sequence(device, cell, (2, (steps, 2, hidden))).unwrap() };
        kernels::sequence::forward(&mut g, cell.kind(), &s).unwrap();
        let plan = g.finish().unwrap();
        let kept = plan.notes()[0].contains("weights kept in workgroup memory");
        assert_eq!(plan.count().rereads == 0, kept, "{plan}");
        kept
    };
    let (cpu, in_f32, in_f16) = (Device::cpu(), Precision::F32, Precision::F16);
    for (cell, steps, hidden, wide, precision, kept) in [
        (Cell::Tanh, 4, 32, true, in_f32, true),
        (Cell::Tanh, 3, 32, true, in_f32, false),
        (Cell::Tanh, 4, 32, false, in_f32, false),
        (Cell::Tanh, 4, 64, true, in_f32, false),
        (Cell::Tanh, 4, 64, true, in_f16, true),
        (Cell::Lstm, 4, 28, true, in_f32, true),
        (Cell::Lstm, 4, 32, true, in_f32, false),
    ] {
        assert_eq!(keeps(&cpu, cell, steps, hidden, wide, precision), kept, "{cell:?} {steps} {hidden} {precision:?}");
    }
    // An adapter with more room than WebGPU promises keeps more.
    if let Some(gpu) = gpu() {
        assert!(keeps(&gpu, Cell::Tanh, 4, 32, true, in_f32));
        if !keeps(&gpu, Cell::Tanh, 4, 64, true, in_f32) {
            common::not_tested(&format!("more than 16 KiB of workgroup memory: {}", gpu.describe()));
        }
    }
}

/// Slices are added up in subgroups where there are any; through workgroup memory the results are the same.
#[test]
fn slices_are_added_up_with_and_without_subgroups() {
    for &cell in Cell::ALL {
        // Rows of a thread, and slices: 4, 2; 4, 4; 4, 8; 2, 8; 1, 4; 8, 4; and some that no subgroup adds up.
        for (size, stepwise) in [
            ((1, (5, 16, 32)), false),
            ((1, (2, 4, 256)), false),
            ((1, (2, 8, 128)), false),
            ((2, (2, 2, 140)), true),
            ((1, (3, 1, 70)), true),
            ((1, (2, 512, 256)), false),
            ((1, (2, 3, 140)), false),
            ((2, (2, 4, 33)), true),
            ((1, (2, 67, 258)), true),
        ] {
            for baseline in [false, true] {
                check(&format!("{cell:?} {size:?} {stepwise} {baseline}"), TOLERANCE, |device, g| {
                    g.set_stepwise(stepwise);
                    g.set_baseline(baseline);
                    let (s, d) = (sequence(device, cell, size)?, gradients(device, cell, size, (true, true))?);
                    kernels::sequence::forward(g, cell.kind(), &s)?;
                    kernels::sequence::backward(g, cell.kind(), &s, &d)?;
                    Ok(vec![s.states.clone(), d.parts(&s)[0].clone()])
                });
            }
        }
    }
    check("Lstm, 8 slices", TOLERANCE, |device, g| {
        let size = (1, (2, 512, 128));
        let s = sequence(device, Cell::Lstm, size)?;
        let d = gradients(device, Cell::Lstm, size, (true, true))?;
        kernels::sequence::forward(g, Cell::Lstm.kind(), &s)?;
        kernels::sequence::backward(g, Cell::Lstm.kind(), &s, &d)?;
        Ok(vec![s.states.clone(), d.parts(&s)[0].clone()])
    });
    let Some(gpu) = gpu() else { return };
    // Many batch entries share the reading of many weights.
    let tile = |cell: Cell, size: Recurrence, baseline: bool| {
        let mut g = Graph::without_parameters(&gpu);
        g.set_wide(true);
        g.set_baseline(baseline);
        let s = sequence(&gpu, cell, size).unwrap();
        kernels::sequence::forward(&mut g, cell.kind(), &s).unwrap();
        let plan = g.finish().unwrap();
        let last = plan.dispatches().last().unwrap();
        let of = |name| last.constants().iter().find(|(constant, _)| *constant == name).unwrap().1;
        (of("ROWS"), of("SLICES"), of("SUBGROUPS"))
    };
    for (cell, size, rows, slices) in [
        (Cell::Tanh, (1, (5, 16, 32)), 4, 2),
        (Cell::Tanh, (1, (2, 4, 256)), 4, 4),
        (Cell::Tanh, (1, (2, 8, 128)), 4, 8),
        (Cell::Tanh, (1, (2, 512, 256)), 8, 4),
        // Of four gates, sums of eight rows are more than there are registers.
        (Cell::Lstm, (1, (2, 512, 128)), 4, 8),
    ] {
        if tile(cell, size, false) != (rows, slices, 1) {
            let found = tile(cell, size, false);
            let wanted = format!("{cell:?} in subgroups with {rows} rows and {slices} slices, not {found:?}");
            common::not_tested(&format!("{wanted}: {}", gpu.describe()));
        }
        assert_eq!(tile(cell, size, true).2, 0);
    }
}

/// Few batch entries still make many threads of a GPU's workgroups: columns a few at a time, and slices of the sums.
#[test]
fn one_step_is_spread_over_a_gpu() {
    // Layers, batch, hidden size; workgroups, threads in one.
    for (layers, batch, hidden, workgroups, threads) in
        [(1, 16, 768, 96, 256), (2, 64, 512, 128, 256), (1, 1, 1024, 128, 64), (1, 512, 768, 192, 256)]
    {
        let device = Device::cpu();
        let mut g = Graph::without_parameters(&device);
        g.set_wide(true);
        g.set_stepwise(true);
        let size = (layers, (2, batch, hidden));
        let s =
            if layers > 1 { stack(&device, Cell::Lstm, size) } else { sequence(&device, Cell::Lstm, size) }.unwrap();
        kernels::sequence::forward(&mut g, Cell::Lstm.kind(), &s).unwrap();
        let plan = g.finish().unwrap();
        let last = plan.dispatches().last().unwrap();
        let of = |name| last.constants().iter().find(|(constant, _)| *constant == name).unwrap().1;
        assert!(plan.notes()[0].ends_with(&format!(" {workgroups} workgroups")), "{plan}");
        assert_eq!(of("GROUPS") * of("WIDTH") * of("SLICES"), threads, "{:?}", last.constants());
    }
}

/// Bytes of a step's dispatch: the weights, what belongs to the step, and what it takes of its neighbour.
#[test]
fn a_step_moves_its_own_bytes() {
    // The rows of x are as many as a packed matrix has.
    let (steps, batch, hidden) = (8, 4, 32);
    for &cell in Cell::ALL {
        let device = Device::cpu();
        let mut g = Graph::without_parameters(&device);
        g.set_stepwise(true);
        let size = (1, (steps, batch, hidden));
        let (gates, saved, states) = (cell.gates(), cell.saved(), cell.states());
        let s = Sequence {
            x: random(&device, "x", &[1, steps * batch, gates * hidden]).unwrap(),
            index: indices(&device, "index", &[1, steps, batch], steps * batch).unwrap(),
            ..sequence(&device, cell, size).unwrap()
        };
        kernels::sequence::forward(&mut g, cell.kind(), &s).unwrap();
        kernels::sequence::backward(&mut g, cell.kind(), &s, &gradients(&device, cell, size, (true, true)).unwrap())
            .unwrap();
        let plan = g.finish().unwrap();
        let recurrence = |name: &str| !name.starts_with("pack");
        let steps_of: Vec<_> = plan.dispatches().filter(|d| recurrence(d.kernel().name)).map(|d| d.bytes()).collect();
        let (state, w, bias) =
            (batch * hidden, gates * hidden * hidden, if cell == Cell::Gru { gates * hidden } else { 0 });
        // A dummy has 4 elements: where there are no biases, or, backward, no peepholes, and where nothing is saved.
        let chains = if states == 2 { 4 * state } else { 2 * state };
        let dummy = if bias == 0 { 4 } else { 0 };
        let no_peepholes = if cell == Cell::Lstm { 4 } else { 0 };
        let nothing_saved = if saved == 0 { 4 } else { 0 };
        let forward = w + bias + gates * state + 2 * batch + chains + saved * state + dummy + nothing_saved;
        // Of the chains, tanh reads h[t + 1], the GRU h[t], the LSTM both c.
        let chain = if states == 2 { 2 * state } else { state };
        let of_saved = if cell == Cell::Gru { 2 * saved * state } else { saved * state };
        let backward = w
            + batch
            + chain
            + of_saved
            + state
            + 2 * states * state
            + 2 * gates * state
            + nothing_saved
            + no_peepholes;
        assert_eq!(steps_of.len(), 2 * steps + 1);
        assert_eq!(steps_of[3], 4 * forward as u64, "{cell:?}, forward");
        assert_eq!(steps_of[steps + 3], 4 * backward as u64, "{cell:?}, backward");

        let mut g = Graph::without_parameters(&device);
        g.set_stepwise(true);
        let s = Sequence { precision: Precision::F16, ..s };
        kernels::sequence::forward(&mut g, cell.kind(), &s).unwrap();
        let in_f16: Vec<_> = g.finish().unwrap().dispatches().map(|d| d.bytes()).collect();
        assert_eq!(in_f16[0], 4 * w as u64 + 2 * w as u64, "{cell:?}, pack");
        assert_eq!(in_f16[1 + 3], 4 * forward as u64 - 2 * w as u64, "{cell:?}, forward in f16");
    }
}

#[test]
fn stacks_that_do_not_fit_are_refused() {
    let device = Device::cpu();
    let size = (2, (3, 2, 5));
    let of = |change: &dyn Fn(&mut Sequence)| {
        let mut s = stack(&device, Cell::Gru, size).unwrap();
        change(&mut s);
        kernels::sequence::forward(&mut Graph::without_parameters(&device), Cell::Gru.kind(), &s)
    };
    let w = zeros(&device, "w", &[15, 5]).unwrap();
    of(&|_| ()).unwrap();
    let changes: [&dyn Fn(&mut Sequence); 6] = [
        &|s| s.w_ih.clear(),
        &|s| s.w_ih.push(w.clone()),
        &|s| s.w_ih[0] = zeros(&device, "w", &[15, 6]).unwrap(),
        &|s| s.biases = Some(zeros(&device, "b", &[2, 15]).unwrap()),
        &|s| s.x = random(&device, "x", &[2, 11, 15]).unwrap(),
        &|s| s.index = indices(&device, "index", &[2, 3, 2], 11).unwrap(),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        assert!(of(change).is_err(), "{i}");
    }
}

/// From zero states, and with no gradient for them: the products left out change nothing.
#[test]
fn recurrences_from_zero_states() {
    let run = |g: &mut Graph, device: &Device, cell, size, leave_out: bool| -> Result<_> {
        let s = Sequence { has_h_0: !leave_out, ..sequence(device, cell, size)? };
        s.states.write(&vec![0.0; s.states.len()])?;
        let d = SequenceGradients { wants_dstart: !leave_out, ..gradients(device, cell, size, (true, false))? };
        kernels::sequence::forward(g, cell.kind(), &s)?;
        kernels::sequence::backward(g, cell.kind(), &s, &d)?;
        Ok(vec![s.states.clone(), d.parts(&s)[0].clone()])
    };
    for &cell in Cell::ALL {
        for stepwise in [false, true] {
            let size = (2, (4, 5, 70));
            let whole = {
                let device = Device::reference();
                let mut g = Graph::without_parameters(&device);
                let results = run(&mut g, &device, cell, size, false).unwrap();
                g.finish().unwrap().run().unwrap();
                results.iter().map(|tensor| tensor.to_vec_f64().unwrap()).collect::<Vec<_>>()
            };
            check(&format!("{cell:?}, stepwise: {stepwise}"), TOLERANCE, |device, g| {
                g.set_stepwise(stepwise);
                run(g, device, cell, size, true)
            });
            let device = Device::reference();
            let mut g = Graph::without_parameters(&device);
            g.set_stepwise(stepwise);
            let results = run(&mut g, &device, cell, size, true).unwrap();
            g.finish().unwrap().run().unwrap();
            for (tensor, whole) in results.iter().zip(&whole) {
                assert_eq!(&tensor.to_vec_f64().unwrap(), whole, "{cell:?}, stepwise: {stepwise}");
            }
        }
    }
}

/// Weights that f16 holds exactly give the same in f16, on the paths of all sizes; of others, what those rounded to 11 bits give
/// in f64.
#[test]
fn recurrences_with_weights_in_f16() {
    let record = |g: &mut Graph, device: &Device, s: Sequence, cell: Cell, size: Recurrence| {
        let mut d = gradients(device, cell, size, (true, true))?;
        if !s.w_ih.is_empty() {
            let (_, (steps, batch, hidden)) = size;
            d.dy = Some(random(device, "dy", &[1, steps, batch, hidden])?);
        }
        kernels::sequence::forward(g, cell.kind(), &s)?;
        kernels::sequence::backward(g, cell.kind(), &s, &d)?;
        let [dx, dstart] = d.parts(&s);
        let states = s.states.shape()[..2].iter().product();
        Ok(vec![s.states.reshape(&[states, s.states.len() / states])?, dx, dstart])
    };
    let has_f16 = |device: &Device| match Graph::without_parameters(device).set_precision(Precision::F16) {
        Ok(()) => true,
        Err(error) => {
            assert!(device.is_gpu() && error.to_string().contains("no f16"), "{error}");
            common::not_tested(&format!("f16: {error}"));
            false
        }
    };
    for &cell in Cell::ALL {
        for (size, stepwise, stacked) in [
            ((1, (1, 1, 1)), None, false),
            ((1, (4, 5, 7)), None, false),
            ((2, (3, 67, 36)), None, false),
            ((2, (3, 5, 33)), Some(true), false),
            ((1, (2, 5, 256)), None, false),
            ((3, (4, 5, 33)), Some(true), true),
        ] {
            check(&format!("f16 {cell:?} {size:?} {stacked}"), TOLERANCE, |device, g| {
                g.set_stepwise(stepwise);
                let mut s = if stacked { stack(device, cell, size)? } else { sequence(device, cell, size)? };
                // 1.7 / sqrt(H) is below 2: multiples of 2^-10 have at most 11 bits.
                for w in s.w.iter().chain(&s.w_ih) {
                    w.write(&w.to_vec()?.iter().map(|w| (1024.0 * w).round() / 1024.0).collect::<Vec<_>>())?;
                }
                // The reference, which is not planned for a GPU, keeps them as they are.
                if (device.is_gpu() || g.is_wide()) && has_f16(device) {
                    s.precision = Precision::F16;
                }
                record(g, device, s, cell, size)
            });
        }
    }
    // A conversion may round either way.
    let (cell, size) = (Cell::Tanh, (1, (3, 5, 70)));
    let run = |device: &Device, precision: Precision| {
        let mut g = Graph::without_parameters(device);
        let s = Sequence { precision, ..sequence(device, cell, size).unwrap() };
        let results = record(&mut g, device, s, cell, size).unwrap();
        g.finish().unwrap().run().unwrap();
        results.iter().flat_map(|tensor| tensor.to_vec_f64().unwrap()).collect::<Vec<_>>()
    };
    let exact = run(&Device::reference(), Precision::F32);
    for device in std::iter::once(Device::reference()).chain(f32_devices()).filter(has_f16) {
        let rounded = run(&device, Precision::F16);
        let error = rounded.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!((1e-5..5e-3).contains(&error), "{}: {error}", device.describe());
    }
}

/// A recurrence keeps the precision that it was recorded with, in both passes.
#[test]
fn precision_is_each_recurrence_s_own() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let w = g.input_with_gradient(&random(&device, "w", &[8, 8]).unwrap()).unwrap();
    let mut x = g.input_with_gradient(&random(&device, "x", &[3, 2, 8]).unwrap()).unwrap();
    for precision in [Precision::F16, Precision::F32, Precision::F16] {
        g.set_precision(precision).unwrap();
        (x, _) = functional::recurrence(&mut g, Cell::Tanh, x, w, None, None, None).unwrap();
    }
    g.set_precision(Precision::F32).unwrap();
    let dy = random(&device, "dy", &[3, 2, 8]).unwrap();
    g.backward(&[], &[(x, &dy)]).unwrap();
    let plan = g.finish().unwrap();
    let precisions = |kernel: &str| -> Vec<bool> {
        let of = plan.dispatches().filter(|dispatch| dispatch.kernel().name == kernel);
        of.map(|dispatch| dispatch.constants().contains(&("F16", 1))).collect()
    };
    assert_eq!(precisions("rnn_forward"), [true, false, true]);
    assert_eq!(precisions("rnn_backward"), [true, false, true]);
}

/// What is left out of a recurrence from zero is not read, nor is a gradient written that is not wanted.
#[test]
fn what_is_left_out_is_not_touched() {
    for device in f32_devices() {
        for (cell, (stepwise, wide)) in [Cell::Tanh, Cell::Lstm]
            .into_iter()
            .flat_map(|cell| [(false, false), (false, true), (true, false), (true, true)].map(|path| (cell, path)))
        {
            let size @ (_, (steps, batch, hidden)) = (1, (4, 5, 30));
            let mut g = Graph::without_parameters(&device);
            g.set_wide(wide);
            g.set_stepwise(stepwise);
            let s = Sequence { has_h_0: false, ..sequence(&device, cell, size).unwrap() };
            let chain = (steps + 1) * batch * hidden;
            let cells = s.states.len() - chain;
            s.states.write(&[vec![f32::NAN; chain], vec![0.0; cells]].concat()).unwrap();
            let d = SequenceGradients { wants_dstart: false, ..gradients(&device, cell, size, (true, false)).unwrap() };
            d.dx.write(&vec![7.0; d.dx.len()]).unwrap();
            kernels::sequence::forward(&mut g, cell.kind(), &s).unwrap();
            kernels::sequence::backward(&mut g, cell.kind(), &s, &d).unwrap();
            g.finish().unwrap().run().unwrap();
            let what = format!("{cell:?}, stepwise {stepwise}, wide {wide}, {}", device.describe());
            let states = s.states.to_vec().unwrap();
            assert_eq!(states.len(), cell.states() * chain);
            assert!(states[batch * hidden..].iter().all(|h| h.is_finite()), "{what}");
            let [dx, dstart] = d.parts(&s);
            assert!(dx.to_vec().unwrap().iter().all(|d| d.is_finite()), "{what}");
            // The twin, and a dispatch for each step, carry the gradient there.
            if device.is_gpu() && !stepwise {
                assert!(dstart.to_vec().unwrap().iter().all(|&d| d == 7.0), "{what}");
            }
        }
    }
}

#[test]
fn last_step_and_reverse() {
    for (steps, batch, columns) in [(1, 1, 1), (5, 3, 2), (7, 33, 9)] {
        check(&format!("reverse {steps} {batch} {columns}"), 0.0, |device, g| {
            let s = sequence(device, Cell::Tanh, (1, (steps, batch, columns)))?;
            let x: Vec<f32> = tokens(3, steps * batch * columns, 100).iter().map(|&x| x as f32).collect();
            let x = device.upload("x", &[steps, batch, columns], &x)?;
            let (y, twice) =
                (zeros(device, "y", &[steps, batch, columns])?, zeros(device, "z", &[steps, batch, columns])?);
            kernels::reverse::reverse(g, &x, &s.lengths, &y)?;
            kernels::reverse::reverse(g, &y, &s.lengths, &twice)?;
            let index = device.tokens("reversed", &[steps, batch], 11)?;
            kernels::reverse_index::reverse_index(g, &s.index.reshape(&[steps, batch])?, &s.lengths, &index)?;
            let last = zeros(device, "last", &[2, batch, columns])?;
            let places: Vec<f32> = (0..2 * (steps + 1) * batch * columns).map(|i| i as f32).collect();
            let chain = device.upload("chain", &[2, steps + 1, batch, columns], &places)?;
            kernels::last_step::last_step(g, &chain, &s.lengths, &last)?;
            Ok(vec![y, twice, index, last])
        });
    }
}

#[test]
fn pack() {
    for (gates, hidden, padded) in [(1, 1, 4), (3, 5, 8), (4, 17, 20)] {
        for transpose in [false, true] {
            check(&format!("pack {gates} {hidden} {transpose}"), 1e-7, |device, g| {
                let x = random(device, "x", &[gates * hidden, hidden])?;
                let y = random(device, "y", &[2 * gates + 1, padded, padded])?;
                let (at, shape) = (gates * padded * padded, [gates, padded, padded]);
                assert_eq!(kernels::pack::pack(g, &x, &y, at, shape, transpose, Precision::F32)?, 2 * at);
                assert!(
                    kernels::pack::pack(g, &x, &y, at + 2 * padded * padded, shape, transpose, Precision::F32).is_err()
                );
                assert!(kernels::pack::pack(g, &x, &y, usize::MAX, shape, transpose, Precision::F32).is_err());
                Ok(vec![y])
            });
        }
    }
}

/// To the nearest of IEEE 754's binary16, ties to even.
#[test]
fn pack_rounds_to_f16() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let x = [1.0 / 3.0, -0.1, 2049.0, 2051.0, 65_504.0, -65_520.0, 6e-8, 1e-8, f32::NAN];
    let want =
        [0.333_251_95, -0.099_975_586, 2048.0, 2052.0, 65_504.0, f32::NEG_INFINITY, 5.960_464_5e-8, 0.0, f32::NAN];
    let (x, y) = (device.upload("x", &[1, 9], &x).unwrap(), zeros(&device, "y", &[1, 12]).unwrap());
    kernels::pack::pack(&mut g, &x, &y, 0, [1, 1, 12], false, Precision::F16).unwrap();
    g.finish().unwrap().run().unwrap();
    let got = y.to_vec().unwrap();
    assert!(got[..8] == want[..8] && got[8].is_nan() && got[9..] == [0.0; 3], "{got:?}");
}

#[test]
fn dropout() {
    for (n, rate) in [(1, 0.0), (255, 0.5), (257, 0.1), (70_000, 0.3)] {
        check(&format!("dropout {n} {rate}"), 1e-6, |device, g| {
            let x = device.upload("x", &[n], &vec![1.5; n])?;
            let clock = device.upload_u32("clock", &[2], &[3, 0])?;
            let y = zeros(device, "y", &[n])?;
            kernels::dropout::dropout(g, &x, &y, rate, 42, &clock)?;
            Ok(vec![y])
        });
    }
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let (x, y) = (device.upload("x", &[100_000], &[1.0; 100_000]).unwrap(), zeros(&device, "y", &[100_000]).unwrap());
    let clock = device.upload_u32("clock", &[2], &[0, 0]).unwrap();
    kernels::dropout::dropout(&mut g, &x, &y, 0.3, 1, &clock).unwrap();
    g.finish().unwrap().run().unwrap();
    let y = y.to_vec().unwrap();
    let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64 / 1e5;
    assert!((dropped - 0.3).abs() <= 0.01, "{dropped}");
    assert!(y.iter().all(|&y| y == 0.0 || (y - 1.0 / 0.7).abs() <= 1e-6));
}

#[test]
fn class_losses() {
    for kernel in [kernels::cross_entropy::cross_entropy, kernels::nll_loss::nll_loss] {
        for (rows, v) in [(1, 1), (2, 3), (5, 63), (7, 64), (3, 65), (4, 131)] {
            for (gradient, ignore_index, options) in [
                (true, None, 0),
                (false, None, 0),
                (true, Some(0), 0),
                (true, None, 1),
                (true, Some(0), 2),
                (true, None, 3),
                (false, None, 3),
            ] {
                check(&format!("class losses {rows} {v} {ignore_index:?} {options}"), TOLERANCE, |device, g| {
                    let x: Vec<f32> = values(1, rows * v).iter().map(|x| 3.0 * x).collect();
                    let mut target = tokens(2, rows, v);
                    if rows > 2 {
                        (target[1], target[2]) = (NO_TARGET, 0);
                    }
                    let losses = zeros(device, "losses", &[rows])?;
                    let dx = random(device, "dx", &[rows, v])?;
                    let class_weights = device.upload("class weights", &[v], &rng::manual_seed(6).rand(v))?;
                    let loss = ClassLoss {
                        x: &device.upload("x", &[rows, v], &x)?,
                        targets: &device.upload_u32("targets", &[rows], &target)?,
                        ignore_index,
                        class_weights: (options & 1 != 0).then_some(&class_weights),
                        // Of one class, the gradient is 0 but for rounding.
                        label_smoothing: if options & 2 != 0 && v > 1 { 0.3 } else { 0.0 },
                        counts: false,
                        scale: &device.upload("scale", &[1], &[0.37])?,
                        losses: &losses,
                        dx: gradient.then_some(&dx),
                    };
                    kernel(g, loss)?;
                    Ok(vec![losses, dx])
                });
            }
        }
    }
}

/// What rows of `[T, B, K]` count: with weights of each, of the first axes, of the batch; with lengths; with targets.
#[test]
fn row_weights() {
    for (steps, batch, inner) in [(1, 1, 1), (5, 3, 1), (4, 2, 7), (17, 15, 1), (16, 16, 1), (103, 5, 1)] {
        let rows = steps * batch * inner;
        let all = (vec![steps, batch, inner], 1);
        let of = [None, Some(all), Some((vec![steps, batch], inner)), Some((vec![batch], inner))];
        for (of_weights, flags) in of.iter().flat_map(|of| (0..16).map(move |flags| (of, flags))) {
            let [has_lengths, has_targets, mean, has_classes] = [0, 1, 2, 3].map(|bit| flags >> bit & 1 == 1);
            let in_scale_alone = has_classes && steps % 2 == 0;
            let what = format!("row_weights {steps} {batch} {inner} {of_weights:?} {flags}");
            let uploads = |device: &Device| {
                let weights = of_weights.as_ref().map(|(shape, stride)| {
                    let n: usize = shape.iter().product();
                    (device.upload("weights", shape, &rng::manual_seed(3).rand(n)).unwrap(), *stride)
                });
                let lengths = device.lengths("lengths", batch, steps).unwrap();
                lengths.write_u32(&tokens(4, batch, steps).iter().map(|t| t + 1).collect::<Vec<_>>()).unwrap();
                let targets = device.upload_u32("targets", &[rows], &tokens(5, rows, 6)).unwrap();
                (weights, lengths, targets)
            };
            let record = |device: &Device, g: &mut Graph| {
                let (weights, lengths, targets) = uploads(device);
                let (w, scale) = (random(device, "w", &[rows])?, random(device, "scale", &[1])?);
                let class_weights = device.upload("class weights", &[5], &[0.5, 2.0, 9.0, 0.0, 1.25])?;
                let what = RowWeights {
                    weights: weights.as_ref().map(|(weights, stride)| (weights, *stride)),
                    lengths: has_lengths.then_some((&lengths, inner)),
                    targets: has_targets.then_some(Targets {
                        targets: &targets,
                        v: 5,
                        ignore_index: Some(2),
                        class_weights: has_classes.then_some(&class_weights),
                        in_scale_alone,
                    }),
                    columns: 3,
                    mean,
                };
                kernels::row_weights::row_weights(g, what, &w, &scale)?;
                Ok(vec![w, scale])
            };
            check(&what, TOLERANCE, record);

            // The reference against plain loops.
            let device = Device::reference();
            let (weights, lengths, targets) = uploads(&device);
            let (lengths, targets) = (lengths.to_vec_u32().unwrap(), targets.to_vec_u32().unwrap());
            let weights = weights.map(|(weights, _)| (weights.shape().len(), weights.to_vec_f64().unwrap()));
            let (mut want, mut sum) = (Vec::new(), 0.0);
            for (t, b, k) in places(steps, batch, inner) {
                let weight = match &weights {
                    None => 1.0,
                    Some((1, weights)) => weights[b],
                    Some((2, weights)) => weights[t * batch + b],
                    Some((_, weights)) => weights[(t * batch + b) * inner + k],
                };
                let target = targets[want.len()];
                let is_out = (has_lengths && t >= lengths[b] as usize) || (has_targets && [2, 5].contains(&target));
                let weight = if is_out { 0.0 } else { weight };
                let of_class = match has_targets && has_classes {
                    true => [0.5, 2.0, 9.0, 0.0, 1.25, 0.0][target as usize],
                    false => 1.0,
                };
                want.push(if in_scale_alone { weight } else { weight * of_class });
                sum += 3.0 * weight * of_class;
            }
            let scale = if !mean {
                1.0
            } else if sum == 0.0 {
                0.0
            } else {
                1.0 / sum
            };
            let mut g = Graph::without_parameters(&device);
            let got = record(&device, &mut g).unwrap();
            g.finish().unwrap().run().unwrap();
            assert_eq!(got[0].to_vec_f64().unwrap(), want, "{what}");
            assert!((got[1].to_vec_f64().unwrap()[0] - scale).abs() <= 1e-12 * scale, "{what}");
        }
    }
}

fn places(steps: usize, batch: usize, inner: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..steps * batch * inner).map(move |i| (i / (batch * inner), i / inner % batch, i % inner))
}

/// What has no weight is 0, whatever it was.
#[test]
fn weigh() {
    for (rows, columns) in [(1, 1), (1, 257), (5, 63), (255, 1), (257, 3)] {
        let weights: Vec<f32> =
            values(3, rows).iter().enumerate().map(|(i, &w)| if i % 4 == 1 { 0.0 } else { w }).collect();
        let mut x = values(4, rows * columns);
        if rows > 1 {
            (x[columns], x[2 * columns - 1]) = (f32::INFINITY, f32::MAX);
        }
        let record = |device: &Device, g: &mut Graph| {
            let y = device.upload("x", &[rows, columns], &x)?;
            let weights = device.upload("weights", &[rows], &weights)?;
            kernels::weigh::weigh(g, &weights, &device.upload("scale", &[1], &[0.37])?, &y)?;
            Ok(vec![y])
        };
        check(&format!("weigh {rows} {columns}"), TOLERANCE, record);
        let device = Device::reference();
        let mut g = Graph::without_parameters(&device);
        let got = record(&device, &mut g).unwrap().remove(0);
        g.finish().unwrap().run().unwrap();
        for (i, got) in got.to_vec_f64().unwrap().into_iter().enumerate() {
            let weight = f64::from(weights[i / columns]);
            let want = if weight == 0.0 { 0.0 } else { weight * f64::from(0.37f32) * f64::from(x[i]) };
            assert!((got - want).abs() <= 1e-12, "{rows} {columns}, {i}: {got} {want}");
        }
    }
}

/// A NaN is no hit, and beats nothing: the same on every device, and on the host.
#[test]
fn accuracy_of_nan() {
    let nan = f32::NAN;
    let logits = [[nan, 0.0, 1.0], [0.0, nan, -1.0], [nan; 3], [f32::INFINITY, nan, 0.0], [-nan, -1.0, -2.0]];
    let (targets, want) = ([0, 0, 0, 0, 1], [0.0, 1.0, 0.0, 1.0, 1.0]);
    for device in [common::f32_devices(), vec![Device::reference()]].concat() {
        let mut g = Graph::without_parameters(&device);
        let x = device.upload("x", &[5, 3], &logits.concat()).unwrap();
        let hits = zeros(&device, "hits", &[5]).unwrap();
        let wanted = device.upload_u32("targets", &[5], &targets).unwrap();
        kernels::accuracy::accuracy(&mut g, &x, &wanted, None, &hits).unwrap();
        g.finish().unwrap().run().unwrap();
        assert_eq!(hits.to_vec().unwrap(), want, "{device:?}");
    }
    let host = elman::data::Array::new("logits", &[5, 3], logits.concat()).unwrap();
    let targets = elman::data::Array::targets("targets", &[5], targets.into(), 3).unwrap();
    assert_eq!(host.accuracy(&targets).unwrap(), 0.6);
}

/// Added to what is there; of equal logits the first, of NaN none.
#[test]
fn confusion() {
    for (rows, v) in [(1, 1), (2, 3), (5, 63), (31, 64), (70, 65), (300, 131)] {
        let mut logits: Vec<f32> = tokens(1, rows * v, 4).iter().map(|&x| x as f32 - 2.0).collect();
        for (at, value) in [(0, f32::NAN), (v / 2, f32::NEG_INFINITY), (rows * v - 1, f32::NAN)] {
            logits[at] = value;
        }
        logits[(rows - 1) * v..].fill(f32::NEG_INFINITY);
        let targets = tokens(2, rows, v + 1);
        let mut want = vec![1; v * v];
        for (row, &target) in logits.chunks(v).zip(&targets).filter(|(_, target)| (**target as usize) < v) {
            let numbers = row.iter().enumerate().filter(|(_, z)| !z.is_nan());
            if let Some((class, _)) = numbers.rev().max_by(|a, b| a.1.total_cmp(b.1)) {
                want[target as usize * v + class] += 1;
            }
        }
        check(&format!("confusion {rows} {v}"), 0.0, |device, g| {
            let counts = device.upload_u32("counts", &[v, v], &vec![1; v * v])?;
            let targets = device.upload_u32("targets", &[rows], &targets)?;
            kernels::confusion::confusion(g, &device.upload("x", &[rows, v], &logits)?, &targets, &counts)?;
            Ok(vec![counts])
        });
        for device in f32_devices() {
            let mut g = Graph::without_parameters(&device);
            let counts = device.upload_u32("counts", &[v, v], &vec![1; v * v]).unwrap();
            let targets = device.upload_u32("targets", &[rows], &targets).unwrap();
            let logits = device.upload("x", &[rows, v], &logits).unwrap();
            kernels::confusion::confusion(&mut g, &logits, &targets, &counts).unwrap();
            g.finish().unwrap().run().unwrap();
            assert_eq!(counts.to_vec_u32().unwrap(), want, "{rows} {v} on {device:?}");
        }
    }
}

/// Logits of few different values: the first of those that are greatest counts.
#[test]
fn accuracy() {
    for (rows, v) in [(1, 1), (2, 3), (5, 63), (31, 64), (70, 65), (9, 131)] {
        for ignore_index in [None, Some(0)] {
            let logits: Vec<f32> = tokens(1, rows * v, 4).iter().map(|&x| x as f32 - 2.0).collect();
            let first_greatest =
                |row: &[f32]| row.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            let targets: Vec<u32> = logits
                .chunks(v)
                .zip(tokens(2, rows, v + 1))
                .enumerate()
                .map(|(i, (row, other))| if i % 3 == 0 { other } else { first_greatest(row) as u32 })
                .collect();
            let record = |device: &Device, g: &mut Graph| {
                let hits = random(device, "hits", &[rows])?;
                let x = device.upload("x", &[rows, v], &logits)?;
                let targets = device.upload_u32("targets", &[rows], &targets)?;
                kernels::accuracy::accuracy(g, &x, &targets, ignore_index, &hits)?;
                Ok(vec![hits])
            };
            check(&format!("accuracy {rows} {v} {ignore_index:?}"), 0.0, record);
            let device = Device::reference();
            let mut g = Graph::without_parameters(&device);
            let hits = record(&device, &mut g).unwrap().remove(0);
            g.finish().unwrap().run().unwrap();
            let want = logits.chunks(v).zip(&targets).map(|(row, &target)| {
                let counts = (target as usize) < v && Some(target) != ignore_index;
                if counts && first_greatest(row) == target as usize { 1.0 } else { 0.0 }
            });
            assert_eq!(hits.to_vec().unwrap(), want.collect::<Vec<_>>(), "{rows} {v} {ignore_index:?}");
        }
    }
}

/// Sizes around a workgroup and a block, inputs of any layout, results into parts of a tensor, added or not.
#[test]
fn map() {
    let program = Program::new(|[x, y]| (x * y - 0.5).tanh() + x.abs());
    for (rows, columns) in [(1, 1), (1, 255), (3, 86), (17, 31), (5, 257), (67, 129)] {
        for adds in [false, true] {
            check(&format!("map {rows} {columns} {adds}"), TOLERANCE, |device, g| {
                let shape = [rows, columns];
                let (x, row) = (random(device, "x", &[columns, rows])?, random(device, "row", &[columns])?);
                let (dense, wide) = (random(device, "dense", &shape)?, random(device, "wide", &[rows, columns + 3])?);
                let turned = || Operand::strided(&x, Layout { offset: 0, strides: vec![1, rows] });
                let part = |offset| Operand::strided(&wide, Layout { offset, strides: vec![columns + 3, 1] });
                let map = |g: &mut Graph, output| {
                    kernels::map::map(g, &program, &shape, &[turned(), (&row).into()], &[(output, adds)])
                };
                map(g, (&dense).into())?;
                map(g, part(2))?;
                assert!(map(g, part(4)).is_err());
                assert!(map(g, part(usize::MAX)).is_err());
                assert!(map(g, (&row).into()).is_err() || rows == 1);
                Ok(vec![dense, wide])
            });
        }
    }
}

/// Long sums in slices, few and many, of each shape.
#[test]
fn sum() {
    for sizes in
        [[1, 1, 1], [3, 5, 7], [1, 4097, 1], [2, 3000, 3], [1, 700, 65], [300, 9, 1], [40, 30, 33], [1, 70_001, 1]]
    {
        for accumulate in [false, true] {
            check(&format!("sum {sizes:?} {accumulate}"), TOLERANCE, |device, g| {
                let [a, rows, c] = sizes;
                let (x, y) = (random(device, "x", &sizes)?, random(device, "y", &[a, c])?);
                kernels::sum::sum(g, &x, sizes, 0.5, &y, accumulate)?;
                assert!(kernels::sum::sum(g, &x, [a, rows + 1, c], 0.5, &y, accumulate).is_err());
                Ok(vec![y])
            });
        }
    }
}

#[test]
fn matmul_batched() {
    for [batch, m, n, k] in [[1, 3, 4, 5], [3, 1, 1, 1], [2, 65, 33, 17], [5, 4, 70, 130]] {
        for (turn_a, turn_b, accumulate) in
            [(false, false, false), (true, false, true), (false, true, false), (true, true, true)]
        {
            for shared in [0, 1, 2] {
                let what = format!("batched {batch} {m} {n} {k} {turn_a} {turn_b} {shared}");
                check(&what, TOLERANCE, |device, g| {
                    let factor = |name, rows, columns, turned, is_shared| {
                        let matrix = if turned { [columns, rows] } else { [rows, columns] };
                        match is_shared {
                            true => random(device, name, &matrix),
                            false => random(device, name, &[&[batch][..], &matrix].concat()),
                        }
                    };
                    let (a, b) = (factor("a", m, k, turn_a, shared == 1)?, factor("b", k, n, turn_b, shared == 2)?);
                    let c = random(device, "c", &[batch, m, n])?;
                    kernels::matmul::batched(g, (&a, turn_a), (&b, turn_b), &c, accumulate)?;
                    let odd = random(device, "odd", &[batch + 1, k, n + 1])?;
                    assert!(kernels::matmul::batched(g, (&a, turn_a), (&odd, false), &c, accumulate).is_err());
                    Ok(vec![c])
                });
            }
        }
    }
}

/// Saturated, infinite, and NaN, which stays NaN.
#[test]
fn activations_of_special_values() {
    let inf = f32::INFINITY;
    let x = [0.0, -0.0, 20.0, -20.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, inf, -inf, f32::NAN];
    for device in f32_devices() {
        let of = |name: &str, f: fn(&mut Graph, elman::Var) -> Result<elman::Var>| {
            let mut g = Graph::without_parameters(&device);
            let x = g.input(&device.upload("x", &[13], &x).unwrap()).unwrap();
            let y = f(&mut g, x).unwrap();
            let y = g.tensor(y).unwrap();
            g.finish().unwrap().run().unwrap();
            let y = y.to_vec().unwrap();
            assert!(y[12].is_nan(), "{name} on {device:?}: {y:?}");
            y
        };
        assert_eq!(
            of("relu", functional::relu)[..12],
            [0.0, 0.0, 20.0, 0.0, 88.0, 0.0, 104.0, 0.0, 1e4, 0.0, inf, 0.0]
        );
        let tanh = of("tanh", functional::tanh);
        assert_eq!(tanh[..12], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0], "{device:?}");
        assert!(tanh[0].is_sign_positive() && tanh[1].is_sign_negative(), "{device:?}");
        let sigmoid = of("sigmoid", functional::sigmoid);
        assert_eq!([0, 1, 4, 6, 8, 10].map(|i| sigmoid[i]), [0.5, 0.5, 1.0, 1.0, 1.0, 1.0], "{device:?}");
        assert_eq!([7, 9, 11].map(|i| sigmoid[i]), [0.0; 3], "{device:?}");
        let (near, far) = (f64::from(sigmoid[3]) / (-20f64).exp(), sigmoid[5]);
        assert!((near - 1.0).abs() < 1e-6 && (0.0..=f32::MIN_POSITIVE).contains(&far), "{sigmoid:?} on {device:?}");
    }
}

#[test]
fn log_softmax() {
    for (rows, v) in [(1, 1), (2, 3), (5, 63), (7, 64), (3, 65), (4, 131)] {
        check(&format!("log_softmax {rows} {v}"), TOLERANCE, |device, g| {
            let (y, dx) = (zeros(device, "y", &[rows, v])?, zeros(device, "dx", &[rows, v])?);
            let dy = random(device, "dy", &[rows, v])?;
            kernels::log_softmax::log_softmax(g, &random(device, "x", &[rows, v])?, &y)?;
            kernels::log_softmax_backward::log_softmax_backward(g, &y, &dy, &dx)?;
            Ok(vec![y, dx])
        });
    }
}

#[test]
fn cross_entropy_of_huge_logits_is_finite() {
    for device in f32_devices() {
        let mut g = Graph::without_parameters(&device);
        let logits = device.upload("logits", &[2, 3], &[1e4, -1e4, 0.0, -3e38, -3e38, -3e38]).unwrap();
        let targets = device.upload_u32("targets", &[2], &[1, 2]).unwrap();
        let scale = device.upload("scale", &[1], &[1.0]).unwrap();
        let losses = device.zeros("losses", &[2], DType::F32).unwrap();
        let (targets, scale) = (&targets, &scale);
        let loss = ClassLoss {
            x: &logits,
            targets,
            ignore_index: None,
            class_weights: None,
            label_smoothing: 0.0,
            counts: false,
            scale,
            losses: &losses,
            dx: None,
        };
        kernels::cross_entropy::cross_entropy(&mut g, loss).unwrap();
        g.finish().unwrap().run().unwrap();
        let losses = losses.to_vec().unwrap();
        assert!(losses[0] == 2e4 && (losses[1] - 3f32.ln()).abs() <= 1e-6, "{losses:?} on {device:?}");
    }
}

#[test]
fn count_targets() {
    for (rows, v, ignore) in [
        (1, 2, None),
        (255, 5, None),
        (256, 7, Some(2)),
        (515, 3, Some(1)),
        (2, 1, Some(0)),
        (200_001, 9, Some(3)),
        (70_000, 1, Some(0)),
    ] {
        check(&format!("count_targets {rows}"), 1e-7, |device, g| {
            let targets = device.upload_u32("targets", &[rows], &tokens(9, rows, v + 2))?;
            let scale = zeros(device, "scale", &[1])?;
            kernels::count_targets::count_targets(g, &targets, v, ignore, &scale)?;
            Ok(vec![scale])
        });
    }
}

#[test]
fn record_loss() {
    for (rows, capacity) in [(1, 1), (255, 2), (256, 5), (515, 3), (200_001, 3)] {
        check(&format!("record_loss {rows}"), TOLERANCE, |device, g| {
            let losses = random(device, "losses", &[rows])?;
            let scale = device.upload("scale", &[1], &[0.3])?;
            let history = zeros(device, "history", &[capacity])?;
            let clock = device.upload_u32("clock", &[2], &[7, 3])?;
            let other = zeros(device, "history of another term", &[capacity])?;
            kernels::record_loss::record_loss(g, &losses, &scale, &history, &clock, true)?;
            kernels::record_loss::record_loss(g, &losses, &scale, &other, &clock, false)?;
            kernels::record_loss::record_loss(g, &losses, &scale, &history, &clock, true)?;
            Ok(vec![history, other, clock])
        });
    }
}

#[test]
fn column_sum() {
    for (rows, columns) in [(1, 1), (3, 63), (5, 64), (131, 65), (67, 131), (700, 2), (1101, 67), (2311, 67)] {
        for accumulate in [false, true] {
            check(&format!("column_sum {rows} {columns} {accumulate}"), TOLERANCE, |device, g| {
                let x = random(device, "x", &[rows, columns])?;
                let y = random(device, "y", &[columns])?;
                kernels::column_sum::column_sum(g, &x, &y, accumulate)?;
                let twice = random(device, "twice", &[2, columns])?;
                kernels::column_sum::into_each_row(g, &x, &twice)?;
                Ok(vec![y, twice])
            });
        }
    }
}

#[test]
fn gather_and_segment_sum() {
    for (rows, columns, v) in [
        (1, 1, 1),
        (255, 63, 7),
        (256, 64, 5),
        (257, 65, 85),
        (515, 3, 131),
        (701, 67, 5),
        (600, 65, 1031),
        (777, 3, 20_001),
    ] {
        for accumulate in [false, true] {
            check(&format!("gather {rows} {columns} {v} {accumulate}"), TOLERANCE, |device, g| {
                let table = random(device, "table", &[v, columns])?;
                let index = indices(device, "index", &[rows], v)?;
                let y = zeros(device, "y", &[rows, columns])?;
                let dtable = random(device, "dtable", &[v, columns])?;
                kernels::gather::gather(g, &table, &index, &y)?;
                kernels::segment_sum::segment_sum(g, &y, &index, &dtable, accumulate)?;
                Ok(vec![dtable])
            });
        }
    }
}

#[test]
fn accumulate() {
    for n in [1, 255, 256, 257, 515] {
        check(&format!("accumulate {n}"), 1e-7, |device, g| {
            let (x, y) = (random(device, "x", &[n])?, random(device, "y", &[n])?);
            kernels::accumulate::accumulate(g, &x, &y)?;
            Ok(vec![y])
        });
    }
}

#[test]
fn squared_norm() {
    for n in [1, 255, 257, 4096, 4097, 30_011] {
        check(&format!("squared_norm {n}"), TOLERANCE, |device, g| {
            let x = random(device, "x", &[n])?;
            let y = zeros(device, "y", &[1])?;
            kernels::squared_norm::squared_norm(g, &x, &y)?;
            Ok(vec![y])
        });
    }
}

/// The tensors that optimizers share.
struct Block {
    gradient: Tensor,
    lr: Tensor,
    clock: Tensor,
    parameters: Tensor,
}

fn block(device: &Device, n: usize, t: u32) -> Result<Block> {
    Ok(Block {
        gradient: random(device, "g", &[n])?,
        lr: device.upload("lr", &[1], &[0.01])?,
        clock: device.upload_u32("clock", &[2], &[t, 0])?,
        parameters: random(device, "w", &[n])?,
    })
}

fn squares(device: &Device, n: usize) -> Result<Tensor> {
    device.upload("v", &[n], &values(6, n).iter().map(|v| v * v).collect::<Vec<_>>())
}

#[test]
fn adam_updates() {
    for (n, t, weight_decay) in [(1, 1, 0.0), (255, 2, 0.0), (257, 1000, 0.3), (515, 40_000, 0.1)] {
        for decoupled in [false, true] {
            check(&format!("adam {n} {t} {decoupled}"), TOLERANCE, |device, g| {
                let Block { gradient, lr, clock, parameters } = &block(device, n, t)?;
                let moments = &[random(device, "m", &[n])?, squares(device, n)?];
                let adam = Adam { weight_decay, ..Adam::new(0.01) };
                let rule: &dyn Rule = if decoupled { &AdamW(adam) } else { &adam };
                rule.record(g, Update { gradient, lr, clock, parameters, moments })?;
                Ok([std::slice::from_ref(parameters), &moments[..]].concat())
            });
        }
    }
}

#[test]
fn adagrad_updates() {
    for (n, t, lr_decay) in [(1, 1, 0.5), (255, 2, 0.0), (257, 1000, 0.1), (515, 7, 0.3)] {
        check(&format!("adagrad {n} {t}"), TOLERANCE, |device, g| {
            let Block { gradient, lr, clock, parameters } = &block(device, n, t)?;
            let moments = &[squares(device, n)?];
            let options = Adagrad { lr_decay, weight_decay: 0.2, ..Adagrad::new(0.01) };
            options.record(g, Update { gradient, lr, clock, parameters, moments })?;
            Ok([std::slice::from_ref(parameters), &moments[..]].concat())
        });
    }
}

#[test]
fn sgd_updates() {
    let momentum = Sgd { momentum: 0.9, weight_decay: 0.2, ..Sgd::new(0.01) };
    let options = [Sgd::new(0.01), momentum, Sgd { dampening: 0.4, ..momentum }, Sgd { nesterov: true, ..momentum }];
    for (n, t) in [(1, 1), (255, 2), (257, 1), (515, 7)] {
        for options in options {
            check(&format!("{options:?} {n} {t}"), TOLERANCE, |device, g| {
                let Block { gradient, lr, clock, parameters } = &block(device, n, t)?;
                let moments = &[random(device, "b", &[if options.momentum == 0.0 { 1 } else { n }])?];
                options.record(g, Update { gradient, lr, clock, parameters, moments })?;
                Ok([std::slice::from_ref(parameters), &moments[..]].concat())
            });
        }
    }
}

#[test]
fn rms_prop_updates() {
    let plain = RmsProp { eps: 1e-2, weight_decay: 0.2, ..RmsProp::new(0.01) };
    let options = [plain, RmsProp { momentum: 0.8, ..plain }, RmsProp { momentum: 0.8, centered: true, ..plain }];
    for n in [1, 255, 257, 515] {
        for options in options {
            check(&format!("{options:?} {n}"), TOLERANCE, |device, g| {
                let Block { gradient, lr, clock, parameters } = &block(device, n, 1)?;
                let of = |name: &str, used: bool| random(device, name, &[if used { n } else { 1 }]);
                let mean = of("m", options.centered)?;
                // The mean's square is below the mean square, or the variance has no root.
                mean.write(&mean.to_vec()?.iter().map(|m| 0.1 * m).collect::<Vec<_>>())?;
                let square = squares(device, n)?.to_vec()?.iter().map(|v| v + 0.1).collect::<Vec<_>>();
                let moments = &[device.upload("v", &[n], &square)?, mean, of("b", options.momentum != 0.0)?];
                options.record(g, Update { gradient, lr, clock, parameters, moments })?;
                Ok([std::slice::from_ref(parameters), &moments[..]].concat())
            });
        }
    }
}

type Clip = fn(&mut Recorder, &Tensor, f64) -> Result<()>;

fn clip_by_norm(r: &mut Recorder, gradient: &Tensor, most: f64) -> Result<()> {
    let norm2 = zeros(r.device(), "norm2", &[1])?;
    kernels::squared_norm::squared_norm(r, gradient, &norm2)?;
    clip_norm(r, gradient, &norm2, most)
}

#[test]
fn clip() {
    for n in [1, 255, 257, 30_011] {
        for (clip, most) in [(clip_by_norm as Clip, 0.5), (clip_by_norm, 1e9), (clip_value, 0.3)] {
            check(&format!("clip to {most} {n}"), TOLERANCE, |device, g| {
                let gradient = random(device, "g", &[n])?;
                clip(g, &gradient, most)?;
                Ok(vec![gradient])
            });
        }
    }
}

/// A NaN in the gradient is not hidden by clipping.
#[test]
fn clip_lets_nan_through() {
    for device in f32_devices() {
        for (clip, most) in [(clip_by_norm as Clip, 0.5), (clip_value, 0.3)] {
            let gradient = device.upload("g", &[2], &[f32::NAN, 1.0]).unwrap();
            let mut g = Recorder::new(&device);
            clip(&mut g, &gradient, most).unwrap();
            g.finish().unwrap().run().unwrap();
            assert!(gradient.to_vec().unwrap()[0].is_nan(), "{most} on {device:?}");
        }
    }
}

/// What a gate has decided in its steps so far: the rates of two groups, and its state.
type Decision = (Vec<f32>, Vec<u32>);

/// Steps of a gate: bad ones have an infinite loss, an infinite gradient, or both.
fn gate_decides(device: &Device, steps: &[(bool, bool)], accumulate: usize, stops: bool) -> Vec<Decision> {
    let (n, inf) = (700, f32::INFINITY);
    let [norm2, gradient, history] = [("norm2", vec![1]), ("g", vec![n]), ("history", vec![2, 4])]
        .map(|(name, shape)| zeros(device, name, &shape).unwrap());
    let lr = device.upload("lr", &[128], &values(1, 128)).unwrap();
    let [clock, state] = [2, 64].map(|n| device.zeros("clock or state", &[n], DType::U32).unwrap());
    let rate = zeros(device, "rate", &[128]).unwrap();
    let mut r = Recorder::new(device);
    let gate = kernels::gate::Gate {
        norm2: &norm2,
        gradient: &gradient,
        history: &history,
        clock: &clock,
        lr: &lr,
        state: &state,
        rate: &rate,
    };
    gate.record(&mut r, accumulate, stops).unwrap();
    let plan = r.finish().unwrap();
    TESTED.lock().unwrap().extend(plan.kernels());
    let step = |(t, &(bad_loss, bad_gradient)): (usize, &(bool, bool))| {
        let mut losses = vec![0.0; 8];
        losses[4 + t % 4] = if bad_loss { -inf } else { 1.5 };
        history.write(&losses).unwrap();
        let mut values = values(2, n);
        if bad_gradient {
            [values[555], values[600], values[699]] = [inf, f32::NAN, -inf];
        }
        gradient.write(&values).unwrap();
        norm2.write(&[if bad_gradient { inf } else { 3.0 }]).unwrap();
        clock.write_u32(&[t as u32 + 1, 9]).unwrap();
        plan.run().unwrap();
        let rate = rate.to_vec().unwrap();
        (vec![rate[0], rate[64]], state.to_vec_u32().unwrap()[..6].to_vec())
    };
    steps.iter().enumerate().map(step).collect()
}

#[test]
fn gate() {
    let (good, loss, gradient) = ((false, false), (true, false), (false, true));
    let steps = [good, good, loss, good, good, gradient, gradient, good, good, good];
    let lr = values(1, 128);
    for device in [Device::reference()].into_iter().chain(f32_devices()) {
        for (accumulate, stops, updates, left_out) in [
            // At the end of each step: updates done, and left out.
            (1, false, [1, 2, 2, 3, 4, 4, 4, 5, 6, 7], [0, 0, 1, 1, 1, 2, 3, 3, 3, 3]),
            (1, true, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
            (3, false, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]),
            (2, false, [0, 1, 1, 1, 1, 1, 1, 1, 1, 2], [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]),
        ] {
            let decisions = gate_decides(&device, &steps, accumulate, stops);
            let mut before = 0;
            for (t, (rates, state)) in decisions.into_iter().enumerate() {
                let what = format!("{device:?} {accumulate} {stops} step {t}: {rates:?} {state:?}");
                let rate = |k: usize| if updates[t] > before { lr[64 * k] } else { -1.0 };
                assert_eq!(rates, [rate(0), rate(1)], "{what}");
                assert_eq!((state[0], state[3]), (updates[t], left_out[t]), "{what}");
                // The first bad step is kept, with its gradient, which was good.
                assert_eq!(state[1], if t < 2 { 0 } else { 3 }, "{what}");
                assert!(t < 2 || state[2] == u32::MAX && f32::from_bits(state[5]) == 3.0, "{what}");
                before = updates[t];
            }
        }
        let (_, state) = gate_decides(&device, &[good, gradient], 1, true).pop().unwrap();
        assert_eq!(state, [1, 2, 555, 1, 0, f32::INFINITY.to_bits()], "{device:?}");
    }
}

#[test]
fn add_micro_batch() {
    for (n, t, accumulate) in [(1, 1, 1), (255, 4, 3), (257, 5, 3), (5000, 6, 3)] {
        check(&format!("add_micro_batch {n} {t}"), 1e-6, |device, g| {
            let clock = device.upload_u32("clock", &[2], &[t, 0])?;
            let [sum, gradient] = ["sum", "g"].map(|name| random(device, name, &[n]).unwrap());
            kernels::add_micro_batch::add_micro_batch(g, &clock, &sum, &gradient, accumulate)?;
            Ok(vec![sum, gradient])
        });
    }
}

#[test]
fn moving_average() {
    for (n, t, rate) in [(1, 1, 0.1), (255, 1, 0.1), (257, 2, 0.0), (5000, 9, 0.1), (300, 1, -1.0), (300, 2, -1.0)] {
        check(&format!("moving_average {n} {t} {rate}"), 1e-6, |device, g| {
            let clock = device.upload_u32("clock", &[1], &[t])?;
            let rate = device.upload("rate", &[1], &[rate])?;
            let [w, average] = ["w", "average"].map(|name| random(device, name, &[n]).unwrap());
            kernels::moving_average::moving_average(g, &rate, &clock, &w, &average, 0.9)?;
            Ok(vec![average])
        });
    }
}

/// A rate below 0 leaves everything as it was, whatever the gradient.
#[test]
fn a_rate_below_0_updates_nothing() {
    let rules: [&dyn Rule; 5] = [
        &Adam::new(0.1),
        &AdamW::new(0.1),
        &Adagrad::new(0.1),
        &RmsProp::new(0.1),
        &Sgd { momentum: 0.9, ..Sgd::new(0.1) },
    ];
    for device in [Device::reference()].into_iter().chain(f32_devices()) {
        for rule in rules {
            let Block { gradient, lr, clock, parameters } = &block(&device, 300, 3).unwrap();
            lr.write(&[-1.0]).unwrap();
            gradient.write(&[f32::NAN; 300]).unwrap();
            let moments: Vec<_> =
                rule.moments().into_iter().map(|(name, _)| random(&device, name, &[300]).unwrap()).collect();
            let tensors =
                || moments.iter().chain([parameters]).map(|tensor| tensor.to_vec().unwrap()).collect::<Vec<_>>();
            let before = tensors();
            let mut r = Recorder::new(&device);
            rule.record(&mut r, Update { gradient, lr, clock, parameters, moments: &moments }).unwrap();
            r.finish().unwrap().run().unwrap();
            assert_eq!(tensors(), before, "{rule:?} on {device:?}");
        }
    }
}

#[test]
fn windows() {
    for (t, b, k, batch) in [(1, 1, 1, 0), (8, 5, 1, 1), (3, 7, 3, 2), (5, 4, 5, 0), (2, 4, 1, 7)] {
        check(&format!("windows {t} {b} {k} {batch}"), 0.0, |device, g| {
            let corpus = indices(device, "corpus", &[40], 9)?;
            let order = indices(device, "order", &[17], 40 - t)?;
            let clock = device.upload_u32("clock", &[2], &[99, batch])?;
            let tokens = device.zeros("tokens", &[t, b], DType::U32)?;
            let targets = device.zeros("targets", &[k, b], DType::U32)?;
            kernels::windows::windows(g, &corpus, &order, &clock, &tokens, &targets)?;
            Ok(vec![tokens, targets])
        });
    }
}

/// The definition, in plain loops.
#[test]
fn windows_are_what_they_say() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let corpus = device.tokens("corpus", &[10], 10).unwrap();
    corpus.write_u32(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    let order = device.tokens("order", &[3], 7).unwrap();
    order.write_u32(&[5, 0, 2]).unwrap();
    let clock = device.upload_u32("clock", &[2], &[0, 1]).unwrap();
    let tokens = device.zeros("tokens", &[3, 2], DType::U32).unwrap();
    let targets = device.zeros("targets", &[3, 2], DType::U32).unwrap();
    kernels::windows::windows(&mut g, &corpus, &order, &clock, &tokens, &targets).unwrap();
    g.finish().unwrap().run().unwrap();
    assert_eq!(tokens.to_vec_u32().unwrap(), [2, 0, 3, 0, 4, 0]);
    assert_eq!(targets.to_vec_u32().unwrap(), [3, NO_TARGET, 4, NO_TARGET, 5, NO_TARGET]);
}

/// Some draws of each lane, and places from long ago to the future, none for some tokens.
fn history(device: &Device, vocabulary: usize, lanes: usize) -> Result<Tensor> {
    let places = tokens(6, vocabulary * lanes, 15).into_iter().map(|x| if x < 5 { 0 } else { FIRST_PLACE + x - 10 });
    let history: Vec<_> = tokens(1, lanes, 5).into_iter().chain(places).collect();
    device.upload_u32("history", &[1 + vocabulary, lanes], &history)
}

#[test]
fn sample() {
    // Temperature, top-k, top-p, min-p, the penalty of repetitions, for the latest how many.
    let shapes = [
        (1.0, 0, 1.0, 0.0, 1.0, 0),
        (0.0, 0, 1.0, 0.0, 1.0, 0),
        (0.8, 3, 1.0, 0.0, 1.0, 0),
        (2.0, 0, 0.7, 0.0, 1.0, 0),
        (1.5, 5, 0.6, 0.0, 1.0, 0),
        (1.0, 1, 0.1, 0.0, 1.0, 0),
        (1.0, 999, 1.0, 0.0, 1.0, 0),
        (0.0, 0, 1.0, 0.0, 1.7, 4),
        (1.3, 0, 1.0, 0.0, 1.7, u32::MAX),
        (2.0, 0, 1.0, 0.21, 1.0, 0),
        (1.5, 7, 0.8, 0.17, 0.6, 3),
        (1.0, 0, 1.0, 1.0, 1.2, 1),
    ];
    for (b, v) in [(2, 1), (131, 7), (67, 63), (5, 64), (65, 65), (67, 85), (33, 129), (17, 300)] {
        for (temperature, top_k, top_p, min_p, penalty, last_n) in shapes {
            let what = format!("sample {b} {v} {temperature} {top_k} {top_p} {min_p} {penalty} {last_n}");
            check(&what, 0.0, |device, g| {
                // Of ten values, with both zeros, so that there are ties; a NaN and an infinity in some lanes.
                let mut logits: Vec<f32> = tokens(8, b * v, 10).iter().map(|&z| 0.5 * (z as f32 - 5.0)).collect();
                logits.iter_mut().step_by(7).filter(|z| **z == 0.0).for_each(|z| *z = -0.0);
                for lane in (1..b).step_by(5).filter(|_| v > 2) {
                    logits[lane * v + lane % v] = f32::NAN;
                    logits[lane * v + (lane + 1) % v] = f32::NEG_INFINITY;
                }
                // Every third lane stops at token 1, and some have drawn it.
                let control = (0..b as u32).flat_map(|lane| {
                    let [stop, never] =
                        [(lane % 3 == 0, 1), (lane % 4 == 1, 0)].map(|(is, token)| if is { token } else { NO_TARGET });
                    [42, lane / 2, top_k, stop, never, last_n]
                });
                let history = history(device, v, b)?;
                let last = device.upload_u32("tokens", &[b], &tokens(3, b, 4))?;
                let ring = device.zeros("ring", &[5, b], DType::U32)?;
                let logits = device.upload("logits", &[b, v], &logits)?;
                let draw = Draw {
                    shape: &device.upload("shape", &[b, 4], &[temperature, top_p, min_p, penalty].repeat(b))?,
                    control: &device.upload_u32("control", &[b, 6], &control.collect::<Vec<_>>())?,
                    history: &history,
                    tokens: &last,
                    ring: &ring,
                };
                kernels::sample::sample(g, &logits, draw)?;
                kernels::sample::sample(g, &logits, draw)?;
                Ok(vec![last, history, ring])
            });
        }
    }
}

/// Cells, layers, vocabulary, hidden size, lanes: around each edge of a vector, of the slices, of the threads.
fn generate_sizes() -> Vec<(Sizes, usize)> {
    let cells = [Cell::Tanh, Cell::Relu, Cell::Gru, Cell::Lstm];
    let small = [(1, 7, 1, 1), (2, 11, 5, 2), (3, 85, 18, 5), (1, 1, 4, 1), (2, 67, 65, 1), (1, 1031, 32, 2)];
    let sizes =
        |(layers, vocabulary, hidden, lanes)| cells.map(|cell| (Sizes { cell, layers, vocabulary, hidden }, lanes));
    let wide = Sizes { cell: Cell::Lstm, layers: 1, vocabulary: 9, hidden: 261 };
    small.into_iter().flat_map(sizes).chain([(wide, 1)]).collect()
}

/// tokens, shape, control, history, ring: greedy on even lanes, drawn on odd ones.
fn draws(device: &Device, vocabulary: usize, lanes: usize) -> Result<[Tensor; 5]> {
    let shape: Vec<f32> = (0..lanes).flat_map(|lane| [(lane % 2) as f32, 0.9, 0.05, 1.3]).collect();
    Ok([
        indices(device, "tokens", &[1, lanes], vocabulary)?,
        device.upload("shape", &[lanes, 4], &shape)?,
        device.upload_u32("control", &[lanes, 6], &[42, 1, 6, NO_TARGET, 2, 4].repeat(lanes))?,
        history(device, vocabulary, lanes)?,
        device.zeros("ring", &[7, lanes], DType::U32)?,
    ])
}

/// Records draws of so many steps each; the states, what has been drawn and the ring.
fn record_generate(
    device: &Device,
    g: &mut Graph,
    (sizes, lanes): (Sizes, usize),
    dispatches: &[usize],
) -> Result<Vec<Tensor>> {
    let weights = common::network(device, sizes)?.2.pack(g)?;
    let [tokens, shape, control, history, ring] = draws(device, sizes.vocabulary, lanes)?;
    let draw = Draw { tokens: &tokens, shape: &shape, control: &control, history: &history, ring: &ring };
    let state = |name| random(device, name, &[sizes.layers, lanes, sizes.hidden]);
    let states: Vec<_> = ["h", "c"][..sizes.cell.states()].iter().map(|name| state(name)).collect::<Result<_>>()?;
    for &steps in dispatches {
        kernels::generate::generate(g, sizes, &weights, draw, (&states[0], states.get(1)), steps)?;
    }
    Ok(states.into_iter().chain([tokens, history, ring]).collect())
}

#[test]
fn generate() {
    for case in generate_sizes() {
        check(&format!("generate {case:?}"), 1e-4, |device, g| record_generate(device, g, case, &[1, 9]));
    }
}

/// In f64, what the network's forward pass and `sample` give, token by token.
#[test]
fn generate_equals_the_chain() {
    let device = Device::reference();
    for (sizes, lanes) in generate_sizes() {
        let steps = 10;
        let mut g = Graph::without_parameters(&device);
        let got = record_generate(&device, &mut g, (sizes, lanes), &[steps]).unwrap();
        let states: elman::nn::Snapshot = ["h", "c"]
            .iter()
            .zip(&got[..sizes.cell.states()])
            .map(|(name, state)| ((*name).into(), state.to_vec().unwrap()))
            .collect();
        g.finish().unwrap().run().unwrap();

        let (model, parameters, _) = common::network(&device, sizes).unwrap();
        let state = model.state(&device, lanes).unwrap();
        state.restore(&states).unwrap();
        let [tokens, shape, control, history, ring] = draws(&device, sizes.vocabulary, lanes).unwrap();
        let draw = Draw { tokens: &tokens, shape: &shape, control: &control, history: &history, ring: &ring };
        let mut g = Graph::inference(&parameters);
        let logits = model.forward(&mut g, &tokens, InitialState::Carried(&state)).unwrap();
        let logits = g.tensor(logits).unwrap();
        kernels::sample::sample(&mut g, &logits, draw).unwrap();
        g.finish().unwrap().run_times(steps).unwrap();

        let what = format!("{sizes:?}, {lanes} lanes");
        let (states, drawn) = got.split_at(sizes.cell.states());
        for (got, want) in states.iter().zip(["h", "c"].map(|name| state.save().unwrap().remove(name))) {
            let want = common::widen(&want.unwrap());
            assert_close(&what, &common::widen(&got.to_vec().unwrap()), &want, sizes.hidden, 1e-6);
        }
        for (got, want) in drawn.iter().zip([tokens, history, ring]) {
            assert_eq!(got.to_vec_u32().unwrap(), want.to_vec_u32().unwrap(), "{what}: {want:?}");
        }
    }
}

/// Every sum over a grid that is folded into two dimensions.
#[test]
fn more_rows_than_a_grid_is_wide() {
    check("65,537 rows", TOLERANCE, |device, g| {
        let logits = random(device, "logits", &[65_537, 2])?;
        let targets = device.upload_u32("targets", &[65_537], &tokens(2, 65_537, 2))?;
        let scale = device.upload("scale", &[1], &[0.37])?;
        let losses = zeros(device, "losses", &[65_537])?;
        let dlogits = zeros(device, "dlogits", &[65_537, 2])?;
        let (x, dx) = (&logits, Some(&dlogits));
        let targets = &targets;
        let loss = ClassLoss {
            x,
            targets,
            ignore_index: None,
            class_weights: None,
            label_smoothing: 0.0,
            counts: false,
            scale: &scale,
            losses: &losses,
            dx,
        };
        kernels::cross_entropy::cross_entropy(g, loss)?;
        Ok(vec![losses.reshape(&[65_537, 1])?, dlogits])
    });
    check("64 * 65,537 columns", TOLERANCE, |device, g| {
        let x = random(device, "x", &[2, 64 * 65_537])?;
        let y = zeros(device, "y", &[64 * 65_537])?;
        kernels::column_sum::column_sum(g, &x, &y, false)?;
        Ok(vec![y])
    });
    check("65,537 table rows", TOLERANCE, |device, g| {
        let dy = random(device, "dy", &[300, 3])?;
        let index = indices(device, "index", &[300], 65_537)?;
        let dtable = zeros(device, "dtable", &[65_537, 3])?;
        kernels::segment_sum::segment_sum(g, &dy, &index, &dtable, false)?;
        Ok(vec![dtable])
    });
}

#[test]
fn gather() {
    for (rows, columns, v) in [(1, 1, 1), (255, 63, 7), (257, 65, 85)] {
        check(&format!("gather {rows} {columns} {v}"), 0.0, |device, g| {
            let y = zeros(device, "y", &[rows, columns])?;
            // Small integers: exact in every float type.
            let table: Vec<f32> = tokens(3, v * columns, 100).iter().map(|&x| x as f32).collect();
            let table = device.upload("table", &[v, columns], &table)?;
            kernels::gather::gather(g, &table, &indices(device, "index", &[rows], v)?, &y)?;
            Ok(vec![y])
        });
    }
}

/// The update itself, not hidden behind the parameter it is added to.
#[test]
fn adam_from_zero() {
    check("adam from zero", 1e-5, |device, g| {
        let moments = [zeros(device, "m", &[300])?, zeros(device, "v", &[300])?];
        let parameters = zeros(device, "w", &[300])?;
        let lr = device.upload("lr", &[1], &[0.01])?;
        let gradient = random(device, "g", &[300])?;
        for t in 1..=3 {
            let update = Update {
                gradient: &gradient,
                lr: &lr,
                clock: &device.upload_u32("clock", &[2], &[t, 0])?,
                parameters: &parameters,
                moments: &moments,
            };
            Adam::new(0.01).record(g, update)?;
        }
        Ok([&[parameters], &moments[..]].concat())
    });
}

#[test]
fn indices_that_were_not_checked_are_refused() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let (table, y) = (zeros(&device, "table", &[3, 2]).unwrap(), zeros(&device, "y", &[4, 2]).unwrap());
    let unchecked = device.upload_u32("index", &[4], &[0, 1, 2, 9]).unwrap();
    let too_wide = indices(&device, "index", &[4], 4).unwrap();
    for index in [unchecked, too_wide] {
        let refused = [
            kernels::gather::gather(&mut g, &table, &index, &y).unwrap_err(),
            kernels::segment_sum::segment_sum(&mut g, &y, &index, &table, false).unwrap_err(),
        ];
        assert!(refused.iter().all(|e| e.to_string().contains("at most 3")), "{refused:?}");
    }
    let sizes = Sizes { cell: Cell::Tanh, layers: 1, vocabulary: 3, hidden: 4 };
    let (h, weights) =
        (zeros(&device, "h", &[1, 1, 4]).unwrap(), common::network(&device, sizes).unwrap().2.pack(&mut g));
    let [_, shape, control, history, ring] = draws(&device, 3, 1).unwrap();
    for tokens in [device.upload_u32("tokens", &[1], &[9]), device.tokens("tokens", &[1], 4)] {
        let draw = Draw { shape: &shape, control: &control, history: &history, tokens: &tokens.unwrap(), ring: &ring };
        let weights = weights.as_ref().unwrap();
        let refused = kernels::generate::generate(&mut g, sizes, weights, draw, (&h, None), 1).unwrap_err();
        assert!(refused.to_string().contains("at most 3"), "{refused}");
        let none = Sizes { layers: 0, ..sizes };
        assert!(kernels::generate::generate(&mut g, none, weights, draw, (&h, None), 1).is_err());
    }
}

#[test]
fn every_kernel_is_tested_here() {
    let tests: &[fn()] = &[
        || matmul_case(3, 5, 2),
        || Cell::ALL.iter().for_each(|&c| recurrence_backward(c, (2, (3, 2, 5)), (true, true))),
        last_step_and_reverse,
        resets,
        peephole_products,
        gru_that_resets_before_its_product,
        pack,
        dropout,
        class_losses,
        map,
        sum,
        matmul_batched,
        log_softmax,
        row_weights,
        weigh,
        accuracy,
        confusion,
        count_targets,
        record_loss,
        column_sum,
        gather_and_segment_sum,
        accumulate,
        squared_norm,
        adagrad_updates,
        adam_updates,
        sgd_updates,
        rms_prop_updates,
        clip,
        gate,
        add_micro_batch,
        moving_average,
        windows,
        sample,
        generate,
    ];
    tests.iter().for_each(|test| test());
    let tested = TESTED.lock().unwrap();
    for kernel in kernels::ALL {
        assert!(tested.contains(kernel.name), "{} has no test", kernel.name);
    }
}
