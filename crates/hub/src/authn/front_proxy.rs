//! The parent's aggregator as the one who may say who asks (apiserver `headerrequest`, `x509`).
//!
//! Trust comes from the ConfigMap `kube-system/extension-apiserver-authentication`, which is watched: CAs
//! rotate. A missing or unusable ConfigMap means that nobody is believed, never that everybody is. Headers
//! count only behind a certificate of the request-header CA whose common name is allowed, under their
//! standard names only: parents before 1.27 pass other configured names through from anyone, and parents
//! before 1.32 do so with `X-Remote-Uid` unless it is configured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::identity::Identity;
use arc_swap::ArcSwap;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client};
use runtime::readiness::Readiness;
use runtime::stop::Stop;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::refusal::Refusal;
use crate::rewatch::Rewatch;

/// The readiness check that tells whether there is trust.
pub const CHECK: &str = "front-proxy-ca";
/// Answer to everyone while there is none.
pub const NO_TRUST: &str = "this hub does not know its parent's aggregator: ConfigMap kube-system/extension-apiserver-authentication holds no usable request-header CA (see /readyz of the hub; the parent's API server needs --requestheader-client-ca-file and --proxy-client-cert-file)";

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// More certificates in one bundle are no rotation; each anchor may be tried for each connection.
const MAX_ANCHORS: usize = 64;

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const EXTRA_PREFIX: &str = "x-remote-extra-";

/// Why there is no trust; for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustProblem {
    /// Nothing has been read yet.
    #[error("ConfigMap kube-system/extension-apiserver-authentication has not been read yet")]
    NotRead,
    /// It does not exist, or lacks the request-header keys.
    #[error(
        "ConfigMap kube-system/extension-apiserver-authentication has no {0}; start the parent's API server with --requestheader-client-ca-file, --requestheader-username-headers=X-Remote-User and --proxy-client-cert-file"
    )]
    Missing(&'static str),
    /// A value in it cannot be used.
    #[error("ConfigMap kube-system/extension-apiserver-authentication: {0} is malformed")]
    Malformed(&'static str),
    /// Any client of the parent could pose as the aggregator.
    #[error(
        "the parent's request-header CA is also its client CA and --requestheader-allowed-names is empty, so any client certificate would be believed; set --requestheader-allowed-names or use a CA of its own"
    )]
    AnyClient,
}

/// Whom to believe, as the ConfigMap last told.
#[derive(Debug)]
pub struct Trust {
    anchors: Vec<Anchor>,
    allowed_names: Vec<String>,
    read_groups: bool,
    read_extras: bool,
    read_uid: bool,
    /// Grows with each change, so that verdicts of before are void.
    pub(crate) generation: u64,
}

#[derive(Debug)]
struct Anchor {
    anchor: TrustAnchor<'static>,
    from: u64,
    until: u64,
}

impl Trust {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Why it makes no trust.
    pub fn parse(data: &BTreeMap<String, String>, generation: u64) -> Result<Self, TrustProblem> {
        const CA: &str = "requestheader-client-ca-file";
        let ca = data.get(CA).filter(|pem| !pem.trim().is_empty()).ok_or(TrustProblem::Missing(CA))?;
        let anchors = anchors(ca)?;
        let names = list(data, "requestheader-username-headers")?;
        if !names.iter().any(|name| USER.as_str().eq_ignore_ascii_case(name)) {
            return Err(TrustProblem::Missing("X-Remote-User in requestheader-username-headers"));
        }
        let allowed_names = list(data, "requestheader-allowed-names")?;
        let client_ca = data.get("client-ca-file").map(String::as_str).unwrap_or_default();
        if allowed_names.is_empty() && shares_a_certificate(ca, client_ca) {
            return Err(TrustProblem::AnyClient);
        }
        let named = |key, header: &str| -> Result<bool, TrustProblem> {
            Ok(list(data, key)?.iter().any(|name| name.eq_ignore_ascii_case(header)))
        };
        Ok(Self {
            anchors,
            allowed_names,
            read_groups: named("requestheader-group-headers", GROUP.as_str())?,
            read_extras: named("requestheader-extra-headers-prefix", EXTRA_PREFIX)?,
            read_uid: named("requestheader-uid-headers", UID.as_str())?,
            generation,
        })
    }

    /// Whether these certificates, leaf first, are the aggregator's at this time; until when that holds.
    ///
    /// # Errors
    /// Why not, as the 401 says it.
    pub fn verify(&self, chain: &[CertificateDer<'static>], now: UnixTime) -> Result<UnixTime, &'static str> {
        const STRANGER: &str = "only requests that the parent's API server has authenticated and sent on are served here; the client certificate is not the aggregator's";
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(
                "only requests that the parent's API server has authenticated and sent on are served here; use kubectl with the parent's address",
            );
        };
        // Go checks the validity of roots as well, webpki does not.
        let valid = |anchor: &&Anchor| (anchor.from..=anchor.until).contains(&now.as_secs());
        let roots: Vec<_> = self.anchors.iter().filter(valid).map(|anchor| anchor.anchor.clone()).collect();
        let certificate = webpki::EndEntityCert::try_from(leaf).map_err(|_| STRANGER)?;
        certificate
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &roots,
                intermediates,
                now,
                // As in Go, a certificate without any extended key usage is good for all.
                webpki::KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(|error| {
                let expired = matches!(error, webpki::Error::CertExpired { .. });
                if expired {
                    "the client certificate of the parent's aggregator has expired"
                } else {
                    STRANGER
                }
            })?;
        let name = common_name(leaf).ok_or(STRANGER)?;
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(&name) {
            return Err(
                "the client certificate's common name is not among the parent's --requestheader-allowed-names",
            );
        }
        let ends = chain.iter().filter_map(validity).map(|(_, until)| until);
        let roots_end = self.anchors.iter().filter(valid).map(|anchor| anchor.until);
        let until = ends.chain(roots_end).min().unwrap_or_default();
        Ok(UnixTime::since_unix_epoch(Duration::from_secs(until)))
    }
}

fn anchors(pem: &str) -> Result<Vec<Anchor>, TrustProblem> {
    const MALFORMED: TrustProblem = TrustProblem::Malformed("requestheader-client-ca-file");
    let mut anchors = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()).take(MAX_ANCHORS) {
        let certificate = certificate.map_err(|_| MALFORMED)?;
        let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|_| MALFORMED)?.to_owned();
        let (from, until) = validity(&certificate).ok_or(MALFORMED)?;
        anchors.push(Anchor { anchor, from, until });
    }
    if anchors.is_empty() { Err(MALFORMED) } else { Ok(anchors) }
}

/// A list of the ConfigMap: JSON inside a string. An absent key is an empty list.
fn list(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<String>, TrustProblem> {
    match data.get(key).map(|text| text.trim()) {
        None | Some("") => Ok(Vec::new()),
        Some(text) => serde_json::from_str(text).map_err(|_| TrustProblem::Malformed(key)),
    }
}

fn shares_a_certificate(one: &str, other: &str) -> bool {
    let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect()
    };
    let others = certificates(other);
    certificates(one).iter().any(|certificate| others.contains(certificate))
}

/// Seconds since 1970 from and until which a certificate is valid.
fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let second = |time: i64| u64::try_from(time).unwrap_or_default();
    let validity = parsed.validity();
    Some((second(validity.not_before.timestamp()), second(validity.not_after.timestamp())))
}

/// The last common name, as Go's `pkix.Name` takes it.
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().last()?.as_str().ok()?;
    Some(name.to_owned())
}

/// Reads the identity headers; the caller has verified who sent them.
///
/// # Errors
/// No user, two users, or text that makes no identity.
pub fn identity(trust: &Trust, headers: &HeaderMap) -> Result<Identity, Refusal> {
    let mut users = headers.get_all(USER).iter();
    let (user, None) = (users.next(), users.next()) else {
        return Err(Refusal::BadRequest("X-Remote-User stands in the request more than once".to_owned()));
    };
    let user = user.map(text).transpose()?.unwrap_or_default();
    if user.trim().is_empty() {
        return Err(Refusal::Unauthenticated("the parent named no user"));
    }
    let mut groups = Vec::new();
    if trust.read_groups {
        for value in headers.get_all(GROUP) {
            groups.push(text(value)?);
        }
    }
    let uid = match headers.get(UID) {
        Some(value) if trust.read_uid => Some(text(value)?),
        _ => None,
    };
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    if trust.read_extras {
        for (name, value) in headers {
            if let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) {
                extra.entry(extra_key(key)).or_default().push(text(value)?);
            }
        }
    }
    // The aggregator's own fetches come without groups and are allowed as system:authenticated
    // (apiserver `group.NewAuthenticatedGroupAdder`).
    let decided = |group: &String| group == GROUP_AUTHENTICATED || group == "system:unauthenticated";
    if user != "system:anonymous" && !groups.iter().any(decided) {
        groups.push(GROUP_AUTHENTICATED.to_owned());
    }
    Ok(Identity::new(user, uid, groups, extra)?)
}

/// Header values are bytes; an identity is text.
fn text(value: &HeaderValue) -> Result<String, Refusal> {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Refusal::BadRequest("an identity header is not UTF-8".to_owned())),
    }
}

/// client-go escapes every byte that is no token and `%` itself (`headerKeyEscape`); a key with a malformed
/// escape stays as it is. The name has been lower-cased already, before the decoding, as apiserver does.
fn extra_key(escaped: &str) -> String {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digit = |at: usize| after.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else { return escaped.to_owned() };
        bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
        rest = &after[2..];
    }
    String::from_utf8(bytes).unwrap_or_else(|_| escaped.to_owned())
}

/// The trust of this moment; the watch replaces it.
#[derive(Debug)]
pub struct FrontProxy {
    current: ArcSwap<Result<Trust, TrustProblem>>,
    generation: AtomicU64,
}

impl Default for FrontProxy {
    fn default() -> Self {
        Self { current: ArcSwap::from_pointee(Err(TrustProblem::NotRead)), generation: AtomicU64::new(0) }
    }
}

impl FrontProxy {
    /// The trust of this moment.
    pub fn current(&self) -> Arc<Result<Trust, TrustProblem>> {
        self.current.load_full()
    }

    /// Takes what the ConfigMap says now; `None` if there is none.
    pub fn replace(&self, data: Option<&BTreeMap<String, String>>) -> Result<(), TrustProblem> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let empty = BTreeMap::new();
        let trust = Trust::parse(data.unwrap_or(&empty), generation);
        let outcome = trust.as_ref().map(|_| ()).map_err(Clone::clone);
        self.current.store(Arc::new(trust));
        outcome
    }
}

/// Follows the ConfigMap until `stop`. While the parent does not answer, the last trust stays.
///
/// # Errors
/// Never; the watch goes on for ever.
pub async fn follow(
    client: Client,
    front_proxy: Arc<FrontProxy>,
    readiness: Readiness,
    stop: Stop,
) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = watch_objects(maps, only).backoff(Rewatch::default()).into_stream().boxed();
    let mut listed = false;
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            event = events.try_next() => event,
        };
        let seen = match event {
            Ok(Some(Event::Apply(map))) => Some(map),
            Ok(Some(Event::InitApply(map))) => {
                listed = true;
                Some(map)
            }
            Ok(Some(Event::Init)) => {
                listed = false;
                continue;
            }
            Ok(Some(Event::InitDone)) if listed => continue,
            Ok(Some(Event::InitDone | Event::Delete(_))) => None,
            Ok(None) => anyhow::bail!("the watch on ConfigMap {NAMESPACE}/{NAME} ended"),
            Err(error) => {
                tracing::warn!(%error, "ConfigMap {NAMESPACE}/{NAME} cannot be watched; going on with what is known");
                if matches!(front_proxy.current().as_ref(), Err(TrustProblem::NotRead)) {
                    let why = "it cannot be read; does the hub's account have the Role extension-apiserver-authentication-reader in kube-system?";
                    readiness.set(CHECK, Err(format!("ConfigMap {NAMESPACE}/{NAME}: {why}")));
                }
                continue;
            }
        };
        let outcome = front_proxy.replace(seen.as_ref().and_then(|map| map.data.as_ref()));
        match &outcome {
            Ok(()) => tracing::info!("the parent's request-header CA was read"),
            Err(problem) => tracing::warn!(%problem, "nobody can be authenticated"),
        }
        readiness.set(CHECK, outcome.map_err(|problem| problem.to_string()));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    pub(crate) type Ca = CertifiedIssuer<'static, KeyPair>;

    pub(crate) fn ca(name: &str) -> Ca {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A client certificate and its key in PKCS#8 DER.
    pub(crate) fn client(
        ca: &Ca,
        name: &str,
        usages: &[ExtendedKeyUsagePurpose],
        until: Option<(i32, u8, u8)>,
    ) -> (CertificateDer<'static>, Vec<u8>) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = usages.to_vec();
        if let Some((year, month, day)) = until {
            params.not_after = rcgen::date_time_ymd(year, month, day);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, ca).unwrap().der().clone(), key.serialize_der())
    }

    pub(crate) fn data(ca: &Ca, names: &str) -> BTreeMap<String, String> {
        [
            ("requestheader-client-ca-file", ca.pem()),
            ("requestheader-allowed-names", names.to_owned()),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#.to_owned()),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#.to_owned()),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#.to_owned()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    const CLIENT: &[ExtendedKeyUsagePurpose] = &[ExtendedKeyUsagePurpose::ClientAuth];

    #[test]
    fn only_the_aggregators_certificate_is_believed() {
        let (ours, theirs) = (ca("front-proxy"), ca("front-proxy"));
        let trust = Trust::parse(&data(&ours, r#"["front-proxy-client"]"#), 1).unwrap();
        let verify = |certificate: CertificateDer<'static>| trust.verify(&[certificate], now()).is_ok();

        assert!(verify(client(&ours, "front-proxy-client", CLIENT, None).0));
        // Go takes a certificate without extended key usages as good for all of them.
        assert!(verify(client(&ours, "front-proxy-client", &[], None).0));
        assert!(
            !verify(client(&theirs, "front-proxy-client", CLIENT, None).0),
            "another CA of the same name"
        );
        assert!(!verify(client(&ours, "someone", CLIENT, None).0), "a name that is not allowed");
        assert!(!verify(client(&ours, "front-proxy-client", &[ExtendedKeyUsagePurpose::ServerAuth], None).0));
        assert!(!verify(client(&ours, "front-proxy-client", CLIENT, Some((2024, 1, 1))).0), "expired");
        assert!(!verify(CertificateDer::from(vec![1, 2, 3])));
        assert!(trust.verify(&[], now()).is_err());
    }

    #[test]
    fn an_empty_list_of_names_allows_any_name_unless_the_ca_signs_clients_too() {
        let ours = ca("front-proxy");
        let (certificate, _) = client(&ours, "anyone", CLIENT, None);
        let mut map = data(&ours, "[]");
        assert!(Trust::parse(&map, 1).unwrap().verify(&[certificate], now()).is_ok());
        map.insert("client-ca-file".to_owned(), format!("{}{}", ca("other").pem(), ours.pem()));
        assert_eq!(Trust::parse(&map, 1).unwrap_err(), TrustProblem::AnyClient);
    }

    #[test]
    fn a_certificate_is_believed_no_longer_than_it_is_valid() {
        let ours = ca("front-proxy");
        let trust = Trust::parse(&data(&ours, "[]"), 1).unwrap();
        let (certificate, _) = client(&ours, "a", CLIENT, Some((2100, 1, 1)));
        let until = trust.verify(std::slice::from_ref(&certificate), now()).unwrap();
        assert_eq!(until.as_secs(), 4_102_444_800);
        let late = UnixTime::since_unix_epoch(Duration::from_secs(until.as_secs() + 1));
        assert!(trust.verify(&[certificate], late).is_err());
    }

    #[test]
    fn a_connection_is_judged_anew_when_the_ca_changes() {
        let (old, new) = (ca("old"), ca("new"));
        let front_proxy = FrontProxy::default();
        let peer = super::super::Peer::new(
            super::super::Door::Aggregated,
            ([127, 0, 0, 1], 1).into(),
            vec![client(&old, "a", CLIENT, None).0],
        );
        let asked = headers(&[("X-Remote-User", "alice")]);
        let identify = || super::super::identify(&front_proxy, &peer, &asked, now());

        assert_eq!(identify().unwrap_err(), Refusal::Starting);
        front_proxy.replace(None).unwrap_err();
        assert_eq!(identify().unwrap_err(), Refusal::Unauthenticated(NO_TRUST));
        front_proxy.replace(Some(&data(&old, "[]"))).unwrap();
        assert_eq!(identify().unwrap().user(), "alice");
        front_proxy.replace(Some(&data(&new, "[]"))).unwrap();
        assert_eq!(identify().unwrap_err().to_status().code.as_u16(), 401);
        front_proxy.replace(Some(&data(&old, "[]"))).unwrap();
        assert!(identify().is_ok());
        front_proxy.replace(None).unwrap_err();
        assert_eq!(identify().unwrap_err(), Refusal::Unauthenticated(NO_TRUST));
    }

    #[test]
    fn identity_headers_mean_what_kube_apiserver_means() {
        let ours = ca("front-proxy");
        let trust = Trust::parse(&data(&ours, "[]"), 1).unwrap();
        let read = |lines: &[(&str, &str)]| identity(&trust, &headers(lines));

        let full = read(&[
            ("X-Remote-User", "alice"),
            ("X-Remote-Group", "dev"),
            ("X-Remote-Group", ""),
            ("X-Remote-Group", "ops"),
            ("X-Remote-Uid", "42"),
            ("X-Remote-Extra-Scopes.example.com%2fA%20b", "x"),
            ("X-Remote-Extra-bad%zz", "y"),
        ])
        .unwrap();
        assert_eq!(full.groups(), ["dev", "ops", "system:authenticated"]);
        assert_eq!(full.uid(), None, "not configured, so anyone may have sent it");
        assert_eq!(full.extra()["scopes.example.com/a b"], ["x"]);
        assert_eq!(full.extra()["bad%zz"], ["y"]);

        let code = |lines: &[(&str, &str)]| read(lines).unwrap_err().to_status().code.as_u16();
        assert_eq!(code(&[]), 401);
        assert_eq!(code(&[("X-Remote-User", "")]), 401);
        assert_eq!(code(&[("X-Remote-User", " \t ")]), 401);
        assert_eq!(code(&[("X-Remote-User", "a"), ("X-Remote-User", "b")]), 400);
        assert_eq!(code(&[("X-Remote-User", "a"), ("X-Remote-Extra-a%0d%0ab", "x")]), 401);
        assert!(read(&[("X-Remote-User", "system:anonymous")]).unwrap().groups().is_empty());
    }

    #[test]
    fn the_uid_is_read_only_if_it_is_configured() {
        let ours = ca("front-proxy");
        let mut map = data(&ours, "[]");
        map.insert("requestheader-uid-headers".to_owned(), r#"["X-Remote-Uid"]"#.to_owned());
        let trust = Trust::parse(&map, 1).unwrap();
        let who = identity(&trust, &headers(&[("X-Remote-User", "a"), ("X-Remote-Uid", "42")])).unwrap();
        assert_eq!(who.uid(), Some("42"));
    }

    #[test]
    fn an_unusable_config_map_is_explained() {
        let ours = ca("front-proxy");
        for (key, value) in [
            ("requestheader-client-ca-file", ""),
            ("requestheader-client-ca-file", "x"),
            ("requestheader-allowed-names", "{"),
            ("requestheader-username-headers", r#"["X-Other-User"]"#),
        ] {
            let mut map = data(&ours, "[]");
            map.insert(key.to_owned(), value.to_owned());
            let problem = Trust::parse(&map, 1).unwrap_err().to_string();
            assert!(problem.contains("extension-apiserver-authentication"), "{problem}");
        }
    }
}
