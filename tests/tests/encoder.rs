//! Every advertised version of every API, in an encoding that is not the broker's own: requests are written, and answers
//! read and written again, by the message classes of Apache Kafka.
//!
//! Needs kafka-clients as `tests/clients/setup.sh` installs it; says `SKIPPED` without.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use chronik_net::SUPPORTED;
use chronik_tests::encoder::{self, Asked};
use chronik_tests::process::{Broker, Settings};
use chronik_tests::scratch::say_skipped;

/// From this version of the request header on there are tagged fields.
const HEADER_TAGGED_MIN: i16 = 2;

/// All that must have been asked, by the broker's own table.
fn wanted() -> BTreeSet<(i16, i16, &'static str)> {
    let mut wanted = BTreeSet::new();
    for row in SUPPORTED {
        let key = row.api_key as i16;
        for version in row.version_min_advertised..row.version_min {
            wanted.insert((key, version, "refused"));
        }
        for version in row.version_min..=row.version_max {
            let always = ["meant", "filled", "null", "default"];
            wanted.extend(always.map(|variety| (key, version, variety)));
            if row.api_key.request_header_version(version) >= HEADER_TAGGED_MIN {
                wanted.insert((key, version, "tagged"));
            }
        }
    }
    wanted
}

#[test]
fn given_every_advertised_version_when_asked_by_kafkas_encoder_then_the_answer_is_right_to_the_byte()
 {
    if let Some(why) = encoder::missing().unwrap() {
        say_skipped(&format!("Kafka's encoder: {why}"));
        return;
    }
    let settings = Settings::new().with_top("group.initial_rebalance_delay_ms = 0");
    let mut broker = Broker::start(settings).unwrap();
    let asked = encoder::ask_everything(&broker.bootstrap()).unwrap();
    let bad: Vec<&Asked> = asked.iter().filter(|asked| asked.failure.is_some()).collect();
    assert!(bad.is_empty(), "{} of {}: {bad:#?}", bad.len(), asked.len());
    let found: BTreeSet<_> =
        asked.iter().map(|asked| (asked.api, asked.version, asked.variety.as_str())).collect();
    assert_eq!(found, wanted());
    assert_eq!(found.len(), asked.len(), "something was asked twice");
    assert!(broker.is_running(), "the broker is gone");
    println!("{} requests of {} APIs", asked.len(), SUPPORTED.len());
}
