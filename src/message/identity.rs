//! Names and ids: what a message, a request, a node and a ledger are called.

use std::{fmt, str::FromStr};

use bitcoin::hashes::{Hash as _, sha256};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::InvalidMessage;

/// A validated string id: 1 to 64 characters of a fixed alphabet.
macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $field:literal, $extra:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks length and alphabet.
            ///
            /// # Errors
            ///
            /// When it is empty, longer than 64 characters or holds another character.
            pub fn new(id: impl Into<String>) -> Result<Self, InvalidMessage> {
                let id = id.into();
                let allowed = |c: char| c.is_ascii_alphanumeric() || $extra.contains(c);
                if (1..=64).contains(&id.len()) && id.chars().all(allowed) {
                    Ok(Self(id))
                } else {
                    Err(InvalidMessage::new(
                        $field,
                        format_args!("{id:?}"),
                        concat!("1 to 64 characters of [A-Za-z0-9", $extra, "]"),
                    ))
                }
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidMessage;
            fn from_str(id: &str) -> Result<Self, Self::Err> {
                Self::new(id)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidMessage;
            fn try_from(id: String) -> Result<Self, Self::Error> {
                Self::new(id)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

string_id!(
    /// The caller's idempotency key of a signature request.
    RequestId, "request_id", "._:-"
);
string_id!(
    /// A node's name, unique in the federation.
    NodeId, "node_id", "._-"
);
string_id!(
    /// The sidechain's id.
    ChainId, "chain_id", "._-"
);
string_id!(
    /// A federation member's name.
    MemberId, "id", "._-"
);
string_id!(
    /// A proposal's id.
    ProposalId, "proposal_id", "._:-"
);

/// A 16-byte id.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $field:literal, $new:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one, unlike any other.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::$new())
            }

            /// Its 16 bytes, as on the wire.
            #[must_use]
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// Reads the wire's 16 bytes.
            ///
            /// # Errors
            ///
            /// When there are not 16.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidMessage> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| {
                    InvalidMessage::new($field, format_args!("{} bytes", bytes.len()), "16 bytes")
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// A sequenced message's id (UUIDv7, RFC 9562).
    MessageId, "message_id", now_v7
);
uuid_id!(
    /// Names our store; new when the store is created or restored from a backup.
    OutboxId, "outbox_id", new_v4
);
uuid_id!(
    /// Names what one process does with a store, from its opening on: two processes that have the same
    /// store, a copy among them, are told apart by it.
    OpeningId, "opening_id", new_v4
);
uuid_id!(
    /// Names what a message of governance tells: it stays the same when that is sent again under
    /// another sequence, message id, outbox or ledger.
    OccurrenceId, "occurrence_id", new_v4
);
impl From<MessageId> for OccurrenceId {
    /// For what came without a name of its own.
    fn from(message_id: MessageId) -> Self {
        Self(message_id.0)
    }
}

impl OccurrenceId {
    /// That this request of the node's own was recalled to a restored store: the same each time.
    #[must_use]
    pub fn of_request(request_id: &RequestId) -> Self {
        let named = format!("governance-stream/recalled/{request_id}");
        let [bytes @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] =
            sha256::Hash::hash(named.as_bytes()).to_byte_array();
        Self(Uuid::from_bytes(bytes))
    }
}

uuid_id!(
    /// Names governance's durable record: the same behind all its endpoints, new after a restore.
    LedgerId, "ledger_id", new_v4
);
uuid_id!(
    /// Names a session in governance's records.
    SessionId, "session_id", new_v4
);
