//! The character networks of the tutorials, and what each is trained with.

use clap::ValueEnum;
use elman::nn::functional::{InitialState, add, concat, relu, reshape, tanh, unbind};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Embedding, Hidden, Init, LanguageModel, Linear, State};
use elman::{DType, Device, Graph, Result, Tensor, Var};

/// `--model`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// Three characters, every third window; the input joins the hidden state as a sum
    ThreeChar,
    /// Eight characters, joined as a sum
    Loop,
    /// Eight characters, joined side by side
    Concat,
    /// An Elman network
    Rnn,
    /// Gated recurrent units
    Gru,
    /// Long short-term memory
    Lstm,
}

/// How a network is trained.
pub struct Recipe {
    pub window: usize,
    /// From one window's start to the next one's.
    pub stride: usize,
    pub batch: usize,
    pub lr: f64,
    pub epochs: usize,
    pub fine_tune_epochs: usize,
}

impl Model {
    /// The tutorial's recipe, or one for streams whose state is carried.
    pub fn recipe(self, stateful: bool) -> Recipe {
        let rnn = Recipe { window: 8, stride: 1, batch: 512, lr: 1e-3, epochs: 4, fine_tune_epochs: 2 };
        if stateful {
            return Recipe { window: 32, batch: 64, lr: 2e-3, ..rnn };
        }
        let looped = Recipe { lr: 1e-2, epochs: 1, fine_tune_epochs: 1, ..rnn };
        match self {
            Self::ThreeChar => Recipe { window: 3, stride: 3, ..looped },
            Self::Loop => looped,
            Self::Concat => Recipe { lr: 1e-3, ..looped },
            Self::Rnn | Self::Gru | Self::Lstm => rnn,
        }
    }

    /// What the tutorial asks the trained network.
    pub fn prompts(self) -> [&'static str; 2] {
        if self == Self::ThreeChar { ["y. ", " an"] } else { ["for thos", "part of "] }
    }

    /// The cell of its recurrent layers, if it is made of such.
    pub fn cell(self) -> Option<Cell> {
        match self {
            Self::ThreeChar | Self::Loop | Self::Concat => None,
            Self::Rnn => Some(Cell::Tanh),
            Self::Gru => Some(Cell::Gru),
            Self::Lstm => Some(Cell::Lstm),
        }
    }

    /// Draws the network's parameters.
    pub fn build(self, init: &mut Init, options: CharRnnOptions) -> Result<Box<dyn LanguageModel>> {
        Ok(match self {
            Self::ThreeChar => Box::new(CharLoop::new(init, "embedding", Join::Sum, options)?),
            Self::Loop => Box::new(CharLoop::new(init, "embedding_layer", Join::Sum, options)?),
            Self::Concat => Box::new(CharLoop::new(init, "embedding_layer", Join::SideBySide, options)?),
            Self::Rnn | Self::Gru | Self::Lstm => Box::new(CharRnn::new(init, options)?),
        })
    }
}

/// A recurrent network written as a loop over characters. With e the embedding of a character:
/// `h = tanh(hidden(h + relu(input(e))))` (`Char3Model`, `CharLoopModel`), or
/// `h = tanh(hidden(relu(input([h, e]))))` (`CharLoopConcatModel`).
struct CharLoop {
    join: Join,
    options: CharRnnOptions,
    embedding: Embedding,
    input_layer: Linear,
    hidden_layer: Linear,
    output_layer: Linear,
}

#[derive(Clone, Copy)]
enum Join {
    Sum,
    SideBySide,
}

impl CharLoop {
    fn new(init: &mut Init, embedding: &str, join: Join, options: CharRnnOptions) -> Result<Self> {
        let CharRnnOptions { vocabulary, embedding: size, hidden, .. } = options;
        let inputs = match join {
            Join::Sum => size,
            Join::SideBySide => size + hidden,
        };
        Ok(Self {
            join,
            options,
            embedding: Embedding::new(init, embedding, vocabulary, size)?,
            input_layer: Linear::new(init, "input_layer", inputs, hidden)?,
            hidden_layer: Linear::new(init, "hidden_layer", hidden, hidden)?,
            output_layer: Linear::new(init, "output_layer", hidden, vocabulary)?,
        })
    }

    /// One character: `x` `[B, ..]`, `h` `[B, H]`.
    fn step(&self, g: &mut Graph, x: Var, h: Var) -> Result<Var> {
        let joined = match self.join {
            Join::Sum => add(g, h, x)?,
            Join::SideBySide => {
                let both = concat(g, &[h, x], -1)?;
                let input = self.input_layer.forward(g, both)?;
                relu(g, input)?
            }
        };
        let h = self.hidden_layer.forward(g, joined)?;
        tanh(g, h)
    }
}

impl LanguageModel for CharLoop {
    fn vocabulary(&self) -> usize {
        self.options.vocabulary
    }

    fn state(&self, device: &Device, batch: usize) -> Result<State> {
        State::zeros(device, &[("h", [1, batch, self.options.hidden])])
    }

    fn hidden(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Hidden> {
        let mut x = self.embedding.forward(g, tokens)?;
        let (steps, batch, size) = (g.shape(x)[0], g.shape(x)[1], self.options.hidden);
        if let Join::Sum = self.join {
            // The same for every step, so for the whole sequence at once.
            x = self.input_layer.forward(g, x)?;
            x = relu(g, x)?;
        }
        let start = match initial {
            InitialState::Carried(state) => state.get(g, "h")?,
            InitialState::Given(states) => states.h,
            _ => {
                let zero = g.device().zeros("h_0", &[batch, size], DType::F32)?;
                g.input(&zero)?
            }
        };
        let mut h = reshape(g, start, &[batch, size])?;
        let mut outputs = Vec::new();
        for x in unbind(g, x)? {
            h = self.step(g, x, h)?;
            outputs.push(h);
        }
        if let InitialState::Carried(state) = initial {
            state.set(g, "h", h)?;
        }
        let last = reshape(g, h, &[1, batch, size])?;
        let output = concat(g, &outputs, 0)?;
        let output = reshape(g, output, &[steps, batch, size])?;
        Ok(Hidden { output, last })
    }

    fn logits(&self, g: &mut Graph, hidden: Var) -> Result<Var> {
        self.output_layer.forward(g, hidden)
    }
}
