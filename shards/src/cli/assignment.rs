//! What a consumer was given, as its group's leader wrote it; and how people name partitions on the command line.
//!
//! - I1: counts in the bytes are believed only as far as there are bytes: they come from whoever joined the group.

/// The partitions in the assignment of a member, in the encoding that all consumers of Kafka share; none where it is
/// something else.
pub(super) fn assigned(mut bytes: &[u8]) -> Vec<(String, i32)> {
    fn parse(bytes: &mut &[u8]) -> Option<Vec<(String, i32)>> {
        let _version: [u8; 2] = take(bytes)?;
        let mut found = Vec::new();
        for _ in 0..count(bytes)? {
            let length: [u8; 2] = take(bytes)?;
            let (name, rest) = bytes.split_at_checked(usize::from(u16::from_be_bytes(length)))?;
            *bytes = rest;
            let name = std::str::from_utf8(name).ok()?;
            for _ in 0..count(bytes)? {
                found.push((name.to_owned(), i32::from_be_bytes(take(bytes)?)));
            }
        }
        Some(found)
    }
    parse(&mut bytes).unwrap_or_default()
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

/// A count of elements that each take four bytes or more (I1).
fn count(bytes: &mut &[u8]) -> Option<usize> {
    let count = usize::try_from(i32::from_be_bytes(take(bytes)?)).ok()?;
    (count <= bytes.len()).then_some(count)
}

/// `orders` or `orders:0,3`.
pub(super) fn parse_topic(text: &str) -> Option<(String, Vec<i32>)> {
    let Some((name, numbers)) = text.split_once(':') else {
        return (!text.is_empty()).then(|| (text.to_owned(), Vec::new()));
    };
    let numbers = parse_numbers(numbers)?;
    (!name.is_empty() && !numbers.is_empty()).then(|| (name.to_owned(), numbers))
}

/// `1,2,3`, each 0 or more.
pub(super) fn parse_numbers(text: &str) -> Option<Vec<i32>> {
    let number = |number: &str| number.trim().parse::<i32>().ok().filter(|number| *number >= 0);
    text.split(',').map(number).collect()
}

/// The brokers of each partition from 0 on: `1:2,2:3` as kafka-topics has it, the preferred leader first.
pub(super) fn parse_replicas(text: &str) -> Option<Vec<Vec<i32>>> {
    text.split(',').map(|partition| parse_numbers(&partition.replace(':', ","))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_an_assignment_when_read_then_its_partitions_are_named_and_rubbish_is_nothing() {
        let mut bytes = vec![0, 1, 0, 0, 0, 1, 0, 6];
        bytes.extend_from_slice(b"orders");
        bytes.extend_from_slice(&[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(assigned(&bytes), [("orders".to_owned(), 0), ("orders".to_owned(), 3)]);
        for end in 0..bytes.len() - 4 {
            assert_eq!(assigned(&bytes[..end]), [], "cut at {end}");
        }
        assert_eq!(assigned(&[0, 0, 0x7f, 0xff, 0xff, 0xff]), []);
    }

    #[test]
    fn given_topics_with_partitions_when_parsed_then_only_numbers_that_can_be_are_taken() {
        assert_eq!(parse_topic("orders"), Some(("orders".to_owned(), vec![])));
        assert_eq!(parse_topic("orders:0, 3"), Some(("orders".to_owned(), vec![0, 3])));
        for wrong in ["", ":1", "orders:", "orders:x", "orders:-1", "orders:1,"] {
            assert_eq!(parse_topic(wrong), None, "{wrong}");
        }
        assert_eq!(parse_numbers("3,1"), Some(vec![3, 1]));
        assert_eq!(parse_replicas("1:2, 2 : 3"), Some(vec![vec![1, 2], vec![2, 3]]));
        assert_eq!(parse_replicas("4"), Some(vec![vec![4]]));
        for wrong in ["", "1,", "1:", ":", "1:x", "1;2", "-1"] {
            assert_eq!(parse_replicas(wrong), None, "{wrong}");
        }
    }
}
