//! A table of what was tried with which client: collected while the trials run, rendered as Markdown for
//! `docs/compatibility.md`. Pure.

use std::fmt::Write as _;

/// How much of a reason a table shows.
const REASON_SHOWN: usize = 240;

/// What came of one command with one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// It was not tried, for this reason.
    Left(String),
    /// It works through hub and tunnel.
    Works,
    /// It works neither through the hub nor directly: the reason that the child itself gave.
    NowhereWorks(String),
    /// It works directly and not through the hub.
    Fails(String),
}

/// Commands down, clients across.
#[derive(Debug)]
pub struct Table {
    heading: String,
    kind: String,
    clients: Vec<String>,
    commands: Vec<String>,
    cells: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty one. The heading says against what, the kind what the clients are.
    pub fn new(heading: impl Into<String>, kind: &str, clients: &[String], commands: &[&str]) -> Self {
        Self {
            heading: heading.into(),
            kind: kind.to_owned(),
            clients: clients.to_vec(),
            commands: commands.iter().map(|command| (*command).to_owned()).collect(),
            cells: vec![vec![Cell::Left("not asked for".to_owned()); clients.len()]; commands.len()],
        }
    }

    /// Enters one result.
    pub fn set(&mut self, command: usize, client: usize, cell: Cell) {
        if let Some(place) = self.cells.get_mut(command).and_then(|row| row.get_mut(client)) {
            *place = cell;
        }
    }

    /// Commands that were tried and work with no client at all: more likely a wrong test than the age of a client.
    pub fn hopeless(&self) -> Vec<&str> {
        let hopeless = |row: &[Cell]| {
            row.iter().any(|cell| !matches!(cell, Cell::Left(_))) && !row.contains(&Cell::Works)
        };
        let rows = self.commands.iter().zip(&self.cells);
        rows.filter(|(_, row)| hopeless(row)).map(|(command, _)| command.as_str()).collect()
    }

    /// As Markdown: the heading, the table, and a numbered line for each cell that is not "ok". A reason that
    /// several cells share has one number.
    pub fn markdown(&self) -> String {
        let mut notes: Vec<String> = Vec::new();
        let mut text = format!("{}\n\n| {} |", self.heading, self.kind);
        for client in &self.clients {
            let _ = write!(text, " {client} |");
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(self.clients.len()));
        for (command, row) in self.commands.iter().zip(&self.cells) {
            let _ = write!(text, "\n| {command} |");
            for cell in row {
                let shown = match cell {
                    Cell::Works => "ok".to_owned(),
                    Cell::Left(why) => format!("– [{}]", number(&mut notes, &format!("not tried: {why}"))),
                    Cell::NowhereWorks(why) => {
                        let note = format!("fails without the hub too: {why}");
                        format!("skew [{}]", number(&mut notes, &note))
                    }
                    Cell::Fails(why) => format!("**fails** [{}]", number(&mut notes, why)),
                };
                let _ = write!(text, " {shown} |");
            }
        }
        text.push('\n');
        for (at, note) in notes.iter().enumerate() {
            let _ = write!(text, "\n{}. {note}", at + 1);
        }
        if !notes.is_empty() {
            text.push('\n');
        }
        text
    }
}

/// The number of a note, which is added if it is new. On one line, and not endless.
fn number(notes: &mut Vec<String>, note: &str) -> usize {
    let flat: String = note.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown: String = flat.chars().take(REASON_SHOWN).collect();
    if let Some(at) = notes.iter().position(|known| *known == shown) {
        return at + 1;
    }
    notes.push(shown);
    notes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::new("Against X.", "kubectl", &["1.20".to_owned(), "1.37".to_owned()], &["get", "explain"])
    }

    #[test]
    fn a_table_shows_every_cell_and_names_a_shared_reason_once() {
        let mut table = table();
        table.set(0, 0, Cell::Works);
        table.set(0, 1, Cell::NowhereWorks("no such\n  flag".to_owned()));
        table.set(1, 0, Cell::NowhereWorks("no such flag".to_owned()));
        table.set(1, 1, Cell::Fails("502".to_owned()));
        assert_eq!(
            table.markdown(),
            "Against X.\n\n| kubectl | 1.20 | 1.37 |\n|---|---|---|\n| get | ok | skew [1] |\n\
             | explain | skew [1] | **fails** [2] |\n\n\
             1. fails without the hub too: no such flag\n2. 502\n"
        );
    }

    #[test]
    fn what_was_not_tried_is_not_left_blank() {
        let mut table = table();
        table.set(0, 0, Cell::Works);
        assert!(table.markdown().contains("| get | ok | – [1] |"));
        assert!(table.markdown().contains("1. not tried: not asked for"));
    }

    #[test]
    fn a_command_that_works_with_no_client_is_named() {
        let mut table = table();
        assert!(table.hopeless().is_empty(), "nothing was tried");
        table.set(0, 0, Cell::NowhereWorks("skew".to_owned()));
        table.set(0, 1, Cell::Works);
        table.set(1, 0, Cell::NowhereWorks("skew".to_owned()));
        assert_eq!(table.hopeless(), ["explain"]);
    }
}
