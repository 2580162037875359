//! Every gradient of the twins against central differences, in f64.

mod common;

use common::{assert_close, tokens, values};
use elman::nn::functional::{self, Direction, InitialState, Loss, Reduction, RunOptions, States};
use elman::nn::{
    Activation, Cell, CellForm, CharRnn, CharRnnOptions, Embedding, Form, Gru, Init, LanguageModel, Nonlinearity,
    Recurrent, Rnn, RnnOptions,
};
use elman::{Device, Graph, NO_TARGET, Result, Tensor, Var, rng};

/// Central differences of step 1e-5 in f64 leave about 1e-9.
const TOLERANCE: f64 = 1e-7;
const STEP: f64 = 1e-5;

/// What is differentiated: values, each weighted by fixed numbers, or a loss over so many counted rows.
enum Output {
    Values(Vec<Var>),
    Loss(Loss, Reduction, usize),
    /// Losses, each with its weight in their sum, and what the sum of its rows is divided by.
    Sum(Vec<(f64, Loss, f64)>),
}

struct Built {
    graph: Graph,
    vars: Vec<Var>,
    output: Output,
}

fn weights(seed: usize, n: usize) -> Vec<f32> {
    values(100 + seed as u32, n)
}

/// Compares the gradients of `leaves` (tensors that `build` uses through the vars it returns) with differences.
fn check(what: &str, leaves: &[Tensor], build: impl Fn(bool) -> Result<Built>) {
    // The objective alone, to be evaluated at moved leaves.
    let forward = build(false).unwrap();
    let mut graph = forward.graph;
    let mut results = Vec::new();
    if let Output::Values(outputs) = &forward.output {
        results = outputs.iter().map(|&var| graph.tensor(var).unwrap()).collect();
    }
    let plan = graph.finish().unwrap();
    let objective = || {
        plan.run().unwrap();
        match &forward.output {
            Output::Values(_) => results.iter().enumerate().fold(0.0, |sum, (i, tensor)| {
                let values = tensor.to_vec_f64().unwrap();
                let weights = weights(i, values.len());
                sum + values.iter().zip(weights).map(|(v, w)| v * f64::from(w)).sum::<f64>()
            }),
            Output::Loss(loss, reduction, counted) => {
                let sum: f64 = loss.rows().to_vec_f64().unwrap().iter().sum();
                if *reduction == Reduction::Mean { sum / *counted as f64 } else { sum }
            }
            Output::Sum(terms) => terms.iter().fold(0.0, |sum, (weight, loss, divisor)| {
                sum + weight / divisor * loss.rows().to_vec_f64().unwrap().iter().sum::<f64>()
            }),
        }
    };

    let mut full = build(true).unwrap();
    let seeds: Vec<_> = match &full.output {
        Output::Loss(..) | Output::Sum(..) => Vec::new(),
        Output::Values(outputs) => outputs
            .iter()
            .enumerate()
            .map(|(i, &var)| {
                let shape = full.graph.shape(var).to_vec();
                let weights = weights(i, shape.iter().product());
                (var, full.graph.device().upload("seed", &shape, &weights).unwrap())
            })
            .collect(),
    };
    let seeds: Vec<_> = seeds.iter().map(|(var, tensor)| (*var, tensor)).collect();
    let loss = match &full.output {
        Output::Loss(loss, ..) => Some(loss.clone()),
        Output::Sum(terms) => {
            terms.iter().map(|(weight, loss, _)| *weight * loss.clone()).reduce(|sum, loss| sum + loss)
        }
        Output::Values(_) => None,
    };
    full.graph.backward(&loss.iter().collect::<Vec<_>>(), &seeds).unwrap();
    let gradients: Vec<_> = full.vars.iter().map(|&var| full.graph.gradient(var).expect("a gradient")).collect();
    // Twice: what a run leaves behind must not reach the next.
    full.graph.finish().unwrap().run_times(2).unwrap();

    assert_eq!(leaves.len(), gradients.len());
    for (leaf, gradient) in leaves.iter().zip(gradients) {
        let start = leaf.to_vec_f64().unwrap();
        let mut differences = Vec::new();
        for i in 0..start.len() {
            let at = |by: f64| {
                let mut moved = start.clone();
                moved[i] += by;
                leaf.write_f64(&moved).unwrap();
                objective()
            };
            differences.push((at(STEP) - at(-STEP)) / (2.0 * STEP));
        }
        leaf.write_f64(&start).unwrap();
        let got = gradient.to_vec_f64().unwrap();
        assert_close(&format!("{what}: {leaf:?}"), &got, &differences, got.len(), TOLERANCE);
    }
}

/// Leaves of these shapes, and a graph of them.
fn check_leaves(what: &str, shapes: &[(&str, &[usize])], build: impl Fn(&mut Graph, &[Var]) -> Result<Output>) {
    let device = Device::reference();
    let leaf = |(i, (name, shape)): (usize, &(&str, &[usize]))| {
        device.upload(name, shape, &values(i as u32, shape.iter().product())).unwrap()
    };
    let leaves: Vec<_> = shapes.iter().enumerate().map(leaf).collect();
    check(what, &leaves, |differentiable| {
        let mut graph = Graph::without_parameters(&device);
        let var = |graph: &mut Graph, leaf: &Tensor| {
            if differentiable { graph.input_with_gradient(leaf) } else { graph.input(leaf) }
        };
        let vars = leaves.iter().map(|leaf| var(&mut graph, leaf)).collect::<Result<Vec<_>>>()?;
        let output = build(&mut graph, &vars)?;
        Ok(Built { graph, vars, output })
    });
}

#[test]
fn linear() {
    let shapes: &[(&str, &[usize])] = &[("x", &[2, 3, 4]), ("weight", &[5, 4]), ("bias", &[5])];
    check_leaves("linear", shapes, |g, v| Ok(Output::Values(vec![functional::linear(g, v[0], v[1], Some(v[2]))?])));
    check_leaves("linear without bias", &shapes[..2], |g, v| {
        Ok(Output::Values(vec![functional::linear(g, v[0], v[1], None)?]))
    });
}

#[test]
fn values_used_twice_add_up() {
    check_leaves("shared", &[("x", &[3, 4]), ("weight", &[4, 4])], |g, v| {
        let y = functional::linear(g, v[0], v[1], None)?;
        let z = functional::linear(g, y, v[1], None)?;
        let sum = functional::add(g, z, y)?;
        let twice = functional::add(g, sum, sum)?;
        Ok(Output::Values(vec![twice, y]))
    });
}

/// Of two values, of one with itself, and of one that has no gradient.
#[test]
fn mul() {
    check_leaves("mul", &[("x", &[3, 4]), ("y", &[3, 4])], |g, v| {
        let constant = g.device().upload("constant", &[3, 4], &values(3, 12))?;
        let constant = g.input(&constant)?;
        let product = functional::mul(g, v[0], v[1])?;
        let square = functional::mul(g, product, product)?;
        Ok(Output::Values(vec![square, functional::mul(g, v[1], constant)?]))
    });
}

#[test]
fn swap_axes() {
    check_leaves("swap_axes", &[("x", &[3, 4, 2])], |g, v| {
        let y = functional::transpose(g, v[0], 0, 1)?;
        Ok(Output::Values(vec![functional::add(g, y, y)?]))
    });
}

/// Values where they are known, and gradients by differences: entries repeated and left out, an axis that is new and one that repeats.
#[test]
fn permute_expand_and_index_select() {
    check_leaves("permute", &[("x", &[3, 4, 2])], |g, v| {
        let y = functional::permute(g, v[0], &[2, 0, 1])?;
        Ok(Output::Values(vec![functional::square(g, y)?]))
    });
    check_leaves("expand", &[("x", &[3, 1])], |g, v| {
        let y = functional::expand(g, v[0], &[2, 3, 4])?;
        Ok(Output::Values(vec![functional::square(g, y)?]))
    });
    for axis in [0, 1, -1] {
        check_leaves("index_select", &[("x", &[3, 4, 3])], |g, v| {
            let y = functional::index_select(g, v[0], axis, &[2, 0, 2])?;
            Ok(Output::Values(vec![functional::square(g, y)?]))
        });
    }
    let device = elman::Device::cpu();
    let mut g = elman::Graph::without_parameters(&device);
    let x = g.input(&device.upload("x", &[2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap()).unwrap();
    let permuted = functional::permute(&mut g, x, &[1, 0]).unwrap();
    let selected = functional::index_select(&mut g, x, 1, &[2, 0, 2]).unwrap();
    let row = functional::narrow(&mut g, x, 0, 1, 1).unwrap();
    let expanded = functional::expand(&mut g, row, &[2, 3]).unwrap();
    assert!(functional::permute(&mut g, x, &[0, 0]).is_err());
    assert!(functional::expand(&mut g, x, &[3, 3]).is_err());
    assert!(functional::index_select(&mut g, x, 1, &[3]).is_err());
    let tensors = [permuted, selected, expanded].map(|value| g.tensor(value).unwrap());
    g.finish().unwrap().run().unwrap();
    let want = [[0., 3., 1., 4., 2., 5.], [2., 0., 2., 5., 3., 5.], [3., 4., 5., 3., 4., 5.]];
    for (tensor, want) in tensors.iter().zip(want) {
        assert_eq!(tensor.to_vec().unwrap(), want);
    }
}

/// Looked up first (fewer rows than tokens), and multiplied first (more).
#[test]
fn embedding_and_projection() {
    for (rows, v) in [(3, 5), (11, 5)] {
        check_leaves("embedding", &[("table", &[v, 3]), ("weight", &[4, 3]), ("bias", &[4])], |g, vars| {
            let index = g.device().tokens("tokens", &[rows], v)?;
            index.write_u32(&tokens(7, rows, v))?;
            let x = functional::embedding(g, vars[0], &index)?;
            let y = functional::linear(g, x, vars[1], Some(vars[2]))?;
            Ok(Output::Values(vec![y, x]))
        });
    }
}

#[test]
fn recurrences() {
    for &cell in Cell::ALL {
        for (steps, batch, hidden) in [(1, 2, 3), (4, 3, 5), (3, 2, 8)] {
            let (width, state) = (cell.gates() * hidden, [1, batch, hidden]);
            let shapes: [(&str, &[usize]); 5] = [
                ("x", &[steps, batch, width]),
                ("weight", &[width, hidden]),
                ("h_0", &state),
                ("c_0", &state),
                ("bias", &[width]),
            ];
            let keep = match cell {
                Cell::Gru => vec![shapes[0], shapes[1], shapes[2], shapes[4]],
                Cell::Lstm => shapes[..4].to_vec(),
                _ => shapes[..3].to_vec(),
            };
            for bits in 0..8 {
                let [with_lengths, stepwise, with_resets] = [1, 2, 4].map(|bit| bits & bit != 0);
                check_leaves(&format!("{cell:?} {with_lengths} {stepwise} {with_resets}"), &keep, |g, v| {
                    g.set_stepwise(stepwise);
                    let marks: Vec<_> = (0..steps * batch).map(|i| u32::from(i % 4 == 2)).collect();
                    let resets = g.device().upload_u32("resets", &[steps, batch], &marks)?;
                    let lengths = g.device().lengths("lengths", batch, steps)?;
                    lengths.write_u32(&tokens(2, batch, steps).iter().map(|t| t + 1).collect::<Vec<_>>())?;
                    let c = (cell == Cell::Lstm).then(|| v[3]);
                    let bias = (cell == Cell::Gru).then(|| v[3]);
                    let start = Some(States { h: v[2], c });
                    let mut run = RunOptions::from(with_lengths.then_some(&lengths));
                    if with_resets {
                        run = run.resets(&resets);
                    }
                    let direction = Direction { bias, start, ..Direction::new(v[0], v[1]) };
                    let (output, end) = functional::recurrences(g, cell, &[direction], run)?[0];
                    Ok(Output::Values([Some(output), Some(end.h), end.c].into_iter().flatten().collect()))
                });
            }
            check_leaves(&format!("{cell:?}, last state alone"), &keep[..2], |g, v| {
                let (_, end) = functional::recurrence(g, cell, v[0], v[1], None, None, None)?;
                Ok(Output::Values(vec![end.h]))
            });
        }
    }
}

/// Every function of a gate, bound or not, peepholes and coupled gates, with lengths and resets.
#[test]
fn forms_of_cells() {
    let (steps, batch, hidden) = (4, 3, 5);
    let functions = [
        Activation::Affine { alpha: 0.5, beta: 0.1 },
        Activation::Relu,
        Activation::LeakyRelu { alpha: 0.2 },
        Activation::ThresholdedRelu { alpha: 0.1 },
        Activation::Tanh,
        Activation::ScaledTanh { alpha: 1.7, beta: 0.7 },
        Activation::Sigmoid,
        Activation::HardSigmoid { alpha: 0.7, beta: 0.4 },
        Activation::Elu { alpha: 0.6 },
        Activation::Softsign,
        Activation::Softplus,
    ];
    for (&cell, first) in Cell::ALL.iter().flat_map(|cell| (0..functions.len()).map(move |first| (cell, first))) {
        let own = Form::new(cell.kind().functions);
        let mut form = Form { activations: std::array::from_fn(|i| functions[(first + 3 * i) % 11]), ..own };
        form.clip = if first % 2 == 0 { 0.7 } else { form.clip };
        form.coupled = cell == Cell::Lstm && first % 3 == 0;
        let (width, state) = (cell.gates() * hidden, [1, batch, hidden]);
        let (x, weight, bias) = ([steps, batch, width], [width, hidden], [width]);
        let mut shapes: Vec<(&str, &[usize])> = vec![("x", &x), ("weight", &weight), ("h_0", &state)];
        match cell {
            Cell::Gru => shapes.push(("bias", &bias)),
            Cell::Lstm => shapes.extend([("c_0", &state[..]), ("peepholes", &[15])]),
            _ => {}
        }
        check_leaves(&format!("{cell:?} {form:?}"), &shapes, |g, v| {
            g.set_stepwise(first % 2 == 1);
            let lengths = g.device().lengths("lengths", batch, steps)?;
            lengths.write_u32(&[4, 2, 3])?;
            let marks: Vec<_> = (0..steps * batch).map(|i| u32::from(i % 4 == 2)).collect();
            let resets = g.device().upload_u32("resets", &[steps, batch], &marks)?;
            let run = RunOptions::from(Some(&lengths)).resets(&resets);
            let is_lstm = cell == Cell::Lstm;
            let direction = Direction {
                bias: (cell == Cell::Gru).then(|| v[3]),
                peepholes: is_lstm.then(|| v[4]),
                start: Some(States { h: v[2], c: is_lstm.then(|| v[3]) }),
                ..Direction::new(v[0], v[1])
            };
            let cell = CellForm { form: Some(form), ..cell.into() };
            let (output, end) = functional::recurrences(g, cell, &[direction], run)?[0];
            Ok(Output::Values([Some(output), Some(end.h), end.c].into_iter().flatten().collect()))
        });
    }
}

/// Reset before the product, as it is and of other functions.
#[test]
fn gru_that_resets_before_its_product() {
    let (steps, batch, hidden) = (4, 3, 5);
    let other = Form { clip: 0.8, activations: [Activation::Softplus; 5], ..Form::new(Cell::Gru.kind().functions) };
    let shapes: [(&str, &[usize]); 3] =
        [("x", &[steps, batch, 15]), ("weight", &[15, hidden]), ("h_0", &[1, batch, hidden])];
    for bits in 0..16 {
        let [with_lengths, stepwise, with_resets, with_form] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
        let what = format!("lengths {with_lengths}, stepwise {stepwise}, resets {with_resets}, form {with_form}");
        check_leaves(&what, &shapes, |g, v| {
            g.set_stepwise(stepwise);
            let lengths = g.device().lengths("lengths", batch, steps)?;
            lengths.write_u32(&[4, 2, 3])?;
            let marks: Vec<_> = (0..steps * batch).map(|i| u32::from(i % 4 == 2)).collect();
            let resets = g.device().upload_u32("resets", &[steps, batch], &marks)?;
            let mut run = RunOptions::from(with_lengths.then_some(&lengths));
            if with_resets {
                run = run.resets(&resets);
            }
            let direction = Direction { start: Some(v[2].into()), ..Direction::new(v[0], v[1]) };
            let cell = CellForm { form: with_form.then_some(other), reset_after: false, ..Cell::Gru.into() };
            let (output, end) = functional::recurrences(g, cell, &[direction], run)?[0];
            Ok(Output::Values(vec![output, end.h]))
        });
    }
}

/// Two directions of values of their own, of which one's output leads nowhere, or its last state.
#[test]
fn directions_side_by_side() {
    let (steps, batch, hidden) = (3, 2, 5);
    for cell in [Cell::Tanh, Cell::Gru, Cell::Lstm] {
        let (width, state) = (cell.gates() * hidden, [1, batch, hidden]);
        let of_one: [(&str, &[usize]); 4] =
            [("x", &[steps, batch, width]), ("weight", &[width, hidden]), ("h_0", &state), ("bias", &[width])];
        let of_one = match cell {
            Cell::Gru => of_one.to_vec(),
            Cell::Lstm => [&of_one[..3], &[("c_0", &state[..])]].concat(),
            _ => of_one[..3].to_vec(),
        };
        let both = [&of_one[..], &of_one].concat();
        for (with_lengths, stepwise) in [(false, false), (true, false), (false, true), (true, true)] {
            for ([first, second], state) in [([true, true], true), ([true, false], true), ([false, true], false)] {
                check_leaves(&format!("{cell:?} {with_lengths} {stepwise} {first} {second}"), &both, |g, v| {
                    g.set_stepwise(stepwise);
                    let lengths = g.device().lengths("lengths", batch, steps)?;
                    lengths.write_u32(&[1, 3])?;
                    let directions: Vec<_> = v
                        .chunks(of_one.len())
                        .map(|v| Direction {
                            bias: (cell == Cell::Gru).then(|| v[3]),
                            start: Some(States { h: v[2], c: (cell == Cell::Lstm).then(|| v[3]) }),
                            ..Direction::new(v[0], v[1])
                        })
                        .collect();
                    let lengths = with_lengths.then_some(&lengths);
                    let results = functional::recurrences(g, cell, &directions, lengths)?;
                    let [(y, end), (z, other)] = results[..] else { unreachable!() };
                    let outputs = [first.then_some(y), second.then_some(z), state.then_some(other.h)];
                    // A gradient for every leaf: each direction leads somewhere.
                    let outputs = outputs.into_iter().chain([(!first).then_some(end.h), end.c]);
                    Ok(Output::Values(outputs.flatten().collect()))
                });
            }
        }
    }
}

/// Stacked layers as a wavefront: outputs, all last states, and gradients of every parameter, the input and the states.
#[test]
fn stacked_layers() {
    let (steps, batch, layers) = (3, 2, 3);
    for (cell, bias, with_lengths) in
        [(Cell::Tanh, true, false), (Cell::Relu, false, true), (Cell::Gru, true, true), (Cell::Lstm, true, false)]
    {
        let device = Device::reference();
        let mut init = Init::new(rng::manual_seed(5));
        let mut options = RnnOptions::new(2, 5).num_layers(layers).bias(bias);
        if cell == Cell::Relu {
            options = options.nonlinearity(Nonlinearity::Relu);
        }
        let rnn = Recurrent::new(&mut init, "rnn", cell, options).unwrap();
        let parameters = init.upload(&device).unwrap();
        let mut draw = |name: &str, shape: &[usize]| {
            device.upload(name, shape, &init.rng.uniform(shape.iter().product(), -1.0, 1.0)).unwrap()
        };
        let inputs =
            [draw("x", &[steps, batch, 2]), draw("h_0", &[layers, batch, 5]), draw("c_0", &[layers, batch, 5])];
        let inputs = &inputs[..1 + cell.states()];
        let leaves: Vec<_> = parameters.iter().map(|(_, tensor)| tensor).chain(inputs.iter().cloned()).collect();
        check(&format!("{cell:?}, {bias}, {with_lengths}"), &leaves, |_| {
            let mut graph = Graph::new(&parameters);
            graph.set_wide(true);
            graph.set_stepwise(true);
            let given = inputs.iter().map(|tensor| graph.input_with_gradient(tensor)).collect::<Result<Vec<_>>>()?;
            let lengths = device.lengths("lengths", batch, steps)?;
            lengths.write_u32(&[1, 3])?;
            let initial = InitialState::Given(States { h: given[1], c: given.get(2).copied() });
            let (output, end) = match with_lengths {
                true => rnn.forward_with_lengths(&mut graph, given[0], initial, &lengths)?,
                false => rnn.forward(&mut graph, given[0], initial)?,
            };
            let mut vars = parameters.ids().map(|id| graph.parameter(id)).collect::<Result<Vec<_>>>()?;
            vars.extend(given);
            let outputs = [Some(output), Some(end.h), end.c].into_iter().flatten().collect();
            Ok(Built { graph, vars, output: Output::Values(outputs) })
        });
    }
}

/// Both directions read rows of one table: of its product with their weights, or of the table itself.
#[test]
fn directions_of_an_embedding() {
    for (vocabulary, batch_first) in [(5, false), (17, false), (5, true)] {
        let device = Device::reference();
        let mut init = Init::new(rng::manual_seed(3));
        let embedding = Embedding::new(&mut init, "embedding", vocabulary, 2).unwrap();
        let options = RnnOptions::new(2, 3).num_layers(2).bidirectional(true).batch_first(batch_first);
        let gru = Gru::new(&mut init, "gru", options).unwrap();
        let parameters = init.upload(&device).unwrap();
        let leaves: Vec<_> = parameters.iter().map(|(_, tensor)| tensor).collect();
        check(&format!("embedding of {vocabulary}, {batch_first}"), &leaves, |_| {
            let mut graph = Graph::new(&parameters);
            let tokens = device.tokens("tokens", &[4, 3], vocabulary)?;
            tokens.write_u32(&common::tokens(1, 12, vocabulary))?;
            let lengths =
                device.lengths("lengths", if batch_first { 4 } else { 3 }, if batch_first { 3 } else { 4 })?;
            lengths.write_u32(&[3, 1, 2, 3][..lengths.len()])?;
            let x = embedding.forward(&mut graph, &tokens)?;
            let out = gru.forward_with_lengths(&mut graph, x, InitialState::Zero, &lengths)?;
            let vars = parameters.ids().map(|id| graph.parameter(id)).collect::<Result<_>>()?;
            Ok(Built { graph, vars, output: Output::Values(vec![out.output, out.h_n]) })
        });
    }
}

#[test]
fn shapes_of_values() {
    check_leaves("narrow, concat, reshape", &[("x", &[4, 3, 2]), ("y", &[2, 3, 2])], |g, v| {
        let part = functional::narrow(g, v[0], 0, 1, 2)?;
        let side = functional::concat(g, &[part, v[1], part], -1)?;
        let tall = functional::concat(g, &[v[0], v[1], part], 0)?;
        let flat = functional::reshape(g, side, &[6, 6])?;
        Ok(Output::Values(vec![side, tall, flat]))
    });
    check_leaves("reverse", &[("x", &[4, 3, 2])], |g, v| {
        let lengths = g.device().lengths("lengths", 3, 4)?;
        lengths.write_u32(&[4, 1, 3])?;
        let y = functional::reverse(g, v[0], &lengths)?;
        Ok(Output::Values(vec![y, v[0]]))
    });
}

/// The gradient of dropout, drawn alike in the forward and the backward pass.
#[test]
fn dropout() {
    check_leaves("dropout", &[("x", &[5, 7])], |g, v| {
        // The objective, too, must drop: it is a training graph without parameters.
        Ok(Output::Values(vec![functional::dropout(g, v[0], 0.4, 9)?]))
    });
    for axis in [0, 1, -1] {
        check_leaves("locked dropout", &[("x", &[5, 3, 7])], |g, v| {
            Ok(Output::Values(vec![functional::locked_dropout(g, v[0], axis, 0.4, 9)?]))
        });
    }
}

#[test]
fn cross_entropy() {
    for reduction in [Reduction::Mean, Reduction::Sum] {
        check_leaves("cross_entropy", &[("logits", &[4, 5])], |g, v| {
            let targets = g.device().targets("targets", &[4], 5)?;
            targets.write_u32(&[3, 0, NO_TARGET, 4])?;
            let loss = functional::cross_entropy(g, v[0], &targets, reduction)?;
            Ok(Output::Loss(loss, reduction, 3))
        });
    }
}

#[test]
fn losses() {
    for reduction in [Reduction::Mean, Reduction::Sum] {
        check_leaves("nll of log-softmax, class 2 ignored", &[("x", &[4, 5])], |g, v| {
            let targets = g.device().targets("targets", &[4], 5)?;
            targets.write_u32(&[3, 2, NO_TARGET, 4])?;
            let x = functional::log_softmax(g, v[0])?;
            let loss = functional::nll_loss(g, x, &targets, reduction.ignoring(2))?;
            Ok(Output::Loss(loss, reduction, 2))
        });
        type ElementLoss = fn(&mut Graph, Var, &Tensor, Reduction) -> Result<Loss>;
        let kinds: [ElementLoss; 5] = [
            functional::mse_loss,
            functional::binary_cross_entropy_with_logits,
            |g, x, y, reduction| functional::huber_loss(g, x, y, 0.5, reduction),
            |g, x, y, reduction| functional::smooth_l1_loss(g, x, y, 0.5, reduction),
            |g, x, y, reduction| {
                let y = g.device().upload("targets", &[3], &y.to_vec()?[..3])?;
                functional::quantile_loss(g, x, &y, &[0.1, 0.3, 0.5, 0.75], reduction)
            },
        ];
        for kind in kinds {
            check_leaves("element loss", &[("x", &[3, 4])], |g, v| {
                let targets = g.device().upload("targets", &[3, 4], &rng::manual_seed(1).rand(12))?;
                Ok(Output::Loss(kind(g, v[0], &targets, reduction)?, reduction, 12))
            });
        }
        for variance in [&[3, 4][..], &[3], &[3, 1]] {
            check_leaves("normal distribution", &[("x", &[3, 4]), ("v", variance)], |g, v| {
                let targets = g.device().upload("targets", &[3, 4], &rng::manual_seed(1).rand(12))?;
                let variance = functional::softplus(g, v[1])?;
                let loss = functional::gaussian_nll_loss(g, v[0], &targets, variance, true, 1e-6, reduction)?;
                Ok(Output::Loss(loss, reduction, 12))
            });
        }
        let class_weights = [0.5f32, 2.0, 0.0, 1.5, 3.0];
        for (smoothing, has_weights) in [(0.25, false), (0.25, true), (0.0, true), (1.0, true)] {
            check_leaves("smooth and weighted classes", &[("logits", &[4, 5])], |g, v| {
                let targets = g.device().targets("targets", &[4], 5)?;
                targets.write_u32(&[3, 1, NO_TARGET, 0])?;
                let weights = g.device().upload("class weights", &[5], &class_weights)?;
                let mut options = reduction.label_smoothing(smoothing);
                if has_weights {
                    options = options.class_weights(&weights);
                }
                let divisor = match (reduction, has_weights) {
                    (Reduction::Sum, _) => 1.0,
                    (_, true) => 4.0,
                    (_, false) => 3.0,
                };
                let loss = functional::cross_entropy(g, v[0], &targets, options)?;
                Ok(Output::Sum(vec![(1.0, loss, divisor)]))
            });
        }
    }
}

/// Weighted sums of losses whose rows are weighted: of values of their own, of one value, and of one loss twice.
#[test]
fn sums_of_losses() {
    // The weights of rows, and their sum.
    let (w, sum) = ([0.5f32, 0.0, 2.0, 1.5], 4.0);
    for mean in [true, false] {
        let (reduction, over) = if mean { (Reduction::Mean, sum) } else { (Reduction::Sum, 1.0) };
        check_leaves(&format!("sum of losses, {mean}"), &[("x", &[4, 3]), ("weight", &[5, 3])], |g, v| {
            let weights = g.device().upload("weights", &[4], &w)?;
            let targets = g.device().targets("targets", &[4], 5)?;
            targets.write_u32(&[3, 2, 0, 4])?;
            let y = g.device().upload("y", &[4, 3], &rng::manual_seed(1).rand(12))?;
            let logits = functional::linear(g, v[0], v[1], None)?;
            let square = functional::mul(g, v[1], v[1])?;
            let of = |rows: f64| if mean { rows } else { 1.0 };
            let main = functional::cross_entropy(g, logits, &targets, reduction.weighted(&weights))?;
            let error = functional::absolute_error(g, v[0], &y, reduction.weighted(&weights))?;
            let unweighted = functional::mse_loss(g, v[0], &y, reduction)?;
            let size = functional::reduce(g, square, reduction)?;
            let of_x = functional::reduce(g, v[0], reduction.weighted(&weights))?;
            Ok(Output::Sum(vec![
                (1.0, main.clone(), over),
                (0.3, error, of(3.0 * sum)),
                (-2.0, unweighted, of(12.0)),
                (0.5, size, of(15.0)),
                (0.7, of_x, of(3.0 * sum)),
                (1.5, main, over),
            ]))
        });
    }
}

#[test]
fn activations() {
    check_leaves("activations", &[("x", &[3, 4])], |g, v| {
        let (a, b) = (functional::relu(g, v[0])?, functional::tanh(g, v[0])?);
        let c = functional::sigmoid(g, b)?;
        let d = functional::log_softmax(g, v[0])?;
        Ok(Output::Values(vec![a, c, d]))
    });
    // Of a table in place of its rows, and of rows.
    for (rows, v) in [(3, 5), (11, 5)] {
        check_leaves("activated rows", &[("table", &[v, 3])], |g, vars| {
            let index = g.device().tokens("tokens", &[rows], v)?;
            index.write_u32(&tokens(7, rows, v))?;
            let x = functional::embedding(g, vars[0], &index)?;
            Ok(Output::Values(vec![functional::tanh(g, x)?]))
        });
    }
}

/// A loop over the steps of a sequence, some of which lead nowhere.
#[test]
fn steps_of_a_sequence() {
    check_leaves("unbind, select, last", &[("x", &[4, 3, 2]), ("weight", &[2, 2])], |g, v| {
        let steps = functional::unbind(g, v[0])?;
        let mut h = steps[0];
        for &x in &steps[2..] {
            let sum = functional::add(g, x, h)?;
            h = functional::linear(g, sum, v[1], None)?;
        }
        let (third, last) = (functional::select(g, v[0], 0, 2)?, functional::last(g, v[0])?);
        Ok(Output::Values(vec![h, third, last, v[0]]))
    });
}

/// Nothing flows back through a detached value; it flows around it.
#[test]
fn detach() {
    let device = Device::reference();
    let x = device.upload("x", &[3], &[1.0, 2.0, 3.0]).unwrap();
    let mut g = Graph::without_parameters(&device);
    let v = g.input_with_gradient(&x).unwrap();
    let cut = functional::detach(&mut g, v).unwrap();
    let y = functional::add(&mut g, v, cut).unwrap();
    let seed = device.upload("seed", &[3], &[1.0, 10.0, 100.0]).unwrap();
    g.backward(&[], &[(y, &seed)]).unwrap();
    let (y, dx) = (g.tensor(y).unwrap(), g.gradient(v).unwrap());
    g.finish().unwrap().run().unwrap();
    assert_eq!(y.to_vec().unwrap(), [2.0, 4.0, 6.0]);
    assert_eq!(dx.to_vec().unwrap(), [1.0, 10.0, 100.0]);
}

/// The whole recurrent module, both layouts, with and without biases.
#[test]
fn rnn_module() {
    for (batch_first, bias) in [(false, true), (true, true), (true, false)] {
        let device = Device::reference();
        let mut init = Init::new(rng::manual_seed(3));
        let options = RnnOptions::new(3, 5).bias(bias).batch_first(batch_first);
        let rnn = Rnn::new(&mut init, "rnn", options).unwrap();
        let parameters = init.upload(&device).unwrap();
        let x = device.upload("x", &[2, 4, 3], &values(1, 24)).unwrap();
        let batch = if batch_first { 2 } else { 4 };
        let h_0 = device.upload("h_0", &[1, batch, 5], &values(2, batch * 5)).unwrap();
        let mut leaves = vec![x.clone(), h_0.clone()];
        leaves.extend(parameters.iter().map(|(_, tensor)| tensor));
        check(&format!("rnn {batch_first} {bias}"), &leaves, |_| {
            let mut graph = Graph::new(&parameters);
            let mut vars = vec![graph.input_with_gradient(&x)?, graph.input_with_gradient(&h_0)?];
            let out = rnn.forward(&mut graph, vars[0], InitialState::Given(vars[1].into()))?;
            vars.extend(parameters.ids().map(|id| graph.parameter(id).unwrap()));
            Ok(Built { graph, vars, output: Output::Values(vec![out.output, out.h_n]) })
        });
    }
}

/// The network of the main job, with its loss.
#[test]
fn char_rnn() {
    let device = Device::reference();
    let mut init = Init::new(rng::manual_seed(5));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(7, 3, 6)).unwrap();
    let parameters = init.upload(&device).unwrap();
    let leaves: Vec<_> = parameters.iter().map(|(_, tensor)| tensor).collect();
    check("char_rnn", &leaves, |_| {
        let mut graph = Graph::new(&parameters);
        let tokens = device.tokens("tokens", &[4, 5], 7)?;
        tokens.write_u32(&common::tokens(1, 20, 7))?;
        let targets = device.targets("targets", &[5], 7)?;
        targets.write_u32(&[1, 6, NO_TARGET, 0, 2])?;
        let logits = model.forward(&mut graph, &tokens, InitialState::Zero)?;
        let loss = functional::cross_entropy(&mut graph, logits, &targets, Reduction::Mean)?;
        let vars = parameters.ids().map(|id| graph.parameter(id)).collect::<Result<_>>()?;
        Ok(Built { graph, vars, output: Output::Loss(loss, Reduction::Mean, 4) })
    });
}

/// The check itself fails on a wrong gradient: here, that of a network with one term left out of the objective.
#[test]
#[should_panic(expected = "wrong")]
fn a_wrong_gradient_is_found() {
    check_leaves("planted", &[("x", &[3, 4])], |g, v| {
        let differentiable = g.is_differentiable(v[0]);
        let y = functional::add(g, v[0], v[0])?;
        // The differentiated graph has a term that the objective lacks.
        let y = if differentiable { functional::add(g, y, v[0])? } else { y };
        Ok(Output::Values(vec![y]))
    });
}
