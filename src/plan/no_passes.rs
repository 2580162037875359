//! What stands for `passes` in a build without the feature `gpu`.

use std::sync::Arc;

use super::Command;
use crate::device::gpu::Gpu;
use crate::error::Result;

pub(super) enum Passes {}

pub(super) type Runs = Vec<(Arc<Passes>, usize)>;

impl Passes {
    pub fn new(gpu: &Gpu, _: &[Command]) -> Result<Self> {
        match *gpu {}
    }

    pub fn estimated_submits<'a>(gpu: &Gpu, _: impl IntoIterator<Item = &'a Command>) -> usize {
        match *gpu {}
    }

    pub fn submits(&self, gpu: &Gpu) -> usize {
        match *gpu {}
    }

    pub fn submit(gpu: &Gpu, _: &Runs) -> Result<()> {
        match *gpu {}
    }

    pub fn run_with_timestamps(self: &Arc<Self>, gpu: &Gpu) -> Result<Vec<Option<(f64, f64)>>> {
        match *gpu {}
    }
}
