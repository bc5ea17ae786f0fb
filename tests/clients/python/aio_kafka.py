"""aiokafka: the asyncio client. Its calls run on a loop in a thread of its own."""

import asyncio
import threading
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from scenarios import DEADLINE, REPLICAS, Adapter, AlreadyExists, Record, main

TOPIC_ALREADY_EXISTS = 36


def to_record(message):
    return Record(
        key=message.key,
        value=message.value,
        headers=list(message.headers),
        timestamp=message.timestamp,
        partition=message.partition,
        offset=message.offset,
    )


async def poll(consumer, most=500):
    found = await consumer.getmany(timeout_ms=200, max_records=most)
    return [to_record(m) for messages in found.values() for m in messages]


async def take(consumer, count):
    read, until = [], time.monotonic() + DEADLINE
    while len(read) < count:
        if time.monotonic() > until:
            raise AssertionError(f"{len(read)} of {count} records read")
        read.extend(await poll(consumer, count - len(read)))
    return read


class Member:
    def __init__(self, run, consumer):
        self.run, self.consumer = run, consumer

    def poll(self):
        return self.run(poll(self.consumer))

    def assignment(self):
        return {tp.partition for tp in self.consumer.assignment()}

    def commit(self):
        self.run(self.consumer.commit())

    def close(self):
        self.run(self.consumer.stop())


class AioKafka(Adapter):
    name = "aiokafka"

    def __init__(self, bootstrap):
        self.bootstrap = bootstrap
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.admin = self.run(self.start_admin())

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(2 * DEADLINE)

    async def start_admin(self):
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        return admin

    def create(self, topic, partitions):
        answer = self.run(self.admin.create_topics([NewTopic(topic, partitions, REPLICAS)]))
        code, why = answer.topic_errors[0][1:3]
        if code == TOPIC_ALREADY_EXISTS:
            raise AlreadyExists
        if code:
            raise AssertionError(f"error {code}: {why}")

    def delete(self, topic):
        code = self.run(self.admin.delete_topics([topic])).topic_error_codes[0][1]
        if code:
            raise AssertionError(f"error {code}")

    def partitions(self, topic):
        if topic not in self.run(self.admin.list_topics()):
            return None
        return len(self.run(self.admin.describe_topics([topic]))[0]["partitions"])

    def produce(self, topic, records, codec="none", idempotent=False):
        async def send():
            producer = AIOKafkaProducer(
                bootstrap_servers=self.bootstrap,
                compression_type=None if codec == "none" else codec,
                enable_idempotence=idempotent,
                acks="all",
                linger_ms=20,
            )
            await producer.start()
            try:
                futures = [
                    await producer.send(
                        topic,
                        value=record.value,
                        key=record.key,
                        headers=record.headers,
                        partition=record.partition,
                        timestamp_ms=record.timestamp,
                    )
                    for record in records
                ]
                await asyncio.wait_for(asyncio.gather(*futures), DEADLINE)
            finally:
                await producer.stop()

        self.run(send())

    async def consumer(self, group=None, topics=(), **more):
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self.bootstrap,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            **more,
        )
        await consumer.start()
        return consumer

    def with_consumer(self, body):
        async def run():
            consumer = await self.consumer()
            try:
                return await body(consumer)
            finally:
                await consumer.stop()

        return self.run(run())

    def read(self, topic, starts, count):
        async def body(consumer):
            consumer.assign([TopicPartition(topic, p) for p in starts])
            for p, offset in starts.items():
                consumer.seek(TopicPartition(topic, p), offset)
            return await take(consumer, count)

        return self.with_consumer(body)

    def seek_and_read(self, topic, offset, count):
        async def body(consumer):
            partition = TopicPartition(topic, 0)
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            await take(consumer, 1)
            consumer.seek(partition, offset)
            return await take(consumer, count)

        return self.with_consumer(body)

    def bounds(self, topic):
        partitions = [TopicPartition(topic, p) for p in range(self.partitions(topic))]

        async def body(consumer):
            first = await consumer.beginning_offsets(partitions)
            last = await consumer.end_offsets(partitions)
            return {tp.partition: (first[tp], last[tp]) for tp in partitions}

        return self.with_consumer(body)

    def offset_at(self, topic, timestamp):
        async def body(consumer):
            partition = TopicPartition(topic, 0)
            found = (await consumer.offsets_for_times({partition: timestamp}))[partition]
            return None if found is None else found.offset

        return self.with_consumer(body)

    def member(self, group, topic):
        settings = {"heartbeat_interval_ms": 500, "session_timeout_ms": 10_000}
        return Member(self.run, self.run(self.consumer(group, [topic], **settings)))

    def committed(self, group, topic):
        found = self.run(self.admin.list_consumer_group_offsets(group))
        return {tp.partition: found[tp].offset for tp in found if tp.topic == topic}

    def groups(self):
        return [group[0] for group in self.run(self.admin.list_consumer_groups())]

    def describe(self, group):
        found = self.run(self.admin.describe_consumer_groups([group]))[0].groups[0]
        return found[2], len(found[5])


main(AioKafka)
