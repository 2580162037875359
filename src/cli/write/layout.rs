//! Where the characters of a text stand in a window: lines broken between words.

use ratatui::text::Span;

use super::editor::{Editor, characters};

/// Tokens before and after the cursor that are laid out at most.
const MOST: usize = 1 << 17;

const TAB: usize = 4;

/// A character, with the marks that combine with it.
#[derive(Clone, Debug)]
pub struct Glyph {
    /// Its place in the text; of a suggestion, that of the cursor.
    pub at: usize,
    pub symbol: String,
    pub width: usize,
    pub column: usize,
    pub is_suggested: bool,
    ends_line: bool,
    is_space: bool,
}

/// A row of the window. The last glyph of all is none, at the text's end.
#[derive(Clone, Debug, Default)]
pub struct Row(pub Vec<Glyph>);

impl Row {
    pub fn start(&self) -> usize {
        self.0.first().map_or(0, |glyph| glyph.at)
    }

    fn width(&self) -> usize {
        self.0.last().map_or(0, |last| last.column + last.width)
    }

    /// The place in the text that is nearest to a column.
    pub fn at(&self, column: usize) -> usize {
        let own = self.0.iter().filter(|glyph| !glyph.is_suggested);
        own.clone().take_while(|glyph| glyph.column <= column).last().or(own.clone().next()).map_or(0, |glyph| glyph.at)
    }
}

/// The text around the cursor, enough of it for a window of this size, with or without the suggestion.
pub fn rows(editor: &Editor, width: usize, height: usize, with_suggestion: bool) -> Vec<Row> {
    let (text, cursor) = (editor.text(), editor.cursor());
    let newline = editor.tokens.known(b"\n").first().copied();
    // Whole lines, for where one breaks follows from where it begins.
    let enough = |lines: usize, tokens: usize| lines > height || tokens > height * width || tokens >= MOST;
    let (mut start, mut lines) = (cursor, 0);
    while start > 0 && cursor - start < MOST {
        if Some(text[start - 1]) == newline {
            lines += 1;
            if enough(lines, cursor - start) {
                break;
            }
        }
        start -= 1;
    }
    let (mut end, mut lines) = (cursor, 0);
    while end < text.len() && end - cursor < MOST {
        end += 1;
        if Some(text[end - 1]) == newline {
            lines += 1;
            if enough(lines, end - cursor) {
                break;
            }
        }
    }
    let mut lines = Lines { width: width.max(2), done: Vec::new(), row: Row::default() };
    lines.add(editor, start, &text[start..cursor], false);
    if with_suggestion {
        lines.add(editor, cursor, editor.suggestion(), true);
    }
    lines.add(editor, cursor, &text[cursor..end], false);
    lines.end(end)
}

/// Row and column of a place in the text: of the suggestion there, if there is one.
pub fn find(rows: &[Row], at: usize) -> (usize, usize) {
    let glyphs = rows.iter().enumerate().flat_map(|(row, Row(glyphs))| glyphs.iter().map(move |glyph| (row, glyph)));
    let found = glyphs.clone().find(|(_, glyph)| glyph.at >= at).or(glyphs.last());
    found.map_or((0, 0), |(row, glyph)| (row, glyph.column))
}

struct Lines {
    width: usize,
    done: Vec<Row>,
    row: Row,
}

impl Lines {
    fn add(&mut self, editor: &Editor, mut at: usize, tokens: &[u32], is_suggested: bool) {
        for (i, (character, count)) in characters(&editor.tokens, tokens).into_iter().enumerate() {
            self.put(character, at, is_suggested, i == 0);
            if !is_suggested {
                at += count;
            }
        }
    }

    fn put(&mut self, character: char, at: usize, is_suggested: bool, is_first: bool) {
        let ends_line = character == '\n';
        let symbol = match character {
            '\n' if is_suggested => "↵".to_owned(),
            '\n' => String::new(),
            '\t' => " ".repeat(TAB - self.row.width() % TAB),
            '\0'..='\u{1f}' => char::from_u32(0x2400 + character as u32).unwrap_or(' ').to_string(),
            '\u{7f}' => "␡".to_owned(),
            character if character.is_control() => char::REPLACEMENT_CHARACTER.to_string(),
            character => character.to_string(),
        };
        let width = Span::raw(symbol.as_str()).width();
        if width == 0 && !ends_line {
            // It combines with what is before it.
            if let Some(last) = self.row.0.last_mut().filter(|last| !is_first && last.is_suggested == is_suggested) {
                last.symbol.push(character);
                return;
            }
        }
        let is_space = character == ' ' || character == '\t';
        let glyph = Glyph { at, symbol, width, column: self.row.width(), is_suggested, ends_line, is_space };
        self.place(glyph);
    }

    /// White space may stand over the edge; everything else begins a new row there, with the word it is of.
    fn place(&mut self, mut glyph: Glyph) {
        while !glyph.is_space
            && !glyph.ends_line
            && !self.row.0.is_empty()
            && self.row.width() + glyph.width > self.width
        {
            // Between a text and what is suggested too, so that the text stays where it is.
            let breaks = |pair: &[Glyph]| pair[0].is_space || !pair[0].is_suggested && pair[1].is_suggested;
            let cut = self.row.0.windows(2).rposition(breaks).map(|before| before + 1);
            let last = self.row.0.last().is_some_and(|last| last.is_space || !last.is_suggested && glyph.is_suggested);
            let cut = if last { self.row.0.len() } else { cut.unwrap_or(self.row.0.len()) };
            let mut next = self.row.0.split_off(cut);
            let start = next.first().map_or(0, |first| first.column);
            next.iter_mut().for_each(|glyph| glyph.column -= start);
            self.done.push(std::mem::replace(&mut self.row, Row(next)));
        }
        glyph.column = self.row.width();
        if glyph.is_space && glyph.column + glyph.width > self.width {
            glyph.width = self.width.saturating_sub(glyph.column);
            glyph.symbol = " ".repeat(glyph.width);
        }
        let ends_line = glyph.ends_line;
        self.row.0.push(glyph);
        if ends_line {
            self.done.push(std::mem::take(&mut self.row));
        }
    }

    fn end(mut self, at: usize) -> Vec<Row> {
        let column = self.row.width();
        let (symbol, is_suggested) = (String::new(), false);
        self.row.0.push(Glyph { at, symbol, width: 0, column, is_suggested, ends_line: false, is_space: false });
        self.done.push(self.row);
        self.done
    }
}
