//! The link itself: moves bytes between two connections and does to them what the schedules say. Works on anything
//! that can be read and written, so the same faults happen to sockets and, in paused time, to pipes in memory.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::schedule::{End, Faults, Schedule, Step};

/// Bytes that are read at once.
const READ: usize = 16 * 1024;
/// Bytes under way in one direction, and more where rate and delay need more; a full link makes its source wait. In
/// pieces of one byte they cost 25 MiB.
const UNDER_WAY: usize = 256 * 1024;
/// What the clock can tell apart.
const TICK: Duration = Duration::from_millis(1);
/// How late a timer may ring before the link takes it for its own idleness.
const LATE: Duration = Duration::from_millis(5);

/// What is wrong with a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkFaults {
    /// From the one who dialled to the one who was dialled.
    pub there: Faults,
    /// The way back.
    pub back: Faults,
    /// A link on which nothing has come for so long is reset, as a middlebox does.
    pub idle_kill: Option<Duration>,
}

/// How a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Both sides have closed.
    Closed,
    /// It was reset, by a fault or by one of the sides.
    Reset,
}

/// Tells when a link began to be silent for ever, or ended.
pub type Death = tokio::sync::watch::Sender<Option<Instant>>;

/// Carries bytes both ways until both have ended or the link is reset. A link that has stalled never returns, and tells
/// nobody of what happens to either side: whoever runs it drops it.
pub async fn carry<D, H>(dialler: &mut D, host: &mut H, faults: LinkFaults, seed: u64, death: &Death) -> Ended
where
    D: AsyncRead + AsyncWrite + Unpin,
    H: AsyncRead + AsyncWrite + Unpin,
{
    let born = Instant::now();
    let (from_dialler, to_dialler) = tokio::io::split(dialler);
    let (from_host, to_host) = tokio::io::split(host);
    let moved = tokio::sync::watch::Sender::new(born);
    let way = |faults: Faults, seed| {
        let room = room(&faults);
        Way { schedule: Schedule::new(faults, seed), room, born, moved: &moved, death }
    };
    let (there, back) = (way(faults.there, seed), way(faults.back, !seed));
    let both =
        async { tokio::try_join!(there.carry(from_dialler, to_host), back.carry(from_host, to_dialler)) };
    let idle = async {
        let Some(limit) = faults.idle_kill else { return pending().await };
        loop {
            let last = *moved.borrow();
            if last + limit <= Instant::now() {
                return;
            }
            sleep_until(last + limit).await;
        }
    };
    let ended = tokio::select! {
        biased;
        both = both => if both.is_ok() { Ended::Closed } else { Ended::Reset },
        () = idle => Ended::Reset,
    };
    if death.borrow().is_some() {
        return pending().await;
    }
    told(death);
    ended
}

/// What a direction holds: a link of 1 Gbit/s over 50 ms has 6 MB under way when it is full.
fn room(faults: &Faults) -> usize {
    let delay = faults.delay.map_or(Duration::ZERO, |(least, jitter)| least + jitter);
    let full = faults.rate.map_or(0.0, |rate| rate as f64 * delay.as_secs_f64());
    UNDER_WAY.max(full as usize)
}

/// The first death counts.
fn told(death: &Death) {
    death.send_if_modified(|at| at.is_none() && at.replace(Instant::now()).is_none());
}

/// When it arrives, and its place among what is under way.
type Piece = (Instant, Vec<u8>, OwnedSemaphorePermit);

/// One direction of a link.
struct Way<'a> {
    schedule: Schedule,
    room: usize,
    born: Instant,
    moved: &'a tokio::sync::watch::Sender<Instant>,
    death: &'a Death,
}

impl Way<'_> {
    /// Returns when this direction has ended in order.
    ///
    /// # Errors
    /// The link is to be reset.
    async fn carry<R, W>(self, from: R, to: W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut to = to;
        let (piece_tx, piece_rx) = mpsc::unbounded_channel();
        let death = self.death;
        let (end, ()) = tokio::try_join!(self.read(from, piece_tx), write(&mut to, piece_rx))?;
        if end == Some(End::Stall) {
            told(death);
            return pending().await;
        }
        to.shutdown().await
    }

    /// Reads until the source or the schedule ends; what the schedule ended it with.
    ///
    /// # Errors
    /// The link is to be reset at once, with what is under way.
    async fn read<R>(mut self, mut from: R, piece_tx: mpsc::UnboundedSender<Piece>) -> io::Result<Option<End>>
    where
        R: AsyncRead + Unpin,
    {
        let mut buffer = vec![0; READ];
        let room = Arc::new(Semaphore::new(self.room));
        let (mut due, mut free) = (self.born, self.born);
        loop {
            let count = match self.schedule.ends_at() {
                Some((age, end)) => match timeout_at(self.born + age, from.read(&mut buffer)).await {
                    Ok(count) => count?,
                    Err(_elapsed) => return early(end),
                },
                None => from.read(&mut buffer).await?,
            };
            if count == 0 {
                return Ok(None);
            }
            self.moved.send_replace(Instant::now());
            let mut waiting = &mut buffer[..count];
            while !waiting.is_empty() {
                let piece = match self.schedule.step(waiting.len(), self.born.elapsed()) {
                    Step::Pass(piece) => piece,
                    Step::End(end) => return early(end),
                };
                let (bytes, rest) = waiting.split_at_mut(piece.bytes);
                if let Some((at, bits)) = piece.flip {
                    bytes[at] ^= bits;
                }
                // A timer that rings late makes nobody's link slower: only after real idleness the time begins anew.
                if free + LATE < Instant::now() {
                    free = Instant::now();
                }
                // Shorter than a tick adds up until it is one.
                free += piece.busy;
                if free > Instant::now() + TICK {
                    sleep_until(free).await;
                }
                let count = u32::try_from(piece.bytes).unwrap_or(u32::MAX);
                let Ok(place) = Arc::clone(&room).acquire_many_owned(count).await else { return Ok(None) };
                // Late pieces do not overtake each other.
                due = due.max(Instant::now() + piece.late);
                if piece_tx.send((due, bytes.to_vec(), place)).is_err() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                waiting = rest;
            }
        }
    }
}

/// A reset does not wait for what is under way; the others do.
fn early(end: End) -> io::Result<Option<End>> {
    if end == End::Reset { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(Some(end)) }
}

/// Writes each piece when it is due.
async fn write<W>(to: &mut W, mut piece_rx: mpsc::UnboundedReceiver<Piece>) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    while let Some((due, bytes, _place)) = piece_rx.recv().await {
        sleep_until(due).await;
        to.write_all(&bytes).await?;
        to.flush().await?;
    }
    Ok(())
}
