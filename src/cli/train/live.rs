//! A page in the run's folder that shows how the training goes, and renews itself while it does.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use plotters::style::{BLUE, RED, RGBColor};

use super::figures::Figures;
use crate::cli::shared::plot::{Line, lines};
use crate::cli::shared::progress::duration;

/// Seconds until a browser reads the page again.
const EVERY: u32 = 3;

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #8884; --soft: #8888 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: 0 }
dt { font-size: .8rem; opacity: .7 } dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums }
progress { width: 100%; height: .6rem }
figure { margin: 0; background: #fff; border-radius: .4rem; overflow: hidden } svg { width: 100%; height: auto; display: block }
pre { white-space: pre-wrap; border: 1px solid var(--line); border-radius: .4rem; padding: .7rem; margin: 0; font: 14px/1.5 ui-monospace, monospace }";

/// Writes it, whole.
pub fn write(file: &PathBuf, title: &str, figures: &Figures, is_done: bool) -> Result<()> {
    Ok(elman::io::write_atomically(file, page(title, figures, is_done)?.as_bytes())?)
}

fn page(title: &str, figures: &Figures, is_done: bool) -> Result<String> {
    let mut page = String::new();
    let title = escaped(title);
    let renew = if is_done { String::new() } else { format!("<meta http-equiv=refresh content={EVERY}>") };
    write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8>{renew}<meta name=viewport content='width=device-width, initial-scale=1'>\
         <title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    )?;
    let Figures { step, steps, unit, .. } = figures;
    write!(page, "<progress max={steps} value={step} aria-label='steps done'></progress><dl>")?;
    let mut fact = |name: &str, value: String| write!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    fact("step", format!("{step} of {steps}"))?;
    if let Some(loss) = figures.loss() {
        fact("training loss", format!("{loss:.4}"))?;
        fact("bits", format!("{:.3}", loss / std::f64::consts::LN_2))?;
    }
    if let Some((_, loss)) = figures.held_out.last() {
        fact("held-out loss", format!("{loss:.4}"))?;
    }
    if let Some((_, lr, norm)) = figures.gradients.last() {
        fact("learning rate", format!("{lr:.1e}"))?;
        fact("gradient norm", format!("{norm:.3}"))?;
    }
    if let Some((norm, beyond)) = figures.state {
        fact("state, root mean square", format!("{norm:.3}"))?;
        fact("state beyond 0.9", format!("{:.1}%", 100.0 * beyond))?;
    }
    fact(&format!("{unit} a second"), format!("{:.0}", figures.tokens_per_second))?;
    let expected = || figures.seconds_left.map_or_else(|| "not known yet".into(), duration);
    let left = if is_done { "none".into() } else { expected() };
    fact("time left", left)?;
    page.push_str("</dl>");
    let held_out = figures.held_out.iter().map(|&(step, loss)| (step as f64, loss)).collect();
    let curves = [
        Line { name: "training, smoothed", color: BLUE, points: figures.curve(1000) },
        Line { name: "held out", color: RED, points: held_out },
    ];
    chart(&mut page, "Loss", "step", "nats", &curves)?;
    let norms = figures.gradients.iter().map(|&(step, _, norm)| (step as f64, norm)).collect();
    chart(&mut page, "Norm of the gradient", "step", "norm", &[Line { name: "norm", color: BLUE, points: norms }])?;
    if !figures.lags.is_empty() {
        let heading = format!("How far back the gradient reaches: 90% of it within {} {unit}", figures.reach(0.9));
        let shares = figures.lags.iter().enumerate().map(|(lag, share)| (lag as f64, 100.0 * share)).collect();
        let line = Line { name: "share", color: RGBColor(0, 120, 90), points: shares };
        chart(&mut page, &heading, &format!("{unit} before the loss"), "% of the gradient", &[line])?;
    }
    for (temperature, text) in &figures.samples {
        write!(page, "<h2>Sample at temperature {temperature}</h2><pre>{}</pre>", escaped(text))?;
    }
    page.push_str("</html>\n");
    Ok(page)
}

fn chart(page: &mut String, heading: &str, x: &str, y: &str, curves: &[Line]) -> Result<()> {
    if curves.iter().all(|line| line.points.len() < 2) {
        return Ok(());
    }
    let svg = lines("", x, y, curves)?;
    let label = escaped(heading);
    Ok(write!(page, "<h2>{label}</h2><figure role=img aria-label='{label}'>{svg}</figure>")?)
}

/// Text as HTML shows it.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\r' => {}
            // HTML has no such characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_all_figures_and_no_markup_of_the_text() {
        let figures = Figures {
            step: 5,
            steps: 10,
            losses: vec![3.0, 2.5, 2.0, 1.5, 1.0],
            held_out: vec![(2, 2.5), (5, 1.25)],
            gradients: vec![(2, 1e-3, 0.5), (5, 2e-3, 0.75)],
            lags: vec![0.5, 0.45, 0.05],
            state: Some((0.4, 0.25)),
            samples: vec![(0.5, "</pre><script>alert('\0')</script>".into())],
            tokens_per_second: 1234.0,
            seconds_left: Some(60.0),
            unit: "characters",
        };
        let page = page("a <b>", &figures, false).unwrap();
        for part in [
            "5 of 10",
            "1.2500",
            "0.750",
            "2.0e-3",
            "25.0%",
            "1234",
            "within 1 characters",
            "http-equiv=refresh",
            "a &lt;b&gt;",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("<script") && !page.contains('\0') && page.contains("&lt;script&gt;"));
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(!super::page("", &figures, true).unwrap().contains("http-equiv"));
    }
}
