#!/usr/bin/env python3
"""What do segments cost a produce? Latency beside segments that are written and compacted, and without.

    python3 -m venv v && v/bin/pip install confluent-kafka
    v/bin/python perf/beside-segments.py --bin target/release --rounds 10 --seconds 60 --out out

Two settings of one chronik-server take turns (A B, B A, ...), each time with a fresh data directory. A writes no segments
(`wal.indexing_enabled = false`); on B every full file of the log becomes segments at once and the cleaner never rests. On both
`chronik-bench produce` sends 1,000 records of 1 KiB a second to 3 partitions, acks=all, while a librdkafka producer writes 3,000
a second with one of 50,000 keys to a compacted topic of 4 partitions. The latencies of all rounds of a side are one pool; the
rounds are drawn anew 2,000 times for the interval. Let nothing else run on the machine meanwhile.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

BOTH = """data_dir = "{data}"
kafka_addr = "127.0.0.1:{port}"
wal.file_bytes = 16777216
"""
SIDES = {
    "A": "wal.indexing_enabled = false\n",
    "B": "wal.indexing_interval = 1\nkafka.log_cleaner_backoff_ms = 100\n",
}
COMPACTED = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01"}
RECORDS_PER_S, KEYS, VALUE_BYTES = 3_000, 50_000, 1_024
WARMUP_SECONDS = 8
RESAMPLES = 2_000
PERCENTILES = (50.0, 99.0, 99.9)


def write_keys(bootstrap):
    """Writes to the compacted topic until SIGTERM."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    for made in admin.create_topics([NewTopic("compacted", 4, 1, config=COMPACTED)]).values():
        made.result(timeout=10)
    failed, going = [], [True]
    signal.signal(signal.SIGTERM, lambda *_: going.clear())
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "enable.idempotence": True})
    values = [os.urandom(VALUE_BYTES) for _ in range(64)]
    keys = random.Random(1)
    sent, began = 0, time.monotonic()
    print("writing", flush=True)
    while going:
        while sent < (time.monotonic() - began) * RECORDS_PER_S:
            key = str(keys.randrange(KEYS))
            producer.produce("compacted", values[sent % 64], key=key, on_delivery=lambda e, _: e and failed.append(e))
            sent += 1
        producer.poll(0.01)
    left = producer.flush(10)
    sys.exit(f"{len(failed)} of {sent} failed, {left} unanswered" if failed or left else 0)


def wait_listening(port, server):
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.02)
    sys.exit("chronik-server did not start; see its log")


def one_round(args, side, number):
    """One side once: its latencies go to OUT/SIDE-NUMBER.hgrm."""
    to = args.out / f"{side}-{number}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = pathlib.Path(tempfile.mkdtemp(prefix="beside-segments-", dir=args.data_dir))
    processes = []
    try:
        config = home / "server.toml"
        config.write_text(BOTH.format(data=home / "data", port=port) + SIDES[side])
        with open(f"{to}.log", "w") as log:
            server = subprocess.Popen([args.bin / "chronik-server", "--config", config], stdout=log, stderr=log)
        processes.append(server)
        wait_listening(port, server)
        bootstrap = f"127.0.0.1:{port}"
        writer = subprocess.Popen([sys.executable, __file__, "--write-keys", bootstrap], stdout=subprocess.PIPE, text=True)
        processes.append(writer)
        if writer.stdout.readline() != "writing\n":
            sys.exit("the writer of the compacted topic failed")
        bench = [args.bin / "chronik-bench", "produce", "--bootstrap", bootstrap, "--rate", "1000", "--json"]
        bench += ["--seconds", str(args.seconds), "--warmup-seconds", str(WARMUP_SECONDS), "--hgrm", f"{to}.hgrm"]
        ran = subprocess.run(bench, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        report = json.loads(ran.stdout)
        with urllib.request.urlopen(f"http://{bootstrap}/metrics") as metrics:
            pathlib.Path(f"{to}.metrics").write_bytes(metrics.read())
        writer.terminate()
        if writer.wait(20) != 0:
            sys.exit("the writer of the compacted topic failed")
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()
        shutil.rmtree(home)
    if report["errors"] + report["unanswered"] + report["unsent"] > 0:
        sys.exit(f"round {number} of {side} had errors: {report['first_error']}")
    latency, cores = report["latency_ms"], report["cores"]
    shown = [f"{latency[name]:8.2f}" for name in ("p50_ms", "p99_ms", "p99_9_ms", "max_ms")]
    print(side, number, *shown, f"stolen {cores['stolen']:.3f} load {cores['load_average']:.1f}", flush=True)


def values_of(path):
    """The (value, count) rows of an HdrHistogram text."""
    rows, before = [], 0
    for line in open(path):
        fields = line.split()
        if len(fields) >= 3 and fields[0][0].isdigit():
            value, total = float(fields[0]), int(fields[2])
            rows.append((value, total - before))
            before = total
    return rows


def percentiles(rounds):
    """Of the values of all rounds together."""
    rows = sorted(row for one in rounds for row in one)
    total = sum(count for _, count in rows)
    found, seen = [], 0
    for value, count in rows:
        seen += count
        while len(found) < len(PERCENTILES) and seen >= total * PERCENTILES[len(found)] / 100:
            found.append(value)
    return found


def report(out, rounds):
    pools = {side: [values_of(out / f"{side}-{number}.hgrm") for number in range(1, rounds + 1)] for side in SIDES}
    a, b = percentiles(pools["A"]), percentiles(pools["B"])
    draw, ratios = random.Random(1), []
    for _ in range(RESAMPLES):
        chosen = [draw.randrange(rounds) for _ in range(rounds)]
        pair = [percentiles([pools[side][number] for number in chosen]) for side in SIDES]
        ratios.append([later / first for first, later in zip(*pair)])
    print(f"\npooled over {rounds} pairs, ms\n{'':8}{'A':>8}{'B':>8}{'B/A':>8}  95 %")
    for at, name in enumerate(PERCENTILES):
        spread = sorted(ratio[at] for ratio in ratios)
        low, high = spread[RESAMPLES * 25 // 1000], spread[RESAMPLES * 975 // 1000]
        print(f"p{name:<7g}{a[at]:8.2f}{b[at]:8.2f}{b[at] / a[at]:8.2f}  {low:.2f}-{high:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/release"), help="chronik-server and chronik-bench")
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("/var/tmp"), help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=60, help="measured time of each round of each side")
    parser.add_argument("--out", type=pathlib.Path, help="a new directory for distributions, metrics and logs")
    parser.add_argument("--write-keys", metavar="HOST:PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write_keys:
        return write_keys(args.write_keys)
    if args.out is None or args.rounds < 1:
        parser.error("--out DIR is needed, and at least one round")
    args.out.mkdir(parents=True)
    for number in range(1, args.rounds + 1):
        for side in "AB" if number % 2 else "BA":
            one_round(args, side, number)
    report(args.out, args.rounds)


if __name__ == "__main__":
    main()
