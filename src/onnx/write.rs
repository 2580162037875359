//! Networks of this crate, written as ONNX files.

/// Placeholder.
pub struct Writer;
