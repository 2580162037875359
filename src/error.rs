//! The one error type of the library.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Each message says what was expected and what came, and, where that does not say it
/// already, the cure. `Debug` gives the message too, for it is what `fn main() -> elman::Result<()>` prints.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor, or data for one, has the wrong shape.
    #[error("{op}: `{argument}` must have shape {expected}, but has {got:?}")]
    Shape {
        /// The operation that refused it, and the module whose it is: "linear `output`".
        op: Cow<'static, str>,
        /// The argument or tensor.
        argument: String,
        /// The expected shape, with names where the size is free.
        expected: String,
        /// The shape that came.
        got: Vec<usize>,
    },

    /// An argument has a value that makes no sense.
    #[error("{op}: `{argument}` must be {expected}, but is {got}")]
    Argument {
        /// The operation that refused it, and the module whose it is.
        op: Cow<'static, str>,
        /// The argument.
        argument: &'static str,
        /// What is allowed.
        expected: String,
        /// What came.
        got: String,
    },

    /// A token is not in the vocabulary.
    #[error(
        "token {token}{} at position {position} of `{tensor}` is outside the vocabulary of {vocabulary}; {}", as_i32(*token), cure(*token)
    )]
    Token {
        /// The offending token.
        token: u32,
        /// Its index in the data.
        position: usize,
        /// What it is in.
        tensor: String,
        /// The number of tokens the vocabulary has.
        vocabulary: usize,
    },

    /// A character of a text is not in the vocabulary.
    #[error(
        "character {character:?} at position {position} does not occur in the model's vocabulary; use only characters of the training text: {known}"
    )]
    UnknownCharacter {
        /// The offending character.
        character: char,
        /// Its index, in characters.
        position: usize,
        /// The characters that may be used.
        known: String,
    },

    /// A text, or the stretch of it that windows are to be cut from, is too short for one batch of them.
    #[error(
        "the text has {length} {unit}{}, but {} need at least {least}{}; use a longer text, a smaller window or a smaller batch",
        part(*length, *stretch), windows(*batch, *window, unit), whole(*length, *stretch, *least)
    )]
    TextTooShort {
        /// Length of the text.
        length: usize,
        /// Length of the stretch that windows are cut from: of the whole text, or of a part.
        stretch: usize,
        /// What lengths count: characters, or, of a file that is not loaded, bytes.
        unit: &'static str,
        /// Length of a window, in characters.
        window: usize,
        /// Windows that lie side by side in the text.
        batch: usize,
        /// The least length of the stretch that would do.
        least: u128,
    },

    /// No device answers to the name asked for.
    #[error("no device matches `{wanted}`; there is: {available}")]
    NoDevice {
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: String,
    },

    /// A tensor or dispatch is larger than the adapter allows.
    #[error("`{tensor}` needs {needed} {unit}, but {device} allows {allowed}; {cure}")]
    Limit {
        /// The tensor, or the kernel's dispatch.
        tensor: String,
        /// How much it needs.
        needed: u64,
        /// Of what: "bytes in one binding", "workgroups".
        unit: &'static str,
        /// How much the device allows.
        allowed: u64,
        /// The device.
        device: String,
        /// What to do about it.
        cure: &'static str,
    },

    /// The device has no memory for a plan or a tensor, of which nothing was allocated.
    #[error(
        "{what} needs {} beside the {} that {device} holds, {}{}; {}",
        size(*needed), size(*held), refused(*limit), listed(largest), room(*needed, *available, *limit)
    )]
    OutOfMemory {
        /// The plan, or the tensor by its name.
        what: String,
        /// The bytes that it needs and does not have yet.
        needed: u64,
        /// The bytes that tensors on the device hold already.
        held: u64,
        /// Of those needed, the bytes that there are: up to the limit, or that the driver gave before it refused.
        available: u64,
        /// That of [`crate::Device::set_most_bytes`], in bytes; None if it was the driver that refused.
        limit: Option<u64>,
        /// The largest tensors of what is needed, and their bytes.
        largest: Vec<(String, u64)>,
        /// The device.
        device: String,
    },

    /// One buffer would be written and used otherwise within a dispatch.
    #[error(
        "{kernel}: `{first}` and `{second}` share one buffer, and the kernel writes `{written}`; give the result a tensor of its own"
    )]
    Aliased {
        /// The kernel.
        kernel: &'static str,
        /// The first tensor of the pair.
        first: String,
        /// The second tensor of the pair.
        second: String,
        /// Which of them is written.
        written: String,
    },

    /// Tensors of different devices were mixed.
    #[error(
        "{op}: `{argument}` lives on another device ({found}) than the plan ({expected}); open a device once and clone it"
    )]
    WrongDevice {
        /// The operation that refused it.
        op: &'static str,
        /// The tensor.
        argument: String,
        /// Where it is.
        found: String,
        /// Where it should be.
        expected: String,
    },

    /// A loss or a gradient is NaN or infinite.
    #[error("the {what} of step {step} is {value}; {cause}")]
    NotFinite {
        /// The training step, counted from 0.
        step: u64,
        /// "loss" or "gradient's norm".
        what: &'static str,
        /// The value read.
        value: f32,
        /// What was found when the loss was read, and what to do about it: an input that is not finite, or parameters,
        /// or neither.
        cause: String,
    },

    /// The device went away (driver reset, unplugged, taken by the system).
    #[error(
        "the device was lost: {0}; open it again and go on from the last saved model, or ask for `Device::set_recoveries` before"
    )]
    DeviceLost(String),

    /// The driver refused something that this crate believed valid.
    #[error("the GPU driver reported: {0}")]
    Gpu(String),

    /// A model file is damaged or does not fit.
    #[error("model file {}: {problem}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A node of an ONNX file cannot be recorded, of these inputs.
    #[error("onnx: `{op}` at `{node}`: {problem}")]
    Onnx {
        /// Its operator.
        op: String,
        /// Its name.
        node: String,
        /// What is wrong.
        problem: String,
    },

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn shape(
        op: &'static str,
        argument: impl Into<String>,
        expected: impl Into<String>,
        got: &[usize],
    ) -> Self {
        Self::Shape { op: op.into(), argument: argument.into(), expected: expected.into(), got: got.to_vec() }
    }

    pub(crate) fn argument(
        op: &'static str,
        argument: &'static str,
        expected: impl Into<String>,
        got: impl ToString,
    ) -> Self {
        Self::Argument { op: op.into(), argument, expected: expected.into(), got: got.to_string() }
    }

    /// Says which module's operation refused it.
    pub(crate) fn in_module(mut self, name: &str) -> Self {
        if let Self::Shape { op, .. } | Self::Argument { op, .. } = &mut self {
            *op = format!("{op} `{name}`").into();
        }
        self
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Of a token that was a negative number: which.
fn as_i32(token: u32) -> String {
    let signed = token as i32;
    if signed < 0 { format!(" (which is {signed} as an i32)") } else { String::new() }
}

fn cure(token: u32) -> &'static str {
    match (token as i32) < 0 {
        true => "a target that does not count is `elman::NO_TARGET`",
        false => "encode the text with the model's own vocabulary",
    }
}

/// Of a text that windows are cut from a part of: how much that is.
fn part(length: usize, stretch: usize) -> String {
    if stretch == length { String::new() } else { format!(", {stretch} of them to cut windows from") }
}

fn windows(batch: usize, window: usize, unit: &str) -> String {
    let each = if unit == "bytes" { format!("{window} characters (of up to 4 bytes)") } else { window.to_string() };
    let side_by_side = if batch == 1 { "windows".into() } else { format!("{batch} streams of windows") };
    format!("{side_by_side} of {each} and what follows them")
}

/// The text that has a long enough part, if the part keeps its share.
fn whole(length: usize, stretch: usize, least: u128) -> String {
    match least.checked_mul(length as u128) {
        Some(product) if stretch != length && stretch > 0 => {
            format!(" of these, a text of about {}", product.div_ceil(stretch as u128))
        }
        _ => String::new(),
    }
}

/// So many bytes, for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn refused(limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!("above its limit of {} (`Device::set_most_bytes`)", size(limit)),
        None => "and the driver refused".into(),
    }
}

fn listed(largest: &[(String, u64)]) -> String {
    let tensors: Vec<_> = largest.iter().map(|(name, bytes)| format!("`{name}` ({})", size(*bytes))).collect();
    if tensors.is_empty() { String::new() } else { format!("; largest are {}", tensors.join(", ")) }
}

/// What would fit, and the cure.
fn room(needed: u64, available: u64, limit: Option<u64>) -> String {
    let others = if limit.is_none() { ", or close other programs that use the device" } else { "" };
    match (100 * u128::from(available) / u128::from(needed.max(1))).min(99) {
        0 => format!("use a smaller batch, window or hidden size{others}"),
        percent => format!("there is room for {}: use {percent}% of batch x window{others}", size(available)),
    }
}
