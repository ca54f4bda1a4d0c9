//! A hub and an agent with a tunnel between them, and a peer that speaks WebSocket by hand.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{Request, Response, body::Incoming};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tunnel_proto::{
    Body, Hello, TunnelError, Welcome, agent_side,
    hub_side::{self, Tunnel, TunnelDriver},
};

/// How a side of the tunnel ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Hub(Result<(), TunnelError>),
    Agent(Result<(), TunnelError>),
}

/// A running tunnel.
pub(crate) struct World {
    pub(crate) tunnel: Tunnel,
    pub(crate) stop_agent: Option<oneshot::Sender<()>>,
    pub(crate) tasks: JoinSet<Ended>,
}

impl World {
    /// Over a pipe of 64 KiB, which also works in paused time.
    pub(crate) async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let (hub, agent) = duplex(64 * 1024);
        Self::on(hub, agent, answer).await
    }

    /// Over TCP, so that the sides run apart.
    pub(crate) async fn start_on_tcp<F, A>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, dialled) = tokio::join!(listener.accept(), TcpStream::connect(address));
        Self::on(accepted.unwrap().0, dialled.unwrap(), answer).await
    }

    async fn on<S, F, A>(hub: S, agent: S, answer: F) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Fn(Request<Incoming>) -> A + Send + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let (stop_agent, stopped) = oneshot::channel();
        tasks.spawn(async move {
            let (_welcome, connection) = agent_side::connect(agent, &hello()).await.unwrap();
            let stop = async {
                // A dropped sender is no order to stop.
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            Ended::Agent(connection.serve(answer, stop).await)
        });
        let (_hello, tunnel, driver) = hub_side::accept(hub, welcome).await.unwrap();
        tasks.spawn(async move { Ended::Hub(driver.await) });
        Self { tunnel, stop_agent: Some(stop_agent), tasks }
    }

    /// Waits for both sides: the hub's result, then the agent's.
    pub(crate) async fn ended(&mut self) -> (Result<(), TunnelError>, Result<(), TunnelError>) {
        let (mut hub, mut agent) = (None, None);
        while let Some(ended) = self.tasks.join_next().await {
            match ended.unwrap() {
                Ended::Hub(result) => hub = Some(result),
                Ended::Agent(result) => agent = Some(result),
            }
        }
        (hub.unwrap(), agent.unwrap())
    }
}

pub(crate) fn hello() -> Hello {
    Hello::new("c-1", "i-1", "v0.1.0")
}

pub(crate) fn welcome(hello: &Hello) -> Result<Welcome, tunnel_proto::HelloRefusal> {
    Welcome::answering(hello, "t-1", "hub-0", "v0.1.0")
}

/// A peer in place of an agent; the hub's end of the pipe comes with it.
pub(crate) async fn fake_agent(pipe: usize) -> (DuplexStream, WebSocketStream<DuplexStream>) {
    let (hub, agent) = duplex(pipe);
    (hub, WebSocketStream::from_raw_socket(agent, Role::Client, None).await)
}

/// A peer in place of a hub; the agent's end of the pipe comes with it.
pub(crate) async fn fake_hub(pipe: usize) -> (DuplexStream, WebSocketStream<DuplexStream>) {
    let (hub, agent) = duplex(pipe);
    (agent, WebSocketStream::from_raw_socket(hub, Role::Server, None).await)
}

/// The hub's end of a tunnel to a fake agent that has said hello and got its welcome.
pub(crate) async fn greeted_by_fake_agent(
    pipe: usize,
) -> (Tunnel, TunnelDriver, WebSocketStream<DuplexStream>) {
    let (hub, mut agent) = fake_agent(pipe).await;
    agent.send(Message::binary(hello().encode().unwrap())).await.unwrap();
    let (_hello, tunnel, driver) = hub_side::accept(hub, welcome).await.unwrap();
    assert_eq!(next_binary(&mut agent).await, welcome(&hello()).unwrap().encode().unwrap());
    (tunnel, driver, agent)
}

pub(crate) async fn next_binary(peer: &mut WebSocketStream<DuplexStream>) -> Bytes {
    peer.next().await.unwrap().unwrap().into_data()
}

/// Reads until the close; its code, or `None` when the connection just ended.
pub(crate) async fn close_code(peer: &mut WebSocketStream<DuplexStream>) -> Option<u16> {
    while let Some(Ok(message)) = peer.next().await {
        if let Message::Close(frame) = message {
            return frame.map(|frame| frame.code.into());
        }
    }
    None
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(format!("http://kubernetes{path}")).body(empty()).unwrap()
}

/// The promise about dead peers.
pub(crate) const NOTICED: Duration = Duration::from_secs(45);
