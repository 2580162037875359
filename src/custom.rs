//! Kernels of one's own: a WGSL file and its twin, recorded beside this crate's, with gradients on the same tape.
//!
//! A kernel is a `static`: its WGSL, whose binding 0 is a uniform struct of 4-byte parameters and whose other bindings are tensors,
//! and the twin, generic over f32 and f64, by which the CPU runs it and a GPU is checked ([`crate::Plan::compare_with_twins`]). [`check`] reads
//! the WGSL and compares it with what the host says of it: have a test call it. On a GPU, accesses beyond a tensor are caught, at the
//! cost of a comparison each.
//!
//! ```
//! use elman::custom::{Args, Field, Kernel, Real, reads, twin, writes};
//! use elman::{Graph, Result, Var, Device};
//!
//! /// y = x³
//! static CUBE: Kernel = Kernel {
//!     name: "cube",
//!     source: "
//!         struct Params { n: u32 }
//!         @group(0) @binding(0) var<uniform> p: Params;
//!         @group(0) @binding(1) var<storage, read> x: array<f32>;
//!         @group(0) @binding(2) var<storage, read_write> y: array<f32>;
//!         @compute @workgroup_size(64)
//!         fn cube(@builtin(global_invocation_id) id: vec3<u32>) {
//!             if id.x < p.n { y[id.x] = x[id.x] * x[id.x] * x[id.x]; }
//!         }",
//!     constants: &[],
//!     params: &[Field { name: "n", ty: "u32" }],
//!     bindings: &[reads("x"), writes("y")],
//!     twin: twin!(cube_twin),
//! };
//!
//! fn cube_twin<F: Real>(_: &[u32], args: Args<'_, F>) {
//!     let [x, y] = args.all();
//!     for (y, &x) in y.write().iter_mut().zip(x.read()) {
//!         *y = x * x * x;
//!     }
//! }
//!
//! fn cube(g: &mut Graph, x: Var) -> Result<Var> {
//!     let x_tensor = g.tensor(x)?;
//!     let n = x_tensor.len();
//!     let y_tensor = g.zeros("cube", x_tensor.shape())?;
//!     g.dispatch(&CUBE, &[], [n as u32], &[&x_tensor, &y_tensor], [n.div_ceil(64), 1, 1])?;
//!     let y = g.result(y_tensor, &[x]);
//!     g.on_backward(move |g| {
//!         // dx = 3 x² dy, of this crate's operations on tensors
//!         let Some(dy) = g.gradient(y) else { return Ok(()) };
//!         let Some((dx, adds)) = g.gradient_target(x)? else { return Ok(()) };
//!         let slope = elman::map::Program::new(|[x, dy]| x * x * 3.0 * dy);
//!         elman::kernels::map::map(g, &slope, dx.shape(), &[(&x_tensor).into(), (&dy).into()], &[((&dx).into(), adds)])
//!     });
//!     Ok(y)
//! }
//!
//! # #[cfg(feature = "gpu")]
//! elman::custom::check(&CUBE, &[])?;
//! let device = Device::cpu();
//! let mut g = Graph::without_parameters(&device);
//! let x = g.input_with_gradient(&device.upload("x", &[2], &[2., -1.])?)?;
//! let y = cube(&mut g, x)?;
//! let result = g.tensor(y)?;
//! let ones = device.upload("ones", &[2], &[1., 1.])?;
//! g.backward(&[], &[(y, &ones)])?;
//! let slope = g.gradient(x).unwrap();
//! g.finish()?.run()?;
//! assert_eq!((result.to_vec()?, slope.to_vec()?), (vec![8., -1.], vec![12., 3.]));
//! # Ok::<(), elman::Error>(())
//! ```

#[cfg(feature = "gpu")]
use crate::error::{Error, Result};
pub use crate::kernel::{Access, Arg, Args, Binding, Field, Kernel, Real, Twin, reads, reads_u32, writes, writes_u32};
#[cfg(feature = "gpu")]
use crate::tensor::DType;
#[doc(inline)]
pub use crate::twin;

/// The twin of a kernel of one's own, of a function `fn twin<F: Real>(params: &[u32], args: Args<'_, F>)`: the parameters as words, of an
/// f32 its bits, and the tensors in the order of the bindings.
#[cfg(feature = "reference")]
#[macro_export]
macro_rules! twin {
    ($function:path) => {
        $crate::custom::Twin::custom(|params, args| $function(params, args), |params, args| $function(params, args))
    };
}

/// The twin of a kernel of one's own, of a function `fn twin<F: Real>(params: &[u32], args: Args<'_, F>)`: the parameters as words, of an
/// f32 its bits, and the tensors in the order of the bindings.
#[cfg(not(feature = "reference"))]
#[macro_export]
macro_rules! twin {
    ($function:path) => {
        $crate::custom::Twin::custom(|params, args| $function(params, args))
    };
}

/// Reads a kernel's WGSL, with these constants, and compares it with what the host says of it: that it is valid and has the entry point,
/// the parameters and the bindings.
///
/// # Errors
/// The first difference.
#[cfg(feature = "gpu")]
pub fn check(kernel: &Kernel, constants: &[(&str, u32)]) -> Result<()> {
    use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
    use wgpu::naga::{AddressSpace, Scalar, StorageAccess, TypeInner, front};

    let source = kernel.source_with(constants);
    let refuse =
        |what: &'static str, expected: String, got: String| Err(Error::argument(kernel.name, what, expected, got));
    let module = match front::wgsl::parse_str(&source) {
        Ok(module) => module,
        Err(error) => return refuse("source", "WGSL".into(), error.emit_to_string(&source)),
    };
    let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    if let Err(error) = Validator::new(ValidationFlags::all(), capabilities).validate(&module) {
        return refuse("source", "valid WGSL".into(), error.emit_to_string(&source));
    }
    if !module.entry_points.iter().any(|entry| entry.name == kernel.name) {
        let found: Vec<_> = module.entry_points.iter().map(|entry| &entry.name).collect();
        return refuse("source", format!("an entry point `{}`", kernel.name), format!("{found:?}"));
    }
    let scalar = |ty: &TypeInner| match ty {
        TypeInner::Scalar(Scalar::F32) | TypeInner::Vector { scalar: Scalar::F32, .. } => "f32",
        TypeInner::Scalar(Scalar::U32) | TypeInner::Vector { scalar: Scalar::U32, .. } => "u32",
        _ => "another type",
    };
    let of = |binding: usize| {
        let is =
            |binding: usize| move |at: &wgpu::naga::ResourceBinding| at.group == 0 && at.binding as usize == binding;
        module
            .global_variables
            .iter()
            .map(|(_, global)| global)
            .find(|global| global.binding.as_ref().is_some_and(is(binding)))
    };
    let bound = module.global_variables.iter().filter(|(_, global)| global.binding.is_some()).count();
    if bound != 1 + kernel.bindings.len() {
        let expected = format!("{}, the parameters and the tensors", 1 + kernel.bindings.len());
        return refuse("bindings", expected, bound.to_string());
    }
    let declared: Vec<_> = kernel.params.iter().map(|field| format!("{}: {}", field.name, field.ty)).collect();
    let found = of(0).filter(|global| global.space == AddressSpace::Uniform).map(|global| {
        match &module.types[global.ty].inner {
            TypeInner::Struct { members, .. } => {
                let field = |member: &wgpu::naga::StructMember| {
                    let ty = &module.types[member.ty].inner;
                    let ty = if matches!(ty, TypeInner::Scalar(_)) { scalar(ty) } else { "another type" };
                    format!("{}: {ty}", member.name.as_deref().unwrap_or(""))
                };
                members.iter().map(field).collect()
            }
            _ => Vec::new(),
        }
    });
    if found.as_ref() != Some(&declared) {
        return refuse("params", format!("{declared:?}, a uniform struct at binding 0"), format!("{found:?}"));
    }
    for (i, binding) in kernel.bindings.iter().enumerate() {
        let found = of(i + 1).map(|global| {
            let element = match &module.types[global.ty].inner {
                TypeInner::Array { base, .. } => scalar(&module.types[*base].inner),
                _ => "no array",
            };
            let access = match global.space {
                AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => "read_write",
                AddressSpace::Storage { .. } => "read",
                _ => "no storage",
            };
            (global.name.clone().unwrap_or_default(), element, access)
        });
        let access = if binding.access == Access::Write { "read_write" } else { "read" };
        let declared = (binding.name.to_owned(), if binding.dtype == DType::F32 { "f32" } else { "u32" }, access);
        if found.as_ref() != Some(&declared) {
            return refuse("bindings", format!("{declared:?} at binding {}", i + 1), format!("{found:?}"));
        }
    }
    Ok(())
}
