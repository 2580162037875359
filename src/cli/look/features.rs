//! What a reader would say of a place in a text, and how much of a unit that explains.

use std::collections::BTreeMap;

/// Letters and signs that are features by themselves: the most frequent ones.
const CHARACTERS: usize = 16;

/// What is the same but at fewer places than this is no feature of this text.
const LEAST: usize = 8;

/// What was read some time ago, and not just now.
const REMEMBERED: [&str; 7] = [
    "inside quotes",
    "inside brackets",
    "depth of braces",
    "indentation",
    "position in the line",
    "position in the sentence",
    "position in the paragraph",
];

/// A number for each place.
pub struct Feature {
    pub name: String,
    /// Less their mean, of length 1.
    values: Vec<f32>,
}

impl Feature {
    fn new(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        values.iter().for_each(|value| *counts.entry(value.to_bits()).or_default() += 1);
        if values.len() - counts.values().max()? < LEAST {
            return None;
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let norm = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>().sqrt();
        Some(Self { name: name.into(), values: values.iter().map(|value| ((value - mean) / norm) as f32).collect() })
    }

    /// Whether a network has to remember it.
    pub fn is_remembered(&self) -> bool {
        REMEMBERED.contains(&self.name.as_str())
    }

    /// The share of a unit's variance that it explains, r²; below 0 where the unit falls as it rises.
    pub fn explains(&self, unit: &[f32]) -> f64 {
        let mean = unit.iter().map(|&value| f64::from(value)).sum::<f64>() / unit.len() as f64;
        let (mut product, mut square) = (0.0, 0.0);
        for (&value, &feature) in unit.iter().zip(&self.values) {
            let value = f64::from(value) - mean;
            product += value * f64::from(feature);
            square += value * value;
        }
        // What hardly moves, moves by rounding.
        if square <= 1e-10 * unit.len() as f64 { 0.0 } else { product * product.abs() / square }
    }
}

/// Where one is in a text.
#[derive(Default)]
struct Place {
    line: usize,
    word: usize,
    sentence: usize,
    paragraph: usize,
    indentation: usize,
    is_quoted: bool,
    is_capitalized: bool,
    brackets: usize,
    braces: usize,
}

impl Place {
    /// Goes on to a character, that comes after another.
    fn read(&mut self, c: char, before: Option<char>) {
        if before == Some('\n') {
            (self.line, self.indentation) = (0, 0);
            if c == '\n' {
                *self = Self { braces: self.braces, ..Self::default() };
            }
        }
        if matches!(before, Some('.' | '!' | '?' | ';')) && c.is_whitespace() {
            self.sentence = 0;
        }
        self.line += 1;
        self.sentence += 1;
        self.paragraph += 1;
        if c.is_alphanumeric() || matches!(c, '\'' | '’') && self.word > 0 {
            self.is_capitalized = if self.word == 0 { c.is_uppercase() } else { self.is_capitalized };
            self.word += 1;
        } else {
            (self.word, self.is_capitalized) = (0, false);
        }
        if c.is_whitespace() && self.indentation + 1 == self.line {
            self.indentation += 1;
        }
        match c {
            '"' => self.is_quoted = !self.is_quoted,
            '“' | '«' | '„' => self.is_quoted = true,
            '”' | '»' => self.is_quoted = false,
            '(' | '[' => self.brackets += 1,
            ')' | ']' => self.brackets = self.brackets.saturating_sub(1),
            '{' => self.braces += 1,
            '}' => self.braces = self.braces.saturating_sub(1),
            _ => {}
        }
    }
}

/// What there is to say of this text, first what has to be remembered. `bits` is the surprise at each character.
pub fn of(text: &[char], bits: &[Option<f64>]) -> Vec<Feature> {
    let mut place = Place::default();
    let mut columns: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (i, &c) in text.iter().enumerate() {
        let next = text.get(i + 1).copied();
        place.read(c, i.checked_sub(1).map(|i| text[i]));
        let is = |holds: bool| f64::from(u8::from(holds));
        let is_vowel = matches!(c.to_ascii_lowercase(), 'a' | 'e' | 'i' | 'o' | 'u');
        let ends = place.word > 0 && next.is_some_and(|next| !next.is_alphanumeric() && !matches!(next, '\'' | '’'));
        for (name, value) in [
            ("inside quotes", is(place.is_quoted)),
            ("inside brackets", is(place.brackets > 0)),
            ("depth of braces", place.braces as f64),
            ("indentation", place.indentation as f64),
            ("position in the line", place.line as f64),
            ("position in the word", place.word as f64),
            ("position in the sentence", place.sentence as f64),
            ("position in the paragraph", place.paragraph as f64),
            ("inside a word", is(place.word > 0)),
            ("first letter of a word", is(place.word == 1)),
            ("last letter of a word", is(ends)),
            ("in a capitalised word", is(place.is_capitalized)),
            ("space", is(c.is_whitespace() && c != '\n')),
            ("line feed", is(c == '\n')),
            ("punctuation", is(c.is_ascii_punctuation() || matches!(c, '–' | '—' | '…' | '“' | '”' | '’'))),
            ("digit", is(c.is_numeric())),
            ("capital letter", is(c.is_uppercase())),
            ("vowel", is(is_vowel)),
            ("consonant", is(c.is_alphabetic() && !is_vowel)),
        ] {
            columns.entry(name).or_default().push(value);
        }
    }
    let mut features: Vec<_> = columns.into_iter().filter_map(|(name, values)| Feature::new(name, values)).collect();
    features.sort_by_key(|feature| !feature.is_remembered());
    features.extend(Feature::new("surprise", bits.iter().map(|bits| bits.unwrap_or(0.0))));
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for &c in text.iter().filter(|c| !c.is_whitespace() && !c.is_control()) {
        *counts.entry(c).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(c, count)| (std::cmp::Reverse(count), c));
    let characters = counts.iter().take(CHARACTERS).map(|&(c, _)| c);
    features.extend(characters.filter_map(|c| {
        Feature::new(format!("the character {c}"), text.iter().map(|&other| f64::from(u8::from(other == c))))
    }));
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str) -> Vec<Place> {
        let text: Vec<char> = text.chars().collect();
        let read = |upto: usize| {
            let mut place = Place::default();
            (0..=upto).for_each(|i| place.read(text[i], i.checked_sub(1).map(|i| text[i])));
            place
        };
        (0..text.len()).map(read).collect()
    }

    #[test]
    fn places_are_what_a_reader_says() {
        let places = places("  It's \"so\".\nHe (x) {\n\n\"a");
        let of = |get: fn(&Place) -> usize| places.iter().map(get).collect::<Vec<_>>();
        assert_eq!(of(|p| p.word), [0, 0, 1, 2, 3, 4, 0, 0, 1, 2, 0, 0, 0, 1, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(of(|p| p.is_quoted.into())[7..12], [1, 1, 1, 0, 0]);
        assert_eq!(of(|p| p.brackets)[16..19], [1, 1, 0]);
        assert_eq!(of(|p| p.indentation)[..4], [1, 2, 2, 2]);
        assert_eq!(of(|p| p.line)[11..15], [12, 13, 1, 2]);
        assert_eq!(of(|p| p.braces)[20..], [1, 1, 1, 1, 1]);
        assert_eq!(of(|p| p.is_capitalized.into())[2..7], [1, 1, 1, 1, 0]);
    }

    #[test]
    fn a_unit_that_is_a_feature_is_explained_by_it() {
        let text: Vec<char> = "She said \"now or never\" and he said \"never, never\". ".repeat(4).chars().collect();
        let features = of(&text, &vec![None; text.len()]);
        let mut is_quoted = false;
        let unit: Vec<f32> = text
            .iter()
            .map(|&c| {
                is_quoted ^= c == '"';
                if is_quoted { -0.7 } else { 0.2 }
            })
            .collect();
        let explained = |name: &str| features.iter().find(|feature| feature.name == name).unwrap().explains(&unit);
        assert!((explained("inside quotes") + 1.0).abs() < 1e-5);
        assert!(explained("vowel").abs() < 0.5);
        assert!(features[0].is_remembered() && features.is_sorted_by_key(|feature| !feature.is_remembered()));
        assert!(features.iter().all(|feature| feature.name != "digit" && feature.name != "surprise"));
        assert_eq!(features[0].explains(&vec![0.3; text.len()]), 0.0);
    }
}
