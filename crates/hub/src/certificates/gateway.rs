//! The gateway's certificate where nobody has given one: a small CA and what it signs, in a Secret that all replicas
//! share, renewed as the hub's own is.
//!
//! People hold what this made: the CA stands in kubeconfigs that live for months, the hash of the key in commands that
//! fetch a manifest. So a renewal keeps both keys and the CA's name, and what was verified with a former certificate
//! still is; and a Secret that somebody deletes is written again by whoever runs. New keys come of deleting the Secret
//! while no hub runs.

use jiff::Timestamp;
use kube::Client;
use runtime::tls::ServingCert;
use tokio::time::{MissedTickBehavior, interval};

use super::material::{Material, Wanted};
use super::{CHECK_EVERY, CertificateTrouble, in_time, load};

/// The Secret, in `clusternet-system`.
pub const SECRET: &str = "clusternet-hub-gateway-tls";

/// What the gateway serves.
#[derive(Debug)]
pub struct SelfMade {
    /// For the listener.
    pub serving: ServingCert,
    current: Material,
    wanted: Wanted,
}

impl SelfMade {
    /// The CA, for kubeconfigs and manifests.
    pub fn ca_pem(&self) -> &str {
        &self.current.ca_bundle
    }

    /// The certificate.
    pub fn chain(&self) -> &str {
        &self.current.chain
    }

    /// Keeps it fresh; ends only when it is dropped.
    pub async fn keep_fresh(mut self, client: Client) {
        let mut ticks = interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // The next tick is the retry; what is served stays good meanwhile.
            if let Err(error) = in_time(self.refresh(&client, Timestamp::now())).await {
                tracing::warn!(%error, "the gateway's certificate could not be checked; trying again");
            }
        }
    }

    async fn refresh(&mut self, client: &Client, now: Timestamp) -> Result<(), CertificateTrouble> {
        let material = load(client, SECRET, &self.wanted, now, "", Some(&self.current)).await?;
        if material == self.current {
            return Ok(());
        }
        self.serving.replace(&material.chain, material.key.reveal())?;
        if material.ca_key != self.current.ca_key {
            tracing::warn!(
                secret = SECRET,
                "another CA is in the Secret; kubeconfigs that this replica issues name the former one until it is restarted"
            );
        }
        self.current = material;
        tracing::info!("a new certificate is in use at the gateway");
        Ok(())
    }
}

/// Loads the certificate for these names, or makes it.
///
/// # Errors
/// The parent's API does not let the hub read or write its Secret.
pub async fn start(client: &Client, names: Vec<String>) -> Result<SelfMade, CertificateTrouble> {
    begin(client, names, Timestamp::now()).await
}

async fn begin(client: &Client, names: Vec<String>, now: Timestamp) -> Result<SelfMade, CertificateTrouble> {
    let wanted = Wanted { names, keeps_keys: true };
    let current = in_time(load(client, SECRET, &wanted, now, "", None)).await?;
    let serving = ServingCert::new(&current.chain, current.key.reveal())?;
    Ok(SelfMade { serving, current, wanted })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::SignedDuration;
    use rustls_pki_types::{ServerName, UnixTime};

    use super::super::material::certificates;
    use super::*;
    use crate::control::fake_api::FakeApi;

    const PATH: &str = "/api/v1/namespaces/clusternet-system/secrets/clusternet-hub-gateway-tls";

    fn day(day: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000).unwrap() + SignedDuration::from_hours(24 * day)
    }

    fn names(more: &[&str]) -> Vec<String> {
        ["hub.example.com", "192.0.2.7", "2001:db8::7", "k8s.example.com", "*.k8s.example.com"]
            .iter()
            .chain(more)
            .map(ToString::to_string)
            .collect()
    }

    /// Whether what is served can be verified by whoever got this bundle, under these names.
    fn verifies(served: &SelfMade, ca_pem: &str, at: Timestamp, names: &[&str]) -> bool {
        let roots: Vec<_> = certificates(ca_pem);
        let anchors: Vec<_> =
            roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
        let leaf = certificates(served.chain()).remove(0);
        let end = webpki::EndEntityCert::try_from(&leaf).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(at.as_second().cast_unsigned()));
        let usage = webpki::KeyUsage::server_auth();
        let chained = end
            .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &[], now, usage, None, None)
            .is_ok();
        chained
            && names.iter().all(|name| {
                end.verify_is_valid_for_subject_name(&ServerName::try_from(name.to_string()).unwrap()).is_ok()
            })
    }

    #[tokio::test]
    async fn the_certificate_is_for_all_its_names_and_all_replicas_have_the_same() {
        let api = FakeApi::start().await;
        let one = begin(&api.client(), names(&[]), day(0)).await.unwrap();
        let spelt =
            ["hub.example.com", "192.0.2.7", "2001:db8::7", "k8s.example.com", "edge-1.k8s.example.com"];
        assert!(verifies(&one, one.ca_pem(), day(0), &spelt));
        assert!(!verifies(&one, one.ca_pem(), day(0), &["elsewhere.example.com"]));
        let two = begin(&api.client(), names(&[]), day(1)).await.unwrap();
        assert_eq!(two.current, one.current);
    }

    #[tokio::test]
    async fn whoever_holds_a_former_ca_or_the_hash_of_the_key_still_verifies_after_every_renewal() {
        let api = FakeApi::start().await;
        let first = begin(&api.client(), names(&[]), day(0)).await.unwrap();
        let mut served = begin(&api.client(), names(&[]), day(0)).await.unwrap();
        let mut leaves = 0;
        // Past two thirds of the CA's five years, when another certificate of it is made.
        for week in 0..200 {
            let before = served.current.chain.clone();
            served.refresh(&api.client(), day(7 * week)).await.unwrap();
            leaves += u32::from(served.current.chain != before);
            assert!(verifies(&served, first.ca_pem(), day(7 * week), &["hub.example.com"]), "week {week}");
            assert_eq!(served.current.key, first.current.key, "week {week}");
        }
        assert!(leaves > 20, "{leaves}");
        assert_eq!(certificates(served.ca_pem()).len(), 2, "the CA was renewed");
        assert_eq!(served.current.ca_key, first.current.ca_key);
    }

    #[tokio::test]
    async fn another_name_makes_another_certificate_of_the_same_keys() {
        let api = FakeApi::start().await;
        let one = begin(&api.client(), names(&[]), day(0)).await.unwrap();
        let two = begin(&api.client(), names(&["hub.example.org"]), day(1)).await.unwrap();
        assert!(verifies(&two, one.ca_pem(), day(1), &["hub.example.org", "hub.example.com"]));
        assert_eq!(two.current.key, one.current.key);
    }

    #[tokio::test]
    async fn a_deleted_secret_is_written_again() {
        let api = FakeApi::start().await;
        let mut served = begin(&api.client(), names(&[]), day(0)).await.unwrap();
        let before = (served.current.clone(), api.get(PATH).unwrap()["data"].clone());
        api.delete(PATH);
        served.refresh(&api.client(), day(1)).await.unwrap();
        assert_eq!((served.current.clone(), api.get(PATH).unwrap()["data"].clone()), before);
    }
}
