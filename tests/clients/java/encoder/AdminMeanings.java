// Requests of administrators, and ApiVersions.

import java.io.IOException;
import java.util.*;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.message.ApiMessageType;

final class AdminMeanings {
    private final World world;

    AdminMeanings(World world) { this.world = world; }

    private static Map<String, Object> struct(Object... namesAndValues) { return Messages.struct(namesAndValues); }
    private static List<Object> list(Object... values) { return Messages.list(values); }

    /** Null where the API is of another kind. */
    List<World.Meaning> of(ApiMessageType api, int version) throws IOException {
        return switch (api) {
            case API_VERSIONS -> apiVersions();
            case CREATE_TOPICS -> createTopics();
            case DELETE_TOPICS -> deleteTopics(version);
            case CREATE_PARTITIONS -> createPartitions();
            case DESCRIBE_CONFIGS -> describeConfigs();
            case ALTER_CONFIGS -> alterConfigs();
            case INCREMENTAL_ALTER_CONFIGS -> incrementalAlterConfigs();
            case DESCRIBE_LOG_DIRS -> describeLogDirs();
            case ELECT_LEADERS -> electLeaders();
            case ALTER_PARTITION_REASSIGNMENTS -> alterReassignments(version);
            case LIST_PARTITION_REASSIGNMENTS -> listReassignments();
            case DESCRIBE_QUORUM -> describeQuorum();
            case DESCRIBE_CLUSTER -> describeCluster(version);
            case UNREGISTER_BROKER -> unregisterBroker();
            case LIST_CONFIG_RESOURCES -> listConfigResources(version);
            case DESCRIBE_TOPIC_PARTITIONS -> describeTopicPartitions();
            default -> null;
        };
    }

    private List<World.Meaning> apiVersions() {
        return List.of(new World.Meaning(
            struct("client_software_name", "encoder", "client_software_version", "1.0"),
            struct("error_code", World.NONE, "throttle_time_ms", 0,
                "api_keys", World.among(struct("api_key", 18, "min_version", 0, "max_version", 4)))));
    }

    private List<World.Meaning> createTopics() throws IOException {
        String counted = world.fresh("counted"), placed = world.fresh("placed"), none = world.fresh("none");
        var one = struct("name", counted, "num_partitions", 2, "replication_factor", 1, "assignments", list(),
            "configs", list(struct("name", "retention.ms", "value", "3600000")));
        List<Object> places = new ArrayList<>();
        for (int n = 0; n < 3; n++) places.add(struct("partition_index", n, "broker_ids", list(world.node)));
        var two = struct("name", placed, "num_partitions", -1, "replication_factor", -1, "assignments", places,
            "configs", list());
        var id = World.is("an id", found -> !Uuid.ZERO_UUID.equals(found));
        var oneDone = struct("name", counted, "topic_id", id, "error_code", World.NONE, "error_message", null,
            "num_partitions", 2, "replication_factor", 1,
            "configs", World.among(struct("name", "retention.ms", "value", "3600000", "config_source", 1)));
        var twoDone = struct("name", placed, "topic_id", id, "error_code", World.NONE, "num_partitions", 3,
            "replication_factor", 1);
        var three = struct("name", none, "num_partitions", 1, "replication_factor", 1, "assignments", list(), "configs", list());
        return List.of(
            new World.Meaning(struct("topics", list(one, two), "timeout_ms", 5_000, "validate_only", false),
                struct("topics", World.inAnyOrder(oneDone, twoDone)),
                () -> {
                    world.expectPartitions(counted, 2);
                    world.expectPartitions(placed, 3);
                    world.expectConfig(counted, "retention.ms", "3600000", true);
                }),
            new World.Meaning(struct("topics", list(three), "timeout_ms", 5_000, "validate_only", true),
                struct("topics", list(struct("name", none, "error_code", World.NONE))),
                () -> world.expectNoTopic(none)));
    }

    private List<World.Meaning> deleteTopics(int version) throws IOException {
        World.Topic one = world.topic(), two = world.topic();
        var byName = struct("name", one.name(), "topic_id", Uuid.ZERO_UUID);
        var byId = struct("name", null, "topic_id", two.id());
        var asked = version >= 6 ? struct("topics", list(byName, byId)) : struct("topic_names", list(one.name(), two.name()));
        asked.put("timeout_ms", 5_000);
        var oneDone = struct("name", one.name(), "topic_id", one.id(), "error_code", World.NONE, "error_message", null);
        var twoDone = struct("name", two.name(), "topic_id", two.id(), "error_code", World.NONE, "error_message", null);
        return List.of(new World.Meaning(asked,
            struct("responses", World.inAnyOrder(oneDone, twoDone)),
            () -> {
                world.expectNoTopic(one.name());
                world.expectNoTopic(two.name());
            }));
    }

    private List<World.Meaning> createPartitions() throws IOException {
        World.Topic topic = world.topic(1);
        var place = struct("broker_ids", list(world.node));
        var asked = struct("topics", list(struct("name", topic.name(), "count", 3, "assignments", list(place, place))),
            "timeout_ms", 5_000, "validate_only", true);
        var done = struct("results", list(struct("name", topic.name(), "error_code", World.NONE, "error_message", null)));
        var inEarnest = new LinkedHashMap<>(asked);
        inEarnest.put("validate_only", false);
        return List.of(
            new World.Meaning(asked, done, () -> world.expectPartitions(topic.name(), 1)),
            new World.Meaning(inEarnest, done, () -> world.expectPartitions(topic.name(), 3)));
    }

    private List<World.Meaning> describeConfigs() throws IOException {
        World.Topic topic = world.topic(1, "retention.ms", "3600000");
        var resources = list(struct("resource_type", World.TOPIC_RESOURCE, "resource_name", topic.name(),
            "configuration_keys", list("retention.ms")));
        var config = struct("name", "retention.ms", "value", "3600000", "read_only", false, "config_source", 1,
            "is_sensitive", false, "config_type", 5);
        List<World.Meaning> meanings = new ArrayList<>();
        for (boolean isAll : new boolean[] {true, false}) {
            var found = new LinkedHashMap<>(config);
            found.put("synonyms", isAll ? World.SOMETHING : list());
            found.put("documentation", isAll ? World.SOMETHING : null);
            meanings.add(new World.Meaning(
                struct("resources", resources, "include_synonyms", isAll, "include_documentation", isAll),
                struct("results", list(struct("error_code", World.NONE, "resource_type", World.TOPIC_RESOURCE,
                    "resource_name", topic.name(), "configs", list(found))))));
        }
        return meanings;
    }

    /** That a resource was altered, or would have been. */
    private static Map<String, Object> altered(World.Topic topic) {
        return struct("responses", list(struct("error_code", World.NONE, "resource_type", World.TOPIC_RESOURCE,
            "resource_name", topic.name())));
    }

    private List<World.Meaning> alterConfigs() throws IOException {
        World.Topic topic = world.topic(1, "retention.ms", "3600000", "segment.bytes", "1048576");
        var resources = list(struct("resource_type", World.TOPIC_RESOURCE, "resource_name", topic.name(),
            "configs", list(struct("name", "retention.ms", "value", "7200000"))));
        return List.of(
            new World.Meaning(struct("resources", resources, "validate_only", true), altered(topic),
                () -> world.expectConfig(topic.name(), "retention.ms", "3600000", true)),
            // What is not named is a default again.
            new World.Meaning(struct("resources", resources, "validate_only", false), altered(topic), () -> {
                world.expectConfig(topic.name(), "retention.ms", "7200000", true);
                world.expectConfig(topic.name(), "segment.bytes", "1073741824", false);
            }));
    }

    private List<World.Meaning> incrementalAlterConfigs() throws IOException {
        World.Topic topic = world.topic(1, "retention.ms", "3600000", "segment.bytes", "1048576");
        var resources = list(struct("resource_type", World.TOPIC_RESOURCE, "resource_name", topic.name(), "configs", list(
            struct("name", "retention.ms", "config_operation", 0, "value", "7200000"),
            struct("name", "segment.bytes", "config_operation", 1, "value", null))));
        return List.of(
            new World.Meaning(struct("resources", resources, "validate_only", true), altered(topic),
                () -> world.expectConfig(topic.name(), "retention.ms", "3600000", true)),
            new World.Meaning(struct("resources", resources, "validate_only", false), altered(topic), () -> {
                world.expectConfig(topic.name(), "retention.ms", "7200000", true);
                world.expectConfig(topic.name(), "segment.bytes", "1073741824", false);
            }));
    }

    private List<World.Meaning> describeLogDirs() throws IOException {
        World.Topic topic = world.topicOfThree();
        var partition = struct("partition_index", World.PARTITION, "partition_size", World.is("a size", size -> (Long) size > 0),
            "offset_lag", 0, "is_future_key", false);
        var found = struct("name", topic.name(), "partitions", list(partition));
        return List.of(new World.Meaning(
            struct("topics", list(struct("topic", topic.name(), "partitions", list(World.PARTITION)))),
            struct("error_code", World.NONE, "results", World.is("one directory with " + found, dirs ->
                ((List<?>) dirs).stream().filter(dir -> World.among(found).test().test(Messages.at(dir, "topics"))).count() == 1))));
    }

    private List<World.Meaning> electLeaders() throws IOException {
        World.Topic topic = world.topic();
        List<World.Meaning> meanings = new ArrayList<>();
        for (int kind = 0; kind <= 1; kind++)
            meanings.add(new World.Meaning(
                struct("election_type", kind, "topic_partitions",
                    list(struct("topic", topic.name(), "partitions", list(World.PARTITION))), "timeout_ms", 5_000),
                struct("error_code", World.NONE, "replica_election_results", list(struct("topic", topic.name(),
                    "partition_result", list(struct("partition_id", World.PARTITION,
                        "error_code", World.ELECTION_NOT_NEEDED, "error_message", World.SOMETHING)))))));
        return meanings;
    }

    private List<World.Meaning> alterReassignments(int version) throws IOException {
        World.Topic topic = world.topic();
        List<World.Meaning> meanings = new ArrayList<>();
        for (boolean canDiffer : new boolean[] {true, false}) {
            // Before version 1 it always can.
            int refused = canDiffer || version < 1 ? World.INVALID_REPLICA_ASSIGNMENT : World.INVALID_REPLICATION_FACTOR;
            meanings.add(new World.Meaning(
                struct("timeout_ms", 5_000, "allow_replication_factor_change", canDiffer, "topics", list(struct(
                    "name", topic.name(), "partitions", list(
                        struct("partition_index", 1, "replicas", null),
                        struct("partition_index", 2, "replicas", list(world.node, World.NOBODY)))))),
                struct("error_code", World.NONE, "responses", list(struct("name", topic.name(), "partitions", list(
                    struct("partition_index", 1, "error_code", World.NO_REASSIGNMENT_IN_PROGRESS),
                    struct("partition_index", 2, "error_code", refused)))))));
        }
        return meanings;
    }

    private List<World.Meaning> listReassignments() throws IOException {
        World.Topic topic = world.topic();
        return List.of(new World.Meaning(
            struct("timeout_ms", 5_000, "topics",
                list(struct("name", topic.name(), "partition_indexes", list(World.PARTITION)))),
            struct("error_code", World.NONE, "error_message", null, "topics", list())));
    }

    private List<World.Meaning> describeQuorum() {
        String name = "__cluster_metadata";
        var voters = list(struct("replica_id", world.node));
        return List.of(new World.Meaning(
            struct("topics", list(struct("topic_name", name, "partitions", list(struct("partition_index", 0))))),
            struct("error_code", World.NONE, "topics", list(struct("topic_name", name, "partitions", list(struct(
                "partition_index", 0, "error_code", World.NONE, "leader_id", world.node, "current_voters", voters,
                "observers", list())))), "nodes", list(struct("node_id", world.node)))));
    }

    private List<World.Meaning> describeCluster(int version) {
        List<World.Meaning> meanings = new ArrayList<>();
        for (boolean isAsked : new boolean[] {true, false})
            meanings.add(new World.Meaning(
                struct("include_cluster_authorized_operations", isAsked, "endpoint_type", 1, "include_fenced_brokers", isAsked),
                struct("error_code", World.NONE, "endpoint_type", 1, "cluster_id", World.SOMETHING, "controller_id", world.node,
                    "brokers", list(struct("broker_id", world.node, "host", world.host, "port", world.port, "rack", null,
                        "is_fenced", false)),
                    "cluster_authorized_operations", isAsked ? World.ASKED_FOR : World.NOT_ASKED_FOR)));
        if (version >= 1) meanings.add(new World.Meaning(struct("endpoint_type", 2),
            struct("error_code", World.MISMATCHED_ENDPOINT_TYPE, "error_message", World.SOMETHING)));
        return meanings;
    }

    private List<World.Meaning> unregisterBroker() {
        return List.of(new World.Meaning(struct("broker_id", World.NOBODY),
            struct("error_code", World.BROKER_ID_NOT_REGISTERED, "error_message", World.SOMETHING)));
    }

    private List<World.Meaning> listConfigResources(int version) throws IOException {
        World.Topic topic = world.topic();
        var found = struct("resource_name", topic.name(), "resource_type", World.TOPIC_RESOURCE);
        // Version 0 asks for client metrics only.
        return List.of(new World.Meaning(struct("resource_types", list(World.TOPIC_RESOURCE)),
            struct("error_code", World.NONE, "config_resources", version >= 1 ? World.among(found) : list())));
    }

    private List<World.Meaning> describeTopicPartitions() throws IOException {
        World.Topic topic = world.topic();
        var partition = struct("error_code", World.NONE, "partition_index", 1, "leader_id", world.node,
            "leader_epoch", topic.epoch(), "replica_nodes", list(world.node), "isr_nodes", list(world.node));
        return List.of(new World.Meaning(
            struct("topics", list(struct("name", topic.name())), "response_partition_limit", 1,
                "cursor", struct("topic_name", topic.name(), "partition_index", 1)),
            struct("topics", list(struct("error_code", World.NONE, "name", topic.name(), "topic_id", topic.id(),
                    "is_internal", false, "partitions", list(partition))),
                "next_cursor", struct("topic_name", topic.name(), "partition_index", 2))));
    }
}
