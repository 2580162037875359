//! Recurrent neural networks on any GPU that wgpu reaches, by WGSL kernels; on the CPU by the kernels' twins.

pub mod device;
mod error;
pub mod generate;
mod graph;
pub mod io;
pub mod kernel;
pub mod kernels;
pub mod nn;
pub mod optim;
mod plan;
mod product;
mod real;
pub mod rng;
mod tensor;
pub mod text;
mod train;

pub use device::Device;
pub use error::{Error, Result};
pub use generate::Generator;
pub use graph::{Graph, Var};
pub use plan::{Dispatch, Plan, PlanCount};
pub use tensor::{DType, Tensor};
pub use train::{Evaluator, Trainer};
