//! What a section of the benchmark found: a grid of figures, and from it the table at the terminal, JSON, plots, and the
//! section's place in the documentation. Figures get there by no other way, so none is typed by hand.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use super::plot::{Chart, Series, svg};
use super::statistics::{Summary, number};

/// One line of figures.
#[derive(Debug, Clone)]
struct Row {
    key: String,
    title: String,
    digits: usize,
    cells: Vec<Option<Summary>>,
}

/// What was set out to be reached first, for a median.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// It should not be above.
    AtMost(f64),
    /// It should not be below.
    AtLeast(f64),
}

impl Aim {
    fn words(self, found: &Summary) -> String {
        let (sign, value, met) = match self {
            Self::AtMost(value) => ('≤', value, found.median() <= value),
            Self::AtLeast(value) => ('≥', value, found.median() >= value),
        };
        let digits = if value.fract() == 0.0 { 0 } else { 1 };
        format!("{sign} {}: {}", number(value, digits), if met { "met" } else { "**missed**" })
    }
}

/// Figures by what was measured (rows) and of what (columns).
#[derive(Debug, Clone)]
pub struct Grid {
    columns: Vec<(String, String)>,
    rows: Vec<Row>,
    aims: Vec<(String, &'static str, Aim)>,
}

impl Grid {
    /// An empty one; each column has a key and a title.
    #[must_use]
    pub fn new<K: Into<String>, T: Into<String>>(columns: impl IntoIterator<Item = (K, T)>) -> Self {
        let columns = columns.into_iter().map(|(k, t)| (k.into(), t.into())).collect();
        Self { columns, rows: Vec::new(), aims: Vec::new() }
    }

    /// What a figure, by its keys, should have come to; shown with whether it has.
    pub fn aim(&mut self, row: impl Into<String>, column: &'static str, aim: Aim) {
        self.aims.push((row.into(), column, aim));
    }

    fn aim_of(&self, row: &Row) -> String {
        let words = || {
            let (_, column, aim) = self.aims.iter().find(|(key, _, _)| *key == row.key)?;
            let at = self.columns.iter().position(|(key, _)| key == column)?;
            Some(aim.words(row.cells.get(at)?.as_ref()?))
        };
        words().unwrap_or_default()
    }

    /// Adds a line, a list of rounds for each column; an empty list is an empty cell.
    pub fn row(
        &mut self,
        key: impl Into<String>,
        title: impl Into<String>,
        digits: usize,
        rounds: Vec<Vec<f64>>,
    ) {
        let cells = rounds.into_iter().map(Summary::of).collect();
        self.rows.push(Row { key: key.into(), title: title.into(), digits, cells });
    }

    /// Adds these lines of another grid with the same columns.
    pub fn take(&mut self, other: Self, keys: &[&str]) {
        self.rows.extend(other.rows.into_iter().filter(|row| keys.contains(&row.key.as_str())));
    }

    /// Everything, by the keys of row and column.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut rows = Map::new();
        for row in &self.rows {
            let cells = self.columns.iter().zip(&row.cells);
            let cells = cells.filter_map(|((key, _), cell)| Some((key.clone(), cell.as_ref()?.json())));
            rows.insert(row.key.clone(), Value::Object(cells.collect()));
        }
        Value::Object(rows)
    }

    /// The lines of these keys as a chart, each column a colour; `groups` names the lines anew.
    #[must_use]
    pub fn chart(&self, title: &str, unit: &str, lines: &[(&str, &str)]) -> Chart {
        let of = |key: &str| self.rows.iter().find(|row| row.key == key);
        let series = self.columns.iter().enumerate().map(|(at, (_, name))| Series {
            name: name.clone(),
            bars: lines.iter().map(|(key, _)| of(key)?.cells.get(at)?.clone()).collect(),
        });
        Chart {
            title: title.to_owned(),
            unit: unit.to_owned(),
            groups: lines.iter().map(|(_, name)| (*name).to_owned()).collect(),
            // A column without any of them would be a name without a bar.
            series: series.filter(|series| series.bars.iter().any(Option::is_some)).collect(),
        }
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let head = [String::new()].into_iter().chain(self.columns.iter().map(|(_, title)| title.clone()));
        let mut lines = vec![head.collect::<Vec<_>>()];
        for row in &self.rows {
            let cells = row.cells.iter();
            let cells = cells.map(|cell| cell.as_ref().map_or_else(String::new, |sum| sum.cell(row.digits)));
            lines.push([row.title.clone()].into_iter().chain(cells).collect());
        }
        if !self.aims.is_empty() {
            let aims = self.rows.iter().map(|row| self.aim_of(row));
            for (line, aim) in lines.iter_mut().zip(["first aim".to_owned()].into_iter().chain(aims)) {
                line.push(aim);
            }
        }
        lines
    }

    /// For a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let lines = self.cells();
        let wide = |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|c| c.chars().count()).max();
        let widths: Vec<_> = (0..lines[0].len()).map(|at| wide(at).unwrap_or_default()).collect();
        let mut out = String::new();
        for line in &lines {
            for (at, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let cell = if at == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
                out.push_str(&cell);
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
        out
    }

    /// For a document.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut lines = self.cells().into_iter().map(|line| format!("| {} |\n", line.join(" | ")));
        let head = lines.next().unwrap_or_default();
        let rule = format!("|{}\n", "---|".repeat(head.matches(" | ").count() + 1));
        [head, rule].into_iter().chain(lines).collect()
    }
}

/// What a section of the benchmark found.
#[derive(Debug, Clone)]
pub struct Section {
    /// Its name in `--only`, in JSON and in the document.
    pub name: &'static str,
    /// What was measured and how much of it, in a sentence.
    pub about: String,
    /// Its figures.
    pub grid: Grid,
    /// Its plots, each with the name of its file.
    pub charts: Vec<(&'static str, Chart)>,
    /// When, where, and beside what: filled in by who runs the sections.
    pub circumstances: String,
}

impl Section {
    /// For a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        format!("\n{}\n{}{}\n", self.about, self.grid.text(), self.circumstances)
    }

    /// For machines.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "about": self.about, "circumstances": self.circumstances, "figures": self.grid.json() })
    }

    fn markdown(&self) -> String {
        let plots: String = self
            .charts
            .iter()
            .map(|(file, chart)| format!("![{}](performance/{file}.svg)\n\n", chart.title))
            .collect();
        format!("{}\n\n{}\n{plots}{}\n", self.about, self.grid.markdown(), self.circumstances)
    }

    /// Writes tables between this section's markers in `performance.md` of the directory, and plots and JSON below
    /// `performance/`.
    ///
    /// # Errors
    /// The document has no such markers, or something cannot be written.
    pub fn publish(&self, docs: &Path) -> Result<()> {
        let page = docs.join("performance.md");
        let text = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
        let text = between_markers(&text, self.name, &self.markdown())?;
        let files = docs.join("performance");
        std::fs::create_dir_all(&files)?;
        for (name, chart) in &self.charts {
            std::fs::write(files.join(format!("{name}.svg")), svg(chart))?;
        }
        let json = serde_json::to_string_pretty(&self.json())?;
        std::fs::write(files.join(format!("{}.json", self.name)), json + "\n")?;
        std::fs::write(&page, text).with_context(|| page.display().to_string())
    }
}

/// The document with other text between the markers of a section.
fn between_markers(document: &str, name: &str, text: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- bench: {name} -->"), format!("<!-- end of bench: {name} -->"));
    let missing = || format!("the page has no {begin} … {end}");
    let (before, rest) = document.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    ensure!(!after.contains(&begin), "the page has {begin} twice");
    Ok(format!("{before}{begin}\n{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        let mut grid = Grid::new([("direct", "no tunnel"), ("tunnel", "tunnel")]);
        grid.row("p50_us", "p50, µs", 0, vec![vec![100.0, 120.0, 110.0], vec![1_500.0]]);
        grid.row("added_us", "added, µs", 1, vec![vec![], vec![1_390.0]]);
        grid.aim("added_us", "tunnel", Aim::AtMost(150.0));
        grid.aim("p50_us", "direct", Aim::AtLeast(2.5));
        let chart = grid.chart("Latency", "µs", &[("p50_us", "p50")]);
        Section {
            name: "latency",
            about: "A GET.".to_owned(),
            grid,
            charts: vec![("latency", chart)],
            circumstances: "Quiet.".to_owned(),
        }
    }

    #[test]
    fn a_table_shows_medians_and_their_spread() {
        assert_eq!(
            section().grid.markdown(),
            "|  | no tunnel | tunnel | first aim |\n|---|---|---|---|\n\
             | p50, µs | 110 (100 to 120) | 1,500 | ≥ 2.5: met |\n\
             | added, µs |  | 1,390.0 | ≤ 150: **missed** |\n"
        );
        let text = section().grid.text();
        let starts =
            |what: &str| text.lines().find_map(|line| Some(line[..line.find(what)?].chars().count()));
        let ends = |what: &str| starts(what).map(|start| start + what.chars().count());
        assert_eq!(ends("1,390.0"), ends("1,500"), "columns stand below each other:\n{text}");
    }

    #[test]
    fn json_has_each_round_under_the_names_of_line_and_column() {
        let figures = section().json();
        assert_eq!(figures.pointer("/figures/p50_us/direct/rounds"), Some(&json!([100.0, 120.0, 110.0])));
        assert_eq!(figures.pointer("/figures/added_us/direct"), None, "not measured");
    }

    #[test]
    fn publishing_changes_what_stands_between_the_markers_and_nothing_else() {
        let docs = std::env::temp_dir().join(format!("towline-test-publish-{}", std::process::id()));
        std::fs::create_dir_all(&docs).unwrap();
        let page = docs.join("performance.md");
        let rest = "# P\n<!-- bench: bulk -->\nold\n<!-- end of bench: bulk -->\n";
        std::fs::write(
            &page,
            format!("{rest}<!-- bench: latency -->\nold\n<!-- end of bench: latency -->\nend\n"),
        )
        .unwrap();
        for _ in 0..2 {
            section().publish(&docs).unwrap();
        }
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.starts_with(rest) && text.ends_with("<!-- end of bench: latency -->\nend\n"), "{text}");
        assert_eq!(text.matches("1,500").count(), 1, "{text}");
        assert!(text.contains("![Latency](performance/latency.svg)"));
        assert!(
            docs.join("performance/latency.svg").is_file() && docs.join("performance/latency.json").is_file()
        );

        std::fs::write(&page, rest).unwrap();
        let error = section().publish(&docs).unwrap_err().to_string();
        assert!(error.contains("bench: latency"), "{error}");
        std::fs::remove_dir_all(&docs).unwrap();
    }
}
