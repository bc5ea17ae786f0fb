// Requests of groups, of their members and of those who look after them.

import java.io.IOException;
import java.util.*;
import org.apache.kafka.common.message.ApiMessageType;

final class GroupMeanings {
    private final World world;

    GroupMeanings(World world) { this.world = world; }

    private static Map<String, Object> struct(Object... namesAndValues) { return Messages.struct(namesAndValues); }
    private static List<Object> list(Object... values) { return Messages.list(values); }

    /** Null where the API is of another kind. */
    List<World.Meaning> of(ApiMessageType api, int version) throws IOException {
        return switch (api) {
            case FIND_COORDINATOR -> findCoordinator();
            case JOIN_GROUP -> join(version);
            case SYNC_GROUP -> sync(version);
            case HEARTBEAT -> heartbeat(version);
            case LEAVE_GROUP -> leave(version);
            case OFFSET_COMMIT -> commit(version);
            case OFFSET_FETCH -> fetch();
            case OFFSET_DELETE -> delete();
            case DESCRIBE_GROUPS -> describe(version);
            case LIST_GROUPS -> listGroups(version);
            case DELETE_GROUPS -> deleteGroups();
            default -> null;
        };
    }

    /** The name of a static member, for versions that can say it. */
    private String instance(int version, int since) { return version >= since ? world.fresh("instance") : null; }

    /** `struct` with one more value, or another one. */
    private static Map<String, Object> with(Map<String, Object> struct, String name, Object value) {
        var changed = new LinkedHashMap<>(struct);
        changed.put(name, value);
        return changed;
    }

    private List<World.Meaning> findCoordinator() throws IOException {
        String one = world.fresh("group"), two = world.fresh("group");
        world.find(one);
        var here = struct("error_code", World.NONE, "node_id", world.node, "host", world.host, "port", world.port);
        return List.of(new World.Meaning(
            struct("key", one, "key_type", 0, "coordinator_keys", list(one, two)),
            struct("throttle_time_ms", 0, "error_code", World.NONE, "node_id", world.node, "host", world.host,
                "port", world.port, "coordinators", World.inAnyOrder(with(here, "key", one), with(here, "key", two)))));
    }

    private List<World.Meaning> join(int version) throws IOException {
        String group = world.fresh("group"), instance = instance(version, 5);
        world.find(group);
        // A member without a name must come back with an id from version 4 on.
        String id = version >= 4 && instance == null ? world.memberId(version, group) : "";
        var own = World.is("the member's id", found -> !"".equals(found) && (id.isEmpty() || id.equals(found)));
        var joined = struct("error_code", World.NONE, "generation_id", 1, "protocol_type", "consumer",
            "protocol_name", "range", "leader", own, "skip_assignment", false, "member_id", own, "members", list(struct(
                "member_id", own, "group_instance_id", instance, "metadata", World.subscription("for range"))));
        List<World.Meaning> meanings = new ArrayList<>();
        meanings.add(new World.Meaning(world.joinOf(group, id, instance), joined));
        String other = world.fresh("group");
        meanings.add(new World.Meaning(
            with(world.joinOf(other, "", instance), "session_timeout_ms", 1),
            struct("error_code", World.INVALID_SESSION_TIMEOUT)));
        if (version >= 5) {
            String dynamic = world.memberId(version, other);
            meanings.add(new World.Meaning(world.joinOf(other, dynamic, null),
                struct("error_code", World.NONE, "member_id", dynamic, "leader", dynamic)));
        }
        return meanings;
    }

    private List<World.Meaning> sync(int version) throws IOException {
        World.Member member = world.joined(instance(version, 3));
        var asked = world.syncOf(member);
        return List.of(
            new World.Meaning(with(asked, "generation_id", member.generation() + 1),
                struct("error_code", World.ILLEGAL_GENERATION)),
            new World.Meaning(asked, struct("error_code", World.NONE, "protocol_type", "consumer", "protocol_name", "range",
                "assignment", Messages.bytes("its share"))));
    }

    private List<World.Meaning> heartbeat(int version) throws IOException {
        World.Member member = world.synced(instance(version, 3));
        var asked = struct("group_id", member.group(), "generation_id", member.generation(), "member_id", member.id(),
            "group_instance_id", member.instance());
        return List.of(
            new World.Meaning(asked, struct("throttle_time_ms", 0, "error_code", World.NONE)),
            new World.Meaning(with(asked, "generation_id", member.generation() + 1),
                struct("error_code", World.ILLEGAL_GENERATION)),
            new World.Meaning(with(with(asked, "member_id", "nobody"), "group_instance_id", null),
                struct("error_code", World.UNKNOWN_MEMBER_ID)));
    }

    private List<World.Meaning> leave(int version) throws IOException {
        World.Member member = world.synced(instance(version, 3));
        var one = struct("member_id", member.id(), "group_instance_id", member.instance());
        var gone = struct("groups", list(struct("group_state", "Empty", "members", list())));
        return List.of(new World.Meaning(
            struct("group_id", member.group(), "member_id", member.id(), "members", list(one)),
            struct("error_code", World.NONE, "members", list(with(one, "error_code", World.NONE))),
            () -> World.expect(world.wire.ask(ApiMessageType.DESCRIBE_GROUPS, 6, struct("groups", list(member.group()))),
                gone, "left")));
    }

    private List<World.Meaning> commit(int version) throws IOException {
        World.Topic topic = world.topic();
        World.Member member = world.synced(instance(version, 7));
        var done = struct("partition_index", World.PARTITION, "error_code", World.NONE);
        var kept = struct("partition_index", World.PARTITION, "error_code", World.NONE, "committed_offset", 42,
            "committed_leader_epoch", version >= 6 ? topic.epoch() : -1, "metadata", "a note");
        return List.of(new World.Meaning(world.commitOf(member, topic),
            struct("topics", list(struct("name", topic.name(), "partitions", list(done)))),
            () -> world.expectOffset(member.group(), topic, kept)));
    }

    private List<World.Meaning> fetch() throws IOException {
        World.Topic topic = world.topic();
        String group = world.groupWithOffset(topic);
        var topics = list(struct("name", topic.name(), "partition_indexes", list(World.PARTITION)));
        var kept = struct("partition_index", World.PARTITION, "committed_offset", 42, "committed_leader_epoch", topic.epoch(),
            "metadata", "a note", "error_code", World.NONE);
        var found = list(struct("name", topic.name(), "partitions", list(kept)));
        return List.of(new World.Meaning(
            struct("group_id", group, "topics", topics, "require_stable", true,
                "groups", list(struct("group_id", group, "member_id", null, "member_epoch", -1, "topics", topics))),
            struct("error_code", World.NONE, "topics", found,
                "groups", list(struct("group_id", group, "topics", found, "error_code", World.NONE)))));
    }

    private List<World.Meaning> delete() throws IOException {
        World.Topic topic = world.topic();
        String group = world.groupWithOffset(topic);
        var done = struct("partition_index", World.PARTITION, "error_code", World.NONE);
        return List.of(new World.Meaning(
            struct("group_id", group, "topics",
                list(struct("name", topic.name(), "partitions", list(struct("partition_index", World.PARTITION))))),
            struct("error_code", World.NONE, "topics", list(struct("name", topic.name(), "partitions", list(done)))),
            () -> world.expectOffset(group, topic, struct("committed_offset", -1, "error_code", World.NONE))));
    }

    private List<World.Meaning> describe(int version) throws IOException {
        World.Member member = world.synced(world.fresh("instance"));
        String missing = world.fresh("missing");
        var one = struct("member_id", member.id(), "group_instance_id", member.instance(), "client_id", Wire.CLIENT_ID,
            "client_host", World.is("an address", host -> ((String) host).startsWith("/")),
            "member_metadata", World.subscription("for range"), "member_assignment", Messages.bytes("its share"));
        var found = struct("error_code", World.NONE, "group_id", member.group(), "group_state", "Stable",
            "protocol_type", "consumer", "protocol_data", "range", "members", list(one));
        var dead = struct("error_code", version >= 6 ? World.GROUP_ID_NOT_FOUND : World.NONE, "group_id", missing,
            "group_state", "Dead", "members", list());
        var groups = list(member.group(), missing);
        return List.of(
            new World.Meaning(struct("groups", groups, "include_authorized_operations", true),
                struct("groups", World.inAnyOrder(with(found, "authorized_operations", World.ASKED_FOR), dead))),
            new World.Meaning(struct("groups", groups, "include_authorized_operations", false),
                struct("groups", World.inAnyOrder(with(found, "authorized_operations", World.NOT_ASKED_FOR), dead))));
    }

    private List<World.Meaning> listGroups(int version) throws IOException {
        World.Member member = world.synced(null);
        String empty = world.groupWithOffset(world.topic());
        var stable = struct("group_id", member.group(), "protocol_type", "consumer", "group_state", "Stable",
            "group_type", "classic");
        var without = struct("group_id", empty);
        boolean canFilter = version >= 4;
        List<World.Meaning> meanings = new ArrayList<>();
        meanings.add(new World.Meaning(struct("states_filter", list("Stable"), "types_filter", list("classic")),
            struct("error_code", World.NONE, "groups", World.is(stable + (canFilter ? " and not " : " and ") + without,
                groups -> World.among(stable).test().test(groups) && World.among(without).test().test(groups) != canFilter))));
        if (version >= 5) meanings.add(new World.Meaning(
            struct("states_filter", list(), "types_filter", list("consumer")),
            struct("error_code", World.NONE, "groups",
                World.is("a list without " + stable, groups -> !World.among(stable).test().test(groups)))));
        return meanings;
    }

    private List<World.Meaning> deleteGroups() throws IOException {
        World.Topic topic = world.topic();
        String group = world.groupWithOffset(topic), missing = world.fresh("missing");
        var done = struct("group_id", group, "error_code", World.NONE);
        var unknown = struct("group_id", missing, "error_code", World.GROUP_ID_NOT_FOUND);
        return List.of(new World.Meaning(struct("groups_names", list(group, missing)),
            struct("results", World.inAnyOrder(done, unknown)),
            () -> world.expectOffset(group, topic, struct("committed_offset", -1))));
    }
}
