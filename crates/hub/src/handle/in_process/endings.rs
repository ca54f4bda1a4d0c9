//! Why tunnels end, as metric and log tell it.

use std::sync::Mutex;

use crate::tunnels::accept;

use super::*;

/// How long anything may take here that is not measured.
const SOON: Duration = Duration::from_secs(20);
const ENDED: &str = "a tunnel has ended";

/// The field `reason` of each line that says that a tunnel has ended.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        #[derive(Default)]
        struct Fields(String, String);
        impl tracing::field::Visit for Fields {
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                if field.name() == "reason" {
                    value.clone_into(&mut self.1);
                }
            }

            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.0 == ENDED {
            self.0.lock().unwrap().push(fields.1);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// An agent that this test lets go as it likes.
struct Agent {
    stop: Stop,
    task: JoinSet<()>,
    /// It was asked for another tunnel.
    asked: Arc<Notify>,
}

/// Whether it answers what a hub asks it itself.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Answers,
    Silent,
}

async fn agent(world: &mut World, manner: Manner) -> Agent {
    let mut changes = world.hub.tunnels.changes();
    let tunnel = world.attach(AGENT, "c1").await.unwrap();
    let (stop, asked) = (Stop::new(), Arc::new(Notify::new()));
    let (stopping, hears) = (stop.clone(), Arc::clone(&asked));
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (_, connection) = agent_side::connect(tunnel, &Hello::new("c1", "agent-1", "1")).await.unwrap();
        let answer = move |request: Request<Incoming>| {
            if request.uri().path() == names::PATH_GOAWAY {
                hears.notify_one();
            }
            async move {
                if manner == Manner::Silent {
                    std::future::pending::<()>().await;
                }
                Response::new(whole("{}".to_owned()))
            }
        };
        let _ = connection.serve(answer, stopping.cancelled_owned()).await;
    });
    tokio::time::timeout(SOON, changes.changed()).await.unwrap().unwrap();
    Agent { stop, task, asked }
}

/// Makes a tunnel end like this: the one word that metric and log have for it.
async fn word(
    limits: Limits,
    manner: Manner,
    ends: impl AsyncFnOnce(&mut World, &mut Agent),
) -> Result<String, String> {
    let lines = Lines::default();
    let log = tracing::subscriber::set_default(lines.clone());
    let setup = Setup { limits, memory: Duration::ZERO, ..Setup::default() };
    let mut world = World::start_with(setup).await;
    let mut agent = agent(&mut world, manner).await;
    ends(&mut world, &mut agent).await;
    let ended = async {
        while lines.0.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let ended = tokio::time::timeout(SOON, ended).await;
    drop(log);
    let words = lines.0.lock().unwrap().clone();
    let text = world.metrics_text();
    world.close().await;
    if ended.is_err() || words.len() != 1 {
        return Err(format!("{words:?}\n{text}"));
    }
    let series = format!("towline_hub_tunnels_ended_total{{reason=\"{}\"}} 1\n", words[0]);
    if !text.contains(&series) || text.matches("tunnels_ended_total{").count() != 1 {
        return Err(format!("{words:?} but {text}"));
    }
    Ok(words[0].clone())
}

impl World {
    fn metrics_text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.hub.registry).unwrap();
        text
    }

    fn enforce(&self, clusters: Option<Cluster>) {
        self.hub.catalog.replace(clusters);
        self.hub.tunnels.enforce(&self.hub.catalog);
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn each_end_of_a_tunnel_has_its_word_in_metric_and_log() {
    let own = |reason| {
        async move |world: &mut World, _: &mut Agent| {
            world.hub.tunnels.close(&"c1".parse().unwrap(), reason);
        }
    };
    let usual = Limits::default;
    let (answers, silent) = (Manner::Answers, Manner::Silent);
    let mut words = Vec::new();
    let goes = async |_: &mut World, agent: &mut Agent| agent.stop.cancel();
    words.push(("goaway", word(usual(), answers, goes).await));
    let dies = async |_: &mut World, agent: &mut Agent| agent.task.shutdown().await;
    words.push(("broken", word(usual(), answers, dies).await));
    let returns = async |world: &mut World, old: &mut Agent| {
        let new = agent(world, Manner::Answers).await;
        old.task.detach_all();
        world.tasks.spawn(async move { new.task.join_all().await.clear() });
    };
    words.push(("replaced", word(usual(), answers, returns).await));
    let ages = Limits { tunnel_age: Duration::from_millis(20), ..usual() };
    let is_old = async |world: &mut World, old: &mut Agent| {
        tokio::time::timeout(SOON, old.asked.notified()).await.unwrap();
        returns(world, old).await;
    };
    words.push(("aged", word(ages, answers, is_old).await));
    let stops = async |world: &mut World, _: &mut Agent| {
        for phase in [&world.hub.phases.stopping, &world.hub.phases.draining, &world.hub.phases.closing] {
            phase.cancel();
        }
    };
    words.push(("shutdown", word(usual(), answers, stops).await));
    let is_cut = async |world: &mut World, _: &mut Agent| world.hub.phases.cut.cancel();
    words.push(("shutdown", word(usual(), answers, is_cut).await));
    let removed = async |world: &mut World, _: &mut Agent| world.enforce(None);
    words.push(("unregistered", word(usual(), answers, removed).await));
    let denied = async |world: &mut World, _: &mut Agent| {
        world.enforce(Some(Cluster { denied: true, ..cluster() }));
    };
    words.push(("shut_out", word(usual(), answers, denied).await));
    let rekeyed = async |world: &mut World, _: &mut Agent| {
        world.enforce(Some(Cluster { key_fingerprint: "new".to_owned(), ..cluster() }));
    };
    words.push(("rekeyed", word(usual(), answers, rekeyed).await));
    words.push(("account_deleted", word(usual(), answers, own(End::AccountDeleted)).await));
    words.push(("conflict", word(usual(), answers, own(End::Conflict)).await));
    let asked_often = Limits { recheck: Duration::from_millis(20), ..usual() };
    let forbidden = async |world: &mut World, _: &mut Agent| world.parent.rule(|_| Some(false));
    words.push(("forbidden", word(asked_often, answers, forbidden).await));
    let gives_no_sign = async |world: &mut World, _: &mut Agent| {
        tokio::time::pause();
        accept::settle(&world.hub, &"c1".parse().unwrap(), "another").await;
        tokio::time::resume();
    };
    words.push(("silent", word(usual(), silent, gives_no_sign).await));
    for (expected, word) in words {
        assert_eq!(word.as_deref(), Ok(expected));
    }
}
