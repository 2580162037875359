//! What the targets share: a file for the bytes, the network that files are read into, and safetensors that are whole again.

use std::path::Path;

use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Init, LanguageModel as _, Parameters, State};
use elman::text::{Corpus, Windows};
use elman::{Checkpoint, Device, Error, Result, Trainer, optim::Adam, rng};
use tempfile::NamedTempFile;

/// Calls `read` with a file of these bytes, in memory where the system has a folder that is.
pub fn in_file<T>(bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static FILE: NamedTempFile = {
            let memory = Path::new("/dev/shm");
            if memory.is_dir() { NamedTempFile::new_in(memory) } else { NamedTempFile::new() }.expect("a file")
        };
    }
    FILE.with(|file| {
        std::fs::write(file.path(), bytes).expect("the file can be written");
        read(file.path())
    })
}

/// An error says something.
pub fn says_why(error: &Error) {
    assert!(!error.to_string().trim().is_empty());
}

/// The same bytes with the length that their safetensors header has, and as many values as it names: a fuzzer seldom gets these right.
pub fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    const MOST: u64 = 1 << 16;
    let rest = bytes.get(8..)?;
    let end = 1 + rest.iter().rposition(|&byte| byte == b'}')?;
    let header: serde_json::Value = serde_json::from_slice(&rest[..end]).ok()?;
    let ends = header.as_object()?.values().filter_map(|entry| entry.get("data_offsets")?.get(1)?.as_u64());
    let length = ends.max().unwrap_or(0).min(MOST) as usize;
    let mut data = rest[end..].to_vec();
    data.resize(length, 0);
    Some([&(end as u64).to_le_bytes(), &rest[..end], &data].concat())
}

/// A training with all that a checkpoint can hold: moments, a carried state, windows.
pub struct Training {
    pub trainer: Trainer,
    pub parameters: Parameters,
    pub state: State,
    pub windows: Windows,
}

impl Training {
    pub fn new(seed: u64) -> Result<Self> {
        let device = Device::cpu();
        let mut init = Init::new(rng::manual_seed(seed));
        let model = CharRnn::new(&mut init, CharRnnOptions::new(3, 2, 2).cell(Cell::Lstm))?;
        let parameters = init.upload(&device)?;
        let corpus = Corpus::new(&device, &[1, 2, 0, 2, 1, 1, 2, 0, 0, 1, 2, 2, 1], 3)?;
        let windows = Windows::streams(&corpus, 0..corpus.len(), 2, 3)?;
        let state = model.state(&device, 2)?;
        let trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
            let batch = windows.batch_of_every_step(g, 2)?;
            let logits = model.forward_every_step(g, &batch.tokens, InitialState::Carried(&state))?;
            cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        })?;
        Ok(Self { trainer, parameters, state, windows })
    }

    /// What a program keeps: the names are those that the target `checkpoint` asks for.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let mut checkpoint = self.trainer.checkpoint()?;
        checkpoint.set_state("training", &self.state)?;
        checkpoint.set_order("order", &[1, 0, 3, 2]);
        Ok(checkpoint)
    }
}

/// The values of all parameters, in their bits.
pub fn bits(parameters: &Parameters) -> Vec<u32> {
    let values = parameters.iter().flat_map(|(_, tensor)| tensor.to_vec().expect("f32 on the CPU"));
    values.map(f32::to_bits).collect()
}
