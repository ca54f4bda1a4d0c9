//! Why a tunnel ended: one word for the metric and the log line, and what it means. The set is closed, so a metric that
//! carries it has as many series at most. Pure.

use std::fmt;

use tunnel_proto::Cause;

/// The reasons, those of agent and network first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its agent stopped, or let go of it for a newer one.
    Goaway,
    /// Its agent, or something between, closed it with a code for an error.
    PeerClosed,
    /// The connection broke.
    Broken,
    /// No answer to a PING.
    KeepAlive,
    /// The agent no longer read.
    WriteStall,
    /// The agent broke the protocol.
    ProtocolError,
    /// The agent met a limit against floods.
    Flood,
    /// It was to close, and its streams took too long.
    DrainTimeout,
    /// A newer tunnel of the same agent.
    Replaced,
    /// The same, after the agent was asked for it because this one was old.
    Aged,
    /// This hub stops.
    Shutdown,
    /// The cluster was removed.
    Unregistered,
    /// The cluster was denied.
    ShutOut,
    /// The cluster was registered again with another key.
    Rekeyed,
    /// The agent's account was deleted.
    AccountDeleted,
    /// The parent's RBAC no longer lets the agent hold it.
    Forbidden,
    /// The agent did not prove that it lives when another one wanted its place.
    Silent,
    /// Two agents with one identity were let in by two replicas at once.
    Conflict,
}

impl End {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 18] = [
        Self::Goaway,
        Self::PeerClosed,
        Self::Broken,
        Self::KeepAlive,
        Self::WriteStall,
        Self::ProtocolError,
        Self::Flood,
        Self::DrainTimeout,
        Self::Replaced,
        Self::Aged,
        Self::Shutdown,
        Self::Unregistered,
        Self::ShutOut,
        Self::Rekeyed,
        Self::AccountDeleted,
        Self::Forbidden,
        Self::Silent,
        Self::Conflict,
    ];

    /// The word, in the label `reason` and in the field `reason` of the log line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Goaway => "goaway",
            Self::PeerClosed => "peer_closed",
            Self::Broken => "broken",
            Self::KeepAlive => "keep_alive",
            Self::WriteStall => "write_stall",
            Self::ProtocolError => "protocol_error",
            Self::Flood => "flood",
            Self::DrainTimeout => "drain_timeout",
            Self::Replaced => "replaced",
            Self::Aged => "aged",
            Self::Shutdown => "shutdown",
            Self::Unregistered => "unregistered",
            Self::ShutOut => "shut_out",
            Self::Rekeyed => "rekeyed",
            Self::AccountDeleted => "account_deleted",
            Self::Forbidden => "forbidden",
            Self::Silent => "silent",
            Self::Conflict => "conflict",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Goaway => "its agent closed it in order",
            Self::PeerClosed => "it was closed with a code for an error",
            Self::Broken => "the connection broke",
            Self::KeepAlive => "the agent stopped answering",
            Self::WriteStall => "the agent stopped reading",
            Self::ProtocolError => "the agent broke the protocol",
            Self::Flood => "the agent met a limit against floods",
            Self::DrainTimeout => "its last streams took too long to finish",
            Self::Replaced => "a newer tunnel of the same agent took its place",
            Self::Aged => "it was old, and a newer tunnel of the same agent took its place",
            Self::Shutdown => "this hub is stopping",
            Self::Unregistered => "the cluster was removed",
            Self::ShutOut => "the cluster was shut out",
            Self::Rekeyed => "the cluster was registered again with another key",
            Self::AccountDeleted => "its account in the parent was deleted",
            Self::Forbidden => "its agent may no longer hold it",
            Self::Silent => "its agent did not prove that it lives when another one wanted its place",
            Self::Conflict => "another agent with the same identity is at another replica",
        })
    }
}

impl From<Cause> for End {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::KeepAlive => Self::KeepAlive,
            Cause::WriteStall => Self::WriteStall,
            Cause::PeerClosed => Self::PeerClosed,
            Cause::Broken => Self::Broken,
            Cause::Protocol => Self::ProtocolError,
            Cause::Flood => Self::Flood,
            Cause::DrainTimeout => Self::DrainTimeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_row_for_operators() {
        let faults = include_str!("../../../../docs/faults.md");
        let (_, table) = faults.split_once("## Why a tunnel ended").unwrap();
        let words =
            table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(word, _)| word));
        assert_eq!(words.collect::<Vec<_>>(), End::ALL.map(End::as_str));
        assert!(include_str!("../../../../docs/operations.md").contains("towline_hub_tunnels_ended_total"));
    }
}
