//! Bar charts as SVG, written as plain text: one pure function from figures to a file, so that a plot can be compared
//! and needs nothing that draws. Each bar is a median; the line through its end goes from the least to the most round.

use std::fmt::Write as _;

use super::statistics::{Summary, number};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 40.0;
/// Lines across, besides the base line.
const STEPS: u32 = 5;
/// Told apart also by those who see no red or green (Okabe and Ito 2008); the fifth series begins again.
const COLOURS: [&str; 5] = ["#999999", "#0072b2", "#e69f00", "#009e73", "#cc79a7"];

/// One colour of bars.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// A bar for each group; `None` leaves a gap.
    pub bars: Vec<Option<Summary>>,
}

/// What is drawn.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// At the axis.
    pub unit: String,
    /// The names of the groups, from left to right.
    pub groups: Vec<String>,
    /// In each group one bar of each.
    pub series: Vec<Series>,
}

/// The chart as a file.
#[must_use]
pub fn svg(chart: &Chart) -> String {
    let bars = || chart.series.iter().flat_map(|series| series.bars.iter().flatten());
    let top = round_up(bars().map(Summary::most).fold(0.0, f64::max));
    let high = |value: f64| HEIGHT - BOTTOM - (value.max(0.0) / top).min(1.0) * (HEIGHT - TOP - BOTTOM);
    let mut out = String::new();
    let title = escape(&chart.title);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{title}</text>
"##
    );
    legend(&mut out, chart);
    for step in 0..=STEPS {
        let value = top * f64::from(step) / f64::from(STEPS);
        let (y, right) = (high(value), WIDTH - RIGHT);
        let label = number(value, if top < 10.0 { 1 } else { 0 });
        let _ = writeln!(
            out,
            r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#ddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"##,
            LEFT - 6.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        out,
        r#"<text x="14" y="{:.1}" transform="rotate(-90 14 {:.1})" text-anchor="middle">{}</text>"#,
        HEIGHT / 2.0,
        HEIGHT / 2.0,
        escape(&chart.unit)
    );
    let group = (WIDTH - LEFT - RIGHT) / chart.groups.len().max(1) as f64;
    let bar = (group * 0.8 / chart.series.len().max(1) as f64).min(70.0);
    for (at, name) in chart.groups.iter().enumerate() {
        let middle = LEFT + group * (at as f64 + 0.5);
        let _ = writeln!(
            out,
            r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            HEIGHT - BOTTOM + 18.0,
            escape(name)
        );
        for (number_of, series) in chart.series.iter().enumerate() {
            let Some(Some(summary)) = series.bars.get(at) else { continue };
            let x = middle + bar * (number_of as f64 - chart.series.len() as f64 / 2.0);
            draw(&mut out, summary, x, bar, COLOURS[number_of % COLOURS.len()], &high);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// One bar, its spread, and its number.
fn draw(out: &mut String, summary: &Summary, x: f64, width: f64, colour: &str, high: &dyn Fn(f64) -> f64) {
    let (y, base) = (high(summary.median()), high(0.0));
    let (least, most) = (high(summary.least()), high(summary.most()));
    let middle = x + width / 2.0;
    let digits = if summary.median().abs() < 10.0 { 1 } else { 0 };
    let _ = writeln!(
        out,
        r##"<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="{:.1}" fill="{colour}"/><line x1="{middle:.1}" y1="{least:.1}" x2="{middle:.1}" y2="{most:.1}" stroke="#222"/><text x="{middle:.1}" y="{:.1}" text-anchor="middle" font-size="11">{}</text>"##,
        x + 1.0,
        width - 2.0,
        base - y,
        most - 4.0,
        number(summary.median(), digits)
    );
}

fn legend(out: &mut String, chart: &Chart) {
    let mut x = LEFT;
    for (at, series) in chart.series.iter().enumerate() {
        let _ = writeln!(
            out,
            r#"<rect x="{x:.1}" y="32" width="11" height="11" fill="{}"/><text x="{:.1}" y="42">{}</text>"#,
            COLOURS[at % COLOURS.len()],
            x + 16.0,
            escape(&series.name)
        );
        // About the width of the text, which only a renderer knows.
        x += 36.0 + 7.0 * series.name.chars().count() as f64;
    }
}

/// The next of 1, 2, 2.5, 5 times a power of ten: a top that divides into round steps.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let found = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|step| step * power >= value);
    found.unwrap_or(10.0) * power
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let one = |value: f64| Summary::of(vec![value, value * 0.5, value * 1.2]);
        Chart {
            title: "a <b> & \"c\"".to_owned(),
            unit: "ms".to_owned(),
            groups: ["0 ms", "50 ms"].map(str::to_owned).into(),
            series: vec![
                Series { name: "direct".to_owned(), bars: vec![one(10.0), one(100.0)] },
                Series { name: "tunnel".to_owned(), bars: vec![one(20.0), None] },
            ],
        }
    }

    #[test]
    fn each_bar_is_as_high_as_its_figure_and_what_is_missing_is_not_drawn() {
        let text = svg(&chart());
        // The scale ends at 200, for the most is 120; 254 units of the drawing are for it.
        let high = |value: f64| format!(r#"height="{:.1}""#, 254.0 * value / 200.0);
        for value in [10.0, 100.0, 20.0] {
            assert_eq!(text.matches(&high(value)).count(), 1, "{value}: {text}");
        }
        // A background, two squares of the legend, three bars.
        assert_eq!(text.matches("<rect").count(), 6);
    }

    #[test]
    fn names_cannot_break_out_of_the_file() {
        let text = svg(&chart());
        assert!(text.contains("a &lt;b&gt; &amp; &quot;c&quot;") && !text.contains("<b>"));
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn the_scale_ends_at_a_round_number_that_holds_the_most() {
        for (value, top) in
            [(0.0, 1.0), (0.3, 0.5), (1.0, 1.0), (11.0, 20.0), (201.0, 250.0), (5_001.0, 10_000.0)]
        {
            assert!((round_up(value) - top).abs() < 1e-9, "{value}");
        }
    }
}
