//! Frames that come one by one: the state stays on the device.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::error::{Error, Result};
use crate::graph::{Graph, Parameters, Var};
use crate::kernels::map;
use crate::map::Program;
use crate::nn::State;
use crate::plan::{Exchange, Plan, Recorder};
use crate::tensor::{DType, Tensor};

/// How many frames a plan takes: of the plans, each is taken as often as what is left has so many.
const SIZES: [usize; 3] = [MOST, 8, 1];

/// The most frames in one submission and one read.
const MOST: usize = 64;

/// Runs a network frame by frame, with its states carried: a frame goes in, what the network makes of it comes out.
///
/// It has so many lanes, each a stream of its own. A lane begins with [`Self::reset`]; one that gets no frame keeps its state
/// ([`Self::push_some`]). What depends on the parameters alone is made once: after they have changed, [`Self::refresh`].
///
/// ```
/// use elman::nn::{Gru, Init, Linear, RnnOptions, functional::InitialState};
/// use elman::{Device, Stream, rng};
///
/// let device = Device::cpu();
/// let mut init = Init::new(rng::manual_seed(777));
/// let gru = Gru::new(&mut init, "gru", RnnOptions::new(3, 8))?;
/// let output = Linear::new(&mut init, "output", 8, 2)?;
/// let parameters = init.upload(&device)?;
///
/// let lanes = 2;
/// let states = [gru.state(&device, lanes)?];
/// let mut stream = Stream::new(&parameters, [lanes, 3], states, |g, x, [state]| {
///     let x = g.input(x)?; // [1, lanes, 3]
///     let out = gru.forward(g, x, InitialState::Carried(state))?;
///     Ok([output.forward(g, out.output)?])
/// })?;
/// let [first] = stream.push(&[0.5; 6])?; // [1, lanes, 2]
/// let first = first.to_vec();
/// let [three] = stream.push_block(&[0.5; 18])?; // [3, lanes, 2]
/// assert_eq!(three.len(), 12);
///
/// stream.reset(0)?;
/// let [y] = stream.push_some(&[0.5; 6], &[true, false])?; // lane 1 waits
/// assert_eq!(y[..2], first[..2]);
/// # Ok::<(), elman::Error>(())
/// ```
///
/// On the CPU a network of up to eight lanes whose steps are not worth dividing among threads (an LSTM of 512 units is not) runs on the caller's
/// thread, and takes no memory after the first push of its kind. `benches/README.md` has latencies.
pub struct Stream<const S: usize, const M: usize> {
    lanes: usize,
    features: usize,
    states: [State; S],
    /// What depends on the parameters alone.
    constants: Plan,
    step: Recorder,
    /// What `step` reads and makes.
    frame: Tensor,
    results: [Tensor; M],
    /// The states before a step, and the marks of the lanes that take it.
    before: [State; S],
    mask: Tensor,
    /// For each of [`SIZES`], of all lanes and of some, made when they are first needed.
    plans: [[Option<Exchange>; 3]; 2],
    /// What a plan gave, and what all of a push did, each result's by itself.
    raw: Vec<f32>,
    outputs: [Vec<f32>; M],
    marks: Vec<f32>,
}

impl<const S: usize, const M: usize> Stream<S, M> {
    /// A stream of frames `[lanes, features]`, from states as they are. `build` records one step of the network: the frame is a tensor `[1, lanes,
    /// features]`, a sequence of one step, and the states are to be carried
    /// ([`InitialState::Carried`](crate::nn::functional::InitialState::Carried), or [`State::get`] and [`State::set`]).
    ///
    /// # Errors
    /// No lanes or features; a state of another batch; whatever `build` refuses.
    pub fn new(
        parameters: &Parameters,
        frame: [usize; 2],
        states: [State; S],
        build: impl FnOnce(&mut Graph, &Tensor, &[State; S]) -> Result<[Var; M]>,
    ) -> Result<Self> {
        pollster::block_on(Self::new_async(parameters, frame, states, build))
    }

    /// [`Self::new`] without blocking.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(
        parameters: &Parameters,
        [lanes, features]: [usize; 2],
        states: [State; S],
        build: impl FnOnce(&mut Graph, &Tensor, &[State; S]) -> Result<[Var; M]>,
    ) -> Result<Self> {
        let device = parameters.device();
        let frame = device.zeros("frame", &[1, lanes, features], DType::F32)?;
        let odd = states.iter().flat_map(State::iter).find(|(_, tensor)| tensor.shape()[1] != lanes);
        if let Some((name, tensor)) = odd {
            return Err(Error::shape(
                "Stream",
                name,
                format!("[D * L, {lanes}, H], for {lanes} lanes"),
                tensor.shape(),
            ));
        }
        let mut before = Vec::new();
        for state in &states {
            before.push(state.zeros_like(None)?);
        }
        let mut g = Graph::inference(parameters);
        g.set_repeated();
        let built = build(&mut g, &frame, &states)?;
        let mut results = Vec::new();
        for value in built {
            results.push(g.tensor(value)?);
        }
        let (constants, step) = g.split(parameters);
        let constants = constants.finish_async().await?;
        constants.run()?;
        Ok(Self {
            lanes,
            features,
            states,
            constants,
            step,
            frame,
            results: results.try_into().expect("as many tensors as values"),
            before: before.try_into().expect("as many states as before"),
            mask: device.zeros("lanes that take the step", &[1, lanes, 1], DType::F32)?,
            plans: Default::default(),
            raw: Vec::new(),
            outputs: std::array::from_fn(|_| Vec::new()),
            marks: Vec::new(),
        })
    }

    /// What the network makes of a frame of each lane, `[lanes, features]`: each result's values, row-major. The states move on.
    ///
    /// # Errors
    /// Another number of values, or the device failed.
    pub fn push(&mut self, frame: &[f32]) -> Result<[&[f32]; M]> {
        now(self.push_async(frame))
    }

    /// [`Self::push`] without blocking.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn push_async(&mut self, frame: &[f32]) -> Result<[&[f32]; M]> {
        if frame.len() != self.lanes * self.features {
            let expected = format!("[{}, {}]", self.lanes, self.features);
            return Err(Error::shape("push", "frame", expected, &[frame.len()]));
        }
        self.push_block_async(frame).await
    }

    /// What the network makes of several frames of each lane, `[T, lanes, features]`: of each result, those of the first frame, then those of
    /// the second. The numbers are those of as many [`Self::push`]es, on the CPU to the bit, in fewer submissions.
    ///
    /// # Errors
    /// Values of no whole number of frames, or none; the device failed, after some of the frames perhaps.
    pub fn push_block(&mut self, frames: &[f32]) -> Result<[&[f32]; M]> {
        now(self.push_block_async(frames))
    }

    /// [`Self::push_block`] without blocking.
    ///
    /// # Errors
    /// As [`Self::push_block`].
    pub async fn push_block_async(&mut self, frames: &[f32]) -> Result<[&[f32]; M]> {
        self.advance(frames, None).await
    }

    /// [`Self::push`] or [`Self::push_block`] where not all lanes get a frame: `lanes` `[lanes]`, or `[T, lanes]`, says which do. The others keep
    /// their states to the bit, whatever their frames hold, and what comes out for them means nothing.
    ///
    /// # Errors
    /// As [`Self::push_block`]; another number of marks than of lanes' frames.
    pub fn push_some(&mut self, frames: &[f32], lanes: &[bool]) -> Result<[&[f32]; M]> {
        now(self.push_some_async(frames, lanes))
    }

    /// [`Self::push_some`] without blocking.
    ///
    /// # Errors
    /// As [`Self::push_some`].
    pub async fn push_some_async(&mut self, frames: &[f32], lanes: &[bool]) -> Result<[&[f32]; M]> {
        self.advance(frames, Some(lanes)).await
    }

    /// Sets the states of a lane to zero: another stream begins there. The other lanes go on.
    ///
    /// # Errors
    /// There is no such lane, or the device failed.
    pub fn reset(&mut self, lane: usize) -> Result<()> {
        if lane >= self.lanes {
            return Err(Error::argument("reset", "lane", format!("below {}, the lanes", self.lanes), lane));
        }
        self.states.iter().try_for_each(|state| state.zero_row(lane))
    }

    /// Takes up parameters that have changed: until then it goes on with those that there were.
    ///
    /// # Errors
    /// The device failed.
    pub fn refresh(&mut self) -> Result<()> {
        self.constants.run()
    }

    /// The states, one entry of the batch for each lane: to save, put back or fork ([`State::save_row`], [`State::copy_row`]).
    pub fn states(&self) -> &[State; S] {
        &self.states
    }

    /// How many streams there are side by side.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// The plan of one frame of each lane, if one was pushed.
    pub fn plan(&self) -> Option<&Plan> {
        self.plans[0][SIZES.len() - 1].as_ref().map(|exchange| &exchange.plan)
    }

    async fn advance(&mut self, frames: &[f32], lanes: Option<&[bool]>) -> Result<[&[f32]; M]> {
        let each = self.lanes * self.features;
        if frames.is_empty() || !frames.len().is_multiple_of(each) {
            let expected = format!("[T, {}, {}]", self.lanes, self.features);
            return Err(Error::shape("push_block", "frames", expected, &[frames.len()]));
        }
        let steps = frames.len() / each;
        self.marks.clear();
        if let Some(lanes) = lanes {
            if lanes.len() != steps * self.lanes {
                let expected = format!("[{steps}, {}], one for each lane's frame", self.lanes);
                return Err(Error::shape("push_some", "lanes", expected, &[lanes.len()]));
            }
            self.marks.extend(lanes.iter().map(|&takes| f32::from(u8::from(takes))));
        }
        self.outputs.iter_mut().for_each(Vec::clear);
        let mut done = 0;
        while let Some(which) = SIZES.iter().position(|size| *size <= steps - done) {
            let (size, plans) = (SIZES[which], &mut self.plans[usize::from(lanes.is_some())]);
            if plans[which].is_none() {
                let exchange = record(
                    &self.step,
                    &self.frame,
                    &self.results,
                    size,
                    lanes.is_some(),
                    Masked { states: &self.states, before: &self.before, mask: &self.mask },
                );
                plans[which] = Some(exchange.await?);
            }
            let exchange = plans[which].as_ref().expect("just made");
            let frames = &frames[done * each..][..size * each];
            self.raw.resize(size * self.results.iter().map(Tensor::len).sum::<usize>(), 0.0);
            match lanes {
                None => exchange.run(&[frames], &mut self.raw).await?,
                Some(_) => {
                    let marks = &self.marks[done * self.lanes..][..size * self.lanes];
                    exchange.run(&[frames, marks], &mut self.raw).await?;
                }
            }
            let mut start = 0;
            for (output, result) in self.outputs.iter_mut().zip(&self.results) {
                output.extend_from_slice(&self.raw[start..][..size * result.len()]);
                start += size * result.len();
            }
            done += size;
        }
        Ok(self.outputs.each_ref().map(Vec::as_slice))
    }
}

/// What a step of some lanes needs beside that of all.
struct Masked<'a> {
    states: &'a [State],
    before: &'a [State],
    mask: &'a Tensor,
}

/// The plan of so many frames: each is put where the step reads it, and what the step made is put beside that of the others.
async fn record(
    step: &Recorder,
    frame: &Tensor,
    results: &[Tensor],
    size: usize,
    is_masked: bool,
    masked: Masked<'_>,
) -> Result<Exchange> {
    let device = frame.device();
    let of_all = |name: &str, each: usize| device.reserve(name, &[size, each], DType::F32);
    let frames = of_all("frames", frame.len())?;
    let marks = of_all("marks", masked.mask.len())?;
    let outputs = of_all("outputs", results.iter().map(Tensor::len).sum::<usize>().max(1))?;
    let mut r = Recorder::new(device);
    for t in 0..size {
        r.copy(&frames.view("frame", t * frame.len(), frame.shape()), frame)?;
        if is_masked {
            r.copy(&marks.view("marks", t * masked.mask.len(), masked.mask.shape()), masked.mask)?;
        }
        let states = masked.states.iter().zip(masked.before).filter(|_| is_masked);
        for (state, before) in states.clone() {
            r.copy(state.values(), before.values())?;
        }
        r.extend(step);
        for (state, before) in states {
            keep(&mut r, state, before, masked.mask)?;
        }
        let mut start = 0;
        for result in results {
            r.copy(result, &outputs.view("output", start + t * result.len(), result.shape()))?;
            start += size * result.len();
        }
    }
    let inputs = if is_masked { vec![frames, marks] } else { vec![frames] };
    Ok(Exchange::new(r.finish_async().await?, inputs, outputs))
}

/// Records that lanes without a mark have the state that they had.
fn keep(r: &mut Recorder, state: &State, before: &State, mask: &Tensor) -> Result<()> {
    for ((_, state), (_, before)) in state.iter().zip(before.iter()) {
        let after = r.zeros(state.name(), state.shape())?;
        r.copy(state, &after)?;
        let choose = Program::new(|[mask, after, before]| mask.then(after, before));
        let inputs = [mask, &after, before].map(Into::into);
        map::map(r, &choose, state.shape(), &inputs, &[(state.into(), false)])?;
    }
    Ok(())
}

/// What a future gives: on the CPU at once and, unlike `block_on`, without taking memory.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => pollster::block_on(future),
    }
}
