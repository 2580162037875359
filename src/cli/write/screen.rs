//! What the terminal shows of an [`Editor`].

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Wrap};

use super::editor::Editor;
use super::layout::{Row, find, rows};
use crate::cli::shared::with_separators;

/// From this width on, the model's thoughts stand at the side.
const WIDE: u16 = 72;

const SIDE: u16 = 29;

/// From this height on, they are bars below the text; otherwise one line.
const HIGH: u16 = 16;

/// Of so many of the latest tokens, the surprise is drawn.
const LATEST: usize = 20;

/// The keys, from the most needed on.
pub const KEYS: [(&str, &str); 10] = [
    ("Tab", "take it"),
    ("Shift-Tab", "take a word"),
    ("Ctrl-N", "another"),
    ("Ctrl-G", "write on"),
    ("Alt-1..5", "take a character"),
    ("Ctrl-↑↓", "temperature"),
    ("Ctrl-Z/Y", "undo, redo"),
    ("Ctrl-W", "delete a word"),
    ("Ctrl-S", "save"),
    ("Ctrl-Q", "quit"),
];

/// Where the window stands in the text, and how it looks.
pub struct Screen {
    /// The text's place that is in the first row.
    top: usize,
    /// Of the text, in the latest frame.
    pub width: usize,
    pub height: usize,
    has_colours: bool,
}

/// What stands around the text.
pub struct Around<'a> {
    pub name: &'a str,
    pub model: &'a str,
    /// The last line, in place of the keys: a question, or what went wrong.
    pub notice: Option<&'a str>,
    /// The notice is a question, and the cursor stands after it.
    pub asks: bool,
}

impl Around<'_> {
    /// Of the last line: more than one, where what it says would not fit.
    fn rows(&self, area: Rect) -> u16 {
        let width = self.notice.filter(|_| !self.asks).map_or(0, |notice| Span::raw(notice).width());
        // Lines broken between words are a little shorter.
        let rows = if width <= area.width.into() { 1 } else { 1 + width * 10 / 9 / usize::from(area.width.max(1)) };
        (rows as u16).min(area.height / 3).max(1)
    }
}

impl Screen {
    pub fn new(has_colours: bool) -> Self {
        Self { top: 0, width: 80, height: 20, has_colours }
    }

    fn coloured(&self, colour: Color) -> Style {
        if self.has_colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn dim(&self) -> Style {
        if self.has_colours { Style::new().fg(Color::DarkGray) } else { Style::new().add_modifier(Modifier::DIM) }
    }

    pub fn draw(&mut self, frame: &mut Frame, editor: &Editor, around: &Around) {
        let area = frame.area();
        let below = if area.width >= WIDE {
            0
        } else if area.height >= HIGH {
            6
        } else {
            1
        };
        let [head, middle, below, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(below),
            Constraint::Length(around.rows(area)),
        ])
        .areas(area);
        let side = if area.width >= WIDE { SIDE } else { 0 };
        let [text, side] = Layout::horizontal([Constraint::Min(1), Constraint::Length(side)]).areas(middle);
        self.draw_head(frame, head, editor, around);
        self.draw_text(frame, text, editor, !around.asks);
        if side.width > 0 {
            let block = Block::new().borders(Borders::LEFT).border_style(self.dim());
            frame.render_widget(Paragraph::new(self.side(editor, block.inner(side))).block(block), side);
        } else if below.height > 1 {
            let block = Block::new().borders(Borders::TOP).border_style(self.dim());
            let lines = self.bars(editor, below.width.into(), true);
            frame.render_widget(Paragraph::new(lines).block(block), below);
        } else {
            frame.render_widget(Paragraph::new(self.in_one_line(editor)), below);
        }
        self.draw_foot(frame, foot, around);
    }

    fn draw_head(&self, frame: &mut Frame, area: Rect, editor: &Editor, around: &Around) {
        let style = Style::new().add_modifier(Modifier::REVERSED);
        let changed = if editor.is_changed() { "*" } else { "" };
        let left = format!(" {}{changed}", around.name);
        let temperature = format!("T {:.2} ", editor.settings().sampling.temperature);
        let mut right = temperature.clone();
        if Span::raw(&left).width() + around.model.len() + temperature.len() + 5 < area.width.into() {
            right = format!("{} · {temperature}", around.model);
        }
        frame.render_widget(Paragraph::new(left).style(style), area);
        let width = (Span::raw(&right).width() as u16).min(area.width);
        let area = Rect { x: area.right() - width, width, ..area };
        frame.render_widget(Paragraph::new(right).style(style), area);
    }

    fn draw_text(&mut self, frame: &mut Frame, area: Rect, editor: &Editor, has_cursor: bool) {
        // The cursor can stand after the last column of the text.
        (self.width, self.height) = (usize::from(area.width).saturating_sub(1).max(1), area.height.into());
        let rows = rows(editor, self.width, self.height, true);
        let (row, column) = find(&rows, editor.cursor());
        // What is suggested is to be seen too, as far as it can be with the cursor.
        let is_suggested = |row: &Row| row.0.iter().any(|glyph| glyph.is_suggested);
        let last = rows.iter().rposition(is_suggested).unwrap_or(row).min(row + self.height - 1);
        let top = rows.iter().rposition(|row| row.start() <= self.top).unwrap_or(0);
        let top = top.clamp((last + 1).saturating_sub(self.height), row);
        self.top = rows[top].start();
        let buffer = frame.buffer_mut();
        let suggested = self.dim().add_modifier(Modifier::ITALIC);
        for (Row(glyphs), y) in rows[top..].iter().zip(area.top()..area.bottom()) {
            for glyph in glyphs.iter().filter(|glyph| glyph.width > 0) {
                let x = area.x + glyph.column as u16;
                let style = if glyph.is_suggested { suggested } else { Style::new() };
                buffer.set_stringn(x, y, &glyph.symbol, area.right().saturating_sub(x).into(), style);
            }
        }
        if has_cursor {
            let (x, y) = (area.x + column as u16, area.y + (row - top) as u16);
            frame.set_cursor_position(Position::new(x.min(area.right() - 1), y));
        }
    }

    /// The likeliest tokens, the surprise, and the keys.
    fn side(&self, editor: &Editor, area: Rect) -> Vec<Line<'static>> {
        let mut lines = self.bars(editor, area.width.into(), false);
        lines.push(Line::default());
        lines.extend(self.surprise(editor));
        lines.push(Line::default());
        for (key, does) in KEYS {
            lines.push(Line::from(vec![Span::styled(format!(" {key:>9} "), self.dim()), Span::raw(does)]));
        }
        lines
    }

    /// A line for each of the likeliest tokens.
    fn bars(&self, editor: &Editor, width: usize, with_surprise: bool) -> Vec<Line<'static>> {
        let Some(likeliest) = editor.likeliest() else {
            let reads = format!(" reads {} more", with_separators(editor.missing() as u64));
            return vec![
                Line::styled(reads, self.dim()),
                Line::default(),
                Line::default(),
                Line::default(),
                Line::default(),
            ];
        };
        let mut surprise = if with_surprise { self.surprise(editor) } else { Vec::new() };
        surprise.resize(5, Line::default());
        let rest = if with_surprise { 24 } else { 0 };
        let room = width.saturating_sub(14 + rest);
        let line = |(i, (&(token, share), surprise)): (usize, (&(u32, f32), Line<'static>))| {
            let (name, bar) = (name(editor, token), bar(share, room));
            let mut spans = vec![
                Span::styled(format!(" {} ", i + 1), self.dim()),
                Span::raw(format!("{name}{:1$}", "", 3usize.saturating_sub(Span::raw(&name).width()))),
                Span::styled(format!("{bar:<room$}"), self.coloured(Color::Cyan)),
                Span::raw(format!("{:5.1} % ", 100.0 * share)),
            ];
            spans.extend(surprise.spans);
            Line::from(spans)
        };
        likeliest.iter().zip(surprise).enumerate().map(line).collect()
    }

    fn surprise(&self, editor: &Editor) -> Vec<Line<'static>> {
        let known: Vec<f32> = editor.bits().iter().copied().filter(|bits| bits.is_finite()).collect();
        let Some(&last) = known.last() else {
            return vec![Line::styled(" surprise: none yet", self.dim())];
        };
        let mean = known.iter().map(|&bits| f64::from(bits)).sum::<f64>() / known.len() as f64;
        let latest = &known[known.len().saturating_sub(LATEST)..];
        let bits = |name: &str, bits: f64| {
            Line::from(vec![Span::styled(format!(" {name} "), self.dim()), Span::raw(format!("{bits:5.2} bits"))])
        };
        let of_latest = latest.iter().map(|&bits| f64::from(bits)).sum::<f64>() / latest.len() as f64;
        vec![
            Line::styled(
                format!(" {}", latest.iter().map(|&bits| column(bits)).collect::<String>()),
                self.coloured(Color::Yellow),
            ),
            bits("surprise", last.into()),
            bits(&format!("last {:3}", latest.len()), of_latest),
            bits("    mean", mean),
        ]
    }

    fn in_one_line(&self, editor: &Editor) -> Line<'static> {
        let Some(likeliest) = editor.likeliest() else {
            return Line::styled(format!(" reads {} more", with_separators(editor.missing() as u64)), self.dim());
        };
        let mut spans = Vec::new();
        for (i, &(token, share)) in likeliest.iter().enumerate() {
            spans.push(Span::styled(format!("{}", i + 1), self.dim()));
            spans.push(Span::raw(name(editor, token)));
            spans.push(Span::styled(format!("{:<4}", format!("{:.0}%", 100.0 * share)), self.coloured(Color::Cyan)));
        }
        if let Some(bits) = editor.bits().last().filter(|bits| bits.is_finite()) {
            spans.push(Span::styled(format!("{bits:4.1} bits"), self.coloured(Color::Yellow)));
        }
        Line::from(spans)
    }

    fn draw_foot(&self, frame: &mut Frame, area: Rect, around: &Around) {
        if let Some(notice) = around.notice {
            let style =
                self.coloured(if around.asks { Color::Cyan } else { Color::Yellow }).add_modifier(Modifier::BOLD);
            // Its end, where an answer is longer than the line.
            let width = Span::raw(notice).width();
            let over = if around.asks { (width + 1).saturating_sub(area.width.into()) } else { 0 };
            let line = Paragraph::new(notice).style(style);
            let line = if around.asks { line.scroll((0, over as u16)) } else { line.wrap(Wrap { trim: true }) };
            frame.render_widget(line, area);
            if around.asks {
                let x = (width - over) as u16;
                frame.set_cursor_position(Position::new(area.x + x.min(area.width.saturating_sub(1)), area.y));
            }
            return;
        }
        let mut spans = Vec::new();
        let mut width = 0;
        let keys = ["Tab", "Ctrl-N", "Ctrl-G", "Ctrl-S", "Ctrl-Q"];
        for (key, does) in KEYS.iter().filter(|(key, _)| keys.contains(key)) {
            width += key.len() + does.len() + 3;
            if width > area.width.into() {
                break;
            }
            spans.push(Span::styled(format!("{key} "), Style::new().add_modifier(Modifier::BOLD)));
            spans.push(Span::styled(format!("{does}  "), self.dim()));
        }
        frame.render_widget(Paragraph::new(Line::from(spans)), area);
    }
}

/// A token in one or two columns.
fn name(editor: &Editor, token: u32) -> String {
    match editor.tokens.bytes(&[token])[..] {
        [b'\n'] => "↵".into(),
        [b' '] => "␣".into(),
        [b'\t'] => "⇥".into(),
        [byte] if !(b' '..=b'~').contains(&byte) => format!("{byte:02x}"),
        _ => editor.tokens.text(&[token]),
    }
}

/// A share as a bar of eighths.
fn bar(share: f32, room: usize) -> String {
    let eighths = (share.clamp(0.0, 1.0) * 8.0 * room as f32).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.extend(char::from_u32(0x2590 - (eighths % 8) as u32));
    }
    bar
}

/// Bits as a column; 8 and more are full.
fn column(bits: f32) -> char {
    char::from_u32(0x2581 + (bits.clamp(0.0, 7.9) as u32)).unwrap_or('█')
}
