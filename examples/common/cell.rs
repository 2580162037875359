//! `--cell rnn|gru|lstm`: one of the recurrent modules.

use clap::ValueEnum;
use elman::nn::functional::{InitialState, States};
use elman::nn::{Gru, Init, Lstm, Rnn, RnnOptions};
use elman::{Graph, Result, Var};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Rnn,
    Gru,
    Lstm,
}

pub enum Cell {
    Rnn(Rnn),
    Gru(Gru),
    Lstm(Lstm),
}

impl Cell {
    pub fn new(kind: Kind, init: &mut Init, name: &str, options: RnnOptions) -> Result<Self> {
        Ok(match kind {
            Kind::Rnn => Self::Rnn(Rnn::new(init, name, options)?),
            Kind::Gru => Self::Gru(Gru::new(init, name, options)?),
            Kind::Lstm => Self::Lstm(Lstm::new(init, name, options)?),
        })
    }

    /// The output of every step, and the last states.
    pub fn forward(&self, g: &mut Graph, x: Var, initial: InitialState<'_>) -> Result<(Var, States)> {
        Ok(match self {
            Self::Rnn(rnn) => rnn.forward(g, x, initial).map(|out| (out.output, out.h_n.into()))?,
            Self::Gru(gru) => gru.forward(g, x, initial).map(|out| (out.output, out.h_n.into()))?,
            Self::Lstm(lstm) => {
                lstm.forward(g, x, initial).map(|out| (out.output, States { h: out.h_n, c: Some(out.c_n) }))?
            }
        })
    }
}
