//! Every number of the tunnel, with its reason and the memory it can cost. Nothing in this crate is
//! bounded by a number that stands anywhere else, and nothing is unbounded.

use std::time::Duration;

/// The oldest and the newest version of the tunnel protocol that this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 1;

/// Longest hello or welcome message. A full one (32 capabilities, 4 strings of 256) is about 10 KiB.
pub const HELLO_MAX: usize = 16 * 1024;
/// Longest string inside a hello or a welcome; ids are UUIDs or pod names (at most 253 characters).
pub const HELLO_STRING_MAX: usize = 256;
/// Most capabilities one side can name: `32 × 256 B = 8 KiB`, which fits in [`HELLO_MAX`].
pub const HELLO_CAPABILITIES_MAX: usize = 32;
/// Time for the whole exchange of hello and welcome, and for the first bytes of HTTP/2 after it. An
/// opened but silent connection holds a socket and two small buffers no longer than this.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The WebSocket read buffer, allocated once per tunnel. The library's default of 128 KiB tripled the
/// memory of an idle tunnel (331 against 100 KiB per pair, measured) and brought no throughput.
pub const READ_BUFFER: usize = 16 * 1024;
/// Largest WebSocket message and frame that is accepted. Our own peer never sends more than
/// [`COALESCE`]; the rest is room for a proxy that joins messages. Costs 1 MiB per tunnel at worst.
pub const MESSAGE_MAX: usize = 1024 * 1024;
/// Bytes above [`MESSAGE_MAX`] that may arrive before a whole message with payload does: frame headers
/// of a fragmented message, control frames, and what the read buffer has read ahead. Together they
/// bound a message of endless tiny or empty fragments, which the WebSocket library does not limit.
pub const WIRE_SLACK: usize = 64 * 1024;
/// Pings, pongs and empty messages in a row. A live tunnel carries an HTTP/2 PING every
/// [`KEEP_ALIVE_INTERVAL`], so a proxy would have to ping four times a second to come near.
pub const EMPTY_IN_A_ROW: usize = 64;
/// Largest WebSocket message that is sent: one full HTTP/2 DATA frame and 1 KiB for its header and
/// small frames before it, so that a frame never costs two messages and two writes.
pub const COALESCE: usize = MAX_FRAME_SIZE as usize + 1024;
/// Bound of the WebSocket library's own write buffer: one message of ours, plus pongs and the close.
/// It is reached only by a bug, because we wait for room before each message.
pub const WRITE_BUFFER_MAX: usize = 4 * 64 * 1024;
/// The socket took no byte for this long while some were waiting: the peer no longer reads. The check
/// is made once per period, so it takes at most two of them: 40 s.
pub const WRITE_STALL: Duration = Duration::from_secs(20);

/// Time to wait for the peer's answer to our close before the socket goes. Without the wait the peer may
/// find a broken connection instead of the close, and report a failure that was none.
pub const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// HTTP/2 window of one stream, both directions, on the shortest way. What is under way of a bulk transfer, a small answer
/// waits for: at 300 MB/s 1 MiB are 3.5 ms. Half of this costs a tenth more CPU for each byte (docs/performance.md). A stream whose reader has stopped holds at most its window:
/// `MAX_STREAMS` of them are the theoretical worst of one tunnel, so whoever accepts requests has to limit those in flight.
pub const STREAM_WINDOW: u32 = 512 * 1024;
/// Bytes a second for which a stream has room in flight on a short way, up to [`STREAM_WINDOW_SHORT`]: 840 Mbit/s.
pub const STREAM_RATE_SHORT: u32 = 100 * 1024 * 1024;
/// See [`STREAM_RATE_SHORT`]: enough up to 10 ms, and then until [`STREAM_RATE`] asks for more.
pub const STREAM_WINDOW_SHORT: u32 = 1024 * 1024;
/// Bytes a second for which a stream has room in flight on a long way, up to [`STREAM_WINDOW_MAX`]. More would make small
/// answers wait longer where the way is long and narrow: 50 ms with 100 Mbit/s are full with 0.6 MiB.
pub const STREAM_RATE: u32 = 28 * 1024 * 1024;
/// See [`STREAM_RATE`]: what it needs at 107 ms. So many that are full still leave room in [`CONNECTION_WINDOW`] for others:
/// 682 streams, against 4,095 of [`STREAM_WINDOW`].
pub const STREAM_WINDOW_MAX: u32 = 3 * 1024 * 1024;
/// HTTP/2 window of the connection: the largest there is, so that it never binds. If it did, a few
/// readers that stopped (eight `kubectl logs -f` at 16 MiB) would stop every other stream.
pub const CONNECTION_WINDOW: u32 = i32::MAX as u32;
/// Streams open at once on one tunnel; watches and `logs -f` count for their whole life. About 3 KiB
/// each when idle: 30 MiB. The HTTP library's default of 200 is below one busy cluster.
pub const MAX_STREAMS: u32 = 10_000;
/// Streams that the hub has cancelled before the agent took them up, at once; more end the tunnel as an
/// attack (CVE-2023-44487). The library's 20 ends it when 200 requests are cancelled at once (tested),
/// as when a `kubectl` with many watches is stopped or a client of the hub fails over. About 1 KiB each.
pub const MAX_PENDING_RESETS: usize = 1_000;
/// Requests waiting in the hub for a free stream of one tunnel; more are refused as busy. About 2 KiB
/// each without their bodies, which are not read before: 2 MiB.
pub const MAX_QUEUED: usize = 1_024;
/// Largest HTTP/2 frame. 64 KiB costs 8 to 20 % less CPU than 16 KiB (measured), because each DATA
/// frame is one WebSocket message and one write.
pub const MAX_FRAME_SIZE: u32 = 64 * 1024;
/// Largest header list. Users with thousands of groups overflow the usual 16 KiB; Go's default, which
/// a kube-apiserver applies to its callers, is 1 MiB.
pub const MAX_HEADER_LIST: u32 = 1024 * 1024;
/// Bytes of one stream waiting to be written: two full frames. `MAX_STREAMS × 128 KiB = 1.25 GiB` if
/// every stream is sending to a peer that reads nothing, which ends after [`WRITE_STALL`].
pub const SEND_BUFFER: usize = 2 * MAX_FRAME_SIZE as usize;

/// A DATA frame below this size costs the hub more than it carries: h2 0.4.20 takes what it lacks from a budget of 1 GiB for
/// each tunnel until it is read, and ends the tunnel when that is used up.
pub const SMALL_FRAME: usize = 256;
/// The agent sends at most one such frame of a stream in so long; what comes meanwhile goes with the next one. Nobody who
/// watches or reads a log sees the difference; 50 in a second, unread, are a window of 60-byte lines after three minutes.
pub const GATHER: Duration = Duration::from_millis(20);
/// So much is gathered at most: 16 KiB of each stream that has small pieces at this moment.
pub const GATHER_MAX: usize = 16 * 1024;

/// Silence after which an HTTP/2 PING goes out, from both sides.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Time for its answer. A dead peer is noticed within 35 s (40 s with [`CLOSE_WAIT`] or [`WRITE_STALL`]),
/// below the 45 s that were promised.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time that a tunnel may go on for its open streams after either side has said that it goes.
/// Callers usually end it sooner, by dropping it at the end of their own grace period.
pub const DRAIN_MAX: Duration = Duration::from_secs(600);

/// The window of a tunnel's streams, by the time that a hello or its answer took to come: fixed for the life of the tunnel,
/// because hyper's `adaptive_window` would bind the connection's to it. One who is slow on purpose gets
/// [`STREAM_WINDOW_MAX`].
pub fn stream_window(round_trip: Duration) -> u32 {
    let at = |rate: u32| round_trip.as_micros() * u128::from(rate) / 1_000_000;
    let bytes = at(STREAM_RATE_SHORT).min(STREAM_WINDOW_SHORT.into()).max(at(STREAM_RATE));
    u32::try_from(bytes).unwrap_or(STREAM_WINDOW_MAX).clamp(STREAM_WINDOW, STREAM_WINDOW_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_way_has_a_larger_window_within_bounds() {
        let window = |millis| stream_window(Duration::from_millis(millis));
        assert_eq!([window(0), window(2)], [STREAM_WINDOW; 2]);
        assert_eq!(window(5), STREAM_RATE_SHORT / 200);
        assert_eq!([window(11), window(35)], [STREAM_WINDOW_SHORT; 2]);
        assert_eq!(window(50), STREAM_RATE / 20);
        assert_eq!([window(108), window(10_000)], [STREAM_WINDOW_MAX; 2]);
        assert_eq!(stream_window(Duration::MAX), STREAM_WINDOW_MAX);
        assert!((0..200).map(window).is_sorted(), "a longer way has a smaller window");
    }
}
