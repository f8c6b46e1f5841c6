//! Who asks, and the algebra of scopes. Owns both as values; refuses to find out (`tokens`).

use enisle_api::{Access, Scope};
use std::net::SocketAddr;

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Of the unix socket: who may open it may do everything. What the kernel says of the process
    /// that connected.
    Unix {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its number, where the kernel knows it in this pid namespace.
        pid: Option<i32>,
    },
    /// Of a TCP connection under TLS: a stranger without a token.
    Tcp(SocketAddr),
    /// Of `--insecure-loopback`: any process of this host, with no token asked.
    Loopback(SocketAddr),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The token; `None` for those who need none.
    pub(crate) token: Option<String>,
    scopes: Vec<Scope>,
}

impl Caller {
    /// Who may do everything without a token.
    pub(crate) fn trusted() -> Self {
        Self { token: None, scopes: vec![Scope::Admin] }
    }

    /// Who may do nothing, for what needs nothing.
    pub(crate) fn nobody() -> Self {
        Self { token: None, scopes: Vec::new() }
    }

    /// The holder of a token.
    pub(crate) fn holder(id: &str, scopes: Vec<Scope>) -> Self {
        Self { token: Some(id.to_owned()), scopes }
    }

    /// The same, where only what gives at least this access counts.
    pub(crate) fn narrowed(mut self, wanted: Access) -> Self {
        self.scopes.retain(|scope| given(scope) >= wanted);
        self
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.scopes.contains(&Scope::Admin)
    }

    /// What it may do with the VMs of a group; `None` is nothing, and then there is no such group
    /// for it.
    pub(crate) fn access(&self, group: &str) -> Option<Access> {
        let of = |scope: &Scope| match scope {
            Scope::Admin => Some(Access::Write),
            Scope::Group { name, access } => (name == group).then_some(*access),
        };
        self.scopes.iter().filter_map(of).max()
    }

    /// The most that it may do with the VMs of any group.
    pub(crate) fn most(&self) -> Option<Access> {
        self.scopes.iter().map(given).max()
    }
}

/// What a scope gives where it holds.
fn given(scope: &Scope) -> Access {
    match scope {
        Scope::Admin => Access::Write,
        Scope::Group { access, .. } => *access,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scopes: &str) -> Caller {
        Caller::holder("0", scopes.split(' ').map(|scope| scope.parse().unwrap()).collect())
    }

    #[test]
    fn scopes_add_up_and_never_reach_another_group() {
        use Access::{Read, Write};
        for (scopes, a, b, most, admin) in [
            ("admin", Some(Write), Some(Write), Some(Write), true),
            ("group:a:ro", Some(Read), None, Some(Read), false),
            ("group:a:rw", Some(Write), None, Some(Write), false),
            ("group:a:ro group:a:rw", Some(Write), None, Some(Write), false),
            ("group:a:rw group:b:ro", Some(Write), Some(Read), Some(Write), false),
            ("group:b:ro admin", Some(Write), Some(Write), Some(Write), true),
            ("group:aa:rw", None, None, Some(Write), false),
        ] {
            let caller = caller(scopes);
            let found = (caller.access("a"), caller.access("b"), caller.most(), caller.is_admin());
            assert_eq!(found, (a, b, most, admin), "{scopes}");
        }
        assert!(Caller::trusted().is_admin() && Caller::nobody().most().is_none());
        let narrowed = caller("group:a:rw group:b:ro").narrowed(Write);
        assert_eq!((narrowed.access("a"), narrowed.access("b")), (Some(Write), None));
    }
}
