// What requests speak of: topics, records, groups and members, made by requests that are themselves checked as any.

import static org.apache.kafka.common.message.ApiMessageType.*;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.*;
import java.util.function.*;
import org.apache.kafka.clients.consumer.ConsumerPartitionAssignor;
import org.apache.kafka.clients.consumer.internals.ConsumerProtocol;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.message.ApiMessageType;
import org.apache.kafka.common.record.MemoryRecords;

final class World {
    /** A request that means something, what its answer must say, and a look at what it did. */
    record Meaning(Map<String, Object> request, Map<String, Object> answer, Look after) {
        Meaning(Map<String, Object> request, Map<String, Object> answer) { this(request, answer, () -> { }); }
    }

    interface Look { void look() throws IOException; }

    record Topic(String name, Uuid id, int epoch) {}

    record Member(String group, String id, String instance, int generation) {}

    static final int NONE = 0, UNKNOWN_TOPIC_OR_PARTITION = 3, ILLEGAL_GENERATION = 22, UNKNOWN_MEMBER_ID = 25,
        INVALID_SESSION_TIMEOUT = 26, INVALID_REPLICATION_FACTOR = 38, INVALID_REPLICA_ASSIGNMENT = 39, INVALID_REQUEST = 42,
        GROUP_ID_NOT_FOUND = 69, MEMBER_ID_REQUIRED = 79, ELECTION_NOT_NEEDED = 84, NO_REASSIGNMENT_IN_PROGRESS = 85,
        BROKER_ID_NOT_REGISTERED = 102, MISMATCHED_ENDPOINT_TYPE = 114;
    static final int TOPIC_RESOURCE = 2;
    /** The partition that is spoken of, where no other is; topics have two more. */
    static final int PARTITION = 1, PARTITIONS = 3;
    /** When the first record was made; the next are a second apart. */
    static final long TIME = 1_690_000_000_000L;
    /** A broker that no cluster has. */
    static final int NOBODY = 1_000_000;
    private static final int READY_MS_MAX = 20_000;

    static final Messages.Is SOMETHING = is("something", found -> found != null && !"".equals(found) && !List.of().equals(found));
    static final Messages.Is ASKED_FOR = is("a set of operations", found -> (Long) found != Integer.MIN_VALUE);
    static final int NOT_ASKED_FOR = Integer.MIN_VALUE;

    final Wire wire;
    final String host;
    final int port, node;
    private final String run = Long.toHexString(System.nanoTime());
    private int names = 0;

    World(Wire wire, String host, int port) throws IOException {
        this.wire = wire;
        this.host = host;
        this.port = port;
        var metadata = wire.ask(METADATA, 13, struct("topics", list(), "allow_auto_topic_creation", false));
        node = (int) Messages.number(metadata, "brokers", 0, "node_id");
    }

    static Map<String, Object> struct(Object... namesAndValues) { return Messages.struct(namesAndValues); }

    static List<Object> list(Object... values) { return Messages.list(values); }

    static Messages.Is is(String what, Predicate<Object> test) { return new Messages.Is(what, test); }

    static Messages.InAnyOrder inAnyOrder(Object... elements) { return new Messages.InAnyOrder(list(elements)); }

    /** A list with an element like `wanted` among others. */
    static Messages.Is among(Map<String, Object> wanted) {
        return is("a list with " + wanted, found -> ((List<?>) found).stream().anyMatch(element -> {
            try {
                Messages.compare(wanted, element, new Messages.Names(), "");
                return true;
            } catch (AssertionError error) {
                return false;
            }
        }));
    }

    static void expect(Object found, Object wanted, String what) {
        Messages.compare(wanted, found, new Messages.Names(), what);
    }

    String fresh(String name) { return name + "-" + run + "-" + names++; }

    /** Asks until the answer is as it is to be. */
    private Map<String, Object> until(
            ApiMessageType api, int version, Map<String, Object> request, Predicate<Map<String, Object>> isReady)
            throws IOException {
        long end = System.nanoTime() + READY_MS_MAX * 1_000_000L;
        while (true) {
            var answer = wire.ask(api, version, request);
            if (isReady.test(answer)) return answer;
            if (System.nanoTime() > end) throw new IOException(api + " still says " + answer);
        }
    }

    // Topics and records.

    Topic topic() throws IOException { return topic(PARTITIONS); }

    Topic topic(int partitions, Object... configs) throws IOException {
        String name = fresh("topic");
        List<Object> wanted = new ArrayList<>();
        for (int n = 0; n < configs.length; n += 2) wanted.add(struct("name", configs[n], "value", configs[n + 1]));
        var topic = struct("name", name, "num_partitions", partitions, "replication_factor", 1, "assignments", list(),
            "configs", wanted);
        var created = wire.ask(CREATE_TOPICS, 7, struct("topics", list(topic), "timeout_ms", 5_000, "validate_only", false));
        expect(created, struct("topics", list(struct("name", name, "error_code", NONE))), "created");
        var described = metadata(name, answer -> Messages.number(answer, "error_code") == NONE
            && ((List<?>) Messages.at(answer, "partitions")).size() == partitions
            && ((List<?>) Messages.at(answer, "partitions")).stream().allMatch(p -> Messages.number(p, "leader_id") >= 0));
        int epoch = 0;
        for (Object partition : (List<?>) described.get("partitions"))
            if (Messages.number(partition, "partition_index") == Math.min(PARTITION, partitions - 1))
                epoch = (int) Messages.number(partition, "leader_epoch");
        return new Topic(name, (Uuid) described.get("topic_id"), epoch);
    }

    /** What is said of a topic, once it is as it is to be. */
    Map<String, Object> metadata(String topic, Predicate<Map<String, Object>> isReady) throws IOException {
        var asked = struct("topics", list(struct("topic_id", Uuid.ZERO_UUID, "name", topic)), "allow_auto_topic_creation", false);
        var answer = until(METADATA, 13, asked, found -> isReady.test(Messages.asStruct(Messages.at(found, "topics", 0))));
        return Messages.asStruct(Messages.at(answer, "topics", 0));
    }

    void expectPartitions(String topic, int count) throws IOException {
        metadata(topic, found -> ((List<?>) found.get("partitions")).size() == count);
    }

    void expectNoTopic(String topic) throws IOException {
        metadata(topic, found -> Messages.number(found, "error_code") == UNKNOWN_TOPIC_OR_PARTITION);
    }

    Map<String, Object> produceOf(Topic topic, MemoryRecords records) {
        return struct("transactional_id", null, "acks", -1, "timeout_ms", 5_000, "topic_data", list(struct(
            "name", topic.name(), "topic_id", topic.id(),
            "partition_data", list(struct("index", PARTITION, "records", records)))));
    }

    void produce(Topic topic, MemoryRecords records) throws IOException {
        // Who is named as leader may not know it yet.
        until(PRODUCE, 13, produceOf(topic, records),
            answer -> Messages.number(answer, "responses", 0, "partition_responses", 0, "error_code") == NONE);
    }

    /** A topic with three batches of one record, named after their offsets. */
    Topic topicOfThree() throws IOException {
        Topic topic = topic();
        for (int n = 0; n < 3; n++) produce(topic, Messages.batch(TIME + 1_000L * n, "record " + n));
        return topic;
    }

    Map<String, Object> fetchOf(Topic topic, long offset) {
        return struct("replica_id", -1, "replica_state", struct("replica_id", -1, "replica_epoch", -1), "max_wait_ms", 500,
            "min_bytes", 1, "max_bytes", 1 << 20, "isolation_level", 1, "session_id", 0, "session_epoch", -1,
            "topics", list(struct("topic", topic.name(), "topic_id", topic.id(), "partitions", list(struct(
                "partition", PARTITION, "current_leader_epoch", topic.epoch(), "fetch_offset", offset,
                "last_fetched_epoch", -1, "log_start_offset", -1, "partition_max_bytes", 1)))));
    }

    /** Records as one batch with one record. */
    static Messages.Is oneRecord(long offset, String value) {
        return is("the one record " + value, found -> {
            var batches = ((MemoryRecords) found).batches().iterator();
            var batch = batches.next();
            var record = batch.iterator().next();
            byte[] bytes = new byte[record.valueSize()];
            record.value().get(bytes);
            return !batches.hasNext() && batch.isValid() && batch.baseOffset() == offset && batch.lastOffset() == offset
                && Messages.text(bytes).equals(value);
        });
    }

    /** The value of a configuration of a topic, once it is as it is to be. */
    void expectConfig(String topic, String config, String value, boolean isOwn) throws IOException {
        var asked = struct("resources", list(struct("resource_type", TOPIC_RESOURCE, "resource_name", topic,
            "configuration_keys", list(config))));
        var wanted = struct("name", config, "value", value, "config_source", isOwn ? 1 : 5);
        until(DESCRIBE_CONFIGS, 4, asked, found -> {
            try {
                expect(Messages.at(found, "results", 0, "configs", 0), wanted, "config");
                return true;
            } catch (AssertionError error) {
                return false;
            }
        });
    }

    // Groups.

    /** What a consumer says of itself: Kafka's coordinator reads it, too. */
    static byte[] subscription(String userData) {
        var subscription = new ConsumerPartitionAssignor.Subscription(List.of("a topic"), ByteBuffer.wrap(Messages.bytes(userData)));
        ByteBuffer bytes = ConsumerProtocol.serializeSubscription(subscription);
        byte[] copy = new byte[bytes.remaining()];
        bytes.get(copy);
        return copy;
    }

    Map<String, Object> joinOf(String group, String member, String instance) {
        return struct("group_id", group, "session_timeout_ms", 10_000, "rebalance_timeout_ms", 20_000, "member_id", member,
            "group_instance_id", instance, "protocol_type", "consumer", "protocols", list(
                struct("name", "range", "metadata", subscription("for range")),
                struct("name", "roundrobin", "metadata", subscription("for roundrobin"))));
    }

    /** The id that a group gives to a member that comes without one. */
    String memberId(int version, String group) throws IOException {
        var answer = wire.ask(JOIN_GROUP, version, joinOf(group, "", null));
        expect(answer, struct("error_code", MEMBER_ID_REQUIRED, "member_id", SOMETHING), "a member without an id");
        return (String) answer.get("member_id");
    }

    /** The only member of a group of its own, which has to sync yet. */
    Member joined(String instance) throws IOException {
        String group = fresh("group");
        String id = instance == null ? memberId(9, group) : "";
        // A coordinator may be found before it can serve.
        find(group);
        var answer = wire.ask(JOIN_GROUP, 9, joinOf(group, id, instance));
        expect(answer, struct("error_code", NONE), "joined");
        return new Member(group, (String) answer.get("member_id"), instance, (int) Messages.number(answer, "generation_id"));
    }

    void find(String group) throws IOException {
        var asked = struct("key_type", 0, "coordinator_keys", list(group));
        until(FIND_COORDINATOR, 6, asked, found -> Messages.number(found, "coordinators", 0, "error_code") == NONE);
    }

    Map<String, Object> syncOf(Member member) {
        return struct("group_id", member.group(), "generation_id", member.generation(), "member_id", member.id(),
            "group_instance_id", member.instance(), "protocol_type", "consumer", "protocol_name", "range",
            "assignments", list(struct("member_id", member.id(), "assignment", Messages.bytes("its share"))));
    }

    /** The same, in a group that is stable. */
    Member synced(String instance) throws IOException {
        Member member = joined(instance);
        expect(wire.ask(SYNC_GROUP, 5, syncOf(member)), struct("error_code", NONE), "synced");
        return member;
    }

    Map<String, Object> commitOf(Member member, Topic topic) {
        return struct("group_id", member.group(), "generation_id_or_member_epoch", member.generation(),
            "member_id", member.id(), "group_instance_id", member.instance(), "retention_time_ms", 86_400_000L,
            "topics", list(struct("name", topic.name(), "partitions", list(struct(
                "partition_index", PARTITION, "committed_offset", 42, "committed_leader_epoch", topic.epoch(),
                "committed_metadata", "a note")))));
    }

    /** A group without members that has an offset of a topic. */
    String groupWithOffset(Topic topic) throws IOException {
        String group = fresh("group");
        find(group);
        var answer = wire.ask(OFFSET_COMMIT, 9, commitOf(new Member(group, "", null, -1), topic));
        expect(Messages.at(answer, "topics", 0, "partitions", 0, "error_code"), NONE, "committed");
        return group;
    }

    void expectOffset(String group, Topic topic, Map<String, Object> wanted) throws IOException {
        var asked = struct("groups", list(struct("group_id", group, "member_id", null, "member_epoch", -1, "topics",
            list(struct("name", topic.name(), "partition_indexes", list(PARTITION))))), "require_stable", true);
        var answer = wire.ask(OFFSET_FETCH, 9, asked);
        expect(Messages.at(answer, "groups", 0, "topics", 0, "partitions", 0), wanted, "offset");
    }
}
