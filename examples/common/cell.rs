//! `--cell rnn|gru|lstm`.

use clap::ValueEnum;
use elman::nn::Cell;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Rnn,
    Gru,
    Lstm,
}

impl From<Kind> for Cell {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Rnn => Self::Tanh,
            Kind::Gru => Self::Gru,
            Kind::Lstm => Self::Lstm,
        }
    }
}
