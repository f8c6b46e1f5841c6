//! What the caller of the running request sees.
//!
//! The registry asks this wherever a name becomes a VM or a group, so that a handler cannot forget to: a
//! request runs inside [`as_caller`] to its end, and to what it does not see it gets the answer that there is
//! none. That holds at the moment of use, also for a VM that was removed and made again in another
//! group while the request's body was still coming. Outside a request the daemon itself asks, and sees all.
//!
//! Owns: the task's caller. Refuses: deciding (`Caller`).

use super::Caller;

tokio::task_local! {
    static CALLER: Caller;
}

/// Runs a request as its caller.
pub(crate) async fn as_caller<T>(caller: Caller, request: impl Future<Output = T>) -> T {
    CALLER.scope(caller, request).await
}

/// What the running request's caller sees, for what goes on after it.
pub(crate) struct Sight(Option<Caller>);

impl Sight {
    /// Whether there is such a group for it.
    pub(crate) fn sees(&self, group: &str) -> bool {
        self.0.as_ref().is_none_or(|caller| caller.access(group).is_some())
    }
}

impl Sight {
    /// Whether it is everything.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(Caller::is_admin)
    }
}

/// See [`Sight`].
pub(crate) fn sight() -> Sight {
    Sight(CALLER.try_with(Clone::clone).ok())
}

/// Whether there is such a group for the caller; for the daemon itself there are all.
pub(crate) fn sees(group: &str) -> bool {
    CALLER.try_with(|caller| caller.access(group).is_some()).unwrap_or(true)
}

/// Idempotency keys are each caller's own: what distinguishes this one's. No key holds the character
/// it ends with.
pub(crate) fn key_prefix() -> String {
    let of = |caller: &Caller| caller.token.as_ref().map(|id| format!("{id}\n"));
    CALLER.try_with(of).ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_daemon_sees_all_and_a_request_what_its_caller_does() {
        assert!(sees("a") && sees("b") && sight().sees("b") && key_prefix().is_empty());
        let caller = Caller::holder("0123abcd", vec!["group:a:ro".parse().unwrap()]);
        as_caller(caller, async {
            assert!(sees("a") && !sees("b"));
            assert_eq!(key_prefix(), "0123abcd\n");
            let sight = sight();
            let later = tokio::spawn(async move { (sight.sees("a"), sight.sees("b")) });
            assert_eq!(later.await.unwrap(), (true, false));
        })
        .await;
    }
}
