//! Values on the host, with a name and a shape.

use std::ops::Range;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{Bounds, DType, NO_TARGET, Tensor, checked_len};

/// Values on the host with a shape, row-major: what a batch is made of, and what a [`Predictor`](crate::Predictor) gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    name: String,
    shape: Vec<usize>,
    values: Values,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    F32(Vec<f32>),
    U32(Vec<u32>, Bounds),
}

/// What plans differ by: shape, and what the values may be.
pub(crate) type Signature = (Vec<usize>, Option<Bounds>);

impl Array {
    /// Values of f32.
    ///
    /// # Errors
    /// The shape does not have so many elements, or a dimension of 0.
    pub fn new(name: &str, shape: &[usize], values: Vec<f32>) -> Result<Self> {
        Self::of(name, shape, values.len(), Values::F32(values))
    }

    /// Tokens, as in [`Device::tokens`]: all below `vocabulary`.
    ///
    /// # Errors
    /// As [`Self::new`]; the values are checked where they are used.
    pub fn tokens(name: &str, shape: &[usize], values: Vec<u32>, vocabulary: usize) -> Result<Self> {
        Self::of(name, shape, values.len(), Values::U32(values, Bounds::Tokens(vocabulary)))
    }

    /// Targets of a loss over classes, as in [`Device::targets`]: below `classes`, or [`NO_TARGET`] for a row that does not
    /// count.
    ///
    /// # Errors
    /// As [`Self::tokens`].
    pub fn targets(name: &str, shape: &[usize], values: Vec<u32>, classes: usize) -> Result<Self> {
        Self::of(name, shape, values.len(), Values::U32(values, Bounds::Targets(classes)))
    }

    /// Lengths `[B]` of sequences in a batch of `steps` steps, as in [`Device::lengths`]: from 1 to `steps`.
    ///
    /// # Errors
    /// As [`Self::tokens`].
    pub fn lengths(name: &str, values: Vec<u32>, steps: usize) -> Result<Self> {
        let batch = values.len();
        Self::of(name, &[batch], batch, Values::U32(values, Bounds::Lengths(steps)))
    }

    fn of(name: &str, shape: &[usize], len: usize, values: Values) -> Result<Self> {
        if checked_len("array", name, shape)? != len {
            return Err(Error::shape("array", name, format!("one of {len} values"), shape));
        }
        Ok(Self { name: name.into(), shape: shape.into(), values })
    }

    // ---- of sequences ------------------------------------------------------------------------------------------

    /// Sequences of `features` values a step, one after the other: `[T, B, features]`, T the longest, padded with 0
    /// (`torch.nn.utils.rnn.pad_sequence`).
    ///
    /// # Errors
    /// No sequence, an empty one, or one that is no whole number of steps.
    pub fn pad(name: &str, sequences: impl IntoIterator<Item: AsRef<[f32]>>, features: usize) -> Result<Self> {
        let (values, shape) = pad(name, sequences, features, 0.0)?;
        Self::new(name, &shape, values)
    }

    /// Sequences of tokens: `[T, B]`, padded with the token `padding`.
    ///
    /// # Errors
    /// No sequence, or an empty one.
    pub fn pad_tokens(
        name: &str,
        sequences: impl IntoIterator<Item: AsRef<[u32]>>,
        padding: u32,
        vocabulary: usize,
    ) -> Result<Self> {
        let (values, shape) = pad(name, sequences, 1, padding)?;
        Self::tokens(name, &shape[..2], values, vocabulary)
    }

    /// Sequences of targets: `[T, B]`, padded with [`NO_TARGET`], which no loss counts.
    ///
    /// # Errors
    /// No sequence, or an empty one.
    pub fn pad_targets(name: &str, sequences: impl IntoIterator<Item: AsRef<[u32]>>, classes: usize) -> Result<Self> {
        let (values, shape) = pad(name, sequences, 1, NO_TARGET)?;
        Self::targets(name, &shape[..2], values, classes)
    }

    /// How long the sequences are that were padded: `[B]`, for `forward_with_lengths`.
    ///
    /// # Errors
    /// No sequence, or an empty one.
    pub fn lengths_of<T>(name: &str, sequences: impl IntoIterator<Item: AsRef<[T]>>) -> Result<Self> {
        let lengths: Vec<_> = sequences.into_iter().map(|sequence| sequence.as_ref().len()).collect();
        let longest = longest(name, &lengths)?;
        Self::lengths(name, lengths.iter().map(|&length| length as u32).collect(), longest)
    }

    /// Windows of a series of `features` values a step, those of the steps `window` after each start: `[T, B, features]` with T
    /// the length of `window`. With `0..24` they are the 24 steps from each start on, with `24..25` the step that follows.
    ///
    /// ```
    /// let series: Vec<f32> = (0..10).map(|i| i as f32).collect();
    /// let past = elman::data::Array::windows("past", &series, 1, &[0, 5], 0..3)?;
    /// assert_eq!((past.shape(), past.values()), (&[3, 2, 1][..], &[0., 5., 1., 6., 2., 7.][..]));
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// No start, an empty window, or one that reaches past the end of the series.
    pub fn windows(
        name: &str,
        series: &[f32],
        features: usize,
        starts: &[usize],
        window: Range<usize>,
    ) -> Result<Self> {
        let steps = series.len().checked_div(features).unwrap_or(0);
        if steps * features != series.len() || steps < window.end {
            let expected = format!("of whole steps of {features} values, at least the {} of a window", window.end);
            return Err(Error::argument("windows", "series", expected, format!("of {} values", series.len())));
        }
        let most = steps - window.end;
        if let Some(start) = starts.iter().find(|&&start| start.saturating_add(window.end) > steps) {
            let expected = format!("at most {most}, for a window of the steps {window:?} in a series of {steps}");
            return Err(Error::argument("windows", "starts", expected, start));
        }
        let at = |t: usize| starts.iter().flat_map(move |start| &series[(start + t) * features..][..features]);
        let values: Vec<f32> = window.clone().flat_map(at).copied().collect();
        Self::new(name, &[window.len(), starts.len(), features], values)
    }

    // ---- what it holds -----------------------------------------------------------------------------------------

    /// The name it was made with; errors and plans use it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sizes of its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values, row-major; none if they are tokens, targets or lengths.
    pub fn values(&self) -> &[f32] {
        match &self.values {
            Values::F32(values) => values,
            Values::U32(..) => &[],
        }
    }

    /// The tokens, targets or lengths, row-major; none if the values are f32.
    pub fn values_u32(&self) -> &[u32] {
        match &self.values {
            Values::F32(_) => &[],
            Values::U32(values, _) => values,
        }
    }

    /// The same values in another shape.
    ///
    /// # Errors
    /// The number of elements differs.
    pub fn reshape(self, shape: &[usize]) -> Result<Self> {
        let len: usize = self.shape.iter().product();
        if checked_len("reshape", &self.name, shape)? != len {
            return Err(Error::shape("reshape", self.name, format!("{shape:?}"), &self.shape));
        }
        Ok(Self { shape: shape.into(), ..self })
    }

    /// The first two axes swapped: `[T, B, ..]` to `[B, T, ..]`.
    ///
    /// # Errors
    /// It has one axis.
    pub fn swap_axes(self) -> Result<Self> {
        fn swapped<T: Copy>(values: &[T], [a, b]: [usize; 2]) -> Vec<T> {
            let each = values.len() / (a * b);
            (0..b).flat_map(|j| (0..a).flat_map(move |i| &values[(i * b + j) * each..][..each])).copied().collect()
        }
        let &[a, b, ..] = &self.shape[..] else {
            return Err(Error::shape("swap_axes", self.name, "[.., ..]", &self.shape));
        };
        let values = match &self.values {
            Values::F32(values) => Values::F32(swapped(values, [a, b])),
            Values::U32(values, bounds) => Values::U32(swapped(values, [a, b]), *bounds),
        };
        let mut shape = self.shape;
        shape.swap(0, 1);
        Ok(Self { name: self.name, shape, values })
    }

    /// The index of the greatest value along the last axis, the first of equals: the class that logits name. A NaN is
    /// less than any number; 0 where there is nothing else.
    pub fn argmax(&self) -> Vec<u32> {
        let columns = *self.shape.last().unwrap_or(&1);
        let beats = |a: f32, b: f32| a > b || (b.is_nan() && !a.is_nan());
        let greatest = |row: &[f32]| (1..row.len()).fold(0, |best, i| if beats(row[i], row[best]) { i } else { best });
        self.values().chunks(columns).map(|row| greatest(row) as u32).collect()
    }

    /// How often logits `[.., V]` are right: the share of rows whose greatest value is that of the target (a NaN is none), of
    /// those that count, which are all but those of [`NO_TARGET`]. 0 if none counts.
    ///
    /// ```
    /// use elman::{NO_TARGET, data::Array};
    ///
    /// let logits = Array::new("logits", &[3, 2], vec![0.1, 0.9, 0.8, 0.2, 0.7, 0.3])?;
    /// let targets = Array::targets("targets", &[3], vec![1, 1, NO_TARGET], 2)?;
    /// assert_eq!(logits.accuracy(&targets)?, 0.5);
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// Not one target for each row, or no rows, for these are no f32.
    pub fn accuracy(&self, targets: &Self) -> Result<f64> {
        let (said, wanted) = (self.argmax(), targets.values_u32());
        if said.len() != wanted.len() || said.is_empty() {
            let expected = format!("one of {} targets", said.len());
            return Err(Error::shape("accuracy", &targets.name, expected, &targets.shape));
        }
        let counted = wanted.iter().filter(|&&target| target != NO_TARGET).count();
        let rows = self.values().chunks(self.values().len() / said.len());
        let is_right =
            |&((said, wanted), row): &((&u32, &u32), &[f32])| said == wanted && !row[*said as usize].is_nan();
        let right = said.iter().zip(wanted).zip(rows).filter(is_right).count();
        Ok(right as f64 / counted.max(1) as f64)
    }

    // ---- on a device -------------------------------------------------------------------------------------------

    pub(crate) fn signature(&self) -> Signature {
        let bounds = match self.values {
            Values::F32(_) => None,
            Values::U32(_, bounds) => Some(bounds),
        };
        (self.shape.clone(), bounds)
    }

    /// A tensor for arrays like this one.
    pub(crate) fn tensor(&self, device: &Device) -> Result<Tensor> {
        match self.values {
            Values::F32(_) => device.zeros(&self.name, &self.shape, DType::F32),
            Values::U32(_, bounds) => Ok(device.zeros(&self.name, &self.shape, DType::U32)?.with_bounds(bounds)),
        }
    }

    /// Puts the values into a tensor made for such an array.
    pub(crate) fn write(&self, tensor: &Tensor) -> Result<()> {
        match &self.values {
            Values::F32(values) => tensor.write(values),
            Values::U32(values, _) => tensor.write_u32(values),
        }
    }

    /// Refuses NaN and infinite values, which no training survives.
    pub(crate) fn check_finite(&self) -> Result<()> {
        match self.values().iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let got = format!("{} at position {at} of `{}` {:?}", self.values()[at], self.name, self.shape);
                Err(Error::argument("step", "batch", "finite: clean the data", got))
            }
        }
    }

    /// The values of a tensor of f32, NaN or not.
    pub(crate) async fn read(tensor: &Tensor) -> Result<Self> {
        let (name, shape) = (tensor.name().to_owned(), tensor.shape().to_vec());
        Ok(Self { name, shape, values: Values::F32(tensor.to_vec_async().await?) })
    }
}

/// The longest of these lengths, none of which is 0.
fn longest(name: &str, lengths: &[usize]) -> Result<usize> {
    if let Some(empty) = lengths.iter().position(|&length| length == 0) {
        return Err(Error::argument("pad", "sequences", format!("of at least one step in `{name}`"), at(empty)));
    }
    lengths.iter().copied().max().ok_or_else(|| Error::argument("pad", "sequences", "at least one", "none"))
}

fn at(empty: usize) -> String {
    format!("empty at index {empty}")
}

/// Sequences side by side, time first: the values of `[T, B, features]`.
fn pad<T: Copy>(
    name: &str,
    sequences: impl IntoIterator<Item: AsRef<[T]>>,
    features: usize,
    padding: T,
) -> Result<(Vec<T>, [usize; 3])> {
    let sequences: Vec<_> = sequences.into_iter().collect();
    let steps = |sequence: &[T]| match sequence.len().checked_div(features) {
        Some(steps) if steps * features == sequence.len() => Ok(steps),
        _ => {
            let expected = format!("of whole steps of {features} values in `{name}`");
            Err(Error::argument("pad", "sequences", expected, format!("of {} values", sequence.len())))
        }
    };
    let lengths = sequences.iter().map(|sequence| steps(sequence.as_ref())).collect::<Result<Vec<_>>>()?;
    let shape = [longest(name, &lengths)?, sequences.len(), features];
    let mut values = vec![padding; checked_len("pad", name, &shape)?];
    for (b, sequence) in sequences.iter().enumerate() {
        for (t, step) in sequence.as_ref().chunks_exact(features).enumerate() {
            values[(t * shape[1] + b) * features..][..features].copy_from_slice(step);
        }
    }
    Ok((values, shape))
}
