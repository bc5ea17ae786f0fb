//! What a segment is called: its name says all that a manifest needs, so a listing of the directory is the manifest.
//!
//! ```text
//! name = topic uuid, 32 hex digits - partition - first offset, 20 digits - last offset, 20 digits - term
//!      - generation, "c" behind it if compacted - greatest timestamp in milliseconds or "none" .segment
//! ```
//!
//! The offsets are the range that the segment stands for: after a compaction there may be no record at either end.

use uuid::Uuid;

use crate::ids::{Offset, Term};

/// What every segment's name ends with.
const SUFFIX: &str = ".segment";

/// What the names of all segments of a partition begin with.
fn prefix(topic: Uuid, partition: u32) -> String {
    format!("{}-{partition}-", topic.simple())
}

/// A segment of a partition, as its name and its length tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The first offset that it stands for.
    pub base_offset: Offset,
    /// The offset after the last that it stands for.
    pub end_offset: Offset,
    /// The length of the file.
    pub file_bytes: u64,
    /// The greatest timestamp in it, or an upper bound of it; -1 if none has any.
    pub max_timestamp_ms: i64,
    /// The term of the leader that cut it.
    pub term: Term,
    /// How often its records were written anew: one more than that of any segment that it replaces.
    pub generation: u32,
    /// Whether a compaction has seen all of it.
    pub is_compacted: bool,
}

impl Segment {
    /// Its name within the directory.
    #[must_use]
    pub fn file_name(&self, topic: Uuid, partition: u32) -> String {
        assert!(self.base_offset < self.end_offset, "a segment stands for at least one offset");
        let last = self.end_offset.0 - 1;
        let compacted = if self.is_compacted { "c" } else { "" };
        let timestamp = match self.max_timestamp_ms {
            0.. => self.max_timestamp_ms.to_string(),
            _ => "none".to_owned(),
        };
        format!(
            "{}{:020}-{last:020}-{}-{}{compacted}-{timestamp}{SUFFIX}",
            prefix(topic, partition),
            self.base_offset.0,
            self.term.0,
            self.generation,
        )
    }

    /// The topic, the partition and the segment that a name and a length stand for; `None` if it is no segment's name.
    #[must_use]
    pub fn parse(name: &str, file_bytes: u64) -> Option<(Uuid, u32, Segment)> {
        let mut fields = name.strip_suffix(SUFFIX)?.split('-');
        let topic = Uuid::try_parse(fields.next()?).ok()?;
        let partition: u32 = fields.next()?.parse().ok()?;
        let base_offset: i64 = fields.next()?.parse().ok()?;
        let last: i64 = fields.next()?.parse().ok()?;
        let term: u64 = fields.next()?.parse().ok()?;
        let generation = fields.next()?;
        let (generation, is_compacted) = match generation.strip_suffix('c') {
            Some(generation) => (generation, true),
            None => (generation, false),
        };
        let max_timestamp_ms = match fields.next()? {
            "none" => -1,
            timestamp => timestamp.parse().ok()?,
        };
        let segment = Segment {
            base_offset: Offset(base_offset),
            end_offset: Offset(last.checked_add(1)?),
            file_bytes,
            max_timestamp_ms,
            term: Term(term),
            generation: generation.parse().ok()?,
            is_compacted,
        };
        let is_range = base_offset >= 0 && last >= base_offset && fields.next().is_none();
        // One name for one segment: what parses is what would be written.
        (is_range && segment.file_name(topic, partition) == name)
            .then_some((topic, partition, segment))
    }

    /// Whether they stand for an offset in common.
    #[must_use]
    pub fn overlaps(&self, other: &Segment) -> bool {
        self.base_offset < other.end_offset && other.base_offset < self.end_offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> Segment {
        Segment {
            base_offset: Offset(7),
            end_offset: Offset(100),
            file_bytes: 12_288,
            max_timestamp_ms: 1_700_000_000_000,
            term: Term(3),
            generation: 2,
            is_compacted: true,
        }
    }

    #[test]
    fn given_a_segment_when_named_then_its_name_says_what_it_is() {
        let topic = Uuid::from_u128(0xab);
        let name = segment().file_name(topic, 5);
        let range = "00000000000000000007-00000000000000000099";
        let topic_hex = "000000000000000000000000000000ab";
        assert_eq!(name, format!("{topic_hex}-5-{range}-3-2c-1700000000000.segment"));
        assert_eq!(Segment::parse(&name, 12_288), Some((topic, 5, segment())));
        let plain = Segment { max_timestamp_ms: -1, is_compacted: false, ..segment() };
        let name = plain.file_name(topic, 5);
        assert_eq!(Segment::parse(&name, 12_288), Some((topic, 5, plain)));
    }

    #[test]
    fn given_names_that_no_segment_has_when_parsed_then_they_are_none() {
        let name = segment().file_name(Uuid::from_u128(0xab), 5);
        let wrong = [
            name.replace(".segment", ".segment.tmp"),
            name.replace("-5-", "-05-"),
            name.replace("-3-", "--3-"),
            name.replace("2c", "c2"),
            name.replace("-1700000000000", ""),
            name.replace("-1700000000000", "--1"),
            name.replace(".segment", "-1.segment"),
            name.replace("00099", "00006"),
            name.replace("00000000000000000099", "9223372036854775807"),
            String::new(),
            ".segment".to_owned(),
        ];
        for name in wrong {
            assert_eq!(Segment::parse(&name, 0), None, "{name}");
        }
    }
}
