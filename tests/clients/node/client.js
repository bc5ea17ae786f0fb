// KafkaJS. It consumes in groups only: where the scenario `groups` was not asked for, records are written here and read
// back by the harness (which does so for every client).
//
// node client.js BOOTSTRAP SCENARIO...  prints one line of JSON for each check; see ../README.md. NODE_PATH names the
// directory of its modules.
'use strict'

const assert = require('node:assert')
const { randomBytes } = require('node:crypto')
const zlib = require('node:zlib')
const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = require('kafkajs')
const snappy = require('snappyjs')

const RECORDS = 1000
const KEYS = 50
const PARTITIONS = 3
const REPLICAS = Number(process.env.CHRONIK_TEST_REPLICAS ?? 1)
const LARGE = 900 * 1024
const TIME_BASE = 1_690_000_000_000
const DEADLINE_MS = 30_000
const CODECS = { none: 'None', gzip: 'GZIP', snappy: 'Snappy', lz4: 'LZ4', zstd: 'ZSTD' }

class Absent extends Error {}

// Codecs that KafkaJS leaves to others. Java's framing is not written: all brokers and clients read a plain block, too.
const XERIAL = Buffer.from([130, 83, 78, 65, 80, 80, 89, 0])
CompressionCodecs[CompressionTypes.Snappy] = () => ({
  compress: async (encoder) => Buffer.from(snappy.compress(encoder.buffer)),
  decompress: async (buffer) => {
    if (!buffer.subarray(0, 8).equals(XERIAL)) return Buffer.from(snappy.uncompress(buffer))
    const blocks = []
    for (let at = 16; at < buffer.length; ) {
      const length = buffer.readUInt32BE(at)
      blocks.push(Buffer.from(snappy.uncompress(buffer.subarray(at + 4, at + 4 + length))))
      at += 4 + length
    }
    return Buffer.concat(blocks)
  },
})
if (zlib.zstdCompressSync) {
  CompressionCodecs[CompressionTypes.ZSTD] = () => ({
    compress: async (encoder) => zlib.zstdCompressSync(encoder.buffer),
    decompress: async (buffer) => zlib.zstdDecompressSync(buffer),
  })
}

const [bootstrap, ...scenarios] = process.argv.slice(2)
const hasGroups = scenarios.includes('groups')
const kafka = new Kafka({
  clientId: 'kafkajs',
  brokers: bootstrap.split(','),
  logLevel: logLevel.NOTHING,
  requestTimeout: DEADLINE_MS,
  retry: { initialRetryTime: 50, retries: 6 },
})
const admin = kafka.admin()

const sleep = (ms) => new Promise((done) => setTimeout(done, ms))
const fresh = (what) => `kafkajs-${what}-${randomBytes(4).toString('hex')}`
const text = (bytes) => (bytes == null ? null : Buffer.from(bytes).toString('latin1'))

async function waitUntil(what, probe) {
  for (const until = Date.now() + DEADLINE_MS; Date.now() < until; await sleep(20)) {
    if (await probe()) return
  }
  throw new Error(`${what}: not within ${DEADLINE_MS} ms`)
}

async function check(name, body) {
  const line = { check: name, result: 'ok' }
  try {
    Object.assign(line, await body())
  } catch (error) {
    // A check that fails must not keep the others from running.
    const isAbsent = error instanceof Absent
    line.result = isAbsent ? 'absent' : 'failed'
    line.detail = isAbsent ? error.message : `${error.name}: ${error.message}`.slice(0, 600)
  }
  console.log(JSON.stringify(line))
}

// The client.

async function create(topic, partitions) {
  const topics = [{ topic, numPartitions: partitions, replicationFactor: REPLICAS }]
  return admin.createTopics({ topics, waitForLeaders: false })
}

// How many partitions the topic has; 0 where there is none.
async function partitions(topic) {
  if (!(await admin.listTopics()).includes(topic)) return 0
  return (await admin.fetchTopicMetadata({ topics: [topic] })).topics[0].partitions.length
}

async function newTopic(what, count = PARTITIONS) {
  const topic = fresh(what)
  await create(topic, count)
  await waitUntil(`${topic} is there`, async () => (await partitions(topic)) === count)
  return topic
}

async function produce(topic, messages, codec = 'none', idempotent = false) {
  const producer = kafka.producer({ idempotent, allowAutoTopicCreation: false })
  await producer.connect()
  try {
    await producer.send({ topic, messages, acks: -1, compression: CompressionTypes[CODECS[codec]] })
  } finally {
    await producer.disconnect()
  }
}

// A subscribed member that collects what it is given.
class Member {
  constructor(group, topic) {
    this.topic = topic
    this.read = []
    this.assigned = []
    this.consumer = kafka.consumer({
      groupId: group,
      allowAutoTopicCreation: false,
      heartbeatInterval: 500,
      sessionTimeout: 10_000,
      maxWaitTimeInMs: 200,
      retry: { initialRetryTime: 50, retries: 6 },
    })
    this.consumer.on('consumer.group_join', (event) => {
      this.assigned = event.payload.memberAssignment[topic] ?? []
    })
  }

  async start() {
    await this.consumer.connect()
    await this.consumer.subscribe({ topics: [this.topic], fromBeginning: true })
    await this.consumer.run({
      autoCommit: false,
      eachMessage: async ({ partition, message }) => {
        const headers = Object.entries(message.headers ?? {})
        this.read.push({ partition, offset: Number(message.offset), key: message.key, value: message.value, headers,
          timestamp: Number(message.timestamp) })
      },
    })
    return this
  }

  async commit() {
    const next = {}
    for (const { partition, offset } of this.read) next[partition] = Math.max(next[partition] ?? 0, offset + 1)
    await this.consumer.commitOffsets(Object.entries(next).map(([partition, offset]) => (
      { topic: this.topic, partition: Number(partition), offset: String(offset) })))
  }

  async close() {
    await this.consumer.disconnect()
  }
}

async function readAll(topic, count) {
  const member = await new Member(fresh('reader'), topic).start()
  try {
    await waitUntil(`${count} records`, () => member.read.length >= count)
    return member.read
  } finally {
    await member.close()
  }
}

// What is sent and what must come back.

function sample(codec) {
  return Array.from({ length: RECORDS }, (_, n) => ({
    key: `key-${String(n % KEYS).padStart(2, '0')}`,
    value: `${codec}-${String(n).padStart(4, '0')}-${'x'.repeat(100)}`,
    headers: { n: String(n), empty: '' },
  }))
}

function shape({ key, value, headers }) {
  const pairs = Array.isArray(headers) ? headers : Object.entries(headers ?? {})
  const flat = pairs.flatMap(([name, of]) => [of].flat().map((one) => `${name}=${text(one)}`))
  return JSON.stringify([text(key), text(value), flat])
}

// All of `sample`, each once, in the order of its key, with offsets that rise by one from 0.
function compare(codec, read) {
  const wanted = new Map(sample(codec).map((record) => [record.value, shape(record)]))
  const next = {}
  const partitionOf = {}
  const lastOf = {}
  for (const record of read) {
    const [key, value] = [text(record.key), text(record.value)]
    assert.strictEqual(record.offset, next[record.partition] ?? 0, `offset in partition ${record.partition}`)
    next[record.partition] = record.offset + 1
    assert.strictEqual(shape(record), wanted.get(value), 'a record, sent once')
    wanted.delete(value)
    partitionOf[key] ??= record.partition
    assert.strictEqual(record.partition, partitionOf[key], `partition of ${key}`)
    assert.ok((lastOf[key] ?? '') < value, `out of order: ${value.slice(0, 20)} after ${lastOf[key]}`)
    lastOf[key] = value
  }
  assert.strictEqual(wanted.size, 0, 'records missing')
  assert.deepStrictEqual(Object.keys(next).sort(), ['0', '1', '2'], 'partitions used')
}

const all = { topics, records, offsets, groups }

async function topics() {
  const topic = fresh('life')
  await check('topics.create', async () => {
    assert.strictEqual(await partitions(topic), 0)
    assert.strictEqual(await create(topic, PARTITIONS), true)
    await waitUntil('the topic is there', async () => (await partitions(topic)) === PARTITIONS)
  })
  // KafkaJS answers false for a topic that is there.
  await check('topics.create_again', async () => assert.strictEqual(await create(topic, PARTITIONS), false))
  await check('topics.delete', async () => {
    await admin.deleteTopics({ topics: [topic] })
    await waitUntil('the topic is gone', async () => (await partitions(topic)) === 0)
  })
}

async function records() {
  const roundTrip = async (name, codec, idempotent) => {
    const topic = await newTopic(name)
    await produce(topic, sample(name), codec, idempotent)
    if (hasGroups) compare(name, await readAll(topic, RECORDS))
    return { topic }
  }
  for (const codec of Object.keys(CODECS)) {
    await check(`records.${codec}`, async () => {
      if (codec === 'zstd' && !zlib.zstdCompressSync) throw new Absent('zstd needs Node.js 22.15 or a native module')
      if (codec === 'lz4') throw new Absent('lz4 needs a native module')
      return roundTrip(codec, codec, false)
    })
  }
  await check('records.idempotent', () => roundTrip('idempotent', 'none', true))
  const sendAndExpect = async (what, sent) => {
    const topic = await newTopic(what, 1)
    await produce(topic, sent)
    if (!hasGroups) throw new Absent('reading back needs consumer groups')
    assert.deepStrictEqual((await readAll(topic, sent.length)).map(shape), sent.map(shape))
  }
  await check('records.shapes', () => sendAndExpect('shapes', [
    { key: null, value: 'no key', partition: 0 },
    { key: 'no value', value: null, partition: 0 },
    { key: '', value: '', partition: 0 },
    { key: 'k', value: 'v', headers: { h: ['1', '2'], bytes: Buffer.from([0, 255]), empty: '' }, partition: 0 },
  ]))
  await check('records.large', () => sendAndExpect('large', [
    { key: 'large', value: Buffer.alloc(LARGE, '0123456789abcdef'), partition: 0 },
  ]))
}

async function offsets() {
  let topic
  await check('offsets.list', async () => {
    topic = await newTopic('offsets', 1)
    for (let start = 0; start < 100; start += 10) {
      await produce(topic, Array.from({ length: 10 }, (_, n) => (
        { key: 'k', value: String(start + n), timestamp: String(TIME_BASE + (start + n) * 1000), partition: 0 })))
    }
    const found = await admin.fetchTopicOffsets(topic)
    assert.deepStrictEqual(found.map(({ partition, low, high }) => [partition, low, high]), [[0, '0', '100']])
  })
  const offsetAt = async (at) => Number((await admin.fetchTopicOffsetsByTimestamp(topic, TIME_BASE + at))[0].offset)
  await check('offsets.by_time', async () => {
    const found = []
    for (const at of [-1, 4_500, 50_000, 98_001, 99_000, 99_001]) found.push(await offsetAt(at))
    // KafkaJS answers with the end where no record is that young.
    assert.deepStrictEqual(found, [0, 5, 50, 99, 99, 100])
  })
  const seekAndExpect = async (offset, count) => {
    if (!hasGroups) throw new Absent('seeking needs consumer groups')
    const member = await new Member(fresh('seek'), topic).start()
    try {
      await waitUntil('a record', () => member.read.length > 0)
      member.consumer.pause([{ topic }])
      await sleep(0)
      member.consumer.seek({ topic, partition: 0, offset: String(offset) })
      const before = member.read.length
      member.consumer.resume([{ topic }])
      const tail = () => member.read.slice(before).slice(-count)
      await waitUntil(`${count} records`, () => tail().length === count && tail()[0].offset === offset)
      const wanted = Array.from({ length: count }, (_, n) => [100 - count + n, TIME_BASE + (100 - count + n) * 1000])
      assert.deepStrictEqual(tail().map((r) => [r.offset, r.timestamp]), wanted)
      assert.deepStrictEqual(tail().map((r) => Number(text(r.value))), wanted.map(([n]) => n))
    } finally {
      await member.close()
    }
  }
  await check('offsets.seek', () => seekAndExpect(37, 63))
  await check('offsets.seek_time', async () => seekAndExpect(await offsetAt(50_500), 49))
}

async function groups() {
  const group = fresh('group')
  let topic
  await check('groups.consume', async () => {
    topic = await newTopic('grouped')
    await produce(topic, sample('none'))
    const member = await new Member(group, topic).start()
    try {
      await waitUntil('all records consumed', () => member.read.length >= RECORDS)
      compare('none', member.read)
      await member.commit()
    } finally {
      await member.close()
    }
  })
  await check('groups.committed', async () => {
    const found = (await admin.fetchOffsets({ groupId: group, topics: [topic] }))[0].partitions
    const ends = await admin.fetchTopicOffsets(topic)
    const pairs = (list) => list.map(({ partition, offset }) => [partition, offset]).sort()
    assert.deepStrictEqual(pairs(found), pairs(ends))
  })
  await check('groups.resume', async () => {
    const member = await new Member(group, topic).start()
    try {
      await waitUntil('an assignment', () => member.assigned.length === PARTITIONS)
      // Whatever is found before this record would have been read a second time.
      await produce(topic, [{ key: 'late', value: 'late', partition: 1 }])
      await waitUntil('the late record', () => member.read.length > 0)
      assert.deepStrictEqual(member.read.map((r) => text(r.value)), ['late'])
    } finally {
      await member.close()
    }
  })
  await twoMembers()
}

async function twoMembers() {
  const group = fresh('pair')
  const members = []
  await check('groups.share', async () => {
    const topic = await newTopic('shared')
    members.push(...await Promise.all([1, 2].map(() => new Member(group, topic).start())))
    const owned = () => members.map((member) => [...member.assigned].sort())
    await waitUntil('both have partitions', () => (
      owned().every((own) => own.length > 0) && owned().flat().sort().join() === '0,1,2'))
    const before = owned()
    await produce(topic, sample('none'))
    await waitUntil('all records consumed', () => members[0].read.length + members[1].read.length >= RECORDS)
    const used = members.map((member) => [...new Set(member.read.map((r) => r.partition))].sort())
    assert.deepStrictEqual(used, before, 'who read which partition')
    compare('none', members.flatMap((member) => member.read))
  })
  await check('groups.list', async () => {
    const found = (await admin.listGroups()).groups.map(({ groupId }) => groupId)
    assert.ok(found.includes(group), 'the group is in the list')
  })
  await check('groups.describe', async () => {
    const [found] = (await admin.describeGroups([group])).groups
    assert.deepStrictEqual([found.state, found.members.length], ['Stable', 2])
  })
  await Promise.all(members.map((member) => member.close()))
}

async function main() {
  await admin.connect()
  for (const scenario of scenarios) await all[scenario]()
  console.log(JSON.stringify({ done: scenarios }))
  await admin.disconnect()
}

main().then(() => process.exit(0), (error) => {
  console.error(error)
  process.exit(1)
})
