//! g2p-en 2.1.0 (Apache-2.0), `checkpoint20.npz` of PyPI's `g2p-en`: a GRU of 256 reads a word's letters, another writes its phonemes.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};
use clap::Args;
use elman::data::Array;
use elman::io::ModelFile;
use elman::nn::functional::InitialState;
use elman::nn::{Embedding, Gru, Init, Linear, Parameters};
use elman::{Device, Predictor};

use crate::fetched::fetched;

/// Letters and phonemes begin with padding and what is unknown; a word ends with this,
const END_OF_WORD: u32 = 2;
/// `a` is this,
const FIRST_LETTER: u32 = 3;
/// and phonemes start and end with these.
const START: u32 = 2;
const END: u32 = 3;
/// More phonemes its program does not give.
const MOST_PHONEMES: usize = 20;
/// Words that are read at a time.
const BATCH: usize = 256;

#[derive(Args)]
pub struct Options {
    /// Words of the letters a to z
    #[arg(required = true)]
    words: Vec<String>,
}

pub fn run(device: &Device, folder: &Path, options: &Options) -> Result<()> {
    let network = G2p::open(device, folder)?;
    for (word, phonemes) in options.words.iter().zip(network.phonemes(&options.words)?) {
        writeln!(std::io::stdout(), "{word}: {}", phonemes.join(" "))?;
    }
    Ok(())
}

pub struct G2p {
    embeddings: [Embedding; 2],
    encoder: Gru,
    decoder: Gru,
    output: Linear,
    parameters: Parameters,
    /// By token.
    names: Vec<String>,
}

impl G2p {
    pub fn open(device: &Device, folder: &Path) -> Result<Self> {
        let file = ModelFile::open(fetched(folder, "g2p.safetensors")?)?;
        let init = &mut Init::from_file(&file);
        let embeddings =
            [Embedding::from_file(init, "encoder.embedding")?, Embedding::from_file(init, "decoder.embedding")?];
        let [encoder, decoder] = [Gru::from_file(init, "encoder.gru")?, Gru::from_file(init, "decoder.gru")?];
        let output = Linear::from_file(init, "decoder.output")?;
        let names =
            file.metadata().get("phonemes").map(|names| names.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let names = names.unwrap_or_default();
        let rows = file.shape("decoder.output.weight").map_or(0, |shape| shape[0]);
        ensure!(names.len() == rows, "{} names {} phonemes, but has {rows}", file.path().display(), names.len());
        Ok(Self { embeddings, encoder, decoder, output, parameters: init.upload(device)?, names })
    }

    /// Of each word, its phonemes: the most likely one at each step. Words of about one length are read together.
    pub fn phonemes(&self, words: &[impl AsRef<str>]) -> Result<Vec<Vec<&str>>> {
        let letters = words.iter().map(|word| letters(word.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut encoder = Predictor::new(&self.parameters, |g, [letters, lengths]| {
            let x = self.embeddings[0].forward(g, letters)?;
            Ok([self.encoder.forward_with_lengths(g, x, InitialState::Zero, lengths)?.h_n])
        });
        let mut decoder = Predictor::new(&self.parameters, |g, [tokens, h]| {
            let (x, h) = (self.embeddings[1].forward(g, tokens)?, g.input(h)?);
            let out = self.decoder.forward(g, x, InitialState::Given(h.into()))?;
            Ok([self.output.forward(g, out.output)?, out.h_n])
        });
        let mut order: Vec<_> = (0..words.len()).collect();
        order.sort_by_key(|&word| letters[word].len());
        let mut said = vec![Vec::new(); words.len()];
        for batch in order.chunks(BATCH) {
            let read: Vec<_> = batch.iter().map(|&word| &letters[word]).collect();
            let alphabet = (FIRST_LETTER + 26) as usize;
            let read =
                [Array::pad_tokens("letters", &read, END_OF_WORD, alphabet)?, Array::lengths_of("lengths", &read)?];
            let [mut h] = encoder.run(&read)?;
            let mut tokens = vec![START; batch.len()];
            let mut is_done = vec![false; batch.len()];
            for _ in 0..MOST_PHONEMES {
                let input = Array::tokens("tokens", &[1, batch.len()], tokens, self.names.len())?;
                let [logits, next] = decoder.run(&[input, h])?;
                (tokens, h) = (logits.argmax(), next);
                for ((&word, &token), is_done) in batch.iter().zip(&tokens).zip(&mut is_done) {
                    *is_done |= token == END;
                    if !*is_done {
                        said[word].push(&self.names[token as usize][..]);
                    }
                }
                if is_done.iter().all(|&is_done| is_done) {
                    break;
                }
            }
        }
        Ok(said)
    }
}

/// The tokens of a word and its end.
fn letters(word: &str) -> Result<Vec<u32>> {
    let lower = word.to_ascii_lowercase();
    let is_of_letters = !word.is_empty() && lower.bytes().all(|letter| letter.is_ascii_lowercase());
    ensure!(is_of_letters, "{word:?} is no word of the letters a to z, which are all that the network reads");
    Ok(lower.bytes().map(|letter| FIRST_LETTER + u32::from(letter - b'a')).chain([END_OF_WORD]).collect())
}
