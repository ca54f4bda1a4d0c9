//! What bounds a caller: the defaults, why they are what they are and what they cost, and the flags that change
//! them. The parent bounds nothing on `/proxy` and `/attach`, which are long-running to it (no seat, no timeout,
//! no in-flight limit), so all of it is enforced here.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;

use crate::config::duration;

/// Requests to children at once, in all. An open one costs about 20 KiB, and a stream window more, 512 KiB to
/// 3 MiB, if its reader has stopped; watches count for their whole life.
pub const IN_FLIGHT: u32 = 20_000;
/// Of these, one user's: a quarter, so that it takes four who misbehave to fill the hub. A controller that watches
/// 50 kinds in each of 100 clusters fits in exactly.
pub const USER_IN_FLIGHT: u32 = 5_000;
/// Of these, one cluster's: below the 10,000 streams of its tunnel, so that its status can always be asked.
pub const CLUSTER_IN_FLIGHT: u32 = 8_000;
/// Requests a second of one user, with a burst of twice as many: about a tenth of what a core of the hub does, and
/// ten times what client-go lets one controller ask of one cluster.
pub const USER_RATE: u32 = 1_000;
/// The same for one cluster: more than kube-apiserver answers on a small control plane.
pub const CLUSTER_RATE: u32 = 2_000;
/// Bytes of a request's headers: what kube-apiserver allows. One request head in flight costs at most this much.
pub const HEADER_BYTES: u32 = 1024 * 1024;
/// Header lines of an HTTP/1.1 request: one per group of the user, and directories go beyond 1,000. 32 KiB of
/// bookkeeping for each request at worst.
pub const HEADER_LINES: u32 = 2_000;
/// Time for the TLS handshake, and then from accept to the end of the first request's head; a silent stranger holds
/// a socket no longer. On HTTP/1.1 also for each later request, idle time included.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to the head of the answer, for requests that are short by nature: kube-apiserver's own `--request-timeout`,
/// since the parent applies none on these paths. A request's `?timeout=` can shorten it.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// An exec, attach or port-forward on which nothing moves is ended after once to twice this: kubelet's own
/// `streamingConnectionIdleTimeout`. It costs two buffers of 32 KiB.
pub const STREAM_IDLE: Duration = Duration::from_hours(4);
/// How often the rights behind an open stream or tunnel are asked about again. Removing or denying a cluster cuts
/// it at once; this is for rights that were taken away by hand.
pub const RECHECK: Duration = Duration::from_secs(60);
/// Oldest tunnel. The agent opens the next one before it lets go of this one, so nobody notices; new certificates,
/// new limits and a new balance between replicas reach every agent within a day.
pub const TUNNEL_AGE: Duration = Duration::from_hours(24);

/// The flags, as they were typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct Flags {
    /// Requests to children at once; watches and streams count while they are open.
    #[arg(long, env = "TOWLINE_MAX_IN_FLIGHT", default_value_t = IN_FLIGHT.to_string())]
    max_in_flight: String,
    /// Of these, one user's.
    #[arg(long, env = "TOWLINE_MAX_IN_FLIGHT_PER_USER", default_value_t = USER_IN_FLIGHT.to_string())]
    max_in_flight_per_user: String,
    /// Of these, one cluster's.
    #[arg(long, env = "TOWLINE_MAX_IN_FLIGHT_PER_CLUSTER", default_value_t = CLUSTER_IN_FLIGHT.to_string())]
    max_in_flight_per_cluster: String,
    /// Requests a second of one user, with bursts of twice as many.
    #[arg(long, env = "TOWLINE_MAX_RATE_PER_USER", default_value_t = USER_RATE.to_string())]
    max_rate_per_user: String,
    /// Requests a second to one cluster, with bursts of twice as many.
    #[arg(long, env = "TOWLINE_MAX_RATE_PER_CLUSTER", default_value_t = CLUSTER_RATE.to_string())]
    max_rate_per_cluster: String,
    /// Bytes of a request's headers.
    #[arg(long, env = "TOWLINE_MAX_HEADER_BYTES", default_value_t = HEADER_BYTES.to_string())]
    max_header_bytes: String,
    /// Header lines of an HTTP/1.1 request.
    #[arg(long, env = "TOWLINE_MAX_HEADER_LINES", default_value_t = HEADER_LINES.to_string())]
    max_header_lines: String,
    /// From accept to the end of a request's head.
    #[arg(long, env = "TOWLINE_REQUEST_HEAD_TIMEOUT", default_value = "10s")]
    request_head_timeout: String,
    /// To the head of the answer, for short requests.
    #[arg(long, env = "TOWLINE_ANSWER_TIMEOUT", default_value = "60s")]
    answer_timeout: String,
    /// Silence after which an exec, attach or port-forward is ended.
    #[arg(long, env = "TOWLINE_STREAM_IDLE_TIMEOUT", default_value = "4h")]
    stream_idle_timeout: String,
    /// How often the rights behind open streams and tunnels are asked about again.
    #[arg(long, env = "TOWLINE_RECHECK_INTERVAL", default_value = "60s")]
    recheck_interval: String,
    /// Oldest tunnel; its agent opens another one first.
    #[arg(long, env = "TOWLINE_MAX_TUNNEL_AGE", default_value = "24h")]
    max_tunnel_age: String,
}

/// The limits that hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// See [`IN_FLIGHT`].
    pub in_flight: u32,
    /// See [`USER_IN_FLIGHT`].
    pub user_in_flight: u32,
    /// See [`CLUSTER_IN_FLIGHT`].
    pub cluster_in_flight: u32,
    /// See [`USER_RATE`].
    pub user_rate: u32,
    /// See [`CLUSTER_RATE`].
    pub cluster_rate: u32,
    /// See [`HEADER_BYTES`].
    pub header_bytes: u32,
    /// See [`HEADER_LINES`].
    pub header_lines: u32,
    /// See [`HEAD_TIMEOUT`].
    pub head_timeout: Duration,
    /// See [`ANSWER_TIMEOUT`].
    pub answer_timeout: Duration,
    /// See [`STREAM_IDLE`].
    pub stream_idle: Duration,
    /// See [`RECHECK`].
    pub recheck: Duration,
    /// See [`TUNNEL_AGE`].
    pub tunnel_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: IN_FLIGHT,
            user_in_flight: USER_IN_FLIGHT,
            cluster_in_flight: CLUSTER_IN_FLIGHT,
            user_rate: USER_RATE,
            cluster_rate: CLUSTER_RATE,
            header_bytes: HEADER_BYTES,
            header_lines: HEADER_LINES,
            head_timeout: HEAD_TIMEOUT,
            answer_timeout: ANSWER_TIMEOUT,
            stream_idle: STREAM_IDLE,
            recheck: RECHECK,
            tunnel_age: TUNNEL_AGE,
        }
    }
}

impl Flags {
    /// Checks all of them; what is wrong is added to `wrong`.
    pub(crate) fn check(self, wrong: &mut Vec<String>) -> Limits {
        let mut number = |flag: &str, given: String, range: RangeInclusive<u32>| {
            let number = given.parse().ok().filter(|number| range.contains(number));
            number.unwrap_or_else(|| {
                wrong.push(format!(
                    "{flag} {given:?} is no number between {} and {}",
                    range.start(),
                    range.end()
                ));
                *range.start()
            })
        };
        let mut limits = Limits {
            in_flight: number("--max-in-flight", self.max_in_flight, 1..=1_000_000),
            user_in_flight: number("--max-in-flight-per-user", self.max_in_flight_per_user, 1..=1_000_000),
            cluster_in_flight: number(
                "--max-in-flight-per-cluster",
                self.max_in_flight_per_cluster,
                // A tunnel carries 10,000 streams; some are kept for what the hub itself asks the agent.
                1..=9_900,
            ),
            user_rate: number("--max-rate-per-user", self.max_rate_per_user, 1..=1_000_000),
            cluster_rate: number("--max-rate-per-cluster", self.max_rate_per_cluster, 1..=1_000_000),
            // Below 64 KiB a user of some hundred groups is shut out; the tunnel carries 1 MiB.
            header_bytes: number("--max-header-bytes", self.max_header_bytes, 64 * 1024..=1024 * 1024),
            header_lines: number("--max-header-lines", self.max_header_lines, 100..=10_000),
            ..Limits::default()
        };
        let minute = Duration::from_mins(1);
        for (flag, given, range, place) in [
            (
                "--request-head-timeout",
                &self.request_head_timeout,
                Duration::from_secs(1)..=minute,
                &mut limits.head_timeout,
            ),
            (
                "--answer-timeout",
                &self.answer_timeout,
                Duration::from_secs(1)..=10 * minute,
                &mut limits.answer_timeout,
            ),
            (
                "--stream-idle-timeout",
                &self.stream_idle_timeout,
                minute..=Duration::from_hours(24 * 7),
                &mut limits.stream_idle,
            ),
            // The design promises a minute.
            (
                "--recheck-interval",
                &self.recheck_interval,
                Duration::from_secs(1)..=minute,
                &mut limits.recheck,
            ),
            (
                "--max-tunnel-age",
                &self.max_tunnel_age,
                minute..=Duration::from_hours(24 * 30),
                &mut limits.tunnel_age,
            ),
        ] {
            match duration(given).filter(|given| range.contains(given)) {
                Some(given) => *place = given,
                None => wrong.push(format!(
                    "{flag} {given:?} is no time between {:?} and {:?}, like 90s or 2h",
                    range.start(),
                    range.end()
                )),
            }
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        flags: Flags,
    }

    fn check(args: &[&str]) -> (Limits, Vec<String>) {
        let mut wrong = Vec::new();
        let limits = Only::try_parse_from([&["hub"], args].concat()).unwrap().flags.check(&mut wrong);
        (limits, wrong)
    }

    #[test]
    fn without_flags_the_constants_hold() {
        let (limits, wrong) = check(&[]);
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!(format!("{limits:?}"), format!("{:?}", Limits::default()));
    }

    #[test]
    fn all_mistakes_are_told_at_once_each_with_its_flag_and_range() {
        let (_, wrong) = check(&[
            "--max-in-flight=0",
            "--max-in-flight-per-cluster=10000",
            "--max-header-bytes=10",
            "--request-head-timeout=0s",
            "--recheck-interval=1h",
            "--stream-idle-timeout=soon",
        ]);
        assert_eq!(wrong.len(), 6, "{wrong:#?}");
        assert!(wrong[1].contains("--max-in-flight-per-cluster") && wrong[1].contains("9900"), "{wrong:?}");
    }
}
