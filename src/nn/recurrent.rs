//! `nn.RNN`, `nn.GRU`, `nn.LSTM` and their cells: layers, directions and lengths are the same for all of them.

use super::State;
use super::functional::{self, Above, Direction, InitialState, RunOptions, States};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Init, ParameterId, Var, name_in};
use crate::kernels;
use crate::kernels::cell::{Cell, CellForm};
use crate::kernels::generate;
use crate::kernels::sequence::{self, Activation, Form, MOST_FUNCTIONS};
use crate::model_file::ModelFile;
use crate::rng::threefry2x32;
use crate::tensor::{MOST_ELEMENTS, Tensor};

/// Elements that a layer takes in the buffer of all parameters, at least: those of two matrices of one element.
const LEAST_OF_A_LAYER: usize = 128;

/// The arguments of `torch.nn.RNN`, `torch.nn.GRU` and `torch.nn.LSTM`, with their defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RnnOptions {
    /// I
    pub input_size: usize,
    /// H
    pub hidden_size: usize,
    /// L: layers, each on the outputs of the one below.
    pub num_layers: usize,
    /// Of `Rnn` alone.
    pub nonlinearity: Nonlinearity,
    /// Whether there are biases.
    pub bias: bool,
    /// Whether sequences are taken and returned as `[B, T, ..]`.
    pub batch_first: bool,
    /// Rate of dropout on the outputs of every layer but the last, in training: with one layer it does nothing, and the plan
    /// says so.
    pub dropout: f64,
    /// Whether that dropout has one mask for all steps of a sequence.
    pub locked_dropout: bool,
    /// Rate of dropout on the recurrent matrices, in training.
    pub weight_dropout: f64,
    /// Whether every layer also runs from the last step to the first: D = 2.
    pub bidirectional: bool,
    /// P, of [`Lstm`] alone: outputs and hidden states are projected to this size (Sak et al. 2014); 0 if they are not.
    pub proj_size: usize,
    /// What the gates apply in place of their own functions; see [`Self::activations`].
    pub activations: Option<Activations>,
    /// The bound of what comes into the functions of gates, if there is one.
    pub clip: Option<f32>,
    /// Of [`Gru`] alone: whether the reset gate is applied after the product with the recurrent matrix.
    pub reset_after: bool,
    /// Whether c reaches the gates, of [`Lstm`] alone.
    pub peepholes: bool,
    /// Whether the forget gate is 1 - i, of [`Lstm`] alone.
    pub coupled: bool,
}

/// The functions of a cell's gates, made by [`RnnOptions::activations`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activations {
    given: usize,
    functions: [Activation; MOST_FUNCTIONS],
}

/// What an [`Rnn`] applies at each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nonlinearity {
    /// tanh
    #[default]
    Tanh,
    /// max(0, ·)
    Relu,
}

impl RnnOptions {
    /// One layer, tanh, biases, time first, one direction.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            input_size,
            hidden_size,
            num_layers: 1,
            nonlinearity: Nonlinearity::Tanh,
            bias: true,
            batch_first: false,
            dropout: 0.0,
            locked_dropout: false,
            weight_dropout: 0.0,
            bidirectional: false,
            proj_size: 0,
            activations: None,
            clip: None,
            reset_after: true,
            peepholes: false,
            coupled: false,
        }
    }

    /// What a file says of the module of this name: sizes, layers, directions, biases, projection, peepholes. What has no values, as
    /// `batch_first`, `dropout` or the nonlinearity of an [`Rnn`], it cannot say: that is as in [`Self::new`].
    ///
    /// # Errors
    /// The file has no such module, or its shapes are those of none.
    pub fn from_file(file: &ModelFile, name: &str) -> Result<Self> {
        read_off(file, name, "_l0").map(|(_, options)| options)
    }

    /// Sets the number of layers.
    pub fn num_layers(self, num_layers: usize) -> Self {
        Self { num_layers, ..self }
    }

    /// Sets what an `Rnn` applies at each step.
    pub fn nonlinearity(self, nonlinearity: Nonlinearity) -> Self {
        Self { nonlinearity, ..self }
    }

    /// Sets whether there are biases.
    pub fn bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Sets whether sequences are taken and returned as `[B, T, ..]`.
    pub fn batch_first(self, batch_first: bool) -> Self {
        Self { batch_first, ..self }
    }

    /// Sets the rate of dropout between layers.
    pub fn dropout(self, dropout: f64) -> Self {
        Self { dropout, ..self }
    }

    /// Sets whether the dropout between layers has one mask for all steps of a sequence, [`functional::locked_dropout`].
    pub fn locked_dropout(self, locked_dropout: bool) -> Self {
        Self { locked_dropout, ..self }
    }

    /// Sets the rate of dropout on the recurrent matrices `weight_hh_l{k}` of all layers and directions: DropConnect, as in the AWD-LSTM
    /// (Merity et al. 2018). A training step draws one mask of each, for all time steps and the whole batch; a module that is run twice
    /// in a step draws for each run. What is left is scaled by `1 / (1 - rate)`, and outside a training nothing is dropped.
    pub fn weight_dropout(self, weight_dropout: f64) -> Self {
        Self { weight_dropout, ..self }
    }

    /// Sets whether there are two directions.
    pub fn bidirectional(self, bidirectional: bool) -> Self {
        Self { bidirectional, ..self }
    }

    /// Sets the size that an LSTM projects its outputs to.
    pub fn proj_size(self, proj_size: usize) -> Self {
        Self { proj_size, ..self }
    }

    /// Sets what is applied in place of tanh and σ: one function of an [`Rnn`], three of a [`Gru`] (r, z, n), five of an [`Lstm`]
    /// (i, f, g, o, and what c goes through on its way to h); of all layers and directions. As ONNX's `activations`, with its `alpha`
    /// and `beta`. Their gradients are PyTorch's; the backward pass computes the functions anew.
    ///
    /// ```
    /// use elman::nn::{Activation, Gru, Init, RnnOptions};
    /// use elman::rng;
    ///
    /// let mut init = Init::new(rng::manual_seed(0));
    /// let hard = Activation::HardSigmoid { alpha: 0.2, beta: 0.5 };
    /// let options = RnnOptions::new(3, 5).activations(&[hard, hard, Activation::Softsign]).clip(4.0);
    /// Gru::new(&mut init, "gru", options)?;
    /// # Ok::<(), elman::Error>(())
    /// ```
    pub fn activations(self, functions: &[Activation]) -> Self {
        let of = |i: usize| functions.get(i).copied().unwrap_or(Activation::Tanh);
        let activations = Activations { given: functions.len(), functions: std::array::from_fn(of) };
        Self { activations: Some(activations), ..self }
    }

    /// Bounds what comes into the functions of gates, and c on its way to h, to `[-clip, clip]`, as ONNX's `clip`; beyond it their
    /// gradient is 0. c itself is not bound.
    pub fn clip(self, clip: f32) -> Self {
        Self { clip: Some(clip), ..self }
    }

    /// Sets whether a GRU's reset gate is applied after the product with the recurrent matrix, `n = tanh(W_in x + b_in + r (W_hn h + b_hn))`,
    /// as PyTorch, cuDNN and Keras have it, or before, `n = tanh(W_in x + b_in + W_hn (r h) + b_hn)`, as in Cho et al. 2014: ONNX's
    /// `linear_before_reset` of 1 or 0. The parameters are the same. A step then needs a product more after r is known: it is in the one
    /// dispatch for all steps, and where there is one for each step, there are two.
    pub fn reset_after(self, reset_after: bool) -> Self {
        Self { reset_after, ..self }
    }

    /// Sets whether an LSTM has peepholes (Gers and Schmidhuber 2000): parameters `weight_ph_l{k}` `[3 H]`, `p_i, p_f, p_o`, drawn like
    /// the others and after them. `i = σ(.. + p_i c)`, `f = σ(.. + p_f c)`, `o = σ(.. + p_o c')`, elementwise, c the cell before the
    /// step and c' the one after it. ONNX's `P` has them as i, o, f.
    pub fn peepholes(self, peepholes: bool) -> Self {
        Self { peepholes, ..self }
    }

    /// Sets whether the forget gate of an LSTM is `f = 1 - i`, as ONNX's `input_forget`. The parameters are of all four gates; those of f
    /// are not looked at, and their gradient is 0.
    pub fn coupled(self, coupled: bool) -> Self {
        Self { coupled, ..self }
    }

    /// What its cell is asked for.
    pub(crate) fn form(&self, cell: Cell) -> CellForm {
        let own = Form::new(cell.kind().functions);
        let form = Form {
            activations: self.activations.map_or(own.activations, |activations| activations.functions),
            clip: self.clip.unwrap_or(own.clip),
            coupled: self.coupled,
        };
        let form = (form != own || self.peepholes).then_some(form);
        CellForm { cell, form, reset_after: self.reset_after }
    }

    /// The size of an output and of a hidden state, in one direction.
    fn output_size(&self) -> usize {
        if self.proj_size > 0 { self.proj_size } else { self.hidden_size }
    }

    fn directions(&self) -> usize {
        if self.bidirectional { 2 } else { 1 }
    }

    fn check(&self, cell: Cell) -> Result<()> {
        if let Some(Activations { given, functions }) = self.activations {
            let most = cell.kind().functions.len();
            if given != most {
                let expected = format!("as many as {cell:?} has, {most}");
                return Err(Error::argument("rnn", "activations", expected, given));
            }
            if self.nonlinearity == Nonlinearity::Relu {
                return Err(Error::argument("rnn", "nonlinearity", "left alone where activations are given", "Relu"));
            }
            if let Some(odd) = functions.iter().find(|function| function.parts().1.iter().any(|n| !n.is_finite())) {
                return Err(Error::argument("rnn", "activations", "of finite numbers", format!("{odd:?}")));
            }
        }
        if let Some(clip) = self.clip
            && (clip.is_nan() || clip <= 0.0)
        {
            return Err(Error::argument("rnn", "clip", "above 0", clip));
        }
        if !self.reset_after && cell != Cell::Gru {
            return Err(Error::argument("rnn", "reset_after", "left alone, but for a GRU", false));
        }
        for (name, is_set) in [("peepholes", self.peepholes), ("coupled", self.coupled)] {
            if is_set && cell != Cell::Lstm {
                return Err(Error::argument("rnn", name, "left alone, but for an LSTM", true));
            }
        }
        if self.nonlinearity == Nonlinearity::Relu && cell != Cell::Relu {
            return Err(Error::argument("rnn", "nonlinearity", format!("left alone for {cell:?}"), "Relu"));
        }
        if self.proj_size > 0 && cell != Cell::Lstm {
            return Err(Error::argument("rnn", "proj_size", "0, but for an LSTM", self.proj_size));
        }
        if self.proj_size > 0 && self.proj_size >= self.hidden_size {
            let expected = format!("below the hidden size, {}", self.hidden_size);
            return Err(Error::argument("lstm", "proj_size", expected, self.proj_size));
        }
        if self.num_layers == 0 {
            return Err(Error::argument("rnn", "num_layers", "at least 1", 0));
        }
        let sizes = [cell.gates(), self.hidden_size, self.output_size(), self.directions()];
        let most = MOST_ELEMENTS / sizes.into_iter().fold(1, usize::saturating_mul).max(LEAST_OF_A_LAYER);
        // Where one layer is too large by itself, its shape says so.
        if most > 0 && self.num_layers > most {
            let expected = format!("at most {most}, of these sizes, for all parameters lie in one buffer");
            return Err(Error::argument("rnn", "num_layers", expected, self.num_layers));
        }
        for (name, rate) in [("dropout", self.dropout), ("weight_dropout", self.weight_dropout)] {
            if !(0.0..1.0).contains(&rate) {
                return Err(Error::argument("rnn", name, "at least 0 and below 1", rate));
            }
        }
        Ok(())
    }
}

/// What the file says of a module of this name, whose first parameters end so: with an input of G H rows, and a recurrent matrix of H columns,
/// it is an RNN, a GRU or an LSTM by G. A projection is an LSTM's.
fn read_off(file: &ModelFile, name: &str, suffix: &str) -> Result<(Cell, RnnOptions)> {
    let full = |parameter: &str, suffix: &str| name_in(name, &format!("{parameter}{suffix}"));
    let has = |parameter: &str, suffix: &str| file.shape(&full(parameter, suffix)).is_some();
    let matrix = |parameter: &str| {
        let name = full(parameter, suffix);
        let shape = file.shape(&name).ok_or_else(|| file.lacks(&name))?;
        let misfit = || file.problem(format!("`{name}` must have two dimensions, but has shape {shape:?}"));
        <[usize; 2]>::try_from(shape).map_err(|_| misfit())
    };
    let ([rows, input], [_, columns]) = (matrix("weight_ih")?, matrix("weight_hh")?);
    let projection = if has("weight_hr", suffix) { Some(matrix("weight_hr")?) } else { None };
    let hidden = projection.map_or(columns, |[_, hidden]| hidden);
    let cell = match (rows.checked_div(hidden).filter(|gates| gates * hidden == rows), projection) {
        (Some(1), None) => Cell::Tanh,
        (Some(3), None) => Cell::Gru,
        (Some(4), _) => Cell::Lstm,
        _ => {
            let expected = format!("{hidden} (RNN), {} (GRU) or {} (LSTM) rows", 3 * hidden, 4 * hidden);
            let got = format!(
                "`{}`, of {hidden} hidden units, must have {expected}, but has {rows}",
                full("weight_ih", suffix)
            );
            return Err(file.problem(got));
        }
    };
    let above = (1..).take_while(|layer| has("weight_ih", &format!("_l{layer}"))).count();
    let options = RnnOptions::new(input, hidden)
        .num_layers(1 + if suffix.is_empty() { 0 } else { above })
        .bidirectional(has("weight_ih", &format!("{suffix}_reverse")))
        .bias(has("bias_ih", suffix))
        .proj_size(projection.map_or(0, |[projected, _]| projected))
        .peepholes(has("weight_ph", suffix));
    Ok((cell, options))
}

/// [`read_off`], of a module that is to have as many gates as this cell.
fn read_off_as(
    init: &Init,
    name: &str,
    suffix: &str,
    expected: impl Fn(&RnnOptions) -> Cell,
) -> Result<(Cell, RnnOptions)> {
    let file = init.file()?;
    let (got, options) = read_off(file, name, suffix)?;
    let expected = expected(&options);
    if got.gates() != expected.gates() {
        let name = if name.is_empty() { "the module" } else { name };
        return Err(file.problem(format!("`{name}` must be an {expected:?}, but has the shapes of a {got:?}")));
    }
    Ok((expected, options))
}

/// A recurrent module whose cell is chosen at run time; [`Rnn`], [`Gru`] and [`Lstm`] are this with a cell of their own.
#[derive(Clone, Debug)]
pub struct Recurrent {
    name: String,
    cell: Cell,
    options: RnnOptions,
    /// By layer, then by direction.
    layers: Vec<Layer>,
    /// The seed of the dropout.
    seed: [u32; 2],
}

/// The parameters of one layer in one direction.
#[derive(Clone, Debug)]
struct Layer {
    weight_ih: ParameterId,
    weight_hh: ParameterId,
    /// `bias_ih`, `bias_hh`.
    biases: Option<[ParameterId; 2]>,
    /// `[P, H]`
    weight_hr: Option<ParameterId>,
    /// `[3 H]`
    weight_ph: Option<ParameterId>,
    /// Rate and seed of the dropout on `weight_hh`.
    weight_dropout: (f64, u32),
}

impl Layer {
    /// Draws `<name>.weight_ih<suffix>` and so on, in PyTorch's order.
    fn new(init: &mut Init, name: &str, suffix: &str, cell: Cell, input: usize, options: &RnnOptions) -> Result<Self> {
        let (hidden, gates) = (options.hidden_size, cell.gates());
        let bound = 1.0 / (hidden as f64).sqrt();
        let mut draw =
            |kind: &str, shape: &[usize]| init.uniform(name_in(name, &format!("{kind}{suffix}")), shape, bound);
        let width = gates.saturating_mul(hidden);
        Ok(Self {
            weight_ih: draw("weight_ih", &[width, input])?,
            weight_hh: draw("weight_hh", &[width, options.output_size()])?,
            biases: if options.bias { Some([draw("bias_ih", &[width])?, draw("bias_hh", &[width])?]) } else { None },
            weight_hr: match options.proj_size {
                0 => None,
                projected => Some(draw("weight_hr", &[projected, hidden])?),
            },
            weight_ph: options.peepholes.then(|| draw("weight_ph", &[3 * hidden])).transpose()?,
            weight_dropout: (
                options.weight_dropout,
                threefry2x32(seed_of(&format!("{name}.weight_hh{suffix}"), init), [0, 0])[0],
            ),
        })
    }

    /// The recurrent matrix, of which a training drops some.
    fn weight_hh(&self, g: &mut Graph) -> Result<Var> {
        let (weight, (rate, seed)) = (g.parameter(self.weight_hh)?, self.weight_dropout);
        functional::dropout(g, weight, rate, seed)
    }

    /// `x W_ihᵀ` for all steps at once, in `place` if there is one: what the recurrence takes.
    fn direction(
        &self,
        g: &mut Graph,
        cell: CellForm,
        x: Var,
        start: Option<States>,
        place: Option<Tensor>,
        (resets, reversed): (Option<&Tensor>, bool),
    ) -> Result<Direction> {
        let (below, bias) = self.biases(g, cell)?;
        let weight_ih = g.parameter(self.weight_ih)?;
        let x = functional::linear_with_biases(g, x, weight_ih, &below, place)?;
        let weight = self.weight_hh(g)?;
        let peepholes = self.peepholes(g)?;
        match self.weight_hr {
            None => Ok(Direction { bias, peepholes, start, reversed, ..Direction::new(x, weight) }),
            Some(weight_hr) => {
                let weight_hr = g.parameter(weight_hr)?;
                let marks = resets.filter(|_| !reversed);
                Ok(Direction { peepholes, reversed, ..projected_direction(g, x, weight, weight_hr, start, marks)? })
            }
        }
    }

    fn peepholes(&self, g: &mut Graph) -> Result<Option<Var>> {
        self.weight_ph.map(|weight_ph| g.parameter(weight_ph)).transpose()
    }

    /// The biases that are in the recurrence's input, and the one that is not: the GRU's b_hh is inside the product that its
    /// reset gate scales; elsewhere the two add up.
    fn biases(&self, g: &mut Graph, cell: CellForm) -> Result<(Vec<Var>, Option<Var>)> {
        let Some([b_ih, b_hh]) = self.biases else { return Ok((vec![], None)) };
        let (b_ih, b_hh) = (g.parameter(b_ih)?, g.parameter(b_hh)?);
        Ok(if cell.kind().separate_bias { (vec![b_ih], Some(b_hh)) } else { (vec![b_ih, b_hh], None) })
    }

    /// What comes out of the recurrence, projected if this layer projects.
    fn project(&self, g: &mut Graph, (output, end): (Var, States)) -> Result<(Var, States)> {
        let Some(weight_hr) = self.weight_hr else { return Ok((output, end)) };
        let weight_hr = g.parameter(weight_hr)?;
        let output = functional::linear(g, output, weight_hr, None)?;
        Ok((output, States { h: functional::linear(g, end.h, weight_hr, None)?, ..end }))
    }
}

/// A layer on `x`: its directions side by side, each from the first step of its own `input` to the last.
fn run_layer(
    g: &mut Graph,
    cell: CellForm,
    layer: &[Layer],
    x: Var,
    input: impl Fn(&mut Graph, usize) -> Result<(Var, Option<States>)>,
    run: RunOptions<'_>,
) -> Result<Vec<(Var, States)>> {
    let weight_hh = g.parameter(layer[0].weight_hh)?;
    let shape = functional::linear_shape(g, x, g.shape(weight_hh)[0]);
    let places = g.adjacent("inputs of all directions", layer.len(), &shape)?;
    let mut directions = Vec::new();
    for (d, (direction, place)) in layer.iter().zip(places).enumerate() {
        let (x, start) = input(g, d)?;
        directions.push(direction.direction(g, cell, x, start, place, (run.resets, d == 1))?);
    }
    let results = functional::recurrences(g, cell, &directions, run)?;
    layer.iter().zip(results).map(|(direction, result)| direction.project(g, result)).collect()
}

/// Layers on `x`, each on the outputs of the one below, as a wavefront: the outputs of the top one, and all last states.
fn run_stack(
    g: &mut Graph,
    cell: CellForm,
    layers: &[Layer],
    x: Var,
    start: impl Fn(&mut Graph, usize) -> Result<Option<States>>,
    run: RunOptions<'_>,
) -> Result<(Var, Vec<States>)> {
    let start_of_lowest = start(g, 0)?;
    let lowest = layers[0].direction(g, cell, x, start_of_lowest, None, (None, false))?;
    let mut above = Vec::new();
    for (l, layer) in layers.iter().enumerate().skip(1) {
        let (below, bias) = layer.biases(g, cell)?;
        let bias_below = match *below.as_slice() {
            [b_ih, b_hh] => Some(functional::add(g, b_ih, b_hh)?),
            _ => below.first().copied(),
        };
        let (weight_ih, weight) = (g.parameter(layer.weight_ih)?, layer.weight_hh(g)?);
        let peepholes = layer.peepholes(g)?;
        above.push(Above { weight_ih, bias_below, weight, bias, peepholes, start: start(g, l)? });
    }
    functional::stacked_recurrence(g, cell, lowest, &above, run)
}

/// An LSTM whose hidden state is `h = h' W_hrᵀ`, for `h' = σ(o) tanh(c)`: `x` `[T, B, 4 H]`, `weight_hh` `[4 H, P]`,
/// `weight_hr` `[P, H]`.
///
/// `h W_hhᵀ` is `h' (W_hh W_hr)ᵀ`, so the recurrence runs on h' with that matrix, all steps in one dispatch as without
/// a projection, and what comes out is projected once for all steps.
fn projected_direction(
    g: &mut Graph,
    mut x: Var,
    weight_hh: Var,
    weight_hr: Var,
    mut start: Option<States>,
    resets: Option<&Tensor>,
) -> Result<Direction> {
    let transposed = functional::transpose(g, weight_hr, 0, 1)?;
    let weight = functional::linear(g, weight_hh, transposed, None)?;
    if let Some(States { mut h, c }) = start {
        if let Some(marks) = resets {
            h = functional::reset_state(g, h, marks)?;
        }
        // The incoming state is projected already: its product joins the first step's input.
        let product = functional::linear(g, h, weight_hh, None)?;
        let steps = g.shape(x)[0];
        let first = functional::narrow(g, x, 0, 0, 1)?;
        let mut parts = vec![functional::add(g, first, product)?];
        if steps > 1 {
            parts.push(functional::narrow(g, x, 0, 1, steps - 1)?);
        }
        x = functional::concat(g, &parts, 0)?;
        let zero = g.zeros("no h'", &[1, g.shape(x)[1], g.shape(weight)[1]])?;
        start = Some(States { h: g.input(&zero)?, c });
    }
    Ok(Direction { start, ..Direction::new(x, weight) })
}

impl Recurrent {
    /// Draws the parameters `<name>.weight_ih_l0` and so on, in PyTorch's order.
    ///
    /// # Errors
    /// A size or number of layers of 0, a dropout outside [0, 1), an option that this cell does not have, or the name is
    /// taken.
    pub fn new(init: &mut Init, name: &str, cell: Cell, options: RnnOptions) -> Result<Self> {
        options.check(cell)?;
        let mut layers = Vec::new();
        for layer in 0..options.num_layers {
            let below = options.output_size().saturating_mul(options.directions());
            let input = if layer == 0 { options.input_size } else { below };
            for direction in ["", "_reverse"].iter().take(options.directions()) {
                layers.push(Layer::new(init, name, &format!("_l{layer}{direction}"), cell, input, &options)?);
            }
        }
        Ok(Self { name: name.into(), cell, options, layers, seed: seed_of(name, init) })
    }

    /// What its parameters' names begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made with.
    pub fn options(&self) -> &RnnOptions {
        &self.options
    }

    /// What the file of [`Init::from_file`] has under this name: an RNN (tanh, for the file does not say), a GRU or an LSTM, told apart by the
    /// shapes, with all that [`RnnOptions::from_file`] reads off.
    ///
    /// # Errors
    /// The file has no such module, or its shapes are those of none; `init` has no file; the name is taken.
    pub fn from_file(init: &mut Init, name: &str) -> Result<Self> {
        let (cell, options) = read_off(init.file()?, name, "_l0")?;
        Self::new(init, name, cell, options)
    }

    /// What happens at each step.
    pub fn cell(&self) -> Cell {
        self.cell
    }

    /// The parameters of each layer, as [`crate::kernels::generate`] takes them: of one direction, with biases, without a
    /// projection.
    pub(super) fn parameters(&self, g: &mut Graph) -> Result<Vec<generate::Layer>> {
        let layer = |layer: &Layer| {
            let mut tensor = |id| g.parameter(id).and_then(|var| g.tensor(var));
            let [bias_ih, bias_hh] = layer.biases.expect("a layer with biases");
            Ok(generate::Layer {
                weight_ih: tensor(layer.weight_ih)?,
                weight_hh: tensor(layer.weight_hh)?,
                bias_ih: tensor(bias_ih)?,
                bias_hh: tensor(bias_hh)?,
            })
        };
        self.layers.iter().map(layer).collect()
    }

    /// The shapes of `h_n` and `c_n` for a batch.
    fn state_shapes(&self, batch: usize) -> [[usize; 3]; 2] {
        [self.options.output_size(), self.options.hidden_size].map(|size| [self.layers.len(), batch, size])
    }

    /// A zero state for `batch` sequences, to carry from window to window: `h`, and `c` for the LSTM.
    ///
    /// # Errors
    /// A batch of 0.
    pub fn state(&self, device: &Device, batch: usize) -> Result<State> {
        let [h, c] = self.state_shapes(batch);
        State::zeros(device, &[("h", h), ("c", c)][..self.cell.states()])
    }

    /// `x` `[T, B, I]` (`[B, T, I]` if batch first) to the output of every step and the last states; see [`RnnOutput`]
    /// and [`LstmOutput`] for their shapes. A sequence alone, `[T, I]`, is a batch of one, without its axis: then the output is
    /// `[T, D H]`, and states are `[D * L, H]`, those that are given too; a carried state, lengths and resets are those of a batch of one.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward(&self, g: &mut Graph, x: Var, initial: InitialState<'_>) -> Result<(Var, States)> {
        self.run(g, x, initial, RunOptions::new())
    }

    /// [`Self::forward`] for sequences of different lengths, or with states that become 0 before some steps.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward_with(
        &self,
        g: &mut Graph,
        x: Var,
        initial: InitialState<'_>,
        run: RunOptions<'_>,
    ) -> Result<(Var, States)> {
        self.run(g, x, initial, run)
    }

    /// [`Self::forward`] for sequences of different lengths; see [`RunOptions::lengths`].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward_with_lengths(
        &self,
        g: &mut Graph,
        x: Var,
        initial: InitialState<'_>,
        lengths: &Tensor,
    ) -> Result<(Var, States)> {
        self.run(g, x, initial, RunOptions::new().lengths(lengths))
    }

    fn run(&self, g: &mut Graph, x: Var, initial: InitialState<'_>, run: RunOptions<'_>) -> Result<(Var, States)> {
        let results = self.record(g, x, initial, run).map_err(|error| error.in_module(&self.name))?;
        let (output, States { h, c }) = results;
        for (var, of) in [(Some(output), "output"), (Some(h), "h_n"), (c, "c_n")] {
            if let Some(var) = var {
                g.set_name(var, &format!("{}.{of}", self.name));
            }
        }
        Ok(results)
    }

    fn record(&self, g: &mut Graph, x: Var, initial: InitialState<'_>, run: RunOptions<'_>) -> Result<(Var, States)> {
        match *g.shape(x) {
            [steps, input_size] if input_size == self.options.input_size => {
                self.record_sequence(g, x, steps, initial, run)
            }
            _ => self.record_batch(g, x, initial, run),
        }
    }

    /// A sequence alone, `[T, I]`: a batch of one, whose axis goes.
    fn record_sequence(
        &self,
        g: &mut Graph,
        x: Var,
        steps: usize,
        mut initial: InitialState<'_>,
        run: RunOptions<'_>,
    ) -> Result<(Var, States)> {
        let input_size = self.options.input_size;
        let outer = if self.options.batch_first { [1, steps] } else { [steps, 1] };
        let x = functional::reshape(g, x, &[outer[0], outer[1], input_size])?;
        if let InitialState::Given(States { h, c }) = &mut initial {
            g.check(std::iter::once(*h).chain(*c))?;
            for (state, [slots, _, size]) in std::iter::once(h).chain(c).zip(self.state_shapes(1)) {
                if g.shape(*state) != [slots, size] {
                    let expected = format!("[{slots}, {size}], without an axis of the batch as x is,");
                    return Err(Error::shape(op(self.cell), g.name(*state), expected, g.shape(*state)));
                }
                *state = functional::reshape(g, *state, &[slots, 1, size])?;
            }
        }
        let (output, States { h, c }) = self.record_batch(g, x, initial, run)?;
        let without_batch = |g: &mut Graph, value: Var| {
            let &[a, b, size] = g.shape(value) else { unreachable!("results have three dimensions") };
            functional::reshape(g, value, &[a * b, size])
        };
        let (output, h) = (without_batch(g, output)?, without_batch(g, h)?);
        Ok((output, States { h, c: c.map(|c| without_batch(g, c)).transpose()? }))
    }

    fn record_batch(
        &self,
        g: &mut Graph,
        x: Var,
        initial: InitialState<'_>,
        run: RunOptions<'_>,
    ) -> Result<(Var, States)> {
        let op = op(self.cell);
        let RnnOptions { batch_first, dropout, .. } = self.options;
        let directions = self.options.directions();
        let given = match initial {
            InitialState::Given(states) => Some(states),
            _ => None,
        };
        g.check(std::iter::once(x).chain(given.into_iter().flat_map(States::vars)))?;
        let input_size = self.options.input_size;
        if g.shape(x).len() != 3 || g.shape(x)[2] != input_size {
            let outer = if batch_first { "B, T" } else { "T, B" };
            let expected = format!("[{outer}, {input_size}] or [T, {input_size}]");
            return Err(Error::shape(op, g.name(x), expected, g.shape(x)));
        }
        let mut x = if batch_first { functional::transpose(g, x, 0, 1)? } else { x };
        let (steps, batch) = (g.shape(x)[0], g.shape(x)[1]);
        let (form, lengths) = (self.options.form(self.cell), run.lengths);
        if let Some(lengths) = lengths {
            kernels::expect_lengths(op, lengths, batch, steps)?;
        }
        run.check_resets(op, steps, batch)?;
        let shapes = self.state_shapes(batch);
        if let Some(States { h, c }) = given {
            functional::check_states(self.cell.kind(), States { h, c })?;
            for (state, shape) in [Some(h), c].into_iter().zip(shapes) {
                if let Some(state) = state
                    && g.shape(state) != shape
                {
                    return Err(Error::shape(op, g.name(state), format!("{shape:?}"), g.shape(state)));
                }
            }
        }
        let all_steps = match (lengths, self.options.bidirectional) {
            (None, true) => Some(g.device().lengths("all steps", batch, steps)?),
            _ => None,
        };
        let mut ends = Vec::new();
        let mut above = self.layers.as_slice();
        let training = g.is_training();
        let drops = dropout > 0.0 && training;
        if drops && self.options.num_layers == 1 {
            g.note(format!(
                "{:?}: a dropout of {dropout} between layers does nothing, for there is one layer",
                self.cell
            ));
        }
        let (rows, size) = (functional::input_rows(g, x), [steps, batch, self.options.hidden_size]);
        if directions == 1
            && self.options.proj_size == 0
            && !drops
            && sequence::shall_stack(g, form.kind(), training, above.len(), rows, size)
        {
            (x, ends) = run_stack(g, form, above, x, |g, l| self.start(g, initial, &shapes, l), run)?;
            above = &[];
        }
        for (l, layer) in above.chunks(directions).enumerate() {
            if l > 0 {
                let seed = threefry2x32(self.seed, [l as u32, 0])[0];
                x = match self.options.locked_dropout {
                    true => functional::locked_dropout(g, x, 0, dropout, seed)?,
                    false => functional::dropout(g, x, dropout, seed)?,
                };
            }
            let reversal = |d: usize| lengths.or(all_steps.as_ref()).filter(|_| d == 1);
            let input = |g: &mut Graph, d: usize| {
                let x = reversal(d).map_or(Ok(x), |lengths| functional::reverse_input(g, x, lengths))?;
                Ok((x, self.start(g, initial, &shapes, l * directions + d)?))
            };
            let mut outputs = Vec::new();
            for (d, (output, end)) in run_layer(g, form, layer, x, input, run)?.into_iter().enumerate() {
                outputs.push(reversal(d).map_or(Ok(output), |lengths| functional::reverse(g, output, lengths))?);
                ends.push(end);
            }
            x = functional::concat(g, &outputs, -1)?;
        }
        if let InitialState::Carried(state) = initial {
            for (k, end) in ends.iter().enumerate() {
                for (name, end, shape) in [("h", Some(end.h), shapes[0]), ("c", end.c, shapes[1])] {
                    let Some(end) = end else { continue };
                    let place = slot(&state.tensor(name, &shape)?, k);
                    let end = g.tensor(end)?;
                    g.copy(&end, &place)?;
                }
            }
        }
        let h_n: Vec<_> = ends.iter().map(|end| end.h).collect();
        let c_n: Vec<_> = ends.iter().filter_map(|end| end.c).collect();
        let h = functional::concat(g, &h_n, 0)?;
        let c = if c_n.is_empty() { None } else { Some(functional::concat(g, &c_n, 0)?) };
        let output = if batch_first { functional::transpose(g, x, 0, 1)? } else { x };
        Ok((output, States { h, c }))
    }

    /// The incoming state of layer and direction k.
    fn start(
        &self,
        g: &mut Graph,
        initial: InitialState<'_>,
        shapes: &[[usize; 3]; 2],
        k: usize,
    ) -> Result<Option<States>> {
        Ok(match initial {
            InitialState::Zero => None,
            InitialState::Given(States { h, c }) => Some(States {
                h: functional::narrow(g, h, 0, k, 1)?,
                c: c.map(|c| functional::narrow(g, c, 0, k, 1)).transpose()?,
            }),
            InitialState::Carried(state) => {
                let mut value = |name: &str, shape: &[usize; 3]| {
                    let before = slot(&state.tensor(name, shape)?, k);
                    if self.options.proj_size == 0 {
                        return g.input(&before);
                    }
                    // A copy: the gradient of W_hh reads it after this run has written the state.
                    let copy = g.zeros(name, before.shape())?;
                    g.copy(&before, &copy)?;
                    g.input(&copy)
                };
                let h = value("h", &shapes[0])?;
                let c = if self.cell.states() == 2 { Some(value("c", &shapes[1])?) } else { None };
                Some(States { h, c })
            }
        })
    }
}

/// Layer and direction k of a state `[D * L, B, H]`.
fn slot(state: &Tensor, k: usize) -> Tensor {
    let &[_, batch, size] = state.shape() else { unreachable!("a state has three dimensions") };
    state.view(state.name(), k * batch * size, &[1, batch, size])
}

/// What [`Rnn`] and [`Gru`] return.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RnnOutput {
    /// The state of the top layer after every step: `[T, B, D H]`, or `[B, T, D H]` if the module is batch first; `[T, D H]` of a sequence
    /// alone.
    pub output: Var,
    /// The state after the last step, `[D * L, B, H]` whatever `batch_first` says; `[D * L, H]` of a sequence alone.
    pub h_n: Var,
}

/// What [`Lstm`] returns. With `proj_size`, H is P in all but `c_n`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LstmOutput {
    /// As [`RnnOutput::output`].
    pub output: Var,
    /// The hidden state after the last step, `[D * L, B, H]`; `[D * L, H]` of a sequence alone.
    pub h_n: Var,
    /// The cell after the last step, `[D * L, B, H]`; `[D * L, H]` of a sequence alone.
    pub c_n: Var,
}

macro_rules! module {
    ($(#[$doc:meta])* $name:ident, $output:ident, $cell:expr, |$out:ident, $states:ident| $made:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(Recurrent);

        impl AsRef<Recurrent> for $name {
            fn as_ref(&self) -> &Recurrent {
                &self.0
            }
        }

        impl $name {
            /// Draws the parameters `<name>.weight_ih_l0` and so on, in PyTorch's order.
            ///
            /// # Errors
            /// A size or number of layers of 0, a dropout outside [0, 1), an option that this module does not have, or
            /// the name is taken.
            pub fn new(init: &mut Init, name: &str, options: RnnOptions) -> Result<Self> {
                let cell: fn(&RnnOptions) -> Cell = $cell;
                Ok(Self(Recurrent::new(init, name, cell(&options), options)?))
            }

            /// What the file of [`Init::from_file`] has under this name, with all that [`RnnOptions::from_file`] reads off. To change
            /// what a file does not say, make it of those: `new(&mut init, name, RnnOptions::from_file(&file, name)?.batch_first(true))`.
            ///
            /// # Errors
            /// The file has no such module, or one of another cell; `init` has no file; the name is taken.
            pub fn from_file(init: &mut Init, name: &str) -> Result<Self> {
                let (cell, options) = read_off_as(init, name, "_l0", $cell)?;
                Ok(Self(Recurrent::new(init, name, cell, options)?))
            }

            /// A zero state for `batch` sequences, to carry from window to window.
            ///
            /// # Errors
            /// A batch of 0.
            pub fn state(&self, device: &Device, batch: usize) -> Result<State> {
                self.0.state(device, batch)
            }

            /// `x` `[T, B, I]` (`[B, T, I]` if batch first), or a sequence alone, `[T, I]`: a batch of one, without its axis in outputs
            /// and states, those that are given too.
            ///
            /// # Errors
            /// The shapes do not fit.
            pub fn forward(&self, g: &mut Graph, x: Var, initial: InitialState<'_>) -> Result<$output> {
                let ($out, $states) = self.0.run(g, x, initial, RunOptions::new())?;
                Ok($made)
            }

            /// [`Self::forward`] for sequences of different lengths, or with states that become 0 before some steps: see
            /// [`RunOptions`].
            ///
            /// # Errors
            /// The shapes do not fit.
            pub fn forward_with(
                &self,
                g: &mut Graph,
                x: Var,
                initial: InitialState<'_>,
                run: RunOptions<'_>,
            ) -> Result<$output> {
                let ($out, $states) = self.0.run(g, x, initial, run)?;
                Ok($made)
            }

            /// [`Self::forward_with`] lengths: `[B]` u32 from [`Device::lengths`]; see [`RunOptions::lengths`].
            ///
            /// # Errors
            /// The shapes do not fit.
            pub fn forward_with_lengths(
                &self,
                g: &mut Graph,
                x: Var,
                initial: InitialState<'_>,
                lengths: &Tensor,
            ) -> Result<$output> {
                let ($out, $states) = self.0.run(g, x, initial, RunOptions::new().lengths(lengths))?;
                Ok($made)
            }
        }
    };
}

module! {
    /// The Elman network (`torch.nn.RNN`): `h_t = tanh(x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh)`, or with `max(0, ·)`.
    ///
    /// Parameters of layer k `weight_ih_l{k}` `[H, I]` (`[H, D H]` above the first layer), `weight_hh_l{k}` `[H, H]`,
    /// `bias_ih_l{k}` and `bias_hh_l{k}` `[H]`, with `_reverse` behind them for the second direction; all from
    /// U(-1/√H, 1/√H).
    ///
    /// ```
    /// use elman::nn::functional::InitialState;
    /// use elman::{Device, Graph, nn, rng};
    ///
    /// let device = Device::cpu();
    /// let mut init = nn::Init::new(rng::manual_seed(0));
    /// let rnn = nn::Rnn::new(&mut init, "rnn", nn::RnnOptions::new(4, 7).num_layers(2).bidirectional(true))?;
    /// let parameters = init.upload(&device)?;
    ///
    /// let mut g = Graph::new(&parameters);
    /// let x = g.input(&device.upload("x", &[5, 3, 4], &[0.5; 60])?)?; // [T, B, I]
    /// let out = rnn.forward(&mut g, x, InitialState::Zero)?;
    /// assert_eq!(g.shape(out.output), [5, 3, 14]); // [T, B, D H]
    /// assert_eq!(g.shape(out.h_n), [4, 3, 7]); // [D * L, B, H]
    /// # Ok::<(), elman::Error>(())
    /// ```
    Rnn, RnnOutput, elman_cell, |output, states| RnnOutput { output, h_n: states.h }
}

module! {
    /// The gated recurrent unit (`torch.nn.GRU`), gates r, z, n, reset after the product:
    /// `r = σ(W_ir x + b_ir + W_hr h + b_hr)`, `z` likewise, `n = tanh(W_in x + b_in + r (W_hn h + b_hn))`,
    /// `h' = (1 - z) n + z h`; or before, [`RnnOptions::reset_after`].
    ///
    /// Parameters as [`Rnn`]'s, with 3 H in place of their first H.
    Gru, RnnOutput, |_| Cell::Gru, |output, states| RnnOutput { output, h_n: states.h }
}

module! {
    /// Long short-term memory (`torch.nn.LSTM`), gates i, f, g, o: `c' = σ(f) c + σ(i) tanh(g)`, `h' = σ(o) tanh(c')`; with
    /// [`RnnOptions::peepholes`] and [`RnnOptions::coupled`] gates too.
    ///
    /// With `proj_size`, h' is multiplied with `weight_hr_l{k}` `[P, H]`: outputs and hidden states are of size P, cells
    /// of size H. Parameters as [`Rnn`]'s, with 4 H in place of their first H.
    Lstm, LstmOutput, |_| Cell::Lstm, |output, states| LstmOutput {
        output,
        h_n: states.h,
        c_n: states.c.expect("an LSTM has a cell"),
    }
}

macro_rules! cell {
    ($(#[$doc:meta])* $name:ident, $module:literal, $cell:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(SingleStep);

        impl $name {
            /// Draws the parameters `<name>.weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`. Of the options, sizes, bias
            /// and what is asked of the cell count; the others must be left alone.
            ///
            /// # Errors
            /// A size of 0, an option that a cell does not have, or the name is taken.
            pub fn new(init: &mut Init, name: &str, options: RnnOptions) -> Result<Self> {
                let cell: fn(&RnnOptions) -> Cell = $cell;
                Ok(Self(SingleStep::new(init, $module, name, cell(&options), options)?))
            }

            /// What the file of [`Init::from_file`] has under this name.
            ///
            /// # Errors
            /// The file has no such cell, or another; `init` has no file; the name is taken.
            pub fn from_file(init: &mut Init, name: &str) -> Result<Self> {
                let (cell, options) = read_off_as(init, name, "", $cell)?;
                Ok(Self(SingleStep::new(init, $module, name, cell, options)?))
            }

            /// `x` `[B, I]` and states `[B, H]` (zero if none are given) to the next states, `[B, H]`.
            ///
            /// # Errors
            /// The shapes do not fit.
            pub fn forward(&self, g: &mut Graph, x: Var, states: Option<States>) -> Result<States> {
                self.0.forward(g, x, states)
            }
        }
    };
}

cell! {
    /// One step of [`Rnn`] (`torch.nn.RNNCell`).
    RnnCell, "rnn cell", elman_cell
}

cell! {
    /// One step of [`Gru`] (`torch.nn.GRUCell`).
    GruCell, "gru cell", |_| Cell::Gru
}

cell! {
    /// One step of [`Lstm`] (`torch.nn.LSTMCell`).
    LstmCell, "lstm cell", |_| Cell::Lstm
}

/// One step of a recurrence: a sequence of length 1.
#[derive(Clone, Debug)]
struct SingleStep {
    name: String,
    cell: Cell,
    form: CellForm,
    hidden: usize,
    input: usize,
    layer: Layer,
}

impl SingleStep {
    fn new(init: &mut Init, module: &'static str, name: &str, cell: Cell, options: RnnOptions) -> Result<Self> {
        let RnnOptions { input_size, hidden_size, .. } = options;
        let of_a_cell = RnnOptions {
            num_layers: 1,
            batch_first: false,
            dropout: 0.0,
            locked_dropout: false,
            weight_dropout: 0.0,
            bidirectional: false,
            proj_size: 0,
            ..options
        };
        if options != of_a_cell {
            return Err(Error::argument(module, "options", "of one layer, one direction, time first", "others"));
        }
        options.check(cell)?;
        let layer = Layer::new(init, name, "", cell, input_size, &options)?;
        Ok(Self { name: name.into(), cell, form: options.form(cell), hidden: hidden_size, input: input_size, layer })
    }

    fn forward(&self, g: &mut Graph, x: Var, states: Option<States>) -> Result<States> {
        let next = self.record(g, x, states).map_err(|error| error.in_module(&self.name))?;
        for (var, of) in [(Some(next.h), "h"), (next.c, "c")] {
            if let Some(var) = var {
                g.set_name(var, &format!("{}.{of}", self.name));
            }
        }
        Ok(next)
    }

    fn record(&self, g: &mut Graph, x: Var, states: Option<States>) -> Result<States> {
        g.check(std::iter::once(x).chain(states.into_iter().flat_map(States::vars)))?;
        let batch = match *g.shape(x) {
            [batch, input] if input == self.input => batch,
            _ => return Err(Error::shape("cell", g.name(x), format!("[B, {}]", self.input), g.shape(x))),
        };
        let x = functional::reshape(g, x, &[1, batch, self.input])?;
        let state = [1, batch, self.hidden];
        let start = match states {
            None => None,
            Some(States { h, c }) => {
                functional::check_states(self.cell.kind(), States { h, c })?;
                for state in [Some(h), c].into_iter().flatten() {
                    if g.shape(state) != [batch, self.hidden] {
                        let expected = format!("[{batch}, {}]", self.hidden);
                        return Err(Error::shape("cell", g.name(state), expected, g.shape(state)));
                    }
                }
                let h = functional::reshape(g, h, &state)?;
                Some(States { h, c: c.map(|c| functional::reshape(g, c, &state)).transpose()? })
            }
        };
        let layer = std::slice::from_ref(&self.layer);
        let (_, States { h, c }) = run_layer(g, self.form, layer, x, |_, _| Ok((x, start)), RunOptions::new())?[0];
        let h = functional::reshape(g, h, &state[1..])?;
        Ok(States { h, c: c.map(|c| functional::reshape(g, c, &state[1..])).transpose()? })
    }
}

/// The seed of a dropout: masks differ from module to module and from seed to seed; the generator is looked at, not drawn from.
fn seed_of(name: &str, init: &Init) -> [u32; 2] {
    let hash = name.bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    [hash, init.rng.clone().next_u32()]
}

/// What errors call a module of this cell.
fn op(cell: Cell) -> &'static str {
    match cell {
        Cell::Tanh | Cell::Relu => "rnn",
        Cell::Gru => "gru",
        Cell::Lstm => "lstm",
    }
}

fn elman_cell(options: &RnnOptions) -> Cell {
    match options.nonlinearity {
        Nonlinearity::Tanh => Cell::Tanh,
        Nonlinearity::Relu => Cell::Relu,
    }
}
