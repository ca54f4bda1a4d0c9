//! The hub's serving certificate and the small CA that signs it: made at first start, kept in one Secret that
//! all replicas share, renewed at two thirds of life, and announced to the aggregator as `caBundle`.
//!
//! Promises: what the hub serves can always be verified with what the APIServices hold, because a new CA is
//! announced a round before anything signed by it is served, and the old one stays in the bundle while it is
//! valid, also when somebody deletes the Secret, and also when a hub finds that out at its start.
//! Two replicas that start at once end up with one CA (the Secret's resourceVersion decides; the loser
//! reads again). The keys are in that Secret and in memory, nowhere else.

use std::future::Future;
use std::time::Duration;

use api::names::{HUB_SERVICE, HUB_TLS_SECRET, SYSTEM_NAMESPACE};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use runtime::tls::ServingCert;

use crate::config::Settings;
use crate::control::DEADLINE;

pub mod gateway;
mod material;
pub mod peer;

use material::{Material, Plan, Wanted, certificates, outlives, signer};

/// How often a replica looks whether the Secret or an APIService was changed: three small GETs.
const CHECK_EVERY: Duration = Duration::from_secs(20);
/// How often the loser of a race reads again before it gives up.
const RACE_TRIES: usize = 5;
/// What the aggregators get to learn of a CA when there is nothing that the old one has signed. They watch the
/// APIServices, so it takes them milliseconds; a start may take this long.
const SETTLE: Duration = Duration::from_secs(5);
/// The APIServices that lead to the hub.
pub const API_SERVICES: [&str; 2] = ["v1alpha1.proxies.clusternet.io", "v1alpha1.access.towline.io"];

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateTrouble {
    /// The parent did not give or take the Secret.
    #[error("secret clusternet-system/{0} cannot be read or written: {1}")]
    Secret(&'static str, #[source] kube::Error),
    /// The parent did not take the CA.
    #[error("the caBundle of APIService {0} cannot be written: {1}")]
    ApiService(&'static str, #[source] kube::Error),
    /// Other replicas were faster each time.
    #[error("secret clusternet-system/{0} changes faster than it can be read; is something else writing it?")]
    Race(&'static str),
    /// It took too long.
    #[error("the parent's API did not answer within {} s", DEADLINE.as_secs())]
    Slow,
    /// Signing failed.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// What was made cannot serve.
    #[error("the certificate cannot be used: {0}")]
    Use(#[from] runtime::tls::CertificateError),
    /// What was made cannot be used between replicas.
    #[error("the certificate cannot be used between replicas: {0}")]
    Peer(String),
}

/// Base64 of the SHA-256 of the key (SubjectPublicKeyInfo) of the first certificate: what `curl --pinnedpubkey` compares.
pub fn pin(chain_pem: &str) -> Option<String> {
    let leaf = certificates(chain_pem).into_iter().next()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).ok()?;
    Some(STANDARD.encode(digest(&SHA256, leaf.public_key().raw)))
}

/// The names that the certificate is for: those by which the aggregator and people on the spot call the hub.
fn wanted() -> Wanted {
    let service = format!("{HUB_SERVICE}.{SYSTEM_NAMESPACE}.svc");
    let names = vec![service.clone(), format!("{service}.cluster.local"), "localhost".to_owned()];
    // Nobody has written down its keys: the aggregator is told of a new CA.
    Wanted { names, keeps_keys: false }
}

/// Loads or makes the certificate, announces its CA, and gives what serves it and the task that keeps it
/// fresh. The task ends only when it is dropped.
///
/// # Errors
/// The parent's API does not let the hub read or write its Secret or the APIServices.
pub async fn start(
    client: Client,
    settings: &Settings,
) -> Result<(ServingCert, impl Future<Output = ()> + Send + 'static + use<>), CertificateTrouble> {
    tracing::debug!(hub = settings.hub_id, "reading the serving certificate");
    let served = begin(&client, Timestamp::now(), SETTLE).await?;
    Ok((served.serving.clone(), keep_fresh(client, served)))
}

/// What a replica serves first: the certificate that was served before, as long as the aggregators may not know the
/// CA of the new one.
async fn begin(client: &Client, now: Timestamp, settle: Duration) -> Result<Served, CertificateTrouble> {
    let (stored, trusted) =
        in_time(async { Ok((stored(client, HUB_TLS_SECRET).await?, announced(client).await?)) }).await?;
    let material = in_time(load_and_announce(client, now, &trusted)).await?;
    let stored = stored.filter(|stored| *stored != material && outlives(&wanted(), now, stored, &material));
    let (current, announced) = match stored {
        Some(stored) if signer(&stored) != signer(&material) => (stored, Some(material)),
        _ => (material, None),
    };
    let news = signer(&current).is_some_and(|ca| !certificates(&trusted).contains(&ca));
    if news && !trusted.is_empty() {
        tokio::time::sleep(settle).await;
    }
    let serving = ServingCert::new(&current.chain, current.key.reveal())?;
    Ok(Served { serving, current, announced })
}

async fn in_time<T>(
    work: impl Future<Output = Result<T, CertificateTrouble>>,
) -> Result<T, CertificateTrouble> {
    tokio::time::timeout(DEADLINE, Box::pin(work)).await.unwrap_or(Err(CertificateTrouble::Slow))
}

/// What this replica serves, and what it will.
struct Served {
    serving: ServingCert,
    current: Material,
    /// Of another CA: announced in the last round, served from the next one on.
    announced: Option<Material>,
}

async fn keep_fresh(client: Client, mut served: Served) {
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // The next tick is the retry; what is served stays good meanwhile.
        if let Err(error) = in_time(refresh(&client, &mut served, Timestamp::now())).await {
            tracing::warn!(%error, "the hub's certificate could not be checked; trying again");
        }
    }
}

async fn refresh(client: &Client, served: &mut Served, now: Timestamp) -> Result<(), CertificateTrouble> {
    let material = load_and_announce(client, now, &served.current.ca_bundle).await?;
    if material == served.current {
        served.announced = None;
        return Ok(());
    }
    // The aggregators of all kube-apiservers have to learn of a CA before it is used. While they do, the old
    // certificate is good, unless whoever made the new CA has dropped the old one.
    let (ca, old_ca) = (signer(&material), signer(&served.current));
    let old_is_good = certificates(&material.ca_bundle).iter().any(|ca| Some(ca) == old_ca.as_ref());
    if ca != old_ca && old_is_good && served.announced.as_ref() != Some(&material) {
        served.announced = Some(material);
        return Ok(());
    }
    served.serving.replace(&material.chain, material.key.reveal())?;
    served.current = material;
    served.announced = None;
    tracing::info!("a new serving certificate is in use");
    Ok(())
}

async fn load_and_announce(
    client: &Client,
    now: Timestamp,
    trusted: &str,
) -> Result<Material, CertificateTrouble> {
    let material = load(client, HUB_TLS_SECRET, &wanted(), now, trusted, None).await?;
    announce(client, &material.ca_bundle).await?;
    Ok(material)
}

/// Reads the Secret and brings it up to date; whoever is second in a race takes what the first one wrote. If there
/// is none any more, `held` is written again, or the CAs in `trusted` stay in the bundle of a new one.
async fn load(
    client: &Client,
    name: &'static str,
    wanted: &Wanted,
    now: Timestamp,
    trusted: &str,
    held: Option<&Material>,
) -> Result<Material, CertificateTrouble> {
    let failed = |error| CertificateTrouble::Secret(name, error);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    for _ in 0..RACE_TRIES {
        let stored = secrets.get_opt(name).await.map_err(failed)?;
        let read = stored.as_ref().and_then(material::from_secret);
        let existing = read.as_ref().or(held);
        let plan = material::plan(wanted, now, existing);
        if let (Plan::Keep, Some(material)) = (plan, read.as_ref()) {
            return Ok(material.clone());
        }
        let older = existing.map_or(trusted, |existing| &existing.ca_bundle);
        let material = material::make(wanted, now, existing, older, plan)?;
        let version = stored.and_then(|secret| secret.metadata.resource_version);
        let written = material::to_secret(name, &material, version.clone());
        let written = if version.is_some() {
            secrets.replace(name, &PostParams::default(), &written).await
        } else {
            secrets.create(&PostParams::default(), &written).await
        };
        match written {
            Ok(_) => {
                tracing::info!(secret = name, ?plan, "wrote a serving certificate");
                return Ok(material);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(CertificateTrouble::Race(name))
}

/// What the Secret holds, if that is usable text.
async fn stored(client: &Client, name: &'static str) -> Result<Option<Material>, CertificateTrouble> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let secret = secrets.get_opt(name).await.map_err(|error| CertificateTrouble::Secret(name, error))?;
    Ok(secret.as_ref().and_then(material::from_secret))
}

/// The bundle that the aggregators have now; other replicas may be serving by it.
async fn announced(client: &Client) -> Result<String, CertificateTrouble> {
    let services: Api<APIService> = Api::all(client.clone());
    let failed = |error| CertificateTrouble::ApiService(API_SERVICES[0], error);
    let service = services.get_opt(API_SERVICES[0]).await.map_err(failed)?;
    let held = service.and_then(|service| service.spec).and_then(|spec| spec.ca_bundle);
    Ok(held.and_then(|held| String::from_utf8(held.0).ok()).unwrap_or_default())
}

/// Writes the bundle to both APIServices, where it is not there already.
async fn announce(client: &Client, bundle: &str) -> Result<(), CertificateTrouble> {
    let services: Api<APIService> = Api::all(client.clone());
    for name in API_SERVICES {
        let failed = |error| CertificateTrouble::ApiService(name, error);
        let Some(service) = services.get_opt(name).await.map_err(failed)? else {
            tracing::warn!(
                name,
                "APIService is missing: apply deploy/hub.yaml; nobody reaches this hub without it"
            );
            continue;
        };
        let held = service.spec.and_then(|spec| spec.ca_bundle);
        if held.is_some_and(|held| held.0 == bundle.as_bytes()) {
            continue;
        }
        let patch = serde_json::json!({ "spec": { "caBundle": STANDARD.encode(bundle) } });
        services.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map_err(failed)?;
        tracing::info!(name, "announced the hub's CA");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::control::fake_api::{FakeApi, Reaction};

    fn plan(now: Timestamp, existing: Option<&Material>) -> Plan {
        material::plan(&wanted(), now, existing)
    }

    fn make(
        now: Timestamp,
        existing: Option<&Material>,
        older: &str,
        plan: Plan,
    ) -> Result<Material, rcgen::Error> {
        material::make(&wanted(), now, existing, older, plan)
    }

    fn to_secret(material: &Material, version: Option<String>) -> Secret {
        material::to_secret(HUB_TLS_SECRET, material, version)
    }

    fn day(day: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000).unwrap() + SignedDuration::from_hours(24 * day)
    }

    fn fresh() -> Material {
        make(day(0), None, "", Plan::NewCa).unwrap()
    }

    #[test]
    fn the_plan_follows_clock_and_content() {
        let good = fresh();
        let other = fresh();
        let cases = [
            ("nothing there", day(0), None, Plan::NewCa),
            ("fresh", day(0), Some(good.clone()), Plan::Keep),
            ("day 59", day(59), Some(good.clone()), Plan::Keep),
            ("day 60", day(60), Some(good.clone()), Plan::NewLeaf),
            ("expired leaf", day(200), Some(good.clone()), Plan::NewLeaf),
            ("two thirds of the CA", day(1217), Some(good.clone()), Plan::NewCa),
            ("made in the future", day(-2), Some(good.clone()), Plan::NewCa),
            ("another key", day(0), Some(Material { key: other.key.clone(), ..good.clone() }), Plan::NewLeaf),
            ("another CA key", day(0), Some(Material { ca_key: other.ca_key, ..good.clone() }), Plan::NewCa),
            ("no leaf", day(0), Some(Material { chain: String::new(), ..good.clone() }), Plan::NewLeaf),
            ("garbage", day(0), Some(Material { ca_bundle: "x".to_owned(), ..good }), Plan::NewCa),
        ];
        for (what, now, existing, wanted) in cases {
            assert_eq!(plan(now, existing.as_ref()), wanted, "{what}");
        }
    }

    #[test]
    fn a_leaf_of_another_ca_is_replaced() {
        let later = make(day(1), None, "", Plan::NewCa).unwrap();
        let mixed = Material { chain: later.chain, key: later.key, ..fresh() };
        assert_eq!(plan(day(1), Some(&mixed)), Plan::NewLeaf);
    }

    #[test]
    fn a_new_leaf_keeps_the_ca() {
        let old = fresh();
        let new = make(day(61), Some(&old), &old.ca_bundle, Plan::NewLeaf).unwrap();
        assert_eq!(new.ca_bundle, old.ca_bundle);
        assert_ne!(new.chain, old.chain);
        assert_eq!(plan(day(61), Some(&new)), Plan::Keep);
    }

    #[test]
    fn the_old_ca_stays_in_the_bundle_while_it_is_valid() {
        let old = fresh();
        let new = make(day(1300), Some(&old), &old.ca_bundle, Plan::NewCa).unwrap();
        assert_eq!(certificates(&new.ca_bundle).len(), 2);
        assert!(new.ca_bundle.ends_with(&old.ca_bundle));
        let newest = make(day(2600), Some(&new), &new.ca_bundle, Plan::NewCa).unwrap();
        assert_eq!(certificates(&newest.ca_bundle).len(), 2, "the first has expired");
        assert_eq!(plan(day(2600), Some(&newest)), Plan::Keep);
    }

    #[test]
    fn the_leaf_is_for_the_service_and_verifies_with_the_bundle() {
        let material = fresh();
        let roots: Vec<_> = certificates(&material.ca_bundle);
        let anchor = webpki::anchor_from_trusted_cert(&roots[0]).unwrap();
        let leaf = certificates(&material.chain).remove(0);
        let end = webpki::EndEntityCert::try_from(&leaf).unwrap();
        let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
        let usage = webpki::KeyUsage::server_auth();
        end.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[anchor], &[], now, usage, None, None).unwrap();
        for name in wanted().names {
            let name = rustls_pki_types::ServerName::try_from(name).unwrap();
            end.verify_is_valid_for_subject_name(&name).unwrap();
        }
        ServingCert::new(&material.chain, material.key.reveal()).unwrap();
    }

    #[test]
    fn what_is_stored_is_what_is_read() {
        let material = fresh();
        assert_eq!(material::from_secret(&to_secret(&material, None)), Some(material.clone()));
        assert!(!format!("{material:?}").contains("PRIVATE"));
    }
    const SECRET: &str = "/api/v1/namespaces/clusternet-system/secrets/clusternet-hub-tls";
    const SERVICE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.proxies.clusternet.io";

    /// A parent and a replica that serves what it made there.
    async fn serving() -> (FakeApi, Served) {
        let api = FakeApi::start().await;
        api.put(
            SERVICE,
            &serde_json::json!({ "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                                 "metadata": {}, "spec": { "groupPriorityMinimum": 1, "versionPriority": 1 } }),
        );
        let served = begin(&api.client(), day(0), Duration::ZERO).await.unwrap();
        (api, served)
    }

    fn told(api: &FakeApi) -> String {
        let service = api.get(SERVICE).unwrap();
        let bundle = service["spec"]["caBundle"].as_str().unwrap().to_owned();
        String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_certificate_of_a_new_ca_is_served_a_round_after_the_ca_was_announced() {
        let (api, mut served) = serving().await;
        let old = served.current.clone();
        // Another replica was faster.
        let new = make(day(1), Some(&old), &old.ca_bundle, Plan::NewCa).unwrap();
        api.put(SECRET, &to_secret(&new, None));
        refresh(&api.client(), &mut served, day(1)).await.unwrap();
        assert_eq!((&served.current, told(&api)), (&old, new.ca_bundle.clone()));
        refresh(&api.client(), &mut served, day(1)).await.unwrap();
        assert_eq!(served.current, new);
    }

    #[tokio::test]
    async fn a_new_certificate_of_the_same_ca_or_of_one_that_drops_the_old_is_served_at_once() {
        let (api, mut served) = serving().await;
        let leaf = make(day(61), Some(&served.current), &served.current.ca_bundle, Plan::NewLeaf).unwrap();
        api.put(SECRET, &to_secret(&leaf, None));
        refresh(&api.client(), &mut served, day(61)).await.unwrap();
        assert_eq!(served.current, leaf);
        // The old one cannot be verified any more.
        let stranger = make(day(61), None, "", Plan::NewCa).unwrap();
        api.put(SECRET, &to_secret(&stranger, None));
        refresh(&api.client(), &mut served, day(61)).await.unwrap();
        assert_eq!(served.current, stranger);
    }

    #[tokio::test]
    async fn a_deleted_secret_takes_no_ca_away() {
        let (api, mut served) = serving().await;
        let old = served.current.clone();
        api.delete(SECRET);
        refresh(&api.client(), &mut served, day(1)).await.unwrap();
        assert_eq!(served.current, old);
        assert_eq!(certificates(&told(&api)).len(), 2);
        assert!(told(&api).ends_with(&old.ca_bundle));
        refresh(&api.client(), &mut served, day(1)).await.unwrap();
        assert_ne!(served.current, old);
    }

    #[tokio::test]
    async fn a_new_ca_that_is_made_at_start_is_announced_before_it_is_served() {
        let (api, served) = serving().await;
        // Renewed in time, by a CA that is due.
        let old = make(day(1200), Some(&served.current), "", Plan::NewLeaf).unwrap();
        api.put(SECRET, &to_secret(&old, None));
        assert_eq!(plan(day(1220), Some(&old)), Plan::NewCa);
        let mut served = begin(&api.client(), day(1220), Duration::ZERO).await.unwrap();
        assert_eq!(served.current, old);
        assert_eq!(certificates(&told(&api)).len(), 2);
        refresh(&api.client(), &mut served, day(1220)).await.unwrap();
        assert_eq!(signer(&served.current), certificates(&told(&api)).into_iter().next());
        assert_ne!(served.current, old);
    }

    #[tokio::test]
    async fn what_cannot_be_verified_any_more_is_not_served_at_start() {
        let (api, served) = serving().await;
        let garbage = Material { ca_key: fresh().ca_key, ..served.current.clone() };
        for (what, at, stored) in [
            ("the leaf is over", day(1220), served.current.clone()),
            ("another key", day(1220), Material { key: fresh().key, ..served.current.clone() }),
            ("no leaf", day(1), Material { chain: String::new(), ..garbage }),
        ] {
            api.put(SECRET, &to_secret(&stored, None));
            let client = api.client();
            let started = begin(&client, at, Duration::ZERO).await.unwrap();
            assert_ne!(started.current.chain, stored.chain, "{what}");
            assert!(started.announced.is_none(), "{what}");
        }
    }

    #[tokio::test]
    async fn a_start_without_a_secret_takes_no_ca_away_from_other_replicas() {
        let (api, mut other) = serving().await;
        let old = other.current.clone();
        api.delete(SECRET);
        let client = api.client();
        let started = begin(&client, day(1), Duration::ZERO).await.unwrap();
        assert_ne!(signer(&started.current), signer(&old));
        assert!(told(&api).ends_with(&old.ca_bundle) && told(&api).len() > old.ca_bundle.len());
        // The other replica takes its time, as if the CA were its own.
        refresh(&client, &mut other, day(1)).await.unwrap();
        assert_eq!(other.current, old);
        refresh(&client, &mut other, day(1)).await.unwrap();
        assert_eq!(other.current, started.current);
    }

    #[tokio::test]
    async fn a_parent_that_does_not_answer_holds_the_certificate_up_for_a_bounded_time() {
        let (api, mut served) = serving().await;
        let client = api.client();
        refresh(&client, &mut served, day(1)).await.unwrap();
        api.hook(|_, _| Reaction::Hang);
        // Over the connection that there is, so that it is not the connecting that ends.
        tokio::time::pause();
        let round = in_time(refresh(&client, &mut served, day(1)));
        let round = tokio::time::timeout(DEADLINE * 2, round).await;
        assert!(matches!(round, Ok(Err(CertificateTrouble::Slow))), "{round:?}");
    }
}
