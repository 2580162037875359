//! The list of commands of one piece of work at fixed shapes, and the loop that runs it.

#[cfg(feature = "reference")]
mod comparison;
/// Without the feature `gpu`, a module of the same names.
#[cfg_attr(not(feature = "gpu"), path = "no_passes.rs")]
mod passes;
mod profile;
mod recorder;
mod sharing;
mod stretches;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "reference")]
pub use comparison::Comparison;
use passes::{Passes, Runs};
use profile::Timed;
pub use profile::{Profile, ProfileRow};
pub use recorder::{Precision, Recorder};
use stretches::Stretch;

use crate::device::memory::{Buffer, Memory};
use crate::device::turns::Footprint;
use crate::device::{Counters, Device, Floats, Kind};
use crate::error::Result;
use crate::kernel::{Access, Args, AsCells, Kernel};
use crate::real::Real;
use crate::tensor::Tensor;

/// One command of a plan.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Dispatch(Dispatch),
    Copy { from: Tensor, to: Tensor },
    Clear { tensor: Tensor },
}

impl Command {
    /// The tensors that it reads alone.
    pub fn reads(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors(Access::Read)
    }

    /// The tensors that it writes.
    pub fn writes(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors(Access::Write)
    }

    fn reads_and_writes(&self) -> impl Iterator<Item = &Tensor> {
        self.reads().chain(self.writes())
    }

    fn tensors(&self, access: Access) -> impl Iterator<Item = &Tensor> {
        self.bound().into_iter().filter(move |(a, _)| *a == access).map(|(_, tensor)| tensor)
    }

    /// All of its tensors, each with what it does with it.
    fn bound(&self) -> Vec<(Access, &Tensor)> {
        match self {
            Self::Dispatch(d) => d.kernel.bindings.iter().map(|binding| binding.access).zip(&d.tensors).collect(),
            Self::Copy { from, to } => vec![(Access::Read, from), (Access::Write, to)],
            Self::Clear { tensor } => vec![(Access::Write, tensor)],
        }
    }

    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        match self {
            Self::Dispatch(d) => d.tensors.iter_mut().collect(),
            Self::Copy { from, to } => vec![from, to],
            Self::Clear { tensor } => vec![tensor],
        }
    }
}

/// A kernel with everything it needs.
#[derive(Clone)]
pub struct Dispatch {
    pub(crate) kernel: &'static Kernel,
    pub(crate) constants: Vec<(&'static str, u32)>,
    /// Words, whose alignment is that of every parameter struct.
    pub(crate) params: Vec<u32>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) workgroups: [u32; 3],
    pub(crate) work: Work,
    /// Elements of a buffer, by the binding, of which neither this nor a later command needs what was there before.
    pub(crate) overwrites: Vec<(usize, Range<usize>)>,
}

/// What a dispatch costs beyond reading and writing each of its tensors once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Multiplications and additions of matrix products.
    pub flops: u64,
    /// Bytes of weights that workgroups read again.
    pub rereads: u64,
    /// Bytes of its tensors that it leaves alone: those of other steps, what is around a block.
    pub untouched: u64,
}

impl Dispatch {
    /// The kernel.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// Bytes of its tensors that it reads or writes, each once.
    pub fn bytes(&self) -> u64 {
        self.each_tensor().map(|tensor| 4 * tensor.len() as u64).sum::<u64>() - self.work.untouched
    }

    /// Its tensors, one that is bound several times once.
    pub(crate) fn each_tensor(&self) -> impl Iterator<Item = &Tensor> {
        let is_first = |i: usize, tensor: &Tensor| !self.tensors[..i].iter().any(|other| other.is(tensor));
        self.tensors.iter().enumerate().filter(move |&(i, tensor)| is_first(i, tensor)).map(|(_, tensor)| tensor)
    }

    /// Multiplications and additions of its matrix products.
    pub fn flops(&self) -> u64 {
        self.work.flops
    }

    /// Its tensors, in the order of the kernel's bindings. After a run, one that nothing else has a handle to may hold another's values.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// How many workgroups it has in x, y and z.
    pub fn workgroups(&self) -> [u32; 3] {
        self.workgroups
    }

    /// The values of its constants.
    pub fn constants(&self) -> &[(&'static str, u32)] {
        &self.constants
    }
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kernel.name, self.tensors)
    }
}

/// Work of fixed shapes, ready to run as often as wanted: printable, countable, and run by one short loop.
///
/// Running it submits once, if it does not take long, and allocates nothing. `println!("{plan}")` lists the commands and says which paths were
/// taken and why.
pub struct Plan {
    device: Device,
    commands: Arc<[Command]>,
    notes: Vec<String>,
    /// On a GPU; the CPU interprets `commands`.
    passes: Option<Arc<Passes>>,
    /// Filled on a CPU device: which commands run at the same time.
    stretches: Vec<Stretch>,
    /// Of a CPU: whether its caller runs it as fast as the threads of the twins.
    is_short: bool,
    dispatches: usize,
    footprint: Footprint,
}

/// A plan with what goes in before a run and comes out after it.
pub(crate) struct Exchange {
    pub plan: Plan,
    /// What is written, each a tensor's beginning.
    inputs: Vec<Tensor>,
    output: Tensor,
    footprint: Footprint,
}

impl Exchange {
    pub fn new(plan: Plan, inputs: Vec<Tensor>, output: Tensor) -> Self {
        let uses = plan.uses().chain(inputs.iter().map(|tensor| (&**tensor.buffer(), true)));
        let footprint = Footprint::new(uses.chain([(&**output.buffer(), false)]));
        Self { plan, inputs, output, footprint }
    }

    /// Writes what goes in, runs the plan, and reads what comes out; on the CPU in one turn and, after the first time, without taking
    /// memory.
    pub async fn run(&self, values: &[&[f32]], result: &mut [f32]) -> Result<()> {
        let device = &self.plan.device;
        if device.is_gpu() {
            for (tensor, values) in self.inputs.iter().zip(values) {
                tensor.write(values)?;
            }
            self.plan.run()?;
            result.copy_from_slice(&self.output.to_vec_async().await?);
            return Ok(());
        }
        device.run_twins([Some(&self.footprint), None], self.plan.is_short, || {
            for (tensor, values) in self.inputs.iter().zip(values) {
                // SAFETY: it is this turn's to write, as the footprint says.
                unsafe { tensor.buffer().put(tensor.offset(), values) };
            }
            self.plan.interpret_here();
            // SAFETY: it is this turn's to read.
            unsafe { self.output.buffer().get(self.output.offset(), result) };
        });
        self.plan.count_run(self.plan.dispatches);
        Ok(())
    }
}

/// How many commands a plan has, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanCount {
    /// Kernels dispatched.
    pub dispatches: usize,
    /// Copies on the device.
    pub copies: usize,
    /// Tensors set to zero.
    pub clears: usize,
    /// Command buffers submitted: several, of a plan that may take longer than the device's budget
    /// ([`Device::set_submission_budget`]).
    pub submits: usize,
    /// Bytes that the commands read and write, each tensor of a command once.
    pub bytes: u64,
    /// Bytes of weights that workgroups of one dispatch read again.
    pub rereads: u64,
    /// Multiplications and additions of matrix products.
    pub flops: u64,
    /// Bytes of all of its tensors, those included that others have too.
    pub memory: u64,
}

impl Plan {
    pub(crate) fn prepare(device: Device, commands: Vec<Command>, notes: Vec<String>) -> Result<Self> {
        Self::allocate(&device, &*commands)?;
        let commands: Arc<[Command]> = commands.into();
        let (passes, stretches) = match device.gpu() {
            Some(gpu) => (Some(Arc::new(Passes::new(gpu, &commands)?)), Vec::new()),
            None => (None, stretches::stretches(&commands)),
        };
        let dispatches = commands.iter().filter(|command| matches!(command, Command::Dispatch(_))).count();
        let is_short = stretches::are_short(&stretches, &commands);
        let footprint = Footprint::new(uses(&commands));
        Ok(Self { device, commands, notes, passes, stretches, is_short, dispatches, footprint })
    }

    /// The buffers of all commands, each with whether it is written.
    fn uses(&self) -> impl Iterator<Item = (&Buffer, bool)> {
        uses(&self.commands)
    }

    /// Gives memory to all tensors of these commands, or to none.
    fn allocate<'a>(device: &Device, commands: impl IntoIterator<Item = &'a Command>) -> Result<()> {
        Buffer::allocate("the plan", device, buffers(commands))
    }

    fn passes(&self) -> &Arc<Passes> {
        self.passes.as_ref().expect("a plan of a GPU has them")
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How many commands it has.
    pub fn count(&self) -> PlanCount {
        let submits = match (&self.passes, self.device.gpu()) {
            (Some(passes), Some(gpu)) => passes.submits(gpu),
            _ => 1,
        };
        count(&*self.commands, submits)
    }

    #[doc(hidden)]
    /// The memory that several of its intermediate values have, one after the other.
    pub fn shared_memory(&self) -> Vec<Tensor> {
        let tensors =
            self.commands.iter().flat_map(Command::reads_and_writes).filter(|tensor| tensor.buffer().is_shared());
        let mut all: Vec<_> = tensors.map(Tensor::whole_buffer).collect();
        all.sort_by_key(|tensor| Arc::as_ptr(tensor.buffer()));
        all.dedup_by(|a, b| a.is(b));
        all
    }

    /// The dispatches, in order.
    pub fn dispatches(&self) -> impl Iterator<Item = &Dispatch> {
        dispatches(&*self.commands)
    }

    /// Names of the kernels in the order of dispatch.
    pub fn kernels(&self) -> Vec<&'static str> {
        self.dispatches().map(|dispatch| dispatch.kernel.name).collect()
    }

    /// Which paths were taken, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether a run may find other values than the one before it left: something is read before it is written, a clock or a
    /// carried state.
    pub(crate) fn varies(&self) -> bool {
        let id = |tensor: &Tensor| Arc::as_ptr(tensor.buffer());
        let (mut written, mut before) = (HashSet::new(), HashSet::new());
        for command in &*self.commands {
            before.extend(command.reads().map(id).filter(|buffer| !written.contains(buffer)));
            written.extend(command.writes().map(id));
        }
        !before.is_disjoint(&written)
    }

    /// Bytes of the tensors that nothing but this plan, and `others`, holds.
    pub(crate) fn own_bytes<'a>(&'a self, others: impl Iterator<Item = &'a Tensor>) -> u64 {
        let mut holds = HashMap::new();
        for tensor in self.commands.iter().flat_map(Command::reads_and_writes).chain(others) {
            let buffer = tensor.buffer();
            holds.entry(Arc::as_ptr(buffer)).or_insert((buffer, 0)).1 += 1;
        }
        let own = holds.values().filter(|(buffer, held)| Arc::strong_count(buffer) == *held);
        own.map(|(buffer, _)| buffer.bytes()).sum()
    }

    /// Runs all commands once. On a GPU this returns when they are submitted; reading a tensor waits for them. On the CPU it first
    /// waits for plans and transfers that came earlier, as far as they write what this one uses or use what it writes.
    ///
    /// # Errors
    /// The device was lost, or its driver reported an error.
    pub fn run(&self) -> Result<()> {
        self.run_times(1)
    }

    /// Runs all commands `times` times, in one submission if that does not take long ([`Device::set_submission_budget`]).
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_times(&self, times: usize) -> Result<()> {
        self.run_after(None, times)
    }

    /// Runs all commands of another plan once, then those of this one `times` times, in one submission.
    pub(crate) fn run_after(&self, first: Option<&Self>, times: usize) -> Result<()> {
        let plans = || first.into_iter().chain(std::iter::repeat_n(self, times));
        let dispatches: usize = plans().map(|plan| plan.dispatches).sum();
        let uses = [first.map(|plan| &plan.footprint), Some(&self.footprint)];
        match self.device.kind() {
            Kind::Gpu(gpu) => {
                let runs = first.into_iter().map(|plan| (plan, 1)).chain([(self, times)]);
                let runs: Runs = runs.map(|(plan, times)| (plan.passes().clone(), times)).collect();
                Passes::submit(gpu, &runs)?;
            }
            Kind::Cpu(..) => {
                let is_short = first.is_none() && times == 1 && self.is_short;
                self.device.run_twins(uses, is_short, || plans().for_each(Self::interpret_here));
            }
        }
        self.count_run(dispatches);
        Ok(())
    }

    fn count_run(&self, dispatches: usize) {
        let counters = self.device.counters();
        if !self.device.is_gpu() {
            Counters::add(&counters.submits, 1);
        }
        Counters::add(&counters.dispatches, dispatches as u64);
    }

    /// On the CPU, in its floats.
    fn interpret_here(&self) {
        match self.device.kind() {
            Kind::Cpu(Floats::F32, _) => self.interpret::<f32>(),
            #[cfg(feature = "reference")]
            Kind::Cpu(Floats::F64, _) => self.interpret::<f64>(),
            Kind::Gpu(_) => unreachable!("a GPU has passes"),
        }
    }

    /// Runs all commands `runs` times, each command timed: on the CPU by the clock, on a GPU by timestamp queries around
    /// each dispatch (copies and clears are not timed there). Commands that a run overlaps are timed one by one, so their
    /// sum may exceed the time of a run.
    ///
    /// # Errors
    /// As [`Self::run`]; the adapter has no timestamp queries.
    pub fn profile(&self, runs: usize) -> Result<Profile> {
        let timed = |command: &Command| match command {
            Command::Dispatch(d) => Timed {
                kernel: d.kernel.name,
                result: d.tensors.last().map_or_else(String::new, |tensor| format!("{tensor:?}")),
                flops: d.flops(),
                bytes: d.bytes(),
                times: Vec::new(),
            },
            Command::Copy { from, to } => Timed {
                kernel: "copy",
                result: format!("{to:?}"),
                flops: 0,
                bytes: 8 * from.len() as u64,
                times: Vec::new(),
            },
            Command::Clear { tensor } => Timed {
                kernel: "clear",
                result: format!("{tensor:?}"),
                flops: 0,
                bytes: 4 * tensor.len() as u64,
                times: Vec::new(),
            },
        };
        let mut commands: Vec<Timed> = self.commands.iter().map(timed).collect();
        for _ in 0..runs.max(1) {
            let times = match self.device.kind() {
                Kind::Gpu(gpu) => self.passes().run_with_timestamps(gpu)?,
                Kind::Cpu(Floats::F32, _) => self.interpret_timed::<f32>(),
                #[cfg(feature = "reference")]
                Kind::Cpu(Floats::F64, _) => self.interpret_timed::<f64>(),
            };
            commands.iter_mut().zip(times).for_each(|(command, time)| command.times.extend(time));
        }
        Ok(Profile { device: self.device.describe(), commands })
    }

    /// Runs all commands on the CPU, in the plan's turn and on the twins' threads.
    fn interpret<F: Real>(&self)
    where
        Memory: AsCells<F>,
    {
        self.stretches.iter().for_each(|stretch| stretch.run(&self.commands, interpret));
    }

    fn interpret_timed<F: Real>(&self) -> Vec<Option<(f64, f64)>>
    where
        Memory: AsCells<F>,
    {
        let start = Instant::now();
        let now = || start.elapsed().as_secs_f64() * 1e6;
        let mut times = Vec::new();
        self.device.run_twins([None, Some(&self.footprint)], self.is_short, || {
            for command in &*self.commands {
                let before = now();
                interpret(command);
                times.push(Some((before, now() - before)));
            }
        });
        times
    }
}

/// Those of all tensors of commands, each with whether it is written.
fn uses(commands: &[Command]) -> impl Iterator<Item = (&Buffer, bool)> {
    commands.iter().flat_map(|command| {
        let reads = command.reads().map(|tensor| (&**tensor.buffer(), false));
        reads.chain(command.writes().map(|tensor| (&**tensor.buffer(), true)))
    })
}

/// Those of all tensors of commands.
fn buffers<'a>(commands: impl IntoIterator<Item = &'a Command>) -> impl Iterator<Item = &'a Buffer> {
    commands.into_iter().flat_map(Command::reads_and_writes).map(|tensor| &**tensor.buffer())
}

/// Runs a command on the CPU, in the turn of its plan.
fn interpret<F: Real>(command: &Command)
where
    Memory: AsCells<F>,
{
    // SAFETY: the plan's footprint has the buffers of all of its commands; `Recorder` has refused commands whose tensors
    // overlap where one is written, and `stretches` to run two at the same time if what one writes overlaps what the other uses.
    unsafe {
        match command {
            Command::Dispatch(d) => Memory::twin(d.kernel)(&d.params, Args::new(d.kernel, &d.tensors)),
            Command::Copy { from, to } => {
                to.buffer().memory().copy_from(to.offset(), from.buffer().memory(), from.offset(), from.len());
            }
            Command::Clear { tensor } => tensor.buffer().memory().clear(tensor.offset(), tensor.len()),
        }
    }
}

/// How many there are of each kind, and what they cost.
fn count<'a>(commands: impl IntoIterator<Item = &'a Command> + Clone, submits: usize) -> PlanCount {
    let buffers: HashMap<_, _> =
        buffers(commands.clone()).map(|buffer| (std::ptr::from_ref(buffer), buffer.bytes())).collect();
    let mut count = PlanCount { submits, memory: buffers.values().sum(), ..Default::default() };
    for command in commands {
        match command {
            Command::Dispatch(dispatch) => {
                count.dispatches += 1;
                count.bytes += dispatch.bytes();
                count.rereads += dispatch.work.rereads;
                count.flops += dispatch.work.flops;
            }
            Command::Copy { from, .. } => {
                count.copies += 1;
                count.bytes += 8 * from.len() as u64;
            }
            Command::Clear { tensor } => {
                count.clears += 1;
                count.bytes += 4 * tensor.len() as u64;
            }
        }
    }
    count
}

fn dispatches<'a>(commands: impl IntoIterator<Item = &'a Command>) -> impl Iterator<Item = &'a Dispatch> {
    commands.into_iter().filter_map(|command| match command {
        Command::Dispatch(dispatch) => Some(dispatch),
        Command::Copy { .. } | Command::Clear { .. } => None,
    })
}

/// Lists the commands of a plan, or of what is to be one.
fn list<'a>(
    f: &mut fmt::Formatter<'_>,
    device: &Device,
    commands: impl IntoIterator<Item = &'a Command>,
    notes: &[String],
    count: PlanCount,
) -> fmt::Result {
    let PlanCount { dispatches, copies, clears, submits, bytes, flops, memory, .. } = count;
    writeln!(
        f,
        "plan on {}: {dispatches} dispatches, {copies} copies, {clears} clears, {submits} submit, {:.1} MB, {:.1} MFLOP, {:.1} MB of memory",
        device.describe(),
        bytes as f64 / 1e6,
        flops as f64 / 1e6,
        memory as f64 / 1e6
    )?;
    for note in notes {
        writeln!(f, "  {note}")?;
    }
    for (i, command) in commands.into_iter().enumerate() {
        match command {
            Command::Dispatch(d) => {
                let [x, y, z] = d.workgroups;
                write!(f, "{i:4}  {:24} {x}x{y}x{z}", d.kernel.name)?;
                for (binding, tensor) in d.kernel.bindings.iter().zip(&d.tensors) {
                    let arrow = if binding.access == Access::Write { "-> " } else { "" };
                    write!(f, "  {arrow}{}: {tensor:?}", binding.name)?;
                }
                writeln!(f)?;
            }
            Command::Copy { from, to } => writeln!(f, "{i:4}  {:24} {from:?}  -> {to:?}", "copy")?,
            Command::Clear { tensor } => writeln!(f, "{i:4}  {:24} -> {tensor:?}", "clear")?,
        }
    }
    Ok(())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.device, &*self.commands, &self.notes, self.count())
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({:?})", self.kernels())
    }
}
