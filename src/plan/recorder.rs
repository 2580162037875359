//! Records the commands of a [`Plan`]; what the host function of every kernel takes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::passes::Passes;
use super::sharing::{Sharing, share};
use super::{Command, Dispatch, Plan, PlanCount, Work, buffers, count, dispatches, list};
use crate::device::Device;
use crate::device::memory::{Buffer, Keeps};
use crate::error::{Error, Result};
use crate::kernel::{Access, Kernel};
use crate::tensor::{Bounds, DType, Tensor, checked_len};

/// The most turns that the loops of a GPU's thread may take in a dispatch, all together: Mesa's software driver ends a shader's
/// loops after 65,535, silently, and counts some that are not counted here. It bounds the time of a workgroup too.
const MOST_TURNS: usize = 1 << 15;

/// The most multiplications and additions of a GPU's dispatch: half a second to one on a slow one, where a system resets a device
/// that one dispatch keeps busy for longer than two.
const MOST_FLOPS: u64 = 20_000_000_000;

/// Where work is cut for a software driver, which takes about a tenth of a second for either.
const MOST_TURNS_IN_SOFTWARE: usize = MOST_TURNS / 4;
const MOST_FLOPS_IN_SOFTWARE: u64 = 1_000_000_000;

/// Records what a plan will do: commands, each checked, notes, and how to plan for this device.
///
/// It knows nothing of gradients, parameters or modules: [`crate::Graph`] is a recorder that does. The functions of
/// [`crate::kernels`] record into it.
///
/// ```
/// use elman::{DType, Device, Recorder, kernels};
///
/// let device = Device::cpu();
/// let x = device.upload("x", &[2, 3], &[1., 2., 3., 4., 5., 6.])?;
/// let y = device.zeros("y", &[3], DType::F32)?;
/// let mut recorder = Recorder::new(&device);
/// kernels::column_sum::column_sum(&mut recorder, &x, &y, false)?;
/// recorder.finish()?.run()?;
/// assert_eq!(y.to_vec()?, [5., 7., 9.]);
/// # Ok::<(), elman::Error>(())
/// ```
pub struct Recorder {
    device: Device,
    wide: bool,
    stepwise: Option<bool>,
    baseline: bool,
    shares: bool,
    most_turns: usize,
    /// Of sums and recurrences, which can be cut anywhere.
    turns_at_once: usize,
    most_flops: u64,
    precision: Precision,
    /// None: a place for one that may come yet.
    commands: Vec<Option<Command>>,
    notes: Vec<String>,
    clock: Option<Tensor>,
}

/// How the weights of recurrences are stored where every step of a dispatch reads them; see [`Recorder::set_precision`].
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

impl Recorder {
    /// A recorder of nothing yet.
    pub fn new(device: &Device) -> Self {
        let (most_turns, turns_at_once, most_flops) = match device.gpu() {
            None => (usize::MAX, usize::MAX, u64::MAX),
            Some(gpu) if gpu.is_software() => (MOST_TURNS, MOST_TURNS_IN_SOFTWARE, MOST_FLOPS_IN_SOFTWARE),
            Some(_) => (MOST_TURNS, MOST_TURNS, MOST_FLOPS),
        };
        Self {
            device: device.clone(),
            wide: device.is_wide(),
            stepwise: None,
            baseline: false,
            shares: true,
            most_turns,
            turns_at_once,
            most_flops,
            precision: Precision::F32,
            commands: Vec::new(),
            notes: Vec::new(),
            clock: None,
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

    #[doc(hidden)]
    /// Whether intermediate values share memory; they do if nothing is said.
    pub fn set_sharing(&mut self, shares: bool) {
        self.shares = shares;
    }

    pub(crate) fn is_baseline(&self) -> bool {
        self.baseline
    }

    #[doc(hidden)]
    /// Cuts the work of kernels into dispatches of so many turns of their loops, and so many multiplications and additions, or
    /// nearly, whatever the device.
    pub fn set_most_work(&mut self, turns: usize, flops: u64) {
        (self.most_turns, self.turns_at_once, self.most_flops) = (turns, turns, flops);
    }

    pub(crate) fn most_flops(&self) -> u64 {
        self.most_flops
    }

    /// How many terms that take a thread `turns` for each `per` of them one dispatch can have, in steps of `step`; all of them on
    /// the CPU.
    pub(crate) fn most_terms(&self, turns: (usize, usize), step: usize) -> usize {
        terms(self.most_turns, turns, step)
    }

    /// [`Self::most_terms`], where a dispatch more costs little: fewer where a thread is slow.
    pub(crate) fn terms_at_once(&self, turns: (usize, usize), step: usize) -> usize {
        terms(self.turns_at_once, turns, step)
    }

    /// Refuses a kernel whose loops take more turns than a driver may allow, and cannot be cut.
    pub(crate) fn check_turns(&self, tensor: &Tensor, turns: usize) -> Result<()> {
        if turns <= self.most_turns {
            return Ok(());
        }
        Err(Error::Limit {
            tensor: tensor.name().into(),
            needed: turns as u64,
            unit: "turns of a loop",
            allowed: self.most_turns as u64,
            device: self.device.describe(),
            cure: "use fewer classes or rows, or `--device cpu`",
        })
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

    /// A new f32 tensor of the plan: 0 in each run where none of its commands has written. Where nothing but the plan holds it, it may
    /// share its memory with others that are not needed at the same time, so what goes on from run to run belongs in
    /// [`Device::zeros`], and what is to be read after a run needs a handle.
    ///
    /// # Errors
    /// It is larger than the device's tensors may be.
    pub fn zeros(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = shortened(name);
        let buffer = Buffer::new(&self.device, name, checked_len("zeros", name, shape)?, DType::F32)?;
        Ok(Tensor::new(name, shape, buffer.that_keeps(Keeps::WithinARun)))
    }

    /// New tokens of the plan.
    pub(crate) fn tokens(&self, name: &str, shape: &[usize], vocabulary: usize) -> Result<Tensor> {
        Ok(self.device.reserve(name, shape, DType::U32)?.with_bounds(Bounds::Tokens(vocabulary)))
    }

    /// New targets of the plan.
    pub(crate) fn targets(&self, name: &str, shape: &[usize], classes: usize) -> Result<Tensor> {
        Ok(self.device.reserve(name, shape, DType::U32)?.with_bounds(Bounds::Targets(classes)))
    }

    /// Places for so many tensors of a shape, one after the other in one buffer; none for one alone, or where the device's
    /// alignment or limits do not let kernels bind them.
    pub(crate) fn adjacent(&self, name: &str, count: usize, shape: &[usize]) -> Result<Vec<Option<Tensor>>> {
        let len: usize = shape.iter().product();
        let fits = 4 * count as u64 * len as u64 <= self.device.limits().tensor_bytes();
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
            Some(vocabularies) => self.tokens(name, shape, vocabularies.into_iter().max().unwrap_or(0))?,
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
        let clock = self.device.reserve("clock", &[2], DType::U32)?;
        self.clock = Some(clock.clone());
        Ok(clock)
    }

    /// A clock that other plans have too, in place of one of its own.
    pub(crate) fn set_clock(&mut self, clock: Tensor) {
        self.clock = Some(clock);
    }

    /// Says in the plan which path was taken, and why.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub(crate) fn check_device(&self, op: &'static str, tensor: &Tensor) -> Result<()> {
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

    /// Records a kernel: with values for some of its constants, its parameters, the tensors that it binds, and how many workgroups run
    /// in each dimension. The kernel's own host function has checked the shapes; this checks what holds for all: counts, element
    /// types, devices, aliasing, alignment and limits. [`crate::custom`] has an example.
    ///
    /// # Errors
    /// Any of that.
    pub fn dispatch<P: bytemuck::Pod>(
        &mut self,
        kernel: &'static Kernel,
        constants: &[(&'static str, u32)],
        params: P,
        tensors: &[&Tensor],
        workgroups: [usize; 3],
    ) -> Result<()> {
        // One body for all parameters.
        self.dispatch_words(kernel, constants, bytemuck::pod_collect_to_vec(&[params]), tensors, workgroups)
    }

    /// [`Self::dispatch`] of parameters that are words already.
    pub(crate) fn dispatch_words(
        &mut self,
        kernel: &'static Kernel,
        constants: &[(&'static str, u32)],
        params: Vec<u32>,
        tensors: &[&Tensor],
        workgroups: [usize; 3],
    ) -> Result<()> {
        let counts = [
            ("parameters", kernel.params.len(), params.len()),
            ("tensors", kernel.bindings.len(), tensors.len()),
            (
                "constants",
                constants.len(),
                constants.iter().filter(|(name, _)| kernel.constants.contains(name)).count(),
            ),
        ];
        if let Some((what, expected, got)) = counts.into_iter().find(|(_, expected, got)| expected != got) {
            return Err(Error::argument(kernel.name, what, format!("{expected}, as the kernel declares"), got));
        }
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
        self.commands.push(Some(Command::Dispatch(Dispatch {
            kernel,
            constants: constants.into(),
            params,
            tensors: tensors.iter().map(|&tensor| tensor.clone()).collect(),
            workgroups: workgroups.map(|n| n as u32),
            work: Work::default(),
            overwrites: Vec::new(),
        })));
        Ok(())
    }

    /// What the dispatch just recorded costs beyond reading and writing its tensors.
    pub(crate) fn cost(&mut self, flops: u64, rereads: u64) {
        if let Some(Some(Command::Dispatch(dispatch))) = self.commands.last_mut() {
            dispatch.work = Work { flops, rereads, untouched: 0 };
        }
    }

    /// How many elements the dispatch just recorded reads or writes of a tensor, where that is not all.
    pub(crate) fn touches(&mut self, elements: impl Fn(&Tensor) -> Option<usize>) {
        if let Some(Some(Command::Dispatch(dispatch))) = self.commands.last_mut() {
            let rest = |tensor: &Tensor| elements(tensor).map_or(0, |touched| tensor.len().saturating_sub(touched));
            dispatch.work.untouched = dispatch.each_tensor().map(|tensor| 4 * rest(tensor) as u64).sum();
        }
    }

    /// Of this tensor, or part of one, that the dispatch just recorded writes, neither it nor a later command needs what was there before.
    pub(crate) fn overwrites(&mut self, written: &Tensor) {
        let range = written.elements();
        if let Some(Some(Command::Dispatch(Dispatch { kernel, tensors, overwrites, .. }))) = self.commands.last_mut() {
            let has = |tensor: &Tensor| {
                let all = tensor.elements();
                Arc::ptr_eq(tensor.buffer(), written.buffer()) && all.start <= range.start && range.end <= all.end
            };
            let binding = (0..tensors.len()).find(|&i| kernel.bindings[i].access == Access::Write && has(&tensors[i]));
            overwrites.push((binding.expect("a tensor that the dispatch writes"), range));
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
        self.commands.push(Some(Command::Copy { from: from.clone(), to: to.clone() }));
        Ok(())
    }

    /// [`Self::copy`], also within a buffer, which drivers do not do: by way of another one.
    pub(crate) fn copy_within(&mut self, from: &Tensor, to: &Tensor) -> Result<()> {
        if !Arc::ptr_eq(from.buffer(), to.buffer()) {
            return self.copy(from, to);
        }
        let between = self.device.reserve(to.name(), to.shape(), to.dtype())?;
        self.copy(from, &between)?;
        self.copy(&between, to)
    }

    /// Records what another recorder has recorded, of the same tensors.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.commands.extend(other.commands.iter().cloned());
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
        let copy = self.device.reserve(name, shape, tensor.dtype())?;
        self.copy(&view, &copy)?;
        Ok(copy)
    }

    /// The commands so far.
    fn recorded(&self) -> impl Iterator<Item = &Command> + Clone {
        self.commands.iter().flatten()
    }

    /// Keeps a place for a command that may be wanted there later ([`Self::move_last_to`]).
    pub(crate) fn keep_place(&mut self) -> usize {
        self.commands.push(None);
        self.commands.len() - 1
    }

    /// Moves the command just recorded to a place that was kept.
    pub(crate) fn move_last_to(&mut self, place: usize) {
        debug_assert!(self.commands[place].is_none());
        self.commands[place] = self.commands.pop().flatten();
    }

    /// Whether a command from this place on writes to one of these tensors' memory.
    pub(crate) fn is_written_since(&self, place: usize, tensors: &[Tensor]) -> bool {
        let mut written = self.commands[place..].iter().flatten().flat_map(Command::writes);
        written.any(|to| tensors.iter().any(|tensor| Arc::ptr_eq(tensor.buffer(), to.buffer())))
    }

    /// How many commands there are so far.
    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    /// The f32 tensors that commands so far read and none of them writes: what the user fills, parameters, constants.
    pub(crate) fn inputs(&self) -> Vec<Tensor> {
        let buffer = |tensor: &Tensor| Arc::as_ptr(tensor.buffer()) as usize;
        let written: BTreeSet<_> = self.recorded().flat_map(Command::writes).map(buffer).collect();
        let mut seen = BTreeSet::new();
        let is_new = |tensor: &&Tensor| {
            let is_input = tensor.dtype() == DType::F32 && !written.contains(&buffer(tensor));
            is_input && seen.insert((buffer(tensor), tensor.offset()))
        };
        self.recorded().flat_map(Command::reads).filter(is_new).cloned().collect()
    }

    /// Sets a tensor to zero.
    pub(crate) fn clear(&mut self, tensor: Tensor) {
        self.commands.push(Some(Command::Clear { tensor }));
    }

    /// Bytes that [`Self::finish`] will allocate for tensors of what was recorded so far; those that have memory already, parameters
    /// say, are not among them. It counts on memory being shared by those that nothing else has a handle to; a [`crate::Graph`] has them
    /// until it is finished, [`crate::Trainer::record`] has none left.
    pub fn memory(&self) -> u64 {
        let all: u64 = Buffer::without_memory(buffers(self.recorded())).iter().map(|buffer| buffer.bytes()).sum();
        all - self.saved_by_sharing()
    }

    fn saved_by_sharing(&self) -> u64 {
        if self.shares { Sharing::of(self.recorded()).saved() } else { 0 }
    }

    /// How many commands there are so far, and what they cost, as [`Plan::count`] of what [`Self::finish`] would make, but for tensors that
    /// are cleared since they share memory; submissions by an estimate.
    pub fn count(&self) -> PlanCount {
        let submits = self.device.gpu().map_or(1, |gpu| Passes::estimated_submits(gpu, self.recorded()));
        let mut count = count(self.recorded(), submits);
        count.memory -= self.saved_by_sharing();
        count
    }

    /// The dispatches so far, in order.
    pub fn dispatches(&self) -> impl Iterator<Item = &Dispatch> {
        dispatches(self.recorded())
    }

    /// Which paths were taken so far, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Compiles what was recorded. On a GPU, pipelines are compiled and bind groups made here, once.
    ///
    /// # Errors
    /// The device has no memory for all tensors, of which none is allocated then; the driver refuses a kernel, or the device was
    /// lost.
    pub fn finish(self) -> Result<Plan> {
        pollster::block_on(self.finish_async())
    }

    /// [`Self::finish`] without blocking.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub async fn finish_async(self) -> Result<Plan> {
        let commands = self.commands.into_iter().flatten().collect();
        Plan::prepare(self.device, if self.shares { share(commands)? } else { commands }, self.notes)
    }

    /// Two recorders: of what needs to run only when what is in `constant` has changed, and of what every run needs.
    pub(crate) fn split(self, constant: &Tensor) -> (Self, Self) {
        let mut constants = Self { shares: self.shares, ..Self::new(&self.device) };
        let commands = self.commands.into_iter().flatten().collect();
        let (of_constants, commands) = split_off_constants(commands, constant);
        constants.commands = of_constants.into_iter().map(Some).collect();
        let commands = commands.into_iter().map(Some).collect();
        (constants, Self { commands, ..self })
    }

    /// Two plans: what needs to run only when what is in `constant` has changed, and what every run needs.
    pub(crate) async fn finish_in_two_async(self, constant: &Tensor) -> Result<(Plan, Plan)> {
        Plan::allocate(&self.device, self.recorded())?;
        let (constants, others) = self.split(constant);
        Ok((constants.finish_async().await?, others.finish_async().await?))
    }
}

/// As the plan would be printed.
impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.device, self.recorded(), &self.notes, self.count())
    }
}

/// Names are made of names: of a long chain, the end is left out.
fn shortened(name: &str) -> &str {
    const LONGEST: usize = 100;
    name.char_indices().nth(LONGEST).map_or(name, |(end, _)| &name[..end])
}

fn terms(most_turns: usize, (turns, per): (usize, usize), step: usize) -> usize {
    (most_turns.saturating_mul(per) / turns / step).max(1).saturating_mul(step)
}

/// Commands that give the same in every run until what is in `constant` changes, and the others.
///
/// What varies from run to run starts in other buffers that no command writes (the user does), and
/// spreads to every command that touches one, and on to what that command writes.
fn split_off_constants(commands: Vec<Command>, constant: &Tensor) -> (Vec<Command>, Vec<Command>) {
    let id = |tensor: &Tensor| Arc::as_ptr(tensor.buffer()) as usize;
    let written: BTreeSet<usize> = commands.iter().flat_map(Command::writes).map(id).collect();
    let read = commands.iter().flat_map(Command::reads).map(id);
    let mut varying: BTreeSet<usize> =
        read.filter(|buffer| !written.contains(buffer) && *buffer != id(constant)).collect();
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
    let (a, b) = (first.elements(), second.elements());
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
