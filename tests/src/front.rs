//! One address for several servers, as a Service is: each connection goes to the first of them that accepts it. Which these
//! are can change while it runs, as the endpoints of a Service do. A process on this machine has no Service, and an
//! APIService names one port.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Listens until it is dropped; its connections end with it.
#[derive(Debug)]
pub struct Front {
    port: u16,
    backends: Arc<Mutex<Vec<SocketAddr>>>,
    _tasks: JoinSet<()>,
}

impl Front {
    /// Starts one for these ports of loopback, the preferred one first.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(backends: Vec<u16>) -> Result<Self> {
        Self::at(Ipv4Addr::LOCALHOST, on_loopback(backends)).await
    }

    /// Starts one at an address of this machine, for servers anywhere.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn at(address: Ipv4Addr, backends: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let port = listener.local_addr()?.port();
        let backends = Arc::new(Mutex::new(backends));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&backends)));
        Ok(Self { port, backends, _tasks: tasks })
    }

    /// Leads new connections to these from now on; open ones stay where they are.
    pub fn lead_to(&self, backends: Vec<u16>) {
        *self.backends.lock().unwrap_or_else(PoisonError::into_inner) = on_loopback(backends);
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn on_loopback(ports: Vec<u16>) -> Vec<SocketAddr> {
    ports.into_iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect()
}

async fn accept(listener: TcpListener, backends: Arc<Mutex<Vec<SocketAddr>>>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let now = backends.lock().unwrap_or_else(PoisonError::into_inner).clone();
                open.spawn(carry(client, now));
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn carry(mut client: TcpStream, backends: Vec<SocketAddr>) {
    for backend in backends {
        let Ok(mut server) = TcpStream::connect(backend).await else { continue };
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn greet(listener: TcpListener, greeting: &'static [u8]) {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(greeting).await.unwrap();
        }
    }

    async fn greeting(front: &Front) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, front.port())).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_second_gets_the_connections_once_the_first_is_gone() {
        let mut tasks = JoinSet::new();
        let mut ports = Vec::new();
        let mut first = None;
        for text in [b"first".as_slice(), b"second"] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            ports.push(listener.local_addr().unwrap().port());
            let handle = tasks.spawn(greet(listener, text));
            first = first.or(Some(handle));
        }
        let front = Front::start(ports).await.unwrap();
        assert_eq!(greeting(&front).await, "first");
        first.unwrap().abort();
        tasks.join_next().await.unwrap().unwrap_err();
        assert_eq!(greeting(&front).await, "second");
    }
}
