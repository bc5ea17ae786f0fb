//! `docs/compatibility.md`: which APIs are advertised and what each client of the matrix was seen to do.
//!
//! The page is made from the version table and from `tests/clients/results.tsv`, which a recording run of the matrix
//! writes. Made again by [`REGENERATE`]; a test compares.

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

const HEAD: &str = "client\tversion\tcheck\tresult\tdetail\n";

/// What each check means, for readers.
const MEANINGS: [(&str, &str); 21] = [
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
         What ApiVersions advertises, and nothing else is served. The versions are those of Apache Kafka 4.1.\n\n\
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
