//! Which replica runs the controllers that must be alone: the one that holds the Lease `clusternet-hub-controllers`, as
//! in client-go `tools/leaderelection`. A replica that stands alone leads without a Lease.
//!
//! Whether a Lease has ended is judged by when this replica saw it change last, on its own clock, so the clocks of two
//! nodes need not agree; every write carries the resourceVersion that it was decided on, so one candidate wins. A leader
//! that could not renew steps down before anybody else may take over: its controllers are gone by then. What they write
//! could be written twice without harm all the same ([`super`]); this keeps two from working against each other.

use std::time::Duration;

use api::names::SYSTEM_NAMESPACE;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use runtime::stop::Stop;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::handle::random_id;
use crate::join::has_code;

/// The Lease.
const NAME: &str = "clusternet-hub-controllers";
/// How often it is renewed, and looked at by those who do not hold it.
const RENEW: Duration = Duration::from_secs(2);
/// How long it is good.
const DURATION: Duration = Duration::from_secs(10);
/// A leader that has not renewed for so long steps down; a last try may take the rest of the time but for two seconds.
const DEADLINE: Duration = Duration::from_secs(6);
const _: () = assert!(DEADLINE.as_secs() + RENEW.as_secs() < DURATION.as_secs(), "two could lead at once");

/// A replica that would lead.
struct Candidate {
    leases: Api<Lease>,
    name: String,
    /// The resourceVersion that was seen last, and since when nothing newer was.
    seen: Option<(Option<String>, Instant)>,
    /// As this replica wrote it, while it leads.
    held: Option<Lease>,
}

/// Campaigns until `stop`, and gives up the Lease then; `leading` tells whether this replica leads.
///
/// # Errors
/// Never; it has this form for whoever waits for it.
pub async fn run(
    client: Client,
    instance: String,
    leading: watch::Sender<bool>,
    counted: Gauge,
    stop: Stop,
) -> anyhow::Result<()> {
    let mut candidate = Candidate::new(client, &instance);
    let mut renewed = Instant::now();
    let mut ticks = interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let began = Instant::now();
        let leads = match timeout(RENEW, candidate.campaign(began)).await {
            Ok(Ok(true)) => {
                renewed = began;
                true
            }
            Ok(Ok(false)) => false,
            failed => {
                let error = failed.map(|failed| failed.err().map(|error| error.to_string()));
                tracing::debug!(lease = NAME, ?error, "the Lease could not be renewed or looked at");
                // What was written may have arrived or not: it is read again.
                candidate.held = None;
                *leading.borrow() && began.elapsed() + (began - renewed) < DEADLINE
            }
        };
        counted.set(i64::from(leads));
        let changed = leading.send_if_modified(|before| std::mem::replace(before, leads) != leads);
        match (changed, leads) {
            (true, true) => tracing::info!(instance, "this replica runs the controllers now"),
            (true, false) => tracing::warn!(instance, "this replica runs the controllers no longer"),
            (false, _) => {}
        }
    }
    leading.send_replace(false);
    counted.set(0);
    if !matches!(timeout(RENEW, candidate.release()).await, Ok(Ok(()))) {
        tracing::info!(lease = NAME, "the Lease of the controllers was not given up; it expires");
    }
    Ok(())
}

impl Candidate {
    fn new(client: Client, instance: &str) -> Self {
        Self {
            leases: Api::namespaced(client, SYSTEM_NAMESPACE),
            // A process that starts again under the same name is another candidate.
            name: format!("{instance}_{}", random_id()),
            seen: None,
            held: None,
        }
    }

    /// Takes or renews the Lease where that is possible; whether it is this replica's afterwards.
    async fn campaign(&mut self, now: Instant) -> Result<bool, kube::Error> {
        let there = match self.held.take() {
            Some(held) => Some(held),
            None => self.leases.get_opt(NAME).await?,
        };
        if let Some(there) = &there {
            let version = there.metadata.resource_version.clone();
            if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
                self.seen = Some((version, now));
            }
            if !self.may_take(there, now) {
                return Ok(false);
            }
        }
        let lease = self.lease(there.as_ref());
        let written = match there {
            Some(_) => self.leases.replace(NAME, &PostParams::default(), &lease).await,
            None => self.leases.create(&PostParams::default(), &lease).await,
        };
        match written {
            Ok(written) => {
                self.seen = Some((written.metadata.resource_version.clone(), now));
                self.held = Some(written);
                Ok(true)
            }
            // Somebody was faster, or has deleted it.
            Err(error) if has_code(&error, 409) || has_code(&error, 404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Its own, given up, or ended.
    fn may_take(&self, there: &Lease, now: Instant) -> bool {
        let spec = there.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let life = seconds.map_or(DURATION, Duration::from_secs);
        let unchanged = self.seen.as_ref().map(|(_, since)| now.duration_since(*since)).unwrap_or_default();
        holder.is_empty() || holder == self.name || unchanged >= life
    }

    fn lease(&self, there: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = there.and_then(|there| there.spec.clone()).unwrap_or_default();
        let mine = before.holder_identity.as_ref() == Some(&self.name);
        let transitions = before.lease_transitions.unwrap_or_default().saturating_add(i32::from(!mine));
        Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(SYSTEM_NAMESPACE.to_owned()),
                ..there.map(|there| there.metadata.clone()).unwrap_or_default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.name.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: before.acquire_time.filter(|_| mine).or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    /// The next one need not wait until it ends.
    async fn release(&mut self) -> Result<(), kube::Error> {
        let Some(mut held) = self.held.take() else { return Ok(()) };
        if let Some(spec) = &mut held.spec {
            // As client-go's ReleaseOnCancel writes it.
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        self.leases.replace(NAME, &PostParams::default(), &held).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::fake_api::{FakeApi, Reaction};

    const PATH: &str =
        "/apis/coordination.k8s.io/v1/namespaces/clusternet-system/leases/clusternet-hub-controllers";

    #[tokio::test]
    async fn one_leads_until_it_renews_no_more_for_a_whole_lease() {
        let (api, begun) = (FakeApi::start().await, Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        let (mut one, mut two) =
            (Candidate::new(api.client(), "hub-1"), Candidate::new(api.client(), "hub-2"));
        assert!(one.campaign(begun).await.unwrap());
        assert!(!two.campaign(begun).await.unwrap());
        assert!(one.campaign(after(8)).await.unwrap(), "renewed");
        assert!(!two.campaign(after(10)).await.unwrap(), "it has changed since");
        assert!(!two.campaign(after(19)).await.unwrap());
        assert!(two.campaign(after(20)).await.unwrap(), "nothing for ten seconds");
        assert!(!one.campaign(after(21)).await.unwrap(), "what it held is not its any more");
        assert_eq!(api.get(PATH).unwrap()["spec"]["leaseTransitions"], 2);
    }

    #[tokio::test]
    async fn whoever_stops_gives_way_at_once_and_a_clock_that_is_wrong_takes_nothing() {
        let (api, begun) = (FakeApi::start().await, Instant::now());
        let (mut one, mut two) =
            (Candidate::new(api.client(), "hub-1"), Candidate::new(api.client(), "hub-2"));
        assert!(one.campaign(begun).await.unwrap());
        let mut lease = api.get(PATH).unwrap();
        lease["spec"]["renewTime"] = json!("2000-01-01T00:00:00.000000Z");
        api.put(PATH, &lease);
        assert!(!two.campaign(begun).await.unwrap(), "by the leader's clock it ended long ago");
        one.held = None;
        assert!(one.campaign(begun).await.unwrap());
        one.release().await.unwrap();
        assert!(two.campaign(begun).await.unwrap());
    }

    #[tokio::test]
    async fn of_two_that_see_it_ended_one_gets_it() {
        let (api, begun) = (FakeApi::start().await, Instant::now());
        let late = begun + DURATION;
        let mut gone = Candidate::new(api.client(), "hub-0");
        assert!(gone.campaign(begun).await.unwrap());
        let (mut one, mut two) =
            (Candidate::new(api.client(), "hub-1"), Candidate::new(api.client(), "hub-2"));
        assert!(!one.campaign(begun).await.unwrap() && !two.campaign(begun).await.unwrap());
        // Both have read it before either writes.
        let (a, b) = tokio::join!(one.campaign(late), two.campaign(late));
        assert_ne!(a.unwrap(), b.unwrap());
    }

    #[tokio::test]
    async fn a_leader_that_cannot_renew_steps_down_before_its_lease_ends() {
        let (api, stop) = (FakeApi::start().await, Stop::new());
        let (sender, mut leading) = watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(run(api.client(), "hub-1".to_owned(), sender, Gauge::default(), stop.clone()));
        timeout(Duration::from_secs(20), leading.wait_for(|leads| *leads)).await.unwrap().unwrap();
        let renewed = Instant::now();
        api.hook(|_, _| Reaction::Hang);
        tokio::time::pause();
        leading.wait_for(|leads| !*leads).await.unwrap();
        let took = renewed.elapsed();
        assert!(took >= Duration::from_secs(3) && took < DURATION, "{took:?}");
    }
}
