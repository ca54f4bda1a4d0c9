//! A TCP proxy that stands in for a bad network: what it does to each connection comes from a seed, so a failure can be
//! seen again. It goes between an agent and its hub or parent, or between any two that speak TCP.
//!
//! - `schedule`: what happens to which byte; pure
//! - `link`: moves the bytes of one connection, over anything that can be read and written. `tunnel-proto`'s simulation
//!   uses it too, in paused time and without sockets
//!
//! It never looks at what it carries.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use link::{Death, Ended, LinkFaults};

pub mod link;
pub mod schedule;

/// Connections at once; more wait to be accepted. Each costs two sockets and at most 2 MiB under way.
const CONNECTIONS: usize = 4_096;

/// A running proxy. Dropping it ends what it carries.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    faults: Arc<Mutex<LinkFaults>>,
    _tasks: JoinSet<()>,
}

impl FaultProxy {
    /// Listens on the loopback and passes connections on to `target`. The connection with number `n` has the seed
    /// `seed + n`.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(target: SocketAddr, faults: LinkFaults, seed: u64) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let faults = Arc::new(Mutex::new(faults));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, target, Arc::clone(&faults), seed));
        Ok(Self { address, faults, _tasks: tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is wrong with the connections that come from now on.
    pub fn set(&self, faults: LinkFaults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }
}

/// Accepts until it is dropped.
async fn accept(listener: TcpListener, target: SocketAddr, faults: Arc<Mutex<LinkFaults>>, seed: u64) {
    let mut open = JoinSet::new();
    for number in 0.. {
        while open.try_join_next().is_some() {}
        if open.len() >= CONNECTIONS {
            open.join_next().await;
        }
        let Ok((socket, _)) = listener.accept().await else {
            // Out of descriptors: what is open has to end first.
            open.join_next().await;
            continue;
        };
        let faults = faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
        open.spawn(pass(socket, target, faults, seed.wrapping_add(number)));
    }
}

/// Carries one connection.
async fn pass(mut socket: TcpStream, target: SocketAddr, faults: LinkFaults, seed: u64) {
    let Ok(mut upstream) = TcpStream::connect(target).await else { return };
    // What was cut into pieces is to arrive in pieces.
    let _ = (socket.set_nodelay(true), upstream.set_nodelay(true));
    let ended = link::carry(&mut socket, &mut upstream, faults, seed, &Death::default()).await;
    if ended == Ended::Reset {
        for socket in [&socket, &upstream] {
            // Without a time to linger the kernel sends RST in place of FIN.
            let _ = socket.set_zero_linger();
        }
    }
}

/// What is usually tried, by name. Where it depends on bytes, it happens to those from the dialler, after as many as a
/// tunnel's opening has and few more.
#[must_use]
pub fn usual() -> Vec<(&'static str, LinkFaults)> {
    use schedule::{End, Faults, When};
    let there = |there: Faults| LinkFaults { there, ..LinkFaults::default() };
    let both = |both: Faults| LinkFaults { there: both.clone(), back: both, idle_kill: None };
    let millis = Duration::from_millis;
    vec![
        ("nothing", LinkFaults::default()),
        ("delay", both(Faults { delay: Some((millis(20), millis(10))), ..Faults::default() })),
        ("rate", both(Faults { rate: Some(1 << 20), ..Faults::default() })),
        ("byte by byte", both(Faults { slice: Some(1), ..Faults::default() })),
        ("pieces", both(Faults { slice: Some(700), ..Faults::default() })),
        ("pause", there(Faults { pause: Some((When::Byte(9_000), millis(300))), ..Faults::default() })),
        ("reset", there(Faults { end: Some((When::Byte(9_000), End::Reset)), ..Faults::default() })),
        ("half-close", there(Faults { end: Some((When::Byte(9_000), End::HalfClose)), ..Faults::default() })),
        ("stall", there(Faults { end: Some((When::Byte(9_000), End::Stall)), ..Faults::default() })),
        ("black hole", both(Faults { end: Some((When::Byte(0), End::Stall)), ..Faults::default() })),
        ("corrupt", there(Faults { corrupt: Some((9_000, 0x10)), ..Faults::default() })),
        ("idle kill", LinkFaults { idle_kill: Some(millis(200)), ..LinkFaults::default() }),
    ]
}

#[cfg(test)]
mod tests;
