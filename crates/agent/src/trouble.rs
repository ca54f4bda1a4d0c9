//! What keeps the agent from its work, told for an operator: a code to search for, what happened, and what
//! to do next. The same trouble is logged once, not once a try.

use std::fmt;
use std::time::Duration;

/// What kind of trouble; the number is stable and stands in the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// TWL-A001
    Dns,
    /// TWL-A002
    Tcp,
    /// TWL-A003
    Tls,
    /// TWL-A004
    Refused,
    /// TWL-A005
    Proxy,
    /// TWL-A006
    Upgrade,
    /// TWL-A007
    Hello,
    /// TWL-A008
    Impersonation,
    /// TWL-A009
    HubDown,
    /// TWL-A010
    Registration,
    /// TWL-A011
    Child,
    /// TWL-A012
    Lost,
    /// TWL-A013
    Denied,
    /// TWL-A014
    NotFound,
    /// TWL-A015; no failure, but nothing goes on before a person acts.
    Pending,
}

impl Code {
    /// As it is logged and counted.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "TWL-A001",
            Self::Tcp => "TWL-A002",
            Self::Tls => "TWL-A003",
            Self::Refused => "TWL-A004",
            Self::Proxy => "TWL-A005",
            Self::Upgrade => "TWL-A006",
            Self::Hello => "TWL-A007",
            Self::Impersonation => "TWL-A008",
            Self::HubDown => "TWL-A009",
            Self::Registration => "TWL-A010",
            Self::Child => "TWL-A011",
            Self::Lost => "TWL-A012",
            Self::Denied => "TWL-A013",
            Self::NotFound => "TWL-A014",
            Self::Pending => "TWL-A015",
        }
    }

    /// What to do next.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Dns => {
                "check that the child's DNS resolves the parent's name, or invite with another address"
            }
            Self::Tcp => "open the way to the parent's address and port, or set HTTPS_PROXY",
            Self::Tls => {
                "the parent shows another certificate than the invitation promised: if its CA was replaced or a \
                 proxy reads TLS, invite again and apply the new agent.yaml"
            }
            Self::Refused => {
                "invite the cluster again in the parent (kubectl towline register NAME) and apply the new \
                 agent.yaml here"
            }
            Self::Proxy => {
                "check HTTPS_PROXY, its user and password, and that it allows CONNECT to the parent"
            }
            Self::Upgrade => {
                "something between agent and hub answers instead of the hub or drops WebSocket upgrades; let \
                 them pass, or add the parent to NO_PROXY"
            }
            Self::Hello => "bring hub and agent to the same release line; see the reason",
            Self::Impersonation => {
                "apply agent.yaml again: it holds ClusterRole clusternet:app:deployer with exactly what is needed"
            }
            Self::HubDown => "nothing here: the hub is away or starting; look at it in the parent",
            Self::Registration => "apply the agent.yaml of an invitation; it holds this Secret",
            Self::Child => {
                "check the child's kube-apiserver and the agent's own account (apply agent.yaml again)"
            }
            Self::Lost => {
                "nothing if it comes back; else look at what closes idle or long connections on the way"
            }
            Self::Denied => "ask who runs the parent; to let it in again there: kubectl towline approve NAME",
            Self::Pending => "compare the key's fingerprint and approve in the parent: kubectl get clsrr",
            Self::NotFound => "install the hub in the parent, or correct the parent's address",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One trouble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Trouble {
    /// What kind.
    pub code: Code,
    /// What happened, without what changes from try to try.
    pub message: String,
    /// How long the other side wants to be left alone (`Retry-After`).
    pub after: Option<Duration>,
}

impl Trouble {
    /// Of a kind, with what happened.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: api::status::printable(&message.into(), api::status::MAX_MESSAGE), after: None }
    }

    /// The same, to be tried again no sooner than this.
    #[must_use]
    pub fn not_before(self, after: Option<Duration>) -> Self {
        Self { after, ..self }
    }

    /// Whether an operator would call it the same; when to try again changes from try to try.
    fn is_same(&self, other: &Self) -> bool {
        (self.code, &self.message) == (other.code, &other.message)
    }
}

/// Logs a trouble when it is another one than the last.
#[derive(Debug, Default)]
pub struct Log {
    last: Option<Trouble>,
}

impl Log {
    /// Logs it, unless the last one was the same. Tells whether it was logged.
    pub fn report(&mut self, trouble: &Trouble) -> bool {
        if self.last.as_ref().is_some_and(|last| last.is_same(trouble)) {
            tracing::debug!(code = %trouble.code, reason = %trouble.message, "still in trouble");
            return false;
        }
        if trouble.code == Code::Pending {
            tracing::info!(code = %trouble.code, reason = %trouble.message, next = trouble.code.remedy(), "waiting");
            self.last = Some(trouble.clone());
            return true;
        }
        tracing::warn!(code = %trouble.code, reason = %trouble.message, remedy = trouble.code.remedy(), "in trouble");
        self.last = Some(trouble.clone());
        true
    }

    /// All is well again; the next trouble is logged even if it is the same.
    pub fn clear(&mut self) {
        self.last = None;
    }
}

/// An error and its sources in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        // Some libraries repeat their source in their own text.
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_logged_once_until_it_changes_or_passes() {
        let mut log = Log::default();
        let tcp = Trouble::new(Code::Tcp, "refused");
        assert!(log.report(&tcp));
        assert!(!log.report(&tcp));
        assert!(
            !log.report(&tcp.clone().not_before(Some(Duration::from_secs(7)))),
            "only the time is another"
        );
        assert!(log.report(&Trouble::new(Code::Dns, "no such name")));
        assert!(log.report(&tcp));
        log.clear();
        assert!(log.report(&tcp));
    }
}
