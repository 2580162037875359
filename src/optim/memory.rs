//! What an optimizer keeps on the device.

use std::collections::BTreeSet;

use super::{Clip, NotFinite, Optimizer, check_lr};
use crate::error::{Error, Result};
use crate::graph::{Graph, ParameterId, Parameters};
use crate::kernels::gate::{Gate, STRIDE};
use crate::kernels::{Update, add_micro_batch, clip, moving_average, squared_norm};
use crate::plan::Recorder;
use crate::tensor::{DType, Tensor};

/// An optimizer's memory on the device: the learning rates of the next step, its moments, and what decides whether a step updates.
#[derive(Debug)]
pub(crate) struct Memory {
    optimizer: Optimizer,
    /// The parameters of each group, of those that no group names first.
    groups: Vec<BTreeSet<ParameterId>>,
    /// Of the first group.
    lr: f64,
    /// `[64 K]`: that of each group, and what the update takes.
    lr_tensor: Tensor,
    rate: Tensor,
    /// See `shaders/gate.wgsl`.
    gate: Tensor,
    /// ‖gradient‖² of the last step, before it was clipped.
    norm2: Tensor,
    /// In the order of [`super::Rule::moments`]; one of no use has one element.
    moments: Vec<Tensor>,
    /// Of the gradients of the steps since the last update.
    sum: Option<Tensor>,
    average: Option<Parameters>,
}

/// What the sum of gradients is called.
const ACCUMULATED: &str = "accumulated";

/// Updates done, those left out, and whether a step since the last was bad: what a training goes on with.
pub(crate) type Updates = [u32; 3];

/// What a gate has counted and seen, as in `shaders/gate.wgsl`.
pub(crate) struct Seen(Vec<u32>);

impl Seen {
    async fn read(gate: &Tensor) -> Result<Self> {
        gate.to_vec_u32_async().await.map(Self)
    }

    pub fn updates(&self) -> Updates {
        [0, 3, 4].map(|word| self.0[word])
    }

    /// The first bad step that nobody was told of.
    pub fn trouble(&self) -> Option<Trouble> {
        let (step, element, norm2) = (self.0[1].checked_sub(1)?, self.0[2], self.0[5]);
        let element = (element != u32::MAX).then_some(element as usize);
        Some(Trouble { step: step.into(), element, norm: f32::from_bits(norm2).sqrt() })
    }
}

/// A bad step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trouble {
    /// Counted from 0.
    pub step: u64,
    /// The first element of its gradient that was not finite.
    element: Option<usize>,
    /// Of the gradient.
    pub norm: f32,
}

/// Looks at a gate from outside.
#[derive(Debug)]
pub(crate) struct Watch {
    gate: Tensor,
    sum: Option<Tensor>,
    not_finite: NotFinite,
    parameters: Parameters,
}

impl Watch {
    /// Whether a bad step is left out, and nobody told.
    pub fn skips(&self) -> bool {
        self.not_finite == NotFinite::Skip
    }

    /// The first bad step that nobody was told of, where such a step stops the training.
    pub async fn trouble(&self) -> Result<Option<Trouble>> {
        if self.skips() { Ok(None) } else { Ok(Seen::read(&self.gate).await?.trouble()) }
    }

    /// Where the gradient went bad, in words.
    pub fn place(&self, trouble: Trouble) -> String {
        let mut parameters = self.parameters.iter();
        let found = trouble.element.and_then(|element| {
            let (name, tensor) = parameters.find(|(_, tensor)| element < tensor.offset() + tensor.len())?;
            Some((name, element.checked_sub(tensor.offset())?))
        });
        let what = |(name, position)| format!("the gradient of `{name}` was not finite at position {position}; ");
        match found {
            Some(found) => what(found),
            None if trouble.norm.is_finite() => String::new(),
            None => "the elements of the gradient are finite, their squares are not; ".into(),
        }
    }

    /// The training may go on: the host knows.
    pub async fn forget(&self) -> Result<()> {
        let [_, _, is_bad] = Seen::read(&self.gate).await?.updates();
        if let Some(sum) = self.sum.as_ref().filter(|_| is_bad != 0) {
            // What a bad step has added would make those after it bad too; the update that it is for is left out anyway.
            sum.write(&vec![0.0; sum.len()])?;
        }
        self.gate.view("gate", 1, &[1]).write_u32(&[0])
    }
}

impl Memory {
    pub fn new(optimizer: Optimizer, parameters: &Parameters) -> Result<Self> {
        optimizer.check()?;
        let mut groups = vec![parameters.ids().collect::<BTreeSet<_>>()];
        for group in &optimizer.groups {
            let named = parameters.named("group", group.names.iter().map(String::as_str))?;
            groups.iter_mut().for_each(|earlier| earlier.retain(|id| !named.contains(id)));
            groups.push(named);
        }
        let device = parameters.device();
        // With the memory of the plan.
        let block = |name: &str| device.reserve(name, parameters.values().shape(), DType::F32);
        let moment = |(name, used): (&str, bool)| if used { block(name) } else { device.zeros(name, &[1], DType::F32) };
        let rates = |name| device.zeros(name, &[STRIDE * groups.len()], DType::F32);
        let mut memory = Self {
            lr: 0.0,
            lr_tensor: rates("lr")?,
            rate: rates("rate")?,
            gate: device.zeros("gate", &[STRIDE], DType::U32)?,
            norm2: device.zeros("squared norm", &[1], DType::F32)?,
            moments: optimizer.moments().into_iter().map(moment).collect::<Result<_>>()?,
            sum: (optimizer.accumulate > 1).then(|| block(ACCUMULATED)).transpose()?,
            average: optimizer.average.map(|_| parameters.copy("average")).transpose()?,
            groups,
            optimizer,
        };
        memory.write_lr(memory.optimizer.lr(0))?;
        Ok(memory)
    }

    /// What it remembers from step to step: the name of each block in use, and the block, laid out like the parameters.
    pub fn blocks(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let used = self.optimizer.moments().into_iter().zip(&self.moments);
        let moments = used.filter(|((_, used), _)| *used).map(|((name, _), tensor)| (name, tensor));
        let sum = self.sum.iter().map(|tensor| (ACCUMULATED, tensor));
        moments.chain(sum).chain(self.average.iter().map(|average| ("average", average.values())))
    }

    /// Whether nothing is made any more of what was accumulated up to this step: an update has taken it, or the next will be left out.
    pub fn is_spent(&self, block: &str, step: u32, [_, _, is_bad]: Updates) -> bool {
        block == ACCUMULATED && (is_bad != 0 || (step as usize).is_multiple_of(self.optimizer.accumulate))
    }

    /// The moving average of the parameters, if it keeps one.
    pub fn average(&self) -> Option<&Parameters> {
        self.average.as_ref()
    }

    /// What the gate has counted and seen.
    pub async fn seen(&self) -> Result<Seen> {
        Seen::read(&self.gate).await
    }

    /// The norm of the gradient of the last step.
    pub async fn gradient_norm(&self) -> Result<f32> {
        Ok(self.norm2.to_vec_async().await?[0].sqrt())
    }

    /// Whether a bad step stops the training.
    pub fn stops(&self) -> bool {
        self.optimizer.not_finite == NotFinite::Stop
    }

    pub fn watch(&self, parameters: &Parameters) -> Watch {
        let Self { gate, sum, optimizer, .. } = self;
        Watch { gate: gate.clone(), sum: sum.clone(), not_finite: optimizer.not_finite, parameters: parameters.clone() }
    }

    /// Goes on with a learning rate and updates that an earlier run had, where nobody has to be told of a bad step.
    pub fn restore(&mut self, lr: f64, [done, left_out, is_bad]: Updates) -> Result<()> {
        self.gate.view("gate", 0, &[5]).write_u32(&[done, 0, 0, left_out, is_bad])?;
        if self.optimizer.schedule.is_some() { Ok(()) } else { self.write_lr(lr) }
    }

    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        if self.optimizer.schedule.is_some() {
            return Err(Error::argument("optimizer", "lr", "left to the schedule that the optimizer has", lr));
        }
        self.write_lr(lr)
    }

    fn write_lr(&mut self, lr: f64) -> Result<()> {
        self.lr_tensor.write(&self.rates(lr)?)?;
        self.lr = lr;
        Ok(())
    }

    /// That of each group, in proportion.
    ///
    /// # Errors
    /// One is not finite, or below 0.
    pub fn rates(&self, lr: f64) -> Result<Vec<f32>> {
        check_lr(lr)?;
        let all = self.optimizer.rule.lr();
        let mut rates = vec![0.0; self.lr_tensor.len()];
        for (rate, rule) in rates.iter_mut().step_by(STRIDE).zip(self.optimizer.rules()) {
            // In proportion to what is 0, a group has its own.
            let of_group = match rule.lr() {
                own if own == all => lr,
                own if all == 0.0 => own,
                own => lr * (own / all),
            };
            check_lr(of_group)?;
            *rate = of_group as f32;
        }
        Ok(rates)
    }

    /// The learning rate of this step.
    pub fn lr(&self, step: u64) -> f64 {
        if self.optimizer.schedule.is_some() { self.optimizer.lr(step) } else { self.lr }
    }

    /// Sets the learning rate of this step, if a schedule has another than before, and gives how many of `most` steps
    /// from here on have the same, at most 64 where there is a schedule.
    pub fn prepare(&mut self, step: u64, most: usize) -> Result<usize> {
        if self.optimizer.schedule.is_none() {
            return Ok(most);
        }
        let lr = self.optimizer.lr(step);
        if lr != self.lr {
            self.write_lr(lr)?;
        }
        Ok((step..).take(most.min(64)).take_while(|&step| self.optimizer.lr(step) == lr).count())
    }

    /// Records one update of the parameters that a gradient has flowed into; the others stay as they are. `history` `[R, capacity]`
    /// has the losses of the step.
    pub fn record(&self, g: &mut Graph, parameters: &Parameters, history: &Tensor) -> Result<()> {
        let trained =
            |group: &BTreeSet<ParameterId>| parameters.stretches(|id| group.contains(&id) && g.has_gradient(id));
        let trained: Vec<_> = self.groups.iter().map(trained).collect();
        if trained.iter().all(Vec::is_empty) {
            let expected = "one that depends on a parameter that is not frozen";
            return Err(Error::argument(
                "trainer",
                "loss",
                expected,
                "one that depends on none: no gradient reaches any",
            ));
        }
        let (r, gradient): (&mut Recorder, _) = (g, parameters.gradients());
        let Self { optimizer, lr_tensor: lr, rate, gate: state, norm2, .. } = self;
        let clock = &r.clock()?;
        if let Some(sum) = &self.sum {
            add_micro_batch::add_micro_batch(r, clock, sum, gradient, optimizer.accumulate)?;
        }
        squared_norm::squared_norm(r, gradient, norm2)?;
        Gate { norm2, gradient, history, clock, lr, state, rate }.record(r, optimizer.accumulate, self.stops())?;
        match optimizer.clip {
            Some(Clip::Norm(most)) => clip::clip_norm(r, gradient, norm2, most)?,
            Some(Clip::Value(most)) => clip::clip_value(r, gradient, most)?,
            None => {}
        }
        let updates = &state.view("updates", 0, &[1]);
        for (group, (rule, stretches)) in optimizer.rules().zip(trained).enumerate() {
            let lr = &rate.view("lr", STRIDE * group, &[1]);
            for stretch in stretches {
                let of = |block: &Tensor| match block.len() == gradient.len() {
                    true => block.view(block.name(), stretch.start, &[stretch.len()]),
                    false => block.clone(),
                };
                let moments: Vec<_> = self.moments.iter().map(of).collect();
                let (gradient, parameters) = (&of(gradient), &of(parameters.values()));
                rule.record(r, Update { gradient, lr, clock: updates, parameters, moments: &moments })?;
            }
        }
        if let (Some(average), Some(decay)) = (&self.average, optimizer.average) {
            let rate = &rate.view("lr", 0, &[1]);
            moving_average::moving_average(r, rate, updates, parameters.values(), average.values(), decay)?;
        }
        Ok(())
    }
}
