//! Every number of the agent, with its reason and the memory it can cost. Those of the tunnel itself stand
//! in `tunnel_proto::limits`.

use std::time::Duration;

/// Requests in flight over all tunnels, watches and upgrades included; more are answered 429. As many as one
/// tunnel has streams. About 10 KiB each when idle: 100 MiB at worst.
pub const MAX_REQUESTS: usize = 10_000;
/// exec, attach and port-forward at once. Each has a TLS connection of its own and two copy buffers:
/// `1,000 × (64 + 64 KiB)` = 128 MiB at worst.
pub const MAX_UPGRADES: usize = 1_000;
/// Copy buffer of an upgraded stream, one for each direction.
pub const COPY_BUFFER: usize = 32 * 1024;
/// Largest body of a request to the agent itself; a credential is below 4 KiB.
pub const CONTROL_BODY: usize = 64 * 1024;
/// Longest token that is accepted as a credential. It travels in a header, and service account tokens are
/// about 1 KiB.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Connections for ordinary requests to the child's kube-apiserver. It allows 100 streams on each (250
/// before 1.28), so 8 carry 640 before anything waits. About 100 KiB each.
pub const CONNECTIONS: usize = 8;
/// Connections for watches and other requests without an end. At 80 on each they carry 20,000 watches;
/// about 60 KiB each, 15 MiB at worst.
pub const LONG_CONNECTIONS: usize = 256;
/// The next connection is opened when the emptiest one is this full, in percent of the peer's streams.
pub const FULL_PERCENT: usize = 80;
/// Streams that are used of a connection whose peer sets no limit.
pub const STREAMS_AT_MOST: usize = 250;
/// A connection without streams is closed after this long. Shorter than the 3 minutes after which a
/// kube-apiserver closes idle ones (apiserver `pkg/server/secure_serving.go`), so that no request meets a
/// connection that is about to go.
pub const IDLE: Duration = Duration::from_secs(90);
/// Window of one stream from the child: what a stream whose reader has stopped can hold.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// The connection window never binds, or a stopped `logs -f` would stop its neighbours.
pub const CONNECTION_WINDOW: u32 = i32::MAX as u32;
/// As in the tunnel: fewer, larger frames cost less.
pub const MAX_FRAME: u32 = 64 * 1024;
/// Bytes of one request body that wait to be written.
pub const SEND_BUFFER: usize = 128 * 1024;
/// Largest head of an answer from the child; kube-apiserver sends less than 8 KiB.
pub const ANSWER_HEAD: u32 = 64 * 1024;
/// Header lines of an answer on HTTP/1.1.
pub const ANSWER_HEADER_LINES: usize = 128;
/// A PING to a connection that has been silent this long; a dead one is noticed within 35 s.
pub const PING_AFTER: Duration = Duration::from_secs(15);
/// Time for its answer.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// TCP and TLS to the child's kube-apiserver, which is nearby.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Head of the answer to a request that is not long-running. kube-apiserver gives up after 60 s by default
/// (`--request-timeout`), some run it with more; this is only the end of a child that never answers.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(300);
/// Answer to an upgrade: kube-apiserver dials the kubelet, and that starts a process.
pub const UPGRADE_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer to the agent's own requests: a page of nodes, about 20 KiB each.
pub const OWN_ANSWER: usize = 32 * 1024 * 1024;
/// Nodes on one page.
pub const NODES_PER_PAGE: usize = 500;
/// Pages of nodes that are read; Kubernetes is made for 5,000 nodes.
pub const NODE_PAGES: usize = 40;
/// The agent's own requests, each.
pub const OWN_TIMEOUT: Duration = Duration::from_secs(10);
/// A report is made anew no sooner than this, however often the hub asks.
pub const REPORT_TTL: Duration = Duration::from_secs(10);

/// What is counted (nodes, pods, their resources) is counted anew no sooner than this.
pub const INVENTORY_TTL: Duration = Duration::from_secs(30);
/// The same in a cluster with more nodes than fit on a page, or that does not answer in [`INVENTORY_TIME`]: a page of
/// nodes is 10 MiB of work for its API server.
pub const INVENTORY_TTL_LARGE: Duration = Duration::from_secs(300);
/// Counting ends by then; what was counted last is reported instead. A hub waits 10 s for the whole report.
pub const INVENTORY_TIME: Duration = Duration::from_secs(5);
/// Pods that do not run are counted in clusters of at most so many pods: a row of 250 bytes each, 5 MiB at worst, from
/// the API server's memory.
pub const PODS_COUNTED: u32 = 20_000;

/// The child's policy is read again this often: a kill switch is promised to hold within 5 s, of which the question
/// itself and the ends of streams take a part. One small GET, 15 a minute.
pub const POLICY_EVERY: Duration = Duration::from_secs(4);
/// For so long a policy that was removed or cannot be read stays in force; then nobody is admitted. Long enough for
/// a kube-apiserver to be restarted or upgraded.
pub const POLICY_LOST: Duration = Duration::from_secs(600);

/// Refusals of the policy that are logged in one minute; a hub could provoke thousands a second.
pub const POLICY_REFUSALS_LOGGED: u32 = 30;

/// How long an answer on "may this group be impersonated" is believed.
pub const GROUP_TTL: Duration = Duration::from_secs(60);
/// Bytes of group names whose answers are kept.
pub const GROUP_CACHE: u64 = 2 * 1024 * 1024;
/// Such questions at once.
pub const GROUP_QUESTIONS: usize = 16;
/// Life of the impersonator's token; the shortest that every kube-apiserver grants is 10 minutes.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Between tries to get one.
pub const TOKEN_RETRY_FIRST: Duration = Duration::from_secs(1);
/// See [`TOKEN_RETRY_FIRST`].
pub const TOKEN_RETRY_MAX: Duration = Duration::from_secs(30);
/// The right to impersonate is probed again this often, and sooner while something is wrong.
pub const PROBE_EVERY: Duration = Duration::from_secs(300);
/// See [`PROBE_EVERY`].
pub const PROBE_RETRY: Duration = Duration::from_secs(15);

/// Resolving and TCP to the parent or proxy, for each address.
pub const PARENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The TLS handshake, a proxy's answer, or the parent's answer to the upgrade or the registration.
pub const PARENT_ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Addresses of one name that are tried.
pub const PARENT_ADDRESSES: usize = 8;
/// Bytes that wait in the kernel unsent; more would only make small answers wait behind large ones.
pub const UNSENT: u32 = 128 * 1024;
/// First delay after a failure; drawn between 0 and this, so that what was lost is back within seconds and
/// thousands of agents do not come back in one instant.
pub const DIAL_FIRST: Duration = Duration::from_secs(1);
/// Longest delay.
pub const DIAL_MAX: Duration = Duration::from_secs(60);
/// For so long after the loss of a tunnel that had lived for [`RETURN_LIVED`], delays stay below [`RETURN_MAX`]: a hub
/// that was restarted is back within that time, and people wait for it. Ten thousand agents try 6,700 times a
/// second meanwhile, which the parent answers with 503 from memory; after it they fall back to the long delays.
pub const RETURN_WINDOW: Duration = Duration::from_secs(20);
/// See [`RETURN_WINDOW`].
pub const RETURN_MAX: Duration = Duration::from_secs(3);
/// Longest `Retry-After` that is obeyed: a hub, or whoever answers in its place, cannot keep an agent away for longer.
/// The delay that would have been without it comes on top, so that those who were told the same do not come together.
pub const RETRY_AFTER_MAX: Duration = DIAL_MAX;
/// One that lived less was never good: there is nothing to hurry back to.
pub const RETURN_LIVED: Duration = Duration::from_secs(5);
/// A tunnel that lived this long was a good one: the delays begin anew.
pub const TUNNEL_LIVED: Duration = Duration::from_secs(30);
/// So often the gateway may be out of reach, one time after the other, before the tunnel goes through the parent's API
/// server instead; and not within [`RETURN_WINDOW`] of a good tunnel through the gateway, in which a hub that is restarted
/// is back: it is the same hub, and 2,000 agents that ask for it there take a kube-apiserver 60 s of CPU, which keep
/// the hub from starting (measured). Where that leads nowhere either, every third try asks both.
pub const GATEWAY_TRIES: u32 = 3;
/// Tunnels of one process, to as many different replicas of the hub. Two live through the loss of any one replica; each
/// more costs every hub a connection of every agent (about 100 KiB) and outlives only what kills two replicas at once.
pub const MAX_TUNNELS: usize = 2;
/// Connections to the hub are spread at random, so a second tunnel meets the replica that has the first one as often as
/// not: with two replicas the second try is the one that succeeds, on average. Pauses are drawn below this, then twice
/// as much each time.
pub const SAME_HUB_FIRST: Duration = Duration::from_millis(250);
/// After so many such tries, less than half a minute in all, something holds this agent to one replica (a replica that
/// is counted and gone, a load balancer that remembers callers), and trying in a hurry does not help: 1.6 % of agents
/// come here by bad luck alone.
pub const SAME_HUB_TRIES: u32 = 6;
/// From then on it tries so often, up to a quarter sooner: two or three times a minute.
pub const SAME_HUB_REST: Duration = Duration::from_secs(30);
/// Whether another process is the successor is read from the child's API server, by then. Shorter than the 3 s in which a
/// hub wants to know whether this one is alive.
pub const SUCCESSOR_TIME: Duration = Duration::from_secs(2);
/// A process whose successor has taken over opens no tunnel for so long. It is told to stop long before; if it is not,
/// and the successor is gone, it serves again.
pub const SUCCEEDED_REST: Duration = Duration::from_secs(120);
/// Over so long watches end when the process stops, so that thousands do not begin anew at one moment.
pub const WATCHES_END_WITHIN: Duration = Duration::from_secs(5);
/// So often a gateway that says `Retry-After` is believed to be there and busy: the parent's API server leads to the
/// same hub, and would only carry its load too. Some minutes, in which a hub has let everybody in; after that it counts
/// as out of reach.
pub const GATEWAY_BUSY_TRIES: u32 = 20;
/// Old tunnels that may finish their streams beside the new one.
pub const OLD_TUNNELS: usize = 4;
/// For how long they may.
pub const OLD_TUNNEL_GRACE: Duration = Duration::from_secs(300);
/// At the end of the process; the kubelet kills after 30 s.
pub const STOP_GRACE: Duration = Duration::from_secs(20);

/// Largest file of the mounted registration Secret; a CA bundle is the longest of them.
pub const REGISTRATION_FILE: u64 = 256 * 1024;
/// Largest answer to a registration.
pub const REGISTRATION_ANSWER: usize = 64 * 1024;
/// When the hub does not say how long to wait.
pub const REGISTRATION_RETRY: Duration = Duration::from_secs(5);
/// Longest time between two tries, whatever the hub says.
pub const REGISTRATION_RETRY_MAX: Duration = Duration::from_secs(300);
/// After a denial, which a person may take back, and then waits for the cluster.
pub const DENIED_RETRY: Duration = Duration::from_secs(60);
/// Tries to write the credential when somebody else changes the Secret at the same time.
pub const WRITE_TRIES: usize = 5;
