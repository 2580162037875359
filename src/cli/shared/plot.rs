//! Charts as SVG.

use anyhow::Result;
use plotters::prelude::*;

/// A line of a chart.
pub struct Line<'a> {
    pub name: &'a str,
    pub color: RGBColor,
    pub points: Vec<(f64, f64)>,
}

/// A chart of named lines, later ones on top.
pub fn lines(caption: &str, x_desc: &str, y_desc: &str, lines: &[Line]) -> Result<String> {
    let mut svg = String::new();
    {
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) =
                values.filter(|v| v.is_finite()).fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
            if low < high { low..high } else { 0.0..1.0 }
        };
        let points = || lines.iter().flat_map(|line| &line.points);
        let x = range(&mut points().map(|&(x, _)| x));
        let y = range(&mut points().map(|&(_, y)| y));
        let margin = 0.05 * (y.end - y.start);
        let root = SVGBackend::with_string(&mut svg, (1200, 500)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(caption, ("sans-serif", 22))
            .margin(15)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(x, y.start - margin..y.end + margin)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(x_desc).y_desc(y_desc).max_light_lines(1).x_label_formatter(&|x| format!("{x:.0}")).draw()?;
        for line in lines {
            let color = line.color;
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), color))?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
        }
        let mut names = chart.configure_series_labels();
        names.position(SeriesLabelPosition::UpperLeft).border_style(BLACK).background_style(WHITE).draw()?;
        root.present()?;
    }
    Ok(svg)
}
