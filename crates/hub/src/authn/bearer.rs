//! Who asks at the gateway: whoever the parent says a bearer token belongs to (TokenReview), remembered for ten
//! seconds. A token that was good is remembered for longer, as one that may always be asked about: the limit on failed
//! tokens ([`failures`](super::failures)) is for strangers, and so is half of the queue. No answer is an error, never a
//! yes; a token is nowhere but in the request and, as a hash, in memory.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::identity::Identity;
use api::secret::Secret;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use moka::future::Cache;
use tokio::sync::Semaphore;

use super::failures::Failures;
use crate::metrics::Metrics;
use crate::refusal::Refusal;

/// How long an answer holds, yes or no alike; the TTL of apiserver's own token cache.
const CACHE_TTL: Duration = Duration::from_secs(10);
/// Answers that are remembered: a hash and, for a yes, an identity, together about 1 KiB: 16 MiB.
const CACHE_ENTRIES: u64 = 16_384;
/// How long a token that was good may be asked about, whatever else comes from its address; longer than any pause of a
/// tool that is at work.
const GOOD_TTL: Duration = Duration::from_hours(1);
/// Tokens that were good: a hash and bookkeeping, about 200 bytes: 6 MiB.
const GOOD_ENTRIES: u64 = 32_768;
/// Longest token. Those of identity providers with hundreds of groups reach 10 KiB.
const MAX_TOKEN: usize = 32 * 1024;
/// Questions on their way at once; strangers with made-up tokens wait here instead of in the parent.
const MAX_ASKING: usize = 64;
/// Of these, for tokens that were never good: however many strangers come, those who are at work have the rest.
const MAX_STRANGERS: usize = MAX_ASKING / 2;
/// Time for one answer, waiting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Beside those of the parent's API server itself: a token for this audience is good here and nowhere else.
pub const AUDIENCE: &str = "https://access.towline.io";
/// Where no header can be set, a browser passes its token as a subprotocol (apiserver `request/websocket/protocol.go`).
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The one token of a request.
///
/// # Errors
/// 401 when there is none, 400 when there are several.
pub fn token(headers: &HeaderMap) -> Result<Secret, Refusal> {
    let lines = headers.get_all(header::AUTHORIZATION).iter().map(|line| line.to_str().ok().and_then(bearer));
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let protocols = protocols
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|protocol| protocol.trim().strip_prefix(TOKEN_PROTOCOL))
        .map(decoded);
    let mut tokens = lines.chain(protocols);
    match (tokens.next(), tokens.next()) {
        (Some(Some(token)), None) if (1..=MAX_TOKEN).contains(&token.reveal().len()) => Ok(token),
        (None, _) => Err(Refusal::Unauthenticated("a bearer token is needed: Authorization: Bearer <token>")),
        (Some(_), Some(_)) => {
            Err(Refusal::BadRequest("the request carries more than one credential".to_owned()))
        }
        (Some(_), None) => Err(Refusal::Unauthenticated("this is no bearer token")),
    }
}

/// Whether the request shows a credential at all, whatever it is worth.
pub fn is_shown(headers: &HeaderMap) -> bool {
    headers.contains_key(header::AUTHORIZATION)
        || headers
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .any(|line| line.to_str().is_ok_and(|line| line.contains(TOKEN_PROTOCOL)))
}

fn bearer(line: &str) -> Option<Secret> {
    let (scheme, token) = line.split_once(' ')?;
    let token = token.trim();
    let plain = scheme.eq_ignore_ascii_case("bearer") && token.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| Secret::from(token.to_owned()))
}

fn decoded(text: &str) -> Option<Secret> {
    let token = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    token.bytes().all(|byte| byte.is_ascii_graphic()).then(|| Secret::from(token))
}

const NOBODYS: Refusal =
    Refusal::Unauthenticated("the parent cluster does not know this token, or it has expired");

/// What the parent said of a token; `None` is a no.
type Verdict = Option<Arc<Identity>>;

/// The parent's authenticator.
pub struct Tokens {
    reviews: Api<TokenReview>,
    known: Cache<[u8; 32], Verdict>,
    good: Cache<[u8; 32], ()>,
    /// Tokens that were nobody's, by source address.
    pub failures: Failures,
    asking: Semaphore,
    strangers: Semaphore,
    metrics: Metrics,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("known", &self.known.entry_count()).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Asks through this client.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        let known = Cache::builder().max_capacity(CACHE_ENTRIES).time_to_live(CACHE_TTL).build();
        let good = Cache::builder().max_capacity(GOOD_ENTRIES).time_to_live(GOOD_TTL).build();
        let (asking, strangers) = (Semaphore::new(MAX_ASKING), Semaphore::new(MAX_STRANGERS));
        let failures = Failures::default();
        Self { reviews: Api::all(client), known, good, failures, asking, strangers, metrics }
    }

    /// Whose token it is, shown by somebody at this address. The same token at the same time is asked about once.
    ///
    /// # Errors
    /// 401 when it is nobody's, 429 when too many from there were nobody's, 500 when the parent did not say.
    pub async fn identify(&self, token: &Secret, from: IpAddr) -> Result<Arc<Identity>, Refusal> {
        let key = hash(token);
        if let Some(verdict) = self.known.get(&key).await {
            return verdict.ok_or(NOBODYS);
        }
        let stranger = if self.good.contains_key(&key) { None } else { Some(from) };
        // Boxed, as in `authz`: asking takes KiBs of state, and every request's future would hold it.
        let verdict = Box::pin(self.known.try_get_with(key, self.ask(key, token, stranger))).await;
        verdict.map_err(|error: Arc<Refusal>| (*error).clone())?.ok_or(NOBODYS)
    }

    /// Whose token it is now, whatever was answered before: for what is not asked about again for a while.
    ///
    /// # Errors
    /// As [`Tokens::identify`].
    pub async fn fresh(&self, token: &Secret, from: IpAddr) -> Result<Arc<Identity>, Refusal> {
        let key = hash(token);
        let stranger = if self.good.contains_key(&key) { None } else { Some(from) };
        Box::pin(self.ask(key, token, stranger)).await?.ok_or(NOBODYS)
    }

    /// Whether this token may be asked about, or need not be: a stranger who has shown too many that were nobody's is
    /// turned away before anything is spent on the request.
    ///
    /// # Errors
    /// 401 when it was nobody's moments ago, 429 when too many from there were.
    pub async fn check(&self, token: &Secret, from: IpAddr) -> Result<(), Refusal> {
        let key = hash(token);
        match self.known.get(&key).await {
            Some(verdict) => verdict.map(|_| ()).ok_or(NOBODYS),
            None if self.good.contains_key(&key) => Ok(()),
            None => self.failures.check(from),
        }
    }

    /// Whose token it is now, of one that was good when it opened what is still open.
    ///
    /// # Errors
    /// 401 when it is nobody's any more, 500 when the parent did not say.
    pub async fn again(&self, token: &Secret) -> Result<Arc<Identity>, Refusal> {
        let key = hash(token);
        let verdict = Box::pin(self.known.try_get_with(key, self.ask(key, token, None))).await;
        verdict.map_err(|error: Arc<Refusal>| (*error).clone())?.ok_or(NOBODYS)
    }

    /// As if the time of all answers were over.
    #[cfg(test)]
    pub(crate) async fn forget_answers(&self) {
        self.known.invalidate_all();
        self.known.run_pending_tasks().await;
    }

    async fn ask(&self, key: [u8; 32], token: &Secret, stranger: Option<IpAddr>) -> Result<Verdict, Refusal> {
        let check = || stranger.map_or(Ok(()), |from| self.failures.check(from));
        // Before the queue, so that it stays short, and behind it, so that no more are asked than may fail.
        check()?;
        let in_turn = async {
            // The semaphores are never closed, so an error cannot happen; no permit would still be no harm.
            let _among_strangers = match stranger {
                Some(_) => self.strangers.acquire().await.ok(),
                None => None,
            };
            let _turn = self.asking.acquire().await.ok();
            check()?;
            let answer = self.review(token).await;
            answer.map_err(|error| Refusal::AuthenticatorUnavailable(reason(&error)))
        };
        let answer = tokio::time::timeout(TIMEOUT, in_turn).await;
        let answer = answer.unwrap_or_else(|_| Err(Refusal::AuthenticatorUnavailable("timeout".to_owned())));
        self.metrics.tokens_reviewed(match answer {
            Ok(Some(_)) => "authenticated",
            Ok(None) => "unauthenticated",
            Err(Refusal::FailedTokens(_)) => "not_asked",
            Err(_) => "error",
        });
        match (&answer, stranger) {
            (Ok(Some(_)), _) => self.good.insert(key, ()).await,
            (Ok(None), stranger) => {
                self.good.invalidate(&key).await;
                stranger.into_iter().for_each(|from| self.failures.count(from));
            }
            (Err(_), _) => {}
        }
        answer
    }

    async fn review(&self, token: &Secret) -> Result<Verdict, kube::Error> {
        for audience in [None, Some(AUDIENCE)] {
            let review = TokenReview {
                spec: TokenReviewSpec {
                    token: Some(token.reveal().to_owned()),
                    audiences: audience.map(|audience| vec![audience.to_owned()]),
                },
                ..TokenReview::default()
            };
            let status = self.reviews.create(&PostParams::default(), &review).await?.status;
            if let Some(who) = believed(status.unwrap_or_default(), audience) {
                return Ok(Some(Arc::new(who)));
            }
        }
        Ok(None)
    }
}

/// The identity, if everything in the answer says yes (capsule-proxy CVE-2023-48312: `authenticated` was not read;
/// an authenticator that does not know audiences names none in its answer, KEP-1205).
fn believed(status: TokenReviewStatus, audience: Option<&str>) -> Option<Identity> {
    let says_yes =
        status.authenticated == Some(true) && status.error.as_deref().unwrap_or_default().is_empty();
    let for_us = audience.is_none_or(|wanted| status.audiences.iter().flatten().any(|given| given == wanted));
    let user = status.user.filter(|_| says_yes && for_us)?;
    let extra = user.extra.unwrap_or_default();
    Identity::new(
        user.username?,
        user.uid.filter(|uid| !uid.is_empty()),
        user.groups.unwrap_or_default(),
        extra,
    )
    .ok()
}

fn hash(token: &Secret) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.reveal().as_bytes()).as_ref());
    hash
}

/// Nothing of the parent's own words: they go to a caller, and could hold the token.
fn reason(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else {
        tracing::warn!("the parent did not answer a token review: it could not be reached");
        return "it could not be reached".to_owned();
    };
    tracing::warn!(code = status.code, "the parent did not answer a token review");
    if status.code == 403 {
        return "the hub may not create tokenreviews".to_owned();
    }
    "its API server answered with an error".to_owned()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn found(lines: &[(&'static str, &str)]) -> Result<String, u16> {
        token(&headers(lines))
            .map(|token| token.reveal().to_owned())
            .map_err(|refusal| refusal.to_status().code.as_u16())
    }

    #[test]
    fn a_token_comes_in_one_of_two_places_and_once() {
        let a = "authorization";
        let protocol = "sec-websocket-protocol";
        let encoded = format!("v4.channel.k8s.io, {TOKEN_PROTOCOL}{}", URL_SAFE_NO_PAD.encode("abc.def"));
        assert_eq!(found(&[(a, "Bearer abc.def")]), Ok("abc.def".to_owned()));
        assert_eq!(found(&[(a, "bearer  abc.def")]), Ok("abc.def".to_owned()));
        assert_eq!(found(&[(protocol, &encoded)]), Ok("abc.def".to_owned()));
        for (lines, code) in [
            (&[][..], 401),
            (&[(a, "Bearer ")], 401),
            (&[(a, "Bearer a b")], 401),
            (&[(a, "Basic YTpi")], 401),
            (&[(a, "abc")], 401),
            (&[(protocol, "v4.channel.k8s.io")], 401),
            (&[(protocol, "base64url.bearer.authorization.k8s.io.")], 401),
            (&[(protocol, "base64url.bearer.authorization.k8s.io.%%")], 401),
            (&[(a, "Bearer a"), (a, "Bearer a")], 400),
            (&[(a, "Bearer a"), (protocol, &encoded)], 400),
        ] {
            assert_eq!(found(lines), Err(code), "{lines:?}");
        }
        assert_eq!(found(&[(a, &format!("Bearer {}", "x".repeat(MAX_TOKEN + 1)))]), Err(401));
    }

    fn status(
        authenticated: Option<bool>,
        error: &str,
        user: Option<&str>,
        audiences: &[&str],
    ) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated,
            error: Some(error.to_owned()).filter(|error| !error.is_empty()),
            user: user.map(|user| UserInfo {
                username: Some(user.to_owned()),
                groups: Some(vec!["dev".to_owned()]),
                ..UserInfo::default()
            }),
            audiences: Some(audiences.iter().map(|&text| text.to_owned()).collect())
                .filter(|list: &Vec<_>| !list.is_empty()),
        }
    }

    #[test]
    fn only_an_answer_that_says_yes_throughout_is_believed() {
        let yes = believed(status(Some(true), "", Some("alice"), &[]), None).unwrap();
        assert_eq!((yes.user(), yes.groups()), ("alice", &["dev".to_owned()][..]));
        assert!(believed(status(Some(true), "", Some("alice"), &[AUDIENCE]), Some(AUDIENCE)).is_some());
        for (answer, audience) in [
            (status(Some(false), "", Some("alice"), &[]), None),
            (status(None, "", Some("alice"), &[]), None),
            (status(Some(true), "expired", Some("alice"), &[]), None),
            (status(Some(true), "", None, &[]), None),
            (status(Some(true), "", Some(""), &[]), None),
            (status(Some(true), "", Some(" "), &[]), None),
            (status(Some(true), "", Some("alice"), &[]), Some(AUDIENCE)),
            (status(Some(true), "", Some("alice"), &["other"]), Some(AUDIENCE)),
        ] {
            assert!(believed(answer.clone(), audience).is_none(), "{answer:?}");
        }
    }
}
