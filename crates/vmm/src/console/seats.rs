//! Who sits at a serial console: several may watch, one writes.
//!
//! Owns: the seats, whose turn writing is, and the way of typed bytes into the guest, which is
//! bounded and never waits. Refuses: what the bytes mean, and who may sit down.

use std::fmt;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

/// Seats of one console.
const MAX_SEATS: usize = 32;
/// Pieces on their way into a guest that does not read.
pub(super) const KEYS_WAITING: usize = 64;
/// Largest piece, in bytes.
const PIECE: usize = 1 << 10;

/// One who sits at a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    id: u64,
    /// Who it is, for people.
    pub label: String,
}

/// All seats of a console, in the order in which they were taken.
#[derive(Debug, Default)]
pub(super) struct Seats {
    next: u64,
    taken: Vec<Seat>,
    writer: Option<u64>,
}

impl Seats {
    fn enter(&mut self, label: String) -> Option<u64> {
        if self.taken.len() >= MAX_SEATS {
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.taken.push(Seat { id, label });
        self.writer.get_or_insert(id);
        Some(id)
    }

    /// Writing goes to who has waited longest.
    fn leave(&mut self, id: u64) {
        self.taken.retain(|seat| seat.id != id);
        if self.writer == Some(id) {
            self.writer = self.taken.first().map(|seat| seat.id);
        }
    }

    fn take_over(&mut self, id: u64) {
        if self.taken.iter().any(|seat| seat.id == id) {
            self.writer = Some(id);
        }
    }

    fn writer(&self) -> Option<&Seat> {
        self.taken.iter().find(|seat| Some(seat.id) == self.writer)
    }
}

/// Why typed bytes did not go to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTyped {
    /// Somebody else writes.
    Watching,
    /// The guest does not read its console, and what waits for it is all that may.
    Full,
    /// The VM has ended.
    Ended,
}

/// A seat at a console. Dropping it leaves, and passes writing on.
pub struct Viewer {
    id: u64,
    seats: watch::Sender<Seats>,
    changes: watch::Receiver<Seats>,
    keys: mpsc::Sender<Box<[u8]>>,
}

impl fmt::Debug for Viewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Viewer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Viewer {
    /// Takes a seat; `None` when all are taken.
    pub(super) fn sit_down(
        seats: &watch::Sender<Seats>,
        keys: mpsc::Sender<Box<[u8]>>,
        label: String,
    ) -> Option<Self> {
        let mut id = None;
        seats.send_modify(|seats| id = seats.enter(label));
        Some(Self { id: id?, seats: seats.clone(), changes: seats.subscribe(), keys })
    }

    /// Whether this one writes.
    pub fn writes(&self) -> bool {
        self.changes.borrow().writer == Some(self.id)
    }

    /// Who writes; while this viewer sits here, somebody does.
    pub fn writer(&self) -> Option<Seat> {
        self.changes.borrow().writer().cloned()
    }

    /// Writes from now on, in place of whoever did.
    pub fn take_over(&self) {
        self.seats.send_modify(|seats| seats.take_over(self.id));
    }

    /// Resolves when somebody has sat down, left or taken over. Cancel-safe.
    pub async fn changed(&mut self) {
        // The sender is this value's own.
        let _ = self.changes.changed().await;
    }

    /// Types bytes into the guest. Never waits.
    ///
    /// # Errors
    /// When they did not go there; a part of them may have.
    pub fn write(&self, bytes: &[u8]) -> Result<(), NotTyped> {
        if !self.writes() {
            return Err(NotTyped::Watching);
        }
        for piece in bytes.chunks(PIECE) {
            self.keys.try_send(piece.into()).map_err(|error| match error {
                TrySendError::Full(_) => NotTyped::Full,
                TrySendError::Closed(_) => NotTyped::Ended,
            })?;
        }
        Ok(())
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.seats.send_modify(|seats| seats.leave(self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Piece = Box<[u8]>;

    fn room() -> (watch::Sender<Seats>, mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
        let (keys, typed) = mpsc::channel(KEYS_WAITING);
        (watch::Sender::new(Seats::default()), keys, typed)
    }

    #[test]
    fn the_first_writes_and_who_has_waited_longest_is_next() {
        let (seats, keys, _typed) = room();
        let sit = |label: &str| Viewer::sit_down(&seats, keys.clone(), label.into()).unwrap();
        let (first, second, third) = (sit("a"), sit("b"), sit("c"));
        assert!(first.writes() && !second.writes() && !third.writes());
        third.take_over();
        assert_eq!(second.writer().unwrap().label, "c");
        assert!(!first.writes());
        drop(third);
        assert!(first.writes(), "it came before the second");
        drop(second);
        assert!(first.writes(), "a watcher's leaving changes nothing");
        drop(first);
        assert_eq!(seats.borrow().writer(), None);
        assert!(sit("d").writes());
    }

    #[test]
    fn only_the_writer_types_and_a_guest_that_does_not_read_holds_nobody_up() {
        let (seats, keys, mut typed) = room();
        let first = Viewer::sit_down(&seats, keys.clone(), "a".into()).unwrap();
        let second = Viewer::sit_down(&seats, keys.clone(), "b".into()).unwrap();
        assert_eq!(second.write(b"no"), Err(NotTyped::Watching));
        assert_eq!(first.write(&[b'x'; 2 * PIECE]), Ok(()));
        assert_eq!(typed.try_recv().unwrap().len(), PIECE);
        let error = (0..=KEYS_WAITING).find_map(|_| first.write(b"y").err());
        assert_eq!(error, Some(NotTyped::Full));
        drop(typed);
        assert_eq!(first.write(b"z"), Err(NotTyped::Ended));
    }

    #[tokio::test]
    async fn everyone_is_told_of_a_change() {
        let (seats, keys, _typed) = room();
        let first = Viewer::sit_down(&seats, keys.clone(), "a".into()).unwrap();
        let mut second = Viewer::sit_down(&seats, keys.clone(), "b".into()).unwrap();
        drop(first);
        second.changed().await;
        assert!(second.writes());
    }

    #[test]
    fn seats_are_bounded() {
        let (seats, keys, _typed) = room();
        let sit = || Viewer::sit_down(&seats, keys.clone(), "x".into());
        let all: Vec<_> = (0..MAX_SEATS).map(|_| sit().unwrap()).collect();
        assert!(sit().is_none());
        drop(all);
        assert!(sit().is_some());
    }
}
