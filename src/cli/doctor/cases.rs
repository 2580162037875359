//! Small plans that have every kernel between them, in odd sizes, through the public API.

use elman::kernels::generate::{Layer, Network, Sizes, generate};
use elman::kernels::sample::Draw;
use elman::nn::functional::{
    self, InitialState, Reduction, RunOptions, absolute_error, accuracy, binary_cross_entropy_with_logits, concat,
    confusion, cross_entropy, mse_loss, nll_loss,
};
use elman::nn::{
    Activation, Cell, CharRnn, CharRnnOptions, Embedding, Init, LanguageModel, Linear, Recurrent, RnnOptions,
};
use elman::optim::{Adagrad, Adam, AdamW, Clip, NotFinite, Optimizer, RmsProp, Sgd};
use elman::text::{Corpus, Windows};
use elman::{
    Comparison, DType, Device, Evaluator, Generator, Graph, NO_TARGET, Precision, Recorder, Result, Tensor, Trainer,
    Var, rng,
};

type Compare = dyn Fn(&Device) -> Result<Vec<Comparison>>;

/// A plan, or several, of which every command is compared with its twin.
pub struct Case {
    pub name: String,
    compare: Box<Compare>,
}

impl Case {
    fn new(name: impl Into<String>, compare: impl Fn(&Device) -> Result<Vec<Comparison>> + 'static) -> Self {
        Self { name: name.into(), compare: Box::new(compare) }
    }

    /// # Errors
    /// The driver refuses a kernel, or the device was lost.
    pub fn compare(&self, device: &Device) -> Result<Vec<Comparison>> {
        (self.compare)(device)
    }
}

/// How recurrences are planned.
#[derive(Clone, Copy, Debug)]
struct Planned {
    /// As on a GPU: sums in slices, small tiles.
    wide: bool,
    /// A dispatch for each step.
    stepwise: bool,
    precision: Precision,
}

/// All of them; those of f16 if the device has it.
pub fn cases(f16: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let f32 = Precision::F32;
    for &cell in Cell::ALL {
        let narrow = Planned { wide: false, stepwise: false, precision: f32 };
        for planned in [narrow, Planned { wide: true, stepwise: true, ..narrow }] {
            let name = format!("{cell:?}, {}", if planned.stepwise { "step by step" } else { "in one dispatch" });
            cases.push(Case::new(name, move |device| tagger(device, cell, planned)));
        }
        let wide = Planned { wide: true, ..narrow };
        cases.push(Case::new(format!("{cell:?}, in slices"), move |device| sequence(device, cell, wide)));
        let halves = Planned { precision: Precision::F16, ..wide };
        if f16 {
            cases.push(Case::new(format!("{cell:?}, in f16"), move |device| sequence(device, cell, halves)));
        }
        cases.push(Case::new(format!("{cell:?}, generation"), move |device| generation(device, cell)));
    }
    for (name, optimizer) in optimizers() {
        cases.push(Case::new(name, move |device| update(device, &optimizer)));
    }
    for stepwise in [false, true] {
        let path = if stepwise { "step by step" } else { "in one dispatch" };
        cases.push(Case::new(format!("variants of cells, {path}"), move |device| variants(device, stepwise)));
    }
    cases.push(Case::new("a text's windows", windows));
    cases.push(Case::new("values and losses of elements", elements));
    cases.push(Case::new("losses of classes", classes));
    cases
}

/// Irregular values that depend on the name alone, from -1 to 1.
pub fn random(device: &Device, name: &str, shape: &[usize]) -> Result<Tensor> {
    let seed = name.bytes().fold(7, |seed, byte| 31 * seed % 1_000_003 + u64::from(byte));
    device.upload(name, shape, &rng::manual_seed(seed).uniform(shape.iter().product(), -1.0, 1.0))
}

/// Irregular numbers below a bound.
fn irregular(n: usize, below: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i / 3 + 5 * i) % below) as u32).collect()
}

/// Two runs of a training step.
fn train(
    parameters: &elman::nn::Parameters,
    optimizer: impl Into<Optimizer>,
    build: impl FnOnce(&mut Graph) -> Result<functional::Loss>,
) -> Result<Vec<Comparison>> {
    let trainer = Trainer::new(parameters, optimizer, build)?;
    let mut all = trainer.plan().compare_with_twins()?;
    all.extend(trainer.plan().compare_with_twins()?);
    Ok(all)
}

/// Two layers in both directions, with lengths and dropout, and a weighted loss on every step.
fn tagger(device: &Device, cell: Cell, planned: Planned) -> Result<Vec<Comparison>> {
    const WORDS: usize = 37;
    const TAGS: usize = 5;
    let (steps, batch, hidden) = (9, 5, 19);
    let mut init = Init::new(rng::manual_seed(1));
    let table = Embedding::new(&mut init, "embedding", WORDS, 11)?;
    let options = RnnOptions::new(11, hidden).num_layers(2).dropout(0.25).bidirectional(true);
    let rnn = Recurrent::new(&mut init, "rnn", cell, options)?;
    let output = Linear::new(&mut init, "output", 2 * hidden, TAGS)?;
    let end = Linear::new(&mut init, "end", hidden, 3)?;
    let parameters = init.upload(device)?;
    let words = device.tokens("words", &[steps, batch], WORDS)?;
    words.write_u32(&irregular(words.len(), WORDS))?;
    let tags = device.targets("tags", &[steps, batch], TAGS)?;
    tags.write_u32(&irregular(tags.len(), TAGS))?;
    let lengths = device.lengths("lengths", batch, steps)?;
    lengths.write_u32(&irregular(batch, steps).iter().map(|length| length + 1).collect::<Vec<_>>())?;
    let weights = device.upload("weights", &[batch], &rng::manual_seed(2).rand(batch))?;
    let wanted = random(device, "wanted", &[4, batch, 3])?;
    train(&parameters, Adam::new(1e-2), |g| {
        plan_as(g, planned)?;
        let x = table.forward(g, &words)?;
        let (outputs, ends) = rnn.forward_with_lengths(g, x, InitialState::Zero, &lengths)?;
        let logits = output.forward(g, outputs)?;
        let of_words = cross_entropy(g, logits, &tags, Reduction::Mean.ignoring(2).weighted(&weights).up_to(&lengths))?;
        let end = end.forward(g, ends.h)?;
        let of_ends = mse_loss(g, end, &wanted, Reduction::Mean)?;
        Ok(of_words + 0.5 * of_ends)
    })
}

fn plan_as(g: &mut Graph, planned: Planned) -> Result<()> {
    g.set_wide(planned.wide);
    g.set_stepwise(planned.stepwise);
    g.set_precision(planned.precision)
}

/// A recurrence that is large enough for slices of its sums, forward and backward.
fn sequence(device: &Device, cell: Cell, planned: Planned) -> Result<Vec<Comparison>> {
    let (steps, batch, inputs, hidden) = (3, 9, 21, 131);
    let mut init = Init::new(rng::manual_seed(3));
    let rnn = Recurrent::new(&mut init, "rnn", cell, RnnOptions::new(inputs, hidden))?;
    let parameters = init.upload(device)?;
    let (x, d) = (random(device, "x", &[steps, batch, inputs])?, random(device, "d", &[steps, batch, hidden])?);
    let mut g = Graph::new(&parameters);
    plan_as(&mut g, planned)?;
    let x = g.input_with_gradient(&x)?;
    let (output, _) = rnn.forward(&mut g, x, InitialState::Zero)?;
    g.backward(&[], &[(output, &d)])?;
    g.finish()?.compare_with_twins()
}

/// An LSTM with peepholes and coupled gates of other functions, and a GRU that resets before its product, on streams that restart.
fn variants(device: &Device, stepwise: bool) -> Result<Vec<Comparison>> {
    let (steps, batch, inputs, hidden) = (7, 5, 6, 19);
    let mut init = Init::new(rng::manual_seed(4));
    let options = RnnOptions::new(inputs, hidden).bidirectional(true);
    let gates = [
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::Softsign,
        Activation::Tanh,
    ];
    let of_lstm = options.peepholes(true).coupled(true).activations(&gates).clip(1.5);
    let lstm = Recurrent::new(&mut init, "lstm", Cell::Lstm, of_lstm)?;
    let gru = Recurrent::new(&mut init, "gru", Cell::Gru, options.reset_after(false))?;
    let parameters = init.upload(device)?;
    let marks: Vec<_> = irregular(steps * batch, 4).into_iter().map(|i| u32::from(i == 1)).collect();
    let marks = device.upload_u32("marks", &[steps, batch], &marks)?;
    let lengths = device.lengths("lengths", batch, steps)?;
    lengths.write_u32(&[7, 3, 5, 1, 6])?;
    let (x, wanted) =
        (random(device, "x", &[steps, batch, inputs])?, random(device, "wanted", &[steps, batch, 2 * hidden])?);
    train(&parameters, Sgd::new(0.1), |g| {
        g.set_stepwise(stepwise);
        let x = g.input(&x)?;
        let run = RunOptions::new().lengths(&lengths).resets(&marks);
        let (of_lstm, _) = lstm.forward_with(g, x, InitialState::Zero, run)?;
        let (of_gru, _) = gru.forward_with(g, x, InitialState::Zero, run)?;
        let both = functional::add(g, of_lstm, of_gru)?;
        mse_loss(g, both, &wanted, Reduction::Mean)
    })
}

/// A character network's tokens: in a chain of dispatches, and many in one.
fn generation(device: &Device, cell: Cell) -> Result<Vec<Comparison>> {
    const LANES: usize = 3;
    let sizes = Sizes { cell, layers: 2, vocabulary: 67, hidden: 21 };
    let mut init = Init::new(rng::manual_seed(9));
    let options = CharRnnOptions::new(sizes.vocabulary, 5, sizes.hidden).cell(cell).num_layers(sizes.layers);
    let model = CharRnn::new(&mut init, options)?;
    let parameters = init.upload(device)?;
    // Loud enough for texts that differ.
    for (_, tensor) in parameters.iter() {
        tensor.write(&tensor.to_vec()?.iter().map(|w| 3.0 * w).collect::<Vec<_>>())?;
    }
    let mut generator = Generator::new(&model, &parameters, LANES)?;
    generator.prime(&[10, 7])?;
    generator.generate(1, |_| true)?;
    let mut all = generator.plan().compare_with_twins()?;

    let mut r = Recorder::new(device);
    let weights = network(&parameters, sizes)?.pack(&mut r)?;
    let tokens = device.tokens("tokens", &[1, LANES], sizes.vocabulary)?;
    // Greedy, drawn, and drawn from a bold choice.
    let shape = [[0.0, 1.0, 0.0, 1.0], [0.9, 1.0, 0.0, 1.3], [1.1, 0.8, 0.05, 1.1]];
    let draw = Draw {
        shape: &device.upload("shape of the draw", &[LANES, 4], &shape.concat())?,
        control: &device.upload_u32("control", &[LANES, 6], &[42, 1, 6, NO_TARGET, 2, 4].repeat(LANES))?,
        history: &device.zeros("history", &[1 + sizes.vocabulary, LANES], DType::U32)?,
        tokens: &tokens,
        ring: &device.zeros("ring", &[64, LANES], DType::U32)?,
    };
    let state = |name| random(device, name, &[sizes.layers, LANES, sizes.hidden]);
    let states = ["h", "c"][..cell.states()].iter().map(|name| state(name)).collect::<Result<Vec<_>>>()?;
    generate(&mut r, sizes, &weights, draw, (&states[0], states.get(1)), 9)?;
    // What a network of many lanes draws by.
    let logits = random(device, "logits", &[LANES, sizes.vocabulary])?;
    elman::kernels::sample::sample(&mut r, &logits, draw)?;
    all.extend(r.finish()?.compare_with_twins()?);
    Ok(all)
}

/// The parameters of a [`CharRnn`], as the kernel of many tokens takes them.
fn network(parameters: &elman::nn::Parameters, sizes: Sizes) -> Result<Network> {
    let get = |name: &str| parameters.get(name).expect("a parameter of this name");
    let layer = |i: usize| {
        let get = |name: &str| get(&format!("rnn.{name}_l{i}"));
        let [weight_ih, weight_hh, bias_ih, bias_hh] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(get);
        Layer { weight_ih, weight_hh, bias_ih, bias_hh }
    };
    Ok(Network {
        cell: sizes.cell,
        embedding: get("embedding_layer.weight"),
        layers: (0..sizes.layers).map(layer).collect(),
        weight: get("output_layer.weight"),
        bias: get("output_layer.bias"),
    })
}

fn optimizers() -> Vec<(&'static str, Optimizer)> {
    let sgd = Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01, ..Sgd::new(0.1) };
    let rms_prop = RmsProp { momentum: 0.5, centered: true, ..RmsProp::new(0.01) };
    vec![
        ("Adam, averaged", Optimizer::from(Adam::new(0.01)).average(0.9)),
        ("AdamW, the gradient's norm clipped", AdamW::new(0.01).clip(Clip::Norm(0.05))),
        ("Adagrad, gradients clipped", Adagrad::new(0.1).clip(Clip::Value(0.01))),
        ("RMSprop, bad updates left out", rms_prop.not_finite(NotFinite::Skip)),
        ("SGD, gradients of two batches added", sgd.accumulate(2)),
    ]
}

/// A linear layer of 1,037 weights.
fn update(device: &Device, optimizer: &Optimizer) -> Result<Vec<Comparison>> {
    let mut init = Init::new(rng::manual_seed(4));
    let layer = Linear::new(&mut init, "layer", 60, 17)?;
    let parameters = init.upload(device)?;
    let (x, y) = (random(device, "x", &[23, 60])?, random(device, "y", &[23, 17])?);
    train(&parameters, optimizer.clone(), |g| {
        let x = g.input(&x)?;
        let output = layer.forward(g, x)?;
        mse_loss(g, output, &y, Reduction::Mean)
    })
}

/// Windows that are cut on the device, with a carried state.
fn windows(device: &Device) -> Result<Vec<Comparison>> {
    let mut init = Init::new(rng::manual_seed(5));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(41, 6, 13))?;
    let parameters = init.upload(device)?;
    let corpus = Corpus::new(device, &irregular(500, 41), 41)?;
    let windows = Windows::streams(&corpus, 0..500, 3, 11)?;
    let state = model.state(device, 3)?;
    train(&parameters, Adam::new(1e-3), |g| {
        let batch = windows.batch_of_every_step(g, 3)?;
        let logits = model.forward_every_step(g, &batch.tokens, InitialState::Carried(&state))?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    })
}

/// What acts on each element, and moves elements.
fn elements(device: &Device) -> Result<Vec<Comparison>> {
    let shape = [5, 7, 13];
    let mut init = Init::new(rng::manual_seed(6));
    let table = Embedding::new(&mut init, "embedding", 29, 13)?;
    let layer = Linear::without_bias(&mut init, "layer", 26, 13)?;
    let parameters = init.upload(device)?;
    let (x, targets) = (random(device, "x", &shape)?, random(device, "targets", &[7, 5, 13])?);
    let labels = device.upload("labels", &[7, 5, 13], &rng::manual_seed(8).rand(7 * 5 * 13))?;
    let tokens = device.tokens("tokens", &shape[..2], 29)?;
    tokens.write_u32(&irregular(tokens.len(), 29))?;
    let lengths = device.lengths("lengths", 7, 5)?;
    lengths.write_u32(&[1, 2, 3, 4, 5, 5, 2])?;
    train(&parameters, Sgd::new(0.1), |g| {
        let rows = table.forward(g, &tokens)?;
        let x = g.input(&x)?;
        let both = concat(g, &[rows, x], -1)?;
        let y = layer.forward(g, both)?;
        let y = functional::reverse(g, y, &lengths)?;
        let gate = functional::sigmoid(g, y)?;
        let value = functional::tanh(g, y)?;
        let positive = functional::relu(g, y)?;
        let gated = functional::mul(g, gate, value)?;
        let sum = functional::add(g, gated, positive)?;
        let dropped = functional::dropout(g, sum, 0.3, 5)?;
        let keys = functional::transpose(g, dropped, -1, -2)?;
        let scores = functional::matmul(g, dropped, keys)?;
        let shares = functional::softmax(g, scores)?;
        let attended = functional::matmul(g, shares, dropped)?;
        let mean = functional::mean_axis(g, attended, 0)?;
        let bent = functional::map(g, [attended, mean], |[x, mean]| (x - mean).gelu() + x.softplus().log())?;
        let turned: Var = functional::transpose(g, bent, 0, 1)?;
        let squares = mse_loss(g, turned, &targets, Reduction::Sum)?;
        let distances = absolute_error(g, turned, &targets, Reduction::Mean)?;
        let of_labels = binary_cross_entropy_with_logits(g, turned, &labels, Reduction::Mean)?;
        Ok(squares + 0.3 * distances + 0.7 * of_labels)
    })
}

/// Losses of classes, the share that is right, and what is taken for what.
fn classes(device: &Device) -> Result<Vec<Comparison>> {
    const CLASSES: usize = 131;
    // More than each workgroup counts by itself.
    let rows = 1101;
    let mut init = Init::new(rng::manual_seed(7));
    let layer = Linear::new(&mut init, "layer", 9, CLASSES)?;
    let parameters = init.upload(device)?;
    let x = random(device, "x", &[rows, 9])?;
    let targets = device.targets("targets", &[rows], CLASSES)?;
    let mut wanted = irregular(rows, CLASSES);
    wanted[rows - 1] = NO_TARGET;
    targets.write_u32(&wanted)?;
    let counts = device.zeros("confusion", &[CLASSES, CLASSES], DType::U32)?;
    let evaluator = Evaluator::new(&parameters, |g| {
        let x = g.input(&x)?;
        let logits = layer.forward(g, x)?;
        confusion(g, logits, &targets, &counts)?;
        accuracy(g, logits, &targets, Reduction::Mean)
    })?;
    let mut all = evaluator.plan().compare_with_twins()?;
    let of_classes = device.upload("weights of classes", &[CLASSES], &rng::manual_seed(9).rand(CLASSES))?;
    all.extend(train(&parameters, Adam::new(1e-2), |g| {
        let x = g.input(&x)?;
        let logits = layer.forward(g, x)?;
        let likely = functional::log_softmax(g, logits)?;
        let of_likely = nll_loss(g, likely, &targets, Reduction::Mean.class_weights(&of_classes))?;
        let plain = cross_entropy(g, logits, &targets, Reduction::Mean)?;
        let smooth = Reduction::Mean.class_weights(&of_classes).label_smoothing(0.1);
        Ok(of_likely + 0.5 * plain + 0.5 * cross_entropy(g, logits, &targets, smooth)?)
    })?);
    Ok(all)
}
