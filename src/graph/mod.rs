//! A recorder of a [`Plan`] with values, their gradients, and a tape, kept while building, that writes the backward commands.

mod loss;
mod map;
mod parameters;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use loss::Loss;
use map::Expression;
pub(crate) use parameters::name_in;
pub use parameters::{Init, ParameterId, Parameters};

use crate::device::Device;
use crate::device::gpu::WasmNotSend;
use crate::error::{Error, Result};
use crate::kernels;
use crate::kernels::generate::Network;
use crate::plan::{Plan, Recorder};
use crate::tensor::Tensor;

/// A value of the graph under construction, and of no other: two numbers, to be copied freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var {
    graph: u64,
    index: usize,
}

/// Records what a plan will do.
///
/// Modules and the operations of [`crate::nn::functional`] call it in forward order. Each differentiable operation
/// leaves a closure on the tape; [`Graph::backward`] runs them in reverse, and they record the backward commands. There
/// is no tape at run time: a finished [`Plan`] is a fixed list.
///
/// Every shape, limit and aliasing error is raised here, before anything runs.
pub struct Graph {
    recorder: Recorder,
    /// Its number: whose values and losses are whose.
    id: u64,
    parameters: Option<Parameters>,
    differentiable: bool,
    repeated: bool,
    dropouts: u32,
    nodes: Vec<Node>,
    parameter_vars: BTreeMap<ParameterId, Var>,
    tape: Vec<Backward>,
    /// The parameters that are kept as they are, where that is not as it is now.
    frozen: Option<BTreeSet<ParameterId>>,
    /// What each loss counts in the backward pass; None if that does not start from it.
    weights_of_losses: Vec<Option<f64>>,
    is_differentiated: bool,
    /// The type whose closure records it, if one does.
    closure_of: Option<&'static str>,
    next_tokens: BTreeMap<usize, NextToken>,
}

/// What some logits are known to be: those of a whole network for the token after these, the states carried.
#[derive(Clone)]
pub(crate) struct NextToken {
    pub network: Network,
    /// `[1, B]`
    pub tokens: Tensor,
    /// `[L, B, H]`
    pub h: Tensor,
    /// Likewise, if there is one.
    pub c: Option<Tensor>,
    /// The commands that make the logits.
    pub commands: Range<usize>,
}

/// Beyond this, a table of results would cost more memory than it is worth.
const MOST_ROWS_OF_A_KEPT_TABLE: usize = 4096;

// A graph is recorded on one thread and may be finished on another; in a browser there is only one.
#[cfg(not(target_arch = "wasm32"))]
type Backward = Box<dyn FnOnce(&mut Graph) -> Result<()> + Send>;
#[cfg(target_arch = "wasm32")]
type Backward = Box<dyn FnOnce(&mut Graph) -> Result<()>>;

struct Node {
    /// What errors call it, where that is not the name of its tensor.
    name: Option<String>,
    shape: Vec<usize>,
    value: Value,
    gradient: Gradient,
    /// Whether it was computed in the backward pass alone: of its gradient, only a part came this way.
    is_late: bool,
}

#[derive(Clone)]
enum Value {
    Dense(Tensor),
    /// Row `index[i]` of `table` for each i: an embedding not yet looked up. Whatever acts on each row alone acts on the
    /// few rows of the table instead (for tokens there is no product); anything else looks it up first.
    Rows {
        table: Var,
        index: Tensor,
    },
    /// A program of other values, not yet computed: programs that read it take it in, anything else computes it first.
    Expression {
        expression: Arc<Expression>,
        /// Programs that read it so far.
        uses: usize,
    },
}

enum Gradient {
    /// A constant of the graph: nothing flows into it.
    No,
    /// Nothing has flowed into it yet; a parameter's gradient has its place in the gradient block already.
    Unset { place: Option<Tensor> },
    /// The sum so far. A shared tensor is the gradient of another value too and must not be added to in place.
    Set { tensor: Tensor, shared: bool },
}

/// What records commands, on a [`Recorder`], records them in a graph: kernels know nothing of values and gradients.
impl Deref for Graph {
    type Target = Recorder;

    fn deref(&self) -> &Recorder {
        &self.recorder
    }
}

impl DerefMut for Graph {
    fn deref_mut(&mut self) -> &mut Recorder {
        &mut self.recorder
    }
}

impl Graph {
    /// A graph over these parameters that can be differentiated.
    pub fn new(parameters: &Parameters) -> Self {
        Self { parameters: Some(parameters.clone()), ..Self::without_parameters(parameters.device()) }
    }

    /// A graph over these parameters that records no gradients: for evaluation and generation.
    pub fn inference(parameters: &Parameters) -> Self {
        Self { differentiable: false, ..Self::new(parameters) }
    }

    /// A graph of inputs alone.
    pub fn without_parameters(device: &Device) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            recorder: Recorder::new(device),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            parameters: None,
            differentiable: true,
            repeated: false,
            dropouts: 0,
            nodes: Vec::new(),
            parameter_vars: BTreeMap::new(),
            tape: Vec::new(),
            frozen: None,
            weights_of_losses: Vec::new(),
            is_differentiated: false,
            closure_of: None,
            next_tokens: BTreeMap::new(),
        }
    }

    /// A number for each dropout recorded.
    pub(crate) fn next_dropout(&mut self) -> u32 {
        self.dropouts += 1;
        self.dropouts
    }

    /// Says that the plan will run often between changes of the parameters: what depends on them alone costs nothing.
    pub(crate) fn set_repeated(&mut self) {
        self.repeated = true;
    }

    /// Whether an operation on the rows of a table shall be done on the whole table, to look up its result: if the table
    /// has fewer rows than are looked up, or is made once for many runs.
    pub(crate) fn prefers_table(&self, table: Var, index: &Tensor) -> bool {
        let rows = self.shape(table)[0];
        rows < index.len() || (self.repeated && rows <= MOST_ROWS_OF_A_KEPT_TABLE)
    }

    /// Whether a weight that few rows are multiplied with shall be transposed: once for many runs, where the CPU is faster with it so.
    pub(crate) fn keeps_transposes(&self) -> bool {
        self.repeated && !self.differentiable && !self.device().is_gpu()
    }

    /// Whether gradients are recorded: dropout drops only then.
    pub fn is_training(&self) -> bool {
        self.differentiable
    }

    // ---- values ------------------------------------------------------------------------------------------------

    /// A tensor that the user fills before each run.
    ///
    /// # Errors
    /// The tensor lives on another device.
    pub fn input(&mut self, tensor: &Tensor) -> Result<Var> {
        self.check_device("input", tensor)?;
        Ok(self.node(tensor.shape().into(), Value::Dense(tensor.clone()), Gradient::No))
    }

    /// An input whose gradient is wanted too.
    ///
    /// # Errors
    /// As [`Self::input`].
    pub fn input_with_gradient(&mut self, tensor: &Tensor) -> Result<Var> {
        let var = self.input(tensor)?;
        self.nodes[var.index].gradient = self.fresh_gradient();
        Ok(var)
    }

    /// A parameter; the same `Var` each time, so that gradients of several uses add up.
    ///
    /// # Errors
    /// The module that it belongs to was made with another [`crate::nn::Init`] than the parameters of this graph.
    pub fn parameter(&mut self, id: ParameterId) -> Result<Var> {
        if let Some(&var) = self.parameter_vars.get(&id) {
            return Ok(var);
        }
        let Some((value, place)) = self.parameters.as_ref().and_then(|p| p.value_and_gradient(id)) else {
            let expected = "one whose parameters this graph was made with";
            return Err(Error::argument("graph", "module", expected, "of another `Init`"));
        };
        let is_frozen = match &self.frozen {
            Some(frozen) => frozen.contains(&id),
            None => self.parameters.as_ref().is_some_and(|parameters| parameters.is_frozen(id)),
        };
        let wants = self.differentiable && !is_frozen;
        let gradient = if wants { Gradient::Unset { place: Some(place) } } else { Gradient::No };
        let var = self.node(value.shape().into(), Value::Dense(value), gradient);
        self.parameter_vars.insert(id, var);
        Ok(var)
    }

    /// The result of an operation on `parents`, already recorded: for operations of one's own ([`crate::custom`]).
    pub fn result(&mut self, tensor: Tensor, parents: &[Var]) -> Var {
        let gradient = self.gradient_like(parents);
        self.node(tensor.shape().into(), Value::Dense(tensor), gradient)
    }

    /// Rows of a table, `[..index, columns]`, looked up only where a dense tensor is needed.
    pub(crate) fn rows(&mut self, table: Var, index: &Tensor) -> Var {
        let mut shape = index.shape().to_vec();
        shape.push(*self.shape(table).last().unwrap_or(&1));
        let gradient = self.gradient_like(&[table]);
        let y = self.node(shape, Value::Rows { table, index: index.clone() }, gradient);
        let index = index.clone();
        self.on_backward(move |g| {
            let Some(dy) = g.gradient(y) else { return Ok(()) };
            let Some((dtable, accumulate)) = g.gradient_target(table)? else { return Ok(()) };
            kernels::segment_sum::segment_sum(g, &dy, &index, &dtable, accumulate)
        });
        y
    }

    fn node(&mut self, shape: Vec<usize>, value: Value, gradient: Gradient) -> Var {
        self.nodes.push(Node { name: None, shape, value, gradient, is_late: false });
        Var { graph: self.id, index: self.nodes.len() - 1 }
    }

    fn fresh_gradient(&self) -> Gradient {
        if self.differentiable { Gradient::Unset { place: None } } else { Gradient::No }
    }

    fn gradient_like(&self, parents: &[Var]) -> Gradient {
        if parents.iter().any(|&parent| self.is_differentiable(parent)) { self.fresh_gradient() } else { Gradient::No }
    }

    /// The node of a value of this graph.
    fn get(&self, var: Var) -> Option<&Node> {
        self.nodes.get(var.index).filter(|_| var.graph == self.id)
    }

    /// Refuses values of another graph: one made before the closure of a [`crate::Trainer`], say.
    pub(crate) fn check(&self, vars: impl IntoIterator<Item = Var>) -> Result<()> {
        match vars.into_iter().all(|var| self.get(var).is_some()) {
            true => Ok(()),
            false => Err(of_another_graph("value")),
        }
    }

    /// Names a value that was made just now: a result of a module, `lstm.h_n`.
    pub(crate) fn set_name(&mut self, var: Var, name: &str) {
        let Some(node) = self.nodes.get_mut(var.index).filter(|_| var.graph == self.id) else { return };
        match &mut node.value {
            Value::Dense(tensor) => *tensor = tensor.named(name),
            Value::Rows { .. } | Value::Expression { .. } => node.name = Some(name.into()),
        }
    }

    /// What errors call a value.
    pub(crate) fn name(&self, var: Var) -> String {
        match self.get(var) {
            Some(Node { name: Some(name), .. }) => name.clone(),
            Some(Node { value: Value::Dense(tensor), .. }) => tensor.name().into(),
            Some(Node { value: Value::Rows { table, index }, .. }) => {
                format!("{}[{}]", self.name(*table), index.name())
            }
            Some(Node { value: Value::Expression { .. }, .. }) | None => "value".into(),
        }
    }

    /// The shape of a value; that of a value of another graph is empty.
    pub fn shape(&self, var: Var) -> &[usize] {
        self.get(var).map_or(&[], |node| &node.shape)
    }

    /// Whether a gradient flows into this value.
    pub fn is_differentiable(&self, var: Var) -> bool {
        self.get(var).is_some_and(|node| !matches!(node.gradient, Gradient::No))
    }

    /// The table and the row index of a value that is a lookup not yet done.
    pub(crate) fn as_rows(&self, var: Var) -> Option<(Var, Tensor)> {
        match &self.get(var)?.value {
            Value::Rows { table, index } => Some((*table, index.clone())),
            Value::Dense(_) | Value::Expression { .. } => None,
        }
    }

    /// The table to act on in place of a value, if that is rows of one and there is less to do so; and the index of the rows.
    pub(crate) fn table_of(&self, var: Var) -> Option<(Var, Tensor)> {
        self.as_rows(var).filter(|(table, index)| self.prefers_table(*table, index))
    }

    /// The tensor that holds a value when the plan has run. Records the lookup if it is rows of a table, and the dispatch that computes it
    /// if it is an operation of elements that was left to what uses it.
    ///
    /// # Errors
    /// The value is of another graph, or the device cannot hold the result.
    pub fn tensor(&mut self, var: Var) -> Result<Tensor> {
        self.check([var])?;
        let (table, index) = match &self.nodes[var.index].value {
            Value::Dense(tensor) => return Ok(tensor.clone()),
            Value::Rows { table, index } => (*table, index.clone()),
            Value::Expression { expression, .. } => {
                let expression = expression.clone();
                return self.evaluate(var, &expression);
            }
        };
        let table = self.tensor(table)?;
        let shape = self.shape(var).to_vec();
        let name = self.nodes[var.index].name.clone();
        let name = name.unwrap_or_else(|| format!("{}[{}]", table.name(), index.name()));
        let dense = self.zeros(&name, &shape)?;
        kernels::gather::gather(self, &table, &index, &dense)?;
        self.nodes[var.index].value = Value::Dense(dense.clone());
        Ok(dense)
    }

    /// Says what these logits are, for [`crate::Generator`].
    pub(crate) fn set_next_token(&mut self, logits: Var, next: NextToken) {
        self.next_tokens.insert(logits.index, next);
    }

    /// What these logits are known to be.
    pub(crate) fn next_token(&self, logits: Var) -> Option<&NextToken> {
        self.next_tokens.get(&logits.index).filter(|_| logits.graph == self.id)
    }

    // ---- gradients ---------------------------------------------------------------------------------------------

    /// Leaves the backward commands of an operation on the tape: they are recorded when everything that uses its results has recorded
    /// its own. [`Self::gradient`] is that of a result then, and [`Self::gradient_target`] where that of an input goes.
    pub fn on_backward(&mut self, backward: impl FnOnce(&mut Self) -> Result<()> + WasmNotSend + 'static) {
        if self.differentiable {
            self.tape.push(Box::new(backward));
        }
    }

    /// A place for a loss that [`Self::backward`] may be asked to start from.
    pub(crate) fn new_loss(&mut self) -> (u64, usize) {
        self.weights_of_losses.push(None);
        (self.id, self.weights_of_losses.len() - 1)
    }

    /// What this loss counts, if the backward pass starts from it.
    fn weight_of_loss(&self, loss: usize) -> Option<f64> {
        self.weights_of_losses[loss]
    }

    /// What a loss that is not finite may come from: inputs, and parameters.
    pub(crate) fn suspects(&self) -> (Vec<Tensor>, Vec<Tensor>) {
        let parameters = self.parameters.iter();
        let is_one = |tensor: &Tensor| {
            parameters.clone().any(|parameters| Arc::ptr_eq(parameters.values().buffer(), tensor.buffer()))
        };
        (
            self.recorder.inputs().into_iter().filter(|tensor| !is_one(tensor)).collect(),
            parameters.clone().flat_map(Parameters::iter).map(|(_, tensor)| tensor).collect(),
        )
    }

    /// `[1]`, which no command writes.
    pub(crate) fn constant(&self, value: f64) -> Result<Tensor> {
        let constant = self.zeros("constant", &[1])?;
        constant.write_f64(&[value])?;
        Ok(constant)
    }

    /// Keeps these parameters as they are, whatever is frozen now.
    pub(crate) fn set_frozen(&mut self, frozen: BTreeSet<ParameterId>) {
        self.frozen = Some(frozen);
    }

    /// Says that this graph is that of a closure of the named type, which differentiates it when the closure has
    /// returned.
    pub(crate) fn set_closure_of(&mut self, owner: &'static str) {
        self.closure_of = Some(owner);
    }

    /// Records the backward commands of everything recorded so far, for the gradient of the sum of these losses, and of
    /// values weighted by `seeds`. A loss named twice, or a term that is in it twice, counts twice. Parameters that
    /// none of them depends on get the gradient 0; a [`crate::Trainer`] leaves them alone, as PyTorch does where `grad`
    /// is None.
    ///
    /// # Errors
    /// A loss or a value of another graph; a loss whose weight is not finite, or a metric; a seed of another shape than
    /// its value; a graph that records no gradients, or has been differentiated already, or is that of a closure of a
    /// [`crate::Trainer`] or an [`crate::Evaluator`]; a result that the device cannot hold.
    pub fn backward(&mut self, losses: &[&Loss], seeds: &[(Var, &Tensor)]) -> Result<()> {
        if let Some(owner) = self.closure_of {
            let expected = match self.differentiable {
                true => {
                    "left to the trainer, which starts from the loss that the closure returns: add losses up, `a + 0.3 * b`"
                }
                false => "left out: an evaluation has no gradients, and logs the loss that the closure returns",
            };
            return Err(Error::argument(
                "graph",
                "backward",
                expected,
                format!("called in the closure of the {owner}"),
            ));
        }
        self.differentiate(losses, seeds)
    }

    /// [`Self::backward`], also of a closure's graph.
    pub(crate) fn differentiate(&mut self, losses: &[&Loss], seeds: &[(Var, &Tensor)]) -> Result<()> {
        if !self.differentiable {
            return Err(Error::argument(
                "backward",
                "graph",
                "one that records gradients: `Graph::new`",
                "for inference",
            ));
        }
        if self.is_differentiated {
            let expected = "differentiated once: name all losses, and seeds, in one call";
            return Err(Error::argument("backward", "graph", expected, "differentiated already"));
        }
        losses.iter().try_for_each(|loss| self.check_start(loss))?;
        self.check(seeds.iter().map(|&(var, _)| var))?;
        if let Some((var, gradient)) = seeds.iter().find(|&&(var, gradient)| gradient.shape() != self.shape(var)) {
            let expected = format!("{:?}", self.shape(*var));
            return Err(Error::shape("backward", gradient.name(), expected, gradient.shape()));
        }
        losses.iter().for_each(|loss| self.start_from(loss));
        seeds.iter().try_for_each(|&(var, _)| self.tensor(var).map(drop))?;
        self.is_differentiated = true;
        for &(var, gradient) in seeds {
            self.add_gradient(var, gradient, true)?;
        }
        while let Some(backward) = self.tape.pop() {
            backward(self)?;
        }
        // The gradient block may hold what another graph over the same parameters left there.
        let Some(parameters) = self.parameters.clone() else { return Ok(()) };
        for id in parameters.ids().filter(|&id| !self.has_gradient(id)).collect::<Vec<_>>() {
            if let Some((_, place)) = parameters.value_and_gradient(id) {
                self.recorder.clear(place);
            }
        }
        Ok(())
    }

    /// Whether a gradient has flowed into this parameter.
    pub(crate) fn has_gradient(&self, id: ParameterId) -> bool {
        self.parameter_vars.get(&id).is_some_and(|&var| self.gradient(var).is_some())
    }

    /// The gradient that has flowed into a value, if any has. An operation of elements that is computed within others has none: ask for its
    /// tensor ([`Self::tensor`]) before the backward pass.
    pub fn gradient(&self, var: Var) -> Option<Tensor> {
        let node = self.get(var)?;
        let is_within_others = node.is_late || matches!(node.value, Value::Expression { .. });
        if is_within_others { None } else { self.gradient_so_far(var) }
    }

    /// What has flowed into a value by itself.
    fn gradient_so_far(&self, var: Var) -> Option<Tensor> {
        match &self.get(var)?.gradient {
            Gradient::Set { tensor, .. } => Some(tensor.clone()),
            Gradient::No | Gradient::Unset { .. } => None,
        }
    }

    /// Where an operation shall write the gradient of `var`, and whether it shall add to what is there. None if no
    /// gradient is wanted. The operation must write all of it.
    ///
    /// # Errors
    /// The value is of another graph, or the device cannot hold the gradient.
    pub fn gradient_target(&mut self, var: Var) -> Result<Option<(Tensor, bool)>> {
        self.check([var])?;
        let (tensor, accumulate) = match &self.nodes[var.index].gradient {
            Gradient::No => return Ok(None),
            Gradient::Set { tensor, shared: false } => return Ok(Some((tensor.clone(), true))),
            Gradient::Set { tensor: shared, shared: true } => {
                let shared = shared.clone();
                let own = self.zeros(shared.name(), shared.shape())?;
                self.copy(&shared, &own)?;
                (own, true)
            }
            Gradient::Unset { place: Some(place) } => (place.clone(), false),
            Gradient::Unset { place: None } => {
                let (name, shape) = (self.gradient_name(var), self.shape(var).to_vec());
                (self.zeros(&name, &shape)?, false)
            }
        };
        self.nodes[var.index].gradient = Gradient::Set { tensor: tensor.clone(), shared: false };
        Ok(Some((tensor, accumulate)))
    }

    /// Adds a finished tensor to the gradient of `var`. `shared` says that something else uses the tensor too, so that nothing is added to
    /// it in place.
    ///
    /// # Errors
    /// The value is of another graph, the sizes differ, or the device cannot hold the gradient.
    pub fn add_gradient(&mut self, var: Var, gradient: &Tensor, shared: bool) -> Result<()> {
        self.check([var])?;
        let node = &mut self.nodes[var.index];
        if let Gradient::Unset { place: None } = node.gradient {
            let tensor = gradient.reshape(&node.shape)?;
            node.gradient = Gradient::Set { tensor, shared };
            return Ok(());
        }
        match self.gradient_target(var)? {
            None => Ok(()),
            Some((target, false)) => self.copy(gradient, &target),
            Some((target, true)) => kernels::accumulate::accumulate(self, gradient, &target),
        }
    }

    pub(crate) fn gradient_name(&self, var: Var) -> String {
        match &self.nodes[var.index].value {
            Value::Dense(tensor) => format!("d {}", tensor.name()),
            Value::Rows { index, .. } => format!("d rows[{}]", index.name()),
            Value::Expression { .. } => format!("d {}", self.name(var)),
        }
    }

    // ---- the plan ----------------------------------------------------------------------------------------------

    /// What was recorded.
    pub fn into_recorder(self) -> Recorder {
        self.recorder
    }

    /// [`Recorder::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(self) -> Result<Plan> {
        self.into_recorder().finish()
    }

    /// [`Self::finish`] without blocking.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub async fn finish_async(self) -> Result<Plan> {
        self.into_recorder().finish_async().await
    }

    /// Two recorders: of what needs to run only when the parameters have changed, and of what every run needs.
    pub(crate) fn split(self, parameters: &Parameters) -> (Recorder, Recorder) {
        self.recorder.split(parameters.values())
    }

    /// Two plans: what needs to run only when the parameters have changed, and what every run needs.
    pub(crate) async fn finish_in_two_async(self, parameters: &Parameters) -> Result<(Plan, Plan)> {
        self.recorder.finish_in_two_async(parameters.values()).await
    }
}

fn of_another_graph(what: &'static str) -> Error {
    let expected = "one of the graph that it is used in: record it there, inside the closure";
    Error::argument("graph", what, expected, "one of another graph")
}
