// kafka-clients, Apache Kafka's own. One source for all versions of the library: only what 2.8 and 4.1 both have.
//
// java -cp 'JARS/*' Client.java BOOTSTRAP SCENARIO...  prints one line of JSON for each check; see ../README.md.

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.function.*;
import java.util.stream.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.common.utils.AppInfoParser;

public class Client {
    static final int RECORDS = 1000, KEYS = 50, PARTITIONS = 3, LARGE = 900 * 1024;
    static final long DEADLINE_MS = 30_000, TIME_BASE = 1_690_000_000_000L;
    static final short REPLICAS = Short.parseShort(System.getenv().getOrDefault("CHRONIK_TEST_REPLICAS", "1"));
    static final List<String> CODECS = List.of("none", "gzip", "snappy", "lz4", "zstd");

    interface Body { String run() throws Exception; }
    interface Probe { boolean found() throws Exception; }
    /** A record that a list can compare. */
    record Shape(String key, String value, List<String> headers) {}

    final String bootstrap;
    final String name = "kafka-clients-" + AppInfoParser.getVersion();
    final Admin admin;

    Client(String bootstrap) {
        this.bootstrap = bootstrap;
        this.admin = Admin.create(config(Map.of()));
    }

    public static void main(String[] args) throws Exception {
        Client client = new Client(args[0]);
        List<String> scenarios = List.of(args).subList(1, args.length);
        for (String scenario : scenarios) {
            switch (scenario) {
                case "topics" -> client.topics();
                case "records" -> client.records();
                case "offsets" -> client.offsets();
                case "groups" -> client.groups();
                case "rebalances" -> client.rebalances();
                default -> throw new IllegalArgumentException(scenario);
            }
        }
        String quoted = scenarios.stream().map(Client::quote).collect(Collectors.joining(", "));
        System.out.println("{\"done\": [" + quoted + "]}");
        // Threads of a client that hangs must not keep the program.
        Runtime.getRuntime().halt(0);
    }

    // What checks are made of.

    static String quote(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') out.append('\\').append(c);
            else if (c < ' ' || c > '~') out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        return out.append('"').toString();
    }

    /** Runs one check; `body` gives the topic that the harness is to look at, or null. */
    static void check(String check, Body body) {
        String line = "{\"check\": " + quote(check);
        try {
            String topic = body.run();
            line += ", \"result\": \"ok\"" + (topic == null ? "" : ", \"topic\": " + quote(topic));
        } catch (Throwable error) { // A check that fails must not keep the others from running.
            Throwable cause = error instanceof ExecutionException && error.getCause() != null ? error.getCause() : error;
            line += ", \"result\": \"failed\", \"detail\": " + quote(cause.toString());
        }
        System.out.println(line + "}");
    }

    static void expect(Object found, Object wanted, String what) {
        if (!Objects.equals(found, wanted))
            throw new AssertionError(what + ": found " + found + ", not " + wanted);
    }

    static void waitUntil(String what, Probe probe) throws Exception {
        long until = System.currentTimeMillis() + DEADLINE_MS;
        while (!probe.found()) {
            if (System.currentTimeMillis() > until) throw new AssertionError(what + ": not within " + DEADLINE_MS + " ms");
            Thread.sleep(20);
        }
    }

    static byte[] bytes(String text) { return text.getBytes(StandardCharsets.UTF_8); }
    static String text(byte[] bytes) { return bytes == null ? null : new String(bytes, StandardCharsets.ISO_8859_1); }

    static List<String> headers(Iterable<Header> headers) {
        List<String> found = new ArrayList<>();
        for (Header header : headers) found.add(header.key() + "=" + text(header.value()));
        return found;
    }

    static Shape shape(ConsumerRecord<byte[], byte[]> r) {
        return new Shape(text(r.key()), text(r.value()), headers(r.headers()));
    }

    static Shape shape(ProducerRecord<byte[], byte[]> r) {
        return new Shape(text(r.key()), text(r.value()), headers(r.headers()));
    }

    static List<ProducerRecord<byte[], byte[]>> sample(String topic, String codec) {
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (int n = 0; n < RECORDS; n++) {
            byte[] value = bytes(String.format("%s-%04d-", codec, n) + "x".repeat(100));
            List<Header> headers = List.of(new RecordHeader("n", bytes("" + n)), new RecordHeader("empty", new byte[0]));
            records.add(new ProducerRecord<>(topic, null, bytes(String.format("key-%02d", n % KEYS)), value, headers));
        }
        return records;
    }

    /** All of `sample`, each once, in the order of its key, with offsets that rise by one from 0. */
    static void compare(String codec, List<ConsumerRecord<byte[], byte[]>> read) {
        Map<String, Shape> wanted = new HashMap<>();
        sample("t", codec).forEach(r -> wanted.put(text(r.value()), shape(r)));
        Map<Integer, Long> nextOffset = new TreeMap<>();
        Map<String, Integer> partitionOf = new HashMap<>();
        Map<String, String> lastOf = new HashMap<>();
        for (ConsumerRecord<byte[], byte[]> record : read) {
            expect(record.offset(), nextOffset.getOrDefault(record.partition(), 0L), "offset in " + record.partition());
            nextOffset.merge(record.partition(), 1L, Long::sum);
            Shape found = shape(record);
            expect(found, wanted.remove(found.value()), "a record, sent once");
            partitionOf.putIfAbsent(found.key(), record.partition());
            expect(record.partition(), partitionOf.get(found.key()), "partition of " + found.key());
            String before = lastOf.put(found.key(), found.value());
            expect(before == null || before.compareTo(found.value()) < 0, true, "order of " + found.key());
        }
        expect(wanted.size(), 0, "records missing");
        expect(nextOffset.keySet(), Set.of(0, 1, 2), "partitions used");
    }

    // The client.

    Properties config(Map<String, Object> more) {
        Properties config = new Properties();
        config.put("bootstrap.servers", bootstrap);
        config.put("default.api.timeout.ms", (int) DEADLINE_MS);
        config.put("request.timeout.ms", (int) DEADLINE_MS);
        config.putAll(more);
        return config;
    }

    String fresh(String what) { return name + "-" + what + "-" + UUID.randomUUID().toString().substring(0, 8); }

    void create(String topic, int partitions) throws Exception {
        admin.createTopics(List.of(new NewTopic(topic, partitions, REPLICAS))).all().get();
    }

    /** How many partitions the topic has; -1 where there is none. No one call of the admin client is in all versions. */
    int partitions(String topic) throws Exception {
        if (!admin.listTopics().names().get().contains(topic)) return -1;
        try (var consumer = consumer(null)) {
            return consumer.partitionsFor(topic).size();
        }
    }

    String topic(String what, int partitions) throws Exception {
        String topic = fresh(what);
        create(topic, partitions);
        waitUntil(topic + " is there", () -> partitions(topic) == partitions);
        return topic;
    }

    void produce(List<ProducerRecord<byte[], byte[]>> records, String codec, boolean idempotent) throws Exception {
        Properties config = config(Map.of("compression.type", codec, "enable.idempotence", idempotent, "acks", "all",
            "linger.ms", 20, "delivery.timeout.ms", (int) DEADLINE_MS + 1000));
        try (var producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (var record : records) sent.add(producer.send(record));
            producer.flush();
            for (var future : sent) future.get();
        }
    }

    KafkaConsumer<byte[], byte[]> consumer(String group) { return consumer(group, Map.of()); }

    KafkaConsumer<byte[], byte[]> consumer(String group, Map<String, Object> settings) {
        Map<String, Object> more = new HashMap<>(Map.of("auto.offset.reset", "earliest", "enable.auto.commit", false,
            "allow.auto.create.topics", false, "session.timeout.ms", 10_000, "heartbeat.interval.ms", 500));
        if (group != null) more.put("group.id", group);
        more.putAll(settings);
        return new KafkaConsumer<>(config(more), new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static List<ConsumerRecord<byte[], byte[]>> poll(KafkaConsumer<byte[], byte[]> consumer) {
        List<ConsumerRecord<byte[], byte[]>> read = new ArrayList<>();
        consumer.poll(Duration.ofMillis(200)).forEach(read::add);
        return read;
    }

    static List<ConsumerRecord<byte[], byte[]>> take(KafkaConsumer<byte[], byte[]> consumer, int count) throws Exception {
        List<ConsumerRecord<byte[], byte[]>> read = new ArrayList<>();
        waitUntil(count + " records", () -> read.addAll(poll(consumer)) && read.size() >= count || read.size() >= count);
        return read;
    }

    List<ConsumerRecord<byte[], byte[]>> read(String topic, int partitions, int count) throws Exception {
        try (var consumer = consumer(null)) {
            consumer.assign(IntStream.range(0, partitions).mapToObj(p -> new TopicPartition(topic, p)).toList());
            consumer.seekToBeginning(consumer.assignment());
            return take(consumer, count);
        }
    }

    Map<Integer, Long> offsets(String topic, OffsetSpec spec) throws Exception {
        Map<TopicPartition, OffsetSpec> asked = new HashMap<>();
        for (int p = 0; p < partitions(topic); p++) asked.put(new TopicPartition(topic, p), spec);
        Map<Integer, Long> found = new TreeMap<>();
        admin.listOffsets(asked).all().get().forEach((tp, info) -> found.put(tp.partition(), info.offset()));
        return found;
    }

    // The scenarios.

    void topics() {
        String topic = fresh("life");
        check("topics.create", () -> {
            expect(partitions(topic), -1, "partitions before it was created");
            create(topic, PARTITIONS);
            waitUntil("the topic is there", () -> partitions(topic) == PARTITIONS);
            return null;
        });
        check("topics.create_again", () -> {
            try {
                create(topic, PARTITIONS);
            } catch (ExecutionException error) {
                if (error.getCause() instanceof TopicExistsException) return null;
                throw error;
            }
            throw new AssertionError("a topic was created twice");
        });
        check("topics.delete", () -> {
            admin.deleteTopics(List.of(topic)).all().get();
            waitUntil("the topic is gone", () -> partitions(topic) == -1);
            return null;
        });
    }

    void records() {
        for (String codec : CODECS) check("records." + codec, () -> roundTrip(codec, codec, false));
        check("records.idempotent", () -> roundTrip("idempotent", "none", true));
        check("records.shapes", () -> {
            String topic = topic("shapes", 1);
            List<Header> headers = List.of(new RecordHeader("h", bytes("1")), new RecordHeader("h", bytes("2")),
                new RecordHeader("bytes", new byte[] {0, -1}), new RecordHeader("empty", new byte[0]),
                new RecordHeader("null", (byte[]) null));
            List<ProducerRecord<byte[], byte[]>> sent = List.of(
                new ProducerRecord<>(topic, 0, null, bytes("no key")),
                new ProducerRecord<>(topic, 0, bytes("no value"), null),
                new ProducerRecord<>(topic, 0, new byte[0], new byte[0]),
                new ProducerRecord<>(topic, 0, bytes("k"), bytes("v"), headers));
            produce(sent, "none", false);
            expect(read(topic, 1, sent.size()).stream().map(Client::shape).toList(),
                sent.stream().map(Client::shape).toList(), "records");
            return null;
        });
        check("records.large", () -> {
            String topic = topic("large", 1);
            byte[] value = new byte[LARGE];
            for (int n = 0; n < LARGE; n++) value[n] = (byte) ('a' + n % 23);
            produce(List.of(new ProducerRecord<>(topic, 0, bytes("large"), value)), "none", false);
            expect(Arrays.equals(read(topic, 1, 1).get(0).value(), value), true, "the large record is the same");
            return null;
        });
    }

    String roundTrip(String sample, String codec, boolean idempotent) throws Exception {
        String topic = topic(sample, PARTITIONS);
        produce(sample(topic, sample), codec, idempotent);
        compare(sample, read(topic, PARTITIONS, RECORDS));
        return topic;
    }

    void offsets() {
        String[] topic = new String[1];
        check("offsets.list", () -> {
            topic[0] = topic("offsets", 1);
            for (int start = 0; start < 100; start += 10) {
                produce(IntStream.range(start, start + 10)
                    .mapToObj(n -> new ProducerRecord<>(topic[0], 0, TIME_BASE + n * 1000L, bytes("k"), bytes("" + n)))
                    .toList(), "none", false);
            }
            expect(offsets(topic[0], OffsetSpec.earliest()), Map.of(0, 0L), "earliest");
            expect(offsets(topic[0], OffsetSpec.latest()), Map.of(0, 100L), "latest");
            return null;
        });
        check("offsets.by_time", () -> {
            List<Long> found = new ArrayList<>();
            try (var consumer = consumer(null)) {
                TopicPartition partition = new TopicPartition(topic[0], 0);
                for (long at : List.of(-1, 4_500, 50_000, 98_001, 99_000, 99_001)) {
                    var offset = consumer.offsetsForTimes(Map.of(partition, TIME_BASE + at)).get(partition);
                    found.add(offset == null ? -1 : offset.offset());
                    expect(offsets(topic[0], OffsetSpec.forTimestamp(TIME_BASE + at)).get(0), found.get(found.size() - 1),
                        "the admin client's answer for " + at);
                }
            }
            expect(found, List.of(0L, 5L, 50L, 99L, 99L, -1L), "offsets by time");
            return null;
        });
        check("offsets.seek", () -> seekAndExpect(topic[0], 37, 63));
        check("offsets.seek_time", () ->
            seekAndExpect(topic[0], offsets(topic[0], OffsetSpec.forTimestamp(TIME_BASE + 50_500)).get(0), 49));
    }

    String seekAndExpect(String topic, long offset, int count) throws Exception {
        try (var consumer = consumer(null)) {
            TopicPartition partition = new TopicPartition(topic, 0);
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            expect(take(consumer, 1).get(0).offset(), 0L, "first offset");
            consumer.seek(partition, offset);
            expect(consumer.position(partition), offset, "position");
            List<String> wanted = LongStream.range(100 - count, 100).mapToObj(n -> n + "@" + (TIME_BASE + n * 1000)).toList();
            List<String> found = take(consumer, count).stream().map(r -> text(r.value()) + "@" + r.timestamp()).toList();
            expect(found, wanted, "records");
        }
        return null;
    }

    void groups() {
        String[] topic = new String[1];
        String group = fresh("group");
        check("groups.consume", () -> {
            topic[0] = topic("grouped", PARTITIONS);
            produce(sample(topic[0], "none"), "none", false);
            try (var consumer = consumer(group)) {
                consumer.subscribe(List.of(topic[0]));
                compare("none", take(consumer, RECORDS));
                consumer.commitSync();
            }
            return null;
        });
        check("groups.committed", () -> {
            Map<Integer, Long> found = new TreeMap<>();
            admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get()
                .forEach((tp, offset) -> found.put(tp.partition(), offset.offset()));
            expect(found, offsets(topic[0], OffsetSpec.latest()), "committed offsets");
            return null;
        });
        check("groups.resume", () -> {
            try (var consumer = consumer(group)) {
                consumer.subscribe(List.of(topic[0]));
                List<ConsumerRecord<byte[], byte[]>> read = new ArrayList<>();
                waitUntil("an assignment", () -> {
                    read.addAll(poll(consumer));
                    return consumer.assignment().size() == PARTITIONS;
                });
                // Whatever is found before this record would have been read a second time.
                produce(List.of(new ProducerRecord<>(topic[0], 1, bytes("late"), bytes("late"))), "none", false);
                waitUntil("the late record", () -> read.addAll(poll(consumer)) || !read.isEmpty());
                expect(read.stream().map(r -> text(r.value())).toList(), List.of("late"), "records found again");
            }
            return null;
        });
        twoMembers();
    }

    /** A member with a thread of its own, so that two can rebalance at once. */
    class Member implements AutoCloseable {
        final List<ConsumerRecord<byte[], byte[]>> read = Collections.synchronizedList(new ArrayList<>());
        volatile Set<Integer> assigned = Set.of();
        volatile boolean stopping = false;
        final Thread thread;

        Member(String group, String topic) {
            thread = new Thread(() -> {
                try (var consumer = consumer(group)) {
                    consumer.subscribe(List.of(topic));
                    while (!stopping) {
                        read.addAll(poll(consumer));
                        assigned = consumer.assignment().stream().map(TopicPartition::partition).collect(Collectors.toSet());
                    }
                }
            });
            thread.setDaemon(true);
            thread.start();
        }

        public void close() throws InterruptedException {
            stopping = true;
            thread.join(DEADLINE_MS);
        }
    }

    static boolean spread(List<Member> members) {
        List<Integer> all = members.stream().flatMap(m -> m.assigned.stream()).sorted().toList();
        return all.equals(List.of(0, 1, 2)) && members.stream().noneMatch(m -> m.assigned.isEmpty());
    }

    void twoMembers() {
        String group = fresh("pair");
        List<Member> members = new ArrayList<>();
        check("groups.share", () -> {
            String topic = topic("shared", PARTITIONS);
            for (int n = 0; n < 2; n++) members.add(new Member(group, topic));
            waitUntil("both have partitions", () -> spread(members));
            List<Set<Integer>> owned = members.stream().map(m -> m.assigned).toList();
            produce(sample(topic, "none"), "none", false);
            waitUntil("all records consumed", () -> members.stream().mapToInt(m -> m.read.size()).sum() >= RECORDS);
            List<ConsumerRecord<byte[], byte[]>> read = new ArrayList<>();
            for (int n = 0; n < 2; n++) {
                List<ConsumerRecord<byte[], byte[]>> part = List.copyOf(members.get(n).read);
                expect(part.stream().map(ConsumerRecord::partition).collect(Collectors.toSet()), owned.get(n), "partitions read");
                read.addAll(part);
            }
            compare("none", read);
            return null;
        });
        check("groups.list", () -> {
            boolean there = admin.listConsumerGroups().all().get().stream().anyMatch(g -> g.groupId().equals(group));
            expect(there, true, "the group is in the list");
            return null;
        });
        check("groups.describe", () -> {
            var found = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
            expect(found.state().toString(), "Stable", "state");
            expect(found.members().size(), 2, "members");
            return null;
        });
        for (Member member : members) {
            try {
                member.close();
            } catch (InterruptedException error) {
                Thread.currentThread().interrupt();
            }
        }
    }

    /** A member that commits what it has read before it gives partitions up and before it closes, and counts rebalances. */
    class Balanced implements AutoCloseable, ConsumerRebalanceListener {
        final List<ConsumerRecord<byte[], byte[]>> read = Collections.synchronizedList(new ArrayList<>());
        final List<Integer> revoked = Collections.synchronizedList(new ArrayList<>());
        volatile Set<Integer> assigned = Set.of();
        volatile int generation = -1;
        volatile int rebalances = 0;
        volatile boolean stopping = false;
        final KafkaConsumer<byte[], byte[]> consumer;
        final Thread thread;

        Balanced(String group, String topic, Map<String, Object> settings) {
            consumer = consumer(group, settings);
            thread = new Thread(() -> {
                consumer.subscribe(List.of(topic), this);
                while (!stopping) {
                    read.addAll(poll(consumer));
                    assigned = consumer.assignment().stream().map(TopicPartition::partition).collect(Collectors.toSet());
                    generation = consumer.groupMetadata().generationId();
                }
                consumer.commitSync();
                consumer.close();
            });
            thread.setDaemon(true);
            thread.start();
        }

        public void onPartitionsAssigned(Collection<TopicPartition> partitions) { rebalances++; }

        public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
            // What it gives up at its end was not asked for by others.
            if (!stopping) partitions.forEach(tp -> revoked.add(tp.partition()));
            consumer.commitSync();
        }

        /** Does nothing the second time. */
        public void close() throws InterruptedException {
            stopping = true;
            thread.join(DEADLINE_MS);
        }
    }

    static boolean shared(Balanced one, Balanced two) {
        Set<Integer> all = new TreeSet<>(one.assigned);
        all.addAll(two.assigned);
        return one.assigned.size() + two.assigned.size() == PARTITIONS && all.size() == PARTITIONS
            && !one.assigned.isEmpty() && !two.assigned.isEmpty();
    }

    static List<ConsumerRecord<byte[], byte[]>> allRead(Balanced... members) {
        return Stream.of(members).flatMap(m -> List.copyOf(m.read).stream()).toList();
    }

    void rebalances() {
        check("rebalances.static", () -> {
            String topic = topic("static", PARTITIONS), group = fresh("static");
            var records = sample(topic, "none");
            try (var one = new Balanced(group, topic, Map.of("group.instance.id", "one"));
                 var two = new Balanced(group, topic, Map.of("group.instance.id", "two"))) {
                waitUntil("both have partitions", () -> shared(one, two));
                produce(records.subList(0, RECORDS / 2), "none", false);
                waitUntil("half of the records", () -> allRead(one, two).size() >= RECORDS / 2);
                Set<Integer> owned = two.assigned;
                int generation = one.generation, rebalances = one.rebalances;
                two.close();
                produce(records.subList(RECORDS / 2, RECORDS), "none", false);
                try (var again = new Balanced(group, topic, Map.of("group.instance.id", "two"))) {
                    waitUntil("the partitions are back", () -> again.assigned.equals(owned));
                    waitUntil("the other records", () -> allRead(one, two, again).size() >= RECORDS);
                    expect(one.rebalances, rebalances, "rebalances that the other saw");
                    expect(List.of(one.generation, again.generation), List.of(generation, generation), "generations");
                    var found = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
                    expect(found.state().toString(), "Stable", "state");
                    var names = found.members().stream().map(m -> m.groupInstanceId().orElse("")).sorted().toList();
                    expect(names, List.of("one", "two"), "instances");
                    compare("none", allRead(one, two, again));
                }
            }
            return null;
        });
        check("rebalances.cooperative", () -> {
            String topic = topic("cooperative", PARTITIONS), group = fresh("cooperative");
            var records = sample(topic, "none");
            Map<String, Object> cooperative =
                Map.of("partition.assignment.strategy", CooperativeStickyAssignor.class.getName());
            try (var one = new Balanced(group, topic, cooperative)) {
                waitUntil("the first has all", () -> one.assigned.size() == PARTITIONS);
                produce(records.subList(0, 300), "none", false);
                try (var two = new Balanced(group, topic, cooperative)) {
                    for (int start = 300; start < RECORDS; start += 100)
                        produce(records.subList(start, start + 100), "none", false);
                    waitUntil("both have partitions", () -> shared(one, two));
                    waitUntil("all records consumed", () -> allRead(one, two).size() >= RECORDS);
                    expect(Set.copyOf(one.revoked), two.assigned, "what the first was told to give up");
                    expect(one.revoked.size(), two.assigned.size(), "how often it was told");
                    expect(two.revoked, List.of(), "what the second was told to give up");
                    compare("none", allRead(one, two));
                }
            }
            return null;
        });
    }
}
