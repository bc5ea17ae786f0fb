"""kafka-python: the client in pure Python."""

import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import TopicAlreadyExistsError

from scenarios import DEADLINE, REPLICAS, Adapter, AlreadyExists, Record, main


def to_record(message):
    return Record(
        key=message.key,
        value=message.value,
        headers=list(message.headers),
        timestamp=message.timestamp,
        partition=message.partition,
        offset=message.offset,
    )


def poll(consumer, timeout_ms=200, most=500):
    found = consumer.poll(timeout_ms=timeout_ms, max_records=most)
    return [to_record(m) for messages in found.values() for m in messages]


class Member:
    def __init__(self, consumer):
        self.consumer = consumer

    def poll(self):
        return poll(self.consumer)

    def assignment(self):
        return {tp.partition for tp in self.consumer.assignment()}

    def commit(self):
        self.consumer.commit()

    def close(self):
        self.consumer.close()


class KafkaPython(Adapter):
    name = "kafka-python"

    def __init__(self, bootstrap):
        self.bootstrap = bootstrap
        self.admin = KafkaAdminClient(bootstrap_servers=bootstrap)

    def create(self, topic, partitions):
        try:
            self.admin.create_topics([NewTopic(topic, partitions, REPLICAS)])
        except TopicAlreadyExistsError as error:
            raise AlreadyExists from error

    def delete(self, topic):
        self.admin.delete_topics([topic])

    def partitions(self, topic):
        if topic not in self.admin.list_topics():
            return None
        return len(self.admin.describe_topics([topic])[0]["partitions"])

    def produce(self, topic, records, codec="none", idempotent=False):
        producer = KafkaProducer(
            bootstrap_servers=self.bootstrap,
            compression_type=None if codec == "none" else codec,
            enable_idempotence=idempotent,
            acks="all",
            linger_ms=20,
        )
        try:
            futures = [
                producer.send(
                    topic,
                    value=record.value,
                    key=record.key,
                    headers=record.headers,
                    partition=record.partition,
                    timestamp_ms=record.timestamp,
                )
                for record in records
            ]
            producer.flush(DEADLINE)
            for future in futures:
                future.get(DEADLINE)
        finally:
            producer.close()

    def consumer(self, group=None, **more):
        return KafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            **more,
        )

    def take(self, consumer, count):
        read, until = [], time.monotonic() + DEADLINE
        while len(read) < count:
            if time.monotonic() > until:
                raise AssertionError(f"{len(read)} of {count} records read")
            read.extend(poll(consumer, most=count - len(read)))
        return read

    def read(self, topic, starts, count):
        consumer = self.consumer()
        try:
            consumer.assign([TopicPartition(topic, p) for p in starts])
            for p, offset in starts.items():
                consumer.seek(TopicPartition(topic, p), offset)
            return self.take(consumer, count)
        finally:
            consumer.close()

    def seek_and_read(self, topic, offset, count):
        consumer, partition = self.consumer(), TopicPartition(topic, 0)
        try:
            consumer.assign([partition])
            consumer.seek_to_beginning(partition)
            self.take(consumer, 1)
            consumer.seek(partition, offset)
            return self.take(consumer, count)
        finally:
            consumer.close()

    def bounds(self, topic):
        partitions = [TopicPartition(topic, p) for p in range(self.partitions(topic))]
        consumer = self.consumer()
        try:
            first, last = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        finally:
            consumer.close()
        return {tp.partition: (first[tp], last[tp]) for tp in partitions}

    def offset_at(self, topic, timestamp):
        consumer, partition = self.consumer(), TopicPartition(topic, 0)
        try:
            found = consumer.offsets_for_times({partition: timestamp})[partition]
        finally:
            consumer.close()
        return None if found is None else found.offset

    def member(self, group, topic):
        consumer = self.consumer(group, heartbeat_interval_ms=500, session_timeout_ms=10_000)
        consumer.subscribe([topic])
        return Member(consumer)

    def committed(self, group, topic):
        found = self.admin.list_group_offsets([group])[group]
        return {tp.partition: found[tp].offset for tp in found if tp.topic == topic}

    def groups(self):
        return [group["group_id"] for group in self.admin.list_groups()]

    def describe(self, group):
        found = self.admin.describe_groups([group])[group]
        return found["group_state"], len(found["members"])


main(KafkaPython)
