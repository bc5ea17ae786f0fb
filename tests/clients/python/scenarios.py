"""The scenarios, once for all Python clients: what is done and what must come back.

A client's program gives an adapter (see `Adapter`); nothing here knows a client. Every check of a scenario prints one
line of JSON, also when it fails or when the client has no such feature. ../README.md names scenarios, checks and data.
"""

import json
import os
import sys
import threading
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field

RECORDS = 1000
KEYS = 50
PARTITIONS = 3
REPLICAS = int(os.environ.get("CHRONIK_TEST_REPLICAS", "1"))
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
DEADLINE = 30.0
TIME_BASE = 1_690_000_000_000
LARGE = 900 * 1024


class Absent(Exception):
    """The client has no such feature; the message says which."""


class AlreadyExists(Exception):
    """What `Adapter.create` raises for a topic that is there."""


@dataclass
class Record:
    key: bytes | None
    value: bytes | None
    headers: list = field(default_factory=list)
    timestamp: int | None = None
    partition: int | None = None
    offset: int | None = None


class Adapter:
    """What a client's program implements; every call blocks until it is done or raises."""

    name = ""

    def create(self, topic, partitions): ...
    def delete(self, topic): ...
    def partitions(self, topic):
        """How many partitions the topic has; None where there is none."""
    def produce(self, topic, records, codec="none", idempotent=False): ...
    def read(self, topic, starts, count):
        """Assigns the partitions of `starts` at their offsets and reads `count` records."""
    def seek_and_read(self, topic, offset, count):
        """Assigns partition 0 from its beginning, reads a record, seeks to `offset`, reads `count` records."""
    def bounds(self, topic):
        """{partition: (earliest, latest)}."""
    def offset_at(self, topic, timestamp):
        """The offset in partition 0; None where no record is that young."""
    def member(self, group, topic):
        """A subscribed consumer with poll() -> records, assignment() -> partitions, commit(), close()."""
    def balanced(self, group, topic, instance=None, cooperative=False):
        """The same, a static member of this name or one that rebalances cooperatively. It commits what it has read before
        it gives partitions up and before it closes, and has `assignments`, how often it was assigned something, and
        `revoked`, a list of what it was told to give up."""
    def committed(self, group, topic):
        """{partition: offset}."""
    def groups(self): ...
    def describe(self, group):
        """(state, number of members)."""


def expect(found, wanted, what):
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r:.300}, not {wanted!r:.300}")


def wait_until(what, probe):
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        found = probe()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {DEADLINE} s")


def sample(codec, count=RECORDS):
    return [
        Record(
            key=b"key-%02d" % (n % KEYS),
            value=b"%s-%04d-" % (codec.encode(), n) + b"x" * 100,
            headers=[("n", str(n).encode()), ("empty", b"")],
        )
        for n in range(count)
    ]


def compare(codec, read, count=RECORDS):
    """All of `sample`, each once, in the order of its key, with offsets that rise by one from 0."""
    wanted = {record.value: record for record in sample(codec, count)}
    next_offset, partition_of, last_of = defaultdict(int), {}, {}
    for record in read:
        expect(record.offset, next_offset[record.partition], f"offset in partition {record.partition}")
        next_offset[record.partition] += 1
        sent = wanted.pop(record.value, None)
        if sent is None:
            raise AssertionError(f"a record not sent, or read twice: {record.value!r:.60}")
        expect(record.key, sent.key, "key")
        expect(list(record.headers), sent.headers, "headers")
        expect(record.partition, partition_of.setdefault(record.key, record.partition), "partition of a key")
        if last_of.get(record.key, b"") >= record.value:
            raise AssertionError(f"out of order: {record.value!r:.60} after {last_of[record.key]!r:.60}")
        last_of[record.key] = record.value
    expect(len(wanted), 0, "records missing")
    expect(sorted(next_offset), list(range(PARTITIONS)), "partitions used")


class Run:
    def __init__(self, adapter):
        self.adapter = adapter

    def fresh(self, what):
        return f"{self.adapter.name}-{what}-{uuid.uuid4().hex[:8]}"

    def check(self, name, body):
        line = {"check": name, "result": "ok"}
        try:
            line.update(body() or {})
        except Absent as absent:
            line.update(result="absent", detail=str(absent))
        except Exception as error:  # A check that fails must not keep the others from running.
            line.update(result="failed", detail=f"{type(error).__name__}: {error}")
        print(json.dumps(line), flush=True)
        return line["result"] == "ok"

    def topic(self, what, partitions=PARTITIONS):
        topic = self.fresh(what)
        self.adapter.create(topic, partitions)
        wait_until(f"{topic} is there", lambda: self.adapter.partitions(topic) == partitions)
        return topic

    def topics(self):
        a, topic = self.adapter, self.fresh("life")

        def create():
            expect(a.partitions(topic), None, "partitions before it was created")
            a.create(topic, PARTITIONS)
            wait_until("the topic is there", lambda: a.partitions(topic) == PARTITIONS)

        def create_again():
            try:
                a.create(topic, PARTITIONS)
            except AlreadyExists:
                return
            raise AssertionError("a topic was created twice")

        def delete():
            a.delete(topic)
            wait_until("the topic is gone", lambda: a.partitions(topic) is None)

        self.check("topics.create", create)
        self.check("topics.create_again", create_again)
        self.check("topics.delete", delete)

    def records(self):
        a = self.adapter

        def round_trip(codec, idempotent):
            topic = self.topic(codec)
            sent_as = "none" if idempotent else codec
            a.produce(topic, sample(codec), codec=sent_as, idempotent=idempotent)
            compare(codec, a.read(topic, {p: 0 for p in range(PARTITIONS)}, RECORDS))
            return {"topic": topic}

        def shapes():
            topic = self.topic("shapes", 1)
            sent = [
                Record(None, b"no key"),
                Record(b"no value", None),
                Record(b"", b""),
                Record(b"k", b"v", [("h", b"1"), ("h", b"2"), ("bytes", b"\x00\xff"), ("empty", b"")]),
            ]
            for record in sent:
                record.partition = 0
            a.produce(topic, sent)
            shape = lambda r: (r.key, r.value, list(r.headers))
            expect([shape(r) for r in a.read(topic, {0: 0}, len(sent))], [shape(r) for r in sent], "records")

        def large():
            topic = self.topic("large", 1)
            value = (b"0123456789abcdef" * (LARGE // 16 + 1))[:LARGE]
            a.produce(topic, [Record(b"large", value, partition=0)])
            read = a.read(topic, {0: 0}, 1)[0]
            expect((len(read.value), read.value == value), (LARGE, True), "the large record")

        for codec in CODECS:
            self.check(f"records.{codec}", lambda: round_trip(codec, False))
        self.check("records.idempotent", lambda: round_trip("idempotent", True))
        self.check("records.shapes", shapes)
        self.check("records.large", large)

    def offsets(self):
        a = self.adapter
        topic = None

        def listed():
            nonlocal topic
            topic = self.topic("offsets", 1)
            for start in range(0, 100, 10):
                batch = [
                    Record(b"k", b"%d" % n, timestamp=TIME_BASE + n * 1000, partition=0)
                    for n in range(start, start + 10)
                ]
                a.produce(topic, batch)
            expect(a.bounds(topic), {0: (0, 100)}, "earliest and latest")

        def by_time():
            asked = [-1, 4_500, 50_000, 98_001, 99_000, 99_001]
            found = [a.offset_at(topic, TIME_BASE + at) for at in asked]
            expect(found, [0, 5, 50, 99, 99, None], "offsets by time")

        def values(read):
            return [(r.offset, r.value, r.timestamp) for r in read]

        def wanted(first, count):
            return [(n, b"%d" % n, TIME_BASE + n * 1000) for n in range(first, first + count)]

        self.check("offsets.list", listed)
        self.check("offsets.by_time", by_time)
        self.check("offsets.seek", lambda: expect(values(a.seek_and_read(topic, 37, 63)), wanted(37, 63), "records"))

        def seek_time():
            at = a.offset_at(topic, TIME_BASE + 50_500)
            expect(values(a.seek_and_read(topic, at, 3)), wanted(51, 3), "records")

        self.check("offsets.seek_time", seek_time)

    def groups(self):
        a = self.adapter
        topic, group = None, self.fresh("group")

        def consume():
            nonlocal topic
            topic = self.topic("grouped")
            a.produce(topic, sample("none"))
            member = a.member(group, topic)
            try:
                read = []
                wait_until("all records consumed", lambda: read.extend(member.poll()) or len(read) >= RECORDS)
                compare("none", sorted(read, key=lambda r: (r.partition, r.offset)))
                member.commit()
            finally:
                member.close()

        def committed():
            ends = {p: latest for p, (_, latest) in a.bounds(topic).items()}
            expect(a.committed(group, topic), ends, "committed offsets")

        def resume():
            member = a.member(group, topic)
            try:
                read = []
                wait_until("an assignment", lambda: read.extend(member.poll()) or len(member.assignment()) == PARTITIONS)
                # Whatever is found before this record would have been read a second time.
                a.produce(topic, [Record(b"late", b"late", partition=1)])
                wait_until("the late record", lambda: read.extend(member.poll()) or read)
                expect([r.value for r in read], [b"late"], "records found again")
            finally:
                member.close()

        self.check("groups.consume", consume)
        self.check("groups.committed", committed)
        self.check("groups.resume", resume)
        self.two_members()

    def two_members(self):
        a = self.adapter
        topic, group = None, self.fresh("pair")
        members = []

        def share():
            nonlocal topic
            topic = self.topic("shared")
            members.extend(Polled(a.member(group, topic)) for _ in range(2))
            wait_until("both have partitions", lambda: spread([m.assigned for m in members]))
            owners = {p: index for index, m in enumerate(members) for p in m.assigned}
            a.produce(topic, sample("none"))
            wait_until("all records consumed", lambda: sum(len(m.read) for m in members) >= RECORDS)
            for index, member in enumerate(members):
                expect({owners[r.partition] for r in member.read}, {index}, "who read a partition")
            read = [r for m in members for r in m.read]
            compare("none", sorted(read, key=lambda r: (r.partition, r.offset)))

        def listed():
            if group not in a.groups():
                raise AssertionError("the group is not in the list")

        def described():
            state, count = a.describe(group)
            expect((str(state).lower(), count), ("stable", 2), "state and members")

        try:
            self.check("groups.share", share)
            self.check("groups.list", listed)
            self.check("groups.describe", described)
        finally:
            for member in members:
                member.close()


    def rebalances(self):
        self.check("rebalances.static", self.static_member)
        self.check("rebalances.cooperative", self.cooperative_members)

    def static_member(self):
        a, topic, group = self.adapter, self.topic("static"), self.fresh("static")
        records, members = sample("none"), []

        def begin(instance):
            members.append(Polled(a.balanced(group, topic, instance=instance)))
            return members[-1]

        def read():
            return [r for m in members for r in m.read]

        try:
            one, two = begin("one"), begin("two")
            wait_until("both have partitions", lambda: spread([one.assigned, two.assigned]))
            a.produce(topic, records[: RECORDS // 2])
            wait_until("half of the records", lambda: len(read()) >= RECORDS // 2)
            owned, before = set(two.assigned), one.member.assignments
            two.close()
            a.produce(topic, records[RECORDS // 2 :])
            again = begin("two")
            wait_until("the partitions are back", lambda: again.assigned == owned)
            wait_until("the other records", lambda: len(read()) >= RECORDS)
            expect((one.member.assignments, one.member.revoked), (before, []), "rebalances that the other saw")
            state, count = a.describe(group)
            expect((str(state).lower(), count), ("stable", 2), "state and members")
            compare("none", read())
        finally:
            for member in members:
                member.close()

    def cooperative_members(self):
        a, topic, group = self.adapter, self.topic("cooperative"), self.fresh("cooperative")
        records, members = sample("none"), []

        def begin():
            members.append(Polled(a.balanced(group, topic, cooperative=True)))
            return members[-1]

        try:
            one = begin()
            wait_until("the first has all", lambda: len(one.assigned) == PARTITIONS)
            a.produce(topic, records[:300])
            two = begin()
            for start in range(300, RECORDS, 100):
                a.produce(topic, records[start : start + 100])
            wait_until("both have partitions", lambda: spread([one.assigned, two.assigned]))
            wait_until("all records consumed", lambda: len(one.read) + len(two.read) >= RECORDS)
            expect(sorted(one.member.revoked), sorted(two.assigned), "what the first was told to give up")
            expect(two.member.revoked, [], "what the second was told to give up")
            compare("none", one.read + two.read)
        finally:
            for member in members:
                member.close()


def spread(assigned):
    """Whether every member has something, nobody the same, and together all partitions."""
    return all(assigned) and sum(map(len, assigned)) == PARTITIONS == len(set().union(*assigned))


class Polled:
    """A member of a group with a thread of its own, so that two can rebalance at once."""

    def __init__(self, member):
        self.member, self.read, self.assigned, self.error = member, [], set(), None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stopping.is_set():
            self.read.extend(self.member.poll())
            self.assigned = set(self.member.assignment())
        self.member.close()

    def close(self):
        """Does nothing the second time."""
        self.stopping.set()
        self.thread.join(DEADLINE)


def main(adapter_class):
    bootstrap, scenarios = sys.argv[1], sys.argv[2:]
    run = Run(adapter_class(bootstrap))
    for scenario in scenarios:
        getattr(run, scenario)()
    print(json.dumps({"done": scenarios}), flush=True)
    # Threads of a client that hangs must not keep the program.
    sys.stdout.flush()
    os._exit(0)
