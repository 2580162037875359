//! A named, shaped range of a device buffer.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::device::Device;
use crate::device::memory::{Buffer, Element};
use crate::error::{Error, Result};

/// The element type of a [`Tensor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// 32-bit float (held in f64 on [`Device::reference`]).
    F32,
    /// 32-bit unsigned integer: tokens, lengths, indices.
    U32,
}

/// The largest tensor: 4 GiB of f32. Kernels count elements in u32.
pub(crate) const MOST_ELEMENTS: usize = 1 << 30;

/// The number of elements of a shape: at least 1, and few enough to be counted.
pub(crate) fn checked_len(op: &'static str, name: &str, shape: &[usize]) -> Result<usize> {
    let len = shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
    match len.filter(|&len| len <= MOST_ELEMENTS) {
        Some(0) => Err(Error::shape(op, name, "no dimension of 0", shape)),
        Some(_) if shape.is_empty() => Err(Error::shape(op, name, "at least one dimension", shape)),
        Some(len) => Ok(len),
        None => Err(Error::shape(op, name, format!("at most {MOST_ELEMENTS} elements"), shape)),
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::U32 => "u32",
        })
    }
}

/// A named, shaped, row-major range of a device buffer. Cloning gives another handle to the same memory.
#[derive(Clone)]
pub struct Tensor {
    name: Arc<str>,
    shape: Vec<usize>,
    buffer: Arc<Buffer>,
    offset: usize,
    bounds: Option<Bounds>,
}

/// What the values of a u32 tensor must be, on every write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bounds {
    /// Below this.
    Tokens(usize),
    /// Below this, or [`NO_TARGET`].
    Targets(usize),
    /// From 1 to this.
    Lengths(usize),
}

/// The target of a row that no loss counts: an entry past the end of the data. No vocabulary has it.
pub const NO_TARGET: u32 = u32::MAX;

impl Tensor {
    pub(crate) fn new(name: &str, shape: &[usize], buffer: Buffer) -> Self {
        Self { name: name.into(), shape: shape.into(), buffer: Arc::new(buffer), offset: 0, bounds: None }
    }

    pub(crate) fn with_bounds(self, bounds: Bounds) -> Self {
        Self { bounds: Some(bounds), ..self }
    }

    /// For a tensor of [`Device::tokens`]: every value is below this, on every write.
    pub fn vocabulary(&self) -> Option<usize> {
        match self.bounds {
            Some(Bounds::Tokens(vocabulary)) => Some(vocabulary),
            _ => None,
        }
    }

    /// For a tensor of [`Device::targets`] or [`Device::tokens`]: every value that counts is below this.
    pub(crate) fn classes(&self) -> Option<usize> {
        match self.bounds {
            Some(Bounds::Targets(classes) | Bounds::Tokens(classes)) => Some(classes),
            _ => None,
        }
    }

    /// For a tensor of [`Device::lengths`]: the most it may hold; none is 0.
    pub(crate) fn longest(&self) -> Option<usize> {
        match self.bounds {
            Some(Bounds::Lengths(longest)) => Some(longest),
            _ => None,
        }
    }

    /// The name it was made with; errors and plans use it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same memory by another name.
    pub(crate) fn named(&self, name: &str) -> Self {
        Self { name: name.into(), ..self.clone() }
    }

    /// The sizes of its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    #[allow(clippy::len_without_is_empty, reason = "a tensor has at least one element")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The size of the last dimension, and the product of the others: `[.., columns]` seen as a matrix.
    pub(crate) fn rows_and_columns(&self) -> (usize, usize) {
        let columns = *self.shape.last().unwrap_or(&1);
        (self.len() / columns, columns)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.buffer.device
    }

    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// Whether both start at the same place of one buffer.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.buffer, &other.buffer) && self.offset == other.offset
    }

    /// Where it starts in its buffer, in elements.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Its elements, of its buffer.
    pub(crate) fn elements(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// A range of the same memory, from element `start` on.
    pub(crate) fn view(&self, name: &str, start: usize, shape: &[usize]) -> Self {
        let view = Self { name: name.into(), shape: shape.into(), offset: self.offset + start, ..self.clone() };
        assert!(start + view.len() <= self.len(), "view {shape:?} at {start} of {self:?}");
        view
    }

    /// These tensors as one, if each starts where the one before it ends.
    pub(crate) fn joined(parts: &[Self], shape: &[usize]) -> Option<Self> {
        let follows = |pair: &[Self]| {
            Arc::ptr_eq(&pair[0].buffer, &pair[1].buffer) && pair[0].offset + pair[0].len() == pair[1].offset
        };
        let joined = Self { shape: shape.into(), ..parts.first()?.clone() };
        let fits = joined.len() == parts.iter().map(Self::len).sum::<usize>();
        (fits && parts.windows(2).all(follows)).then_some(joined)
    }

    /// These elements in another buffer, which is as large at least; by the same name, in one row if they are but part of it.
    pub(crate) fn elsewhere(&self, buffer: &Arc<Buffer>, elements: Range<usize>) -> Self {
        let is_whole = elements == self.elements();
        let shape = if is_whole { self.shape.clone() } else { vec![elements.len()] };
        Self { shape, buffer: buffer.clone(), offset: elements.start, ..self.clone() }
    }

    /// All of the buffer that it is in.
    pub(crate) fn whole_buffer(&self) -> Self {
        let len = self.buffer.len();
        Self { name: self.buffer.name().into(), shape: vec![len], offset: 0, bounds: None, ..self.clone() }
    }

    /// The same memory in another shape.
    ///
    /// # Errors
    /// The number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if checked_len("reshape", self.name(), shape)? != self.len() {
            return Err(Error::shape("reshape", self.name(), format!("{shape:?}"), &self.shape));
        }
        Ok(Self { shape: shape.into(), ..self.clone() })
    }

    /// Replaces all values.
    ///
    /// # Errors
    /// The tensor is not f32, another number of values, NaN where a [`crate::Trainer`] reads it, or the device failed.
    pub fn write(&self, values: &[f32]) -> Result<()> {
        self.write_as(values, DType::F32)
    }

    /// [`Self::write`] from f64, which [`Device::reference`] keeps in full.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_f64(&self, values: &[f64]) -> Result<()> {
        self.write_as(values, DType::F32)
    }

    /// Replaces all values of a u32 tensor.
    ///
    /// # Errors
    /// The tensor is not u32, another number of values, a value outside its bounds
    /// (tokens, targets, lengths), or the device failed.
    pub fn write_u32(&self, values: &[u32]) -> Result<()> {
        let within = |value: u32| match self.bounds {
            None => true,
            Some(Bounds::Tokens(below)) => (value as usize) < below,
            Some(Bounds::Targets(below)) => (value as usize) < below || value == NO_TARGET,
            Some(Bounds::Lengths(most)) => value >= 1 && value as usize <= most,
        };
        if let Some(position) = values.iter().position(|&value| !within(value)) {
            let value = values[position];
            return Err(match self.bounds {
                Some(Bounds::Lengths(most)) => {
                    let expected = format!("from 1 to {most} in `{}`", self.name);
                    Error::argument("write", "length", expected, format!("{value} at position {position}"))
                }
                _ => Error::Token {
                    token: value,
                    position,
                    tensor: self.name.to_string(),
                    vocabulary: self.classes().unwrap_or(0),
                },
            });
        }
        self.write_as(values, DType::U32)
    }

    fn write_as<T: Element>(&self, values: &[T], dtype: DType) -> Result<()> {
        self.expect_dtype("write", dtype)?;
        if values.len() != self.len() {
            return Err(Error::shape("write", self.name(), format!("{:?}", self.shape), &[values.len()]));
        }
        if let Some(position) = self.buffer.refused_nan(values) {
            let expected = format!("free of NaN, since a training reads `{}`: clean the data", self.name);
            return Err(Error::argument("write", "values", expected, format!("NaN at position {position}")));
        }
        self.buffer.write(self.offset, values)
    }

    /// From here on, writes of NaN are errors: a training reads the tensor.
    pub(crate) fn refuse_nan(&self) {
        self.buffer.refuse_nan();
    }

    /// All values, row-major. Waits for the device.
    ///
    /// # Errors
    /// The tensor is not f32, or the device failed.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        pollster::block_on(self.to_vec_async())
    }

    /// [`Self::to_vec`] without blocking.
    ///
    /// # Errors
    /// As [`Self::to_vec`].
    pub async fn to_vec_async(&self) -> Result<Vec<f32>> {
        self.read_as(DType::F32).await
    }

    /// All values in f64, which [`Device::reference`] keeps in full.
    ///
    /// # Errors
    /// As [`Self::to_vec`].
    pub fn to_vec_f64(&self) -> Result<Vec<f64>> {
        pollster::block_on(self.read_as(DType::F32))
    }

    /// All values of a u32 tensor, row-major. Waits for the device.
    ///
    /// # Errors
    /// The tensor is not u32, or the device failed.
    pub fn to_vec_u32(&self) -> Result<Vec<u32>> {
        pollster::block_on(self.to_vec_u32_async())
    }

    /// [`Self::to_vec_u32`] without blocking.
    ///
    /// # Errors
    /// As [`Self::to_vec_u32`].
    pub async fn to_vec_u32_async(&self) -> Result<Vec<u32>> {
        self.read_as(DType::U32).await
    }

    async fn read_as<T: Element>(&self, dtype: DType) -> Result<Vec<T>> {
        self.expect_dtype("read", dtype)?;
        self.buffer.read(self.offset..self.offset + self.len()).await
    }

    fn expect_dtype(&self, op: &'static str, dtype: DType) -> Result<()> {
        if self.dtype() == dtype {
            return Ok(());
        }
        Err(Error::argument(op, "dtype", format!("the {} of `{}`", self.dtype(), self.name), dtype))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.name, self.shape)?;
        if self.dtype() == DType::U32 { f.write_str(" u32") } else { Ok(()) }
    }
}
