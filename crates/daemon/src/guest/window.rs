//! Credit of one stream as the relay sees it pass. Owns the count; both ends' claims are checked
//! against it.

use enisle_guest_proto::WINDOW;

/// What a sender may still send.
#[derive(Debug)]
pub(crate) struct Window {
    credit: u32,
    ended: bool,
}

/// A peer claimed what it was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WindowError {
    /// Data beyond the credit.
    #[error("data beyond its credit")]
    Overrun,
    /// Data, or an end, after the end of its stream.
    #[error("a message after the end of its stream")]
    Ended,
    /// More credit given back than was used, or none.
    #[error("credit for bytes that were not sent")]
    Unearned,
    /// A message that carries nothing: it costs the sender no credit, so it could be sent for ever.
    #[error("an empty message")]
    Empty,
}

impl Default for Window {
    fn default() -> Self {
        Self { credit: WINDOW, ended: false }
    }
}

impl Window {
    /// The sender sent this many bytes.
    pub(crate) fn sent(&mut self, bytes: usize) -> Result<(), WindowError> {
        if self.ended {
            return Err(WindowError::Ended);
        }
        if bytes == 0 {
            return Err(WindowError::Empty);
        }
        let left = u32::try_from(bytes).ok().and_then(|bytes| self.credit.checked_sub(bytes));
        self.credit = left.ok_or(WindowError::Overrun)?;
        Ok(())
    }

    /// The receiver gave this many bytes back.
    pub(crate) fn returned(&mut self, bytes: u32) -> Result<(), WindowError> {
        let credit = self.credit.checked_add(bytes).filter(|credit| bytes > 0 && *credit <= WINDOW);
        self.credit = credit.ok_or(WindowError::Unearned)?;
        Ok(())
    }

    /// The sender ended the stream.
    pub(crate) fn end(&mut self) -> Result<(), WindowError> {
        if std::mem::replace(&mut self.ended, true) { Err(WindowError::Ended) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_neither_overrun_nor_invented() {
        let mut window = Window::default();
        assert_eq!(window.returned(1), Err(WindowError::Unearned));
        window.sent(WINDOW as usize).unwrap();
        assert_eq!(window.sent(1), Err(WindowError::Overrun));
        assert_eq!(window.returned(u32::MAX), Err(WindowError::Unearned));
        assert_eq!(window.returned(0), Err(WindowError::Unearned));
        window.returned(10).unwrap();
        window.sent(10).unwrap();
        assert_eq!(window.sent(0), Err(WindowError::Empty));
        window.end().unwrap();
        assert_eq!(window.end(), Err(WindowError::Ended));
        assert_eq!(window.sent(1), Err(WindowError::Ended));
    }
}
