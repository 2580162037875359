//! A thousand writers in one buffer: each has a prompt of its own; some are forked and some rewound while the others go on. What two
//! writers have of the same prompt and the same draws must be the same text, however they came to it.

mod common;

use anyhow::{Result, ensure};
use clap::Parser;
use common::{DeviceArgs, announce, say, say_loss};
use elman::generate::{Generator, Lane, Sampling};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Init, LanguageModel as _};
use elman::text::{Corpus, Vocabulary, Windows};
use elman::{Trainer, optim::Adam, rng};
use std::{collections::BTreeSet, process::ExitCode, time::Instant};

const TEXT: &str = include_str!("corpus/prose.txt");
const STEPS: usize = 200;
const WRITERS: usize = 1000;
const ROUNDS: usize = 4;
const CHARACTERS: usize = 32;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Seed of the initial weights, the prompts and the draws
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

/// Whose prompt and draws a writer has, and what it has drawn.
#[derive(Clone)]
struct Writer {
    of: usize,
    text: Vec<u32>,
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let Options { device, seed } = Options::parse();
    let Some(device) = device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    let vocabulary = Vocabulary::of(TEXT);
    let text = vocabulary.encode(TEXT)?;
    let mut init = Init::new(rng::manual_seed(seed.into()));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(vocabulary.len(), 16, 64).cell(Cell::Gru))?;
    let parameters = init.upload(&device)?;
    let corpus = Corpus::new(&device, &text, vocabulary.len())?;
    let windows = Windows::streams(&corpus, 0..text.len(), 16, 40)?;
    let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        let batch = windows.batch_of_every_step(g, 16)?;
        let logits = model.forward_every_step(g, &batch.tokens, InitialState::Zero)?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    })?;
    for _ in 0..STEPS {
        trainer.step()?;
        say_loss(&mut trainer, 100, STEPS)?;
    }

    let mut rng = init.rng;
    let mut below = |n: usize| rng.next_u32() as usize % n;
    let prompts: Vec<&[u32]> = (0..WRITERS)
        .map(|_| {
            let (start, length) = (below(text.len() - 20), 1 + below(20));
            &text[start..start + length]
        })
        .collect();
    let mut generator = Generator::new(&model, &parameters, WRITERS)?;
    let sampling = Sampling {
        temperature: 0.7,
        min_p: Some(0.05),
        repeat_penalty: 1.05,
        repeat_last_n: 20,
        never: Some(Vocabulary::PADDING),
        seed,
        ..Sampling::default()
    };
    generator.prime_lanes(&prompts)?;
    let mut writers: Vec<_> = (0..WRITERS).map(|of| Writer { of, text: Vec::new() }).collect();
    // The longest text of each prompt and its draws.
    let mut known: Vec<Vec<u32>> = vec![Vec::new(); WRITERS];
    let mut saved: Vec<(usize, Writer, Lane)> = Vec::new();
    let (mut changed, mut again, mut seconds) = ([0; 2], 0, 0.0);
    for _ in 0..ROUNDS {
        let sampling: Vec<_> =
            writers.iter().map(|writer| Sampling { draws_of: Some(writer.of as u32), ..sampling }).collect();
        generator.set_sampling_of_lanes(&sampling)?;
        let start = Instant::now();
        generator.generate(CHARACTERS, |tokens| {
            tokens.iter().enumerate().for_each(|(i, &token)| writers[i % WRITERS].text.push(token));
            true
        })?;
        seconds += start.elapsed().as_secs_f64();
        for Writer { of, text } in &writers {
            let known = &mut known[*of];
            let both = known.len().min(text.len());
            ensure!(known[..both] == text[..both], "a writer of prompt {of} wrote another text");
            again += CHARACTERS.min(both.saturating_sub(text.len() - CHARACTERS));
            known.extend_from_slice(&text[both..]);
        }
        // A twentieth goes back to where it was once, another becomes what some writer is.
        for (lane, writer, text) in saved.drain(..) {
            generator.restore_lane(lane, &text)?;
            writers[lane] = writer;
            changed[0] += 1;
        }
        let chosen: BTreeSet<_> = (0..WRITERS / 20).map(|_| below(WRITERS)).collect();
        for lane in chosen {
            let (from, to) = (lane, below(WRITERS));
            generator.fork_lane(from, to)?;
            writers[to] = writers[from].clone();
            changed[1] += 1;
            saved.push((from, writers[from].clone(), generator.save_lane(from)?));
        }
    }

    // Some of them alone, without the others and what happened to them: sums of another order may draw another token, but seldom do.
    let mut same_alone = 0;
    for Writer { of, text } in writers.iter().step_by(WRITERS / 10) {
        let mut alone = Generator::new(&model, &parameters, 1)?;
        alone.set_sampling(Sampling { draws_of: Some(*of as u32), ..sampling })?;
        alone.prime(prompts[*of])?;
        let mut same = Vec::new();
        alone.generate(text.len(), |tokens| {
            same.extend_from_slice(tokens);
            true
        })?;
        same_alone += usize::from(same == *text);
    }
    ensure!(same_alone > 8, "{} of 10 writers write another text alone", 10 - same_alone);
    for Writer { of, text } in writers.iter().step_by(WRITERS / 3).take(3) {
        let (prompt, text) = (vocabulary.decode(prompts[*of]), vocabulary.decode(&text[..text.len().min(120)]));
        say!("{prompt:?}: {text:?}");
    }
    let ([rewound, forked], drawn) = (changed, WRITERS * ROUNDS * CHARACTERS);
    say!("{WRITERS} writers, {forked} forks, {rewound} rewound: {again} of {drawn} characters were written again");
    say!("every one wrote what it must; {:.0} characters a second", drawn as f64 / seconds);
    Ok(ExitCode::SUCCESS)
}
