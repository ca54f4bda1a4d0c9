//! What replicas of the hub know each other by: a CA of their own in one Secret that all share, and for each replica a
//! certificate that it makes for itself, in memory alone, for a day.
//!
//! Whoever shows no certificate of this CA is refused in the handshake, on both sides: a person's, an agent's and the
//! aggregator's are of other CAs. A replica that dials another one wants that one's name in the certificate besides. The
//! CA signs nothing but this; the pair that stands beside it in the Secret, as in every Secret of this form, is used by
//! nobody and has a name that no replica is asked for.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::time::{MissedTickBehavior, interval};

use super::material::{Material, Wanted, certificates, sign};
use super::{CHECK_EVERY, CertificateTrouble, in_time, load};

/// The Secret, in `clusternet-system`.
pub const SECRET: &str = "clusternet-hub-peer-tls";
/// What stands after a replica's name in its certificate.
const SUFFIX: &str = ".peer.towline";
/// The name in the pair that nobody uses.
const UNUSED: &str = "unused.invalid";
/// A certificate is in memory only, and made again at two thirds of this.
const LIFE: SignedDuration = SignedDuration::from_hours(24);

/// What one replica shows and believes, replaced as a whole.
#[derive(Debug)]
pub struct PeerTls {
    name: String,
    current: ArcSwap<Ends>,
}

#[derive(Debug)]
struct Ends {
    material: Material,
    made: Timestamp,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// The name of a replica in its certificate.
///
/// # Errors
/// Its own name cannot stand in one; the configuration has seen to that.
pub(crate) fn name_of(instance: &str) -> Result<ServerName<'static>, CertificateTrouble> {
    ServerName::try_from(format!("{instance}{SUFFIX}"))
        .map_err(|_| CertificateTrouble::Peer(format!("{instance:?} is no name of a replica")))
}

/// The replica that a verified certificate belongs to.
pub(crate) fn instance_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let [x509_parser::extensions::GeneralName::DNSName(name)] = names.value.general_names.as_slice() else {
        return None;
    };
    name.strip_suffix(SUFFIX).map(ToOwned::to_owned)
}

impl PeerTls {
    /// To dial another replica with.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.current.load().client)
    }

    /// To be dialled with.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().server)
    }

    /// Keeps it fresh; ends only when it is dropped.
    pub async fn keep_fresh(self: Arc<Self>, client: Client) {
        let mut ticks = interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // The next tick is the retry; what is in use stays good meanwhile.
            if let Err(error) = in_time(self.refresh(&client, Timestamp::now())).await {
                tracing::warn!(%error, "the certificate for other replicas could not be checked; trying again");
            }
        }
    }

    async fn refresh(&self, client: &Client, now: Timestamp) -> Result<(), CertificateTrouble> {
        let current = self.current.load_full();
        // A Secret that somebody has deleted is written again: the replicas must not end up with two CAs.
        let material = load(client, SECRET, &wanted(), now, "", Some(&current.material)).await?;
        let age = now.duration_since(current.made);
        if material == current.material && age >= SignedDuration::ZERO && age < LIFE * 2 / 3 {
            return Ok(());
        }
        if material.ca_key != current.material.ca_key {
            tracing::warn!(
                secret = SECRET,
                "another CA is in the Secret; from now on only its replicas are believed"
            );
        }
        self.current.store(Arc::new(ends(&self.name, material, now)?));
        Ok(())
    }
}

/// Loads the CA, or makes it, and a certificate for this replica.
///
/// # Errors
/// The parent's API does not let the hub read or write its Secret.
pub async fn start(client: &Client, instance: &str) -> Result<Arc<PeerTls>, CertificateTrouble> {
    begin(client, instance, Timestamp::now()).await
}

async fn begin(client: &Client, instance: &str, now: Timestamp) -> Result<Arc<PeerTls>, CertificateTrouble> {
    let material = in_time(load(client, SECRET, &wanted(), now, "", None)).await?;
    let name = format!("{instance}{SUFFIX}");
    let current = ArcSwap::from_pointee(ends(&name, material, now)?);
    Ok(Arc::new(PeerTls { name, current }))
}

fn wanted() -> Wanted {
    // The same key for all certificates of the CA: replicas that hold an older one verify what the newer has signed.
    Wanted { names: vec![UNUSED.to_owned()], keeps_keys: true }
}

fn ends(name: &str, material: Material, now: Timestamp) -> Result<Ends, CertificateTrouble> {
    let trouble = |error: &dyn std::fmt::Display| CertificateTrouble::Peer(error.to_string());
    let mut roots = RootCertStore::empty();
    for ca in certificates(&material.ca_bundle) {
        roots.add(ca).map_err(|error| trouble(&error))?;
    }
    let roots = Arc::new(roots);
    let (certificate, key) = sign(&material, name, now, LIFE)?;
    let key = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|error| trouble(&error))?;
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder.with_root_certificates(roots).with_client_auth_cert(vec![certificate.clone()], key())
        })
        .map_err(|error| trouble(&error))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder.with_client_cert_verifier(verifier).with_single_cert(vec![certificate], key())
        })
        .map_err(|error| trouble(&error))?;
    // What a certificate of before could open must not be taken up again without showing one.
    client.resumption = rustls::client::Resumption::disabled();
    server.send_tls13_tickets = 0;
    client.alpn_protocols = vec![b"h2".to_vec()];
    server.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Ends { material, made: now, client: Arc::new(client), server: Arc::new(server) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake_api::FakeApi;

    const PATH: &str = "/api/v1/namespaces/clusternet-system/secrets/clusternet-hub-peer-tls";

    fn day(day: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000).unwrap() + SignedDuration::from_hours(24 * day)
    }

    fn ca(tls: &PeerTls) -> Material {
        tls.current.load().material.clone()
    }

    #[tokio::test]
    async fn all_replicas_have_one_ca_and_none_has_the_certificate_of_another() {
        let api = FakeApi::start().await;
        let one = begin(&api.client(), "hub-1", day(0)).await.unwrap();
        let two = begin(&api.client(), "hub-2", day(1)).await.unwrap();
        assert_eq!(ca(&one), ca(&two));
        let (certificate, _) = sign(&ca(&one), "hub-1.peer.towline", day(0), LIFE).unwrap();
        assert_eq!(instance_of(&certificate).as_deref(), Some("hub-1"));
        let (other, _) = sign(&ca(&one), "hub-1.elsewhere", day(0), LIFE).unwrap();
        assert_eq!(instance_of(&other), None);
    }

    #[tokio::test]
    async fn a_deleted_secret_is_written_again_and_a_certificate_is_made_anew_in_time() {
        let api = FakeApi::start().await;
        let tls = begin(&api.client(), "hub-1", day(0)).await.unwrap();
        let (before, data) = (tls.client(), api.get(PATH).unwrap()["data"].clone());
        api.delete(PATH);
        let soon = day(0) + SignedDuration::from_hours(15);
        tls.refresh(&api.client(), soon).await.unwrap();
        assert_eq!(api.get(PATH).unwrap()["data"], data);
        assert!(Arc::ptr_eq(&before, &tls.client()), "nothing was due");
        tls.refresh(&api.client(), day(0) + SignedDuration::from_hours(17)).await.unwrap();
        assert!(!Arc::ptr_eq(&before, &tls.client()));
    }
}
