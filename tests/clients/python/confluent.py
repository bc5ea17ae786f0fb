"""confluent-kafka: librdkafka as Python programs have it."""

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient, NewTopic

from scenarios import DEADLINE, REPLICAS, Adapter, AlreadyExists, Record, main


def to_record(message):
    return Record(
        key=message.key(),
        value=message.value(),
        headers=message.headers() or [],
        timestamp=message.timestamp()[1],
        partition=message.partition(),
        offset=message.offset(),
    )


class Member:
    def __init__(self, consumer):
        self.consumer = consumer

    def poll(self):
        messages = self.consumer.consume(500, 0.1)
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
        return [to_record(m) for m in messages]

    def assignment(self):
        return {tp.partition for tp in self.consumer.assignment()}

    def commit(self):
        self.consumer.commit(asynchronous=False)

    def close(self):
        self.consumer.close()


class Balanced(Member):
    """Polls one record after the other, so that what it has read is what it commits when partitions are revoked."""

    def __init__(self, consumer, topic):
        super().__init__(consumer)
        self.assignments, self.revoked = 0, []
        consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked)

    def _assigned(self, _, partitions):
        self.assignments += bool(partitions)

    def _revoked(self, _, partitions):
        self.revoked += [tp.partition for tp in partitions]
        self.commit()

    def commit(self):
        try:
            super().commit()
        except KafkaException as error:
            if error.args[0].code() != KafkaError._NO_OFFSET:  # Nothing read since the last time.
                raise

    def poll(self):
        read, message = [], self.consumer.poll(0.1)
        while message is not None:
            if message.error():
                raise KafkaException(message.error())
            read.append(to_record(message))
            message = self.consumer.poll(0) if len(read) < 500 else None
        return read

    def close(self):
        self.commit()
        revoked = list(self.revoked)
        super().close()
        self.revoked = revoked  # What it gives up at its end was not asked for by others.


class Confluent(Adapter):
    name = "confluent"

    def __init__(self, bootstrap):
        self.config = {"bootstrap.servers": bootstrap}
        self.admin = AdminClient(self.config)

    def create(self, topic, partitions):
        future = self.admin.create_topics([NewTopic(topic, partitions, REPLICAS)])[topic]
        try:
            future.result(DEADLINE)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                raise AlreadyExists from error
            raise

    def delete(self, topic):
        self.admin.delete_topics([topic])[topic].result(DEADLINE)

    def partitions(self, topic):
        found = self.admin.list_topics(timeout=DEADLINE).topics.get(topic)
        return None if found is None or found.error else len(found.partitions)

    def produce(self, topic, records, codec="none", idempotent=False):
        config = {"compression.type": codec, "enable.idempotence": idempotent, "linger.ms": 20}
        producer = Producer(self.config | config)
        errors, acked = [], []

        def delivered(error, message):
            (errors if error else acked).append(error or message)

        for record in records:
            more = {}
            if record.partition is not None:
                more["partition"] = record.partition
            if record.timestamp is not None:
                more["timestamp"] = record.timestamp
            producer.produce(topic, record.value, record.key, headers=record.headers, on_delivery=delivered, **more)
            producer.poll(0)
        producer.flush(DEADLINE)
        if errors or len(acked) != len(records):
            raise AssertionError(f"{len(acked)} of {len(records)} acknowledged, errors {errors[:1]}")

    def consumer(self, group="unused", **more):
        config = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        return Consumer(self.config | config | more)

    def take(self, consumer, count):
        read, until = [], time.monotonic() + DEADLINE
        while len(read) < count:
            if time.monotonic() > until:
                raise AssertionError(f"{len(read)} of {count} records read")
            for message in consumer.consume(count - len(read), 0.2):
                if message.error():
                    raise KafkaException(message.error())
                read.append(to_record(message))
        return read

    def read(self, topic, starts, count):
        consumer = self.consumer()
        consumer.assign([TopicPartition(topic, p, offset) for p, offset in starts.items()])
        try:
            return self.take(consumer, count)
        finally:
            consumer.close()

    def seek_and_read(self, topic, offset, count):
        consumer = self.consumer()
        consumer.assign([TopicPartition(topic, 0, 0)])
        try:
            self.take(consumer, 1)
            consumer.seek(TopicPartition(topic, 0, offset))
            return self.take(consumer, count)
        finally:
            consumer.close()

    def bounds(self, topic):
        consumer = self.consumer()
        try:
            return {
                p: consumer.get_watermark_offsets(TopicPartition(topic, p), DEADLINE)
                for p in range(self.partitions(topic))
            }
        finally:
            consumer.close()

    def offset_at(self, topic, timestamp):
        consumer = self.consumer()
        try:
            found = consumer.offsets_for_times([TopicPartition(topic, 0, timestamp)], DEADLINE)[0]
        finally:
            consumer.close()
        return None if found.offset < 0 else found.offset

    def member(self, group, topic):
        consumer = self.consumer(group, **{"session.timeout.ms": 10_000, "heartbeat.interval.ms": 500})
        consumer.subscribe([topic])
        return Member(consumer)

    def balanced(self, group, topic, instance=None, cooperative=False):
        more = {"partition.assignment.strategy": "cooperative-sticky" if cooperative else "range"}
        if instance is not None:
            more["group.instance.id"] = instance
        return Balanced(self.consumer(group, **{"session.timeout.ms": 10_000, "heartbeat.interval.ms": 500} | more), topic)

    def committed(self, group, topic):
        wanted = [ConsumerGroupTopicPartitions(group)]
        found = self.admin.list_consumer_group_offsets(wanted)[group].result(DEADLINE)
        return {tp.partition: tp.offset for tp in found.topic_partitions if tp.topic == topic}

    def groups(self):
        return [g.group_id for g in self.admin.list_consumer_groups().result(DEADLINE).valid]

    def describe(self, group):
        found = self.admin.describe_consumer_groups([group])[group].result(DEADLINE)
        return found.state.name, len(found.members)


main(Confluent)
