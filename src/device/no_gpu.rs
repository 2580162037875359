//! What stands for `gpu` in a build without that feature: the names that others use, of types without values.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use std::marker::{Send as WasmNotSend, Sync as WasmNotSync};

use super::{Counters, Limits};
use crate::error::Result;

/// Why no adapter is found.
pub(crate) const NO_ADAPTER: &str = "elman was built without its feature `gpu`";

pub(crate) enum Gpu {}

pub(crate) enum Buffer {}

pub(crate) enum Budget {}

impl Budget {
    pub fn set(&self, _: Duration) {
        match *self {}
    }
}

/// A GPU, or a software driver that acts as one: none, in a build without the feature `gpu`.
#[derive(Clone, Debug)]
pub enum Adapter {}

impl Adapter {
    /// The driver's name for it.
    pub fn name(&self) -> &str {
        match *self {}
    }

    /// Whether it is a software driver (a CPU that acts as a GPU).
    pub fn is_software(&self) -> bool {
        match *self {}
    }

    /// The limits that matter to kernels, in one line.
    pub fn limits(&self) -> String {
        match *self {}
    }

    /// What it is.
    pub fn kind(&self) -> &'static str {
        match *self {}
    }

    /// What wgpu reaches it through.
    pub fn backend(&self) -> String {
        match *self {}
    }

    /// The driver's name and version.
    pub fn driver(&self) -> String {
        match *self {}
    }

    /// What only some adapters have: each by its name here, and whether it is there.
    pub fn features(&self) -> [(&'static str, bool); 4] {
        match *self {}
    }

    /// Threads of a subgroup, from least to most.
    pub fn subgroup_sizes(&self) -> (u32, u32) {
        match *self {}
    }

    /// Bytes of the largest tensor.
    pub fn largest_tensor(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn rank(&self) -> u8 {
        match *self {}
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

pub(crate) async fn adapters(_: bool) -> Vec<(Infallible, Adapter)> {
    Vec::new()
}

pub(crate) async fn open_checked(adapter: Infallible, _: Adapter) -> Result<(Gpu, Vec<String>)> {
    match adapter {}
}

pub(crate) async fn open_unchecked(adapter: Infallible, _: Adapter) -> Result<(Gpu, Vec<String>)> {
    match adapter {}
}

impl Gpu {
    pub fn counters(&self) -> &Arc<Counters> {
        match *self {}
    }

    pub fn adapter(&self) -> &Adapter {
        match *self {}
    }

    pub fn is_software(&self) -> bool {
        match *self {}
    }

    pub fn limits(&self) -> Limits {
        match *self {}
    }

    pub fn budget(&self) -> &Budget {
        match *self {}
    }

    pub fn lose(&self) {
        match *self {}
    }

    pub fn wait(&self) -> Result<()> {
        match *self {}
    }

    pub fn set_recoveries(&self, _: u32) -> Result<()> {
        match *self {}
    }

    pub fn snapshot(&self) -> Result<()> {
        match *self {}
    }

    pub fn lets_go(&self) -> bool {
        match *self {}
    }

    pub fn create_tensor(&self, _: &str, _: u64) -> Result<Arc<Buffer>> {
        match *self {}
    }

    pub fn write(&self, _: &Buffer, _: u64, _: &[u8]) -> Result<()> {
        match *self {}
    }

    pub async fn read(&self, _: &Buffer, _: Range<u64>) -> Result<Vec<u8>> {
        match *self {}
    }
}
