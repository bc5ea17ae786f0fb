//! What a consumer says it wants to read: the topics in the metadata of the protocol type `consumer`.
//!
//! The bytes are the clients' own business; they are looked into only to tell which offsets a group still uses. What
//! cannot be read is unknown, never empty.

use std::collections::BTreeSet;

/// The protocol type of consumers, whose metadata can be read.
pub(super) const CONSUMER: &str = "consumer";

/// The topics in these bytes: a version, then an array of strings, then what is of no interest here.
pub(super) fn topics(metadata: &[u8]) -> Option<BTreeSet<String>> {
    let (_version, rest) = metadata.split_first_chunk::<2>()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let count = usize::try_from(i32::from_be_bytes(*count)).ok()?;
    let mut topics = BTreeSet::new();
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let length = usize::try_from(i16::from_be_bytes(*length)).ok()?;
        let (name, after) = after.split_at_checked(length)?;
        topics.insert(std::str::from_utf8(name).ok()?.to_owned());
        rest = after;
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_subscription_when_read_then_its_topics_are_found_and_garbage_is_unknown() {
        let bytes = b"\x00\x01\x00\x00\x00\x02\x00\x01a\x00\x02bc\xff\xff\xff\xff";
        let found = topics(bytes).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "bc"]);
        assert!(topics(&bytes[..10]).is_none());
        assert!(topics(b"\x00\x01\xff\xff\xff\xff").is_none());
        assert!(topics(b"").is_none());
    }
}
