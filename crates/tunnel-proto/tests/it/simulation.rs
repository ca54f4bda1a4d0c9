//! A hub and an agent with a bad link between them, thousands of times, each from a seed: what is asked, when, how it is
//! read or given up, and what the link does to which byte. Time is virtual, so a minute of silence costs nothing.
//!
//! What has to hold each time (`docs/faults.md` gives the letters of the list that these are from):
//!
//! - an answer is its own request's, with no byte lost, repeated, reordered or of somebody else (P4, P7);
//! - a body that was cut never ends in order, and each request ends, by an answer or with a reason;
//! - a request reaches the child at most once, and never after it was given back (P3);
//! - once the link is dead both sides know within 45 s, and so does whoever waits (P5);
//! - on a link that is only bad, nothing fails at all, and the tunnel stays (P9);
//! - nothing is left: no answer in progress when nobody waits for one, and no task when the tunnel has ended (P8).
//!
//! `TOWLINE_SEED=n` runs one seed of each kind, `TOWLINE_SEEDS=n` so many, `make soak` for as long as one likes.

mod child;
mod plan;
mod soak;

use std::{
    collections::BTreeMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tunnel_proto::{
    SendError, agent_side,
    hub_side::{self, Tunnel},
    limits::{CLOSE_WAIT, HELLO_TIMEOUT},
};

use crate::{
    faults::{link, schedule::Dice},
    harness::{NOTICED, hello, welcome},
};

use child::{Checker, Child};
use plan::{Ask, Kind, Leaves, Plan, Sort};

/// Seeds of each kind, when the environment does not say otherwise.
const SEEDS: u64 = 1_000;
/// Longer than anything here takes, in virtual time.
const FOR_EVER: Duration = Duration::from_secs(3_600);

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// The whole answer arrived.
    Whole,
    /// The tunnel gave it back unsent, or the agent said that it did not take it.
    NotTaken,
    /// It ended with an error.
    Failed(String),
    /// Whoever asked did not wait.
    GivenUp,
}

#[test]
fn over_a_bad_link_every_answer_is_whole() {
    try_seeds(Sort::Bad);
}

#[test]
fn a_dead_link_is_noticed_in_time_and_no_cut_answer_looks_whole() {
    try_seeds(Sort::Dead);
}

#[test]
fn whoever_leaves_over_a_bad_link_finishes_what_is_open() {
    try_seeds(Sort::Leaving);
}

#[test]
fn bytes_that_no_tls_protects_can_end_a_tunnel_and_nothing_else() {
    try_seeds(Sort::Damaged);
}

fn try_seeds(sort: Sort) {
    #[expect(clippy::disallowed_methods, reason = "a switch of the test, not of the product")]
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match number("TOWLINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TOWLINE_SEEDS").unwrap_or(SEEDS),
    };
    let mut harmed = 0;
    for seed in seeds {
        let plan = Plan::new(sort, seed);
        let shown = format!("{plan:#?}");
        let failed = match catch_unwind(AssertUnwindSafe(|| try_plan(plan))) {
            Ok(Ok(harm)) => {
                harmed += u32::from(harm);
                continue;
            }
            Ok(Err(wrong)) => wrong,
            Err(_panic) => "a panic, see above".to_owned(),
        };
        panic!("{failed}\nTOWLINE_SEED={seed} shows it again: {shown}");
    }
    // What is judged here can be seen to fail: without TLS some damage goes through.
    if number("TOWLINE_SEED").is_none() {
        assert_eq!(harmed > 0, sort == Sort::Damaged, "{harmed} runs were harmed");
    }
}

/// One life of a tunnel on a runtime of its own, so that what it leaves behind can be counted. Whether a promise was
/// broken that cannot hold for damaged bytes.
fn try_plan(plan: Plan) -> Result<bool, String> {
    runtime().block_on(async {
        let harm = timeout(FOR_EVER, live(plan)).await.map_err(|_elapsed| "it never ended".to_owned())??;
        // Tasks that were aborted are gone when they were polled once more.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let left = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if left == 0 { Ok(harm) } else { Err(format!("{left} tasks are left")) }
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

async fn live(plan: Plan) -> Result<bool, String> {
    let child = Child::new(plan.seed);
    let (hub, mut hub_end) = duplex(plan.pipe);
    let (agents, mut agent_end) = duplex(plan.pipe);
    let death = Arc::new(link::Death::default());
    let mut running = JoinSet::new();
    let (faults, seed, told) = (plan.faults.clone(), plan.seed, Arc::clone(&death));
    running.spawn(async move {
        link::carry(&mut agent_end, &mut hub_end, faults, seed, &told).await;
    });

    let (stop_agent, stopped) = oneshot::channel::<()>();
    let served = Arc::clone(&child);
    let mut agent = JoinSet::new();
    agent.spawn(async move {
        let (_welcome, connection) = agent_side::connect(agents, &hello()).await?;
        let stop = async {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        connection.serve(move |request| Arc::clone(&served).answer(request), stop).await
    });
    let began = Instant::now();
    let accepted = hub_side::accept(hub, welcome).await;
    let Ok((_hello, tunnel, driver)) = accepted else {
        // The link died during the opening.
        both_know(&plan, &death, async { drop(agent.join_next().await) }, began).await?;
        return Ok(false);
    };
    let mut hub = JoinSet::new();
    hub.spawn(driver);
    let mut leaving = leave(&plan, &tunnel, stop_agent);

    let mut asked = JoinSet::new();
    for ask in &plan.asks {
        asked.spawn(outcome(tunnel.clone(), ask.clone(), plan.seed));
    }
    let mut outcomes = BTreeMap::new();
    let mut wrong = Vec::new();
    while let Some(ended) = asked.join_next().await {
        match ended.unwrap() {
            Ok((id, outcome)) => {
                outcomes.insert(id, (outcome, Instant::now()));
            }
            Err(told) => wrong.push(told),
        }
    }
    wrong.extend(judge(&plan, &child, &outcomes, began, *death.borrow()));
    if let Some(first) = wrong.first()
        && plan.sort != Sort::Damaged
    {
        return Err(format!("{first} (and {} more)", wrong.len() - 1));
    }
    while leaving.join_next().await.is_some() {}

    // Nobody waits for an answer now, so none may be in progress, unless the link keeps the agent from knowing.
    if death.borrow().is_none() && plan.sort == Sort::Bad {
        still_serves(&plan, &tunnel).await?;
        let until = Instant::now() + Duration::from_secs(30);
        while child.live() > 0 {
            if Instant::now() > until {
                return Err(format!("{} answers go on for nobody", child.live()));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    let ending = Instant::now();
    tunnel.close();
    drop(tunnel);
    both_know(
        &plan,
        &death,
        async {
            tokio::join!(hub.join_next(), agent.join_next());
        },
        ending,
    )
    .await?;
    // The bytes of an exec are moved by tasks of the caller's own, which end with their stream.
    timeout(Duration::from_secs(1), child.copied()).await.map_err(|_elapsed| "an exec was not told")?;
    if child.live() > 0 {
        return Err(format!("{} answers outlived their tunnel", child.live()));
    }
    Ok(!wrong.is_empty())
}

/// Waits for both sides of the tunnel, which have so long from the link's death, or from now when it lives.
async fn both_know(
    plan: &Plan,
    death: &link::Death,
    ended: impl Future<Output = ()>,
    since: Instant,
) -> Result<(), String> {
    let limit = NOTICED + HELLO_TIMEOUT.max(CLOSE_WAIT);
    let mut changes = death.subscribe();
    let late = async {
        loop {
            let from = changes.borrow_and_update().unwrap_or(since).max(since);
            // A link that is slow takes its time for the close, too.
            let slow = Duration::from_secs(60).mul_f64(f64::from(u8::from(plan.sort != Sort::Dead)));
            tokio::select! {
                () = sleep_until(from + limit + slow) => return,
                changed = changes.changed() => changed.unwrap(),
            }
        }
    };
    tokio::select! {
        biased;
        () = ended => Ok(()),
        () = late => Err("a side did not notice the end".to_owned()),
    }
}

/// Lets one of the sides leave when the plan says so.
fn leave(plan: &Plan, tunnel: &Tunnel, stop_agent: oneshot::Sender<()>) -> JoinSet<()> {
    let (tunnel, leaves) = (tunnel.clone(), plan.leaves);
    let mut leaving = JoinSet::new();
    if let Some((at, who)) = leaves {
        leaving.spawn(async move {
            sleep(at).await;
            match who {
                Leaves::Hub => tunnel.close(),
                Leaves::Agent => drop(stop_agent.send(())),
            }
        });
    }
    leaving
}

/// After all that, and after some silence, the tunnel answers.
async fn still_serves(plan: &Plan, tunnel: &Tunnel) -> Result<(), String> {
    sleep(plan.silence).await;
    let ask = Ask { id: 999, at: Duration::ZERO, kind: Kind::Get, size: 100, patience: None, hurry: 0 };
    match outcome(tunnel.clone(), ask, plan.seed).await? {
        (_, Outcome::Whole) => Ok(()),
        (_, other) => Err(format!("after {:?} of silence: {other:?}", plan.silence)),
    }
}

/// What is wrong with these outcomes.
fn judge(
    plan: &Plan,
    child: &Child,
    outcomes: &BTreeMap<u32, (Outcome, Instant)>,
    began: Instant,
    death: Option<Instant>,
) -> Vec<String> {
    let mut wrong = child.wrong();
    for ask in &plan.asks {
        let Some((outcome, at)) = outcomes.get(&ask.id) else { continue };
        let taken = child.taken(ask.id);
        let expected = match outcome {
            Outcome::Whole => taken == 1 && ask.kind != Kind::Breaks,
            Outcome::NotTaken => taken == 0 && plan.sort != Sort::Bad,
            Outcome::Failed(_) => taken <= 1 && (plan.sort == Sort::Dead || ask.kind == Kind::Breaks),
            Outcome::GivenUp => taken <= 1 && ask.patience.is_some(),
        };
        if !expected {
            wrong.push(format!(
                "request {} {:?} reached the child {taken} times: {outcome:?}",
                ask.id, ask.kind
            ));
        }
        // Whoever reads slowly may still have something to read.
        let told = |death: Instant| death.max(began + ask.at) + NOTICED;
        if ask.hurry == 0 && death.is_some_and(|death| *at > told(death)) {
            wrong.push(format!("request {} was told of the end too late, at {:?}", ask.id, *at - began));
        }
    }
    wrong
}

/// Asks, and waits as long as the plan says. An error is a broken promise.
async fn outcome(tunnel: Tunnel, ask: Ask, seed: u64) -> Result<(u32, Outcome), String> {
    sleep(ask.at).await;
    let conduct = async {
        if ask.kind == Kind::Exec { exec(&tunnel, &ask).await } else { plain(&tunnel, &ask, seed).await }
    };
    let ended = match ask.patience {
        Some(patience) => timeout(patience, conduct).await.unwrap_or(Ok(Outcome::GivenUp)),
        None => conduct.await,
    };
    ended.map(|outcome| (ask.id, outcome))
}

fn not_answered(error: SendError) -> Outcome {
    match error {
        SendError::Closed(_) | SendError::Busy(_) | SendError::Unprocessed(_) => Outcome::NotTaken,
        SendError::Failed(error) => Outcome::Failed(format!("no answer: {error:?}")),
    }
}

async fn plain(tunnel: &Tunnel, ask: &Ask, seed: u64) -> Result<Outcome, String> {
    let answer = match tunnel.send(child::request(ask, seed)).await {
        Ok(answer) => answer,
        Err(error) => return Ok(not_answered(error)),
    };
    let id = ask.id;
    if answer.headers()["x-id"] != id.to_string() {
        return Err(format!("request {id} got the answer of {:?}", answer.headers()["x-id"]));
    }
    let mut dice = Dice::new(seed ^ u64::from(id));
    let (mut body, mut checker) = (answer.into_body(), Checker::new(id));
    if ask.kind == Kind::Unread {
        std::future::pending::<()>().await;
    }
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => checker.check(&frame.into_data().unwrap_or_default())?,
            Err(error) => return Ok(Outcome::Failed(format!("cut at {}: {error:?}", checker.at))),
        }
        if ask.hurry > 0 {
            sleep(Duration::from_millis(dice.between(0, ask.hurry))).await;
        }
    }
    whole(ask, &checker)
}

/// A body ended in order: it has to be all of it.
fn whole(ask: &Ask, checker: &Checker) -> Result<Outcome, String> {
    if checker.at == ask.size && ask.kind != Kind::Breaks {
        return Ok(Outcome::Whole);
    }
    Err(format!(
        "request {} {:?} ended in order after {} of {} bytes",
        ask.id, ask.kind, checker.at, ask.size
    ))
}

async fn exec(tunnel: &Tunnel, ask: &Ask) -> Result<Outcome, String> {
    let answer = match tunnel.send(child::exec_request(ask)).await {
        Ok(answer) => answer,
        Err(error) => return Ok(not_answered(error)),
    };
    let upgraded = match hyper::upgrade::on(answer).await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return Ok(Outcome::Failed(format!("no upgrade: {error:?}"))),
    };
    let (mut reader, mut writer) = tokio::io::split(upgraded);
    let (id, size) = (ask.id, ask.size);
    let write = async move {
        let sent = writer.write_all(&child::content(id, 0, size)).await;
        sent.and(writer.shutdown().await)
    };
    let read = async {
        let (mut checker, mut buffer) = (Checker::new(id), [0; 4096]);
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) => return whole(ask, &checker),
                Ok(count) => checker.check(&buffer[..count])?,
                Err(error) => return Ok(Outcome::Failed(format!("cut at {}: {error:?}", checker.at))),
            }
        }
    };
    // A write that fails is told to the reader, too.
    let (_written, read) = tokio::join!(write, read);
    read
}
