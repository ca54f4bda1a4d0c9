//! What of the configuration can change while the hub runs, and what `/configz` shows of all of it. Followed from the
//! file; a flag or variable needs a restart, since neither can change.

use std::sync::Arc;

use arc_swap::ArcSwap;
use clap::ArgMatches;
use runtime::config::follow::{Follower, News};
use runtime::stop::Stop;
use serde_json::{Value, json};

use crate::config::{LIVE, Mistakes, Settings, line};
use crate::handle::Hub;
use crate::limits::Limits;

/// The part that can change.
#[derive(Debug)]
pub struct Running {
    limits: ArcSwap<Limits>,
    log_filter: ArcSwap<String>,
    shown: ArcSwap<Value>,
}

impl Running {
    /// As it was at the start.
    pub fn new(settings: &Settings) -> Self {
        let effective = &settings.effective;
        let shown = effective.to_json(LIVE, effective);
        Self {
            limits: ArcSwap::from_pointee(settings.limits.clone()),
            log_filter: ArcSwap::from_pointee(settings.log_filter.clone()),
            shown: ArcSwap::from_pointee(about(settings, shown, &[])),
        }
    }

    /// The limits that hold now, for a request or connection that begins.
    pub fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    /// The document of `/configz`: no secret is among the flags, and what looks like one is not shown.
    pub fn shown(&self) -> Arc<Value> {
        self.shown.load_full()
    }
}

fn about(settings: &Settings, mut shown: Value, mistakes: &[String]) -> Value {
    shown["component"] = json!(line::PROGRAM);
    shown["version"] = json!(env!("CARGO_PKG_VERSION"));
    shown["hub"] = json!(settings.hub_id);
    shown["precedence"] = json!(["flag", "environment", "file", "default"]);
    if !mistakes.is_empty() {
        shown["mistakesInFile"] = json!(mistakes);
    }
    shown
}

/// Follows the file, if there is one, until the end.
///
/// # Errors
/// None; it is a task like the others.
pub async fn follow(hub: Arc<Hub>, stop: Stop) -> anyhow::Result<()> {
    let settings = &hub.settings;
    let Some(source) = settings.source.clone().filter(|_| settings.effective.file.is_some()) else {
        stop.cancelled().await;
        return Ok(());
    };
    let mut follower = Follower::new(source, LIVE, settings.effective.clone());
    loop {
        let news = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            news = follower.next(|matches| take(&hub, matches)) => news,
        };
        news.log();
        let shown = follower.running().to_json(LIVE, follower.wanted());
        let mistakes = match &news {
            News::Refused(mistakes) => mistakes.as_slice(),
            News::Taken { .. } => &[],
        };
        hub.running.shown.store(Arc::new(about(&hub.settings, shown, mistakes)));
    }
}

/// Puts into force what can be.
fn take(hub: &Hub, matches: &ArgMatches) -> Result<(), Vec<String>> {
    let settings = line::again(matches).map_err(|Mistakes(mistakes)| mistakes)?;
    // What has its size from the start on.
    let limits = Limits { in_flight: hub.settings.limits.in_flight, ..settings.limits };
    if settings.log_filter != **hub.running.log_filter.load() {
        runtime::logs::set_filter(&settings.log_filter)
            .map_err(|error| vec![format!("--log-filter: {error:#}")])?;
        hub.running.log_filter.store(Arc::new(settings.log_filter));
    }
    hub.users.change(limits.user_in_flight, limits.user_rate);
    hub.clusters.change(limits.cluster_in_flight, limits.cluster_rate);
    hub.running.limits.store(Arc::new(limits));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::time::Duration;

    use runtime::readiness::Readiness;

    use super::*;
    use crate::audit::Audit;
    use crate::authz::fake_parent::FakeParent;
    use crate::config::line::{PROGRAM, Task};
    use crate::metrics::Metrics;
    use crate::shares::Full;

    /// A hub that was started with this file.
    async fn hub(file: &std::path::Path) -> (Arc<Hub>, FakeParent) {
        let argv = [PROGRAM, "--public-url=https://parent", "--config"].map(OsString::from);
        let argv = argv.into_iter().chain([OsString::from(file)]).collect();
        let Task::Run(settings) = line::read(argv) else { panic!("the configuration is bad") };
        let parent = FakeParent::start(|_| Some(true)).await;
        let readiness = Readiness::new(&[]);
        let hub = Hub::new(parent.client(), Arc::new(*settings), readiness, Metrics::new(), Audit::default());
        (Arc::new(hub), parent)
    }

    /// Time passes by itself while everybody waits for it.
    #[tokio::test(start_paused = true)]
    async fn limits_follow_the_file_and_what_cannot_is_shown_as_waiting() {
        let path = std::env::temp_dir().join(format!("towline-hub-running-{}.yaml", std::process::id()));
        std::fs::write(&path, "max-in-flight-per-user: 1\nanswer-timeout: 30s\n").unwrap();
        let (hub, _parent) = hub(&path).await;
        assert_eq!(hub.running.shown()["values"]["max-in-flight-per-user"]["source"], "file, line 1");
        let _first = hub.users.take("alice").unwrap();
        assert_eq!(hub.users.take("alice").unwrap_err(), Full::InFlight(1));

        let stop = Stop::new();
        let mut following = tokio::task::JoinSet::new();
        following.spawn(follow(Arc::clone(&hub), stop.clone()));
        std::fs::write(&path, "max-in-flight-per-user: 2\nanswer-timeout: 5s\nmax-in-flight: 9\n").unwrap();
        let until = async |done: &dyn Fn(&Value) -> bool| {
            let seen = async {
                while !done(&hub.running.shown()) {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), seen).await.expect("it was not followed");
        };
        until(&|shown| shown["values"]["max-in-flight-per-user"]["value"] == "2").await;
        assert!(hub.users.take("alice").is_ok());
        let limits = hub.running.limits();
        assert_eq!(
            (limits.answer_timeout, limits.in_flight),
            (Duration::from_secs(5), crate::limits::IN_FLIGHT)
        );
        let shown = hub.running.shown();
        assert_eq!(shown["values"]["max-in-flight"]["afterRestart"], "9");
        assert_eq!(shown["values"]["max-in-flight"]["live"], false);

        std::fs::write(&path, "max-in-flight-per-user: 0\n").unwrap();
        until(&|shown| {
            shown["mistakesInFile"][0].as_str().is_some_and(|why| why.contains("\"0\" is no number"))
        })
        .await;
        assert_eq!(hub.running.limits().user_in_flight, 2, "a bad file changes nothing");
        stop.cancel();
        assert!(following.join_next().await.unwrap().unwrap().is_ok());
        std::fs::remove_file(&path).unwrap();
    }
}
