//! Who asks. On this listener there is one way to be believed: the parent's aggregator, known by its client
//! certificate, says so in `X-Remote-*` headers. Bearer tokens, other client certificates and no credentials
//! at all are answered with 401, never with an anonymous identity.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::identity::Identity;
use http::{HeaderMap, HeaderName};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::forward;
use crate::refusal::Refusal;

pub mod bearer;
pub mod failures;
pub mod front_proxy;

use front_proxy::{FrontProxy, Trust, TrustProblem};

/// How long a refused certificate is remembered on its connection. Checking a chain costs about 100 µs of
/// signature arithmetic; without this, a stranger's every request would.
const REFUSAL_MEMORY: Duration = Duration::from_secs(5);

/// One connection: where it comes from and which certificates it showed. None of them has been verified by
/// the handshake; that happens per request, since the CA may change and the certificate expire while an
/// aggregator keeps its connection for days.
#[derive(Debug)]
pub struct Peer {
    /// The other end.
    pub address: SocketAddr,
    /// Which listener it came to.
    pub door: Door,
    certificates: Vec<CertificateDer<'static>>,
    verdict: Mutex<Option<Verdict>>,
}

/// The two listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The aggregated API server: the parent's aggregator says who asks.
    Aggregated,
    /// The gateway: a bearer token says so.
    Gateway,
}

/// What the last check of a connection's certificates found, and how long that holds.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    generation: u64,
    until: UnixTime,
    result: Result<(), &'static str>,
}

impl Peer {
    /// A connection that has just been accepted.
    pub fn new(door: Door, address: SocketAddr, certificates: Vec<CertificateDer<'static>>) -> Self {
        Self { address, door, certificates, verdict: Mutex::new(None) }
    }

    /// Where the person or tool is: at the gateway the other end, else whom the parent has seen.
    pub fn client(&self, headers: &HeaderMap) -> IpAddr {
        match self.door {
            Door::Gateway => self.address.ip(),
            Door::Aggregated => forward::headers::client_address(headers, self.address.ip()),
        }
    }

    /// Whether the connection is the parent's aggregator, by the trust of this moment.
    fn check(&self, trust: &Trust, now: UnixTime) -> Result<(), &'static str> {
        let mut known = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = *known
            && verdict.generation == trust.generation
            && now < verdict.until
        {
            return verdict.result;
        }
        let (until, result) = match trust.verify(&self.certificates, now) {
            Ok(until) => (until, Ok(())),
            Err(why) => {
                (UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + REFUSAL_MEMORY), Err(why))
            }
        };
        *known = Some(Verdict { generation: trust.generation, until, result });
        result
    }
}

/// Refuses, rather than strips, what has no honest sender: the parent consumes `--as` before us, so an
/// `Impersonate-*` that arrives was put there to slip through; and a name with `_` is another header to
/// whoever maps it to `-` (CVE-2025-64484).
///
/// # Errors
/// 400 when there is such a header.
pub fn refuse_forged_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.keys().any(|name| hyphenated(name).starts_with("impersonate")) {
        return Err(Refusal::BadRequest("headers Impersonate-* are not accepted here".to_owned()));
    }
    refuse_folded_headers(headers)
}

/// Refuses names that become an identity header when `_` is read as `-`.
///
/// # Errors
/// 400 when there is such a header.
pub fn refuse_folded_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    for name in headers.keys() {
        let folded = hyphenated(name);
        let means = folded.starts_with("impersonate") || folded.starts_with("x-remote-");
        if means && folded != name.as_str() {
            return Err(Refusal::BadRequest(format!("header {folded} is not accepted here")));
        }
    }
    Ok(())
}

/// A header's name as whoever maps `_` to `-` reads it.
pub(crate) fn hyphenated(name: &HeaderName) -> Cow<'_, str> {
    if name.as_str().contains('_') { name.as_str().replace('_', "-").into() } else { name.as_str().into() }
}

/// The identity that the parent vouches for.
///
/// # Errors
/// 401 when nobody does, 400 when the headers contradict each other.
pub fn identify(
    front_proxy: &FrontProxy,
    peer: &Peer,
    headers: &HeaderMap,
    now: UnixTime,
) -> Result<Arc<Identity>, Refusal> {
    let trust = front_proxy.current();
    let trust = trust.as_ref().as_ref().map_err(|problem| match problem {
        TrustProblem::NotRead => Refusal::Starting,
        TrustProblem::Missing(_) | TrustProblem::Malformed(_) | TrustProblem::AnyClient => {
            Refusal::Unauthenticated(front_proxy::NO_TRUST)
        }
    })?;
    peer.check(trust, now).map_err(Refusal::Unauthenticated)?;
    front_proxy::identity(trust, headers).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_claim_another_identity_are_refused_however_they_are_spelt() {
        for name in [
            "impersonate-user",
            "Impersonate-Uid",
            "Impersonate_User",
            "impersonate-zzz",
            "impersonate-extra-x",
            "X_Remote_User",
            "x-remote_group",
        ] {
            let headers: HeaderMap =
                [(name.parse::<HeaderName>().unwrap(), http::HeaderValue::from_static("root"))]
                    .into_iter()
                    .collect();
            let refusal = refuse_forged_headers(&headers).unwrap_err();
            assert_eq!(refusal.to_status().code.as_u16(), 400, "{name}");
        }
        let honest: HeaderMap =
            [(HeaderName::from_static("x-remote-user"), http::HeaderValue::from_static("a"))]
                .into_iter()
                .collect();
        assert!(refuse_forged_headers(&honest).is_ok());
    }

    #[test]
    fn a_hub_that_has_not_read_whom_to_believe_says_later_and_not_never() {
        let front_proxy = FrontProxy::default();
        let peer = Peer::new(Door::Aggregated, SocketAddr::from(([127, 0, 0, 1], 1)), Vec::new());
        let code = || {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
            let refusal = identify(&front_proxy, &peer, &HeaderMap::new(), now).unwrap_err().to_status();
            (refusal.code.as_u16(), refusal.retry_after)
        };
        assert_eq!(code(), (503, Some(1)));
        front_proxy.replace(None).unwrap_err();
        assert_eq!(code(), (401, None));
    }
}
