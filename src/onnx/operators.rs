//! The operators that are read: what each may say, which of its inputs are parameters, and what it does.

use super::array::{Array, Part, broadcast, len_of, len_to_make};
use super::file::{Attribute, Node, Result};
use super::value::{Machine, Value, said};
use crate::map::{Expr, Program};
use crate::nn::functional::{self as f, Conv1dOptions};

/// What is known of an operator.
pub(super) struct Operator {
    pub name: &'static str,
    /// The attributes that are understood.
    attributes: &'static [&'static str],
    /// The inputs that are parameters, where they are constants of numbers.
    pub weights: &'static [usize],
    run: fn(&mut Machine<'_>, &Node, &Inputs<'_>) -> Result<Vec<Value>>,
}

/// What a node is given.
pub(super) struct Inputs<'a>(pub &'a [Option<Value>]);

impl Inputs<'_> {
    pub fn optional(&self, i: usize) -> Option<&Value> {
        self.0.get(i).and_then(Option::as_ref)
    }

    pub fn get(&self, i: usize) -> Result<&Value> {
        self.optional(i).ok_or_else(|| format!("its input {i} is missing"))
    }

    pub fn array(&self, i: usize) -> Result<Option<&Array>> {
        self.optional(i).map(Value::array).transpose()
    }
}

macro_rules! operators {
    ($($name:ident [$($attribute:ident),*] [$($weight:literal),*] $run:expr;)*) => {
        const OPERATORS: &[Operator] = &[$(Operator {
            name: stringify!($name),
            attributes: &[$(stringify!($attribute)),*],
            weights: &[$($weight),*],
            run: $run,
        }),*];
    };
}

operators! {
    Constant [value, value_float, value_floats, value_int, value_ints] [] |_, node, _| constant(node);
    ConstantOfShape [value] [] |_, node, inputs| constant_of_shape(node, inputs);
    Shape [start, end] [] |_, node, inputs| shape(node, inputs);
    Size [] [] |_, _, inputs| Ok(vec![Value::host(scalar(len_of(&inputs.get(0)?.shape())? as i64))]);
    Range [] [] |_, _, inputs| range(inputs);
    Identity [] [] |_, _, inputs| Ok(vec![inputs.get(0)?.clone()]);
    // What runs graphs of its own is the model's to run (`Model::run_node`).
    Loop [body] [] |_, _, _| Err("it is computed in a plan".into());
    If [then_branch, else_branch] [] |_, _, _| Err("it is computed in a plan".into());
    // A graph that is read computes what comes out of it, so nothing is dropped.
    Dropout [ratio, seed, is_test] [] |_, _, inputs| Ok(vec![inputs.get(0)?.clone()]);
    Cast [to, saturate] [] |m, node, inputs| cast(m, node, inputs);
    CastLike [saturate] [] |_, _, inputs| Ok(vec![inputs.get(0)?.clone()]);
    Reshape [allowzero, shape] [] reshape;
    Flatten [axis] [] flatten;
    Squeeze [axes] [] squeeze;
    Unsqueeze [axes] [] unsqueeze;
    Transpose [perm] [] transpose;
    Slice [axes, starts, ends] [] slice;
    Split [axis, split, num_outputs] [] split;
    Concat [axis] [] concat;
    Expand [] [] |m, _, inputs| {
        let x = inputs.get(0)?;
        let wanted = sizes(inputs.get(1)?.array()?)?;
        let shape = broadcast(&[&x.shape(), &wanted])?;
        Ok(vec![x.broadcast(m, &shape)?])
    };
    Gather [axis] [0] gather;
    Pad [mode, pads, value] [] pad;
    Add [] [0, 1] |m, node, inputs| binary(m, node, inputs, |a, b| a + b, |a, b| a + b, |a, b| Some(a.wrapping_add(b)));
    Sub [] [0, 1] |m, node, inputs| binary(m, node, inputs, |a, b| a - b, |a, b| a - b, |a, b| Some(a.wrapping_sub(b)));
    Mul [] [0, 1] |m, node, inputs| binary(m, node, inputs, |a, b| a * b, |a, b| a * b, |a, b| Some(a.wrapping_mul(b)));
    Div [] [0, 1] |m, node, inputs| binary(m, node, inputs, |a, b| a / b, |a, b| a / b, i64::checked_div);
    Mod [fmod] [] |m, node, inputs| binary(m, node, inputs, |a, _| a, |a, b| a % b, i64::checked_rem_euclid);
    Min [] [] |m, node, inputs| binary(m, node, inputs, |a, b| a.minimum(b), f32::min, |a, b| Some(a.min(b)));
    Max [] [] |m, node, inputs| binary(m, node, inputs, |a, b| a.maximum(b), f32::max, |a, b| Some(a.max(b)));
    Equal [] [] |m, node, inputs| compare(m, node, inputs, |a, b| a.eq(b), |a, b| a == b);
    Less [] [] |m, node, inputs| compare(m, node, inputs, |a, b| a.lt(b), |a, b| a < b);
    LessOrEqual [] [] |m, node, inputs| compare(m, node, inputs, |a, b| a.le(b), |a, b| a <= b);
    Greater [] [] |m, node, inputs| compare(m, node, inputs, |a, b| b.lt(a), |a, b| a > b);
    GreaterOrEqual [] [] |m, node, inputs| compare(m, node, inputs, |a, b| b.le(a), |a, b| a >= b);
    And [] [] |_, _, inputs| logic(inputs, |a, b| a && b);
    Or [] [] |_, _, inputs| logic(inputs, |a, b| a || b);
    Not [] [] |m, _, inputs| match inputs.get(0)?.constant() {
        Some(Array::Whole(x)) => Ok(vec![Value::host(Array::Whole(x.mapv(|x| i64::from(x == 0))))]),
        _ => on_device(m, inputs, |x| x.eq(0.0)),
    };
    Where [] [] select;
    Pow [] [] pow;
    Neg [] [] |m, _, inputs| unary(m, inputs, |x| -x, |x| -x);
    Abs [] [] |m, _, inputs| unary(m, inputs, |x| x.abs(), f32::abs);
    Exp [] [] |m, _, inputs| unary(m, inputs, |x| x.exp(), f32::exp);
    Log [] [] |m, _, inputs| unary(m, inputs, |x| x.log(), f32::ln);
    Sqrt [] [] |m, _, inputs| unary(m, inputs, |x| x.sqrt(), f32::sqrt);
    Reciprocal [] [] |m, _, inputs| unary(m, inputs, |x| 1.0 / x, f32::recip);
    Erf [] [] |m, _, inputs| unary(m, inputs, |x| x.erf(), |x| libm::erf(x.into()) as f32);
    Sigmoid [] [] |m, _, inputs| unary(m, inputs, |x| x.sigmoid(), |x| 1.0 / (1.0 + (-x).exp()));
    Tanh [] [] |m, _, inputs| unary(m, inputs, |x| x.tanh(), f32::tanh);
    Relu [] [] |m, _, inputs| unary(m, inputs, |x| x.relu(), |x| x.max(0.0));
    Softplus [] [] |m, _, inputs| unary(m, inputs, |x| x.softplus(), |x| x.max(0.0) + (-x.abs()).exp().ln_1p());
    LeakyRelu [alpha] [] |m, node, inputs| {
        let alpha = node.float("alpha", 0.01)?;
        on_device(m, inputs, move |x| x.leaky_relu(alpha))
    };
    Elu [alpha] [] |m, node, inputs| {
        let alpha = node.float("alpha", 1.0)?;
        on_device(m, inputs, move |x| x.elu(alpha))
    };
    HardSigmoid [alpha, beta] [] |m, node, inputs| {
        let (alpha, beta) = (node.float("alpha", 0.2)?, node.float("beta", 0.5)?);
        on_device(m, inputs, move |x| (x * alpha + beta).clamp(0.0, 1.0))
    };
    Gelu [approximate] [] |m, node, inputs| match node.text("approximate", "none")? {
        "none" => on_device(m, inputs, |x| x.gelu()),
        // 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))
        _ => on_device(m, inputs, |x| {
            let inner = (x + x * x * x * 0.044_715) * (2.0 * std::f32::consts::FRAC_1_PI).sqrt();
            x * 0.5 * (inner.tanh() + 1.0)
        }),
    };
    Clip [min, max] [] clip;
    Softmax [axis] [] |m, node, inputs| softmax(m, node, inputs, f::softmax);
    LogSoftmax [axis] [] |m, node, inputs| softmax(m, node, inputs, f::log_softmax);
    ReduceSum [axes, keepdims, noop_with_empty_axes] [] |m, node, inputs| reduce(m, node, inputs, f::sum_axis);
    ReduceMean [axes, keepdims, noop_with_empty_axes] [] |m, node, inputs| reduce(m, node, inputs, f::mean_axis);
    GlobalAveragePool [] [] |m, _, inputs| {
        let x = inputs.get(0)?;
        let mut shape = x.shape();
        let mut y = x.clone();
        for axis in 2..shape.len() {
            let var = y.var(m)?;
            let mean = f::mean_axis(m.graph()?, var, axis as isize).map_err(said)?;
            shape[axis] = 1;
            y = Value::made(m.graph()?, mean).reshape(m, &shape)?;
        }
        Ok(vec![y])
    };
    ReduceProd [axes, keepdims, noop_with_empty_axes] [] |_, _, inputs| {
        let product = inputs.get(0)?.array()?.wholes()?.into_iter().fold(1i64, i64::wrapping_mul);
        Ok(vec![Value::host(scalar(product))])
    };
    MatMul [] [0, 1] matmul;
    Gemm [alpha, beta, transA, transB] [0, 1, 2] gemm;
    Conv [auto_pad, dilations, group, kernel_shape, pads, strides] [1, 2] conv;
    LayerNormalization [axis, epsilon, stash_type] [1, 2] layer_norm;
    BatchNormalization [epsilon, momentum, spatial, training_mode] [1, 2] batch_norm;
    RNN [activation_alpha, activation_beta, activations, clip, direction, hidden_size, layout, output_sequence] [] super::recurrent::run;
    GRU [activation_alpha, activation_beta, activations, clip, direction, hidden_size, layout, linear_before_reset, output_sequence]
        [] super::recurrent::run;
    LSTM [activation_alpha, activation_beta, activations, clip, direction, hidden_size, input_forget, layout, output_sequence]
        [] super::recurrent::run;
}

impl Operator {
    /// That of a node.
    pub fn of(node: &Node) -> Option<&'static Self> {
        OPERATORS.iter().find(|operator| operator.name == node.op)
    }

    /// What of a node is not understood.
    pub fn problems(node: &Node) -> Vec<String> {
        let (op, name) = (&node.op, &node.name);
        let Some(operator) = Self::of(node) else { return vec![format!("the operator `{op}` at `{name}`")] };
        let unknown =
            node.attributes.iter().filter(|(attribute, _)| !operator.attributes.contains(&attribute.as_str()));
        let mut problems: Vec<_> =
            unknown.map(|(attribute, _)| format!("the attribute `{attribute}` of `{op}` at `{name}`")).collect();
        let refuse = |is_wrong: bool, what: &str| is_wrong.then(|| format!("{what} of `{op}` at `{name}`"));
        let is = |attribute: &str, value: i64| node.int(attribute, 0).is_ok_and(|given| given == value);
        problems.extend(refuse(op == "BatchNormalization" && is("training_mode", 1), "`training_mode` 1"));
        problems.extend(refuse(op == "Mod" && is("fmod", 1), "`fmod` 1"));
        if matches!(op.as_str(), "RNN" | "GRU" | "LSTM") {
            problems.extend(super::recurrent::problems(node));
        }
        problems.extend(node.graphs().flat_map(|graph| &graph.nodes).flat_map(Self::problems));
        problems
    }

    /// What comes out of a node.
    pub fn run(m: &mut Machine<'_>, node: &Node, inputs: &[Option<Value>]) -> Result<Vec<Value>> {
        let operator = Self::of(node).ok_or_else(|| format!("`{}` is not read", node.op))?;
        (operator.run)(m, node, &Inputs(inputs))
    }
}

fn scalar(value: i64) -> Array {
    Array::Whole(ndarray::arr0(value).into_dyn())
}

/// Sizes, none of which is below 0.
fn sizes(array: &Array) -> Result<Vec<usize>> {
    let sizes = array.wholes()?.into_iter().map(|size| usize::try_from(size).map_err(|_| format!("a size of {size}")));
    let sizes = sizes.collect::<Result<Vec<_>>>()?;
    len_of(&sizes)?;
    Ok(sizes)
}

/// The axis that a number means; below 0, counted from the last.
fn axis_of(axis: i64, rank: usize) -> Result<usize> {
    let from_first = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    let axis_of = usize::try_from(from_first).ok().filter(|&axis| axis < rank);
    axis_of.ok_or_else(|| format!("there is no axis {axis} of {rank}"))
}

/// Axes that are an attribute or, in later versions, an input; none if they are not given.
fn axes(node: &Node, inputs: &Inputs<'_>, rank: usize) -> Result<Option<Vec<usize>>> {
    let given = match inputs.array(1)? {
        Some(axes) => Some(axes.wholes()?),
        None => node.ints("axes")?.map(<[i64]>::to_vec),
    };
    let axes = given.map(|axes| axes.into_iter().map(|axis| axis_of(axis, rank)).collect::<Result<Vec<_>>>());
    axes.transpose()
}

fn constant(node: &Node) -> Result<Vec<Value>> {
    let real = |values: Vec<f32>| Array::Real(ndarray::Array1::from_vec(values).into_dyn());
    let array = match node.attributes.iter().next() {
        Some((_, Attribute::Array(array))) => array.clone(),
        Some((_, Attribute::Float(value))) => Array::Real(ndarray::arr0(*value).into_dyn()),
        Some((_, Attribute::Floats(values))) => real(values.clone()),
        Some((_, Attribute::Int(value))) => scalar(*value),
        Some((_, Attribute::Ints(values))) => Array::whole(values.iter().copied()),
        other => return Err(format!("its value must be numbers, not {other:?}")),
    };
    Ok(vec![Value::host(array)])
}

fn constant_of_shape(node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let shape = sizes(inputs.get(0)?.array()?)?;
    let value = match node.attributes.get("value") {
        None => Array::Real(ndarray::arr0(0.0).into_dyn()),
        Some(Attribute::Array(value)) => value.reshape(&[])?,
        Some(other) => return Err(format!("its attribute `value` must be a tensor, not {other:?}")),
    };
    Ok(vec![Value::host(value.broadcast(&shape)?)])
}

fn shape(node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let shape = inputs.get(0)?.shape();
    let part = Part::new(shape.len(), node.int("start", 0)?, node.int("end", i64::MAX)?, 1)?;
    Ok(vec![Value::host(Array::whole(part.indices().into_iter().map(|axis| shape[axis] as i64)))])
}

fn range(inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let number = |i: usize| -> Result<i64> {
        match inputs.get(i)?.array()?.wholes()?[..] {
            [number] => Ok(number),
            _ => Err("it takes three numbers".into()),
        }
    };
    let [start, limit, delta] = [number(0)?, number(1)?, number(2)?];
    if delta == 0 {
        return Err("a step of 0".into());
    }
    let count = (i128::from(limit) - i128::from(start) + i128::from(delta - delta.signum())) / i128::from(delta);
    let count = usize::try_from(count.max(0)).map_err(|_| "too long a range".to_owned())?;
    len_to_make(&[count])?;
    Ok(vec![Value::host(Array::whole((0..count as i64).map(|i| start + i * delta)))])
}

/// Of a plan all numbers are f32, so between kinds of these nothing changes; on the host, numbers become whole ones and the other way round.
fn cast(_: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let to = node.int("to", 1)?;
    let is_real = matches!(to, 1 | 10 | 11 | 16);
    let value = inputs.get(0)?;
    Ok(vec![match (value.array(), is_real) {
        (Ok(Array::Whole(x)), true) => Value::host(Array::Real(x.mapv(|value| value as f32))),
        (Ok(Array::Real(x)), false) if to == 9 => Value::host(Array::Whole(x.mapv(|value| i64::from(value != 0.0)))),
        (Ok(Array::Real(x)), false) => Value::host(Array::Whole(x.mapv(|value| value as i64))),
        (Err(_), false) if to != 9 && matches!(value, Value::Device(..)) => {
            return Err("numbers of a plan stay numbers".into());
        }
        _ => value.clone(),
    }])
}

fn reshape(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let wanted = match inputs.array(1)? {
        Some(shape) => shape.wholes()?,
        None => node.ints("shape")?.ok_or("it is not given a shape")?.to_vec(),
    };
    let shape = x.shape();
    let keeps_zeros = node.int("allowzero", 0)? == 0;
    let mut sizes = Vec::new();
    let mut rest = None;
    for (axis, &size) in wanted.iter().enumerate() {
        sizes.push(match size {
            0 if keeps_zeros => {
                *shape.get(axis).ok_or_else(|| format!("there is no axis {axis} of {shape:?} to keep"))?
            }
            -1 if rest.is_none() => {
                rest = Some(axis);
                1
            }
            size => usize::try_from(size).map_err(|_| format!("it asks for the shape {wanted:?}"))?,
        });
    }
    if let Some(rest) = rest {
        let others = len_of(&sizes)?;
        sizes[rest] = len_of(&shape)?.checked_div(others).ok_or("it asks for sizes of 0")?;
    }
    Ok(vec![x.reshape(m, &sizes)?])
}

fn flatten(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let shape = x.shape();
    let axis = node.int("axis", 1)?;
    let axis = if axis == shape.len() as i64 { shape.len() } else { axis_of(axis, shape.len())? };
    let (rows, columns) = shape.split_at(axis);
    Ok(vec![x.reshape(m, &[len_of(rows)?, len_of(columns)?])?])
}

fn squeeze(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let shape = x.shape();
    let axes = axes(node, inputs, shape.len())?;
    let axes = axes.unwrap_or_else(|| (0..shape.len()).filter(|&axis| shape[axis] == 1).collect());
    if let Some(axis) = axes.iter().find(|&&axis| shape[axis] != 1) {
        return Err(format!("axis {axis} of {shape:?} is not 1"));
    }
    let kept = shape.iter().enumerate().filter(|(axis, _)| !axes.contains(axis)).map(|(_, &size)| size);
    Ok(vec![x.reshape(m, &kept.collect::<Vec<_>>())?])
}

fn unsqueeze(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let shape = x.shape();
    let count = match inputs.array(1)? {
        Some(axes) => axes.len(),
        None => node.ints("axes")?.map_or(0, <[i64]>::len),
    };
    let rank = shape.len() + count;
    let axes = axes(node, inputs, rank)?.ok_or("it is not given axes")?;
    let mut old = shape.iter().copied();
    let sizes: Vec<_> = (0..rank).map(|axis| if axes.contains(&axis) { 1 } else { old.next().unwrap_or(1) }).collect();
    Ok(vec![x.reshape(m, &sizes)?])
}

fn transpose(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let rank = x.shape().len();
    let axes = match node.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(axes) => axes.iter().map(|&axis| axis_of(axis, rank)).collect::<Result<Vec<_>>>()?,
    };
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return Err(format!("{axes:?} are not the {rank} axes, each once"));
    }
    Ok(vec![x.permute(m, &axes)?])
}

fn slice(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let mut x = inputs.get(0)?.clone();
    let rank = x.shape().len();
    let numbers = |i: usize, name: &str| match inputs.array(i)? {
        Some(array) => Ok::<_, String>(Some(array.wholes()?)),
        None => Ok(node.ints(name)?.map(<[i64]>::to_vec)),
    };
    let (starts, ends) = (numbers(1, "starts")?.unwrap_or_default(), numbers(2, "ends")?.unwrap_or_default());
    let axes = numbers(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = numbers(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()].into_iter().any(|count| count != starts.len()) {
        return Err("its starts, ends, axes and steps are not as many of each".into());
    }
    for (((start, end), axis), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
        let axis = axis_of(axis, rank)?;
        let part = Part::new(x.shape()[axis], start, end, step)?;
        x = x.slice(m, axis, part)?;
    }
    Ok(vec![x])
}

fn split(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let axis = axis_of(node.int("axis", 0)?, x.shape().len())?;
    let size = x.shape()[axis];
    let sizes = match (inputs.array(1)?, node.ints("split")?) {
        (Some(sizes), _) => self::sizes(sizes)?,
        (_, Some(sizes)) => self::sizes(&Array::whole(sizes.iter().copied()))?,
        _ => {
            let each = size.div_ceil(node.outputs.len().max(1));
            (0..node.outputs.len()).map(|i| each.min(size.saturating_sub(i * each))).collect()
        }
    };
    if sizes.iter().sum::<usize>() != size {
        return Err(format!("{sizes:?} do not add up to {size}"));
    }
    let mut start = 0;
    let parts = sizes.into_iter().map(|length| {
        let part = Part { start, length, step: 1 };
        start += length;
        x.slice(m, axis, part)
    });
    parts.collect()
}

fn concat(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let values = inputs.0.iter().flatten();
    // What has nothing in it adds nothing, and is only on the host.
    let values: Vec<_> = values.filter(|value| !value.shape().contains(&0)).cloned().collect();
    let first = values.first().or(inputs.optional(0)).ok_or("it joins nothing")?;
    let axis = axis_of(node.int("axis", 1)?, first.shape().len())?;
    if values.len() < 2 {
        return Ok(vec![first.clone()]);
    }
    Ok(vec![Value::concat(m, &values, axis)?])
}

fn gather(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let (x, index) = (inputs.get(0)?, inputs.get(1)?);
    let shape = x.shape();
    let axis = axis_of(node.int("axis", 0)?, shape.len())?;
    if let Value::Indices { tensor, axes, plus } = index {
        if *plus != 0 {
            return Err(format!("it looks up tokens of which {plus} more was made"));
        }
        if axis != 0 || shape.len() != 2 {
            return Err(format!("tokens look up rows of a table, not entries of axis {axis} of {shape:?}"));
        }
        let table = x.var(m)?;
        let g = m.graph()?;
        let rows = f::embedding(g, table, tensor).map_err(said)?;
        // Rows of the tokens as they lie, then the axes that had changed places.
        let axes: Vec<_> = axes.iter().copied().chain([axes.len()]).collect();
        return Value::made(g, rows).permute(m, &axes).map(|rows| vec![rows]);
    }
    let index = index.array()?;
    let size = shape[axis] as i64;
    let entry = |index: i64| {
        let from_first = if index < 0 { index.saturating_add(size) } else { index };
        let entry = usize::try_from(from_first).ok().filter(|&entry| (entry as i64) < size);
        entry.ok_or_else(|| format!("there is no entry {index} of the {size} of axis {axis}"))
    };
    let indices = index.wholes()?.into_iter().map(entry).collect::<Result<Vec<_>>>()?;
    let selected = match indices[..] {
        [start] => x.slice(m, axis, Part { start, length: 1, step: 1 })?,
        _ => x.select(m, axis, &indices)?,
    };
    let shape = [&shape[..axis], index.shape(), &shape[axis + 1..]].concat();
    Ok(vec![selected.reshape(m, &shape)?])
}

fn pad(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let mut x = inputs.get(0)?.clone();
    let rank = x.shape().len();
    let pads = match inputs.array(1)? {
        Some(pads) => pads.wholes()?,
        None => node.ints("pads")?.ok_or("it is not told how much")?.to_vec(),
    };
    let axes = match inputs.array(3)? {
        Some(axes) => axes.wholes()?.into_iter().map(|axis| axis_of(axis, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} numbers for the two sides of {} axes", pads.len(), axes.len()));
    }
    let value = match inputs.array(2)? {
        Some(value) => value.scalar().ok_or("it pads with one value")?,
        None => node.float("value", 0.0)?,
    };
    let mode = node.text("mode", "constant")?;
    for (i, &axis) in axes.iter().enumerate() {
        let (before, after) = (pads[i], pads[axes.len() + i]);
        x = pad_axis(m, &x, axis, (before, after), mode, value)?;
    }
    Ok(vec![x])
}

fn pad_axis(
    m: &mut Machine<'_>,
    x: &Value,
    axis: usize,
    (before, after): (i64, i64),
    mode: &str,
    value: f32,
) -> Result<Value> {
    let shape = x.shape();
    let size = shape[axis] as i64;
    // Below 0, that much is cut off.
    let kept = Part::new(shape[axis], (-before).clamp(0, size), size - (-after).clamp(0, size), 1)?;
    let (before, after) = (before.max(0), after.max(0));
    if (before, after) == (0, 0) {
        return x.slice(m, axis, kept);
    }
    len_of(&[usize::try_from(before.saturating_add(after)).unwrap_or(usize::MAX)])?;
    let indices: Vec<usize> = match mode {
        "constant" => {
            let inner = x.slice(m, axis, kept)?;
            let block = |count: i64| {
                let mut shape = shape.clone();
                shape[axis] = count as usize;
                len_of(&shape)?;
                Array::Real(ndarray::arr0(value).into_dyn()).broadcast(&shape).map(Value::host)
            };
            let mut parts = vec![inner];
            if before > 0 {
                parts.insert(0, block(before)?);
            }
            if after > 0 {
                parts.push(block(after)?);
            }
            return Value::concat(m, &parts, axis);
        }
        "edge" => (-before..size + after).map(|i| i.clamp(0, size - 1) as usize).collect(),
        "reflect" if size > before && size > after => {
            (-before..size + after).map(|i| (size - 1 - (size - 1 - i.abs()).abs()) as usize).collect()
        }
        "wrap" => (-before..size + after).map(|i| i.rem_euclid(size) as usize).collect(),
        "reflect" => return Err(format!("{size} entries are reflected to at most {} on a side", size - 1)),
        other => return Err(format!("the mode `{other}`; constant, edge, reflect and wrap are read")),
    };
    x.select(m, axis, &indices)
}

/// An expression of one input, in a plan.
fn on_device(
    m: &mut Machine<'_>,
    inputs: &Inputs<'_>,
    expression: impl for<'a> FnOnce(Expr<'a>) -> Expr<'a>,
) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let var = x.var(m)?;
    let y = f::map(m.graph()?, [var], |[x]| expression(x)).map_err(said)?;
    Ok(vec![Value::Device(y, x.shape())])
}

fn unary(
    m: &mut Machine<'_>,
    inputs: &Inputs<'_>,
    expression: impl for<'a> FnOnce(Expr<'a>) -> Expr<'a>,
    on_host: impl Fn(f32) -> f32,
) -> Result<Vec<Value>> {
    match inputs.get(0)?.constant() {
        Some(Array::Real(x)) => Ok(vec![Value::host(Array::Real(x.mapv(on_host)))]),
        Some(Array::Whole(x)) => Ok(vec![Value::host(Array::Whole(x.mapv(|value| on_host(value as f32) as i64)))]),
        _ => on_device(m, inputs, expression),
    }
}

/// Of two values or more, one after the other; on the host where all are known there, with a number as part of the program.
fn binary(
    m: &mut Machine<'_>,
    node: &Node,
    inputs: &Inputs<'_>,
    expression: for<'a> fn(Expr<'a>, Expr<'a>) -> Expr<'a>,
    real: fn(f32, f32) -> f32,
    whole: fn(i64, i64) -> Option<i64>,
) -> Result<Vec<Value>> {
    let mut values = inputs.0.iter().flatten();
    let mut all = values.next().ok_or("it is given nothing")?.clone();
    for other in values {
        all = match of_indices(node, &all, other).or_else(|| of_indices(node, other, &all)) {
            Some(value) => value,
            None => of_two(m, &all, other, expression, real, whole)?,
        };
    }
    Ok(vec![all])
}

/// What Keras does to tokens before it looks them up, so that they may be counted from the last: `x < 0 ? x + V : x`. Here none is below 0.
fn of_indices(node: &Node, x: &Value, other: &Value) -> Option<Value> {
    let (Value::Indices { plus, .. }, Some(constant)) = (x, other.constant()) else { return None };
    let values = constant.wholes().ok().or_else(|| constant.scalar().map(|value| vec![value as i64]))?;
    let is_all = |value: i64| values.iter().all(|&other| other == value);
    match (node.op.as_str(), &values[..]) {
        ("Add", &[value]) => Some(x.plus(value)),
        ("Add", _) if is_all(0) => Some(x.clone()),
        ("Mul", _) if is_all(1) => Some(x.clone()),
        ("Mul", _) if is_all(0) => Some(Value::host(scalar(0))),
        ("Less", &[value]) if *plus >= value => Some(Value::host(scalar(0))),
        _ => None,
    }
}

fn of_two(
    m: &mut Machine<'_>,
    a: &Value,
    b: &Value,
    expression: for<'a> fn(Expr<'a>, Expr<'a>) -> Expr<'a>,
    real: fn(f32, f32) -> f32,
    whole: fn(i64, i64) -> Option<i64>,
) -> Result<Value> {
    let shape = broadcast(&[&a.shape(), &b.shape()])?;
    if let (Some(x), Some(y)) = (a.constant(), b.constant()) {
        return match (x.broadcast(&shape)?, y.broadcast(&shape)?) {
            (Array::Whole(x), Array::Whole(y)) => {
                let pairs = x.iter().zip(&y).map(|(&x, &y)| whole(x, y).ok_or_else(|| "a division by 0".to_owned()));
                let values = Array::whole(pairs.collect::<Result<Vec<_>>>()?);
                Ok(Value::host(values.reshape(&shape)?))
            }
            (Array::Real(x), Array::Real(y)) => {
                let values: Vec<_> = x.iter().zip(&y).map(|(&x, &y)| real(x, y)).collect();
                Ok(Value::host(Array::Real(ndarray::Array1::from_vec(values).into_dyn()).reshape(&shape)?))
            }
            _ => Err("it takes numbers and whole numbers".into()),
        };
    }
    let number = |value: &Value| value.constant().and_then(Array::scalar);
    let var = match (number(a), number(b)) {
        (None, Some(number)) => {
            let a = a.var(m)?;
            let program = Program::new(|[a]| expression(a, a.with(number)));
            m.graph()?.map("map", program, &[a], at_least(&shape)).map_err(said)?
        }
        (Some(number), None) => {
            let b = b.var(m)?;
            let program = Program::new(|[b]| expression(b.with(number), b));
            m.graph()?.map("map", program, &[b], at_least(&shape)).map_err(said)?
        }
        _ => {
            let (a, b) = (a.var(m)?, b.var(m)?);
            f::map(m.graph()?, [a, b], |[a, b]| expression(a, b)).map_err(said)?
        }
    };
    Ok(Value::Device(var, shape))
}

fn at_least(shape: &[usize]) -> &[usize] {
    if shape.is_empty() { &[1] } else { shape }
}

fn compare(
    m: &mut Machine<'_>,
    node: &Node,
    inputs: &Inputs<'_>,
    expression: for<'a> fn(Expr<'a>, Expr<'a>) -> Expr<'a>,
    on_host: fn(f64, f64) -> bool,
) -> Result<Vec<Value>> {
    let (a, b) = (inputs.get(0)?, inputs.get(1)?);
    if let Some(value) = of_indices(node, a, b) {
        return Ok(vec![value]);
    }
    let (Some(x), Some(y)) = (a.constant(), b.constant()) else {
        return of_two(m, a, b, expression, |_, _| 0.0, |_, _| None).map(|value| vec![value]);
    };
    let shape = broadcast(&[a.shape().as_slice(), &b.shape()])?;
    let numbers = |array: &Array| -> Result<Vec<f64>> {
        Ok(match array.broadcast(&shape)? {
            Array::Real(x) => x.iter().map(|&value| value.into()).collect(),
            Array::Whole(x) => x.iter().map(|&value| value as f64).collect(),
        })
    };
    let truths = numbers(x)?.into_iter().zip(numbers(y)?).map(|(x, y)| i64::from(on_host(x, y)));
    Ok(vec![Value::host(Array::whole(truths).reshape(&shape)?)])
}

fn logic(inputs: &Inputs<'_>, on_host: fn(bool, bool) -> bool) -> Result<Vec<Value>> {
    let (a, b) = (inputs.get(0)?, inputs.get(1)?);
    let shape = broadcast(&[a.shape().as_slice(), &b.shape()])?;
    let truths = |value: &Value| -> Result<Vec<bool>> {
        Ok(value.array()?.broadcast(&shape)?.wholes()?.into_iter().map(|value| value != 0).collect())
    };
    let values = truths(a)?.into_iter().zip(truths(b)?).map(|(a, b)| i64::from(on_host(a, b)));
    Ok(vec![Value::host(Array::whole(values).reshape(&shape)?)])
}

fn select(m: &mut Machine<'_>, _: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let [condition, x, y] = [inputs.get(0)?, inputs.get(1)?, inputs.get(2)?];
    let shape = broadcast(&[condition.shape().as_slice(), &x.shape(), &y.shape()])?;
    if let (Some(Array::Whole(c)), Some(x), Some(y)) = (condition.constant(), x.constant(), y.constant()) {
        let c = c.broadcast(ndarray::IxDyn(&shape)).ok_or("its condition does not broadcast")?;
        return match (x.broadcast(&shape)?, y.broadcast(&shape)?) {
            (Array::Whole(x), Array::Whole(y)) => {
                let values = c.iter().zip(x.iter().zip(&y)).map(|(&c, (&x, &y))| if c != 0 { x } else { y });
                Ok(vec![Value::host(Array::whole(values).reshape(&shape)?)])
            }
            (Array::Real(x), Array::Real(y)) => {
                let values: Vec<_> =
                    c.iter().zip(x.iter().zip(&y)).map(|(&c, (&x, &y))| if c != 0 { x } else { y }).collect();
                let values = Array::Real(ndarray::Array1::from_vec(values).into_dyn());
                Ok(vec![Value::host(values.reshape(&shape)?)])
            }
            _ => Err("it takes numbers and whole numbers".into()),
        };
    }
    let [condition, x, y] = [condition.var(m)?, x.var(m)?, y.var(m)?];
    let z = f::where_(m.graph()?, condition, x, y).map_err(said)?;
    Ok(vec![Value::Device(z, shape)])
}

fn pow(m: &mut Machine<'_>, _: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let exponent = inputs.get(1)?.array().ok().and_then(Array::scalar);
    let exponent = exponent.ok_or("its exponent must be a number that the file has")?;
    if let Some(x) = inputs.get(0)?.constant() {
        return Ok(vec![Value::host(match x {
            Array::Real(x) => Array::Real(x.mapv(|x| x.powf(exponent))),
            Array::Whole(x) => Array::Whole(x.mapv(|x| (x as f64).powf(exponent.into()) as i64)),
        })]);
    }
    match exponent {
        0.5 => on_device(m, inputs, |x| x.sqrt()),
        -0.5 => on_device(m, inputs, |x| 1.0 / x.sqrt()),
        -1.0 => on_device(m, inputs, |x| 1.0 / x),
        whole if whole.fract() == 0.0 && (1.0..=16.0).contains(&whole) => {
            on_device(m, inputs, move |x| (1..whole as usize).fold(x, |power, _| power * x))
        }
        other => on_device(m, inputs, move |x| (x.log() * other).exp()),
    }
}

fn clip(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let bound = |i: usize, name: &str, default: f32| match inputs.array(i)? {
        Some(bound) => bound.scalar().ok_or_else(|| "it has one bound on each side".to_owned()),
        None => node.float(name, default),
    };
    let (low, high) = (bound(1, "min", f32::MIN)?, bound(2, "max", f32::MAX)?);
    unary(m, inputs, move |x| x.clamp(low, high), move |x| x.max(low).min(high))
}

fn softmax(
    m: &mut Machine<'_>,
    node: &Node,
    inputs: &Inputs<'_>,
    of_last: fn(&mut crate::graph::Graph, crate::graph::Var) -> crate::error::Result<crate::graph::Var>,
) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let shape = x.shape();
    let rank = shape.len();
    // Before version 13, of all axes from this one on, taken together.
    let is_old = node.opset < 13;
    let axis = axis_of(node.int("axis", if is_old { 1 } else { -1 })?, rank)?;
    let is_last = axis + 1 == rank;
    let (x, order) = match is_old || is_last {
        true => (x.reshape(m, &[len_of(&shape[..axis])?, len_of(&shape[axis..])?])?, None),
        false => {
            let mut order: Vec<_> = (0..rank).collect();
            order.swap(axis, rank - 1);
            (x.permute(m, &order)?, Some(order))
        }
    };
    let var = x.var(m)?;
    let y = of_last(m.graph()?, var).map_err(said)?;
    let y = Value::Device(y, x.shape());
    Ok(vec![match order {
        None => y.reshape(m, &shape)?,
        Some(order) => y.permute(m, &order)?,
    }])
}

fn reduce(
    m: &mut Machine<'_>,
    node: &Node,
    inputs: &Inputs<'_>,
    over: fn(&mut crate::graph::Graph, crate::graph::Var, isize) -> crate::error::Result<crate::graph::Var>,
) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let mut shape = x.shape();
    let given = axes(node, inputs, shape.len())?.filter(|axes| !axes.is_empty());
    if given.is_none() && node.int("noop_with_empty_axes", 0)? == 1 {
        return Ok(vec![x.clone()]);
    }
    let axes = given.unwrap_or_else(|| (0..shape.len()).collect());
    let mut y = x.clone();
    for &axis in &axes {
        let var = y.var(m)?;
        let reduced = over(m.graph()?, var, axis as isize).map_err(said)?;
        shape[axis] = 1;
        y = Value::made(m.graph()?, reduced).reshape(m, &shape)?;
    }
    if node.int("keepdims", 1)? == 0 {
        let kept = shape.iter().enumerate().filter(|(axis, _)| !axes.contains(axis)).map(|(_, &size)| size);
        y = y.reshape(m, &kept.collect::<Vec<_>>())?;
    }
    Ok(vec![y])
}

fn matmul(m: &mut Machine<'_>, _: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let (a, b) = (inputs.get(0)?, inputs.get(1)?);
    let (of_a, of_b) = (a.shape(), b.shape());
    // A vector is a row on the left, a column on the right, and that axis goes.
    let a = if of_a.len() == 1 { a.reshape(m, &[1, of_a[0]])? } else { a.clone() };
    let b = if of_b.len() == 1 { b.reshape(m, &[of_b[0], 1])? } else { b.clone() };
    let (a_shape, b_shape) = (a.shape(), b.shape());
    if a_shape.len() < 2 || b_shape.len() < 2 {
        return Err("it takes vectors, matrices, or several of them".into());
    }
    let batch = broadcast(&[&a_shape[..a_shape.len() - 2], &b_shape[..b_shape.len() - 2]])?;
    // One matrix for all, or one for each.
    let spread = |m: &mut Machine<'_>, value: &Value, shape: &[usize]| {
        let (before, matrix) = shape.split_at(shape.len() - 2);
        match len_of(before)? {
            1 => value.reshape(m, matrix),
            _ => value.broadcast(m, &[&batch, matrix].concat()),
        }
    };
    let (a, b) = (spread(m, &a, &a_shape)?, spread(m, &b, &b_shape)?);
    let (x, y) = (a.var(m)?, b.var(m)?);
    let product = f::matmul(m.graph()?, x, y).map_err(said)?;
    let rows = (of_a.len() > 1).then(|| a_shape[a_shape.len() - 2]);
    let columns = (of_b.len() > 1).then(|| b_shape[b_shape.len() - 1]);
    let shape: Vec<_> = batch.into_iter().chain(rows).chain(columns).collect();
    Ok(vec![Value::made(m.graph()?, product).reshape(m, &shape)?])
}

fn gemm(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let (alpha, beta) = (node.float("alpha", 1.0)?, node.float("beta", 1.0)?);
    let matrix = |i: usize| {
        let value = inputs.get(i)?;
        if value.shape().len() == 2 { Ok(value) } else { Err(format!("its input {i} must be a matrix")) }
    };
    let (a, b) = (matrix(0)?, matrix(1)?);
    let a = if node.int("transA", 0)? == 1 { a.permute(m, &[1, 0])? } else { a.clone() };
    let x = a.var(m)?;
    let mut y = match node.int("transB", 0)? {
        1 => {
            let weight = b.var(m)?;
            f::linear(m.graph()?, x, weight, None).map_err(said)?
        }
        _ => {
            let b = b.var(m)?;
            f::matmul(m.graph()?, x, b).map_err(said)?
        }
    };
    if alpha != 1.0 {
        y = f::scale(m.graph()?, y, alpha).map_err(said)?;
    }
    if let Some(c) = inputs.optional(2) {
        let c = c.var(m)?;
        y = f::map(m.graph()?, [y, c], |[y, c]| y + c * beta).map_err(said)?;
    }
    Ok(vec![Value::made(m.graph()?, y)])
}

fn conv(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let (whole, weight) = (inputs.get(0)?, inputs.get(1)?);
    let (of_x, of_weight) = (whole.shape(), weight.shape());
    if of_x.len() < 3 || of_x.len() != of_weight.len() {
        return Err(format!("its input has the shape {of_x:?}, its weight {of_weight:?}"));
    }
    // A convolution of several axes, of which all but one are of size 1 in everything, is one of that axis.
    let long: Vec<_> = (2..of_x.len()).filter(|&axis| (of_x[axis], of_weight[axis]) != (1, 1)).collect();
    let axis = match long[..] {
        [] => of_x.len() - 1,
        [axis] => axis,
        _ => return Err(format!("convolutions of one axis are read, not of {of_x:?} with {of_weight:?}")),
    };
    let sides = of_x.len() - 2;
    let x = &whole.reshape(m, &[of_x[0], of_x[1], of_x[axis]])?;
    let weight = &weight.reshape(m, &[of_weight[0], of_weight[1], of_weight[axis]])?;
    let (length, k) = (of_x[axis], of_weight[axis]);
    let of_axis = |name: &str, side: usize| match node.ints(name)? {
        None => Ok::<_, String>(None),
        Some(values) => values
            .get(side * sides + axis - 2)
            .map(|&value| Some(value))
            .ok_or_else(|| format!("its `{name}` is {values:?}, of {sides} axes")),
    };
    let one = |name: &str| {
        usize::try_from(of_axis(name, 0)?.unwrap_or(1)).map_err(|_| format!("its `{name}` has numbers below 0"))
    };
    let (stride, dilation) = (one("strides")?, one("dilations")?);
    let pads = node.ints("pads")?.unwrap_or(&[]).iter().enumerate();
    if pads.clone().any(|(i, &pad)| i % sides != axis - 2 && pad != 0) {
        return Err(format!("its `pads` are of axes of size 1 too: {:?}", node.ints("pads")?));
    }
    let groups = usize::try_from(node.int("group", 1)?).map_err(|_| "its `group` is below 0".to_owned())?;
    let reach = dilation.saturating_mul(k.saturating_sub(1)).saturating_add(1);
    let (before, after) = match node.text("auto_pad", "NOTSET")? {
        "NOTSET" => (of_axis("pads", 0)?.unwrap_or(0), of_axis("pads", 1)?.unwrap_or(0)),
        "VALID" => (0, 0),
        mode @ ("SAME_UPPER" | "SAME_LOWER") => {
            let wanted = length.div_ceil(stride.max(1)).saturating_sub(1).saturating_mul(stride).saturating_add(reach);
            let all = wanted.saturating_sub(length) as i64;
            let less = all / 2;
            if mode == "SAME_UPPER" { (less, all - less) } else { (all - less, less) }
        }
        mode => return Err(format!("its `auto_pad` is {mode}")),
    };
    let mut options = Conv1dOptions { stride, dilation, groups, ..Conv1dOptions::default() };
    let x = match usize::try_from(before) {
        Ok(both) if before == after => {
            options.padding = both;
            x.clone()
        }
        _ => pad_axis(m, x, 2, (before, after), "constant", 0.0)?,
    };
    let (x, weight) = (x.var(m)?, weight.var(m)?);
    let bias = inputs.optional(2).map(|bias| bias.var(m)).transpose()?;
    let y = f::conv1d(m.graph()?, x, weight, bias, options).map_err(said)?;
    let y = Value::made(m.graph()?, y);
    let mut shape = of_x;
    (shape[1], shape[axis]) = (y.shape()[1], y.shape()[2]);
    Ok(vec![y.reshape(m, &shape)?])
}

fn layer_norm(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let (x, weight) = (inputs.get(0)?, inputs.get(1)?);
    let shape = x.shape();
    let axis = axis_of(node.int("axis", -1)?, shape.len())?;
    // Of all axes from this one on, taken together.
    let channels = len_of(&shape[axis..])?;
    let rows = x.reshape(m, &[len_of(&shape[..axis])?, channels])?;
    let row = |m: &mut Machine<'_>, value: &Value| value.reshape(m, &[channels])?.var(m);
    let (x, weight) = (rows.var(m)?, row(m, weight)?);
    let bias = match inputs.optional(2) {
        Some(bias) => row(m, bias)?,
        None => Value::host(Array::Real(ndarray::Array1::zeros(channels).into_dyn())).var(m)?,
    };
    let y = f::layer_norm(m.graph()?, x, Some((weight, bias)), node.float("epsilon", 1e-5)?).map_err(said)?;
    Ok(vec![Value::made(m.graph()?, y).reshape(m, &shape)?])
}

fn batch_norm(m: &mut Machine<'_>, node: &Node, inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let x = inputs.get(0)?;
    let shape = x.shape();
    let &[_, channels, ref rest @ ..] = &shape[..] else { return Err(format!("[N, C, ..], not {shape:?}")) };
    let epsilon = node.float("epsilon", 1e-5)?;
    let of_channels = [&[channels], &vec![1; rest.len()][..]].concat();
    let mut values = Vec::new();
    for i in 1..5 {
        values.push(inputs.get(i)?.reshape(m, &of_channels)?.var(m)?);
    }
    let var = x.var(m)?;
    let y = f::map(m.graph()?, [var, values[0], values[1], values[2], values[3]], |[x, weight, bias, mean, var]| {
        (x - mean) / (var + epsilon).sqrt() * weight + bias
    });
    Ok(vec![Value::made(m.graph()?, y.map_err(said)?)])
}
