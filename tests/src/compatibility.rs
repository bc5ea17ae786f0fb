//! `docs/compatibility.md`: which APIs are advertised, what each client of the matrix was seen to do, and what is different
//! from Apache Kafka.
//!
//! The page is made from the version table, from `tests/clients/results.tsv`, which a recording run of the matrix writes,
//! and from [`DIFFERENCES`], by which the tests that ask both brokers go. Made again by [`REGENERATE`]; a test compares.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use chronik_net::SUPPORTED;

use crate::clients::{CLIENTS, Client, Outcome, SCENARIOS, programs_dir};

/// Makes the page again.
pub const REGENERATE: &str = "cargo run -p chronik-tests --bin compatibility";
/// Runs the matrix and writes down what came of it.
pub const RECORD: &str = "CHRONIK_MATRIX_RECORD=1 cargo test -p chronik-tests --test client_matrix";

/// The Apache Kafka that answers are compared with.
const COMPARED_WITH: &str = "4.1";

const HEAD: &str = "client\tversion\tcheck\tresult\tdetail\n";

/// What each check means, for readers.
const MEANINGS: [(&str, &str); 23] = [
    ("topics.create", "the admin client creates a topic of three partitions and sees it"),
    ("topics.create_again", "creating it again is refused as TOPIC_ALREADY_EXISTS"),
    ("topics.delete", "the admin client deletes it and it is gone"),
    (
        "records.none",
        "1,000 records with keys and headers over three partitions, read back in order",
    ),
    ("records.gzip", "the same with gzip; the log holds gzip"),
    ("records.snappy", "the same with snappy"),
    ("records.lz4", "the same with lz4"),
    ("records.zstd", "the same with zstd"),
    ("records.idempotent", "the same with an idempotent producer"),
    ("records.shapes", "null and empty keys and values, repeated and binary headers"),
    ("records.large", "one record of 900 KiB"),
    ("offsets.list", "earliest and latest offset"),
    ("offsets.by_time", "offsets by timestamp, before, between and after the records"),
    ("offsets.seek", "seek to an offset and read on to the end"),
    ("offsets.seek_time", "look a time up, seek there and read on"),
    ("groups.consume", "subscribe in a group, read everything, commit"),
    ("groups.committed", "the committed offsets are the ends of the partitions"),
    ("groups.resume", "the consumer starts again and finds only what is new"),
    ("groups.share", "two members share the partitions and nothing is read twice"),
    ("groups.list", "the group is in the admin client's list"),
    ("groups.describe", "the admin client sees a stable group of two members"),
    (
        "rebalances.static",
        "a static member starts again: its partitions are its own, and the other sees no rebalance",
    ),
    (
        "rebalances.cooperative",
        "a second cooperative member joins: only what moves is given up, nothing is read twice or lost",
    ),
];

/// What is different from Apache Kafka on purpose.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// Lines that begin so may differ where the tests ask both brokers the same. They must differ: what has become the same
    /// is no longer to be explained.
    pub lines: &'static [&'static str],
    /// What is different, and why.
    pub text: &'static str,
}

/// All of them.
pub const DIFFERENCES: [Difference; 13] = [
    Difference {
        lines: &["create compressed", "alter compression"],
        text: "`compression.type` can only be `producer`; other values are refused as INVALID_CONFIG. The broker never \
               compresses anew: records are stored and read in the compression they were sent in.",
    },
    Difference {
        lines: &["create unclean", "alter unclean"],
        text: "`unclean.leader.election.enable=true` is refused as INVALID_CONFIG. A leader is elected by a majority of \
               the replicas, so one that lacks acknowledged records never becomes leader.",
    },
    Difference {
        lines: &[],
        text: "These topic configurations, and those of brokers that are their defaults, are taken and shown, and have no \
               effect, as what they tune in Kafka's files is not there: `segment.jitter.ms`, `segment.index.bytes`, \
               `index.interval.bytes`, `file.delete.delay.ms` and `preallocate` (logs have another layout), \
               `flush.messages` and `flush.ms` (the log is synced without a pause), `compression.gzip.level`, \
               `compression.lz4.level` and `compression.zstd.level` (the broker never compresses), `local.retention.ms`, \
               `local.retention.bytes`, `remote.log.copy.disable` and `remote.log.delete.on.disable` (no topic is \
               tiered), `leader.replication.throttled.replicas` and `follower.replication.throttled.replicas` \
               (what a broker copies is throttled as a whole).",
    },
    Difference {
        lines: &[],
        text: "A segment is never larger than 64 MiB, whatever `segment.bytes` says: what is deleted or compacted goes in \
               steps of one segment.",
    },
    Difference {
        lines: &["config durability", "config searchable.enabled"],
        text: "Topics have two configurations more. `durability` is `durable`, or `relaxed` where acknowledgements need \
               not wait for disks. Of `searchable.enabled` only the default can be set.",
    },
    Difference {
        lines: &["config min.insync.replicas"],
        text: "A new Kafka cluster sets `min.insync.replicas` for all brokers by itself. Here it is 1 by default until \
               somebody sets it.",
    },
    Difference {
        lines: &["create internal"],
        text: "`__consumer_offsets`, `__transaction_state` and `__share_group_state` can be neither created nor deleted by \
               clients: `__consumer_offsets` is made with the first group, and deleting it would lose every group.",
    },
    Difference {
        lines: &[],
        text: "`__consumer_offsets` reads as empty. Groups and their offsets are kept there, but not as Kafka's records, so \
               tools that read this topic themselves see nothing; those that ask for groups and offsets see all.",
    },
    Difference {
        lines: &[
            "broker config listeners",
            "broker config producer.id.expiration.ms",
            "broker config log.cleaner.backoff.ms",
            "broker config log.cleaner.dedupe.buffer.size",
            "broker config log.cleaner.io.max.bytes.per.second",
        ],
        text: "`listeners`, `producer.id.expiration.ms`, `log.cleaner.backoff.ms`, `log.cleaner.dedupe.buffer.size` (32 MiB \
               by default) and `log.cleaner.io.max.bytes.per.second` (64 MiB by default, so that compaction never takes \
               the whole disk) are set where the broker is started and cannot be changed while it runs.",
    },
    Difference {
        lines: &["broker config max.connections"],
        text: "A broker takes 10,000 connections by default, not as many as come.",
    },
    Difference {
        lines: &[],
        text: "Only Produce requests may be as large as `socket.request.max.bytes` (100 MiB) says. Any other may have 8 MiB, \
               so JoinGroup, SyncGroup and OffsetCommit, too, and 1,000,000 elements in its arrays. Beyond that the \
               connection is closed and the broker's log says why.",
    },
    Difference {
        lines: &["fetch twice"],
        text: "A partition that one OffsetFetch names twice is answered once, so that an answer is never much longer \
               than its request.",
    },
    Difference {
        lines: &[],
        text: "Groups and client metrics have no configurations: any that is set is refused as of an unknown name.",
    },
];

/// `docs/compatibility.md`.
#[must_use]
pub fn page_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md")
}

fn results_path() -> PathBuf {
    programs_dir().join("results.tsv")
}

/// Client title → check → (result, detail).
type Results = BTreeMap<String, BTreeMap<String, (String, String)>>;

fn read_results() -> Result<Results> {
    let mut results = Results::new();
    let path = results_path();
    if !path.exists() {
        return Ok(results);
    }
    for line in std::fs::read_to_string(&path)?.lines().skip(1) {
        let mut cells = line.split('\t');
        let mut cell = || cells.next().with_context(|| format!("too few cells: {line}"));
        let (name, version, check) = (cell()?, cell()?, cell()?);
        let found = (cell()?.to_owned(), cell()?.to_owned());
        results.entry(format!("{name} {version}")).or_default().insert(check.to_owned(), found);
    }
    Ok(results)
}

/// Puts the outcomes of one client in the place of those it had. What was not run stays out.
pub fn record(client: &Client, outcomes: &[Outcome]) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut results = read_results()?;
    let one_line = |text: &str| text.replace(['\t', '\n'], " ");
    let found = outcomes
        .iter()
        .map(|o| (o.check.clone(), (o.result.clone(), one_line(&o.detail))))
        .collect();
    results.insert(client.title(), found);
    let mut text = HEAD.to_owned();
    for client in &CLIENTS {
        let Some(of_client) = results.get(&client.title()) else { continue };
        for check in SCENARIOS.iter().flat_map(|(_, checks)| checks.iter()) {
            let Some((result, detail)) = of_client.get(*check) else { continue };
            writeln!(text, "{}\t{}\t{check}\t{result}\t{detail}", client.name, client.version)?;
        }
    }
    std::fs::write(results_path(), text)?;
    Ok(())
}

/// The table of APIs alone.
#[must_use]
pub fn api_table() -> String {
    let mut rows: Vec<_> = SUPPORTED.iter().collect();
    rows.sort_by_key(|row| row.api_key as i16);
    let mut text = String::from("| API | key | versions |\n|---|---|---|\n");
    for row in rows {
        let note = if row.version_min_advertised == row.version_min {
            String::new()
        } else {
            format!(" (advertised from {})", row.version_min_advertised)
        };
        // Writing to a String cannot fail.
        let _written = writeln!(
            text,
            "| {:?} | {} | {}–{}{note} |",
            row.api_key, row.api_key as i16, row.version_min, row.version_max
        );
    }
    text
}

/// The whole page.
pub fn page() -> Result<String> {
    let results = read_results()?;
    let mut text = format!(
        "# Compatibility\n\n\
         Made by `{REGENERATE}`; not edited by hand.\n\n\
         ## APIs\n\n\
         What ApiVersions advertises, and nothing else is served. The versions are those of Apache Kafka 4.1.\n\
         Requests of every version of every API are written, and the answers read and compared byte by byte, by the\n\
         message classes of Apache Kafka's own Java library (`tests/tests/encoder.rs`). Produce is advertised from \
         version 0 on\nas librdkafka compresses nothing for brokers that begin later; versions 0 to 2 are refused by a close, \
         as Kafka does.\n\n\
         {}\n## Clients\n\n\
         What real clients were seen to do against a running broker, recorded by\n`{RECORD}`.\n\
         The programs and their scenarios are in [tests/clients](../tests/clients). librdkafka (through the `rdkafka` \
         crate)\nand kcat have tests of their own in `tests/tests`.\n\n\
         ✓ holds · – the client has no such feature · ✗ does not hold · empty: not run\n\n",
        api_table()
    );
    let clients: Vec<&Client> =
        CLIENTS.iter().filter(|c| results.contains_key(&c.title())).collect();
    let titles: Vec<String> = clients.iter().map(|client| client.title()).collect();
    writeln!(text, "| | {} |", titles.join(" | "))?;
    writeln!(text, "|---|{}", "---|".repeat(clients.len()))?;
    for (check, meaning) in MEANINGS {
        let cells: Vec<&str> = titles
            .iter()
            .map(|title| mark(results.get(title).and_then(|of| of.get(check))))
            .collect();
        writeln!(text, "| {meaning} | {} |", cells.join(" | "))?;
    }
    let notes = notes(&clients, &results);
    if !notes.is_empty() {
        write!(text, "\n{notes}")?;
    }
    write!(
        text,
        "\n## Differences from Apache Kafka\n\n\
         The same requests go to Apache Kafka {COMPARED_WITH} and to this broker, and the answers are compared\n\
         (`tests/tests/differential`). What is different stands here, and nothing else may be.\n\n"
    )?;
    for difference in DIFFERENCES {
        writeln!(text, "- {}", difference.text)?;
    }
    Ok(text)
}

fn mark(found: Option<&(String, String)>) -> &'static str {
    match found.map(|(result, _)| result.as_str()) {
        Some("ok") => "✓",
        Some("absent") => "–",
        Some(_) => "✗",
        None => "",
    }
}

/// Why a check does not hold, or what a client has not got.
fn notes(clients: &[&Client], results: &Results) -> String {
    let mut text = String::new();
    for client in clients {
        for (check, (result, detail)) in &results[&client.title()] {
            if result != "ok" {
                let _written =
                    writeln!(text, "- {}, `{check}`: {result}: {detail}", client.title());
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_the_checks_when_their_meanings_are_looked_up_then_each_has_one() {
        let checks = SCENARIOS.iter().flat_map(|(_, checks)| checks.iter().copied());
        assert!(checks.eq(MEANINGS.iter().map(|(check, _)| *check)));
    }

    #[test]
    fn given_the_results_when_read_then_they_are_of_known_clients_and_checks() {
        for (title, found) in read_results().unwrap() {
            assert!(CLIENTS.iter().any(|client| client.title() == title), "{title}");
            for check in found.keys() {
                assert!(MEANINGS.iter().any(|(known, _)| known == check), "{check}");
            }
        }
    }
}
