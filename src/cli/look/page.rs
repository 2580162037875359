//! The page: a template, what is to be shown as JSON, and the states.

use anyhow::Result;
use elman::nn::Cell;
use rayon::prelude::*;
use serde::Serialize;

use super::features::{self, Feature};
use super::{See, gates, quantized};
use crate::cli::model::Model;
use crate::cli::tokens::Tokens;

const TEMPLATE: &str = include_str!("page.html");
/// What the template leaves room for: style, data, script.
const PLACES: [&str; 3] = ["/* style */", "<!-- data -->", "/* script */"];
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The likeliest tokens that are kept of each place.
const LIKELIEST: usize = 5;

/// A gate below this is shut, one above that is open.
const SHUT: f32 = 0.1;
const OPEN: f32 = 0.9;

/// What the page's script reads, beside the states.
#[derive(Serialize)]
pub struct Page<'a> {
    /// Of this form of the data.
    version: u32,
    name: &'a str,
    model: String,
    /// characters, or bytes.
    unit: &'static str,
    /// Tokens of the whole text, and the first of them that is shown.
    total: usize,
    from: usize,
    hidden: usize,
    layers: usize,
    /// How each token is shown.
    vocabulary: Vec<String>,
    tokens: &'a [u32],
    /// Where several bytes are one character: the first, their number, the character.
    characters: Vec<(usize, usize, char)>,
    /// -log2 of the share that each token had, and its rank, from 1; nothing foretells a text's first token.
    bits: Vec<Option<f64>>,
    ranks: Vec<Option<usize>>,
    /// After each token, so many of the likeliest to come, and their shares in 1/10,000.
    most: usize,
    likeliest: Vec<u32>,
    shares: Vec<u32>,
    features: Vec<String>,
    /// So many of them, the first, have to be remembered.
    remembered: usize,
    states: Vec<States>,
    gates: Vec<Gate>,
}

/// One layer's h or c.
#[derive(Serialize)]
struct States {
    name: String,
    layer: usize,
    /// Of each unit, the value of a step.
    steps: Vec<f32>,
    /// The state's length at each token.
    norms: Vec<f64>,
    /// Of each unit, the share of its variance that each feature explains; below 0 where the unit falls as that rises.
    explained: Vec<Vec<f64>>,
    /// In an element of its own.
    #[serde(skip)]
    values: String,
}

/// How often a gate, or a state that has none, is at its bounds: the share of all places, of each unit.
#[derive(Serialize)]
struct Gate {
    name: &'static str,
    layer: usize,
    /// What it means to be so.
    below: &'static str,
    above: &'static str,
    low: Vec<f64>,
    high: Vec<f64>,
}

impl<'a> Page<'a> {
    pub fn new(model: &Model, name: &'a str, total: usize, from: usize, seen: &'a See) -> Result<Self> {
        let sizes = model.config.sizes;
        let (text, characters) = characters(&model.tokens, &seen.tokens);
        let Predictions { bits, ranks, most, likeliest, shares } = Predictions::of(seen, sizes.vocabulary);
        let features = features::of(&text, &bits);
        let (mut states, mut gates) = (Vec::new(), Vec::new());
        for layer in 0..sizes.num_layers {
            // h before c.
            for name in seen.states.keys().rev() {
                states.push(States::of(name, layer, sizes.hidden, &seen.layer(name, layer), &features));
            }
            gates.extend(Gate::of_layer(model, seen, layer)?);
        }
        Ok(Self {
            version: 1,
            name,
            model: model.describe(),
            unit: model.tokens.unit(),
            total,
            from,
            hidden: sizes.hidden,
            layers: sizes.num_layers,
            vocabulary: (0..sizes.vocabulary as u32).map(|token| label(&model.tokens, token)).collect(),
            tokens: &seen.tokens,
            characters,
            bits,
            ranks,
            most,
            likeliest,
            shares,
            remembered: features.iter().filter(|feature| feature.is_remembered()).count(),
            features: features.into_iter().map(|feature| feature.name).collect(),
            states,
            gates,
        })
    }

    /// The file.
    pub fn html(&self) -> Result<String> {
        // In JSON, < stands in strings alone.
        let json = serde_json::to_string(self)?.replace('<', "\\u003c");
        let mut data = format!("<script type=\"application/json\" id=\"data\">{json}</script>\n");
        for States { name, layer, values, .. } in &self.states {
            data += &format!("<script type=\"text/plain\" id=\"{name}{layer}\">{values}</script>\n");
        }
        let mut page = String::with_capacity(TEMPLATE.len() + STYLE.len() + SCRIPT.len() + data.len());
        let mut rest = TEMPLATE;
        for (place, content) in PLACES.into_iter().zip([STYLE, &data, SCRIPT]) {
            let (before, after) = rest.split_once(place).expect("a template with its places");
            page.extend([before, content]);
            rest = after;
        }
        page += rest;
        Ok(page)
    }
}

impl States {
    fn of(name: &str, layer: usize, hidden: usize, values: &[f32], features: &[Feature]) -> Self {
        let unit = |unit: usize| values.iter().skip(unit).step_by(hidden).copied().collect::<Vec<_>>();
        let units = (0..hidden).into_par_iter().map(|i| {
            let (unit, mut encoded) = (unit(i), String::new());
            let step = quantized::encode(&unit, &mut encoded);
            let explained = features.iter().map(|feature| rounded(feature.explains(&unit), 3)).collect::<Vec<_>>();
            (step, explained, encoded)
        });
        let (mut steps, mut explained, mut all) = (Vec::new(), Vec::new(), String::new());
        for (step, explains, encoded) in units.collect::<Vec<_>>() {
            steps.push(step);
            explained.push(explains);
            all += &encoded;
        }
        let norm = |row: &[f32]| row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let norms = values.chunks(hidden).map(|row| rounded(norm(row), 4)).collect();
        Self { name: name.into(), layer, steps, norms, explained, values: all }
    }
}

impl Gate {
    fn of_layer(model: &Model, seen: &See, layer: usize) -> Result<Vec<Self>> {
        let sizes = model.config.sizes;
        let of = |name, values: &[f32], [below, above]: [&'static str; 2], [least, most]: [f32; 2]| {
            let share = |holds: &dyn Fn(f32) -> bool| {
                let mut counts = vec![0; sizes.hidden];
                for row in values.chunks(sizes.hidden) {
                    counts.iter_mut().zip(row).for_each(|(count, &value)| *count += usize::from(holds(value)));
                }
                counts.iter().map(|&count| rounded(count as f64 / seen.tokens.len() as f64, 4)).collect()
            };
            let (low, high) = (share(&|value| value < least), share(&|value| value > most));
            Self { name, layer, below, above, low, high }
        };
        match sizes.cell {
            Cell::Gru | Cell::Lstm => {
                let values = gates::of_layer(model, seen, layer)?;
                let names = gates::names(sizes.cell).iter().zip(values);
                let gates = names.filter(|(name, _)| !gates::CANDIDATES.contains(name));
                Ok(gates.map(|(name, values)| of(name, &values, ["below 0.1", "above 0.9"], [SHUT, OPEN])).collect())
            }
            Cell::Relu => {
                let h = seen.layer("h", layer);
                let most = h.iter().fold(0f32, |most, &value| most.max(value));
                Ok(vec![of("h", &h, ["0", "above 0.9 of the layer's largest"], [f32::MIN_POSITIVE, OPEN * most])])
            }
            _ => Ok(vec![of("h", &seen.layer("h", layer), ["below −0.9", "above 0.9"], [-OPEN, OPEN])]),
        }
    }
}

/// What was thought likely at each place.
struct Predictions {
    bits: Vec<Option<f64>>,
    ranks: Vec<Option<usize>>,
    most: usize,
    likeliest: Vec<u32>,
    shares: Vec<u32>,
}

impl Predictions {
    fn of(seen: &See, vocabulary: usize) -> Self {
        let most = LIKELIEST.min(vocabulary);
        let mut all = Self { bits: vec![], ranks: vec![], most, likeliest: vec![], shares: vec![] };
        let before = seen.logits_before.iter().map(|logits| Some(logits.as_slice()));
        let before = before.chain(seen.logits_before.is_none().then_some(None));
        let rows = seen.logits.chunks(vocabulary);
        for (&token, logits) in seen.tokens.iter().zip(before.chain(rows.clone().map(Some))) {
            let logit = logits.map(|logits| logits[token as usize]);
            all.bits.push(logits.map(|logits| rounded(-log_share(logits, token) / std::f64::consts::LN_2, 3)));
            let likelier = |logits: &[f32]| logits.iter().filter(|&&other| Some(other) > logit).count();
            all.ranks.push(logits.map(|logits| 1 + likelier(logits)));
        }
        for logits in rows {
            let mut tokens: Vec<u32> = (0..vocabulary as u32).collect();
            tokens.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            tokens.truncate(most);
            all.shares.extend(tokens.iter().map(|&token| (1e4 * log_share(logits, token).exp()).round() as u32));
            all.likeliest.extend(tokens);
        }
        all
    }
}

/// The logarithm of a token's share.
fn log_share(logits: &[f32], token: u32) -> f64 {
    let most = logits.iter().fold(f32::MIN, |most, &logit| most.max(logit));
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    f64::from(logits[token as usize] - most) - sum.ln()
}

/// What is said in a page, in so many digits.
fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// A token by itself: its character, or two hexadecimal digits of a byte that is none.
fn label(tokens: &Tokens, token: u32) -> String {
    match tokens {
        Tokens::Bytes if token >= 128 => format!("{token:02X}"),
        _ => tokens.text(&[token]),
    }
}

/// The character that each token is or belongs to, and those that are several bytes: the first, their number, the character.
fn characters(tokens: &Tokens, text: &[u32]) -> (Vec<char>, Vec<(usize, usize, char)>) {
    let bytes = tokens.bytes(text);
    if !matches!(tokens, Tokens::Bytes) {
        return (String::from_utf8_lossy(&bytes).chars().collect(), Vec::new());
    }
    let (mut all, mut long) = (Vec::with_capacity(text.len()), Vec::new());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.len_utf8() > 1 {
                long.push((all.len(), c.len_utf8(), c));
            }
            all.extend(std::iter::repeat_n(c, c.len_utf8()));
        }
        all.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    (all, long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_one_character_are_known() {
        let bytes = "aé\u{1f600}".bytes().chain([0xff, b'b']).map(u32::from).collect::<Vec<_>>();
        let (all, long) = characters(&Tokens::Bytes, &bytes);
        assert_eq!(all.iter().collect::<String>(), "aéé\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{fffd}b");
        assert_eq!(long, [(1, 2, 'é'), (3, 4, '\u{1f600}')]);
        assert_eq!((label(&Tokens::Bytes, 0xff), label(&Tokens::Bytes, 97)), ("FF".into(), "a".into()));
    }

    #[test]
    fn shares_are_those_of_the_softmax() {
        let share = |token| log_share(&[1000.0, 1000.0, -1000.0], token).exp();
        assert_eq!((share(0), share(2)), (0.5, 0.0));
    }
}
