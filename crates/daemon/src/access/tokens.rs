//! The tokens there are: made, judged, ended.
//!
//! ```text
//! made ──▶ good ──expires / revoked──▶ ended, known for 30 days ──▶ forgotten
//! ```
//!
//! Owns: all tokens in memory, written through to the store, and the end of what was begun with one. Refuses:
//! keeping or logging a secret.

use super::Caller;
use super::secret::{NoRandomness, Shown};
use crate::store::{Store, StoreError, TokenRow};
use crate::vm::lifetime::now_ms;
use enisle_api::{CreateToken, Scope, Token};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Tokens at a time, those that have ended included.
const MAX_TOKENS: usize = 1000;
/// Scopes of one.
const MAX_SCOPES: usize = 32;
/// Characters of what one is for.
const MAX_NAME: usize = 100;
/// Ten years, in milliseconds.
const MAX_LIFE_MS: u64 = 10 * 365 * 24 * 3_600_000;
/// One that has ended is known for so long, so that its holder is told what became of it.
const KNOWN_MS: u64 = 30 * 24 * 3_600_000;
/// The last use is written at most so often.
const USE_MS: u64 = 60_000;

/// A token is not made or not ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// A field is wrong.
    #[error("`{field}` {rule}")]
    Bad {
        /// Which.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// There are too many.
    #[error("there are {MAX_TOKENS} tokens already; revoke one. Those that have ended count for thirty days")]
    TooMany,
    /// There is none of this id, or it has been revoked.
    #[error("there is no token {0:?}")]
    Unknown(String),
    /// No secret can be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The store.
    #[error("cannot write the token")]
    Store(#[from] StoreError),
    /// The store, when one was to be ended: it is, but for a daemon that is started later.
    #[error(
        "the token {id} is ended, but this cannot be written: it would be good again after the daemon's next start"
    )]
    NotKept {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// There is none like it.
    Unknown,
    /// Its time is over.
    Expired,
    /// It was ended.
    Revoked,
}

/// A good token.
#[derive(Debug, Clone)]
pub(crate) struct Good {
    pub(crate) caller: Caller,
    /// Cancelled when it is revoked.
    pub(crate) ended: CancellationToken,
    /// How long it is good by itself.
    pub(crate) left: Option<Duration>,
}

#[derive(Debug)]
struct Known {
    row: TokenRow,
    scopes: Vec<Scope>,
    ended: CancellationToken,
    /// It was revoked, but the store does not know yet.
    unsaved: bool,
}

impl Known {
    fn new(row: TokenRow) -> Self {
        // A scope of a later version gives nothing in this one.
        let scopes = row.scopes.split(' ').filter_map(|scope| scope.parse().ok()).collect();
        Self { row, scopes, ended: CancellationToken::new(), unsaved: false }
    }

    fn show(&self) -> Token {
        let row = &self.row;
        Token {
            id: row.id.clone(),
            name: row.name.clone(),
            scopes: self.scopes.clone(),
            created_ms: row.created_ms,
            expires_ms: row.expires_ms,
            last_used_ms: row.last_used_ms,
            revoked_ms: row.revoked_ms,
        }
    }

    fn wrong(&self, now: u64) -> Option<Wrong> {
        if self.row.revoked_ms.is_some() {
            return Some(Wrong::Revoked);
        }
        self.row.expires_ms.is_some_and(|at| at <= now).then_some(Wrong::Expired)
    }
}

/// All tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    store: Arc<Store>,
    known: Mutex<BTreeMap<String, Known>>,
}

impl Tokens {
    /// Those of the store.
    pub(crate) fn open(store: Arc<Store>) -> Result<Self, StoreError> {
        let rows = store.tokens()?;
        let known = rows.into_iter().map(|row| (row.id.clone(), Known::new(row))).collect();
        Ok(Self { store, known: Mutex::new(known) })
    }

    /// All of them, the oldest first.
    pub(crate) fn list(&self) -> Vec<Token> {
        let mut all: Vec<Token> = self.lock().values().map(Known::show).collect();
        all.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        all
    }

    /// Makes one. Its text is returned here and kept nowhere.
    pub(crate) fn create(&self, ask: &CreateToken) -> Result<(Token, String), TokenError> {
        check(ask)?;
        let shown = Shown::new()?;
        let now = now_ms();
        self.store.forget_tokens(now.saturating_sub(KNOWN_MS))?;
        let mut known = self.lock();
        known.retain(|_, one| {
            let ended = one.row.revoked_ms.or(one.row.expires_ms);
            ended.is_none_or(|at| at >= now.saturating_sub(KNOWN_MS))
        });
        if known.len() >= MAX_TOKENS {
            return Err(TokenError::TooMany);
        }
        let scopes: Vec<String> = ask.scopes.iter().map(ToString::to_string).collect();
        let row = TokenRow {
            id: shown.id.clone(),
            name: ask.name.clone().unwrap_or_default(),
            scopes: scopes.join(" "),
            hash: shown.hash(),
            created_ms: now,
            expires_ms: ask.expires_in_ms.map(|ms| now + ms),
            last_used_ms: None,
            revoked_ms: None,
        };
        // One in four thousand million has the id of another: no reason to end that one.
        if known.contains_key(&row.id) {
            return Err(TokenError::NoRandomness(NoRandomness));
        }
        self.store.put_token(&row)?;
        let made = Known::new(row);
        let token = made.show();
        known.insert(token.id.clone(), made);
        Ok((token, shown.text()))
    }

    /// Ends one, with what was begun with it, also when the disk is full: it may be in wrong hands. Asked for again, it is
    /// written again.
    pub(crate) fn revoke(&self, id: &str) -> Result<(), TokenError> {
        let mut known = self.lock();
        let found = known.get_mut(id).filter(|one| one.row.revoked_ms.is_none() || one.unsaved);
        let one = found.ok_or_else(|| TokenError::Unknown(id.to_owned()))?;
        one.row.revoked_ms = Some(now_ms());
        one.unsaved = true;
        one.ended.cancel();
        self.store.put_token(&one.row).map_err(|source| TokenError::NotKept { id: id.to_owned(), source })?;
        one.unsaved = false;
        Ok(())
    }

    /// Judges what a client shows. That it takes as long for an unknown id as for a wrong secret hides which
    /// ids there are.
    pub(crate) fn judge(&self, shown: &Shown) -> Result<Good, Wrong> {
        let now = now_ms();
        let mut known = self.lock();
        let Some(one) = known.get_mut(&shown.id) else {
            let _ = shown.fits(&[0; 32]);
            return Err(Wrong::Unknown);
        };
        if !shown.fits(&one.row.hash) {
            return Err(Wrong::Unknown);
        }
        if let Some(wrong) = one.wrong(now) {
            return Err(wrong);
        }
        if one.row.last_used_ms.is_none_or(|at| at + USE_MS <= now) {
            one.row.last_used_ms = Some(now);
            if let Err(error) = self.store.put_token(&one.row) {
                tracing::warn!(token = one.row.id, "cannot write when it was used: {error}");
            }
        }
        Ok(Good {
            caller: Caller::holder(&one.row.id, one.scopes.clone()),
            ended: one.ended.clone(),
            left: one.row.expires_ms.map(|at| Duration::from_millis(at - now)),
        })
    }

    /// A panic elsewhere leaves a map that is whole: every change of it is one call.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(ask: &CreateToken) -> Result<(), TokenError> {
    let bad = |field, rule| Err(TokenError::Bad { field, rule });
    if !(1..=MAX_SCOPES).contains(&ask.scopes.len()) {
        return bad("scopes", "must be 1 to 32 scopes");
    }
    let name = ask.name.as_deref().unwrap_or_default();
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return bad("name", "must be at most 100 characters, none of them a control character");
    }
    if ask.expires_in_ms.is_some_and(|ms| !(1..=MAX_LIFE_MS).contains(&ms)) {
        return bad("expires_in_ms", "must be 1 to 315360000000, which is ten years");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(dir: &tempfile::TempDir) -> Tokens {
        Tokens::open(Arc::new(Store::open(dir.path()).unwrap())).unwrap()
    }

    fn ask(scope: &str, expires_in_ms: Option<u64>) -> CreateToken {
        CreateToken { scopes: vec![scope.parse().unwrap()], name: Some("ci".into()), expires_in_ms }
    }

    #[tokio::test]
    async fn a_token_is_good_until_it_ends_and_outlives_the_daemon_as_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second, text, other);
        {
            let tokens = tokens(&dir);
            (first, text) = tokens.create(&ask("group:a:ro", None)).unwrap();
            (second, other) = tokens.create(&ask("admin", Some(3_600_000))).unwrap();
            let good = tokens.judge(&Shown::parse(&text).unwrap()).unwrap();
            assert_eq!(
                (good.caller.token.as_deref(), good.caller.is_admin()),
                (Some(first.id.as_str()), false)
            );
            assert!(good.left.is_none());
        }
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
            let secret = &text.as_bytes()[16..];
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "the secret is at rest");
        }
        let tokens = tokens(&dir);
        let good = tokens.judge(&Shown::parse(&other).unwrap()).unwrap();
        assert!(good.caller.is_admin() && good.left.unwrap() <= Duration::from_secs(3600));
        assert!(tokens.list()[0].last_used_ms.is_some());
        let mixed = format!("{}{}", &text[..16], &other[16..]);
        assert_eq!(tokens.judge(&Shown::parse(&mixed).unwrap()).unwrap_err(), Wrong::Unknown);
        tokens.revoke(&second.id).unwrap();
        assert!(good.ended.is_cancelled(), "what was begun with it ends");
        assert_eq!(tokens.judge(&Shown::parse(&other).unwrap()).unwrap_err(), Wrong::Revoked);
        assert!(matches!(tokens.revoke(&second.id), Err(TokenError::Unknown(_))));
        assert!(tokens.judge(&Shown::parse(&text).unwrap()).is_ok());
    }

    #[test]
    fn one_is_ended_though_nothing_can_be_written_and_again_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let (id, text);
        {
            let tokens = tokens(&dir);
            let (made, secret) = tokens.create(&ask("admin", None)).unwrap();
            (id, text) = (made.id, secret);
            let shown = Shown::parse(&text).unwrap();
            let good = tokens.judge(&shown).unwrap();
            let path = dir.path().join("state.db");
            let other = rusqlite::Connection::open(path).unwrap();
            other.execute_batch("ALTER TABLE tokens RENAME TO away").unwrap();
            let error = tokens.revoke(&id).unwrap_err();
            assert!(matches!(&error, TokenError::NotKept { .. }), "{error}");
            assert!(good.ended.is_cancelled());
            assert_eq!(tokens.judge(&shown).unwrap_err(), Wrong::Revoked);
            other.execute_batch("ALTER TABLE away RENAME TO tokens").unwrap();
            tokens.revoke(&id).unwrap();
            assert!(matches!(tokens.revoke(&id), Err(TokenError::Unknown(_))));
        }
        let shown = Shown::parse(&text).unwrap();
        assert_eq!(tokens(&dir).judge(&shown).unwrap_err(), Wrong::Revoked);
    }

    #[test]
    fn one_whose_time_is_over_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(&dir);
        let (_, text) = tokens.create(&ask("admin", Some(1))).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(tokens.judge(&Shown::parse(&text).unwrap()).unwrap_err(), Wrong::Expired);
    }

    #[test]
    fn what_makes_no_token() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(&dir);
        let bad = |ask: CreateToken| match tokens.create(&ask) {
            Err(TokenError::Bad { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(bad(CreateToken::default()), "scopes");
        assert_eq!(bad(CreateToken { name: Some("a\nb".into()), ..ask("admin", None) }), "name");
        assert_eq!(bad(ask("admin", Some(0))), "expires_in_ms");
        assert_eq!(bad(ask("admin", Some(MAX_LIFE_MS + 1))), "expires_in_ms");
        assert!(tokens.list().is_empty());
    }
}
