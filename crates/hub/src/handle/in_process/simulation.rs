//! Several replicas, several clusters and several people, from a seed: who asks what where and gives it up when, which
//! replica dies or loses its parent or believes what is not so, which connection breaks or falls silent, which agent is
//! replaced, which cluster is shut out. Time is virtual, connections are pipes; nothing but the hub itself is real.
//!
//! What has to hold each time (the letters are those of `docs/faults.md`):
//!
//! - a request reaches one child at most, and only the one that its asker may use and named (P1);
//! - as that asker (P2), at most once (P3), over one hop between replicas at most;
//! - an answer is its own request's, and a watch skips nothing (P4, P7);
//! - each request ends in time, and one for a cluster that is offline at once (P5);
//! - nothing reaches a cluster that is shut out at all replicas (P6);
//! - when the trouble is over, every replica serves every cluster again (P9);
//! - one process of an agent serves: the newest where it was named, and no copy beside the one that is there (P10);
//! - after that nothing is left: no request, no tunnel, no task (P8), and each tunnel that was opened has ended for a reason.
//!
//! `TOWLINE_SEED=n` runs one seed, `TOWLINE_SEEDS=n` so many, both together so many from that one on. What the hub itself draws by chance (which of two replicas)
//! is not from the seed, so a rare failure may take the same seed several times.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::*;

mod child;
mod faults;
mod fleet;
mod plan;

use child::WATCHED;
use faults::schedule::Dice;
use fleet::{Fleet, Hop, id};
use plan::{Ask, CLUSTERS, Event, Kind, Plan, TROUBLE, USERS, may_use, role_of};

/// Seeds, when the environment does not say otherwise.
const SEEDS: u64 = 500;
/// Runs at once.
const WORKERS: usize = 2;
/// Longest time of a request: the deadline of a short one, with its margin, twice, because it may go two ways.
const LONGEST: Duration = Duration::from_secs(150);
/// When the trouble ends, so does each connection that had any. Whoever was refused dials again after 1.5 s at most.
const QUIET: Duration = Duration::from_secs(10);
/// For a cluster that is offline.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Longer than a whole run takes, in virtual time.
const FOR_EVER: Duration = Duration::from_secs(3_600);

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// The child's whole answer.
    Whole,
    /// It began, and ended with an error.
    Cut,
    /// The hub answered by itself.
    Refused(u16),
    /// Nobody was there, or the connection broke before an answer.
    NoAnswer,
    /// Whoever asked did not wait.
    GivenUp,
    /// It never ended.
    Hung,
}

#[test]
fn several_replicas_give_each_person_their_own_answer_whatever_breaks() {
    #[expect(clippy::disallowed_methods, reason = "a switch of the test, not of the product")]
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let (first, count) = (number("TOWLINE_SEED"), number("TOWLINE_SEEDS"));
    let count = count.unwrap_or_else(|| if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or(0);
    let (next, all, failed) = (AtomicU64::new(first), Mutex::new(Tally::default()), Mutex::new(None));
    let work = || {
        while let seed = next.fetch_add(1, Ordering::Relaxed)
            && seed < first + count
            && failed.lock().unwrap().is_none()
        {
            let plan = Plan::new(seed);
            let shown = format!("TOWLINE_SEED={seed} shows it again: {plan:#?}");
            match catch_unwind(AssertUnwindSafe(|| try_plan(plan))) {
                Ok(Ok(tally)) => all.lock().unwrap().add(&tally),
                Ok(Err(wrong)) => *failed.lock().unwrap() = Some(format!("{wrong}\n{shown}")),
                Err(_panic) => *failed.lock().unwrap() = Some(format!("a panic, see above\n{shown}")),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    if let Some(failed) = failed.into_inner().unwrap() {
        panic!("{failed}");
    }
    let all = all.into_inner().unwrap();
    // A simulation in which nothing happens proves nothing.
    if count >= SEEDS {
        assert!(all.whole > 0 && all.hops > 0 && all.failed > 0 && all.refused > 0, "{all:?}");
    }
}

/// How often something happened.
#[derive(Debug, Default)]
struct Tally {
    whole: usize,
    failed: usize,
    refused: usize,
    hops: usize,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.whole += other.whole;
        self.failed += other.failed;
        self.refused += other.refused;
        self.hops += other.hops;
    }
}

fn try_plan(plan: Plan) -> Result<Tally, String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let tally = timeout(FOR_EVER, live(plan)).await.map_err(|_elapsed| "it never ended".to_owned())??;
        // Tasks that were aborted are gone when they were polled once more.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let left = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if left == 0 { Ok(tally) } else { Err(format!("{left} tasks are left")) }
    })
}

async fn live(plan: Plan) -> Result<Tally, String> {
    let fleet = Fleet::new(plan.clone());
    let mut dice = Dice::new(!plan.seed);
    for number in 0..plan.replicas {
        fleet.revive(number).await;
    }
    for cluster in 0..CLUSTERS {
        fleet.replace_agent(cluster, Duration::ZERO, false);
    }
    let (began, mut asked) = (Instant::now(), JoinSet::new());
    for (at, event) in &plan.events {
        sleep_until(began + *at).await;
        match event {
            Event::Ask(ask) => drop(asked.spawn(outcome(Arc::clone(&fleet), ask.clone()))),
            Event::Kill(replica) => fleet.kill(*replica).await,
            Event::Revive(replica) => fleet.revive(*replica).await,
            Event::LoseParent(replica) => fleet.lose_parent(*replica).await,
            Event::FindParent(replica) => fleet.find_parent(*replica).await,
            Event::Believe(one, other, cluster) => fleet.believe(*one, *other, *cluster),
            Event::Replace(cluster, named) => {
                fleet.replace_agent(*cluster, Duration::from_millis(dice.between(0, 8_000)), *named);
            }
            Event::Copy(cluster) => fleet.copy_agent(*cluster),
            Event::Leave(replica) => fleet.leave(*replica),
            Event::Deny(cluster) => fleet.set_denied(*cluster, true, &mut dice),
            Event::Admit(cluster) => fleet.set_denied(*cluster, false, &mut dice),
        }
    }
    sleep_until(began + TROUBLE).await;
    let mut outcomes = BTreeMap::new();
    while let Some(ended) = asked.join_next().await {
        let (id, outcome) = ended.unwrap();
        outcomes.insert(id, outcome);
    }
    fleet.heal().await;
    sleep(QUIET).await;
    one_process_serves(&fleet);
    fleet.stop_copies().await;
    sleep(QUIET).await;
    all_is_well(&fleet).await;
    offline_is_said_at_once(&fleet).await;
    shut_out_is_shut_out(&fleet).await;
    nothing_is_left(&fleet).await;
    fleet.close().await;
    judge(&fleet, &plan, &outcomes);
    let wrong = fleet.children.wrong.lock().unwrap().clone();
    match wrong.first() {
        None => Ok(tally(&fleet, &outcomes)),
        Some(first) => Err(format!("{first} (and {} more)", wrong.len() - 1)),
    }
}

fn tally(fleet: &Fleet, outcomes: &BTreeMap<usize, Outcome>) -> Tally {
    let count = |is: fn(&Outcome) -> bool| outcomes.values().filter(|outcome| is(outcome)).count();
    Tally {
        whole: count(|outcome| *outcome == Outcome::Whole),
        failed: count(|outcome| matches!(outcome, Outcome::Cut | Outcome::Refused(500..))),
        refused: count(|outcome| *outcome == Outcome::Refused(403)),
        hops: fleet.hops.lock().unwrap().len(),
    }
}

/// Asks, and waits as long as the plan says.
async fn outcome(fleet: Arc<Fleet>, asked: Ask) -> (usize, Outcome) {
    let conduct = async {
        match asked.patience {
            Some(patience) => timeout(patience, exchange(&fleet, &asked)).await.unwrap_or(Outcome::GivenUp),
            None => exchange(&fleet, &asked).await,
        }
    };
    let ended = timeout(LONGEST, conduct).await.unwrap_or(Outcome::Hung);
    (asked.id, ended)
}

async fn exchange(fleet: &Arc<Fleet>, asked: &Ask) -> Outcome {
    let path =
        format!("{BASE}/{}/proxy/direct/{}", id(asked.cluster), fleet.children.path(asked.id, asked.kind));
    let method = if asked.kind == Kind::Post { "POST" } else { "GET" };
    let mut request = ask(method, &path, &[("x-remote-user", asked.user), ("host", "hub")]);
    if asked.kind == Kind::Post {
        let body = Bytes::from(vec![u8::try_from(asked.id % 251).unwrap(); asked.id * 700]);
        *request.body_mut() = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    }
    let Some((response, _guard)) = fleet.send(asked.at, request).await else { return Outcome::NoAnswer };
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => text.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => {
                is_a_part(fleet, asked, status, &text);
                return Outcome::Cut;
            }
        }
    }
    if status != 200 {
        let answer: Option<Value> = serde_json::from_slice(&text).ok();
        if answer.is_none_or(|answer| answer["kind"] != "Status") {
            fleet.children.complain(format!("request {}: {status} with {:?}", asked.id, text));
        }
        return Outcome::Refused(status);
    }
    if text != expected(asked) {
        let got = String::from_utf8_lossy(&text).into_owned();
        fleet.children.complain(format!("P4, P7: request {} got {got:?}", asked.id));
    }
    Outcome::Whole
}

/// The whole of the right answer.
fn expected(asked: &Ask) -> Vec<u8> {
    let (cluster, id) = (asked.cluster, asked.id);
    if asked.kind == Kind::Watch {
        return (0..WATCHED)
            .map(|number| format!("{cluster} {id} {number}\n"))
            .collect::<String>()
            .into_bytes();
    }
    format!("{cluster} {id} {}\n", asked.user).into_bytes()
}

fn is_a_part(fleet: &Fleet, asked: &Ask, status: u16, text: &[u8]) {
    if status == 200 && !expected(asked).starts_with(text) {
        let got = String::from_utf8_lossy(text).into_owned();
        fleet.children.complain(format!("P4, P7: request {} got {got:?} before it was cut", asked.id));
    }
}

/// What is wrong with what became of all requests.
fn judge(fleet: &Fleet, plan: &Plan, outcomes: &BTreeMap<usize, Outcome>) {
    let asks = plan
        .events
        .iter()
        .filter_map(|(_, event)| if let Event::Ask(ask) = event { Some(ask) } else { None });
    let (seen, hops) = (fleet.children.seen.lock().unwrap(), fleet.hops.lock().unwrap());
    let none = (Vec::new(), Vec::new());
    for asked in asks {
        let outcome = &outcomes[&asked.id];
        let deliveries = seen.get(&asked.id).unwrap_or(&none.0);
        let hops: &Vec<Hop> = hops.get(&asked.id).unwrap_or(&none.1);
        let complain = |what: &str| {
            fleet.children.complain(format!("{what}: {asked:?} {outcome:?} {deliveries:?} {hops:?}"));
        };
        if deliveries.iter().any(|one| one.cluster != asked.cluster) {
            complain("P1: another cluster than the one that was named");
        }
        if !deliveries.is_empty() && !may_use(asked.user, asked.cluster) {
            complain("P1: a cluster that its asker may not use");
        }
        if deliveries.iter().any(|one| one.user != asked.user || one.groups != groups(asked)) {
            complain("P2: as somebody else");
        }
        if deliveries.len() > 1 {
            complain("P3: more than once");
        }
        if *outcome == Outcome::Whole && deliveries.len() != 1 {
            complain("an answer of nobody");
        }
        if asked.kind == Kind::Post
            && *outcome == Outcome::Whole
            && deliveries.iter().any(|one| one.body != Some(asked.id * 700))
        {
            complain("P4: a body that was cut looked whole");
        }
        if *outcome == Outcome::Hung {
            complain("P5: it never ended");
        }
        if hops.iter().any(|hop| hop.from != asked.at) {
            complain("a second hop");
        }
        let reached = |replica| replica == asked.at || hops.iter().any(|hop| hop.to == replica);
        if !deliveries.iter().all(|one| reached(one.replica)) {
            complain("a way that nobody saw");
        }
    }
}

/// What the child knows its asker by, beside the name: the group of the role.
fn groups(asked: &Ask) -> Vec<String> {
    let role = role_of(asked.user, asked.cluster);
    if role == "none" { Vec::new() } else { vec![format!("clusternet:{role}")] }
}

/// The first user who may use it.
fn someone(cluster: usize) -> &'static str {
    USERS.into_iter().find(|user| may_use(user, cluster)).unwrap()
}

/// Asks each replica for a cluster; what each says, and how long it took.
async fn ask_all(fleet: &Arc<Fleet>, cluster: usize, first: usize) -> Vec<(Outcome, Duration)> {
    let mut all = Vec::new();
    for at in 0..fleet.plan.replicas {
        let began = Instant::now();
        let user = someone(cluster);
        let asked = Ask { id: first + at, at, user, cluster, kind: Kind::Get, patience: None };
        let ended = timeout(LONGEST, exchange(fleet, &asked)).await.unwrap_or(Outcome::Hung);
        all.push((ended, began.elapsed()));
    }
    all
}

/// P9 and P10, when nothing breaks any more.
async fn all_is_well(fleet: &Arc<Fleet>) {
    for cluster in 0..CLUSTERS {
        for (at, (said, _)) in ask_all(fleet, cluster, 1_000 + cluster * 10).await.into_iter().enumerate() {
            if said != Outcome::Whole {
                fleet.children.complain(format!("P9: replica {at} says {said:?} for cluster {cluster}"));
            }
        }
        for (at, serving) in serving(fleet, cluster) {
            if serving != fleet.instance(cluster) {
                fleet.children.complain(format!("P10: {serving} serves cluster {cluster} at replica {at}"));
            }
        }
    }
}

/// Which process serves a cluster at each replica where one does.
fn serving(fleet: &Fleet, cluster: usize) -> BTreeMap<usize, String> {
    let key = id(cluster).parse().unwrap();
    let at = |number| Some((number, fleet.hub(number)?.tunnels.present().remove(&key)?));
    (0..fleet.plan.replicas).filter_map(at).collect()
}

/// P10, with copies of agents about that may have found a place that was free.
fn one_process_serves(fleet: &Fleet) {
    for cluster in 0..CLUSTERS {
        let all = serving(fleet, cluster);
        if all.values().any(|one| Some(one) != all.values().next()) {
            fleet.children.complain(format!("P10: cluster {cluster} is served by {all:?}"));
        }
    }
}

/// P5: an agent that has gone.
async fn offline_is_said_at_once(fleet: &Arc<Fleet>) {
    fleet.stop_agent(0).await;
    sleep(Duration::from_secs(2)).await;
    for (at, (said, took)) in ask_all(fleet, 0, 2_000).await.into_iter().enumerate() {
        if said != Outcome::Refused(503) || took > AT_ONCE {
            fleet.children.complain(format!("P5: replica {at} says {said:?} after {took:?}, offline"));
        }
    }
}

/// P6: a cluster that nobody may use any more, with a watch that was open.
async fn shut_out_is_shut_out(fleet: &Arc<Fleet>) {
    let (mut open, mut watches) = (JoinSet::new(), Vec::new());
    for at in 0..fleet.plan.replicas {
        let asked =
            Ask { id: 3_000 + at, at, user: someone(1), cluster: 1, kind: Kind::Watch, patience: None };
        watches.push(asked.id);
        open.spawn(outcome(Arc::clone(fleet), asked));
    }
    sleep(Duration::from_secs(1)).await;
    fleet.set_denied(1, true, &mut Dice::new(fleet.plan.seed));
    let began = Instant::now();
    while let Some(ended) = open.join_next().await {
        let (id, ended) = ended.unwrap();
        if ended != Outcome::Cut || began.elapsed() > Duration::from_secs(2) {
            let took = began.elapsed();
            fleet.children.complain(format!("P6: watch {id} {ended:?} {took:?} after it was shut out"));
        }
    }
    // By then each replica has heard of it; until then one that has not may get the agent that another one has cut.
    sleep(Duration::from_secs(1)).await;
    for (at, (said, _)) in ask_all(fleet, 1, 4_000).await.into_iter().enumerate() {
        if said != Outcome::Refused(403) {
            fleet.children.complain(format!("P6: replica {at} says {said:?}, shut out"));
        }
    }
}

/// P8: no request, and no tunnel but those of the agents that are there; each tunnel that has ended is counted.
async fn nothing_is_left(fleet: &Arc<Fleet>) {
    for cluster in 0..CLUSTERS {
        fleet.stop_agent(cluster).await;
    }
    sleep(Duration::from_secs(2)).await;
    for at in 0..fleet.plan.replicas {
        let hub = fleet.hub(at).unwrap();
        let metrics = &hub.metrics;
        let open = [metrics.in_flight.get(), metrics.tunnels.get(), metrics.peer_presence.get()];
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &hub.registry).unwrap();
        let ended = text.lines().filter(|line| line.starts_with("towline_hub_tunnels_ended_total{"));
        let ended: u64 = ended.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        let opened = metrics.tunnels_opened.get();
        if open != [0, 0, 0] || !hub.streams.is_empty() || ended != opened {
            let streams = hub.streams.len();
            fleet.children.complain(format!("P8: {open:?} {streams} {ended} of {opened} at replica {at}"));
        }
    }
}
