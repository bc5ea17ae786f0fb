//! Incremental fetch sessions (KIP-227): what a consumer fetches is remembered, so that its requests name only what
//! changed and our answers hold only what is new.
//!
//! A session belongs to the core whose connection made it. A client that comes back over another core is told
//! FETCH_SESSION_ID_NOT_FOUND and starts a new one, as it would after a restart.
//!
//! Ids are random: a session of before a restart, or of another core, is not taken for one of now.
//!
//! - I1: a shard has at most the configured number of sessions, a session at most [`SESSION_PARTITIONS_MAX`]
//!   partitions, all together at most [`PARTITIONS_MAX`]. What does not fit is served without a session.
//! - I2: a session is given up for a new one only after [`EVICT_AFTER_NS`] without a request.
//! - I3: a session has every partition that its client named and did not forget. One that would grow beyond the bounds
//!   is ended, and its client told so: it begins again with all its partitions.
//! - I4: `partitions` counts those of all sessions.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use chronik_engine::ids::Offset;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::protocol::StrBytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::catalog::{CATALOG_PARTITIONS_MAX, TOPIC_NAME_BYTES_MAX};

/// Partitions that one session may remember.
pub const SESSION_PARTITIONS_MAX: usize = 20_000;

/// Partitions that all sessions of a core may remember together. One takes about 300 bytes beside its topic's name: this
/// is half of what the newest records of a core take by default.
pub const PARTITIONS_MAX: usize = 100_000;

const _: () = assert!(SESSION_PARTITIONS_MAX <= PARTITIONS_MAX, "a session that may be must fit");

/// How long a session must have been idle before a new one may take its place.
pub const EVICT_AFTER_NS: u64 = 120_000_000_000;

/// Session epoch of a fetch that wants no session, or closes it.
const FINAL_EPOCH: i32 = -1;
/// Session epoch of a fetch that starts a session.
const INITIAL_EPOCH: i32 = 0;

/// A partition as fetch requests name it: by the topic's name up to version 12, by its id from 13 on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// The topic's id, nil where the name counts.
    pub topic_id: Uuid,
    /// The topic's name, empty where the id counts.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
}

/// What is wanted of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// From which offset.
    pub offset: Offset,
    /// At most how many bytes.
    pub bytes_max: i32,
    /// The leader epoch that the client believes in, -1 if it does not say.
    pub current_leader_epoch: i32,
}

/// What the client knows of a partition from our last answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The error code.
    pub error_code: i16,
    /// The high watermark.
    pub high_watermark: i64,
    /// The first offset.
    pub log_start_offset: i64,
}

#[derive(Debug)]
struct Remembered {
    wanted: Wanted,
    told: Option<Told>,
}

#[derive(Debug)]
struct Session {
    epoch: i32,
    by_id: bool,
    partitions: BTreeMap<PartitionKey, Remembered>,
    /// The partition served last: the next answer begins after it, so that none starves.
    served_last: Option<PartitionKey>,
    used_ns: u64,
}

/// How a fetch is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answering {
    /// With every partition asked for, and no session.
    Sessionless,
    /// With every partition, and this new session.
    Full(i32),
    /// With what changed since the session's last answer.
    Incremental(i32),
}

impl Answering {
    /// The session id to answer with.
    #[must_use]
    pub fn session_id(self) -> i32 {
        match self {
            Answering::Sessionless => 0,
            Answering::Full(id) | Answering::Incremental(id) => id,
        }
    }
}

/// The sessions of one core.
#[derive(Debug)]
pub struct SessionCache {
    sessions: HashMap<i32, Session>,
    sessions_max: usize,
    partitions: usize,
    random: SmallRng,
}

impl SessionCache {
    /// No sessions yet; their ids are drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64, sessions_max: usize) -> SessionCache {
        SessionCache {
            sessions: HashMap::new(),
            sessions_max,
            partitions: 0,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Takes in a request: says how it is to be answered and which partitions it wants, in the order to serve them.
    ///
    /// # Errors
    /// Kafka's fetch session errors, and INVALID_REQUEST for what no client sends.
    pub fn begin(
        &mut self,
        request: &FetchRequest,
        by_id: bool,
        now_ns: u64,
    ) -> Result<(Answering, Vec<(PartitionKey, Wanted)>), ResponseError> {
        check_size(&request.topics)?;
        match request.session_epoch {
            FINAL_EPOCH => {
                self.end(request.session_id);
                Ok((Answering::Sessionless, wanted_of(&request.topics, by_id).collect()))
            }
            INITIAL_EPOCH => {
                self.end(request.session_id);
                Ok(self.start(&request.topics, by_id, now_ns))
            }
            epoch => self.go_on(request, epoch, by_id, now_ns),
        }
    }

    fn start(
        &mut self,
        topics: &[FetchTopic],
        by_id: bool,
        now_ns: u64,
    ) -> (Answering, Vec<(PartitionKey, Wanted)>) {
        let wanted: Vec<_> = wanted_of(topics, by_id).collect();
        if wanted.is_empty() || !self.has_room(wanted.len(), now_ns) {
            return (Answering::Sessionless, wanted);
        }
        let id = self.free_id();
        let partitions: BTreeMap<_, _> = wanted
            .iter()
            .map(|(key, wanted)| (key.clone(), Remembered { wanted: wanted.clone(), told: None }))
            .collect();
        self.partitions += partitions.len();
        let session = Session { epoch: 1, by_id, partitions, served_last: None, used_ns: now_ns };
        self.sessions.insert(id, session);
        (Answering::Full(id), wanted)
    }

    /// Forgets a session, known or not.
    fn end(&mut self, id: i32) {
        if let Some(session) = self.sessions.remove(&id) {
            self.partitions -= session.partitions.len();
        }
    }

    /// Whether a session of so many partitions may begin; gives up idle ones for it, the longest idle first.
    fn has_room(&mut self, partitions: usize, now_ns: u64) -> bool {
        if partitions > SESSION_PARTITIONS_MAX {
            return false;
        }
        while self.sessions.len() >= self.sessions_max
            || self.partitions + partitions > PARTITIONS_MAX
        {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used_ns);
            match oldest.map(|(id, session)| (*id, now_ns.saturating_sub(session.used_ns))) {
                Some((id, idle_ns)) if idle_ns >= EVICT_AFTER_NS => self.end(id),
                _ => return false,
            }
        }
        true
    }

    fn free_id(&mut self) -> i32 {
        loop {
            let id = self.random.random_range(1..=i32::MAX);
            if !self.sessions.contains_key(&id) {
                return id;
            }
        }
    }

    fn go_on(
        &mut self,
        request: &FetchRequest,
        epoch: i32,
        by_id: bool,
        now_ns: u64,
    ) -> Result<(Answering, Vec<(PartitionKey, Wanted)>), ResponseError> {
        let session = self
            .sessions
            .get_mut(&request.session_id)
            .ok_or(ResponseError::FetchSessionIdNotFound)?;
        if session.by_id != by_id {
            return Err(ResponseError::FetchSessionTopicIdError);
        }
        if session.epoch != epoch {
            return Err(ResponseError::InvalidFetchSessionEpoch);
        }
        session.epoch = session.epoch.checked_add(1).unwrap_or(1);
        session.used_ns = now_ns;
        let partitions_before = session.partitions.len();
        for topic in &request.forgotten_topics_data {
            for partition in &topic.partitions {
                let key = key_of(&topic.topic, topic.topic_id, *partition, by_id);
                session.partitions.remove(&key);
            }
        }
        for (key, wanted) in wanted_of(&request.topics, by_id) {
            session.remember(key, wanted);
        }
        self.partitions = self.partitions - partitions_before + session.partitions.len();
        if session.partitions.len() > SESSION_PARTITIONS_MAX || self.partitions > PARTITIONS_MAX {
            self.end(request.session_id);
            return Err(ResponseError::FetchSessionIdNotFound);
        }
        Ok((Answering::Incremental(request.session_id), session.in_turn()))
    }

    /// Whether the answer must tell of this partition: it has records, or something about it changed. Remembers what the
    /// client is told.
    pub fn must_tell(
        &mut self,
        answering: Answering,
        key: &PartitionKey,
        told: Told,
        has_records: bool,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&answering.session_id()) else { return true };
        if has_records {
            session.served_last = Some(key.clone());
        }
        let Some(remembered) = session.partitions.get_mut(key) else { return true };
        let changed = remembered.told != Some(told);
        remembered.told = Some(told);
        has_records
            || changed
            || told.error_code != 0
            || !matches!(answering, Answering::Incremental(_))
    }
}

impl Session {
    fn remember(&mut self, key: PartitionKey, wanted: Wanted) {
        if let Some(remembered) = self.partitions.get_mut(&key) {
            remembered.wanted = wanted;
        } else {
            self.partitions.insert(key, Remembered { wanted, told: None });
        }
    }

    /// All partitions, beginning after the one that was served last.
    fn in_turn(&self) -> Vec<(PartitionKey, Wanted)> {
        let copy = |(key, remembered): (&PartitionKey, &Remembered)| {
            (key.clone(), remembered.wanted.clone())
        };
        match &self.served_last {
            None => self.partitions.iter().map(copy).collect(),
            Some(last) => self
                .partitions
                .range((Bound::Excluded(last), Bound::Unbounded))
                .chain(self.partitions.range(..=last))
                .map(copy)
                .collect(),
        }
    }
}

/// Each partition of a request gets a copy of its topic's name, so a small request could ask for a lot of memory.
fn check_size(topics: &[FetchTopic]) -> Result<(), ResponseError> {
    let partitions: usize = topics.iter().map(|topic| topic.partitions.len()).sum();
    let is_too_long = |topic: &FetchTopic| topic.topic.len() > TOPIC_NAME_BYTES_MAX;
    if partitions > CATALOG_PARTITIONS_MAX || topics.iter().any(is_too_long) {
        return Err(ResponseError::InvalidRequest);
    }
    Ok(())
}

fn key_of(topic: &StrBytes, topic_id: Uuid, partition: i32, by_id: bool) -> PartitionKey {
    if by_id {
        PartitionKey { topic_id, topic: String::new(), partition }
    } else {
        PartitionKey { topic_id: Uuid::nil(), topic: topic.to_string(), partition }
    }
}

fn wanted_of(
    topics: &[FetchTopic],
    by_id: bool,
) -> impl Iterator<Item = (PartitionKey, Wanted)> + '_ {
    topics.iter().flat_map(move |topic| {
        topic.partitions.iter().map(move |partition| {
            let key = key_of(&topic.topic, topic.topic_id, partition.partition, by_id);
            (key, wanted(partition))
        })
    })
}

fn wanted(partition: &FetchPartition) -> Wanted {
    Wanted {
        offset: Offset(partition.fetch_offset),
        bytes_max: partition.partition_max_bytes,
        current_leader_epoch: partition.current_leader_epoch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: i32, offset: i64) -> FetchPartition {
        FetchPartition::default()
            .with_partition(number)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(1024)
    }

    fn request(session_id: i32, epoch: i32, partitions: Vec<FetchPartition>) -> FetchRequest {
        let topic = FetchTopic::default()
            .with_topic(StrBytes::from_static_str("t").into())
            .with_partitions(partitions);
        FetchRequest::default()
            .with_session_id(session_id)
            .with_session_epoch(epoch)
            .with_topics(vec![topic])
    }

    fn told(high_watermark: i64) -> Told {
        Told { error_code: 0, high_watermark, log_start_offset: 0 }
    }

    #[test]
    fn given_a_session_when_nothing_changed_then_nothing_is_told() {
        let mut cache = SessionCache::new(7, 10);
        let begun = cache.begin(&request(0, 0, vec![partition(0, 5), partition(1, 7)]), false, 1);
        let (answering, wanted) = begun.unwrap();
        let Answering::Full(id) = answering else { panic!("{answering:?}") };
        assert_eq!(wanted.len(), 2);
        for (key, _) in &wanted {
            assert!(cache.must_tell(answering, key, told(5), false), "a full answer tells all");
        }
        let (answering, wanted) =
            cache.begin(&request(id, 1, vec![partition(1, 9)]), false, 2).unwrap();
        assert_eq!(answering, Answering::Incremental(id));
        assert_eq!(wanted.len(), 2, "partitions not named are remembered");
        assert_eq!(wanted[1].1.offset, Offset(9), "partitions named are updated");
        assert!(!cache.must_tell(answering, &wanted[0].0, told(5), false));
        assert!(cache.must_tell(answering, &wanted[0].0, told(6), false));
        assert!(cache.must_tell(answering, &wanted[1].0, told(5), true));
    }

    #[test]
    fn given_a_partition_that_was_served_when_fetched_again_then_the_others_come_first() {
        let mut cache = SessionCache::new(7, 10);
        let all = vec![partition(0, 0), partition(1, 0), partition(2, 0)];
        let (answering, wanted) = cache.begin(&request(0, 0, all), false, 1).unwrap();
        assert!(cache.must_tell(answering, &wanted[0].0, told(1), true));
        let id = answering.session_id();
        let (_, wanted) = cache.begin(&request(id, 1, vec![]), false, 1).unwrap();
        let order: Vec<i32> = wanted.iter().map(|(key, _)| key.partition).collect();
        assert_eq!(order, [1, 2, 0]);
    }

    #[test]
    fn given_wrong_session_or_epoch_when_fetched_then_kafkas_errors() {
        let mut cache = SessionCache::new(7, 10);
        let unknown = cache.begin(&request(77, 3, vec![]), false, 1).unwrap_err();
        assert_eq!(unknown, ResponseError::FetchSessionIdNotFound);
        let (answering, _) = cache.begin(&request(0, 0, vec![partition(0, 0)]), false, 1).unwrap();
        let id = answering.session_id();
        let wrong = cache.begin(&request(id, 9, vec![]), false, 1).unwrap_err();
        assert_eq!(wrong, ResponseError::InvalidFetchSessionEpoch);
        let mixed = cache.begin(&request(id, 1, vec![]), true, 1).unwrap_err();
        assert_eq!(mixed, ResponseError::FetchSessionTopicIdError);
    }

    #[test]
    fn given_a_full_cache_when_a_session_starts_then_only_an_idle_one_makes_room() {
        let mut cache = SessionCache::new(7, 1);
        let first = cache.begin(&request(0, 0, vec![partition(0, 0)]), false, 1).unwrap().0;
        let second = cache.begin(&request(0, 0, vec![partition(0, 0)]), false, 2).unwrap().0;
        assert_eq!(second, Answering::Sessionless);
        let later = 1 + EVICT_AFTER_NS;
        let third = cache.begin(&request(0, 0, vec![partition(0, 0)]), false, later).unwrap().0;
        assert!(matches!(third, Answering::Full(id) if id != first.session_id()));
        assert_eq!(cache.len(), 1);
    }

    fn partitions(numbers: std::ops::Range<usize>) -> Vec<FetchPartition> {
        numbers.map(|number| partition(i32::try_from(number).unwrap(), 0)).collect()
    }

    #[test]
    fn given_as_many_partitions_as_a_core_remembers_when_a_session_starts_then_only_an_idle_one_makes_room()
     {
        let mut cache = SessionCache::new(7, 1000);
        let whole = PARTITIONS_MAX / SESSION_PARTITIONS_MAX;
        for now_ns in (1..).take(whole) {
            let large = request(0, 0, partitions(0..SESSION_PARTITIONS_MAX));
            let (answering, _) = cache.begin(&large, false, now_ns).unwrap();
            assert!(matches!(answering, Answering::Full(_)), "{answering:?}");
        }
        let one = request(0, 0, partitions(0..1));
        let (answering, wanted) = cache.begin(&one, false, 10).unwrap();
        assert_eq!((answering, wanted.len()), (Answering::Sessionless, 1), "served without one");
        assert_eq!(cache.len(), whole);
        let (answering, _) = cache.begin(&one, false, 1 + EVICT_AFTER_NS).unwrap();
        assert!(matches!(answering, Answering::Full(_)), "the oldest one was idle for long");
        assert_eq!(
            (cache.len(), cache.partitions),
            (whole, PARTITIONS_MAX - SESSION_PARTITIONS_MAX + 1)
        );
        let too_large = request(0, 0, partitions(0..SESSION_PARTITIONS_MAX + 1));
        let (answering, _) = cache.begin(&too_large, false, u64::MAX).unwrap();
        assert_eq!((answering, cache.len()), (Answering::Sessionless, whole), "all were kept");
    }

    #[test]
    fn given_a_session_that_grows_when_beyond_a_bound_then_it_ends_and_its_client_is_told() {
        let mut cache = SessionCache::new(7, 1000);
        let all = request(0, 0, partitions(0..SESSION_PARTITIONS_MAX));
        let id = cache.begin(&all, false, 1).unwrap().0.session_id();
        let one_more = partitions(SESSION_PARTITIONS_MAX..SESSION_PARTITIONS_MAX + 1);
        let refused = cache.begin(&request(id, 1, one_more), false, 1).unwrap_err();
        assert_eq!(refused, ResponseError::FetchSessionIdNotFound);
        assert_eq!((cache.len(), cache.partitions), (0, 0));

        let small = cache.begin(&request(0, 0, partitions(0..1)), false, 1).unwrap().0.session_id();
        let almost = request(0, 0, partitions(1..SESSION_PARTITIONS_MAX));
        for _ in 0..PARTITIONS_MAX / SESSION_PARTITIONS_MAX {
            cache.begin(&almost, false, 1).unwrap();
        }
        let room = PARTITIONS_MAX - cache.partitions;
        let fits = cache.begin(&request(small, 1, partitions(0..1 + room)), false, 1).unwrap();
        assert_eq!((fits.1.len(), cache.partitions), (1 + room, PARTITIONS_MAX));
        let refused = cache.begin(&request(small, 2, partitions(0..2 + room)), false, 1);
        assert_eq!(refused.unwrap_err(), ResponseError::FetchSessionIdNotFound);
    }

    #[test]
    fn given_a_request_that_no_client_sends_when_fetched_then_it_is_refused() {
        let mut cache = SessionCache::new(7, 10);
        for epoch in [FINAL_EPOCH, INITIAL_EPOCH] {
            let mut long = request(0, epoch, partitions(0..1));
            let name = "n".repeat(TOPIC_NAME_BYTES_MAX + 1);
            long.topics[0].topic = StrBytes::from_string(name).into();
            assert_eq!(cache.begin(&long, false, 1), Err(ResponseError::InvalidRequest));
            let many = request(0, epoch, partitions(0..CATALOG_PARTITIONS_MAX + 1));
            assert_eq!(cache.begin(&many, false, 1), Err(ResponseError::InvalidRequest));
        }
        assert!(cache.is_empty());
    }

    #[test]
    fn given_forgotten_partitions_when_fetched_then_they_are_not_served() {
        let mut cache = SessionCache::new(7, 1);
        let all = vec![partition(0, 0), partition(1, 0)];
        let id = cache.begin(&request(0, 0, all), false, 1).unwrap().0.session_id();
        let mut again = request(id, 1, vec![]);
        again.forgotten_topics_data.push(
            kafka_protocol::messages::fetch_request::ForgottenTopic::default()
                .with_topic(StrBytes::from_static_str("t").into())
                .with_partitions(vec![0]),
        );
        let (_, wanted) = cache.begin(&again, false, 1).unwrap();
        assert_eq!((wanted.len(), cache.partitions), (1, 1));
        assert_eq!(wanted[0].0.partition, 1);
    }
}
