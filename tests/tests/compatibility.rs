//! `docs/compatibility.md` says what is advertised and what was recorded.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use chronik_tests::compatibility::{REGENERATE, api_table, page, page_path};

#[test]
fn given_the_version_table_and_the_recorded_results_when_the_page_is_read_then_it_says_the_same() {
    let committed = std::fs::read_to_string(page_path()).unwrap_or_default();
    assert!(
        committed.contains(&api_table()),
        "docs/compatibility.md does not list the APIs that are advertised; run: {REGENERATE}"
    );
    let same = committed == page().unwrap();
    assert!(same, "docs/compatibility.md is not what its sources say; run: {REGENERATE}");
}
