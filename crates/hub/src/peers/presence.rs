//! What a replica holds, as it tells the others: JSON lines, first all of it, then `complete`, then each change. A line of
//! a kind that this version does not know is passed over, so that replicas of two versions understand each other.
//! Pure: bytes and values, no IO.

use std::collections::HashMap;

use api::names::ClusterId;
use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Longest line: an id of 253 and an agent's name of 256 characters, escaped. As much waits at most to be completed.
pub(crate) const MAX_LINE: usize = 4096;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// A tunnel of this cluster, of this agent process.
    Up(ClusterId, String),
    /// None any more.
    Down(ClusterId),
    /// All that there was has been told.
    Complete,
    /// Something that a newer version tells.
    Unknown,
}

/// What is wrong with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a line of presence is over {MAX_LINE} bytes")]
    Long,
    #[error("a line of presence cannot be read")]
    Line,
}

#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    cluster: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    agent: String,
}

impl Line {
    /// Writes it at the end of `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let (kind, cluster, agent) = match self {
            Self::Up(id, agent) => ("up", id.to_string(), agent.clone()),
            Self::Down(id) => ("down", id.to_string(), String::new()),
            Self::Complete => ("complete", String::new(), String::new()),
            Self::Unknown => return,
        };
        let wire = Wire { kind: kind.to_owned(), cluster, agent };
        // Three strings are always JSON.
        out.extend(serde_json::to_vec(&wire).unwrap_or_default());
        out.push(b'\n');
    }

    fn parse(line: &[u8]) -> Result<Self, Malformed> {
        let wire: Wire = serde_json::from_slice(line).map_err(|_| Malformed::Line)?;
        let cluster = || wire.cluster.parse::<ClusterId>().map_err(|_| Malformed::Line);
        match wire.kind.as_str() {
            "up" => Ok(Self::Up(cluster()?, wire.agent.clone())),
            "down" => cluster().map(Self::Down),
            "complete" => Ok(Self::Complete),
            _ => Ok(Self::Unknown),
        }
    }
}

/// Makes lines of what arrives.
#[derive(Debug, Default)]
pub(crate) struct Reader(BytesMut);

impl Reader {
    /// Takes what has arrived.
    pub(crate) fn feed(&mut self, bytes: &Bytes) {
        self.0.extend_from_slice(bytes);
    }

    /// The next line that is complete.
    pub(crate) fn next(&mut self) -> Result<Option<Line>, Malformed> {
        match self.0.iter().position(|byte| *byte == b'\n') {
            Some(end) if end > MAX_LINE => Err(Malformed::Long),
            Some(end) => {
                let line = self.0.split_to(end);
                self.0.advance(1);
                Line::parse(&line).map(Some)
            }
            None if self.0.len() > MAX_LINE => Err(Malformed::Long),
            None => Ok(None),
        }
    }
}

/// The lines that lead from what was told to what is so.
pub(crate) fn changes(told: &HashMap<ClusterId, String>, now: &HashMap<ClusterId, String>) -> Vec<Line> {
    let gone = told.keys().filter(|id| !now.contains_key(*id)).map(|id| Line::Down(id.clone()));
    let come = now.iter().filter(|(id, agent)| told.get(*id) != Some(*agent));
    gone.chain(come.map(|(id, agent)| Line::Up(id.clone(), agent.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(id: &str, agent: &str) -> Line {
        Line::Up(id.parse().unwrap(), agent.to_owned())
    }

    fn all(reader: &mut Reader) -> Result<Vec<Line>, Malformed> {
        let mut lines = Vec::new();
        while let Some(line) = reader.next()? {
            lines.push(line);
        }
        Ok(lines)
    }

    #[test]
    fn lines_arrive_as_they_were_told_however_the_bytes_are_cut() {
        let told = vec![up("c1", "agent \"1\"\n"), Line::Down("c2".parse().unwrap()), Line::Complete];
        let mut bytes = Vec::new();
        told.iter().for_each(|line| line.write(&mut bytes));
        for size in 1..bytes.len() {
            let (mut reader, mut lines) = (Reader::default(), Vec::new());
            for piece in bytes.chunks(size) {
                reader.feed(&Bytes::copy_from_slice(piece));
                lines.extend(all(&mut reader).unwrap());
            }
            assert_eq!(lines, told, "{size}");
        }
    }

    #[test]
    fn a_line_of_a_newer_version_is_passed_over_and_a_bad_or_endless_one_is_refused() {
        let read = |text: &[u8]| {
            let mut reader = Reader::default();
            reader.feed(&Bytes::copy_from_slice(text));
            all(&mut reader)
        };
        assert_eq!(read(b"{\"kind\":\"load\",\"value\":7}\n").unwrap(), [Line::Unknown]);
        assert_eq!(read(b"{\"kind\":\"up\",\"cluster\":\"A/B\"}\n"), Err(Malformed::Line));
        assert_eq!(read(b"up c1\n"), Err(Malformed::Line));
        assert_eq!(read(&[b' '; MAX_LINE + 1]), Err(Malformed::Long));
        assert_eq!(read(&[&[b' '; MAX_LINE + 1][..], b"\n"].concat()), Err(Malformed::Long));
    }

    #[test]
    fn another_agent_of_a_cluster_is_a_change() {
        let map = |all: &[(&str, &str)]| -> HashMap<ClusterId, String> {
            all.iter().map(|(id, agent)| (id.parse().unwrap(), (*agent).to_owned())).collect()
        };
        assert!(changes(&map(&[("c1", "a")]), &map(&[("c1", "a")])).is_empty());
        assert_eq!(changes(&map(&[("c1", "a")]), &map(&[("c1", "b")])), [up("c1", "b")]);
        assert_eq!(changes(&map(&[("c1", "a")]), &map(&[])), [Line::Down("c1".parse().unwrap())]);
    }
}
