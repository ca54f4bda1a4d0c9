//! A byte stream in WebSocket messages: what HTTP/2 is spoken over. Bytes that are written gather until a
//! flush or until [`COALESCE`], and go out as one binary message; message bounds mean nothing to the
//! reader. A clean close is the end of the stream, anything else is an error, never an end.
//!
//! Threat model: every byte that is read comes from a peer that may be hostile. Memory is bounded by
//! [`MESSAGE_MAX`], work without a message by [`WIRE_SLACK`] and [`EMPTY_IN_A_ROW`], and a peer that does
//! not read by [`WRITE_STALL`]. Nothing here panics on input.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::{Sink as _, Stream as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    error::StreamFault,
    hello::printable,
    limits::{
        CLOSE_WAIT, COALESCE, EMPTY_IN_A_ROW, HELLO_MAX, MESSAGE_MAX, READ_BUFFER, WIRE_SLACK,
        WRITE_BUFFER_MAX, WRITE_STALL,
    },
};

/// Which end of a tunnel this is; it decides who masks (RFC 6455 section 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The WebSocket server.
    Hub,
    /// The WebSocket client: it masks.
    Agent,
}

/// The byte stream.
#[derive(Debug)]
pub struct WebSocketIo<S> {
    socket: WebSocketStream<Meter<S>>,
    /// What is left of the last message.
    unread: Bytes,
    /// What is not yet a message. Its memory goes with each message, so an idle tunnel holds none.
    unsent: BytesMut,
    /// Messages without payload since the last one with some.
    empty_in_a_row: usize,
    reading: Reading,
    /// Our close message is on its way.
    closing: bool,
    /// Runs while we wait for the peer's.
    close_wait: Option<Pin<Box<Sleep>>>,
    stall: Option<Stall>,
    /// What failed first, for whoever finds only that something did.
    fault: Arc<OnceLock<StreamFault>>,
}

/// What the next read finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    /// The peer closed in order.
    Ended,
    /// An error was reported already.
    Failed,
}

/// Runs while the peer takes nothing.
#[derive(Debug)]
struct Stall {
    check: Pin<Box<Sleep>>,
    /// [`Meter::progress`] at the last check.
    seen: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketIo<S> {
    /// Takes over a connection on which the HTTP upgrade has happened.
    pub async fn new(io: S, side: Side) -> Self {
        let role = match side {
            Side::Hub => Role::Server,
            Side::Agent => Role::Client,
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            // Each message goes out at once: gathering is done here, where a flush is known.
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_MAX)
            .max_message_size(Some(MESSAGE_MAX))
            .max_frame_size(Some(MESSAGE_MAX));
        // Until the hello is there, a stranger gets no more than a hello's worth of work.
        let meter = Meter { io, since_message: 0, budget: HELLO_MAX + WIRE_SLACK, progress: 0 };
        Self {
            socket: WebSocketStream::from_raw_socket(meter, role, Some(config)).await,
            unread: Bytes::new(),
            unsent: BytesMut::new(),
            empty_in_a_row: 0,
            reading: Reading::Open,
            closing: false,
            close_wait: None,
            stall: None,
            fault: Arc::default(),
        }
    }

    /// Where it stands what failed first, once something has.
    pub(crate) fn fault(&self) -> Arc<OnceLock<StreamFault>> {
        Arc::clone(&self.fault)
    }

    fn note(&self, fault: StreamFault) -> io::Error {
        // The first one is the cause of those after it.
        let _ = self.fault.set(fault.clone());
        fault.into()
    }

    /// Reads one whole message of at most `max` bytes; `None` is a clean close.
    ///
    /// # Errors
    /// Why the stream is broken.
    pub(crate) async fn receive(&mut self, max: usize) -> Result<Option<Bytes>, StreamFault> {
        let message = poll_fn(|cx| self.poll_message(cx)).await?;
        if message.as_ref().is_some_and(|message| message.len() > max) {
            self.close_at_once(CloseCode::Size, "the message is above the limit");
            return Err(StreamFault::MessageTooBig);
        }
        Ok(message)
    }

    /// Sends one whole message.
    ///
    /// # Errors
    /// Why the stream is broken.
    pub(crate) async fn send(&mut self, message: Bytes) -> Result<(), StreamFault> {
        poll_fn(|cx| self.poll_room(cx)).await?;
        Pin::new(&mut self.socket).start_send(Message::Binary(message)).map_err(into_fault)?;
        poll_fn(|cx| self.poll_drained(cx)).await
    }

    /// Waits until at least `count` bytes can be read and tells whether they are `expected`. Sets the
    /// limits of the byte stream in place of those of the hello.
    ///
    /// # Errors
    /// Why the stream is broken.
    pub(crate) async fn begins_with(&mut self, expected: &[u8]) -> Result<bool, StreamFault> {
        self.begin();
        let mut first = BytesMut::new();
        while first.len() < expected.len() {
            let Some(message) = poll_fn(|cx| self.poll_message(cx)).await? else { break };
            first.extend_from_slice(&message);
            if !expected.starts_with(&first[..first.len().min(expected.len())]) {
                break;
            }
        }
        self.unread = first.freeze();
        Ok(self.unread.starts_with(expected))
    }

    /// The hello is over: from here on messages may be as large as the limits say.
    pub(crate) fn begin(&mut self) {
        self.socket.get_mut().budget = MESSAGE_MAX + WIRE_SLACK;
    }

    /// Closes with a code and waits until it is sent.
    pub(crate) async fn close(&mut self, code: CloseCode, reason: &'static str) {
        self.close_at_once(code, reason);
        // The peer may have gone; then there is nobody left to tell.
        drop(poll_fn(|cx| self.poll_closed(cx)).await);
    }

    /// Sends a close if the socket takes it now. It must not wait: it is said to a peer in error.
    pub(crate) fn close_at_once(&mut self, code: CloseCode, reason: &'static str) {
        if self.closing || self.reading == Reading::Ended {
            return;
        }
        self.closing = true;
        let frame = CloseFrame { code, reason: reason.into() };
        if Pin::new(&mut self.socket).start_send(Message::Close(Some(frame))).is_ok() {
            let mut nobody = Context::from_waker(Waker::noop());
            let _sent_or_not = Pin::new(&mut self.socket).poll_flush(&mut nobody);
        }
    }

    /// The next message that has payload; `None` after a clean close.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamFault>> {
        match self.reading {
            Reading::Open => {}
            Reading::Ended => return Poll::Ready(Ok(None)),
            Reading::Failed => return Poll::Ready(Err(StreamFault::Cut)),
        }
        let message = ready!(self.poll_any_message(cx));
        self.reading = match &message {
            Ok(Some(_)) => Reading::Open,
            Ok(None) => Reading::Ended,
            Err(_) => Reading::Failed,
        };
        if let Err(fault) = &message {
            tracing::debug!(%fault, "tunnel byte stream failed");
            if let Some((code, reason)) = close_for(fault) {
                self.close_at_once(code, reason);
            }
        }
        Poll::Ready(message)
    }

    fn poll_any_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamFault>> {
        loop {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(payload))) if !payload.is_empty() => {
                    self.empty_in_a_row = 0;
                    self.socket.get_mut().since_message = 0;
                    return Poll::Ready(Ok(Some(payload)));
                }
                // The library answers a ping by itself when it is polled again.
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {
                    self.empty_in_a_row += 1;
                    if self.empty_in_a_row > EMPTY_IN_A_ROW {
                        return Poll::Ready(Err(StreamFault::EmptyFlood));
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    // The answer to it is queued; give it the one chance it has.
                    let _sent_or_not = Pin::new(&mut self.socket).poll_flush(cx);
                    return Poll::Ready(match frame {
                        Some(frame) if frame.code != CloseCode::Normal && frame.code != CloseCode::Away => {
                            let reason = printable(&frame.reason);
                            Err(StreamFault::PeerClosed { code: frame.code.into(), reason })
                        }
                        _ => Ok(None),
                    });
                }
                // A raw frame is never read, says the library.
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return Poll::Ready(Err(StreamFault::Text));
                }
                Some(Err(error)) => return Poll::Ready(Err(into_fault(error))),
                // Both sides have closed; it began with us, or we would have seen the peer's close.
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Turns what is unsent into a message, as soon as the one before it has left. Without this wait the
    /// library would gather messages without bound.
    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamFault>> {
        ready!(self.poll_room(cx))?;
        let message = std::mem::take(&mut self.unsent).freeze();
        let sent = Pin::new(&mut self.socket).start_send(Message::Binary(message));
        Poll::Ready(sent.map_err(into_fault))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamFault>> {
        let room = Pin::new(&mut self.socket).poll_ready(cx).map_err(into_fault);
        self.or_stalled(room, cx)
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamFault>> {
        let drained = Pin::new(&mut self.socket).poll_flush(cx).map_err(into_fault);
        self.or_stalled(drained, cx)
    }

    /// Sends what is on its way, waits for the peer's close, and shuts the socket.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamFault>> {
        // When the peer has closed, it owes us nothing, and whether our answer arrives changes nothing.
        if self.reading == Reading::Open {
            ready!(self.poll_drained(cx))?;
            let close_wait = self.close_wait.get_or_insert_with(|| Box::pin(sleep(CLOSE_WAIT)));
            if close_wait.as_mut().poll(cx).is_pending() {
                // What still comes was sent before the peer knew, and nobody is left to read it.
                while let Ok(Some(_)) = ready!(self.poll_message(cx)) {}
            }
        }
        let down = Pin::new(self.socket.get_mut()).poll_shutdown(cx);
        self.or_stalled(down.map(|_gone_or_not| Ok(())), cx)
    }

    /// Puts a limit to waiting for the peer. The timer stays armed when the wait is over, because a busy
    /// tunnel waits thousands of times a second; so a stall is noticed after one period or two.
    fn or_stalled(
        &mut self,
        waited: Poll<Result<(), StreamFault>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), StreamFault>> {
        if waited.is_ready() {
            return waited;
        }
        let progress = self.socket.get_ref().progress;
        let stall =
            self.stall.get_or_insert_with(|| Stall { check: Box::pin(sleep(WRITE_STALL)), seen: progress });
        while stall.check.as_mut().poll(cx).is_ready() {
            if stall.seen == progress {
                return Poll::Ready(Err(StreamFault::WriteStalled));
            }
            stall.seen = progress;
            stall.check.as_mut().reset(Instant::now() + WRITE_STALL);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.unread.is_empty() {
            let message = ready!(self.poll_message(cx)).map_err(|fault| self.note(fault))?;
            let Some(message) = message else { return Poll::Ready(Ok(())) };
            self.unread = message;
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        if self.unread.is_empty() {
            // A slice of a large buffer would keep the whole of it while the tunnel is idle.
            self.unread = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if self.reading == Reading::Ended {
            // The peer closed in order and reads no more. HTTP/2 learns that from the end of what it
            // reads; its own goodbye is not to become a failure.
            return Poll::Ready(Ok(offered));
        }
        if self.unsent.len() >= COALESCE {
            ready!(self.poll_push(cx)).map_err(|fault| self.note(fault))?;
        }
        let taken = offered.min(COALESCE - self.unsent.len());
        self.unsent.reserve(taken);
        let mut left = taken;
        for buf in bufs {
            let count = buf.len().min(left);
            self.unsent.extend_from_slice(&buf[..count]);
            left -= count;
        }
        Poll::Ready(Ok(taken))
    }

    /// Otherwise HTTP/2 would write the header and the payload of a frame one after the other.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reading == Reading::Ended {
            return Poll::Ready(Ok(()));
        }
        if !self.unsent.is_empty() {
            ready!(self.poll_push(cx)).map_err(|fault| self.note(fault))?;
        }
        self.poll_drained(cx).map_err(|fault| self.note(fault))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // After the peer's close nothing of ours would be read.
        if !self.closing && self.reading == Reading::Open {
            if !self.unsent.is_empty() {
                ready!(self.poll_push(cx)).map_err(|fault| self.note(fault))?;
            }
            ready!(self.poll_room(cx)).map_err(|fault| self.note(fault))?;
            self.closing = true;
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let closed = Pin::new(&mut self.socket).start_send(Message::Close(Some(frame)));
            closed.map_err(|error| self.note(into_fault(error)))?;
        }
        self.poll_closed(cx).map_err(|fault| self.note(fault))
    }
}

/// The code that tells the peer what it did, for those faults that are its doing.
fn close_for(fault: &StreamFault) -> Option<(CloseCode, &'static str)> {
    match fault {
        StreamFault::Text => Some((CloseCode::Unsupported, "binary messages only")),
        StreamFault::EmptyFlood => Some((CloseCode::Policy, "too many messages without payload")),
        StreamFault::EndlessMessage => Some((CloseCode::Size, "too many bytes without a message")),
        StreamFault::MessageTooBig => Some((CloseCode::Size, "the message is above the limit")),
        StreamFault::Protocol(_) => Some((CloseCode::Protocol, "protocol violation")),
        StreamFault::PeerClosed { .. }
        | StreamFault::Cut
        | StreamFault::WriteStalled
        | StreamFault::Io(_) => None,
    }
}

fn into_fault(error: Error) -> StreamFault {
    match error {
        // Only the meter makes errors with a fault inside; give that back as it is.
        Error::Io(error) => {
            error.downcast::<StreamFault>().unwrap_or_else(|error| StreamFault::Io(Arc::new(error)))
        }
        Error::Capacity(_) => StreamFault::MessageTooBig,
        Error::Utf8(_) => StreamFault::Text,
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing) => {
            StreamFault::Cut
        }
        Error::Protocol(error) => StreamFault::Protocol(error.to_string()),
        other @ (Error::Tls(_)
        | Error::WriteBufferFull(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_)) => StreamFault::Io(Arc::new(io::Error::other(other))),
    }
}

/// Counts below the WebSocket library, which shows neither the fragments of a message nor how much of a
/// write has left.
#[derive(Debug)]
struct Meter<S> {
    io: S,
    /// Bytes read since the last message with payload.
    since_message: usize,
    /// How many of them there may be.
    budget: usize,
    /// Changes whenever the socket takes something.
    progress: u64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Meter<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.since_message >= self.budget {
            return Poll::Ready(Err(StreamFault::EndlessMessage.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.since_message += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Meter<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.progress = self.progress.wrapping_add(1);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        // TLS buffers: there it is the flush that tells that the socket took something.
        self.progress = self.progress.wrapping_add(1);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt as _, StreamExt as _};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// An adapter of one side, and the other side of its wire.
    async fn adapter(side: Side) -> (WebSocketIo<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(256 * 1024);
        let mut io = WebSocketIo::new(near, side).await;
        io.begin();
        (io, far)
    }

    /// An adapter in the hub's role, and a plain WebSocket client.
    async fn hub_and_peer() -> (WebSocketIo<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (io, far) = adapter(Side::Hub).await;
        (io, WebSocketStream::from_raw_socket(far, Role::Client, None).await)
    }

    async fn fault_of(io: &mut WebSocketIo<DuplexStream>) -> StreamFault {
        let error = io.read_to_end(&mut Vec::new()).await.unwrap_err();
        error.downcast().unwrap()
    }

    async fn close_code(peer: &mut WebSocketStream<DuplexStream>) -> u16 {
        loop {
            if let Message::Close(Some(frame)) = peer.next().await.unwrap().unwrap() {
                return frame.code.into();
            }
        }
    }

    /// The bytes of `frames` messages of this opcode byte from a client, masked with zeros.
    fn frames(count: usize, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![opcode, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        frame.repeat(count)
    }

    #[tokio::test]
    async fn writes_gather_into_one_message_of_these_bytes() {
        let (mut io, mut far) = adapter(Side::Hub).await;
        io.write_all(b"one ").await.unwrap();
        let parts = [IoSlice::new(b"tw"), IoSlice::new(b""), IoSlice::new(b"o")];
        assert!(io.is_write_vectored());
        assert_eq!(io.write_vectored(&parts).await.unwrap(), 3);
        io.flush().await.unwrap();
        io.flush().await.unwrap();
        let mut wire = Vec::new();
        let (closed, read) = tokio::join!(io.shutdown(), async {
            let mut buf = [0; 13];
            far.read_exact(&mut buf).await.unwrap();
            wire.extend_from_slice(&buf);
            far.shutdown().await.unwrap();
            far.read_to_end(&mut wire).await
        });
        closed.unwrap();
        read.unwrap();
        // FIN and binary, length 7, no mask; then a close with code 1000.
        assert_eq!(wire, b"\x82\x07one two\x88\x02\x03\xe8");
    }

    #[tokio::test]
    async fn a_full_http2_frame_is_one_message_and_more_is_cut_at_the_limit() {
        let (mut io, mut peer) = hub_and_peer().await;
        let bulk = vec![7_u8; COALESCE + 100];
        io.write_all(&bulk).await.unwrap();
        io.flush().await.unwrap();
        assert_eq!(peer.next().await.unwrap().unwrap().len(), COALESCE);
        assert_eq!(peer.next().await.unwrap().unwrap().len(), 100);
        assert!(COALESCE >= crate::limits::MAX_FRAME_SIZE as usize + 9);
    }

    #[tokio::test]
    async fn what_the_agent_writes_is_masked() {
        let (mut io, mut far) = adapter(Side::Agent).await;
        io.write_all(b"hello").await.unwrap();
        io.flush().await.unwrap();
        let mut wire = [0_u8; 11];
        far.read_exact(&mut wire).await.unwrap();
        assert_eq!(wire[..2], [0x82, 0x85]);
        let plain: Vec<u8> = wire[6..].iter().zip(wire[2..6].iter().cycle()).map(|(a, b)| a ^ b).collect();
        assert_eq!(plain, b"hello");
    }

    #[tokio::test]
    async fn a_text_message_is_an_error_and_closed_with_1003() {
        let (mut io, mut peer) = hub_and_peer().await;
        peer.send(Message::text("hello")).await.unwrap();
        assert!(matches!(fault_of(&mut io).await, StreamFault::Text));
        assert_eq!(close_code(&mut peer).await, 1003);
        assert!(io.read_u8().await.is_err(), "an error is not followed by an end");
    }

    #[tokio::test]
    async fn a_message_above_the_limit_is_closed_with_1009_before_it_is_read() {
        for claim in [1024 * 1024 + 1, u64::MAX >> 1, u64::MAX] {
            let (mut io, mut far) = adapter(Side::Hub).await;
            let mut head = vec![0x82, 0xff];
            head.extend_from_slice(&claim.to_be_bytes());
            head.extend_from_slice(&[0; 4]);
            far.write_all(&head).await.unwrap();
            let fault = fault_of(&mut io).await;
            assert!(matches!(fault, StreamFault::MessageTooBig), "{claim}: {fault}");
            let mut close = [0_u8; 4];
            far.read_exact(&mut close).await.unwrap();
            assert_eq!(close[2..], 1009_u16.to_be_bytes());
        }
    }

    #[tokio::test]
    async fn broken_frames_are_protocol_errors() {
        let cases: [(&str, Vec<u8>); 7] = [
            ("no mask", b"\x82\x01x".to_vec()),
            ("reserved bit, as with compression", frames(1, 0xc2, b"x")),
            ("reserved opcode", frames(1, 0x83, b"x")),
            ("fragmented ping", frames(1, 0x09, b"x")),
            ("stray continuation", frames(1, 0x80, b"x")),
            ("message inside a message", frames(2, 0x02, b"x")),
            ("http again", b"GET / HTTP/1.1\r\n".to_vec()),
        ];
        for (name, wire) in cases {
            let (mut io, mut far) = adapter(Side::Hub).await;
            far.write_all(&wire).await.unwrap();
            let fault = fault_of(&mut io).await;
            assert!(matches!(fault, StreamFault::Protocol(_)), "{name}: {fault}");
        }
    }

    #[tokio::test]
    async fn floods_without_payload_end_after_their_budget() {
        let text = StreamFault::EmptyFlood.to_string();
        for (name, opcode) in [("ping", 0x89), ("pong", 0x8a), ("empty message", 0x82)] {
            let (mut io, mut far) = adapter(Side::Hub).await;
            far.write_all(&frames(EMPTY_IN_A_ROW + 1, opcode, b"")).await.unwrap();
            assert_eq!(fault_of(&mut io).await.to_string(), text, "{name}");
        }
    }

    #[tokio::test]
    async fn some_pings_between_payload_are_fine_and_answered() {
        let (mut io, mut peer) = hub_and_peer().await;
        for round in 0..3_u8 {
            for _ in 0..EMPTY_IN_A_ROW {
                peer.feed(Message::Ping(Bytes::from_static(b"are you there"))).await.unwrap();
            }
            peer.send(Message::binary(vec![round])).await.unwrap();
            assert_eq!(io.read_u8().await.unwrap(), round);
        }
        assert_eq!(peer.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"are you there")));
    }

    #[tokio::test]
    async fn endless_fragments_end_after_their_budget() {
        for (name, payload) in [("one byte", &b"x"[..]), ("empty", b"")] {
            let (mut io, far) = adapter(Side::Hub).await;
            let (mut answers, mut wire) = tokio::io::split(far);
            let flood = async {
                let mut next = frames(1, 0x02, b"x");
                while wire.write_all(&next).await.is_ok() {
                    next = frames(1_000, 0x00, payload);
                }
            };
            let read = async {
                let fault = fault_of(&mut io).await;
                drop(io);
                fault
            };
            let (fault, ()) = tokio::join!(read, flood);
            assert!(matches!(fault, StreamFault::EndlessMessage), "{name}: {fault}");
            let mut close = Vec::new();
            answers.read_to_end(&mut close).await.unwrap();
            assert_eq!(close[2..4], 1009_u16.to_be_bytes(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_clean_close_is_the_end_and_anything_else_an_error() {
        let (mut io, mut peer) = hub_and_peer().await;
        peer.send(Message::binary("last")).await.unwrap();
        peer.close(None).await.unwrap();
        let mut read = Vec::new();
        io.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"last");
        assert!(matches!(peer.next().await, Some(Ok(Message::Close(_)))), "the close is answered");

        let (mut io, peer) = hub_and_peer().await;
        drop(peer);
        assert!(matches!(fault_of(&mut io).await, StreamFault::Cut));

        let (mut io, mut peer) = hub_and_peer().await;
        let frame = CloseFrame { code: CloseCode::Policy, reason: "go\u{7} away".into() };
        peer.close(Some(frame)).await.unwrap();
        let fault = fault_of(&mut io).await;
        assert!(
            matches!(&fault, StreamFault::PeerClosed { code: 1008, reason } if reason == "go? away"),
            "{fault}"
        );
    }

    #[tokio::test]
    async fn a_shutdown_after_the_peers_close_is_in_order() {
        let (mut io, mut peer) = hub_and_peer().await;
        peer.close(None).await.unwrap();
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        io.shutdown().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_waits_for_the_peers_close_but_not_for_ever() {
        let (mut io, mut peer) = hub_and_peer().await;
        let began = Instant::now();
        let (closed, _) = tokio::join!(io.shutdown(), async { while peer.next().await.is_some() {} });
        closed.unwrap();
        assert!(began.elapsed() < CLOSE_WAIT);
        let (mut io, _peer) = hub_and_peer().await;
        io.shutdown().await.unwrap();
        io.shutdown().await.unwrap();
        assert!(began.elapsed() >= CLOSE_WAIT && began.elapsed() < 2 * CLOSE_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_noticed() {
        let (mut io, _far) = adapter(Side::Hub).await;
        let began = Instant::now();
        let error = loop {
            if let Err(error) = io.write_all(&[0; 64 * 1024]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= WRITE_STALL && began.elapsed() <= 2 * WRITE_STALL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_is_not_a_stalled_one() {
        let (mut io, mut far) = adapter(Side::Hub).await;
        let slow = async {
            let mut buf = vec![0; 32 * 1024];
            for _ in 0..32 {
                tokio::time::advance(WRITE_STALL / 2).await;
                far.read_exact(&mut buf).await.unwrap();
            }
        };
        let write = async {
            io.write_all(&vec![0; 1024 * 1024]).await.unwrap();
            io.flush().await.unwrap();
        };
        tokio::join!(slow, write);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in proptest::collection::vec((0_usize..100_000, any::<bool>(), any::<bool>()), 1..12),
            pipe in 1_usize..200_000,
            hub_writes: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let (near, far) = duplex(pipe);
                let (hub, agent) =
                    tokio::join!(WebSocketIo::new(near, Side::Hub), WebSocketIo::new(far, Side::Agent));
                let (mut from, mut to) = if hub_writes { (hub, agent) } else { (agent, hub) };
                to.begin();
                let mut expected = Vec::new();
                for (index, (size, _, _)) in steps.iter().enumerate() {
                    expected.extend((0..*size).map(|byte| (byte.wrapping_mul(31) ^ index) as u8));
                }
                let write = async {
                    let mut rest = &expected[..];
                    for (size, flush, vectored) in &steps {
                        let (mut part, after) = rest.split_at(*size);
                        rest = after;
                        while !part.is_empty() {
                            let count = if *vectored {
                                let (a, b) = part.split_at(part.len() / 3);
                                from.write_vectored(&[IoSlice::new(a), IoSlice::new(b)]).await.unwrap()
                            } else {
                                from.write(part).await.unwrap()
                            };
                            part = &part[count..];
                        }
                        if *flush {
                            from.flush().await.unwrap();
                        }
                    }
                    from.shutdown().await.unwrap();
                };
                let mut read = Vec::new();
                let ((), count) = tokio::join!(write, to.read_to_end(&mut read));
                assert_eq!(count.unwrap(), expected.len());
                assert!(read == expected);
            });
        }
    }
}
