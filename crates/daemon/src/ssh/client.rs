//! One connection: who it is, and which channels it may have.
//!
//! Owns: the answer to every request of the protocol, and the log of who came and who was refused.
//! Refuses: all methods but public keys, and all channels but sessions; what a session shows is its
//! own task's.

use super::keys::{self, Caller};
use super::server::ConnectionPlace;
use super::{Desk, session, shown};
use russh::keys::{Algorithm, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Error, Pty};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

/// Sessions of one connection at a time; more than one only with a client's multiplexing.
const MAX_CHANNELS: usize = 4;

/// A connection.
pub(super) struct Client {
    desk: Desk,
    peer: IpAddr,
    /// Set once it has logged in.
    known: watch::Sender<bool>,
    caller: Option<Caller>,
    user: String,
    places: Arc<Semaphore>,
    sessions: TaskTracker,
    _place: ConnectionPlace,
}

impl Client {
    pub(super) fn new(
        desk: Desk,
        peer: IpAddr,
        known: watch::Sender<bool>,
        sessions: TaskTracker,
        place: ConnectionPlace,
    ) -> Self {
        let places = Arc::new(Semaphore::new(MAX_CHANNELS));
        Self { desk, peer, known, caller: None, user: String::new(), places, sessions, _place: place }
    }

    /// Whose key it is. One that is nobody's is logged, by its fingerprint.
    fn judge(&self, user: &str, key: &PublicKey, algorithm: &Algorithm) -> Option<Caller> {
        let caller = self.desk.keys.caller(key, algorithm);
        if caller.is_none() {
            // A name that the client makes up, with line ends if it likes.
            let (key, algorithm) = (keys::fingerprint(key), shown(algorithm.as_str()));
            tracing::warn!(peer = %self.peer, user = shown(user), key, algorithm, "SSH: a key that is not in the file");
        }
        caller
    }

    fn refuse(&self, user: &str, method: &str) -> Auth {
        tracing::warn!(peer = %self.peer, user = shown(user), method, "SSH: only public keys log in");
        Auth::reject()
    }
}

impl Handler for Client {
    type Error = Error;

    async fn auth_password(&mut self, user: &str, _: &str) -> Result<Auth, Error> {
        Ok(self.refuse(user, "password"))
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _: &str,
        _: Option<Response<'a>>,
    ) -> Result<Auth, Error> {
        Ok(self.refuse(user, "keyboard-interactive"))
    }

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
        let caller = self.judge(user, offer.public_key, offer.algorithm);
        Ok(if caller.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        let Some(caller) = self.judge(user, key.public_key, key.algorithm) else {
            return Ok(Auth::reject());
        };
        user.clone_into(&mut self.user);
        self.caller = Some(caller);
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Error> {
        self.known.send_replace(true);
        if let Some(caller) = &self.caller {
            let (who, key) = (&caller.label, &caller.fingerprint);
            tracing::info!(peer = %self.peer, user = shown(&self.user), who, key, "SSH: logged in");
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let caller = self.caller.clone().filter(Caller::is_known);
        let (Ok(place), Some(caller)) = (place, caller) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        reply.accept().await;
        let served = session::serve(self.desk.clone(), caller, self.user.clone(), channel);
        self.sessions.spawn(async move {
            served.await;
            drop(place);
        });
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Error> {
        session.channel_success(channel)
    }

    // A command and a subsystem are taken, so that their client shows why they are not run.

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_success(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_success(channel)
    }

    // Not answered, these would be taken for granted by some clients. All channels but sessions, and
    // forwarding by listening, are refused by the library where nothing is said about them.

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }
}
