//! What a kernel is: a WGSL file, its bindings and parameters, and its CPU twin.

use crate::device::memory::{Cells, Memory};
pub use crate::real::Real;
use crate::tensor::{DType, Tensor};

/// One operation: `shaders/<name>.wgsl`, its host file `src/kernels/<name>.rs`, and its CPU twin.
///
/// The twin is a field, so a kernel without one does not compile.
pub struct Kernel {
    /// Name of the file, of the entry point, and in every plan, profile and error.
    pub name: &'static str,
    /// The WGSL file followed by the `shaders/lib/` pieces it joins.
    pub source: &'static str,
    /// Constants of the WGSL file that a dispatch sets: `const NAME: u32 = default;`, a line each.
    pub constants: &'static [&'static str],
    /// The fields of the uniform `Params`, binding 0. All are 4 bytes wide.
    pub params: &'static [Field],
    /// Bindings 1, 2, ...: the tensors.
    pub bindings: &'static [Binding],
    /// The same operation on the CPU.
    pub twin: Twin,
}

impl Kernel {
    /// The source with these values of its constants. WGSL's own override constants cannot size a thread's arrays.
    ///
    /// Of lines that begin with `@if(NAME)` or `@if(!NAME)`, as in WESL, those stay whose constant is other than 0, or is not:
    /// what only some adapters have cannot be named in code that others are given, be it never run. Such a line that ends in `{`
    /// takes along all to the `}` that stands below its `@`.
    pub fn source_with(&self, constants: &[(&str, u32)]) -> String {
        let declared = |line: &'static str| line.strip_prefix("const ")?.split_once(": u32 = ");
        let value = |name: &str| constants.iter().find(|(constant, _)| *constant == name).map(|(_, value)| *value);
        let default = |name: &str| {
            let (_, default) = self.source.lines().filter_map(declared).find(|(constant, _)| *constant == name)?;
            default.split_once("u;")?.0.parse().ok()
        };
        let is_set = |name: &str| value(name).or_else(|| default(name)).is_some_and(|value| value != 0);
        let (mut directives, mut rest) = (String::new(), String::new());
        let mut lines = self.source.lines();
        while let Some(mut line) = lines.next() {
            if let Some((condition, code)) = conditional(line) {
                if condition.strip_prefix('!').map_or_else(|| is_set(condition), |name| !is_set(name)) {
                    line = code;
                } else {
                    let indent = line.len() - line.trim_start().len();
                    if code.ends_with('{') {
                        lines.find(|line| line.len() == indent + 1 && line.ends_with('}'));
                    }
                    continue;
                }
            }
            match declared(line).and_then(|(name, _)| Some((name, value(name)?))) {
                Some((name, value)) => rest += &format!("const {name}: u32 = {value}u;\n"),
                None if line.starts_with("enable ") => directives += &format!("{line}\n"),
                None => rest += &format!("{line}\n"),
            }
        }
        directives + &rest
    }
}

/// The condition and the code of a line that begins with `@if(..)`.
fn conditional(line: &'static str) -> Option<(&'static str, &'static str)> {
    line.trim_start().strip_prefix("@if(")?.split_once(") ")
}

/// A field of a kernel's parameter struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, in Rust and in WGSL.
    pub name: &'static str,
    /// `u32` or `f32`.
    pub ty: &'static str,
}

/// A tensor that a kernel binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its name in WGSL.
    pub name: &'static str,
    /// Whether the kernel writes it.
    pub access: Access,
    /// Its element type.
    pub dtype: DType,
}

/// What a kernel does with a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads it.
    Read,
    /// Writes it, and may read it.
    Write,
}

/// An f32 binding that is read.
pub const fn reads(name: &'static str) -> Binding {
    Binding { name, access: Access::Read, dtype: DType::F32 }
}

/// An f32 binding that is written.
pub const fn writes(name: &'static str) -> Binding {
    Binding { name, access: Access::Write, dtype: DType::F32 }
}

/// A u32 binding that is read.
pub const fn reads_u32(name: &'static str) -> Binding {
    Binding { name, access: Access::Read, dtype: DType::U32 }
}

/// A u32 binding that is written.
pub const fn writes_u32(name: &'static str) -> Binding {
    Binding { name, access: Access::Write, dtype: DType::U32 }
}

/// The CPU form of a kernel, in f32, the CPU device, and f64, the reference (feature `reference`). Made by the `twin!` macro.
pub struct Twin {
    pub(crate) f32: TwinFn<f32>,
    #[cfg(feature = "reference")]
    pub(crate) f64: TwinFn<f64>,
    /// Whether the kernel is this crate's own, which never reads or writes beyond a tensor; of others a GPU checks it.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "a CPU's slices check themselves"))]
    pub(crate) is_own: bool,
    /// Whether it keeps to one thread where that is asked for ([`crate::device::threads::is_alone`]), or ever.
    pub(crate) can_be_alone: bool,
}

impl Twin {
    #[doc(hidden)]
    #[cfg(feature = "reference")]
    pub const fn custom(f32: TwinFn<f32>, f64: TwinFn<f64>) -> Self {
        Self { f32, f64, is_own: false, can_be_alone: false }
    }

    #[doc(hidden)]
    #[cfg(not(feature = "reference"))]
    pub const fn custom(f32: TwinFn<f32>) -> Self {
        Self { f32, is_own: false, can_be_alone: false }
    }
}

/// Parameters as words, then the tensors in the order of the bindings.
pub type TwinFn<F> = fn(&[u32], Args<'_, F>);

/// Wraps `fn twin<F: Real>(p: &Params, args: Args<F>)` for both float types; `alone` says what [`Twin::can_be_alone`] does.
macro_rules! twin {
    ($function:path) => {
        twin!($function, can_be_alone: false)
    };
    ($function:path, alone) => {
        twin!($function, can_be_alone: true)
    };
    ($function:path, can_be_alone: $can_be_alone:literal) => {
        $crate::kernel::Twin {
            f32: |params, args| $function(bytemuck::from_bytes(bytemuck::cast_slice(params)), args),
            #[cfg(feature = "reference")]
            f64: |params, args| $function(bytemuck::from_bytes(bytemuck::cast_slice(params)), args),
            is_own: true,
            can_be_alone: $can_be_alone,
        }
    };
}
pub(crate) use twin;

/// Declares a kernel's parameter struct, once for Rust, and lists its fields for the check against WGSL.
macro_rules! params {
    ($vis:vis $($field:ident: $ty:ident),* $(,)?) => {
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        #[allow(non_snake_case, reason = "the fixed letters of the shapes: B, T, H, ...")]
        $vis struct Params {
            $(pub $field: $ty),*
        }
        $vis const FIELDS: &[$crate::kernel::Field] =
            &[$($crate::kernel::Field { name: stringify!($field), ty: stringify!($ty) }),*];
    };
}
pub(crate) use params;

/// Joins a kernel's WGSL file with the library pieces it uses.
macro_rules! wgsl {
    ($file:literal $(, $piece:literal)*) => {
        concat!(
            include_str!(concat!("../../shaders/", $file, ".wgsl")),
            $("\n", include_str!(concat!("../../shaders/lib/", $piece, ".wgsl"))),*
        )
    };
}
pub(crate) use wgsl;

/// The tensors of one dispatch, as the twin sees them.
pub struct Args<'a, F> {
    bindings: &'a [Binding],
    tensors: &'a [Tensor],
    of: unsafe fn(&Binding, &'a Tensor) -> Arg<'a, F>,
}

/// One tensor of a dispatch.
pub enum Arg<'a, F> {
    /// Floats, to read.
    Read(&'a [F]),
    /// Floats, to write.
    Write(&'a mut [F]),
    /// Whole numbers, to read.
    ReadU32(&'a [u32]),
    /// Whole numbers, to write.
    WriteU32(&'a mut [u32]),
}

impl<'a, F: Real> Args<'a, F> {
    /// # Safety
    /// For `'a` it is the caller's turn to use these tensors, and to write those that the kernel writes; no two overlap where one of
    /// them is written.
    pub(crate) unsafe fn new(kernel: &Kernel, tensors: &'a [Tensor]) -> Self
    where
        Memory: AsCells<F>,
    {
        Self { bindings: kernel.bindings, tensors, of: Arg::of }
    }

    /// All of them, of a kernel that has any number.
    pub fn into_all(self) -> impl Iterator<Item = Arg<'a, F>> {
        // SAFETY: each is taken once, and `new` asked for the rest.
        self.bindings.iter().zip(self.tensors).map(move |(binding, tensor)| unsafe { (self.of)(binding, tensor) })
    }

    /// All of them, in the order of the kernel's bindings.
    ///
    /// # Panics
    /// The kernel binds another number.
    pub fn all<const N: usize>(self) -> [Arg<'a, F>; N] {
        assert_eq!(self.tensors.len(), N, "the tensors that the kernel binds, and those that the twin takes");
        let mut all = self.into_all();
        std::array::from_fn(|_| all.next().expect("as many as counted"))
    }
}

impl<'a, F> Arg<'a, F> {
    /// # Safety
    /// As of [`Args::new`].
    unsafe fn of(binding: &Binding, tensor: &'a Tensor) -> Self
    where
        F: Real,
        Memory: AsCells<F>,
    {
        let range = tensor.elements();
        let memory = tensor.buffer().memory();
        // SAFETY: the caller's promise.
        unsafe {
            match (binding.dtype, binding.access) {
                (DType::F32, Access::Read) => Self::Read(memory.cells().slice(range)),
                (DType::F32, Access::Write) => Self::Write(memory.cells().slice_mut(range)),
                (DType::U32, Access::Read) => Self::ReadU32(memory.cells_u32().slice(range)),
                (DType::U32, Access::Write) => Self::WriteU32(memory.cells_u32().slice_mut(range)),
            }
        }
    }

    /// The floats of a binding that is read.
    ///
    /// # Panics
    /// It is bound as another kind.
    pub fn read(self) -> &'a [F] {
        let Self::Read(slice) = self else { unreachable!("bound as another kind") };
        slice
    }
    /// The floats of a binding that is written.
    ///
    /// # Panics
    /// It is bound as another kind.
    pub fn write(self) -> &'a mut [F] {
        let Self::Write(slice) = self else { unreachable!("bound as another kind") };
        slice
    }
    /// The whole numbers of a binding that is read.
    ///
    /// # Panics
    /// It is bound as another kind.
    pub fn read_u32(self) -> &'a [u32] {
        let Self::ReadU32(slice) = self else { unreachable!("bound as another kind") };
        slice
    }
    /// The whole numbers of a binding that is written.
    ///
    /// # Panics
    /// It is bound as another kind.
    pub fn write_u32(self) -> &'a mut [u32] {
        let Self::WriteU32(slice) = self else { unreachable!("bound as another kind") };
        slice
    }
}

/// The float memory of a CPU device, and the twins for it, by its type.
pub(crate) trait AsCells<F> {
    fn cells(&self) -> &Cells<F>;
    fn twin(kernel: &Kernel) -> TwinFn<F>;
}

impl AsCells<f32> for Memory {
    fn cells(&self) -> &Cells<f32> {
        let Self::F32(cells) = self else { unreachable!("the CPU device keeps floats in f32") };
        cells
    }

    fn twin(kernel: &Kernel) -> TwinFn<f32> {
        kernel.twin.f32
    }
}

#[cfg(feature = "reference")]
impl AsCells<f64> for Memory {
    fn cells(&self) -> &Cells<f64> {
        let Self::F64(cells) = self else { unreachable!("the reference keeps floats in f64") };
        cells
    }

    fn twin(kernel: &Kernel) -> TwinFn<f64> {
        kernel.twin.f64
    }
}

impl Memory {
    fn cells_u32(&self) -> &Cells<u32> {
        let Self::U32(cells) = self else { unreachable!("`Recorder::dispatch` checks the element type") };
        cells
    }
}
