// Requests of producers and consumers about records, and topics as they see them.

import java.io.IOException;
import java.util.*;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.message.ApiMessageType;
import org.apache.kafka.common.record.*;

final class RecordMeanings {
    private final World world;

    RecordMeanings(World world) { this.world = world; }

    private static Map<String, Object> struct(Object... namesAndValues) { return Messages.struct(namesAndValues); }
    private static List<Object> list(Object... values) { return Messages.list(values); }

    /** Null where the API is of another kind. */
    List<World.Meaning> of(ApiMessageType api, int version) throws IOException {
        return switch (api) {
            case PRODUCE -> produce();
            case FETCH -> fetch();
            case LIST_OFFSETS -> listOffsets();
            case OFFSET_FOR_LEADER_EPOCH -> leaderEpoch();
            case DELETE_RECORDS -> deleteRecords();
            case INIT_PRODUCER_ID -> initProducerId();
            case METADATA -> metadata(version);
            case DESCRIBE_PRODUCERS -> describeProducers();
            default -> null;
        };
    }

    private List<World.Meaning> produce() throws IOException {
        World.Topic topic = world.topicOfThree();
        var answer = struct("throttle_time_ms", 0, "responses", list(struct("name", topic.name(), "topic_id", topic.id(),
            "partition_responses", list(struct("index", World.PARTITION, "error_code", World.NONE, "base_offset", 3,
                "log_append_time_ms", -1, "log_start_offset", 0, "record_errors", list(), "error_message", null)))));
        var stored = struct("responses", list(struct("partitions", list(struct("records", World.oneRecord(3, "produced"))))));
        return List.of(new World.Meaning(
            world.produceOf(topic, Messages.batch(World.TIME, "produced")), answer,
            () -> World.expect(world.wire.ask(ApiMessageType.FETCH, 18, world.fetchOf(topic, 3)), stored, "fetched")));
    }

    private List<World.Meaning> fetch() throws IOException {
        World.Topic topic = world.topicOfThree();
        var partition = struct("partition_index", World.PARTITION, "error_code", World.NONE, "high_watermark", 3,
            "last_stable_offset", 3, "log_start_offset", 0, "records", World.oneRecord(1, "record 1"));
        return List.of(new World.Meaning(world.fetchOf(topic, 1), struct("throttle_time_ms", 0, "error_code", World.NONE,
            "session_id", 0, "responses",
            list(struct("topic", topic.name(), "topic_id", topic.id(), "partitions", list(partition))))));
    }

    private List<World.Meaning> listOffsets() throws IOException {
        World.Topic topic = world.topicOfThree();
        var partition = struct("partition_index", World.PARTITION, "current_leader_epoch", topic.epoch(),
            "timestamp", World.TIME + 500);
        var found = struct("partition_index", World.PARTITION, "error_code", World.NONE, "timestamp", World.TIME + 1_000,
            "offset", 1, "leader_epoch", topic.epoch());
        return List.of(new World.Meaning(
            struct("replica_id", -1, "isolation_level", 1, "topics",
                list(struct("name", topic.name(), "partitions", list(partition))), "timeout_ms", 5_000),
            struct("throttle_time_ms", 0, "topics", list(struct("name", topic.name(), "partitions", list(found))))));
    }

    private List<World.Meaning> leaderEpoch() throws IOException {
        World.Topic topic = world.topicOfThree();
        var partition = struct("partition", World.PARTITION, "current_leader_epoch", topic.epoch(),
            "leader_epoch", topic.epoch());
        var found = struct("error_code", World.NONE, "partition", World.PARTITION, "leader_epoch", topic.epoch(), "end_offset", 3);
        return List.of(new World.Meaning(
            struct("replica_id", -1, "topics", list(struct("topic", topic.name(), "partitions", list(partition)))),
            struct("topics", list(struct("topic", topic.name(), "partitions", list(found))))));
    }

    private List<World.Meaning> deleteRecords() throws IOException {
        World.Topic topic = world.topicOfThree();
        var partition = struct("partition_index", World.PARTITION, "offset", 2);
        var found = struct("partition_index", World.PARTITION, "low_watermark", 2, "error_code", World.NONE);
        return List.of(new World.Meaning(
            struct("topics", list(struct("name", topic.name(), "partitions", list(partition))), "timeout_ms", 5_000),
            struct("topics", list(struct("name", topic.name(), "partitions", list(found))))));
    }

    private List<World.Meaning> initProducerId() {
        var id = World.is("a producer id", found -> (Long) found >= 0);
        return List.of(new World.Meaning(
            struct("transactional_id", null, "transaction_timeout_ms", 60_000, "producer_id", -1, "producer_epoch", -1),
            struct("error_code", World.NONE, "producer_id", id, "producer_epoch", 0)));
    }

    private List<World.Meaning> metadata(int version) throws IOException {
        World.Topic topic = world.topic();
        String missing = world.fresh("missing");
        var byName = struct("topic_id", Uuid.ZERO_UUID, "name", topic.name());
        var brokers = list(struct("node_id", world.node, "host", world.host, "port", world.port, "rack", null));
        Object[] partitions = new Object[World.PARTITIONS];
        for (int n = 0; n < World.PARTITIONS; n++)
            partitions[n] = struct("error_code", World.NONE, "partition_index", n, "leader_id", world.node,
                "replica_nodes", list(world.node), "isr_nodes", list(world.node), "offline_replicas", list());
        var found = struct("error_code", World.NONE, "name", topic.name(), "topic_id", topic.id(), "is_internal", false,
            "partitions", World.inAnyOrder(partitions), "topic_authorized_operations", World.ASKED_FOR);
        // Before version 4 who asks for a topic makes it.
        boolean canAskForMissing = version >= 4;
        var unknown = struct("error_code", World.UNKNOWN_TOPIC_OR_PARTITION, "name", missing);
        List<World.Meaning> meanings = new ArrayList<>();
        meanings.add(new World.Meaning(
            struct("topics", canAskForMissing
                    ? list(byName, struct("topic_id", Uuid.ZERO_UUID, "name", missing)) : list(byName),
                "allow_auto_topic_creation", false, "include_cluster_authorized_operations", true,
                "include_topic_authorized_operations", true),
            struct("brokers", brokers, "cluster_id", World.SOMETHING, "controller_id", world.node,
                "cluster_authorized_operations", World.ASKED_FOR,
                "topics", canAskForMissing ? World.inAnyOrder(found, unknown) : list(found)),
            () -> world.expectNoTopic(missing)));
        if (version >= 12) meanings.add(new World.Meaning(
            struct("topics", list(struct("topic_id", topic.id(), "name", null)), "include_cluster_authorized_operations", false,
                "include_topic_authorized_operations", false),
            struct("topics", list(struct("name", topic.name(), "topic_id", topic.id(),
                "topic_authorized_operations", World.NOT_ASKED_FOR)))));
        return meanings;
    }

    private List<World.Meaning> describeProducers() throws IOException {
        World.Topic topic = world.topic();
        var given = world.wire.ask(ApiMessageType.INIT_PRODUCER_ID, 4, struct("transactional_id", null,
            "producer_id", -1, "producer_epoch", -1));
        long producer = Messages.number(given, "producer_id");
        world.produce(topic, MemoryRecords.withIdempotentRecords(Compression.NONE, producer, (short) 0, 0,
            new SimpleRecord(World.TIME, Messages.bytes("value"))));
        var state = struct("producer_id", producer, "producer_epoch", 0, "last_sequence", 0, "coordinator_epoch", -1,
            "current_txn_start_offset", -1);
        return List.of(new World.Meaning(
            struct("topics", list(struct("name", topic.name(), "partition_indexes", list(World.PARTITION)))),
            struct("topics", list(struct("name", topic.name(), "partitions", list(struct("partition_index", World.PARTITION,
                "error_code", World.NONE, "active_producers", list(state))))))));
    }
}
