//! A text that is written with a model: what is typed, and what the model makes of it, at the cursor. Knows no terminal.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;
use elman::generate::Sampling;
use elman::nn::{Cell, CharRnnOptions, LanguageModel, Parameters};
use elman::{Generator, Reader};

use crate::cli::tokens::Tokens;

/// So many tokens are named as the likeliest.
pub const LIKELIEST: usize = 5;

/// Nothing is suggested before nothing was typed for so long.
const QUIET: Duration = Duration::from_millis(50);

/// A piece of work takes about so long, so that keys do not wait.
const PIECE: Duration = Duration::from_millis(15);

/// So many tokens are read at once, whatever is being typed.
const FEW: usize = 64;

/// Bytes on the device for what is known after each of the latest tokens.
const KEPT_BYTES: usize = 32 << 20;

/// So many unknown characters are named.
const NAMED: usize = 5;

/// How the model takes part.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub sampling: Sampling,
    /// Tokens of a suggestion.
    pub suggest: usize,
    /// Characters a second that the model writes by itself.
    pub pace: usize,
    /// The model reads at least so many tokens before the cursor, or all.
    pub context: usize,
}

/// A text, a cursor in it, and a model that reads up to there.
pub struct Editor {
    pub tokens: Tokens,
    text: Vec<u32>,
    cursor: usize,
    done: Vec<Edit>,
    undone: Vec<Edit>,
    /// Whether the last edit may grow.
    grows: bool,
    /// How many edits were done when the text was saved; None if that cannot be reached any more.
    saved: Option<usize>,
    reading: Reading,
    generator: Generator,
    settings: Settings,
    suggestion: Suggestion,
    /// When the model writes its next tokens by itself.
    writes: Option<Writing>,
    /// When the user did something last.
    touched: Instant,
}

/// What was replaced by what.
#[derive(Clone, Debug)]
struct Edit {
    at: usize,
    removed: Vec<u32>,
    inserted: Vec<u32>,
    /// Where the cursor was.
    cursor: usize,
}

/// What the model thinks comes at the cursor.
#[derive(Default)]
struct Suggestion {
    tokens: Vec<u32>,
    state: Drawing,
    /// Which of the suggestions it is.
    draw: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Drawing {
    #[default]
    Wanted,
    /// So many tokens are still to be drawn.
    Goes(usize),
    Done,
}

struct Writing {
    /// Whether the generator is where the text is.
    goes: bool,
    due: Instant,
}

/// How many tokens take about as long as a [`PIECE`].
struct Pace(usize);

impl Pace {
    fn learn(&mut self, count: usize, start: Instant) {
        let took = start.elapsed();
        if took > 2 * PIECE {
            self.0 = (self.0 / 2).max(1);
        } else if took < PIECE / 2 && count == self.0 {
            self.0 = (2 * self.0).min(64);
        }
    }
}

/// The reader, and what it made of the text.
struct Reading {
    reader: Reader,
    /// What is read where there is no text before the cursor.
    lead: Vec<u32>,
    /// Where in the text the reader began.
    start: usize,
    context: usize,
    /// The reader can go back by so many tokens from the most that it had read.
    kept: usize,
    most: usize,
    /// The surprise of each token read; NaN where nothing was before it.
    bits: Vec<f32>,
    logits: Vec<f32>,
    likeliest: Vec<(u32, f32)>,
    never: Option<u32>,
    pace: Pace,
}

impl Reading {
    /// What is to be read for this place in a text.
    fn wanted<'a>(&'a self, text: &'a [u32], cursor: usize) -> &'a [u32] {
        match self.start {
            _ if cursor == 0 => &self.lead,
            // A start is kept while it is neither too near nor too far.
            start if start == 0 && cursor <= 2 * self.context => &text[..cursor],
            start if start > 0 && cursor >= start + self.context / 2 && cursor <= start + 2 * self.context => {
                &text[start..cursor]
            }
            _ => &text[cursor.saturating_sub(self.context)..cursor],
        }
    }

    /// How many tokens are still to be read, of those that begin like what was read.
    fn missing(&self, wanted: &[u32]) -> usize {
        let read = self.reader.text();
        let common = common(read, wanted);
        if common < read.len() && common + self.kept < self.most {
            return wanted.len().max(1);
        }
        // Going back is work too, if little.
        (wanted.len() - common).max(usize::from(common < read.len()))
    }

    /// Reads a piece of what is missing.
    fn advance(&mut self, text: &[u32], cursor: usize) -> Result<()> {
        let wanted = self.wanted(text, cursor).to_vec();
        self.start = if cursor == 0 { 0 } else { cursor - wanted.len() };
        let common = common(self.reader.text(), &wanted);
        if common < self.reader.text().len() {
            let to = if common + self.kept < self.most { 0 } else { common };
            self.reader.rewind(to)?;
            self.bits.truncate(to);
            self.logits = if to > 0 { self.reader.logits()? } else { Vec::new() };
            if to == 0 {
                self.most = 0;
            }
        }
        let rest = &wanted[self.reader.text().len()..];
        let now = &rest[..rest.len().min(self.pace.0)];
        if !now.is_empty() {
            let start = Instant::now();
            let logits = self.reader.read(now)?;
            self.pace.learn(now.len(), start);
            self.most = self.most.max(self.reader.text().len());
            let rows = logits.chunks(logits.len() / now.len());
            for (&token, after) in now.iter().zip(rows) {
                let before = std::mem::replace(&mut self.logits, after.to_vec());
                let surprise = |logits: &[f32]| -log_share(logits, token) / std::f32::consts::LN_2;
                self.bits.push(if before.is_empty() { f32::NAN } else { surprise(&before) });
            }
        }
        self.likeliest = likeliest(&self.logits, self.never);
        Ok(())
    }
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn log_share(logits: &[f32], token: u32) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
    logits[token as usize] - most - sum.ln()
}

/// The tokens of the largest logits, each with its share.
pub fn likeliest(logits: &[f32], never: Option<u32>) -> Vec<(u32, f32)> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).filter(|&token| Some(token) != never).collect();
    tokens.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    tokens.iter().take(LIKELIEST).map(|&token| (token, log_share(logits, token).exp())).collect()
}

impl Editor {
    pub fn new(
        model: &dyn LanguageModel,
        sizes: &CharRnnOptions,
        parameters: &Parameters,
        tokens: Tokens,
        text: Vec<u32>,
        settings: Settings,
    ) -> Result<Self> {
        let states = sizes.num_layers * sizes.hidden * if sizes.cell == Cell::Lstm { 2 } else { 1 };
        let kept = (KEPT_BYTES / (4 * (states + sizes.vocabulary))).clamp(256, 8192);
        let mut generator = Generator::new(model, parameters, 1)?;
        generator.set_sampling(settings.sampling)?;
        let reading = Reading {
            reader: Reader::new(model, parameters, kept)?,
            lead: crate::cli::sample::first(&tokens),
            start: 0,
            context: settings.context,
            kept,
            most: 0,
            bits: Vec::new(),
            logits: Vec::new(),
            likeliest: Vec::new(),
            never: settings.sampling.never,
            pace: Pace(8),
        };
        Ok(Self {
            tokens,
            text,
            cursor: 0,
            done: Vec::new(),
            undone: Vec::new(),
            grows: false,
            saved: Some(0),
            reading,
            generator,
            settings,
            suggestion: Suggestion::default(),
            writes: None,
            touched: Instant::now(),
        })
    }

    pub fn text(&self) -> &[u32] {
        &self.text
    }

    pub fn cursor(&self) -> usize {
        self.cursor
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the model suggests at the cursor.
    pub fn suggestion(&self) -> &[u32] {
        &self.suggestion.tokens
    }

    /// Whether the model writes by itself.
    pub fn writes(&self) -> bool {
        self.writes.is_some()
    }

    /// The likeliest tokens at the cursor with their shares, once the model has read up to there.
    pub fn likeliest(&self) -> Option<&[(u32, f32)]> {
        (self.missing() == 0).then_some(&self.reading.likeliest)
    }

    /// How many tokens before the cursor the model has yet to read.
    pub fn missing(&self) -> usize {
        self.reading.missing(self.reading.wanted(&self.text, self.cursor))
    }

    /// The surprise of the tokens before the cursor that were read, in bits.
    pub fn bits(&self) -> &[f32] {
        let read = common(self.reading.reader.text(), self.reading.wanted(&self.text, self.cursor));
        if self.cursor == 0 { &[] } else { &self.reading.bits[..read] }
    }

    pub fn is_changed(&self) -> bool {
        self.saved != Some(self.done.len())
    }

    pub fn set_saved(&mut self) {
        self.saved = Some(self.done.len());
        self.grows = false;
    }

    /// The text is not that of its file.
    pub fn set_changed(&mut self) {
        self.saved = None;
    }

    /// What the model has read.
    #[cfg(test)]
    pub fn read(&self) -> &[u32] {
        self.reading.reader.text()
    }

    /// Goes back by so many tokens at most without reading again.
    #[cfg(test)]
    pub fn keep_at_most(&mut self, kept: usize) {
        self.reading.kept = self.reading.kept.min(kept);
    }

    // What the user does.

    /// Puts text at the cursor. Says which characters of it the model does not know: they are left out.
    pub fn insert(&mut self, text: &str) -> Option<String> {
        let unknown: Vec<char> = match &self.tokens {
            Tokens::Bytes => Vec::new(),
            Tokens::Characters(vocabulary) => text.chars().filter(|&c| vocabulary.token(c).is_none()).collect(),
        };
        self.put(self.tokens.known(text.as_bytes()), text.chars().nth(1).is_none());
        let mut named: Vec<String> = Vec::new();
        for name in unknown.iter().map(|c| format!("{c:?}")) {
            if named.len() < NAMED && !named.contains(&name) {
                named.push(name);
            }
        }
        let named = named.join(", ");
        match unknown.len() {
            0 => None,
            _ if text.chars().nth(1).is_none() => Some(format!("the model does not know {named}")),
            count => Some(format!("left out, for the model does not know them: {count} characters, {named}")),
        }
    }

    /// Takes one of the likeliest tokens.
    pub fn take_likely(&mut self, place: usize) {
        if let Some(&(token, _)) = self.likeliest().and_then(|likeliest| likeliest.get(place)) {
            self.put(vec![token], true);
        }
    }

    /// Takes the suggestion.
    pub fn take(&mut self) {
        self.put(self.suggestion.tokens.clone(), false);
    }

    /// Takes one word of the suggestion, with what is before it.
    pub fn take_word(&mut self) {
        let mut count = 0;
        let mut is_in_word = false;
        for (character, tokens) in characters(&self.tokens, &self.suggestion.tokens) {
            if is_in_word && character.is_whitespace() {
                break;
            }
            is_in_word |= !character.is_whitespace();
            count += tokens;
        }
        self.put(self.suggestion.tokens[..count].to_vec(), false);
    }

    /// Draws another suggestion.
    pub fn another(&mut self) {
        self.suggestion.draw = self.suggestion.draw.wrapping_add(1);
        self.forget_suggestion();
        // It was asked for.
        self.touched = self.touched.checked_sub(QUIET).unwrap_or(self.touched);
    }

    /// Suggests nothing more here.
    pub fn dismiss(&mut self) {
        self.suggestion.tokens.clear();
        self.suggestion.state = Drawing::Done;
    }

    /// Lets the model write until [`Self::stop`].
    pub fn write_on(&mut self) {
        self.touch();
        self.grows = false;
        self.suggestion.tokens.clear();
        self.writes = Some(Writing { goes: false, due: Instant::now() });
    }

    /// The user writes again.
    pub fn stop(&mut self) {
        if self.writes.take().is_some() {
            self.touch();
            self.grows = false;
            self.forget_suggestion();
        }
    }

    /// Removes the character before the cursor.
    pub fn backspace(&mut self) {
        self.remove(self.before(self.cursor)..self.cursor);
    }

    /// Removes the character after the cursor.
    pub fn delete(&mut self) {
        self.remove(self.cursor..self.after(self.cursor));
    }

    /// Removes the word before the cursor.
    pub fn delete_word(&mut self) {
        let start = self.word_before();
        self.grows = false;
        self.remove(start..self.cursor);
        self.grows = false;
    }

    pub fn undo(&mut self) -> bool {
        let Some(edit) = self.done.pop() else { return false };
        self.text.splice(edit.at..edit.at + edit.inserted.len(), edit.removed.iter().copied());
        self.cursor = edit.cursor;
        self.undone.push(edit);
        self.moved();
        true
    }

    pub fn redo(&mut self) -> bool {
        let Some(edit) = self.undone.pop() else { return false };
        self.text.splice(edit.at..edit.at + edit.removed.len(), edit.inserted.iter().copied());
        self.cursor = edit.at + edit.inserted.len();
        self.done.push(edit);
        self.moved();
        true
    }

    pub fn move_to(&mut self, to: usize) {
        if to != self.cursor {
            self.cursor = to.min(self.text.len());
            self.moved();
        }
    }

    /// Where the character before a place begins.
    pub fn before(&self, at: usize) -> usize {
        let tokens = characters(&self.tokens, &self.text[at.saturating_sub(4)..at]);
        at - tokens.last().map_or(0, |&(_, tokens)| tokens)
    }

    /// Where the character after a place ends.
    pub fn after(&self, at: usize) -> usize {
        let tokens = characters(&self.tokens, &self.text[at..self.text.len().min(at + 4)]);
        at + tokens.first().map_or(0, |&(_, tokens)| tokens)
    }

    /// Where the word before the cursor begins.
    pub fn word_before(&self) -> usize {
        let mut at = self.cursor;
        while at > 0 && self.is_space(self.before(at)) {
            at = self.before(at);
        }
        while at > 0 && !self.is_space(self.before(at)) {
            at = self.before(at);
        }
        at
    }

    /// Where the word after the cursor ends.
    pub fn word_after(&self) -> usize {
        let mut at = self.cursor;
        while at < self.text.len() && self.is_space(at) {
            at = self.after(at);
        }
        while at < self.text.len() && !self.is_space(at) {
            at = self.after(at);
        }
        at
    }

    /// Whether the character at a place is white space.
    fn is_space(&self, at: usize) -> bool {
        let tokens = &self.text[at..self.after(at)];
        characters(&self.tokens, tokens).iter().all(|(c, _)| c.is_whitespace())
    }

    /// Makes the draws bolder, or less so.
    pub fn set_temperature(&mut self, temperature: f32) -> Result<()> {
        self.settings.sampling.temperature = temperature;
        self.generator.set_sampling(self.sampling())?;
        self.forget_suggestion();
        Ok(())
    }

    fn sampling(&self) -> Sampling {
        let Sampling { seed, .. } = self.settings.sampling;
        Sampling { seed: seed.wrapping_add(self.suggestion.draw), ..self.settings.sampling }
    }

    fn touch(&mut self) {
        self.touched = Instant::now();
    }

    /// After the cursor has moved, or the text changed by more than what is put at the cursor.
    fn moved(&mut self) {
        self.touch();
        self.grows = false;
        self.forget_suggestion();
    }

    fn forget_suggestion(&mut self) {
        self.suggestion.tokens.clear();
        self.suggestion.state = Drawing::Wanted;
    }

    fn put(&mut self, tokens: Vec<u32>, is_typed: bool) {
        if tokens.is_empty() {
            return;
        }
        self.touch();
        let is_suggested = self.suggestion.tokens.starts_with(&tokens);
        // One step of undo for each word that is typed.
        let begins_word = self.cursor > 0
            && self.is_space(self.before(self.cursor))
            && characters(&self.tokens, &tokens).first().is_some_and(|(c, _)| !c.is_whitespace());
        let grows = self.grows && (is_typed && !begins_word || self.writes.is_some());
        let (at, count) = (self.cursor, tokens.len());
        match self.done.last_mut().filter(|last| grows && last.at + last.inserted.len() == at) {
            Some(last) => {
                last.inserted.extend(&tokens);
                self.text.splice(at..at, tokens);
                self.undone.clear();
            }
            None => self.edit(Edit { at, removed: Vec::new(), inserted: tokens, cursor: at }),
        }
        self.cursor = at + count;
        self.grows = is_typed || self.writes.is_some();
        if is_suggested {
            self.suggestion.tokens.drain(..count);
        }
        if !is_suggested || self.suggestion.tokens.is_empty() {
            self.forget_suggestion();
        }
    }

    fn remove(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let (grows, cursor) = (self.grows, self.cursor);
        self.moved();
        let removed = self.text[range.clone()].to_vec();
        match self.done.last_mut().filter(|last| grows && last.inserted.is_empty() && last.at == range.end) {
            Some(last) => {
                last.at = range.start;
                last.removed.splice(0..0, removed);
                self.text.drain(range.clone());
                self.undone.clear();
            }
            None => self.edit(Edit { at: range.start, removed, inserted: Vec::new(), cursor }),
        }
        self.cursor = range.start;
        self.grows = true;
    }

    fn edit(&mut self, edit: Edit) {
        self.undone.clear();
        self.saved = self.saved.filter(|&saved| saved <= self.done.len());
        self.text.splice(edit.at..edit.at + edit.removed.len(), edit.inserted.iter().copied());
        self.done.push(edit);
    }

    // What the model does, in pieces.

    /// When the next piece of work is due; None if there is none.
    pub fn due(&self, now: Instant) -> Option<Duration> {
        let missing = self.missing();
        let quiet = (self.touched + QUIET).saturating_duration_since(now);
        if let Some(writing) = &self.writes {
            let wait = writing.due.saturating_duration_since(now);
            return Some(if missing > 0 { Duration::ZERO } else { wait });
        }
        match self.suggestion.state {
            _ if missing > FEW => Some(quiet),
            _ if missing > 0 => Some(Duration::ZERO),
            Drawing::Done => None,
            _ if self.settings.suggest == 0 => None,
            _ => Some(quiet),
        }
    }

    /// Does a piece of what is due.
    pub fn work(&mut self, now: Instant) -> Result<()> {
        let goes = self.writes.as_ref().is_some_and(|writing| writing.goes);
        let is_due = self.writes.as_ref().is_none_or(|writing| writing.due <= now);
        if self.missing() > 0 && !(goes && is_due) {
            return self.reading.advance(&self.text, self.cursor);
        }
        if let Some(writing) = &mut self.writes {
            if !is_due {
                return Ok(());
            }
            let goes = std::mem::replace(&mut writing.goes, true);
            // In time with the pace, or if that is missed, with what can be.
            let count = (self.settings.pace / 30).max(1);
            let wait = Duration::from_secs_f64(count as f64 / self.settings.pace as f64);
            writing.due = (writing.due + wait).max(now);
            if !goes {
                self.begin_draws()?;
            }
            let drawn = self.draw(count)?;
            self.put(drawn, false);
            return Ok(());
        }
        let left = match self.suggestion.state {
            Drawing::Done => return Ok(()),
            Drawing::Wanted => {
                self.begin_draws()?;
                self.settings.suggest
            }
            Drawing::Goes(left) => left,
        };
        let start = Instant::now();
        let mut drawn = Vec::new();
        let mut left = left;
        while left > 0 && start.elapsed() < PIECE {
            let count = left.min(4);
            drawn.extend(self.draw(count)?);
            left -= count;
        }
        self.suggestion.tokens.extend(drawn);
        self.suggestion.state =
            if self.cut_suggestion(left == 0) || left == 0 { Drawing::Done } else { Drawing::Goes(left) };
        Ok(())
    }

    fn begin_draws(&mut self) -> Result<()> {
        self.generator.set_sampling(self.sampling())?;
        self.generator.go_on_from(0, &self.reading.reader)?;
        Ok(())
    }

    fn draw(&mut self, count: usize) -> Result<Vec<u32>> {
        let mut drawn = Vec::new();
        self.generator.generate(count, |tokens| {
            drawn.extend_from_slice(tokens);
            true
        })?;
        Ok(drawn)
    }

    /// Ends the suggestion where its line does, and with a whole character; says whether it is at its end.
    fn cut_suggestion(&mut self, is_all: bool) -> bool {
        let drawn = &mut self.suggestion.tokens;
        let parts = characters(&self.tokens, drawn);
        let (mut at, mut is_in_line) = (0, false);
        for (character, tokens) in parts {
            if character == '\n' && is_in_line {
                drawn.truncate(at);
                return true;
            }
            is_in_line |= !character.is_whitespace();
            at += tokens;
        }
        if is_all && self.tokens == Tokens::Bytes {
            let bytes = self.tokens.bytes(drawn);
            if let Err(error) = std::str::from_utf8(&bytes)
                && error.error_len().is_none()
                && error.valid_up_to() > 0
            {
                drawn.truncate(error.valid_up_to());
            }
        }
        false
    }
}

/// The characters that tokens stand for, each with how many tokens it is; a byte that is of no character is one by itself.
pub fn characters(tokens: &Tokens, of: &[u32]) -> Vec<(char, usize)> {
    let bytes = tokens.bytes(of);
    if *tokens != Tokens::Bytes {
        return String::from_utf8_lossy(&bytes).chars().map(|c| (c, 1)).collect();
    }
    let mut all = Vec::new();
    for chunk in bytes.utf8_chunks() {
        all.extend(chunk.valid().chars().map(|c| (c, c.len_utf8())));
        all.extend(chunk.invalid().iter().map(|_| (char::REPLACEMENT_CHARACTER, 1)));
    }
    all
}
