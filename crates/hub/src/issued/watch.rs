//! The watch on the Secrets of issued tokens, which fills [`IssuedTokens`]; once a minute it writes down when they
//! were last used, and deletes those that expired long ago.

use std::collections::{BTreeMap, HashMap};
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

use super::stored::{LAST_USED, SECRET_TYPE, Stored, secret_name};
use super::{IssuedTokens, MAX_PER_OWNER, MAX_TOKENS};
use crate::control::DEADLINE;
use crate::rewatch::Rewatch;

/// How often last uses are written down, at most once per token.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// How long an expired one stays, so that whoever shows it is told that it has expired.
const KEEP_EXPIRED: SignedDuration = SignedDuration::from_hours(7 * 24);
/// With more tokens than this, expired ones go at once: `exec-credential` gets a new one every ten minutes, and what is
/// over must not take the place of what is good.
const CROWDED: usize = MAX_TOKENS / 2;
/// So many expired ones of an owner stay; the older ones go at once.
const KEEP_EXPIRED_PER_OWNER: usize = MAX_PER_OWNER;
/// Most last uses that are written in one round; the others are next.
const MAX_WRITES: usize = 200;
/// Most that are deleted in one round, before those: more than one owner can have made since the last.
const MAX_DELETES: usize = 2 * MAX_PER_OWNER;

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

/// Deletes what expired long ago, and writes down last uses.
async fn keep(secrets: &Api<Secret>, tokens: &IssuedTokens, now: Timestamp) {
    let mut all = tokens.all();
    let keep_expired = if all.len() > CROWDED { SignedDuration::ZERO } else { KEEP_EXPIRED };
    all.sort_by_key(|issued| std::cmp::Reverse(issued.stored.expires));
    let mut expired: HashMap<String, usize> = HashMap::new();
    let (over, good): (Vec<_>, Vec<_>) = all.into_iter().partition(|issued| {
        if !issued.expired(now) {
            return false;
        }
        let of_owner = expired.entry(issued.owner.user().to_owned()).or_default();
        *of_owner += 1;
        issued.stored.expires + keep_expired <= now || *of_owner > KEEP_EXPIRED_PER_OWNER
    });
    let failed = |name: &str, error: &kube::Error| {
        tracing::debug!(secret = name, %error, "a credential could not be kept up to date");
    };
    for issued in over.iter().take(MAX_DELETES) {
        let name = secret_name(&issued.stored.id);
        if let Err(error) = secrets.delete(&name, &DeleteParams::default()).await {
            failed(&name, &error);
        }
    }
    let used = good.iter().filter_map(|issued| Some((issued, issued.unwritten_use()?)));
    for (issued, used) in used.take(MAX_WRITES) {
        let name = secret_name(&issued.stored.id);
        let patch = json!({ "metadata": { "annotations": { LAST_USED: used.to_string() } } });
        match secrets.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => issued.wrote_use(used),
            Err(error) => failed(&name, &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash;
    use super::super::tests::stored;
    use super::*;
    use crate::control::fake_api::FakeApi;

    const NOW: &str = "2029-01-01T00:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    /// Credential 0…i of token `ti`.
    fn numbered(number: usize, expires: Timestamp) -> Stored {
        Stored { id: format!("{number:016x}"), expires, ..stored(&format!("t{number}"), None) }
    }

    fn path(stored: &Stored) -> String {
        format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/{}", secret_name(&stored.id))
    }

    /// The parent with these, and the tokens as the watch would have them.
    async fn world(all: &[Stored]) -> (FakeApi, Api<Secret>, IssuedTokens) {
        let api = FakeApi::start().await;
        for stored in all {
            api.put(&path(stored), &stored.to_secret());
        }
        let tokens = IssuedTokens::default();
        tokens.replace(all.iter().cloned());
        let secrets = Api::namespaced(api.client(), SYSTEM_NAMESPACE);
        (api, secrets, tokens)
    }

    fn count(api: &FakeApi, verb: &str) -> usize {
        api.asked().iter().filter(|line| line.starts_with(verb)).count()
    }

    #[tokio::test]
    async fn a_round_writes_one_last_use_however_often_a_token_was_used() {
        let one = numbered(1, now() + SignedDuration::from_hours(1));
        let unused = numbered(2, now() + SignedDuration::from_hours(1));
        let (api, secrets, tokens) = world(&[one.clone(), unused.clone()]).await;
        for second in 0..50 {
            let at = now() + SignedDuration::from_secs(second);
            tokens.find(&"t1".to_owned().into(), at).unwrap();
        }
        keep(&secrets, &tokens, now()).await;
        keep(&secrets, &tokens, now()).await;
        assert_eq!(count(&api, "PATCH"), 1, "{:?}", api.asked());
        let written = api.get(&path(&one)).unwrap();
        assert_eq!(written["metadata"]["annotations"][LAST_USED], "2029-01-01T00:00:49Z");
        assert!(api.get(&path(&unused)).unwrap()["metadata"].get("annotations").is_none());
        // What comes back by the watch is the same token, and no reason to write again.
        let back = serde_json::from_value::<Secret>(written).unwrap();
        let back = Stored::from_secret(&back).unwrap();
        assert!(back.same_but_used(&one));
        tokens.replace([back, unused]);
        keep(&secrets, &tokens, now()).await;
        assert_eq!(count(&api, "PATCH"), 1);
        tokens.find(&"t1".to_owned().into(), now() + SignedDuration::from_secs(60)).unwrap();
        keep(&secrets, &tokens, now()).await;
        assert_eq!(count(&api, "PATCH"), 2);
        assert!(KEEP_EVERY >= Duration::from_secs(60), "that is how often a round comes");
    }

    #[tokio::test]
    async fn what_expired_stays_for_a_week_unless_it_takes_the_place_of_others() {
        let ended = |hours: i64| now() - SignedDuration::from_hours(hours);
        let (fresh, old) = (numbered(1, ended(1)), numbered(2, ended(8 * 24)));
        let (api, secrets, tokens) = world(&[fresh.clone(), old.clone()]).await;
        keep(&secrets, &tokens, now()).await;
        assert!(api.get(&path(&fresh)).is_some() && api.get(&path(&old)).is_none());

        // The oldest of an owner who has had many go before their week is over.
        let many = (10..10 + KEEP_EXPIRED_PER_OWNER).map(|number| numbered(number, now()));
        tokens.replace(many.chain([fresh.clone()]));
        api.put(&path(&fresh), &fresh.to_secret());
        keep(&secrets, &tokens, now()).await;
        assert!(api.get(&path(&fresh)).is_none(), "there are {KEEP_EXPIRED_PER_OWNER} younger ones");
        assert_eq!(count(&api, "DELETE"), 2, "and nothing else");
        api.put(&path(&fresh), &fresh.to_secret());

        let alive = now() + SignedDuration::from_hours(1);
        let crowd = (10..CROWDED + 10).map(|number| numbered(number, alive)).chain([fresh.clone()]);
        tokens.replace(crowd);
        keep(&secrets, &tokens, now()).await;
        assert!(api.get(&path(&fresh)).is_none(), "it was over");
        assert_eq!(count(&api, "DELETE"), 3, "and nothing else");
    }

    #[tokio::test]
    async fn a_token_that_was_lost_from_the_parent_is_no_reason_to_stop_writing() {
        let alive = now() + SignedDuration::from_hours(1);
        let all = [numbered(1, alive), numbered(2, alive)];
        let (api, secrets, tokens) = world(&all).await;
        for stored in &all {
            assert_eq!(hash(&format!("t{}", stored.id.trim_start_matches('0')).into()), stored.hash);
            tokens.find(&format!("t{}", stored.id.trim_start_matches('0')).into(), now()).unwrap();
        }
        api.delete(&path(&all[0]));
        keep(&secrets, &tokens, now()).await;
        assert!(api.get(&path(&all[1])).unwrap()["metadata"]["annotations"].get(LAST_USED).is_some());
    }
}
