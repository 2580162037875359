//! ONNX's RNN, GRU and LSTM: their gates in PyTorch's order, and all they may say, for the kernels of all steps at once.

use super::array::Array;
use super::file::{Node, Result};
use super::operators::Inputs;
use super::value::{Machine, Value, said};
use super::write;
use crate::error::Error;
use crate::graph::{Graph, Var};
use crate::kernels::cell::{Cell, CellForm};
use crate::kernels::sequence::{Activation, Form, MOST_FUNCTIONS};
use crate::nn::Recurrent;
use crate::nn::functional::{self as f, Direction, States};
use crate::tensor::Tensor;
use rten_onnx::onnx::AttributeProto;

/// What a kind of node is here.
struct Kind {
    cell: Cell,
    /// Where each of PyTorch's gates is in ONNX's order.
    gates: &'static [usize],
    /// Which of the node's functions each of the cell's is.
    functions: &'static [usize],
    /// The functions that a node has if it names none.
    default: &'static [&'static str],
}

/// PyTorch's `i f g o` of ONNX's `i o f c`, `r z n` of `z r h`.
fn kind(op: &str) -> Kind {
    match op {
        "LSTM" => Kind {
            cell: Cell::Lstm,
            gates: &[0, 2, 3, 1],
            functions: &[0, 0, 1, 0, 2],
            default: &["Sigmoid", "Tanh", "Tanh"],
        },
        "GRU" => Kind { cell: Cell::Gru, gates: &[1, 0, 2], functions: &[0, 0, 1], default: &["Sigmoid", "Tanh"] },
        _ => Kind { cell: Cell::Tanh, gates: &[0], functions: &[0], default: &["Tanh"] },
    }
}

/// Where each of PyTorch's gates is in ONNX's order.
pub(super) fn gates(cell: Cell) -> &'static [usize] {
    kind(match cell {
        Cell::Lstm => "LSTM",
        Cell::Gru => "GRU",
        Cell::Tanh | Cell::Relu => "RNN",
    })
    .gates
}

/// What a node says of a module's layer.
///
/// # Errors
/// Gates that ONNX gives one function have several.
pub(super) fn layer_attributes(module: &Recurrent, directions: usize) -> crate::error::Result<Vec<AttributeProto>> {
    let (cell, options) = (module.cell(), module.options());
    let mut attributes = vec![write::int("hidden_size", options.hidden_size as i64)];
    if directions == 2 {
        attributes.push(write::text("direction", "bidirectional"));
    }
    if cell == Cell::Gru {
        attributes.push(write::int("linear_before_reset", i64::from(options.reset_after)));
    }
    let form = options.form(cell);
    let functions = form.form.unwrap_or_else(|| Form::new(cell.kind().functions)).activations;
    if form.form.is_some() || cell == Cell::Relu {
        // The cell's functions in the node's order: of several that are one of the node's, the first.
        let kind = kind(match cell {
            Cell::Lstm => "LSTM",
            Cell::Gru => "GRU",
            Cell::Tanh | Cell::Relu => "RNN",
        });
        let first = |i: usize| kind.functions.iter().position(|&function| function == i).unwrap_or(0);
        if let Some(odd) = (0..kind.functions.len()).find(|&at| functions[at] != functions[first(kind.functions[at])]) {
            let expected = "one function for all gates but the candidate, for ONNX has no others";
            return Err(Error::argument("onnx", "activations", expected, format!("{:?} among them", functions[odd])));
        }
        let of_node = |i: usize| functions[first(i)];
        let named: Vec<_> =
            (0..kind.default.len()).map(of_node).cycle().take(directions * kind.default.len()).collect();
        let (mut names, mut alphas, mut betas) = (Vec::new(), Vec::new(), Vec::new());
        for function in named {
            let (name, alpha, beta) = match function {
                Activation::Affine { alpha, beta } => ("Affine", Some(alpha), Some(beta)),
                Activation::Relu => ("Relu", None, None),
                Activation::LeakyRelu { alpha } => ("LeakyRelu", Some(alpha), None),
                Activation::ThresholdedRelu { alpha } => ("ThresholdedRelu", Some(alpha), None),
                Activation::Tanh => ("Tanh", None, None),
                Activation::ScaledTanh { alpha, beta } => ("ScaledTanh", Some(alpha), Some(beta)),
                Activation::Sigmoid => ("Sigmoid", None, None),
                Activation::HardSigmoid { alpha, beta } => ("HardSigmoid", Some(alpha), Some(beta)),
                Activation::Elu { alpha } => ("Elu", Some(alpha), None),
                Activation::Softsign => ("Softsign", None, None),
                Activation::Softplus => ("Softplus", None, None),
            };
            names.push(name.to_owned());
            alphas.extend(alpha);
            betas.extend(beta);
        }
        attributes.push(write::texts("activations", names));
        if !alphas.is_empty() {
            attributes.push(write::floats("activation_alpha", alphas));
        }
        if !betas.is_empty() {
            attributes.push(write::floats("activation_beta", betas));
        }
    }
    if let Some(clip) = options.clip {
        attributes.push(write::float("clip", clip));
    }
    if options.coupled {
        attributes.push(write::int("input_forget", 1));
    }
    Ok(attributes)
}

/// Which way each direction goes: whether from the last step.
fn directions(node: &Node) -> Result<&'static [bool]> {
    match node.text("direction", "forward")? {
        "forward" => Ok(&[false]),
        "reverse" => Ok(&[true]),
        "bidirectional" => Ok(&[false, true]),
        other => Err(format!("the direction `{other}`")),
    }
}

/// The functions of each direction, in the order of the cell's.
fn functions(node: &Node) -> Result<Vec<Vec<Activation>>> {
    let Kind { functions, default, .. } = kind(&node.op);
    let count = directions(node)?.len();
    let names: Vec<&str> = match node.texts("activations")? {
        [] => default.repeat(count),
        given => given.iter().map(String::as_str).collect(),
    };
    if names.len() != count * default.len() {
        return Err(format!("{} activations, where {count} directions have {} each", names.len(), default.len()));
    }
    // Numbers are given to those functions that take any, one after the other.
    let mut alphas = node.floats("activation_alpha")?.iter().copied();
    let mut betas = node.floats("activation_beta")?.iter().copied();
    let mut activations = Vec::new();
    for name in names {
        let mut alpha = |default: f32| alphas.next().unwrap_or(default);
        let mut beta = |default: f32| betas.next().unwrap_or(default);
        activations.push(match name.to_lowercase().as_str() {
            "affine" => Activation::Affine { alpha: alpha(1.0), beta: beta(0.0) },
            "relu" => Activation::Relu,
            "leakyrelu" => Activation::LeakyRelu { alpha: alpha(0.01) },
            "thresholdedrelu" => Activation::ThresholdedRelu { alpha: alpha(1.0) },
            "tanh" => Activation::Tanh,
            "scaledtanh" => Activation::ScaledTanh { alpha: alpha(1.0), beta: beta(1.0) },
            "sigmoid" => Activation::Sigmoid,
            "hardsigmoid" => Activation::HardSigmoid { alpha: alpha(0.2), beta: beta(0.5) },
            "elu" => Activation::Elu { alpha: alpha(1.0) },
            "softsign" => Activation::Softsign,
            "softplus" => Activation::Softplus,
            _ => return Err(format!("the activation `{name}`")),
        });
    }
    let of_each = activations.chunks(default.len());
    Ok(of_each.map(|of_one| functions.iter().map(|&function| of_one[function]).collect()).collect())
}

/// What of a node is not understood.
pub(super) fn problems(node: &Node) -> Vec<String> {
    let (op, name) = (&node.op, &node.name);
    let problems = [directions(node).err(), functions(node).err()];
    problems.into_iter().flatten().map(|problem| format!("{problem} of `{op}` at `{name}`")).collect()
}

/// A matrix or a row of each direction, with the gates' blocks in PyTorch's order: `[D, G H, ..]` to `[G H, ..]` for each.
fn of_directions(m: &mut Machine<'_>, value: &Value, gates: &[usize], count: usize) -> Result<Vec<Value>> {
    let shape = value.shape();
    let (&[d, rows], rest) =
        shape.split_first_chunk::<2>().ok_or_else(|| format!("a weight of the shape {shape:?}"))?;
    if d != count || !rows.is_multiple_of(gates.len()) || rows == 0 {
        return Err(format!("a weight {shape:?}, where {count} directions of {} blocks of rows belong", gates.len()));
    }
    let size = rows / gates.len();
    let order: Vec<_> = gates.iter().flat_map(|gate| gate * size..(gate + 1) * size).collect();
    let of_each = (0..d).map(|d| {
        let one = value.slice(m, 0, super::array::Part { start: d, length: 1, step: 1 })?;
        let one = one.reshape(m, &[&[rows], rest].concat())?;
        if gates.is_sorted() { Ok(one) } else { one.select(m, 0, &order) }
    });
    of_each.collect()
}

/// The weights of one direction, PyTorch's.
pub(super) struct Weights {
    /// With the names that PyTorch has for them, without layer and direction.
    pub named: Vec<(&'static str, Value)>,
}

/// The weights of a node, by direction.
pub(super) fn weights(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Weights>> {
    let Kind { gates, .. } = kind(&node.op);
    let count = directions(node)?.len();
    let mut all: Vec<Weights> = (0..count).map(|_| Weights { named: Vec::new() }).collect();
    let mut add = |name: &'static str, values: Vec<Value>| {
        all.iter_mut().zip(values).for_each(|(weights, value)| weights.named.push((name, value)));
    };
    add("weight_ih", of_directions(m, inputs.get(1)?, gates, count)?);
    add("weight_hh", of_directions(m, inputs.get(2)?, gates, count)?);
    if let Some(biases) = inputs.optional(3) {
        let both: Vec<_> = gates.iter().copied().chain(gates.iter().map(|gate| gates.len() + gate)).collect();
        let biases = of_directions(m, biases, &both, count)?;
        for (half, name) in ["bias_ih", "bias_hh"].into_iter().enumerate() {
            let halves = biases.iter().map(|bias| {
                let length = bias.shape()[0] / 2;
                bias.slice(m, 0, super::array::Part { start: half * length, length, step: 1 })
            });
            add(name, halves.collect::<Result<_>>()?);
        }
    }
    if let Some(peepholes) = inputs.optional(7) {
        // `i f o` of `i o f`.
        add("weight_ph", of_directions(m, peepholes, &[0, 2, 1], count)?);
    }
    Ok(all)
}

/// Records a node.
pub(super) fn run(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let weights = weights(m, node, inputs)?;
    run_with(m, node, inputs, &weights)
}

/// Records a node of these weights.
pub(super) fn run_with(
    m: &mut Machine<'_>,
    node: &Node,
    inputs: &Inputs<'_>,
    weights: &[Weights],
) -> Result<Vec<Value>> {
    let Kind { cell, .. } = kind(&node.op);
    let ways = directions(node)?;
    let is_batch_first = node.int("layout", 0)? == 1;
    let x = inputs.get(0)?;
    if x.shape().len() != 3 {
        return Err(format!("its input has the shape {:?}, not [T, B, I]", x.shape()));
    }
    let x = if is_batch_first { x.permute(m, &[1, 0, 2])? } else { x.clone() };
    let &[steps, batch, _] = &x.shape()[..] else { return Err("its input has three axes".into()) };
    let lengths = lengths(m, inputs, steps, batch)?;
    let all_steps = match (&lengths, ways.contains(&true)) {
        (None, true) => Some(m.graph()?.device().lengths("all steps", batch, steps).map_err(said)?),
        _ => None,
    };
    let reversal = lengths.as_ref().or(all_steps.as_ref());
    let states = [initial(m, inputs, 5, is_batch_first)?, initial(m, inputs, 6, is_batch_first)?];
    let x = x.var(m)?;
    let forms = forms(node)?;
    let mut recorded = Vec::new();
    for (d, (&is_reversed, weights)) in ways.iter().zip(weights).enumerate() {
        let mut vars = Vec::new();
        for (name, value) in &weights.named {
            vars.push((*name, value.var(m)?));
        }
        let get = |name: &str| vars.iter().find(|(other, _)| *other == name).map(|&(_, var)| var);
        let g = m.graph()?;
        let hidden = get("weight_hh").map_or(0, |weight| g.shape(weight).last().copied().unwrap_or(0));
        let mut start = |state: &Option<Value>, size: usize| match state {
            None => Ok(None),
            Some(state) if state.shape() != [ways.len(), batch, size] => {
                Err(format!("an initial state {:?}, where [{}, {batch}, {size}] belongs", state.shape(), ways.len()))
            }
            Some(Value::Device(var, _)) => f::narrow(g, *var, 0, d, 1).map(Some).map_err(said),
            Some(_) => Err("an initial state of whole numbers".into()),
        };
        let (h, c) = (start(&states[0], hidden)?, start(&states[1], hidden)?);
        let mut zero = || {
            let zeros = g.zeros("no state", &[1, batch, hidden]).map_err(said)?;
            g.input(&zeros).map_err(said)
        };
        let start = match (h, c) {
            (None, None) => None,
            (h, c) if cell == Cell::Lstm => {
                let (h, c) = (h.map_or_else(&mut zero, Ok)?, c.map_or_else(&mut zero, Ok)?);
                Some(States { h, c: Some(c) })
            }
            (h, _) => h.map(States::from),
        };
        let direction = direction(g, forms[d], x, &get, reversal.filter(|_| is_reversed), start).map_err(said)?;
        recorded.push(direction);
    }
    // Side by side where they are of one form.
    let is_of_one_form = forms.windows(2).all(|pair| pair[0] == pair[1]);
    let mut results = Vec::new();
    let together = if is_of_one_form { recorded.len() } else { 1 };
    let g = m.graph()?;
    for (directions, forms) in recorded.chunks(together).zip(forms.chunks(together)) {
        results.extend(f::recurrences(g, forms[0], directions, lengths.as_ref()).map_err(said)?);
    }
    outputs(m, results, ways, reversal, [steps, batch], is_batch_first)
}

/// The cell of each direction.
fn forms(node: &Node) -> Result<Vec<CellForm>> {
    let Kind { cell, .. } = kind(&node.op);
    let clip = node.float("clip", f32::INFINITY)?;
    if clip.is_nan() || clip <= 0.0 {
        return Err(format!("a `clip` of {clip}"));
    }
    let is_coupled = node.int("input_forget", 0)? == 1;
    let reset_after = node.op != "GRU" || node.int("linear_before_reset", 0)? == 1;
    let forms = functions(node)?.into_iter().map(|functions| {
        let own = Form::new(cell.kind().functions);
        let mut activations = own.activations;
        activations[..functions.len().min(MOST_FUNCTIONS)].copy_from_slice(&functions);
        let form = Form { activations, clip, coupled: is_coupled };
        match (node.op.as_str(), &functions[..]) {
            ("RNN", [Activation::Relu]) if clip.is_infinite() => CellForm { cell: Cell::Relu, form: None, reset_after },
            _ => CellForm { cell, form: (form != own || node.input(7).is_some()).then_some(form), reset_after },
        }
    });
    Ok(forms.collect())
}

/// What goes into the recurrence of a direction: the product with the input, of all steps at once.
fn direction(
    g: &mut Graph,
    form: CellForm,
    x: Var,
    get: &dyn Fn(&str) -> Option<Var>,
    reversal: Option<&Tensor>,
    start: Option<States>,
) -> crate::error::Result<Direction> {
    let x = reversal.map_or(Ok(x), |lengths| f::reverse_input(g, x, lengths))?;
    let (weight_ih, weight_hh) = (get("weight_ih"), get("weight_hh"));
    let (weight_ih, weight_hh) = weight_ih.zip(weight_hh).expect("`weights` has both");
    let biases: Vec<_> = [get("bias_ih"), get("bias_hh")].into_iter().flatten().collect();
    let (below, bias) = match (form.kind().separate_bias, &biases[..]) {
        (true, &[below, beside]) => (vec![below], Some(beside)),
        _ => (biases, None),
    };
    let x = f::linear_with_biases(g, x, weight_ih, &below, None)?;
    Ok(Direction {
        bias,
        peepholes: get("weight_ph"),
        start,
        reversed: reversal.is_some(),
        ..Direction::new(x, weight_hh)
    })
}

/// The lengths of the sequences, if they differ from all steps.
fn lengths(m: &mut Machine<'_>, inputs: &Inputs<'_>, steps: usize, batch: usize) -> Result<Option<Tensor>> {
    match inputs.optional(4) {
        None => Ok(None),
        Some(Value::Indices { tensor, plus: 0, .. }) if tensor.shape() == [batch] => Ok(Some(tensor.clone())),
        Some(Value::Host(array, _)) => {
            let lengths = array.wholes()?;
            if lengths.len() != batch {
                return Err(format!("{} lengths of {batch} sequences", lengths.len()));
            }
            if lengths.iter().all(|&length| length == steps as i64) {
                return Ok(None);
            }
            let lengths = lengths.into_iter().map(|length| u32::try_from(length).unwrap_or(0)).collect::<Vec<_>>();
            let tensor = m.graph()?.device().lengths("lengths", batch, steps).map_err(said)?;
            tensor.write_u32(&lengths).map_err(said)?;
            Ok(Some(tensor))
        }
        Some(other) => Err(format!("its lengths must be whole numbers [{batch}], not {:?}", other.shape())),
    }
}

/// An incoming state `[D, B, H]`; None if there is none, or it is 0.
fn initial(m: &mut Machine<'_>, inputs: &Inputs<'_>, i: usize, is_batch_first: bool) -> Result<Option<Value>> {
    let Some(state) = inputs.optional(i) else { return Ok(None) };
    if let Some(Array::Real(values)) = state.constant()
        && values.iter().all(|&value| value == 0.0)
    {
        return Ok(None);
    }
    if state.shape().len() != 3 {
        return Err(format!("an initial state of the shape {:?}", state.shape()));
    }
    let state = if is_batch_first { state.permute(m, &[1, 0, 2])? } else { state.clone() };
    Ok(Some(Value::Device(state.var(m)?, state.shape())))
}

/// ONNX's outputs, `Y` `[T, D, B, H]`, `Y_h` and `Y_c` `[D, B, H]`.
fn outputs(
    m: &mut Machine<'_>,
    results: Vec<(Var, States)>,
    ways: &[bool],
    reversal: Option<&Tensor>,
    [steps, batch]: [usize; 2],
    is_batch_first: bool,
) -> Result<Vec<Value>> {
    let g = m.graph()?;
    let mut sequences = Vec::new();
    let (mut hs, mut cs) = (Vec::new(), Vec::new());
    for ((output, end), &is_reversed) in results.into_iter().zip(ways) {
        let output = match reversal.filter(|_| is_reversed) {
            None => output,
            Some(lengths) => f::reverse(g, output, lengths).map_err(said)?,
        };
        let hidden = g.shape(output)[2];
        sequences.push(f::reshape(g, output, &[steps, 1, batch, hidden]).map_err(said)?);
        hs.push(end.h);
        cs.extend(end.c);
    }
    let y = f::concat(g, &sequences, 1).map_err(said)?;
    let mut all = vec![Value::made(g, y)];
    for states in [hs, cs].into_iter().filter(|states| !states.is_empty()) {
        let states = f::concat(g, &states, 0).map_err(said)?;
        all.push(Value::made(g, states));
    }
    if is_batch_first {
        all[0] = all[0].permute(m, &[2, 0, 1, 3])?;
        for state in &mut all[1..] {
            *state = state.permute(m, &[1, 0, 2])?;
        }
    }
    Ok(all)
}
