//! How many connections there are at once, at both doors together, each counted until its socket is closed: also when
//! an upgrade has made a tunnel or a shell of it, which the listener no longer sees.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::authn::Door;

/// Connections at once, at both doors, tunnels included. About 60 KiB each when idle: 1 GiB at most. Below
/// the usual limit of 20,000 open files, with room for the rest of the process.
pub const MAX_CONNECTIONS: usize = 16_000;
/// Of these, kept for each door: whoever fills the gateway, which strangers can reach, leaves the parent and the agents
/// a way in, and the other way round.
pub const KEPT_FOR_EACH_DOOR: usize = 4_000;
/// Files of the process beside them: its connections to the parent's API server, the admin endpoint's (64), logs, audit
/// log, timers. Some dozens; the rest is for what a library opens without telling.
const OTHER_FILES: usize = 1_000;
/// What a service that asks for many is usually given.
const OPEN_FILES: usize = 20_000;
const _: () = assert!(MAX_CONNECTIONS + OTHER_FILES <= OPEN_FILES, "the listeners could use up all files");

/// Places for connections.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    aggregated: Arc<Semaphore>,
    gateway: Arc<Semaphore>,
}

impl Places {
    /// So many in all, of which so many are kept for each door.
    pub fn new(all: usize, kept: usize) -> Self {
        let semaphore = |places: usize| Arc::new(Semaphore::new(places));
        let most = all.saturating_sub(kept);
        Self { all: semaphore(all), aggregated: semaphore(most), gateway: semaphore(most) }
    }

    /// Waits for a place at this door.
    pub(super) async fn take(&self, door: Door) -> Option<Place> {
        let own = match door {
            Door::Aggregated => &self.aggregated,
            Door::Gateway => &self.gateway,
        };
        // Its own first: a door that is full must not sit on a place that the other one could use. They are never
        // closed, so an error cannot happen; it would end the listener.
        let own = Arc::clone(own).acquire_owned().await.ok()?;
        Some(Place { _own: own, _all: Arc::clone(&self.all).acquire_owned().await.ok()? })
    }
}

/// One connection's place, given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// A stream with its place.
#[derive(Debug)]
pub(super) struct Placed<S> {
    stream: S,
    _place: Place,
}

impl<S> Placed<S> {
    pub(super) fn new(stream: S, place: Place) -> Self {
        Self { stream, _place: place }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn both_doors_together_take_no_more_than_there_is_and_each_keeps_its_part() {
        let places = Places::new(MAX_CONNECTIONS, KEPT_FOR_EACH_DOOR);
        let mut held = Vec::new();
        for door in [Door::Gateway, Door::Aggregated] {
            while let Some(place) = places.take(door).now_or_never() {
                held.push(place.unwrap());
            }
            let expected =
                if door == Door::Gateway { MAX_CONNECTIONS - KEPT_FOR_EACH_DOOR } else { MAX_CONNECTIONS };
            assert_eq!(held.len(), expected);
        }
        assert!(places.take(Door::Gateway).now_or_never().is_none());
        held.pop();
        assert!(places.take(Door::Aggregated).now_or_never().is_some());
    }
}
