//! Bearer tokens and what they may do.
//!
//! Owns: the grammar of scopes and the form of a token, both of which a client has to know. Refuses: secrets that
//! print themselves, and the algebra of scopes on a particular VM, which is the daemon's.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// What a token begins with, so that a scanner of secrets finds a lost one.
pub const TOKEN_PREFIX: &str = "enisle_";

/// Whether something is only looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Looked at: lists, states, policies, consoles, events.
    Read,
    /// Changed as well: made, removed, entered.
    Write,
}

/// What a token may do: `admin`, `group:NAME:ro` or `group:NAME:rw`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everything, as the daemon's unix socket.
    Admin,
    /// The VMs of one group.
    Group {
        /// The group.
        name: String,
        /// Whether they are only looked at.
        access: Access,
    },
}

/// A text is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no scope; it is written admin, group:NAME:rw or group:NAME:ro")]
pub struct ParseScopeError(String);

impl FromStr for Scope {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseScopeError(text.to_owned());
        if text == "admin" {
            return Ok(Self::Admin);
        }
        let (name, access) =
            text.strip_prefix("group:").and_then(|rest| rest.split_once(':')).ok_or_else(bad)?;
        let access = match access {
            "ro" => Access::Read,
            "rw" => Access::Write,
            _ => return Err(bad()),
        };
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=50).contains(&name.len()) || !name.bytes().all(fits) {
            return Err(bad());
        }
        Ok(Self::Group { name: name.to_owned(), access })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Group { name, access: Access::Read } => write!(f, "group:{name}:ro"),
            Self::Group { name, access: Access::Write } => write!(f, "group:{name}:rw"),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Scope {
    fn schema_name() -> Cow<'static, str> {
        "Scope".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(admin|group:[a-z0-9-]{1,50}:(ro|rw))$",
            "description": "What a token may do: everything, or what concerns the VMs of one group (`ro` looks, `rw` changes).",
        })
    }
}

/// A token as the daemon knows it: never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// Eight hexadecimal digits, which the token itself begins with too (`enisle_ID_…`).
    pub id: String,
    /// What it is for, as its maker said.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// When it ends by itself, in milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When it was used last, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_ms: Option<u64>,
    /// When it was revoked. Such a token is listed for thirty days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
}

/// Asks for a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// At least one, at most 32.
    pub scopes: Vec<Scope>,
    /// What it is for, at most 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// It ends by itself after this time, in milliseconds, at most ten years.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// A new token. The only time its secret is told.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreatedToken {
    /// What is known of it from now on.
    #[serde(flatten)]
    pub token: Token,
    /// The token itself, for `Authorization: Bearer`.
    pub secret: String,
    /// What a client pins (`sha256//BASE64`, of the certificate's public key); absent without TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// Addresses on which the daemon listens, as `https://ADDRESS:PORT`.
    pub listens: Vec<String>,
}

impl fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedToken").field("token", &self.token).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_round_trip_and_bad_ones_say_how_they_are_written() {
        for text in ["admin", "group:agents:ro", "group:a-1:rw"] {
            let scope: Scope = text.parse().unwrap();
            assert_eq!(scope.to_string(), text);
            assert_eq!(
                serde_json::from_value::<Scope>(serde_json::to_value(&scope).unwrap()).unwrap(),
                scope
            );
        }
        for bad in [
            "",
            "Admin",
            "group",
            "group:a",
            "group::rw",
            "group:a:r",
            "group:a:rw:x",
            "group:A:rw",
            "group:a b:ro",
        ] {
            assert!(bad.parse::<Scope>().unwrap_err().to_string().contains("group:NAME:rw"), "{bad}");
        }
    }

    #[test]
    fn a_new_token_does_not_print_its_secret() {
        let token = Token {
            id: "0123abcd".into(),
            name: String::new(),
            scopes: vec![Scope::Admin],
            created_ms: 0,
            expires_ms: None,
            last_used_ms: None,
            revoked_ms: None,
        };
        let created =
            CreatedToken { token, secret: "enisle_0123abcd_ff".into(), pin: None, listens: Vec::new() };
        assert!(!format!("{created:?}").contains("_ff"));
    }
}
