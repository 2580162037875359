//! Many to many, of other lengths: dates as people write them -> `1968-05-03`, one character at a time.
//!
//! An encoder reads the date to its end; its last state is where the decoder starts. A hundredth of the dates from 1900 to
//! 2099 is held out: in training, the network has seen them in no style.

mod common;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use common::decoder::Decoder;
use common::{DeviceArgs, announce, say, say_loss};
use elman::data::{self, Array};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Embedding, Gru, Init, RnnOptions};
use elman::optim::{Adam, Clip};
use elman::rng::{self, Rng};
use elman::schedule::{OneCycle, OneCycleOptions};
use elman::{Graph, Predictor, Tensor, Trainer, Var};

#[rustfmt::skip]
const MONTHS: [&str; 12] = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
];
/// The first is that of 1 January 1900.
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
#[rustfmt::skip]
const ORDINALS: [&str; 20] = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
    "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth",
];
/// Characters are their ASCII codes; those of padding, start and end stand for no character.
const VOCABULARY: usize = 128;
/// Characters of `1968-05-03`.
const ISO: usize = 10;
const BATCH: usize = 64;
const EMBEDDING: usize = 32;
const HIDDEN: usize = 128;
const LR: f64 = 5e-3;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Training steps, of 64 dates each
    #[arg(long, default_value_t = 2000)]
    steps: usize,
    /// Seed of the split, the initial weights and the styles
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

#[derive(Clone, Copy)]
struct Date {
    year: usize,
    /// 1 to 12
    month: usize,
    day: usize,
    /// 0 is a Monday.
    weekday: usize,
}

/// A GRU that reads, and one that writes.
struct Network {
    embedding: Embedding,
    encoder: Gru,
    decoder: Decoder,
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let (training, held_out) = data::split(&mut init.rng, &Date::all(), 0.01);
    say!("{} dates to learn from, {} held out", training.len(), held_out.len());
    let network = Network {
        embedding: Embedding::new(&mut init, "encoder.embedding", VOCABULARY, EMBEDDING)?,
        encoder: Gru::new(&mut init, "encoder.gru", RnnOptions::new(EMBEDDING, HIDDEN))?,
        decoder: Decoder::new(&mut init, VOCABULARY, EMBEDDING, HIDDEN)?,
    };
    let parameters = init.upload(&device)?;

    let schedule = OneCycle::new(LR, options.steps.max(1), OneCycleOptions::default())?;
    let optimizer = Adam::default().clip(Clip::Norm(1.0)).schedule(schedule);
    let mut trainer = Trainer::on_batches(&parameters, optimizer, |g, [written, lengths, input, target]| {
        let h = network.encode(g, written, lengths)?;
        let [logits, _] = network.decoder.forward(g, input, h)?;
        cross_entropy(g, logits, target, Reduction::Mean)
    })?;
    for _ in 0..options.steps {
        let draw = |_| training[init.rng.randint(training.len() as u32, 1)[0] as usize];
        let batch: Vec<Date> = (0..BATCH).map(draw).collect();
        let texts: Vec<String> = batch.iter().map(|date| date.write(&mut init.rng)).collect();
        let isos: Vec<_> = batch.iter().map(|date| tokens(&date.iso())).collect();
        let [written, lengths] = padded(&texts)?;
        let [input, target] = network.decoder.lesson(&isos)?;
        trainer.step_on(&[written, lengths, input, target])?;
        say_loss(&mut trainer, 100, options.steps)?;
    }

    let texts: Vec<String> = held_out.iter().map(|date| date.write(&mut init.rng)).collect();
    let mut encoder = Predictor::new(&parameters, |g, [written, lengths]| Ok([network.encode(g, written, lengths)?]));
    let [h] = encoder.run(&padded(&texts)?)?;
    let text = |tokens: &Vec<u32>| tokens.iter().map(|&token| token as u8 as char).collect::<String>();
    let translated: Vec<String> = network.decoder.greedy(&parameters, h, ISO)?.iter().map(text).collect();
    for (text, iso) in texts.iter().zip(&translated).take(8) {
        say!("{text:?} -> {}", iso.escape_default());
    }
    let right = translated.iter().zip(&held_out).filter(|(iso, date)| **iso == date.iso()).count();
    say!("held-out exact dates: {:.3}", right as f64 / held_out.len() as f64);
    Ok(ExitCode::SUCCESS)
}

impl Network {
    /// The state after each date's last character, `[1, B, H]`.
    fn encode(&self, g: &mut Graph, written: &Tensor, lengths: &Tensor) -> elman::Result<Var> {
        let x = self.embedding.forward(g, written)?;
        Ok(self.encoder.forward_with_lengths(g, x, InitialState::Zero, lengths)?.h_n)
    }
}

impl Date {
    /// From 1900 to 2099.
    fn all() -> Vec<Self> {
        let mut dates = Vec::new();
        for year in 1900..2100 {
            let february = if year % 4 == 0 && year != 1900 { 29 } else { 28 };
            for (month, days) in (1..).zip([31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
                for day in 1..=days {
                    dates.push(Self { year, month, day, weekday: dates.len() % 7 });
                }
            }
        }
        dates
    }

    fn iso(self) -> String {
        format!("{}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// In one of many styles. Where the month is a number, the day comes first.
    fn write(self, rng: &mut Rng) -> String {
        let Self { year, month, day, weekday } = self;
        let (month, weekday) = (MONTHS[month - 1], WEEKDAYS[weekday]);
        let ordinal = match day {
            1..=20 => ORDINALS[day - 1].to_owned(),
            30 => "thirtieth".to_owned(),
            31 => "thirty-first".to_owned(),
            _ => format!("twenty-{}", ORDINALS[day - 21]),
        };
        let th = &ordinal[ordinal.len() - 2..];
        match rng.next_u32() % 10 {
            0 => format!("{day} {month} {year}"),
            1 => format!("{month} {day}, {year}"),
            2 => format!("{day:02}.{:02}.{year}", self.month),
            3 => format!("{day}{th} {} {year}", &month[..3]),
            4 => format!("{weekday}, {} {day}, {year}", &month[..3]),
            5 => format!("{weekday}, the {day}{th} of {month} {year}"),
            6 => format!("the {ordinal} of {month}, {year}"),
            7 => format!("{month} the {ordinal}, {year}"),
            8 => format!("{weekday}, the {ordinal} of {month} {year}"),
            _ => format!("in {year}, on the {day}{th} of {month}"),
        }
    }
}

fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Characters `[T, B]` and how many each text has, `[B]`.
fn padded(texts: &[String]) -> elman::Result<[Array; 2]> {
    let texts: Vec<_> = texts.iter().map(|text| tokens(text)).collect();
    Ok([Array::pad_tokens("written", &texts, 0, VOCABULARY)?, Array::lengths_of("lengths", &texts)?])
}
