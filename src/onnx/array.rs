//! Arrays on the host: constants, and what shapes are computed of. Operators on them alone are done here, once.

use ndarray::{Array1, ArrayD, ArrayViewD, Axis, IxDyn};

use super::file::{MOST_ELEMENTS, Result};

/// Numbers, or whole numbers: shapes, indices, truth values.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Array {
    Real(ArrayD<f32>),
    Whole(ArrayD<i64>),
}

/// Does the same to either kind.
macro_rules! of_either {
    ($array:expr, $x:ident => $result:expr) => {
        match $array {
            Array::Real($x) => Array::Real($result),
            Array::Whole($x) => Array::Whole($result),
        }
    };
}

impl Array {
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Real(x) => x.shape(),
            Self::Whole(x) => x.shape(),
        }
    }

    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    pub fn whole(values: impl IntoIterator<Item = i64>) -> Self {
        Self::Whole(Array1::from_iter(values).into_dyn())
    }

    /// The values, row-major.
    pub fn reals(&self) -> Vec<f32> {
        match self {
            Self::Real(x) => x.iter().copied().collect(),
            Self::Whole(x) => x.iter().map(|&value| value as f32).collect(),
        }
    }

    /// The values, row-major, of whole numbers.
    pub fn wholes(&self) -> Result<Vec<i64>> {
        match self {
            Self::Real(_) => Err("it has numbers where whole ones belong".into()),
            Self::Whole(x) => Ok(x.iter().copied().collect()),
        }
    }

    /// The only value.
    pub fn scalar(&self) -> Option<f32> {
        match &self.reals()[..] {
            &[value] => Some(value),
            _ => None,
        }
    }

    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        let misfit = |_| format!("{:?} does not have the elements of {shape:?}", self.shape());
        Ok(
            of_either!(self, x => x.as_standard_layout().into_owned().into_shape_with_order(IxDyn(shape)).map_err(misfit)?),
        )
    }

    pub fn permute(&self, axes: &[usize]) -> Self {
        of_either!(self, x => x.view().permuted_axes(IxDyn(axes)).as_standard_layout().into_owned())
    }

    pub fn broadcast(&self, shape: &[usize]) -> Result<Self> {
        len_to_make(shape)?;
        let misfit = || format!("{:?} does not broadcast to {shape:?}", self.shape());
        Ok(of_either!(self, x => x.broadcast(IxDyn(shape)).ok_or_else(misfit)?.to_owned()))
    }

    pub fn select(&self, axis: usize, indices: &[usize]) -> Self {
        of_either!(self, x => x.select(Axis(axis), indices).as_standard_layout().into_owned())
    }

    pub fn concat(arrays: &[&Self], axis: usize) -> Result<Self> {
        let misfit = |error| format!("they cannot be joined: {error}");
        let wholes = arrays.iter().map(|array| match array {
            Self::Whole(x) => Some(x.view()),
            Self::Real(_) => None,
        });
        if let Some(wholes) = wholes.collect::<Option<Vec<_>>>() {
            return Ok(Self::Whole(ndarray::concatenate(Axis(axis), &wholes).map_err(misfit)?));
        }
        let reals = arrays.iter().map(|array| match array {
            Self::Real(x) => Ok(x.view()),
            Self::Whole(_) => Err("they are numbers and whole numbers".to_owned()),
        });
        let reals = reals.collect::<Result<Vec<ArrayViewD<'_, f32>>>>()?;
        Ok(Self::Real(ndarray::concatenate(Axis(axis), &reals).map_err(misfit)?))
    }
}

/// Elements that are made on the host, at most.
const MOST_MADE: usize = 1 << 26;

/// How many elements this shape has, if that is few enough to make on the host.
pub(super) fn len_to_make(shape: &[usize]) -> Result<usize> {
    let len = len_of(shape)?;
    if len > MOST_MADE {
        Err(format!("{shape:?} has more elements than the {MOST_MADE} that are made here"))
    } else {
        Ok(len)
    }
}

/// How many elements this shape has, if a tensor may have that many.
pub(super) fn len_of(shape: &[usize]) -> Result<usize> {
    let len = shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size)).filter(|&len| len <= MOST_ELEMENTS);
    len.ok_or_else(|| format!("{shape:?} has more elements than the {MOST_ELEMENTS} of a tensor"))
}

/// Shapes as ONNX broadcasts them: sizes are compared from the last, and one of 1, or a missing one, stands for any.
pub(super) fn broadcast(shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let rank = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    let mut all = vec![1; rank];
    for shape in shapes {
        for (size, &of_one) in all[rank - shape.len()..].iter_mut().zip(*shape) {
            match (*size, of_one) {
                (_, 1) => {}
                (1, _) => *size = of_one,
                (a, b) if a == b => {}
                _ => return Err(format!("{shapes:?} do not broadcast")),
            }
        }
    }
    len_of(&all)?;
    Ok(all)
}

/// Some entries of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub start: usize,
    pub length: usize,
    pub step: isize,
}

impl Part {
    /// ONNX's Slice: counted from the last where below 0, and cut to what there is.
    pub fn new(size: usize, start: i64, end: i64, step: i64) -> Result<Self> {
        if step == 0 {
            return Err("a step of 0".into());
        }
        let size = size as i64;
        let from_first = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
        let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
        let start = from_first(start).clamp(if step > 0 { 0 } else { -1 }, high);
        let end = if end == i64::MIN || end < -size && step < 0 { low } else { from_first(end).clamp(low, high) };
        let length = if step > 0 { (end - start).max(0) as u64 } else { (start - end).max(0) as u64 };
        let length = length.div_ceil(step.unsigned_abs());
        Ok(Self { start: start.max(0) as usize, length: length as usize, step: step as isize })
    }

    pub fn indices(self) -> Vec<usize> {
        (0..self.length).map(|i| (self.start as isize + i as isize * self.step) as usize).collect()
    }
}
