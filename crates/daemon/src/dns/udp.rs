//! Queries over UDP: one task per microVM, one more per query under way.
//!
//! Owns: the guest's datagram socket. Refuses: to read on while the guest sends too much.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::limits::Admission;
use super::query::MAX_QUERY;
use super::vm::{Step, VmDns};

/// How long the kernel may take to accept an answer.
const SEND_WITHIN: Duration = Duration::from_secs(1);
/// Rest after an error of the socket, which may come again at once.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Answers until `stop`; afterwards nothing of it is left.
pub(super) async fn serve(vm: Arc<VmDns>, socket: UdpSocket, stop: CancellationToken) {
    let mut service = Datagrams { vm, socket: Arc::new(socket), under_way: JoinSet::new() };
    stop.run_until_cancelled(service.run()).await;
    service.under_way.shutdown().await;
}

struct Datagrams {
    vm: Arc<VmDns>,
    socket: Arc<UdpSocket>,
    under_way: JoinSet<()>,
}

impl Datagrams {
    async fn run(&mut self) {
        // One byte more than is taken, so that a longer message is seen to be longer.
        let mut buffer = vec![0; MAX_QUERY + 1];
        loop {
            let received = tokio::select! {
                biased;
                Some(_) = self.under_way.join_next() => continue,
                received = self.socket.recv_from(&mut buffer) => received,
            };
            match received {
                Ok((length, from)) => self.message(&buffer[..length], from).await,
                Err(error) => {
                    tracing::debug!(vm = %self.vm.label(), %error, "DNS socket");
                    sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    async fn message(&mut self, bytes: &[u8], from: SocketAddr) {
        let within_rate = match self.vm.admit() {
            Admission::Serve => true,
            Admission::Refuse => false,
            Admission::Pause(pause) => {
                self.vm.drop_message();
                return sleep(pause).await;
            }
        };
        match self.vm.take(bytes, within_rate) {
            Step::Silence => {}
            Step::Answer(answer) => send(&self.socket, &answer, from).await,
            Step::Forward(forward) => {
                let (vm, socket) = (Arc::clone(&self.vm), Arc::clone(&self.socket));
                self.under_way.spawn(async move {
                    let limit = forward.udp_limit();
                    send(&socket, &vm.forward(forward, limit).await, from).await;
                });
            }
        }
    }
}

/// An answer that cannot be sent is lost, as any datagram may be: the guest asks again.
async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if answer.is_empty() {
        return;
    }
    if let Ok(Err(error)) = timeout(SEND_WITHIN, socket.send_to(answer, to)).await {
        tracing::trace!(%to, %error, "DNS answer not sent");
    }
}
