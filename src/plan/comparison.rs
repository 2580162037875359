//! What a device computes, command by command, beside what the twins make of the same values.

use std::fmt;

use super::{Command, Dispatch, Plan};
use crate::device::Device;
use crate::error::Result;
use crate::kernel::Access;
use crate::tensor::{DType, Tensor};

/// A tensor that a command of a plan wrote, beside what the command's twin makes of the same values in f64; made by
/// [`Plan::compare_with_twins`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Comparison {
    /// The command, by its place in the plan.
    pub command: usize,
    /// Its kernel's name, or "copy" or "clear".
    pub kernel: &'static str,
    /// The tensor, as the plan prints it.
    pub result: String,
    /// The largest difference, as a share of the tensor's largest value. Of a tensor of u32, and where one value is NaN or infinite
    /// and the other is not, 0 or infinity.
    pub error: f64,
    /// The element that differs most.
    pub at: usize,
    /// What the device has there.
    pub got: f64,
    /// What the twin has there.
    pub want: f64,
    /// What rounding may make of it: a ten thousandth; where the device stores f16, two of its thousandths.
    pub allowed: f64,
}

impl Comparison {
    /// Whether the difference is no more than rounding.
    pub fn is_right(&self) -> bool {
        self.error <= self.allowed
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, kernel, result, error, at, got, want, .. } = self;
        write!(f, "{kernel} (command {command}) -> {result} has {got:e} at {at} in place of {want:e}, {error:.1e} off")
    }
}

/// The values of a tensor.
enum Values {
    F32(Vec<f64>),
    U32(Vec<u32>),
}

impl Values {
    fn read(tensor: &Tensor, is_f16: bool) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::U32 => Self::U32(tensor.to_vec_u32()?),
            DType::F32 if is_f16 => {
                let halves = tensor.to_vec()?.into_iter().map(f32::to_bits).flat_map(|bits| [bits, bits >> 16]);
                Self::F32(halves.take(tensor.len()).map(|bits| of_f16(bits as u16)).collect())
            }
            DType::F32 => Self::F32(tensor.to_vec_f64()?),
        })
    }

    /// On another device.
    fn upload(&self, device: &Device, tensor: &Tensor) -> Result<Tensor> {
        let copy = device.zeros(tensor.name(), tensor.shape(), tensor.dtype())?;
        match self {
            Self::F32(values) => copy.write_f64(values)?,
            Self::U32(values) => copy.write_u32(values)?,
        }
        Ok(copy)
    }

    /// The largest difference, its place, and the values there.
    fn differ(&self, exact: &Self) -> (f64, usize, f64, f64) {
        let worst = |errors: &mut dyn Iterator<Item = (f64, f64, f64)>| {
            let first = (0.0, 0, f64::NAN, f64::NAN);
            errors.enumerate().fold(
                first,
                |worst, (i, (error, got, want))| {
                    if i == 0 || error > worst.0 { (error, i, got, want) } else { worst }
                },
            )
        };
        match (self, exact) {
            (Self::F32(got), Self::F32(exact)) => {
                let largest =
                    exact.iter().filter(|&&x| (x as f32).is_finite()).fold(0.0f64, |largest, x| largest.max(x.abs()));
                // What is below the least normal number may be 0.
                let scale = largest.max(f64::from(f32::MIN_POSITIVE) / f64::from(f32::EPSILON));
                worst(&mut got.iter().zip(exact).map(|(&got, &want)| {
                    let is_same = got == want || got == f64::from(want as f32) || (got.is_nan() && want.is_nan());
                    let error = if is_same { 0.0 } else { (got - want).abs() / scale };
                    (if error.is_nan() { f64::INFINITY } else { error }, got, want)
                }))
            }
            (Self::U32(got), Self::U32(exact)) => worst(
                &mut got
                    .iter()
                    .zip(exact)
                    .map(|(&got, &want)| (if got == want { 0.0 } else { f64::INFINITY }, got.into(), want.into())),
            ),
            _ => unreachable!("both are of one tensor"),
        }
    }
}

/// What a number of half precision is.
fn of_f16(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 0 { magnitude } else { -magnitude }
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Dispatch(d) => d.kernel.name,
            Self::Copy { .. } => "copy",
            Self::Clear { .. } => "clear",
        }
    }

    /// The same command on other tensors, in the order of [`Self::bound`].
    fn on(&self, tensors: Vec<Tensor>) -> Self {
        match self {
            Self::Dispatch(d) => Self::Dispatch(Dispatch { tensors, ..d.clone() }),
            Self::Copy { .. } => Self::Copy { from: tensors[0].clone(), to: tensors[1].clone() },
            Self::Clear { .. } => Self::Clear { tensor: tensors[0].clone() },
        }
    }

    /// Whether a device's kernel takes this tensor for an array of f16.
    fn is_f16(&self, device: &Device, i: usize) -> bool {
        let Self::Dispatch(d) = self else { return false };
        if !device.is_gpu() || !d.constants.contains(&("F16", 1)) {
            return false;
        }
        let source = d.kernel.source_with(&d.constants);
        let aliases = source.lines().filter_map(|line| line.strip_prefix("alias ")?.split_once(" = "));
        let halves = aliases.filter(|(_, ty)| ty.contains("f16")).map(|(name, _)| name);
        let binding = format!("@binding({}) ", i + 1);
        let declared = source.lines().find(|line| line.contains(&binding)).unwrap_or_default();
        halves.into_iter().any(|name| declared.contains(&format!("array<{name}>")))
    }
}

impl Plan {
    /// Runs all commands once, one by one, and compares what each writes with what its kernel's twin makes, in f64, of the values that
    /// its tensors had just before: a comparison for each tensor that a command writes. So an error does not go on from one command
    /// to the next, and what is found says where. It reads all tensors of each command, twice: for plans of a moderate size.
    ///
    /// Tokens drawn from nearly equal probabilities may differ, and be right.
    ///
    /// ```
    /// use elman::{DType, Device, Recorder, kernels};
    ///
    /// let device = Device::cpu(); // or a GPU whose driver is not trusted
    /// let x = device.upload("x", &[2, 3], &[1., 2., 3., 4., 5., 6.])?;
    /// let y = device.zeros("y", &[3], DType::F32)?;
    /// let mut recorder = Recorder::new(&device);
    /// kernels::column_sum::column_sum(&mut recorder, &x, &y, false)?;
    /// let comparisons = recorder.finish()?.compare_with_twins()?;
    /// assert_eq!(comparisons[0].kernel, "column_sum");
    /// assert!(comparisons[0].is_right(), "{}", comparisons[0]);
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::run`]; the host has no memory for the copies.
    pub fn compare_with_twins(&self) -> Result<Vec<Comparison>> {
        let reference = Device::reference();
        let run = |device: &Device, command: Command| Self::prepare(device.clone(), vec![command], Vec::new())?.run();
        let mut comparisons = Vec::new();
        for (i, command) in self.commands.iter().enumerate() {
            let bound = command.bound();
            let is_f16: Vec<_> = (0..bound.len()).map(|i| command.is_f16(&self.device, i)).collect();
            let read =
                || bound.iter().zip(&is_f16).map(|(&(_, tensor), &is_f16)| (tensor, Values::read(tensor, is_f16)));
            let copies = read().map(|(tensor, values)| values?.upload(&reference, tensor));
            let copies = copies.collect::<Result<Vec<_>>>()?;
            run(&reference, command.on(copies.clone()))?;
            run(&self.device, command.clone())?;
            for (k, &(_, tensor)) in bound.iter().enumerate().filter(|(_, (access, _))| *access == Access::Write) {
                let (got, exact) = (Values::read(tensor, is_f16[k])?, Values::read(&copies[k], false)?);
                let (error, at, got, want) = got.differ(&exact);
                let (command, kernel, result) = (i, command.name(), format!("{tensor:?}"));
                let allowed = if is_f16[k] { 2e-3 } else { 1e-4 };
                comparisons.push(Comparison { command, kernel, result, error, at, got, want, allowed });
            }
        }
        Ok(comparisons)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Args, Binding, Kernel, Twin, params, reads, twin, writes};
    use crate::plan::Recorder;
    use crate::real::Real;

    params! { unused: u32 }

    const BINDINGS: &[Binding] = &[reads("x"), writes("y")];

    fn doubles<F: Real>(_: &Params, args: Args<'_, F>) {
        let [x, y] = args.all();
        y.write().iter_mut().zip(x.read()).for_each(|(y, &x)| *y = *y + x + x);
    }

    /// Wrong in one place, and by its sign alone.
    fn errs<F: Real>(p: &Params, args: Args<'_, F>) {
        let [x, y] = args.all();
        let (x, y) = (x.read(), y.write());
        doubles_of(p, x, y);
        y[2] = -y[2];
    }

    fn doubles_of<F: Real>(_: &Params, x: &[F], y: &mut [F]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = *y + x + x);
    }

    const fn kernel(name: &'static str, twin: Twin) -> Kernel {
        Kernel { name, source: "", constants: &[], params: FIELDS, bindings: BINDINGS, twin }
    }

    static RIGHT: Kernel = kernel("right", twin!(doubles));
    /// What the device runs is not what its twin in f64 is.
    static WRONG: Kernel =
        kernel("wrong", Twin { f32: twin!(errs).f32, f64: twin!(doubles).f64, is_own: true, can_be_alone: true });

    #[test]
    fn a_wrong_kernel_is_found_and_no_other() {
        let device = Device::cpu();
        let x = device.upload("x", &[2, 3], &[1.0, 2.0, 30.0, f32::NAN, f32::MAX, 0.1]).unwrap();
        let [y, z] = ["y", "z"].map(|name| device.zeros(name, &[6], DType::F32).unwrap());
        let mut r = Recorder::new(&device);
        r.clear(y.clone());
        r.dispatch(&WRONG, &[], Params { unused: 0 }, &[&x, &y], [1; 3]).unwrap();
        // It goes on with what it was given.
        r.dispatch(&RIGHT, &[], Params { unused: 0 }, &[&y, &z], [1; 3]).unwrap();
        r.copy(&z, &x).unwrap();
        let plan = r.finish().unwrap();
        let found = plan.compare_with_twins().unwrap();
        assert_eq!(found.iter().map(|c| c.kernel).collect::<Vec<_>>(), ["clear", "wrong", "right", "copy"]);
        assert_eq!(found.iter().map(Comparison::is_right).collect::<Vec<_>>(), [true, false, true, true]);
        let wrong = &found[1];
        assert_eq!((wrong.command, wrong.at, wrong.got, wrong.want), (1, 2, -60.0, 60.0));
        assert!(wrong.to_string().starts_with("wrong (command 1) -> y[6] has -6e1 at 2 in place of 6e1"), "{wrong}");
        // It has run the plan, once.
        assert_eq!(x.to_vec().unwrap()[..3], [4.0, 8.0, -120.0]);
    }

    #[test]
    fn what_differs_is_said() {
        let of = |got: &[f64], want: &[f64]| Values::F32(got.into()).differ(&Values::F32(want.into()));
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        assert!(of(&[1.0, nan, inf, 1e-40, inf], &[1.0, nan, inf, 0.0, 1e39]).0 <= 1e-40);
        assert_eq!(of(&[1.0, 2.5], &[1.0, 2.0]), (0.25, 1, 2.5, 2.0));
        for (got, want) in [(nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, inf), (inf, -inf)] {
            assert_eq!(of(&[0.0, got], &[0.0, want]).0, inf, "{got} {want}");
        }
        let of = |got: &[u32], want: &[u32]| Values::U32(got.into()).differ(&Values::U32(want.into()));
        assert_eq!(of(&[1, 7], &[1, 7]).0, 0.0);
        assert_eq!(of(&[1, 7, 8], &[1, 8, 8]), (inf, 1, 7.0, 8.0));
    }

    #[test]
    fn halves() {
        for (bits, want) in [(0, 0.0), (1, 2f64.powi(-24)), (0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65_504.0)] {
            assert_eq!(of_f16(bits), want);
        }
        assert!(of_f16(0x7c00) == f64::INFINITY && of_f16(0xfc00) == f64::NEG_INFINITY && of_f16(0x7e00).is_nan());
    }
}
