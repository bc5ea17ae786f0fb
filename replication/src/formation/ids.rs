//! What names a cluster, and a disk of a node.

use std::fmt;

use uuid::Uuid;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
        pub struct $name(pub u128);

        impl $name {
            /// The same, as a UUID.
            #[must_use]
            pub fn as_uuid(self) -> Uuid {
                Uuid::from_u128(self.0)
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> $name {
                $name(uuid.as_u128())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.as_uuid())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.as_uuid())
            }
        }
    };
}

uuid_newtype!(
    /// A cluster. Drawn by the node that proposes its formation, and checked on every connection ever after.
    ClusterUuid
);
uuid_newtype!(
    /// A disk of a node: drawn when the data directory is made, so that a node whose disk was wiped is told from the
    /// one that it was before.
    NodeUuid
);
