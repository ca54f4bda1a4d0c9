//! A queue with an end: so many have their turn at once, so many wait for it in the order in which they came, and
//! whoever comes after that is told so at once. What many do together after an outage (TLS handshakes, tunnels) goes
//! through one of these, so that the work in hand stays small and everything else gets its time in between.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// So many at once, so many that wait.
#[derive(Debug)]
pub struct Queue {
    /// For all who are in it, those at their turn included.
    room: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    waiting: usize,
}

impl Queue {
    /// So many at once, and so many more that wait.
    pub fn new(at_once: usize, waiting: usize) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits));
        Self { room: semaphore(at_once + waiting), turns: semaphore(at_once), waiting }
    }

    /// Waits for a turn, which lasts until what is returned is dropped. Who stops waiting leaves no gap.
    ///
    /// # Errors
    /// Too many wait already.
    pub async fn turn(&self) -> Result<Turn, NoRoom> {
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| NoRoom)?;
        // Never closed, so an error cannot happen.
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| NoRoom)?;
        Ok(Turn { _turn: turn, _room: room })
    }

    /// Whether somebody waits for a turn.
    pub fn is_waiting(&self) -> bool {
        self.turns.available_permits() == 0 && self.room.available_permits() < self.waiting
    }

    /// How many more would find room, and how many more their turn at once.
    #[cfg(test)]
    pub(crate) fn free(&self) -> (usize, usize) {
        (self.room.available_permits(), self.turns.available_permits())
    }
}

/// A turn.
#[derive(Debug)]
pub struct Turn {
    _turn: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn so_many_at_once_so_many_wait_in_order_and_the_next_is_told_at_once() {
        let queue = Queue::new(2, 3);
        let held: Vec<Turn> = (0..2).map(|_| queue.turn().now_or_never().unwrap().unwrap()).collect();
        assert!(!queue.is_waiting());
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(queue.turn())).collect();
        for one in &mut waiting {
            assert!(one.now_or_never().is_none(), "there was no turn to be had");
        }
        assert_eq!(queue.turn().now_or_never().unwrap().unwrap_err(), NoRoom);
        assert!(queue.is_waiting());
        drop(held);
        assert!((&mut waiting[2]).now_or_never().is_none(), "the last one came before the others");
        let first = (&mut waiting[0]).now_or_never().unwrap().unwrap();
        assert!((&mut waiting[1]).now_or_never().unwrap().is_ok());
        drop((first, waiting));
        assert_eq!(queue.free(), (5, 2));
        assert!(!queue.is_waiting());
    }

    #[test]
    fn who_stops_waiting_leaves_room_for_another() {
        let queue = Queue::new(1, 1);
        let held = queue.turn().now_or_never().unwrap().unwrap();
        let mut gives_up = Box::pin(queue.turn());
        assert!((&mut gives_up).now_or_never().is_none());
        assert!(queue.turn().now_or_never().unwrap().is_err());
        drop(gives_up);
        let mut next = Box::pin(queue.turn());
        assert!((&mut next).now_or_never().is_none());
        drop(held);
        assert!(next.now_or_never().unwrap().is_ok());
    }
}
