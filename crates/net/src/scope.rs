//! What marks everything one daemon makes, so that two on one host never touch each other's.
//!
//! Owns: the scope's text form and the marks derived from it. Refuses: choosing one (the daemon
//! derives it from its state directory and keeps it).

use std::fmt;
use std::str::FromStr;

use crate::nft::{Family, Table};

/// Eight hex digits that name one daemon instance on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(u32);

/// Not eight lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no scope: eight lower-case hex digits are")]
pub struct ScopeError(String);

impl Scope {
    /// A scope from its number.
    #[must_use]
    pub fn new(number: u32) -> Scope {
        Scope(number)
    }

    /// The link group of all our interfaces. Group 0 is everybody's, so it is never used.
    pub(crate) fn group(self) -> u32 {
        self.0.max(1)
    }

    /// The link group of bridges that we made: another one, so that what is said of slots' interfaces does not mean them.
    pub(crate) fn bridge_group(self) -> u32 {
        (self.0 ^ 0x8000_0000).max(1)
    }

    /// The host's table.
    pub(crate) fn table(self) -> Table {
        Table { family: Family::Inet, name: format!("enisle_{self}") }
    }

    /// The alias of a slot's interface. An alias is at most 255 bytes (`IFALIASZ`).
    pub(crate) fn alias(self, vm_name: &str) -> String {
        let mut alias = self.alias_prefix();
        for c in vm_name.chars() {
            if alias.len() + c.len_utf8() > 255 {
                break;
            }
            alias.push(c);
        }
        alias
    }

    /// How every alias of this scope begins.
    pub(crate) fn alias_prefix(self) -> String {
        format!("enisle {self} ")
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(s: &str) -> Result<Scope, ScopeError> {
        let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if s.len() != 8 || !s.bytes().all(digit) {
            return Err(ScopeError(s.to_owned()));
        }
        u32::from_str_radix(s, 16).map(Scope).map_err(|_| ScopeError(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_eight_lower_case_hex_digits_are_a_scope() {
        assert_eq!("0badcafe".parse::<Scope>().unwrap().to_string(), "0badcafe");
        for bad in ["", "badcafe", "+badcafe", "0BADCAFE", "0badcafe0"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_alias_fits_whatever_a_vm_is_called() {
        let long = "ü".repeat(300);
        let alias = Scope::new(1).alias(&long);
        assert!(alias.len() <= 255 && alias.starts_with("enisle 00000001 ü"));
    }
}
