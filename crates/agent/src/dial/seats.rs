//! Which hub replicas the tunnels of this process lead to, and how many there shall be. A *lane* keeps one tunnel; what
//! it holds while it has one is a [`Seat`] at a replica, and no two lanes sit at the same one: a hub takes the second
//! tunnel of an agent for the successor of the first, and what dies with one replica shall leave the other tunnel.
//! Nothing here waits but for a change of what is written down.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use tokio::sync::watch;
use tunnel_proto::names::{HEADER_HUB_INSTANCE, HEADER_HUB_REPLICAS};

use crate::limits::MAX_TUNNELS;

/// Longest name of a replica that is believed: twice that of a pod.
const INSTANCE_MAX: usize = 512;

/// Where a tunnel leads, as the answer that opened it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replica {
    /// Its name; `None` from a hub that knows nothing of replicas.
    pub(crate) instance: Option<String>,
    /// How many there are; 1 if that is not said.
    pub(crate) count: usize,
}

impl Replica {
    /// What these headers say. The hub may say anything: what makes no sense is as if it were not said.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let instance = single(headers, &HeaderName::from_static(HEADER_HUB_INSTANCE))
            .filter(|name| !name.is_empty() && name.len() <= INSTANCE_MAX)
            .map(str::to_owned);
        Self { instance, count: count(headers).unwrap_or(1) }
    }
}

/// How many replicas there are, if these headers say so.
pub(crate) fn count(headers: &HeaderMap) -> Option<usize> {
    let count: u16 = single(headers, &HeaderName::from_static(HEADER_HUB_REPLICAS))?.parse().ok()?;
    (count > 0).then_some(usize::from(count))
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// What a lane does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lane {
    /// Nothing: there are tunnels enough.
    Idle,
    /// It tries to open a tunnel.
    Dialing,
    /// It was let in at this replica and says hello there.
    Opening(Option<String>),
    /// It has a tunnel there.
    Open(Option<String>),
}

#[derive(Debug, Clone)]
struct Table {
    /// As many as were last heard of.
    replicas: usize,
    lanes: [Lane; MAX_TUNNELS],
}

impl Table {
    /// Whether another lane than this one has a tunnel.
    fn another_is_open(&self, lane: usize) -> bool {
        self.others(lane).any(|other| matches!(other, Lane::Open(_)))
    }

    fn others(&self, lane: usize) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().enumerate().filter(move |(number, _)| *number != lane).map(|(_, other)| other)
    }

    /// The first lane brings the process in; each further one dials beside an open tunnel only, so that a hub that
    /// comes back meets each agent once.
    fn may_dial(&self, lane: usize, most: usize) -> bool {
        let taken = |(number, other): (usize, &Lane)| {
            number != lane
                && match other {
                    Lane::Idle => false,
                    Lane::Dialing => number < lane,
                    Lane::Opening(_) | Lane::Open(_) => true,
                }
        };
        let taken = self.lanes.iter().enumerate().filter(|lane| taken(*lane)).count();
        taken < self.replicas.min(most) && (lane == 0 || self.another_is_open(lane))
    }

    /// A replica without a name cannot be told from any other.
    fn is_taken(&self, lane: usize, instance: Option<&str>) -> bool {
        self.others(lane).any(|other| match other {
            Lane::Idle | Lane::Dialing => false,
            Lane::Opening(there) | Lane::Open(there) => instance.is_none() || there.as_deref() == instance,
        })
    }
}

/// The seats of all lanes.
#[derive(Debug, Clone)]
pub(crate) struct Seats {
    most: usize,
    table: Arc<watch::Sender<Table>>,
}

impl Seats {
    /// For at most so many tunnels.
    pub(crate) fn new(most: usize) -> Self {
        let lanes = std::array::from_fn(|_| Lane::Idle);
        let table = watch::Sender::new(Table { replicas: 1, lanes });
        Self { most: most.clamp(1, MAX_TUNNELS), table: Arc::new(table) }
    }

    /// Waits until this lane shall have a tunnel.
    pub(crate) async fn wanted(&self, lane: usize) {
        let mut changes = self.table.subscribe();
        loop {
            let mut may = false;
            self.table.send_if_modified(|table| {
                may = table.may_dial(lane, self.most);
                set(table, lane, if may { Lane::Dialing } else { Lane::Idle })
            });
            if may {
                return;
            }
            // Our own change is seen too, and changes nothing the second time. The sender is `self`.
            let _ = changes.changed().await;
        }
    }

    /// So many replicas there are, as a hub says inside of a tunnel.
    pub(crate) fn heard(&self, replicas: usize) {
        self.table.send_if_modified(|table| {
            let news = table.replicas != replicas;
            table.replicas = replicas;
            news
        });
    }

    /// A seat at this replica, unless another lane has it.
    pub(crate) fn take(&self, lane: usize, replica: &Replica) -> Option<Seat> {
        let mut free = false;
        self.table.send_if_modified(|table| {
            let news = table.replicas != replica.count;
            table.replicas = replica.count;
            free = !table.is_taken(lane, replica.instance.as_deref());
            (free && set(table, lane, Lane::Opening(replica.instance.clone()))) || news
        });
        free.then(|| Seat { seats: self.clone(), lane })
    }

    /// Whether another lane than this one has a tunnel.
    pub(crate) fn another_is_open(&self, lane: usize) -> bool {
        self.table.borrow().another_is_open(lane)
    }

    /// Resolves when no other lane has a tunnel.
    pub(crate) async fn alone(&self, lane: usize) {
        let _ = self.table.subscribe().wait_for(|table| !table.another_is_open(lane)).await;
    }
}

fn set(table: &mut Table, lane: usize, to: Lane) -> bool {
    match table.lanes.get_mut(lane) {
        Some(now) if *now != to => {
            *now = to;
            true
        }
        Some(_) | None => false,
    }
}

/// A lane's place at a replica, given up on drop.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Seats,
    lane: usize,
}

impl Seat {
    /// The tunnel there stands.
    pub(crate) fn open(&self) {
        self.seats.table.send_if_modified(|table| match table.lanes.get_mut(self.lane) {
            Some(lane @ Lane::Opening(_)) => {
                if let Lane::Opening(instance) = std::mem::replace(lane, Lane::Idle) {
                    *lane = Lane::Open(instance);
                }
                true
            }
            Some(_) | None => false,
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.table.send_if_modified(|table| set(table, self.lane, Lane::Dialing));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use http::HeaderValue;

    use super::*;

    fn at(instance: &str, count: usize) -> Replica {
        Replica { instance: (!instance.is_empty()).then(|| instance.to_owned()), count }
    }

    fn is_wanted(seats: &Seats, lane: usize) -> bool {
        seats.wanted(lane).now_or_never().is_some()
    }

    fn sit(seats: &Seats, lane: usize, replica: &Replica) -> Seat {
        let seat = seats.take(lane, replica).unwrap();
        seat.open();
        seat
    }

    #[test]
    fn what_makes_no_sense_is_as_if_it_were_not_said() {
        let of = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for &(name, value) in lines {
                headers.append(name, HeaderValue::from_static(value));
            }
            Replica::of(&headers)
        };
        assert_eq!(of(&[]), at("", 1));
        assert_eq!(of(&[(HEADER_HUB_INSTANCE, "hub-a"), (HEADER_HUB_REPLICAS, "2")]), at("hub-a", 2));
        for nonsense in ["0", "-1", "two", "", "99999999999999999999", "1.5"] {
            assert_eq!(of(&[(HEADER_HUB_REPLICAS, nonsense)]), at("", 1), "{nonsense}");
        }
        assert_eq!(of(&[(HEADER_HUB_INSTANCE, "a"), (HEADER_HUB_INSTANCE, "b")]), at("", 1));
        assert_eq!(of(&[(HEADER_HUB_REPLICAS, "2"), (HEADER_HUB_REPLICAS, "3")]), at("", 1));
    }

    #[test]
    fn the_second_lane_dials_beside_an_open_tunnel_and_a_second_replica_only() {
        let seats = Seats::new(2);
        assert!(is_wanted(&seats, 0) && !is_wanted(&seats, 1));
        let seat = seats.take(0, &at("a", 2)).unwrap();
        assert!(!is_wanted(&seats, 1), "its hello may still be refused");
        seat.open();
        assert!(is_wanted(&seats, 1));
        seats.heard(1);
        assert!(!is_wanted(&seats, 1));
        seats.heard(9);
        assert!(is_wanted(&seats, 1));
    }

    #[test]
    fn two_lanes_never_sit_at_one_replica() {
        let seats = Seats::new(2);
        let first = sit(&seats, 0, &at("a", 2));
        assert!(seats.take(1, &at("a", 2)).is_none());
        assert!(seats.take(1, &at("", 2)).is_none(), "one without a name could be any");
        let second = sit(&seats, 1, &at("b", 2));
        drop(first);
        assert!(seats.take(0, &at("b", 2)).is_none());
        assert!(seats.take(0, &at("a", 2)).is_some());
        drop(second);
        assert!(seats.take(0, &at("b", 2)).is_some());
    }

    #[test]
    fn one_tunnel_is_enough_whichever_lane_has_it() {
        let seats = Seats::new(2);
        let first = sit(&seats, 0, &at("a", 2));
        let _second = sit(&seats, 1, &at("b", 2));
        drop(first);
        assert!(is_wanted(&seats, 0));
        seats.heard(1);
        assert!(!is_wanted(&seats, 0));
        assert!(seats.alone(1).now_or_never().is_some() && seats.alone(0).now_or_never().is_none());
    }

    #[test]
    fn the_flag_has_the_last_word() {
        let seats = Seats::new(1);
        let _seat = sit(&seats, 0, &at("a", 5));
        assert!(!is_wanted(&seats, 1));
        assert_eq!(Seats::new(0).most, 1);
        assert_eq!(Seats::new(9).most, MAX_TUNNELS);
    }

    #[tokio::test]
    async fn a_lane_that_waits_is_woken_by_the_news_of_a_second_replica() {
        let seats = Seats::new(2);
        let _seat = sit(&seats, 0, &at("a", 1));
        let mut waiting = Box::pin(seats.wanted(1));
        assert!(waiting.as_mut().now_or_never().is_none());
        seats.heard(2);
        waiting.await;
    }
}
