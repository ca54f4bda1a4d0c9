//! The watch on the Secrets of issued tokens, which fills [`IssuedTokens`]; once a minute it writes down when they
//! were last used, and deletes those that expired long ago.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::names::SYSTEM_NAMESPACE;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client, ResourceExt as _};
use runtime::stop::Stop;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::IssuedTokens;
use super::stored::{LAST_USED, SECRET_TYPE, Stored, secret_name};
use crate::control::DEADLINE;
use crate::rewatch::Rewatch;

/// How often last uses are written down, at most once per token.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// How long an expired one stays, so that whoever shows it is told that it has expired.
const KEEP_EXPIRED: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Most writes in one round; the others are next.
const MAX_WRITES: usize = 200;

/// Follows the Secrets until `stop`.
///
/// # Errors
/// The watch ended.
pub async fn follow(client: Client, tokens: Arc<IssuedTokens>, stop: Stop) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = fill(client, &tokens) => ended,
        // Beside the watch, never before it: a revocation must not wait for a write.
        () = keep_for_ever(&secrets, &tokens) => Ok(()),
    }
}

async fn fill(client: Client, tokens: &IssuedTokens) -> anyhow::Result<()> {
    let secrets: Api<DeserializeGuard<Secret>> = Api::namespaced(client, SYSTEM_NAMESPACE);
    let config = watcher::Config::default().fields(&format!("type={SECRET_TYPE}"));
    let mut events = watch_objects(secrets, config).backoff(Rewatch::default()).boxed();
    let (mut seen, mut arriving) = (Seen::new(), None);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if take(&mut seen, &mut arriving, event) {
                    tokens.replace(seen.values().cloned());
                }
            }
            Err(error) => tracing::warn!(%error, "the watch on issued tokens broke; it goes on by itself"),
        }
    }
    anyhow::bail!("the watch on issued tokens ended")
}

async fn keep_for_ever(secrets: &Api<Secret>, tokens: &IssuedTokens) {
    let mut ticks = interval(KEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // What was not done in time is done in the next round.
        let _ = timeout(DEADLINE, keep(secrets, tokens, Timestamp::now())).await;
    }
}

type Seen = BTreeMap<String, Stored>;

/// Whether what is known has changed.
fn take(seen: &mut Seen, arriving: &mut Option<Seen>, event: Event<DeserializeGuard<Secret>>) -> bool {
    let read = |object: DeserializeGuard<Secret>| {
        let name = object.name_any();
        let stored = object.0.ok().as_ref().and_then(Stored::from_secret);
        if stored.is_none() {
            tracing::warn!(
                secret = name,
                "this Secret is no credential that the hub wrote; it is left alone"
            );
        }
        Some((name, stored?))
    };
    match event {
        Event::Init => {
            *arriving = Some(Seen::new());
            false
        }
        Event::InitApply(object) => {
            if let (Some(arriving), Some((name, stored))) = (arriving, read(object)) {
                arriving.insert(name, stored);
            }
            false
        }
        Event::InitDone => {
            *seen = arriving.take().unwrap_or_default();
            true
        }
        Event::Apply(object) => {
            let name = object.name_any();
            match read(object) {
                Some((_, stored)) => {
                    let old = seen.insert(name, stored.clone());
                    old.is_none_or(|old| !old.same_but_used(&stored))
                }
                None => seen.remove(&name).is_some(),
            }
        }
        Event::Delete(object) => seen.remove(&object.name_any()).is_some(),
    }
}

/// Writes down last uses, and deletes what expired long ago.
async fn keep(secrets: &Api<Secret>, tokens: &IssuedTokens, now: Timestamp) {
    let mut writes = 0;
    for issued in tokens.all() {
        if writes >= MAX_WRITES {
            break;
        }
        let name = secret_name(&issued.stored.id);
        let done = if issued.stored.expires + KEEP_EXPIRED <= now {
            secrets.delete(&name, &DeleteParams::default()).await.map(drop)
        } else {
            let Some(used) = issued.unwritten_use() else { continue };
            let patch = json!({ "metadata": { "annotations": { LAST_USED: used.to_string() } } });
            secrets
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .map(|_| issued.wrote_use(used))
        };
        writes += 1;
        if let Err(error) = done {
            tracing::debug!(secret = name, %error, "a credential could not be kept up to date");
        }
    }
}
