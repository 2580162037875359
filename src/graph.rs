//! Records a [`Plan`]: commands in forward order, and a tape, kept while building, that writes the backward commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernel::{Access, Kernel};
use crate::kernels;
use crate::nn::functional::Loss;
use crate::nn::{ParameterId, Parameters};
use crate::plan::{Command, Dispatch, Plan, Work};
use crate::tensor::{DType, Tensor};

/// A value of the graph under construction, and of no other: a number, to be copied freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var(usize);

/// Records what a plan will do.
///
/// Modules and the operations of [`crate::nn::functional`] call it in forward order. Each differentiable operation
/// leaves a closure on the tape; [`Graph::backward`] runs them in reverse, and they record the backward commands. There
/// is no tape at run time: a finished [`Plan`] is a fixed list.
///
/// Every shape, limit and aliasing error is raised here, before anything runs.
pub struct Graph {
    device: Device,
    parameters: Option<Parameters>,
    differentiable: bool,
    wide: bool,
    repeated: bool,
    stepwise: Option<bool>,
    baseline: bool,
    precision: Precision,
    dropouts: u32,
    commands: Vec<Command>,
    notes: Vec<String>,
    nodes: Vec<Node>,
    parameter_vars: BTreeMap<ParameterId, Var>,
    tape: Vec<Backward>,
    clock: Option<Tensor>,
    wanted_losses: Vec<bool>,
}

/// Beyond this, a table of results would cost more memory than it is worth.
const MOST_ROWS_OF_A_KEPT_TABLE: usize = 4096;

type Backward = Box<dyn FnOnce(&mut Graph) -> Result<()>>;

struct Node {
    shape: Vec<usize>,
    value: Value,
    gradient: Gradient,
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
}

enum Gradient {
    /// A constant of the graph: nothing flows into it.
    No,
    /// Nothing has flowed into it yet; a parameter's gradient has its place in the gradient block already.
    Unset { place: Option<Tensor> },
    /// The sum so far. A shared tensor is the gradient of another value too and must not be added to in place.
    Set { tensor: Tensor, shared: bool },
}

/// How the weights of recurrences are stored where every step of a dispatch reads them; see [`Graph::set_precision`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to half precision (IEEE 754 binary16): 11 bits, magnitudes up to 65,504.
    F16,
}

impl Precision {
    pub(crate) fn is_f16(self) -> bool {
        self == Self::F16
    }

    /// Of a weight.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
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
        Self {
            device: device.clone(),
            parameters: None,
            differentiable: true,
            wide: device.is_wide(),
            repeated: false,
            stepwise: None,
            baseline: false,
            precision: Precision::F32,
            dropouts: 0,
            commands: Vec::new(),
            notes: Vec::new(),
            nodes: Vec::new(),
            parameter_vars: BTreeMap::new(),
            tape: Vec::new(),
            clock: None,
            wanted_losses: Vec::new(),
        }
    }

    /// The device the plan will run on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether kernels spread one sum over many workgroups, and a recurrence over many small ones. That pays on a GPU,
    /// where it is so from the start; on the CPU and on a software driver, where a workgroup is a loop, it costs.
    pub fn is_wide(&self) -> bool {
        self.wide
    }

    #[doc(hidden)]
    /// Plans as for a GPU, or as for a software driver, whatever the device is.
    pub fn set_wide(&mut self, wide: bool) {
        self.wide = wide;
    }

    #[doc(hidden)]
    /// Plans recurrences with a dispatch for each step, whatever their size, or with one for all wherever that is possible.
    pub fn set_stepwise(&mut self, stepwise: impl Into<Option<bool>>) {
        self.stepwise = stepwise.into();
    }

    #[doc(hidden)]
    /// Plans recurrences without subgroups, what follows from them, and weights kept in workgroup memory, whatever the device has.
    pub fn set_baseline(&mut self, baseline: bool) {
        self.baseline = baseline;
    }

    pub(crate) fn is_baseline(&self) -> bool {
        self.baseline
    }

    pub(crate) fn stepwise(&self) -> Option<bool> {
        self.stepwise
    }

    /// How recurrences recorded from here on store their weights where every step reads them. With [`Precision::F16`] a GPU reads
    /// half the bytes; these are, by calculation, what limits a recurrence in one dispatch. Parameters, states, sums, gradients
    /// and the optimizer stay f32: the results are those of weights rounded to 11 bits (a GPU may round either way). A
    /// [`crate::Generator`] has its own plan, in f32.
    ///
    /// ```
    /// use elman::{Device, Graph, Precision};
    ///
    /// let mut g = Graph::without_parameters(&Device::cpu());
    /// g.set_precision(Precision::F16)?;
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// The device is a GPU without f16 in shaders.
    pub fn set_precision(&mut self, precision: Precision) -> Result<()> {
        self.check_precision(precision)?;
        self.precision = precision;
        Ok(())
    }

    pub(crate) fn check_precision(&self, precision: Precision) -> Result<()> {
        if precision.is_f16() && !self.device.limits().f16 {
            let expected = "F32, since the adapter has no f16 in shaders";
            return Err(Error::argument("recurrence", "precision", expected, "F16"));
        }
        Ok(())
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
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
        self.nodes[var.0].gradient = self.fresh_gradient();
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
        let gradient = if self.differentiable { Gradient::Unset { place: Some(place) } } else { Gradient::No };
        let var = self.node(value.shape().into(), Value::Dense(value), gradient);
        self.parameter_vars.insert(id, var);
        Ok(var)
    }

    /// The result of an operation on `parents`, already recorded.
    pub(crate) fn result(&mut self, tensor: Tensor, parents: &[Var]) -> Var {
        let gradient = self.gradient_like(parents);
        self.node(tensor.shape().into(), Value::Dense(tensor), gradient)
    }

    /// Rows of a table, `[..index, columns]`, looked up only where a dense tensor is needed.
    pub(crate) fn rows(&mut self, table: Var, index: &Tensor) -> Var {
        let mut shape = index.shape().to_vec();
        shape.push(*self.shape(table).last().unwrap_or(&1));
        let gradient = self.gradient_like(&[table]);
        self.node(shape, Value::Rows { table, index: index.clone() }, gradient)
    }

    fn node(&mut self, shape: Vec<usize>, value: Value, gradient: Gradient) -> Var {
        self.nodes.push(Node { shape, value, gradient });
        Var(self.nodes.len() - 1)
    }

    fn fresh_gradient(&self) -> Gradient {
        if self.differentiable { Gradient::Unset { place: None } } else { Gradient::No }
    }

    fn gradient_like(&self, parents: &[Var]) -> Gradient {
        if parents.iter().any(|&parent| self.is_differentiable(parent)) { self.fresh_gradient() } else { Gradient::No }
    }

    /// The shape of a value.
    pub fn shape(&self, var: Var) -> &[usize] {
        &self.nodes[var.0].shape
    }

    /// Whether a gradient flows into this value.
    pub fn is_differentiable(&self, var: Var) -> bool {
        !matches!(self.nodes[var.0].gradient, Gradient::No)
    }

    /// The table and the row index of a value that is a lookup not yet done.
    pub(crate) fn as_rows(&self, var: Var) -> Option<(Var, Tensor)> {
        match &self.nodes[var.0].value {
            Value::Rows { table, index } => Some((*table, index.clone())),
            Value::Dense(_) => None,
        }
    }

    /// The tensor that holds a value when the plan has run. Records the lookup if it is rows of a table.
    ///
    /// # Errors
    /// The device cannot hold the result.
    pub fn tensor(&mut self, var: Var) -> Result<Tensor> {
        let (table, index) = match &self.nodes[var.0].value {
            Value::Dense(tensor) => return Ok(tensor.clone()),
            Value::Rows { table, index } => (*table, index.clone()),
        };
        let table = self.tensor(table)?;
        let shape = self.shape(var).to_vec();
        let dense = self.zeros(&format!("{}[{}]", table.name(), index.name()), &shape)?;
        kernels::gather::gather(self, &table, &index, &dense)?;
        self.nodes[var.0].value = Value::Dense(dense.clone());
        Ok(dense)
    }

    // ---- gradients ---------------------------------------------------------------------------------------------

    /// Leaves the backward commands of an operation on the tape.
    pub(crate) fn on_backward(&mut self, backward: impl FnOnce(&mut Self) -> Result<()> + 'static) {
        if self.differentiable {
            self.tape.push(Box::new(backward));
        }
    }

    /// A place for a loss that [`Self::backward`] may be asked to start from.
    pub(crate) fn new_loss(&mut self) -> usize {
        self.wanted_losses.push(false);
        self.wanted_losses.len() - 1
    }

    /// Whether the backward pass starts from this loss.
    pub(crate) fn is_wanted(&self, loss: usize) -> bool {
        self.wanted_losses[loss]
    }

    /// Records the backward commands of everything recorded so far, for the gradient of the sum of these losses, and of
    /// values weighted by `seeds`. Parameters that none of them depends on get the gradient 0, so that an optimizer with
    /// weight decay or momentum still moves them, where PyTorch would pass over them.
    ///
    /// # Errors
    /// A seed of another shape than its value, or a result that the device cannot hold.
    pub fn backward(&mut self, losses: &[&Loss], seeds: &[(Var, &Tensor)]) -> Result<()> {
        for loss in losses {
            self.wanted_losses[loss.index] = true;
        }
        for &(var, gradient) in seeds {
            if gradient.shape() != self.shape(var) {
                let expected = format!("{:?}", self.shape(var));
                return Err(Error::shape("backward", gradient.name(), expected, gradient.shape()));
            }
            self.add_gradient(var, gradient, true)?;
        }
        while let Some(backward) = self.tape.pop() {
            backward(self)?;
        }
        // The gradient block may hold what another graph over the same parameters left there.
        let Some(parameters) = self.parameters.clone() else { return Ok(()) };
        for id in parameters.ids() {
            let var = self.parameter(id)?;
            if self.gradient(var).is_none()
                && let Some((place, _)) = self.gradient_target(var)?
            {
                self.commands.push(Command::Clear { tensor: place });
            }
        }
        Ok(())
    }

    /// The gradient that has flowed into a value, if any has.
    pub fn gradient(&self, var: Var) -> Option<Tensor> {
        match &self.nodes[var.0].gradient {
            Gradient::Set { tensor, .. } => Some(tensor.clone()),
            Gradient::No | Gradient::Unset { .. } => None,
        }
    }

    /// Where an operation shall write the gradient of `var`, and whether it shall add to what is there. None if no
    /// gradient is wanted.
    pub(crate) fn gradient_target(&mut self, var: Var) -> Result<Option<(Tensor, bool)>> {
        let (tensor, accumulate) = match &self.nodes[var.0].gradient {
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
        self.nodes[var.0].gradient = Gradient::Set { tensor: tensor.clone(), shared: false };
        Ok(Some((tensor, accumulate)))
    }

    /// Adds a finished tensor to the gradient of `var`. `shared` says that something else uses the tensor too.
    pub(crate) fn add_gradient(&mut self, var: Var, gradient: &Tensor, shared: bool) -> Result<()> {
        let node = &mut self.nodes[var.0];
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
        match &self.nodes[var.0].value {
            Value::Dense(tensor) => format!("d {}", tensor.name()),
            Value::Rows { index, .. } => format!("d rows[{}]", index.name()),
        }
    }

    // ---- commands ----------------------------------------------------------------------------------------------

    /// A new f32 tensor of the plan.
    pub(crate) fn zeros(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.device.zeros(name, shape, DType::F32)
    }

    /// Places for so many tensors of a shape, one after the other in one buffer; none for one alone, or where the device's
    /// alignment or limits do not let kernels bind them.
    pub(crate) fn adjacent(&self, name: &str, count: usize, shape: &[usize]) -> Result<Vec<Option<Tensor>>> {
        let len: usize = shape.iter().product();
        let fits = 4 * (count * len) as u64 <= self.device.limits().tensor_bytes();
        if count == 1 || !fits || !self.can_view(len) {
            return Ok(vec![None; count]);
        }
        let all = self.zeros(name, &[&[count], shape].concat())?;
        Ok((0..count).map(|i| Some(all.view(name, i * len, shape))).collect())
    }

    /// Tensors of one size as one of `shape`, 0 where there is none; None if there are none at all. Copies them unless they
    /// lie one after the other already.
    pub(crate) fn stack(&mut self, name: &str, parts: &[Option<Tensor>], shape: &[usize]) -> Result<Option<Tensor>> {
        let given: Vec<_> = parts.iter().flatten().cloned().collect();
        if given.is_empty() {
            return Ok(None);
        }
        if given.len() == parts.len()
            && let Some(joined) = Tensor::joined(&given, shape)
        {
            return Ok(Some(joined));
        }
        let all = match given.iter().map(Tensor::vocabulary).collect::<Option<Vec<_>>>() {
            Some(vocabularies) => self.device.tokens(name, shape, vocabularies.into_iter().max().unwrap_or(0))?,
            None => self.zeros(name, shape)?,
        };
        let each = all.len() / parts.len();
        for (i, part) in parts.iter().enumerate() {
            if let Some(part) = part {
                self.copy(part, &all.view(name, i * each, &[each]))?;
            }
        }
        Ok(Some(all))
    }

    /// The plan's step counter, `[steps, batches of this epoch]`: read by kernels whose work changes from step to step,
    /// advanced by `record_loss`.
    pub(crate) fn clock(&mut self) -> Result<Tensor> {
        if let Some(clock) = &self.clock {
            return Ok(clock.clone());
        }
        let clock = self.device.zeros("clock", &[2], DType::U32)?;
        self.clock = Some(clock.clone());
        Ok(clock)
    }

    /// Says in the plan which path was taken, and why.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn check_device(&self, op: &'static str, tensor: &Tensor) -> Result<()> {
        if tensor.device() == &self.device {
            return Ok(());
        }
        Err(Error::WrongDevice {
            op,
            argument: tensor.name().into(),
            found: tensor.device().describe(),
            expected: self.device.describe(),
        })
    }

    /// Records a kernel. The kernel's own host function has checked the shapes; this checks what holds for all: element
    /// types, devices, aliasing, alignment and limits.
    pub(crate) fn dispatch<P: bytemuck::Pod>(
        &mut self,
        kernel: &'static Kernel,
        constants: &[(&'static str, u32)],
        params: P,
        tensors: &[&Tensor],
        workgroups: [usize; 3],
    ) -> Result<()> {
        assert_eq!(size_of::<P>(), 4 * kernel.params.len(), "{}: parameters", kernel.name);
        assert_eq!(tensors.len(), kernel.bindings.len(), "{}: bindings", kernel.name);
        assert!(constants.iter().all(|(name, _)| kernel.constants.contains(name)), "{}: constants", kernel.name);
        let limits = self.device.limits();
        for (binding, tensor) in kernel.bindings.iter().zip(tensors) {
            self.check_device(kernel.name, tensor)?;
            if tensor.dtype() != binding.dtype {
                let expected = format!("{} for `{}` (`{}`)", binding.dtype, binding.name, tensor.name());
                return Err(Error::argument(kernel.name, "dtype", expected, tensor.dtype()));
            }
            debug_assert!(self.can_view(tensor.offset()), "{tensor:?} is misaligned");
        }
        for (i, first) in tensors.iter().enumerate() {
            for (j, second) in tensors.iter().enumerate().skip(i + 1) {
                refuse_aliasing(kernel, (i, first), (j, second))?;
            }
        }
        if let Some(&most) = workgroups.iter().max()
            && most > limits.workgroups_per_dimension as usize
        {
            return Err(Error::Limit {
                tensor: format!("{} -> {}", kernel.name, tensors.last().map_or("", |t| t.name())),
                needed: most as u64,
                unit: "workgroups in one dimension",
                allowed: limits.workgroups_per_dimension.into(),
                device: self.device.describe(),
                cure: "use a smaller batch or window",
            });
        }
        self.commands.push(Command::Dispatch(Dispatch {
            kernel,
            constants: constants.into(),
            params: bytemuck::bytes_of(&params).into(),
            tensors: tensors.iter().map(|&tensor| tensor.clone()).collect(),
            workgroups: workgroups.map(|n| n as u32),
            work: Work::default(),
        }));
        Ok(())
    }

    /// What the dispatch just recorded costs beyond reading and writing its tensors.
    pub(crate) fn cost(&mut self, flops: usize, rereads: usize) {
        if let Some(Command::Dispatch(dispatch)) = self.commands.last_mut() {
            dispatch.work = Work { flops: flops as u64, rereads: rereads as u64, untouched: 0 };
        }
    }

    /// How many elements the dispatch just recorded reads or writes of a tensor, where that is not all.
    pub(crate) fn touches(&mut self, elements: impl Fn(&Tensor) -> Option<usize>) {
        if let Some(Command::Dispatch(dispatch)) = self.commands.last_mut() {
            let rest = |tensor: &Tensor| elements(tensor).map_or(0, |touched| tensor.len().saturating_sub(touched));
            dispatch.work.untouched = dispatch.each_tensor().map(|tensor| 4 * rest(tensor) as u64).sum();
        }
    }

    /// Records a copy of all values of `from` to `to`, which may differ in shape but not in size.
    pub(crate) fn copy(&mut self, from: &Tensor, to: &Tensor) -> Result<()> {
        self.check_device("copy", from)?;
        self.check_device("copy", to)?;
        if from.len() != to.len() || from.dtype() != to.dtype() {
            return Err(Error::shape("copy", to.name(), format!("that of `{from:?}`"), to.shape()));
        }
        if Arc::ptr_eq(from.buffer(), to.buffer()) {
            return Err(Error::Aliased {
                kernel: "copy",
                first: from.name().into(),
                second: to.name().into(),
                written: to.name().into(),
            });
        }
        self.commands.push(Command::Copy { from: from.clone(), to: to.clone() });
        Ok(())
    }

    /// Whether a kernel can bind what starts at this element of a buffer.
    pub(crate) fn can_view(&self, offset: usize) -> bool {
        (4 * offset as u64).is_multiple_of(self.device.limits().offset_alignment)
    }

    /// A range of `tensor` that a kernel can bind: a view where the device's alignment allows it, a recorded copy
    /// otherwise. Record it after the command that writes `tensor`.
    pub(crate) fn view(&mut self, tensor: &Tensor, name: &str, start: usize, shape: &[usize]) -> Result<Tensor> {
        let view = tensor.view(name, start, shape);
        if self.can_view(view.offset()) {
            return Ok(view);
        }
        let copy = self.device.zeros(name, shape, tensor.dtype())?;
        self.copy(&view, &copy)?;
        Ok(copy)
    }

    /// Compiles what was recorded. On a GPU, pipelines are compiled and bind groups made here, once.
    ///
    /// # Errors
    /// The driver refuses a kernel, or the device was lost.
    pub fn finish(self) -> Result<Plan> {
        pollster::block_on(self.finish_async())
    }

    /// [`Self::finish`] without blocking.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub async fn finish_async(self) -> Result<Plan> {
        Plan::prepare(self.device, self.commands, self.notes).await
    }

    /// Two plans: what needs to run only when the parameters have changed, and what every run needs.
    pub(crate) async fn finish_in_two_async(self) -> Result<(Plan, Plan)> {
        let (constants, others) = match &self.parameters {
            Some(parameters) => split_off_constants(self.commands, parameters),
            None => (Vec::new(), self.commands),
        };
        let constants = Plan::prepare(self.device.clone(), constants, Vec::new()).await?;
        Ok((constants, Plan::prepare(self.device, others, self.notes).await?))
    }
}

/// Commands that give the same in every run until the parameters change, and the others.
///
/// What varies from run to run starts in buffers that no command writes (the user does), other than the parameters', and
/// spreads to every command that touches one, and on to what that command writes.
fn split_off_constants(commands: Vec<Command>, parameters: &Parameters) -> (Vec<Command>, Vec<Command>) {
    let id = |tensor: &Tensor| Arc::as_ptr(tensor.buffer()) as usize;
    let written: BTreeSet<usize> = commands.iter().flat_map(Command::writes).map(id).collect();
    let read = commands.iter().flat_map(Command::reads).map(id);
    let mut varying: BTreeSet<usize> =
        read.filter(|buffer| !written.contains(buffer) && *buffer != id(parameters.values())).collect();
    let touches = |command: &Command, varying: &BTreeSet<usize>| {
        command.reads().chain(command.writes()).any(|tensor| varying.contains(&id(tensor)))
    };
    loop {
        let before = varying.len();
        for command in &commands {
            if touches(command, &varying) {
                varying.extend(command.writes().map(id));
            }
        }
        if varying.len() == before {
            return commands.into_iter().partition(|command| !touches(command, &varying));
        }
    }
}

/// WebGPU lets a buffer be bound several times in a dispatch if all bindings read it, or all write disjoint ranges.
fn refuse_aliasing(kernel: &Kernel, (i, first): (usize, &Tensor), (j, second): (usize, &Tensor)) -> Result<()> {
    if !Arc::ptr_eq(first.buffer(), second.buffer()) {
        return Ok(());
    }
    let range = |tensor: &Tensor| tensor.offset()..tensor.offset() + tensor.len();
    let (a, b) = (range(first), range(second));
    let overlap = a.start < b.end && b.start < a.end;
    let written = match (kernel.bindings[i].access, kernel.bindings[j].access) {
        (Access::Read, Access::Read) => return Ok(()),
        (Access::Write, Access::Write) if !overlap => return Ok(()),
        (Access::Write, _) => first,
        (Access::Read, Access::Write) => second,
    };
    Err(Error::Aliased {
        kernel: kernel.name,
        first: first.name().into(),
        second: second.name().into(),
        written: written.name().into(),
    })
}
