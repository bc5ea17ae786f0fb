//! Hints for keys that are not settings: the nearest known name, and names that later versions will know.

/// Settings that are planned but do nothing yet, by the prefix of their key, and what they belong to. Naming one is
/// an error of its own, so that nobody believes a snapshot or an upload happens because its setting was taken.
const PLANNED: &[(&str, &str)] = &[
    ("snapshot", "snapshots"),
    ("bootstrap", "bootstrap from an object store"),
    ("object_store", "the object store"),
    ("tiering", "tiering to an object store"),
    ("search", "search"),
    ("security", "authentication and encryption"),
    ("sasl", "authentication"),
    ("tls", "encryption"),
    ("acl", "authorization"),
    ("quota", "quotas"),
    ("quotas", "quotas"),
];

/// What `key` (dotted, or with underscores as in a variable's name) will one day belong to.
pub(super) fn planned_feature(key: &str) -> Option<&'static str> {
    let key = key.replace('.', "_");
    PLANNED.iter().find_map(|(prefix, feature)| {
        let rest = key.strip_prefix(&prefix.replace('.', "_"))?;
        (rest.is_empty() || rest.starts_with('_')).then_some(*feature)
    })
}

/// The known name that `given` most probably means: the same key in another table, or one typing error away.
pub(super) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given_last = given.rsplit('.').next().unwrap_or(given);
    let mut best: Option<(usize, &'a str)> = None;
    for name in known {
        let moved = name.rsplit('.').next() == Some(given_last);
        let distance = if moved { 0 } else { strsim::damerau_levenshtein(given, name) };
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, name));
        }
    }
    let distance_max = (given.len() / 4).max(2);
    best.filter(|(distance, _)| *distance <= distance_max).map(|(_, name)| name)
}

/// Whether Kubernetes makes such a variable in each pod for a service named `chronik…` (CHRONIK_SERVICE_HOST,
/// CHRONIK_PORT_9092_TCP_ADDR and so on). They are not ours and must not stop the broker.
pub(super) fn is_service_variable(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_TCP_")
        || name.contains("_UDP_")
        || is_service_link(value)
}

/// Whether a value is one of those variables' (`tcp://10.0.0.1:9092`).
pub(super) fn is_service_link(value: &str) -> bool {
    value.starts_with("tcp://") || value.starts_with("udp://")
}
