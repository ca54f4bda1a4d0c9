//! The two ways out: data to stdout, words to a person to stderr. Also tables, in kubectl's form.

use std::io::{BufRead as _, ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::time::{Duration, Instant};

use api::status::printable;

use crate::failure::{Exit, Failure};

/// Longest text of another side in a cell or a line. Conditions may be long, terminals are not.
const MAX_SHOWN: usize = 256;
/// What turns while something is waited for, and how fast: as fast as an eye follows.
const SPINNER: [char; 4] = ['|', '/', '-', '\\'];
/// See [`SPINNER`].
const TURN: Duration = Duration::from_millis(100);
/// Longest answer of a person that is read: a cluster name and a line end, with room.
const MAX_REPLY: u64 = 256;

/// Writes data to stdout.
pub(crate) fn data(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Closed, "stdout is closed"))
        }
        Err(error) => Err(Failure::new(Exit::Error, format!("could not write to stdout: {error}"))),
    }
}

/// Tells the person something. A closed stderr is no failure: the data is what counts.
pub(crate) fn say(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Waits so long. A person at a terminal sees that it goes on, and nothing of that once it is over.
pub(crate) async fn pause(time: Duration, since: Instant) {
    let dumb = crate::config::terminal_is_dumb();
    if dumb || !std::io::stderr().is_terminal() {
        return tokio::time::sleep(time).await;
    }
    let draw = |text: &str| {
        let mut stderr = std::io::stderr().lock();
        drop(stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()));
    };
    let end = Instant::now() + time;
    for sign in SPINNER.iter().cycle() {
        draw(&format!("\r{sign} {} s", since.elapsed().as_secs()));
        if Instant::now() >= end {
            break;
        }
        tokio::time::sleep(TURN).await;
    }
    // CSI K: erases the line (ECMA-48 section 8.3.41).
    draw("\r\x1b[K");
}

/// Is stdout a terminal?
pub(crate) fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Asks the person and returns the reply; `None` if nobody is there to ask.
pub(crate) fn ask(question: &str) -> Option<String> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() || !std::io::stderr().is_terminal() {
        return None;
    }
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question}").and_then(|()| stderr.flush()).ok()?;
    let mut reply = String::new();
    stdin.lock().take(MAX_REPLY).read_line(&mut reply).ok()?;
    Some(reply.trim().to_owned())
}

/// Text of another side, fit for a terminal and never empty.
pub(crate) fn shown(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    let shown = printable(text, MAX_SHOWN);
    if text.len() > MAX_SHOWN { shown + "…" } else { shown }
}

/// JSON text whose strings hold nothing that acts on a terminal. serde_json escapes C0, but neither C1, of which one
/// begins an escape sequence, nor what turns the direction of text.
pub(crate) fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        let one = printable(character.encode_utf8(&mut [0; 4]), MAX_SHOWN);
        // Outside of strings JSON is ASCII, and its line ends are no part of a string.
        if character == '\n' || one.starts_with(character) {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// A sign and its colour for a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    Bad,
    Unclear,
}

/// `text` in the colour of `mood`, or plain.
pub(crate) fn colored(text: &str, mood: Mood, color: bool) -> String {
    let code = match mood {
        Mood::Good => 32,
        Mood::Bad => 31,
        Mood::Unclear => 33,
    };
    if color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Widths of the columns of `rows`.
pub(crate) fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect()
}

/// One line of a table: columns three apart, as kubectl has them, no blanks at the end.
pub(crate) fn line(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (column, cell) in row.iter().enumerate() {
        line.push_str(cell);
        let pad = widths.get(column).copied().unwrap_or(0).saturating_sub(cell.chars().count()) + 3;
        line.extend(std::iter::repeat_n(' ', pad));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// The same line with a colour on one cell: after the padding, for a terminal counts no escapes.
pub(crate) fn line_with(
    row: &[String],
    widths: &[usize],
    column: usize,
    mood: Option<Mood>,
    color: bool,
) -> String {
    let plain = line(row, widths);
    let (Some(mood), Some(cell)) = (mood.filter(|_| color), row.get(column)) else { return plain };
    let padded = |index: usize, cell: &String| {
        let width = widths.get(index).copied().unwrap_or(0);
        cell.len() + width.saturating_sub(cell.chars().count()) + 3
    };
    let start: usize = row.iter().take(column).enumerate().map(|(index, cell)| padded(index, cell)).sum();
    match (plain.get(..start), plain.get(start..start + cell.len()), plain.get(start + cell.len()..)) {
        (Some(before), Some(word), Some(behind)) => format!("{before}{}{behind}", colored(word, mood, true)),
        _ => plain,
    }
}

/// A whole table.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let widths = widths(rows);
    rows.iter().map(|row| line(row, &widths)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn columns_are_three_apart_and_lines_end_without_blanks() {
        let rows =
            [row(&["NAME", "READY", "AGE"]), row(&["edge-1", "True", "5m"]), row(&["äöü", "False", ""])];
        assert_eq!(table(&rows), "NAME     READY   AGE\nedge-1   True    5m\näöü      False\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn a_coloured_cell_stays_in_its_column() {
        let cells = row(&["äöü", "False", "5m"]);
        let widths = widths(&[cells.clone(), row(&["edge-1", "READY", "AGE"])]);
        let plain = line(&cells, &widths);
        let text = line_with(&cells, &widths, 1, Some(Mood::Bad), true);
        assert_eq!(text, "äöü      \u{1b}[31mFalse\u{1b}[0m   5m\n");
        assert_eq!(text.replace("\u{1b}[31m", "").replace("\u{1b}[0m", ""), plain);
        assert_eq!(line_with(&cells, &widths, 1, Some(Mood::Bad), false), plain);
        assert_eq!(line_with(&cells, &widths, 1, None, true), plain);
    }

    #[test]
    fn colour_is_only_added_when_asked_for() {
        assert_eq!(colored("True", Mood::Good, false), "True");
        assert_eq!(colored("True", Mood::Good, true), "\u{1b}[32mTrue\u{1b}[0m");
    }

    #[test]
    fn an_empty_text_is_shown_as_a_dash_and_escapes_are_not_shown() {
        assert_eq!(shown(""), "-");
        assert!(!shown("\u{1b}[31mred").contains('\u{1b}'));
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        let long = "x".repeat(10 * 1024 * 1024);
        assert_eq!(shown(&long), "x".repeat(MAX_SHOWN) + "…");
        assert_eq!(shown(&long[..MAX_SHOWN]), long[..MAX_SHOWN]);
    }

    #[test]
    fn json_means_the_same_and_does_nothing_to_a_terminal() {
        let value = serde_json::json!({ "a\u{9b}": "\u{9b}2J\u{202e}\u{7f}\u{e0001}ä😀\n\u{1b}" });
        let text = json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{text:?}");
        assert!(text.contains("ä😀"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
