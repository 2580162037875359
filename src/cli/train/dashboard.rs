//! The same on the whole terminal.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Bar, BarChart, BarGroup, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Wrap};

use super::figures::Figures;
use crate::cli::shared::HeldWarnings;
use crate::cli::shared::progress::duration;
use crate::cli::terminal;

/// A terminal that is given back when this is dropped.
pub struct Dashboard {
    terminal: DefaultTerminal,
    title: String,
    /// Dropped when the terminal has been given back.
    warnings: HeldWarnings,
}

impl Dashboard {
    /// Whether there is a terminal for it.
    pub fn check() -> Result<()> {
        use io::IsTerminal as _;
        anyhow::ensure!(
            io::stdout().is_terminal(),
            "--dashboard needs a terminal, which standard output is not: use --live, or leave it out"
        );
        Ok(())
    }

    pub fn open(title: String) -> Result<Self> {
        let terminal = ratatui::try_init().context("the terminal cannot be taken for --dashboard")?;
        Ok(Self { terminal, title, warnings: HeldWarnings::new() })
    }

    /// Draws, and says whether the user wants the training to end.
    pub fn draw(&mut self, figures: &Figures) -> Result<bool> {
        let warning = self.warnings.newest();
        self.terminal.draw(|frame| draw(frame, &self.title, figures, warning.as_deref()))?;
        let mut ends = false;
        while terminal::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                ends |= is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
            }
        }
        Ok(ends)
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn colored(color: Color) -> Style {
    if terminal::has_colors() { Style::new().fg(color) } else { Style::new() }
}

fn draw(frame: &mut Frame, title: &str, figures: &Figures, warning: Option<&str>) {
    let [head, facts, charts, samples, warned, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(u16::from(warning.is_some())),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let Figures { step, steps, .. } = figures;
    let ratio = if *steps > 0 { (*step as f64 / *steps as f64).min(1.0) } else { 0.0 };
    let left = figures.seconds_left.map_or_else(String::new, |left| format!(", {} left", duration(left)));
    let gauge = Gauge::default()
        .gauge_style(colored(Color::Blue))
        .ratio(ratio)
        .label(format!("{title}: step {step} of {steps}{left}"));
    frame.render_widget(gauge, head);
    frame.render_widget(Paragraph::new(lines_of(figures)), facts);
    if charts.width >= 90 {
        let [left, middle, right] =
            Layout::horizontal([Constraint::Fill(2), Constraint::Fill(1), Constraint::Fill(1)]).areas(charts);
        loss_chart(frame, left, figures);
        norm_chart(frame, middle, figures);
        lag_chart(frame, right, figures);
    } else {
        let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(charts);
        loss_chart(frame, left, figures);
        lag_chart(frame, right, figures);
    }
    let count = figures.samples.len().max(1) as u32;
    let areas = Layout::horizontal((0..count).map(|_| Constraint::Ratio(1, count))).split(samples);
    for ((temperature, text), area) in figures.samples.iter().zip(areas.iter()) {
        let shown: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
        let block = Block::bordered().title(format!(" at temperature {temperature} "));
        frame.render_widget(Paragraph::new(shown).wrap(Wrap { trim: false }).block(block), *area);
    }
    if let Some(warning) = warning {
        frame.render_widget(Line::from(format!("warning: {warning}")).style(colored(Color::Yellow)), warned);
    }
    let keys = Line::from("q ends the training, with everything saved").style(Style::new().add_modifier(Modifier::DIM));
    frame.render_widget(keys, foot);
}

/// The figures in two lines.
fn lines_of(figures: &Figures) -> Vec<Line<'static>> {
    let fact = |name: &str, value: String| {
        [
            Span::raw(format!("{name} ")),
            Span::styled(value, Style::new().add_modifier(Modifier::BOLD)),
            Span::raw("   "),
        ]
    };
    let mut lines = [Vec::new(), Vec::new()];
    if let Some(loss) = figures.loss() {
        lines[0].extend(fact("loss", format!("{loss:.4}")));
        lines[0].extend(fact("bits", format!("{:.3}", loss / std::f64::consts::LN_2)));
    }
    if let Some((_, loss)) = figures.held_out.last() {
        lines[0].extend(fact("held out", format!("{loss:.4}")));
    }
    lines[0].extend(fact(&format!("{}/s", figures.unit), format!("{:.0}", figures.tokens_per_second)));
    if let Some((_, lr, norm)) = figures.gradients.last() {
        lines[1].extend(fact("learning rate", format!("{lr:.1e}")));
        lines[1].extend(fact("gradient", format!("{norm:.3}")));
    }
    if let Some((norm, beyond)) = figures.state {
        lines[1].extend(fact("state", format!("{norm:.3}")));
        lines[1].extend(fact("beyond 0.9", format!("{:.1}%", 100.0 * beyond)));
    }
    lines.map(Line::from).into()
}

fn loss_chart(frame: &mut Frame, area: Rect, figures: &Figures) {
    let training = figures.curve(4 * usize::from(area.width));
    let held_out: Vec<_> = figures.held_out.iter().map(|&(step, loss)| (step as f64, loss)).collect();
    let data = [("training", colored(Color::Blue), &training[..]), ("held out", colored(Color::Red), &held_out[..])];
    chart(frame, area, " loss ", &data);
}

fn norm_chart(frame: &mut Frame, area: Rect, figures: &Figures) {
    let norms: Vec<_> = figures.gradients.iter().map(|&(step, _, norm)| (step as f64, norm)).collect();
    chart(frame, area, " norm of the gradient ", &[("", colored(Color::Blue), &norms)]);
}

/// Its name, how it is drawn, its points.
type Curve<'a> = (&'a str, Style, &'a [(f64, f64)]);

fn chart(frame: &mut Frame, area: Rect, title: &str, data: &[Curve<'_>]) {
    let points = || data.iter().flat_map(|(_, _, points)| points.iter());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if low < high { [low, high] } else { [0.0, high.max(1.0)] }
    };
    let x = range(&mut points().map(|point| point.0));
    let y = range(&mut points().map(|point| point.1).filter(|y| y.is_finite()));
    let label = |ends: [f64; 2], decimals: usize| ends.map(|end| format!("{end:.decimals$}"));
    let datasets = data.iter().map(|(name, style, points)| {
        let is_line = points.len() > 1;
        let kind = if is_line { GraphType::Line } else { GraphType::Scatter };
        Dataset::default().name(*name).marker(Marker::Braille).graph_type(kind).style(*style).data(points)
    });
    let chart = Chart::new(datasets.collect())
        .block(Block::bordered().title(title.to_owned()))
        .x_axis(Axis::default().bounds(x).labels(label(x, 0)))
        .y_axis(Axis::default().bounds(y).labels(label(y, 2)));
    frame.render_widget(chart, area);
}

/// Shares of the gradient by how many tokens it reaches back: 0, 1, 2 and 3, 4 to 7, and so on.
fn lag_chart(frame: &mut Frame, area: Rect, figures: &Figures) {
    let title = format!(" 90% of the gradient: {} back ", figures.reach(0.9));
    let starts = std::iter::once(0).chain((0..usize::BITS - 1).map(|power| 1 << power));
    let starts: Vec<usize> = starts.take_while(|&start| start < figures.lags.len()).collect();
    let end = |i: usize| starts.get(i + 1).copied().unwrap_or(figures.lags.len());
    let share = |(i, &start): (usize, &usize)| figures.lags[start..end(i)].iter().sum();
    let shares: Vec<f64> = starts.iter().enumerate().map(share).collect();
    let most = shares.iter().copied().fold(0.0, f64::max);
    let bars = shares.iter().zip(&starts).map(|(share, start)| {
        let height = if most > 0.0 { (1000.0 * share / most) as u64 } else { 0 };
        let value = if *share >= 0.005 { format!("{:.0}%", 100.0 * share) } else { String::new() };
        let label = Line::from(start.to_string());
        Bar::default().value(height).text_value(value).label(label).style(colored(Color::Green))
    });
    let chart = BarChart::default()
        .data(BarGroup::default().bars(&bars.collect::<Vec<_>>()))
        .bar_width(3)
        .bar_gap(1)
        .max(1000)
        .block(Block::bordered().title(title));
    frame.render_widget(chart, area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::shared::warn;

    #[test]
    fn it_fits_terminals_of_any_size() {
        let figures = Figures {
            step: 70,
            steps: 100,
            losses: (0..70).map(|i| 3.0 / (1.0 + i as f32)).collect(),
            held_out: vec![(50, 1.2)],
            gradients: vec![(50, 1e-3, 0.5), (70, 2e-3, f64::NAN)],
            lags: (0..64).map(|lag| 0.5f64.powi(lag + 1)).collect(),
            state: Some((0.4, 0.25)),
            samples: vec![(0.5, "one\ttwo\nthree".into()), (0.8, "\u{65e5}\u{672c}".into())],
            tokens_per_second: 1234.0,
            seconds_left: Some(60.0),
            unit: "characters",
        };
        for (width, height) in [(120, 40), (80, 24), (40, 10), (1, 1)] {
            for figures in [&figures, &Figures::default()] {
                let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
                terminal.draw(|frame| draw(frame, "a run", figures, None)).unwrap();
                if width == 120 && figures.step == 70 {
                    let shown = format!("{:?}", terminal.backend().buffer());
                    for part in ["step 70 of 100", "1234", "90% of the gradient", "at temperature 0.5", "three"] {
                        assert!(shown.contains(part), "{part} is not in {shown}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_newest_warning_is_shown() {
        let warnings = HeldWarnings::new();
        warn("the first");
        warn("the metrics cannot be written: no space");
        let newest = warnings.newest();
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, "a run", &Figures::default(), newest.as_deref())).unwrap();
        let shown = format!("{:?}", terminal.backend().buffer());
        assert!(shown.contains("warning: the metrics cannot be written: no space"), "{shown}");
        drop(warnings);
        assert_eq!(HeldWarnings::new().newest(), None, "those before were printed");
    }
}
