//! Which topic names are legal: Kafka's rules, and the names the cluster keeps for itself.

/// Longest topic name in bytes, as in Kafka.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Topics that only the cluster itself may create.
const INTERNAL_TOPICS: [&str; 6] = [
    "__meta",
    "__cluster_metadata",
    "__consumer_offsets",
    "__share_group_state",
    "__transaction_state",
    "__remote_log_metadata",
];

/// Whether the cluster keeps this name for itself.
#[must_use]
pub fn is_internal_topic(name: &str) -> bool {
    INTERNAL_TOPICS.contains(&name)
}

/// Why Kafka would refuse this topic name, `None` if it is legal.
#[must_use]
pub fn topic_name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("the empty string is not allowed");
    }
    if name == "." || name == ".." {
        return Some("'.' and '..' are not allowed");
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return Some("the length of the name must not exceed 249 characters");
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !name.bytes().all(legal) {
        return Some("only ASCII alphanumerics, '.', '_' and '-' are allowed");
    }
    None
}

/// Whether two names differ at most in '.' against '_': metrics of such topics would bear the same name, so Kafka
/// allows only one of them.
pub(super) fn names_collide(a: &str, b: &str) -> bool {
    let fold = |byte: u8| if byte == b'.' { b'_' } else { byte };
    a.len() == b.len() && a.bytes().map(fold).eq(b.bytes().map(fold))
}

/// Whether a name can collide with a different one at all.
pub(super) fn can_collide(name: &str) -> bool {
    name.bytes().any(|byte| matches!(byte, b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_names_when_checked_then_kafkas_rules_hold() {
        for legal in ["a", "A-b_c.9", "...", &"x".repeat(249)] {
            assert_eq!(topic_name_problem(legal), None, "{legal}");
        }
        for illegal in ["", ".", "..", "a b", "a/b", "é", "a\0", &"x".repeat(250)] {
            assert!(topic_name_problem(illegal).is_some(), "{illegal:?}");
        }
    }

    #[test]
    fn given_dots_and_underscores_when_compared_then_they_collide() {
        assert!(names_collide("a.b", "a_b"));
        assert!(names_collide("a.b", "a.b"));
        assert!(!names_collide("a.b", "a-b"));
        assert!(!names_collide("a.b", "a.b.c"));
        assert!(can_collide("a.b") && can_collide("_") && !can_collide("a-b"));
    }

    #[test]
    fn given_reserved_names_when_asked_then_they_are_internal() {
        assert!(is_internal_topic("__consumer_offsets"));
        assert!(!is_internal_topic("__mine"));
    }
}
