//! What a waiting node says in the log: one sentence that names who is missing, for how long and why.
//!
//! At once, so that a wrong address is seen while its author still looks; again after two seconds; then every ten.

use super::forming::Forming;

const SECOND_MS: u64 = 2_000;
const FURTHER_MS: u64 = 10_000;
/// The first sentence waits until every peer was tried, but not longer than this.
const FIRST_MS: u64 = 500;

/// When to say something.
#[derive(Debug)]
pub(super) struct Reporter {
    begun_ms: u64,
    sentences: u64,
}

impl Reporter {
    pub(super) fn new(now_ms: u64) -> Reporter {
        Reporter { begun_ms: now_ms, sentences: 0 }
    }

    /// The next sentence, if it is time for one.
    pub(super) fn next(&mut self, forming: &Forming, now_ms: u64) -> Option<String> {
        let waited_ms = now_ms.saturating_sub(self.begun_ms);
        let is_due = match self.sentences {
            // With everybody there, a cluster is a matter of milliseconds.
            0 if forming.troubles().next().is_none() => waited_ms >= SECOND_MS,
            0 => forming.has_tried_all() || waited_ms >= FIRST_MS,
            1 => waited_ms >= SECOND_MS,
            further => waited_ms >= (further - 1) * FURTHER_MS,
        };
        if !is_due || forming.formed().is_some() {
            return None;
        }
        self.sentences += 1;
        Some(sentence(forming, now_ms))
    }
}

fn sentence(forming: &Forming, now_ms: u64) -> String {
    let list = forming.list();
    let mut here = list.nodes().len();
    let mut troubles = String::new();
    for (node, missing_since_ms, problem) in forming.troubles() {
        let address = list
            .nodes()
            .iter()
            .find(|listed| listed.id == node)
            .map_or("", |listed| &listed.raft_addr);
        let mut trouble = format!("; node {node} ({address})");
        if let Some(since_ms) = missing_since_ms {
            here -= 1;
            let missing_ms = now_ms.saturating_sub(since_ms);
            trouble = format!("{trouble} has been missing for {}", seconds(missing_ms));
        }
        if let Some(problem) = problem {
            trouble = format!("{trouble}: {problem}");
        }
        troubles.push_str(&trouble);
    }
    let (listed, majority) = (list.nodes().len(), list.majority());
    format!(
        "waiting for a cluster: {here} of {listed} nodes are here, {majority} are needed to form one{troubles}"
    )
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
