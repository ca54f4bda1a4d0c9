//! TLS handshakes, a few at once: the one step of a connection that costs a stranger nothing and the hub a signature
//! and a key exchange. A door has a queue of its own, so that thousands of agents at the gateway do not stand before
//! the parent's aggregator and the kubelet's probes.
//!
//! A turn is only for the hub's own work. It is asked for when the first message of the client is there and given back
//! when the answer to it has been made: whoever stays silent, or stops half way, holds a place of the listener
//! ([`places`](super::places)) until its deadline and nobody's turn.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authn::Door;
use crate::queue::{NoRoom, Queue};

/// Handshakes of one door that are worked on at once, each about 0.4 ms of a processor. More than there are threads, so
/// that none is idle; few, so that whoever comes in between (a request, a probe, a tunnel's bytes) waits 6 ms for one
/// thread and not for all who came before.
const AT_ONCE: usize = 16;
/// Those that wait, of one door: 0.8 s of one processor, so that a probe that comes last is still answered within its
/// second. They hold places anyhow; the first message of each is 2 KiB more: 4 MiB.
const WAITING: usize = 2_048;

/// Handshakes at both doors.
#[derive(Debug)]
pub struct Handshakes {
    aggregated: Queue,
    gateway: Queue,
}

impl Default for Handshakes {
    fn default() -> Self {
        Self::new(AT_ONCE, WAITING)
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The client's doing.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Nothing was spent on it.
    #[error("too many handshakes wait for their turn")]
    NoRoom,
}

impl From<NoRoom> for Failed {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

impl Handshakes {
    /// So many at once at each door, and so many that wait.
    pub fn new(at_once: usize, waiting: usize) -> Self {
        Self { aggregated: Queue::new(at_once, waiting), gateway: Queue::new(at_once, waiting) }
    }

    pub(crate) fn at(&self, door: Door) -> &Queue {
        match door {
            Door::Aggregated => &self.aggregated,
            Door::Gateway => &self.gateway,
        }
    }

    /// TLS, in turn.
    pub(super) async fn accept(
        &self,
        door: Door,
        socket: TcpStream,
        config: Arc<ServerConfig>,
    ) -> Result<TlsStream<TcpStream>, Failed> {
        let begun = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        let rest = {
            let _turn = self.at(door).turn().await?;
            // Key exchange and signature happen in this call (rustls `Accepted::into_connection`); the rest waits for the
            // client, and is cheap.
            begun.into_stream(config)
        };
        Ok(rest.await?)
    }
}
