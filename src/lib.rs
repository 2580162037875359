//! Recurrent neural networks on any GPU that wgpu reaches (Vulkan, Metal, DX12), by WGSL kernels, with PyTorch's
//! semantics and numbers; on the CPU, by the kernels' twins, where there is no GPU.
//!
//! A network is written forward only. [`Trainer::new`] records it, once and for one shape, into a [`Plan`]: a fixed list
//! of kernels for forward pass, backward pass and update. A step submits that list, at once if that is short; nothing is allocated or uploaded,
//! and the hidden state stays on the device. [`Trainer::on_batches`] does so for each shape of batch that comes. [`pytorch`] says in
//! these terms what a PyTorch program says, [`how_a_plan_runs`] what happens on a GPU.
//!
//! ```
//! use elman::nn::functional::{InitialState, Reduction, cross_entropy};
//! use elman::nn::{Init, Linear, Rnn, RnnOptions};
//! use elman::{DType, Device, Trainer, optim::Adam, rng};
//!
//! // Which of four sequences is it? x [T, B, I], one target for each sequence.
//! let device = Device::from_environment()?;
//! let x = device.upload("x", &[5, 4, 3], &rng::manual_seed(1).randn(60))?;
//! let targets = device.targets("targets", &[4], 4)?;
//! targets.write_u32(&[0, 1, 2, 3])?;
//!
//! let mut init = Init::new(rng::manual_seed(777));
//! let rnn = Rnn::new(&mut init, "rnn", RnnOptions::new(3, 16))?;
//! let output = Linear::new(&mut init, "output", 16, 4)?;
//! let parameters = init.upload(&device)?;
//! let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
//!     let x = g.input(&x)?;
//!     let out = rnn.forward(g, x, InitialState::Zero)?;
//!     let logits = output.forward(g, out.h_n)?;
//!     cross_entropy(g, logits, &targets, Reduction::Mean)
//! })?;
//! for _ in 0..60 {
//!     trainer.step()?;
//! }
//! let losses = trainer.losses()?;
//! assert!(losses[59] < 0.5 * losses[0]);
//! # Ok::<(), elman::Error>(())
//! ```
//!
//! # Building
//!
//! The feature `cli` adds the command, `onnx` files of other frameworks. Without the default feature `gpu` there is the CPU alone, and no
//! wgpu to compile; `reference`, which comes with it, has the twins in f64 as well ([`Device::reference`]). A debug build computes hundreds
//! of times slower than a release build, unless what computes is compiled as there:
//!
//! ```toml
//! [dependencies]
//! elman = { version = "0.1", default-features = false } # the CPU alone
//!
//! [profile.dev.package."*"] # all dependencies; where elman is a member of your workspace, `[profile.dev.package.elman]` too
//! opt-level = 3
//! ```
//!
//! # Map
//!
//! Floors, from the ground up: a file imports its own floor and those below it (`tests/floors.rs`).
//!
//! | floor | where | what |
//! |---|---|---|
//! | ground | [`Error`], [`rng`] | the one error type; PyTorch's random generator |
//! | | `product`, `real`, `files`, `model_file` | matrix products of the twins by the `gemm` crate; the float types they run in; files that appear whole; safetensors files, opened |
//! | device | [`device`], [`Tensor`] | `gpu` finds adapters and talks to wgpu (`live` is what dies with a device, `recovery` what makes it anew), and `no_gpu` stands for it in a build without the feature; `memory` holds the CPU's buffers, `turns` says who may use them; a named, shaped range of one |
//! | | [`kernel`], [`custom`] | what a kernel is, and one of the user's own |
//! | | [`map`] | programs of elementwise operations: expressions, their gradients, their WGSL, their twin |
//! | plan | [`Recorder`] | records commands, each checked, and how to plan for a device; knows nothing of gradients or parameters |
//! | | [`Plan`], [`Profile`], [`Comparison`] | the list of commands, ready to run, the loop that runs it, where its time goes, and whether each command computes what its twin does; `sharing` of memory, `passes` for a GPU, `stretches` for the CPU |
//! | kernels | [`kernels`] | one file for each `shaders/<name>.wgsl`: parameters, checks, grid, CPU twin; takes the recorder and numbers |
//! | | [`kernels::sequence`], [`kernels::cell`] | what the cells' kernels share, and, above them, the list of cells |
//! | open | [`Device::open`] | choosing a device by name, and what an adapter computes before it is trusted (`self_check`) |
//! | graph | [`Graph`] | a recorder with values, gradients, and the tape that writes the backward commands; parameters and losses; `map`, operations of elements that are put together |
//! | nn | [`nn`] | modules, the carried [`nn::State`]; [`nn::functional`] has the differentiable operations, by kind |
//! | | [`optim`], [`schedule`], [`io`], [`text`], [`data`] | optimizers and learning rates; model files; text as tokens and windows, of a string or of a file of any size; batches of arrays on the host |
//! | | `onnx` | with the feature of this name, networks of other frameworks: `file` parses, `operators` and `recurrent` record, `value` is what they record with, `array` what is known on the host; `write` writes |
//! | use | [`Trainer`], [`Evaluator`], [`Predictor`] | a training step, an evaluation, a prediction as plans over the same parameters; [`Plans`] keeps one for each shape, `log` the losses of their runs |
//! | | [`Stream`] | frames that come one by one, the state kept; lanes that get none wait |
//! | | [`Checkpoint`], [`Autosave`] | all that a training is at one of its steps, as a file; such files in a folder, as it goes; `signals` says that it is to end |
//! | | [`generate`] | text, drawn and fed back on the device; lanes that are primed, saved, put back and forked one by one |
//! | command | `src/main.rs`, `src/cli` | a program of its own: one file for each command, and in `shared` what the examples need too |
//! | | [`Reader`] | a text, read token by token: logits and states after each, kept on the device to go back to |
//!
//! # Decisions
//!
//! * **A plan for each shape, no eager tensors.** An RNN's shapes, order and length are known before its first step.
//!   What changes from step to step is a tensor of the plan: tokens, learning rate, and the clock that says which step
//!   it is. Shape, limit and aliasing errors come up while the plan is recorded.
//! * **One plan for all devices.** The CPU interprets the same commands with the twins, in f32; [`Device::reference`]
//!   does so in f64, and is what tests compare with and take differences of. The twin is a field of the kernel, so there
//!   is no kernel without one.
//! * **An embedding is looked up as late as possible.** It stays "rows of a table" in the graph; a product with it
//!   becomes a product with the table, of V rows rather than T B, and the recurrence reads the rows it needs. Its gradient
//!   is a sum for each token, in fixed order.
//! * **A recurrence is one dispatch for all time steps** while four batch entries fit into 16 KiB (H up to 1,024) and, on
//!   a GPU, its weights are few enough for one workgroup to read in every step (1 MiB): a workgroup takes its entries
//!   through the whole sequence. Otherwise it is a dispatch a step, product and cell together, over rows and columns, and
//!   stacked layers are a wavefront: one dispatch has every layer, each a step behind the one below. The plan says which,
//!   and why. [`kernels::sequence`] has what all cells share, down to what their kernels bind: seven of WebGPU's eight storage
//!   buffers, of which an LSTM's peepholes are the eighth. Other functions of gates are constants of the WGSL files too; then what comes
//!   into them is saved, in place of what comes out, and the backward pass computes them anew. A GRU that resets before its product has
//!   steps of two parts, both in the one dispatch, or a dispatch each. A cell adds its two kernels, a file with what is its own, and an arm (`CONTRIBUTING.md`).
//! * **What shapes a kernel is a constant of its WGSL file**, which the host sets: tiles differ with sizes, and a software
//!   driver, where a load costs hundreds of products, gets larger ones for large products. So is what an adapter has beyond
//!   WebGPU's least: on a GPU, few weights stay in workgroup memory for all steps, and sums that are cut into slices are
//!   added up within subgroups. A thread gets as many sums as fit into the registers that compilers for GPUs have (`tests/isa` asks one).
//!   Weights in f16 change numbers, so they are asked for: [`Graph::set_precision`](Recorder::set_precision).
//! * **What acts on each element is a program** ([`map`]): a few instructions, from which come the WGSL, the gradient (another program), and what
//!   the one twin walks. A kernel is made for each, and differs with the instructions, not with sizes and numbers. Any layout of inputs
//!   and results is part of it, so broadcasting, transposes, slices and joins are programs that copy.
//! * **Operations of elements are put together as they are recorded**: the value of one is its program until something needs its tensor, and a
//!   program that reads it takes it in, as far as a kernel can bind (six values). So a chain is one dispatch, its gradients another, and what
//!   nothing needs is not computed. Its command keeps the place where it was recorded, so that it reads what was there then.
//! * **An ONNX file is recorded like a network of one's own**, node by node, with what depends on constants and shapes computed on the host; loops and
//!   branches are followed, since their course is known by then. What is not read is refused when the file is, all of it by name.
//! * **Lengths are data, directions are an order.** Past an entry's length the state is 0 and so is every gradient; the
//!   second direction is the same kernel on a sequence whose steps were reversed, each entry's own. Both directions of a
//!   layer are one dispatch, side by side. Resets are marks behind the lengths, in the same binding.
//! * **A loss of each element is a program** too: losses and gradients come out of one dispatch. What goes over a row of classes is a kernel,
//!   which has class weights and smoothed targets in it.
//! * **Weights of rows are passes of their own** around a loss's kernel: one makes the weights from tensors, lengths and
//!   targets, one multiplies; what has weight 0 is 0, whatever was computed there. Without weights, the kernel alone.
//! * **All parameters are one buffer, all gradients another**, moments likewise: one dispatch updates everything.
//! * **The loss is a log on the device.** Each step appends to it and advances the clock; the host reads it rarely, and
//!   submits several steps at once ([`Trainer::step_up_to`]). A sum of losses, `a + 0.3 * b`, has a ring for each of them.
//! * **Other shapes are other plans** of the same network ([`Plans`]): recorded when the first batch of a shape comes, kept while
//!   memory lasts, and sharing what a training is made of: moments, learning rate, clock and log are tensors that all of them bind.
//!   A plan takes some hundred microseconds to record, less than a step.
//! * **A plan is what a module's forward pass needs**: there is no `rnn.forward(&x, &h)` on values, but a [`Predictor`]'s closure.
//! * **A generator's plan is in two parts**: what depends on the parameters alone (the token table, the transposed weights)
//!   runs once for each piece of text, the rest once for each token.
//! * **A text of a [`nn::CharRnn`] on a GPU is a dispatch for 64 tokens**: a workgroup takes a lane through all of them,
//!   the state in its 16 KiB. The generator sees it by the logits that were recorded, not by the model's type. Other networks, many lanes and the CPU take a chain of dispatches for each token; the plan
//!   says which, and why.
//! * **What a lane has read and drawn is one row of stamps**, the place of each token's last occurrence, counted from the first draw: a
//!   penalty of repetitions reads it, and a lane that is forked or saved takes it along. Draws are keyed by seed and lane, so a fork writes
//!   another text, unless it is greedy or told to have the draws of its original ([`generate::Sampling::draws_of`]).
//! * **An adapter is checked before it is trusted**, once for each driver and version: functions, a product, a sum, a recurrence,
//!   also in subgroups and f16, against the twins. The kernels' exponentials are of products, additions and bits
//!   (`shaders/lib/math.wgsl`), for compilers bend the built-ins.
//! * **A plan can be compared with its twins, command by command**, on the values that a device has just before: an error does not go on,
//!   and is found where it is made ([`Plan::compare_with_twins`]; `elman doctor` does so with every kernel).
//! * **Every loop of a kernel has a bound that the plan knows**: steps of a recurrence, terms of a product and rows of a sum are
//!   cut into dispatches of at most half the turns after which Mesa ends a shader's loops, and of 20 GFLOP (a
//!   quarter of the turns and 1 GFLOP on a software driver); what cannot be cut is
//!   an error before anything runs.
//! * **A parameter that no gradient reaches is left alone**, as PyTorch leaves one whose `grad` is None: an update is recorded for
//!   the stretches of the block that have one.
//! * **Twins have threads of their own**, and the caller waits in its turn: no task of a user's pool is taken up meanwhile.
//! * **On the CPU, what shares no written tensor runs at the same time**: a plan or transfer waits for what came before it, runs or
//!   waits, and writes what it uses or uses what it writes (`device/turns`). So nobody is overtaken for good, and nobody waits in a circle.
//! * **A step of a stream is recorded once**: a block of frames is that step so many times in one plan, so its numbers are those of as many
//!   pushes. Lanes that get no frame take the step too, and have their states put back after it.
//! * **A short plan runs on its caller's thread** on the CPU, where to wake another takes longer; its twins, as far as they can
//!   (`Twin::can_be_alone`), then use no other. What lies between their inputs and results is memory that the thread keeps, and few rows have a
//!   product of their own: so a frame of a small network takes none.
//! * **A recurrence's matrices are laid out once for a dispatch**, as the `gemm` crate's micro-kernels read them, where they are multiplied
//!   often; a row's sums are then the same whatever rows are beside it, so tiles are cut by the threads there are.
//! * **Products take the widest vectors there are**, and buffers begin at lines of the cache, which such a vector fills; loops over elements that
//!   do no more than read and write them take 256 bits.
//! * **A file's values go where initial values would be drawn**: [`nn::Init::from_file`], so every module can be made from a file; what its
//!   shapes say of a module is read off by its `from_file`.
//! * **A batch of commands is worth two threads where each by itself is not**: on the CPU, neighbours in a plan that do not depend on each
//!   other run at the same time (both directions' products, a weight's gradient beside an input's), if that saves what waking a thread takes.
//! * **What only a GPU needs is behind two modules**, `device/gpu` and `plan/passes`, and the self-check; without the feature `gpu`, modules
//!   of the same names have types without values, so the rest is written once.
//! * **A step updates if a gate says so**, on the device: after each so many steps, and unless a loss or the gradient's norm is not
//!   finite. Optimizers take its learning rate, which is below 0 where nothing is to be updated, and its count of updates.
//! * **A lost GPU is made anew below everything else** (`device/gpu/recovery`): tensors outlive the device that has them, and a journal of
//!   what was done since a snapshot is done again. So trainers, generators and plans know nothing of it.
//! * **A plan's own tensors get memory when it is finished**, all or none: its need is known before. Those that nobody else holds share it
//!   where the last command of one comes before the first of another (`plan/sharing`): kernels say what they overwrite, and what may be
//!   read without having been written is cleared.
//! * **Long plans are timed in their first run**, piece by piece, and submitted in pieces of a budget from then on; short ones, by a pessimistic
//!   estimate, are one submission.
//! * **No atomics in sums, fixed order:** the same seed on the same device gives the same bits, whatever the threads.

mod autosave;
mod checkpoint;
pub mod custom;
pub mod data;
pub mod device;
mod error;
mod evaluate;
mod files;
pub mod generate;
mod graph;
#[doc = include_str!("how_a_plan_runs.md")]
pub mod how_a_plan_runs {}
pub mod io;
pub mod kernel;
pub mod kernels;
mod log;
pub mod map;
mod model_file;
pub mod nn;
#[cfg(feature = "onnx")]
pub mod onnx;
mod open;
pub mod optim;
mod plan;
mod plans;
mod predict;
mod product;
#[doc = include_str!("promises.md")]
pub mod promises {}
#[doc = include_str!("pytorch.md")]
pub mod pytorch {}
mod read;
mod real;
pub mod rng;
pub mod schedule;
#[cfg(feature = "gpu")]
mod self_check;
mod signals;
mod stream;
mod tensor;
pub mod text;
mod train;

pub use autosave::Autosave;
pub use checkpoint::Checkpoint;
pub use device::Device;
pub use error::{Error, Result};
pub use evaluate::Evaluator;
pub use generate::Generator;
pub use graph::{Graph, Var};
pub use log::Losses;
#[cfg(feature = "reference")]
pub use plan::Comparison;
pub use plan::{Dispatch, Plan, PlanCount, Precision, Profile, ProfileRow, Recorder};
pub use plans::Plans;
pub use predict::Predictor;
pub use read::{Reader, Reading};
pub use stream::Stream;
pub use tensor::{DType, NO_TARGET, Tensor};
pub use train::Trainer;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
