//! Keeps tunnels to the hub: register if need be, dial, serve, and begin again. The only loop that never
//! gives up. When the hub says that it goes, the next tunnel is opened while the old one finishes.
//!
//! Each tunnel has a *lane*, a loop of its own, and each leads to another replica of the hub ([`seats`]). The first lane
//! alone registers; a further one dials beside an open tunnel, where the hub has as many replicas. As long as one tunnel
//! is up, the loss of the other is no trouble.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::names::attach_path;
use api::registration::{Credential, connect_path};
use http::Request;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use runtime::readiness::Readiness;
use runtime::stop::Stop;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tunnel_proto::agent_side::{Connection, connect, decline};
use tunnel_proto::names::AUTHORITY_AGENT;
use tunnel_proto::{Hello, RefusalReason, TunnelError, Welcome};

use crate::config::Proxy;
use crate::credentials::{Credentials, State};
use crate::limits::{
    GATEWAY_BUSY_TRIES, GATEWAY_TRIES, MAX_TUNNELS, OLD_TUNNEL_GRACE, OLD_TUNNELS, RETURN_LIVED,
    RETURN_WINDOW, STOP_GRACE, SUCCEEDED_REST,
};
use crate::parent::Parent;
use crate::register::{Outcome, Registration, ask};
use crate::serve::Service;
use crate::tasks::Tasks;
use crate::trouble::{Code, Log, Trouble, chain};
use pace::{Pace, jittered};
use seats::{Seat, Seats};

mod pace;
pub(crate) mod seats;

/// The readiness check for the registration and its credential.
pub const CHECK_CREDENTIALS: &str = "credentials";
/// The readiness check for the tunnels: one is up.
pub const CHECK_TUNNEL: &str = "tunnel";

/// What the loop needs.
#[derive(Debug)]
pub struct Dialer {
    /// Answers what comes out of the tunnel.
    pub service: Arc<Service>,
    /// Key and credential.
    pub credentials: Arc<Credentials>,
    /// The mounted registration Secret.
    pub registration_dir: PathBuf,
    /// On the way to the parent.
    pub proxy: Proxy,
    /// This process.
    pub instance: String,
    /// Two of its checks are set here.
    pub readiness: Readiness,
    /// Where the tunnels lead, and how many there may be.
    pub(crate) seats: Seats,
}

/// What is tried next to get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Dial with the stored credential if there is a good one, else register.
    Usual,
    /// The credential was refused: register.
    Register,
    /// The invitation was refused too: try the credential even if it seems to have expired. Our clock may
    /// be wrong, or the parent's refusal was a passing one.
    Credential,
}

/// What stays from one attempt of a lane to the next.
#[derive(Debug)]
struct Course {
    lane: usize,
    way: Way,
    /// How often the gateway was out of reach, one time after the other.
    gateway_failed: u32,
    /// How often it said that it is busy, one time after the other.
    gateway_busy: u32,
    /// How often the parent's API server led nowhere either, since the last tunnel.
    parent_failed: u32,
    /// When a tunnel through the gateway was lost that had been good.
    gateway_lost: Option<Instant>,
}

impl Course {
    fn new(lane: usize) -> Self {
        let (gateway_failed, gateway_busy, parent_failed) = (0, 0, 0);
        Self { lane, way: Way::Usual, gateway_failed, gateway_busy, parent_failed, gateway_lost: None }
    }

    /// A tunnel stands.
    fn is_open(&mut self, through_gateway: bool) {
        if through_gateway {
            (self.gateway_failed, self.gateway_busy) = (0, 0);
        }
        (self.parent_failed, self.gateway_lost) = (0, None);
    }

    /// The tunnel that stood is lost.
    fn is_lost(&mut self, lived: Duration, now: Instant) {
        let good = self.gateway_failed == 0 && lived >= RETURN_LIVED;
        self.gateway_lost = good.then_some(now);
    }

    /// After one more failure of the gateway, whether the parent's API server is tried. What is worth a try for one agent
    /// is a storm when a hub is restarted: thousands come, and lead nowhere, since it is the same hub.
    fn tries_parent(&mut self, now: Instant) -> bool {
        self.gateway_failed = self.gateway_failed.saturating_add(1);
        let expected_back =
            self.gateway_lost.is_some_and(|lost| now.saturating_duration_since(lost) < RETURN_WINDOW);
        !expected_back
            && self.gateway_failed >= GATEWAY_TRIES
            && (self.parent_failed == 0 || self.gateway_failed.is_multiple_of(GATEWAY_TRIES))
    }
}

/// What an attempt came to.
enum Attempt {
    Open(Box<Opened>),
    /// It led to a replica of the hub that has a tunnel of this agent already, and was given up.
    SameHub,
    /// The parent has not approved; ask again after this.
    Wait(Trouble, Duration),
}

/// A tunnel that stands.
type Opened = (Welcome, Connection<TokioIo<Upgraded>>, Seat);

/// The tunnels of a lane: the present one and old ones that finish their streams.
type Tunnels = JoinSet<Result<(), TunnelError>>;

impl Dialer {
    /// Runs until `stop`, then lets open streams finish for [`STOP_GRACE`].
    pub async fn run(self, stop: Stop) {
        let lanes = (0..MAX_TUNNELS).map(|lane| self.lane(lane, &stop));
        futures::future::join_all(lanes).await;
    }

    async fn lane(&self, lane: usize, stop: &Stop) {
        let mut tunnels = Tunnels::new();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.dial_for_ever(lane, &mut tunnels, stop) => {}
        }
        self.service.stopping.cancel();
        self.readiness.set(CHECK_TUNNEL, Err("stopping".to_owned()));
        let finished = async { while tunnels.join_next().await.is_some() {} };
        if timeout(STOP_GRACE, finished).await.is_err() {
            tracing::warn!("streams were still open after {STOP_GRACE:?}; they are cut");
        }
    }

    async fn dial_for_ever(&self, lane: usize, tunnels: &mut Tunnels, stop: &Stop) {
        let mut pace = Pace::new();
        let mut log = Log::default();
        let mut course = Course::new(lane);
        let tasks = Tasks::default();
        loop {
            if self.service.succeeded.is_cancelled() {
                let why = "another process of this agent has taken over";
                self.readiness.set(CHECK_TUNNEL, Err(why.to_owned()));
                sleep(SUCCEEDED_REST).await;
            }
            self.seats.wanted(lane).await;
            let pause = match self.attempt(&mut course, &tasks).await {
                Ok(Attempt::Open(opened)) => {
                    log.clear();
                    course.way = Way::Usual;
                    let began = Instant::now();
                    let lost = self.serve(lane, tunnels, *opened, stop).await;
                    pace.ended(began.elapsed(), Instant::now());
                    course.is_lost(began.elapsed(), Instant::now());
                    self.note(lane, &mut log, &lost);
                    pace.after_trouble(Instant::now())
                }
                Ok(Attempt::SameHub) => {
                    self.service.metrics.met_the_same_hub();
                    pace.after_same_hub()
                }
                Ok(Attempt::Wait(trouble, after)) => {
                    self.note(lane, &mut log, &trouble);
                    tokio::select! {
                        () = sleep(jittered(after)) => {}
                        () = Registration::changed(&self.registration_dir) => {}
                    }
                    continue;
                }
                Err(trouble) => {
                    self.note(lane, &mut log, &trouble);
                    // On top of what the other side asked for: it says the same to many.
                    trouble.after.unwrap_or_default() + pace.after_trouble(Instant::now())
                }
            };
            self.rest(lane, pause, &mut pace).await;
        }
    }

    /// Waits so long; beside an open tunnel only until that is lost, too: then people wait.
    async fn rest(&self, lane: usize, pause: Duration, pace: &mut Pace) {
        if !self.seats.another_is_open(lane) {
            return sleep(pause).await;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = self.seats.alone(lane) => {
                pace.hurry_from(Instant::now());
                sleep(pace.after_trouble(Instant::now())).await;
            }
        }
    }

    /// Serves a tunnel until it is lost or the hub says that it goes; tells why it is no longer the present
    /// one.
    async fn serve(&self, lane: usize, tunnels: &mut Tunnels, opened: Opened, stop: &Stop) -> Trouble {
        let (welcome, connection, seat) = opened;
        tracing::info!(
            tunnel = welcome.tunnel_id,
            hub = welcome.hub_id,
            version = welcome.hub_version,
            "connected"
        );
        seat.open();
        self.readiness.set(CHECK_TUNNEL, Ok(()));
        let leave = Stop::new();
        let mine = tunnels.spawn(self.drive(connection, leave.clone(), stop.clone())).id();
        let ended = tokio::select! {
            ended = ended(tunnels, mine) => ended,
            () = leave.cancelled(), if tunnels.len() <= OLD_TUNNELS => {
                tracing::info!(tunnel = welcome.tunnel_id, "the hub is going away; opening another tunnel");
                return Trouble::new(Code::Lost, "the hub is going away");
            }
        };
        if !self.seats.another_is_open(lane) {
            self.readiness.set(CHECK_TUNNEL, Err("not connected".to_owned()));
        }
        match ended {
            Ok(()) => Trouble::new(Code::Lost, "the hub closed the tunnel in order"),
            Err(error) => Trouble::new(Code::Lost, format!("the tunnel was lost: {}", chain(&error))),
        }
    }

    fn drive(
        &self,
        connection: Connection<TokioIo<Upgraded>>,
        leave: Stop,
        stop: Stop,
    ) -> impl Future<Output = Result<(), TunnelError>> + Send + use<> {
        let (service, seats) = (Arc::clone(&self.service), self.seats.clone());
        let open = service.metrics.tunnel();
        async move {
            let left = leave.clone();
            let finish = async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    // A hub that said it goes and then stays would keep this tunnel for ever.
                    () = async { left.cancelled().await; sleep(OLD_TUNNEL_GRACE).await } => {}
                }
            };
            let answer = move |request: Request<Incoming>| {
                if let Some(replicas) = told_replicas(&request) {
                    seats.heard(replicas);
                }
                Arc::clone(&service).answer(leave.clone(), request)
            };
            let ended = connection.serve(answer, finish).await;
            drop(open);
            ended
        }
    }

    async fn attempt(&self, course: &mut Course, tasks: &Tasks) -> Result<Attempt, Trouble> {
        let state = self.credentials.state().await?;
        let registration = Registration::read(&self.registration_dir).await?;
        let parent = Parent::new(&registration.parent_url, &registration.ca, &self.proxy)?;
        let credential = match usable(&state, &registration, course.way) {
            Some(credential) => credential,
            None if course.lane > 0 => {
                return Err(Trouble::new(
                    Code::Refused,
                    "the credential has ended; it is for the first tunnel to get another",
                ));
            }
            None => match ask(&registration, &state, &parent, tasks).await {
                Ok(Outcome::Approved(credential)) => {
                    tracing::info!(cluster = registration.cluster_name, expires = %credential.expires, "registered");
                    if let Err(error) =
                        self.credentials.store(credential.clone(), &registration.parent_url).await
                    {
                        // It is in memory, so the tunnel can stand; after a restart the invitation is needed again.
                        tracing::warn!(%error, "the credential is not stored");
                    }
                    course.way = Way::Usual;
                    credential
                }
                Ok(Outcome::Pending(message, after)) => {
                    let what = format!("registered and waiting for approval in the parent: {message}");
                    return Ok(Attempt::Wait(Trouble::new(Code::Pending, what), after));
                }
                Ok(Outcome::Denied(message, after)) => {
                    let what = format!("the parent denied this cluster: {message}");
                    return Ok(Attempt::Wait(Trouble::new(Code::Denied, what), after));
                }
                Err(trouble) => {
                    if trouble.code == Code::Refused && state.credential.is_some() {
                        course.way = Way::Credential;
                    }
                    return Err(trouble);
                }
            },
        };
        self.readiness.set(CHECK_CREDENTIALS, Ok(()));
        let opened = self.open(course, &registration, &parent, &state, &credential, tasks);
        match Box::pin(opened).await {
            Ok(Some(opened)) => Ok(Attempt::Open(Box::new(opened))),
            Ok(None) => Ok(Attempt::SameHub),
            Err(trouble) => {
                if trouble.code == Code::Refused && course.lane == 0 {
                    course.way = Way::Register;
                }
                if trouble.code == Code::Refused && !self.seats.another_is_open(course.lane) {
                    self.readiness.set(CHECK_CREDENTIALS, Err(trouble.to_string()));
                }
                Err(trouble)
            }
        }
    }

    /// A tunnel through the gateway, if there is one and it can be reached, else through the parent's API server. `None`
    /// if it led to a replica that has one already.
    async fn open(
        &self,
        course: &mut Course,
        registration: &Registration,
        parent: &Parent,
        state: &State,
        credential: &Credential,
        tasks: &Tasks,
    ) -> Result<Option<Opened>, Trouble> {
        let through_parent =
            self.tunnel(course.lane, parent, attach_path(&state.cluster), state, credential, tasks);
        let Some(gateway) = &registration.gateway else { return through_parent.await };
        let at_gateway = async {
            let gateway = Parent::new(&gateway.url, &gateway.ca, &self.proxy)?;
            self.tunnel(course.lane, &gateway, connect_path(&state.cluster), state, credential, tasks).await
        };
        let trouble = match at_gateway.await {
            Ok(opened) => {
                course.is_open(true);
                return Ok(opened);
            }
            Err(trouble) => {
                Trouble::new(trouble.code, format!("gateway {}: {}", gateway.url, trouble.message))
                    .not_before(trouble.after)
            }
        };
        if trouble.after.is_some() && course.gateway_busy < GATEWAY_BUSY_TRIES {
            course.gateway_busy += 1;
            return Err(trouble);
        }
        let tries_parent = course.tries_parent(Instant::now());
        match trouble.code {
            // So says the hub itself, who would say the same behind any door.
            Code::Hello => return Err(trouble),
            // Whoever it was that said no: whether the credential is good, the parent knows.
            Code::Refused | Code::NotFound => {}
            Code::Dns
            | Code::Tcp
            | Code::Tls
            | Code::Proxy
            | Code::Upgrade
            | Code::Impersonation
            | Code::HubDown
            | Code::Registration
            | Code::Child
            | Code::Lost
            | Code::Denied
            | Code::Pending => {
                if !tries_parent {
                    return Err(trouble);
                }
            }
        }
        if course.parent_failed == 0 {
            tracing::warn!(code = %trouble.code, reason = %trouble.message, "the tunnel goes through the parent's API server instead");
        }
        let opened = through_parent.await;
        match &opened {
            Ok(Some(_)) => course.is_open(false),
            Ok(None) => {}
            Err(_) => course.parent_failed = course.parent_failed.saturating_add(1),
        }
        opened
    }

    async fn tunnel(
        &self,
        lane: usize,
        door: &Parent,
        path: String,
        state: &State,
        credential: &Credential,
        tasks: &Tasks,
    ) -> Result<Option<Opened>, Trouble> {
        let (io, replica) = door.websocket(&path, &credential.token, tasks).await?;
        let Some(seat) = self.seats.take(lane, &replica) else {
            decline(io, "this agent has a tunnel here already").await;
            return Ok(None);
        };
        let mut hello = Hello::new(state.cluster.as_str(), &self.instance, crate::VERSION);
        hello.credential_expires = Some(credential.expires);
        let opened = connect(io, &hello).await.map_err(|error| {
            let code = match &error {
                TunnelError::Refused(refusal) if refusal.reason == RefusalReason::Draining => Code::HubDown,
                TunnelError::Refused(_) | TunnelError::Hello(_) | TunnelError::NotHttp2 => Code::Hello,
                TunnelError::HelloTimeout | TunnelError::ClosedInHello => Code::Upgrade,
                TunnelError::Stream(_)
                | TunnelError::PeerSilent
                | TunnelError::Http2(_)
                | TunnelError::DrainTimeout => Code::Lost,
            };
            Trouble::new(code, chain(&error))
        });
        opened.map(|(welcome, connection)| Some((welcome, connection, seat)))
    }

    fn note(&self, lane: usize, log: &mut Log, trouble: &Trouble) {
        let reached = self.seats.another_is_open(lane);
        if reached && trouble.code == Code::Lost {
            return tracing::info!(reason = %trouble.message, "one tunnel less; another one stands");
        }
        self.service.metrics.trouble(trouble.code);
        log.report(trouble);
        if reached {
            return;
        }
        let check = match trouble.code {
            Code::Registration | Code::Denied | Code::Pending | Code::Refused | Code::Child => {
                CHECK_CREDENTIALS
            }
            Code::Dns
            | Code::Tcp
            | Code::Tls
            | Code::Proxy
            | Code::Upgrade
            | Code::Hello
            | Code::Impersonation
            | Code::HubDown
            | Code::Lost
            | Code::NotFound => CHECK_TUNNEL,
        };
        // A tunnel that only makes way for the next one still serves.
        if trouble.code != Code::Lost {
            self.readiness.set(check, Err(trouble.to_string()));
        }
    }
}

/// The stored credential, if it is to be used now.
fn usable(state: &State, registration: &Registration, way: Way) -> Option<Credential> {
    let held = state.credential.as_ref().filter(|held| held.parent == registration.parent_url)?;
    let good = match way {
        Way::Usual => held.credential.expires > Timestamp::now(),
        Way::Register => false,
        Way::Credential => true,
    };
    good.then(|| held.credential.clone())
}

/// Waits for this tunnel; others that end meanwhile were old ones.
async fn ended(tunnels: &mut Tunnels, mine: Id) -> Result<(), TunnelError> {
    loop {
        match tunnels.join_next_with_id().await {
            Some(Ok((id, ended))) if id == mine => return ended,
            Some(Err(error)) if error.id() == mine => {
                tracing::error!(%error, "the task of a tunnel failed");
                return Ok(());
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

/// How many replicas there are, where the hub tells the agent so beside a question of its own.
fn told_replicas(request: &Request<Incoming>) -> Option<usize> {
    let to_agent = request.uri().authority().is_some_and(|authority| authority.as_str() == AUTHORITY_AGENT);
    to_agent.then(|| seats::count(request.headers())).flatten()
}

#[cfg(test)]
mod tests;
