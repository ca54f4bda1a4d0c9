//! How a command fails: what happened, why, what to do next, and the exit code. The only place that turns an
//! answer of the parent into an exit code.

use std::error::Error as _;
use std::io::Write as _;

use api::status::{MAX_MESSAGE, printable};

/// Exit codes. They are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Whoever read stdout went away (`| head`): nothing is said, but what was to be printed is not there. The code
    /// of a program that SIGPIPE ends, as a shell reports it.
    Closed,
    /// Anything that has no code of its own.
    Error,
    /// The command line is wrong.
    Usage,
    /// The cluster, or the hub's API in the parent, does not exist.
    NotFound,
    /// The parent refused the caller.
    Denied,
    /// The parent or the hub did not answer.
    Unreachable,
    /// Time is over; the same code as timeout(1).
    Timeout,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Closed => 141,
            Self::Error => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Unreachable => 5,
            Self::Timeout => 124,
        }
    }

    fn of_status(code: u16) -> Self {
        match code {
            401 | 403 => Self::Denied,
            404 | 410 => Self::NotFound,
            408 | 504 => Self::Timeout,
            429 | 502 | 503 => Self::Unreachable,
            _ => Self::Error,
        }
    }
}

/// Why a command did not reach its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    exit: Exit,
    what: String,
    next: Option<String>,
}

impl Failure {
    /// What happened and why, in one lower-case sentence. Text of other sides in it is made printable.
    pub fn new(exit: Exit, what: impl AsRef<str>) -> Self {
        Self { exit, what: printable(what.as_ref(), MAX_MESSAGE), next: None }
    }

    /// The same, with the next step: one line, made printable too.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(printable(&next.into(), MAX_MESSAGE));
        self
    }

    /// With which code to leave.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Says it on stderr.
    pub fn report(&self) {
        if self.exit == Exit::Closed {
            return;
        }
        let next = self.next.as_ref().map(|next| format!("next:  {next}\n")).unwrap_or_default();
        // If stderr is closed too, the exit code has to do.
        drop(write!(std::io::stderr().lock(), "error: {}\n{next}", self.what));
    }

    /// What became of a question to the parent: `doing` completes "could not …".
    pub fn of_kube(doing: &str, error: &kube::Error) -> Self {
        if let kube::Error::Api(status) = error {
            return Self::of_status(doing, status);
        }
        let cause = root_cause(error);
        if matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_)) {
            return Self::new(
                Exit::Unreachable,
                format!("could not {doing}: the parent cannot be reached: {cause}"),
            )
            .next("check the address and the network: kubectl get --raw /readyz");
        }
        if matches!(error, kube::Error::Auth(_)) {
            return Self::new(
                Exit::Denied,
                format!("could not {doing}: your kubeconfig gives no credential: {cause}"),
            )
            .next("log in again, then try: kubectl auth can-i --list");
        }
        if matches!(error, kube::Error::SerdeError(_)) {
            return Self::new(
                Exit::Error,
                format!("could not {doing}: the answer is not understood: {cause}"),
            )
            .next("compare the versions of hub and command: kubectl towline version");
        }
        Self::new(Exit::Error, format!("could not {doing}: {cause}"))
    }

    fn of_status(doing: &str, status: &kube::core::Status) -> Self {
        let exit = Exit::of_status(status.code);
        let why =
            if status.message.is_empty() { format!("HTTP {}", status.code) } else { status.message.clone() };
        // A missing object is named in `details`; a missing API is not.
        let no_api =
            status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty());
        let failure = Self::new(exit, format!("could not {doing}: {}", why.trim_end()));
        match status.code {
            401 => failure.next("log in again, then try: kubectl auth can-i --list"),
            403 => failure.next("ask an administrator of the parent for the right named above"),
            404 if no_api => {
                failure.next("is Towline installed in this parent? kubectl get apiservices | grep -e towline -e clusternet")
            }
            409 => failure.next("somebody else changed it meanwhile; look again and repeat the command"),
            429 | 502..=504 => failure.next("is the hub running? kubectl -n clusternet-system get pods"),
            _ => failure,
        }
    }
}

/// The innermost cause: the outer ones of a client are wrappers that repeat it.
fn root_cause(error: &kube::Error) -> String {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16) -> kube::Error {
        kube::Error::Api(kube::core::Status::failure("no", "Reason").with_code(code).boxed())
    }

    #[test]
    fn each_answer_has_its_exit_code() {
        for (code, exit) in [
            (400, 1),
            (401, 4),
            (403, 4),
            (404, 3),
            (409, 1),
            (410, 3),
            (422, 1),
            (429, 5),
            (500, 1),
            (502, 5),
            (503, 5),
            (504, 124),
        ] {
            assert_eq!(Failure::of_kube("x", &answer(code)).exit().code(), exit, "{code}");
        }
    }

    #[test]
    fn a_dead_network_is_unreachable_and_shows_the_innermost_cause() {
        let io = std::io::Error::other("connection refused");
        let failure = Failure::of_kube("list clusters", &kube::Error::Service(Box::new(io)));
        assert_eq!(failure.exit(), Exit::Unreachable);
        assert!(failure.to_string().starts_with("could not list clusters: "), "{failure}");
        assert!(failure.to_string().ends_with("connection refused"), "{failure}");
    }

    #[test]
    fn a_missing_api_is_told_from_a_missing_object() {
        assert!(Failure::of_kube("x", &answer(404)).next.unwrap().contains("installed"));
        let named = serde_json::from_str(r#"{"name":"edge-1"}"#).unwrap();
        let status = kube::core::Status::failure("no", "NotFound").with_code(404).with_details(named);
        assert_eq!(Failure::of_kube("x", &kube::Error::Api(status.boxed())).next, None);
    }

    #[test]
    fn a_hostile_message_does_not_reach_the_terminal() {
        let status = kube::core::Status::failure("\u{1b}[2J\u{202e}x", "").with_code(500);
        let shown = Failure::of_kube("x", &kube::Error::Api(status.boxed())).to_string();
        assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown:?}");
    }
}
