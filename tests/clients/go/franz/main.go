// franz-go with its admin client kadm.
package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik.test/clients/scenarios"
)

type franz struct {
	bootstrap string
	admin     *kadm.Client
}

func main() {
	scenarios.Main(func(bootstrap string) (scenarios.Client, error) {
		client, err := kgo.NewClient(kgo.SeedBrokers(scenarios.Brokers(bootstrap)...))
		return &franz{bootstrap, kadm.NewClient(client)}, err
	})
}

func within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), scenarios.Deadline)
	context.AfterFunc(ctx, cancel)
	return ctx
}

func (f *franz) Name() string { return "franz-go" }

func (f *franz) Create(topic string, partitions int) error {
	_, err := f.admin.CreateTopic(within(), int32(partitions), scenarios.Replicas(), nil, topic)
	if errors.Is(err, kerr.TopicAlreadyExists) {
		return scenarios.ErrExists
	}
	return err
}

func (f *franz) Delete(topic string) error {
	_, err := f.admin.DeleteTopic(within(), topic)
	return err
}

func (f *franz) Partitions(topic string) (int, error) {
	found, err := f.admin.ListTopics(within(), topic)
	if err != nil {
		return 0, err
	}
	if err := found[topic].Err; err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return 0, err
	}
	return len(found[topic].Partitions), nil
}

// byRecord sends a record with a partition there and others by key.
func byRecord() kgo.Partitioner {
	byKey, fixed := kgo.StickyKeyPartitioner(nil), kgo.ManualPartitioner()
	return partitioner{byKey, fixed}
}

type partitioner struct{ byKey, fixed kgo.Partitioner }
type topicPartitioner struct{ byKey, fixed kgo.TopicPartitioner }

func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return topicPartitioner{p.byKey.ForTopic(topic), p.fixed.ForTopic(topic)}
}
func (p topicPartitioner) RequiresConsistency(r *kgo.Record) bool { return true }
func (p topicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Partition >= 0 {
		return p.fixed.Partition(r, n)
	}
	return p.byKey.Partition(r, n)
}

func (f *franz) Produce(topic string, records []scenarios.Record, codec string, idempotent bool) error {
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	options := []kgo.Opt{
		kgo.SeedBrokers(scenarios.Brokers(f.bootstrap)...), kgo.ProducerBatchCompression(codecs[codec]), kgo.RecordPartitioner(byRecord()),
		kgo.ProducerLinger(20 * time.Millisecond),
	}
	if !idempotent {
		options = append(options, kgo.DisableIdempotentWrite())
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return err
	}
	defer client.Close()
	var out []*kgo.Record
	for _, r := range records {
		record := &kgo.Record{Topic: topic, Key: r.Key, Value: r.Value, Partition: r.Partition}
		for _, h := range r.Headers {
			record.Headers = append(record.Headers, kgo.RecordHeader(h))
		}
		if r.Timestamp != 0 {
			record.Timestamp = time.UnixMilli(r.Timestamp)
		}
		out = append(out, record)
	}
	return client.ProduceSync(within(), out...).FirstErr()
}

func toRecords(fetches kgo.Fetches) ([]scenarios.Record, error) {
	var read []scenarios.Record
	fetches.EachRecord(func(r *kgo.Record) {
		record := scenarios.Record{
			Key: r.Key, Value: r.Value, Timestamp: r.Timestamp.UnixMilli(), Partition: r.Partition, Offset: r.Offset,
		}
		for _, h := range r.Headers {
			record.Headers = append(record.Headers, scenarios.Header(h))
		}
		read = append(read, record)
	})
	for _, err := range fetches.Errors() {
		if !errors.Is(err.Err, context.DeadlineExceeded) {
			return read, fmt.Errorf("%s/%d: %w", err.Topic, err.Partition, err.Err)
		}
	}
	return read, nil
}

func poll(client *kgo.Client, count int) ([]scenarios.Record, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	return toRecords(client.PollRecords(ctx, count))
}

func take(client *kgo.Client, count int) ([]scenarios.Record, error) {
	var read []scenarios.Record
	err := scenarios.WaitUntil(fmt.Sprint(count, " records"), func() (bool, error) {
		more, err := poll(client, count-len(read))
		read = append(read, more...)
		return len(read) >= count, err
	})
	return read, err
}

func (f *franz) assigned(topic string, partitions int) (*kgo.Client, error) {
	starts := map[int32]kgo.Offset{}
	for p := range partitions {
		starts[int32(p)] = kgo.NewOffset().AtStart()
	}
	assign := map[string]map[int32]kgo.Offset{topic: starts}
	return kgo.NewClient(kgo.SeedBrokers(scenarios.Brokers(f.bootstrap)...), kgo.ConsumePartitions(assign))
}

func (f *franz) Read(topic string, partitions, count int) ([]scenarios.Record, error) {
	client, err := f.assigned(topic, partitions)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return take(client, count)
}

func (f *franz) SeekAndRead(topic string, offset int64, count int) ([]scenarios.Record, error) {
	client, err := f.assigned(topic, 1)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if _, err := take(client, 1); err != nil {
		return nil, err
	}
	client.SetOffsets(map[string]map[int32]kgo.EpochOffset{topic: {0: {Epoch: -1, Offset: offset}}})
	return take(client, count)
}

func (f *franz) Bounds(topic string) (map[int32][2]int64, error) {
	starts, err := f.admin.ListStartOffsets(within(), topic)
	if err != nil {
		return nil, err
	}
	ends, err := f.admin.ListEndOffsets(within(), topic)
	bounds := map[int32][2]int64{}
	starts.Each(func(start kadm.ListedOffset) {
		end, _ := ends.Lookup(topic, start.Partition)
		err = errors.Join(err, start.Err, end.Err)
		bounds[start.Partition] = [2]int64{start.Offset, end.Offset}
	})
	return bounds, err
}

func (f *franz) OffsetAt(topic string, timestamp int64) (int64, error) {
	found, err := f.admin.ListOffsetsAfterMilli(within(), timestamp, topic)
	if err != nil {
		return 0, err
	}
	at, _ := found.Lookup(topic, 0)
	if at.Timestamp == -1 { // kadm answers with the end where no record is that young.
		return -1, at.Err
	}
	return at.Offset, at.Err
}

type member struct {
	client   *kgo.Client
	lock     sync.Mutex
	assigned map[int32]bool
}

func (f *franz) Member(group, topic string) (scenarios.Member, error) {
	m := &member{assigned: map[int32]bool{}}
	set := func(there bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, changed map[string][]int32) {
			m.lock.Lock()
			defer m.lock.Unlock()
			for _, partition := range changed[topic] {
				if there {
					m.assigned[partition] = true
				} else {
					delete(m.assigned, partition)
				}
			}
		}
	}
	var err error
	m.client, err = kgo.NewClient(
		kgo.SeedBrokers(scenarios.Brokers(f.bootstrap)...), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.HeartbeatInterval(500*time.Millisecond),
		kgo.SessionTimeout(10*time.Second),
		kgo.OnPartitionsAssigned(set(true)), kgo.OnPartitionsRevoked(set(false)), kgo.OnPartitionsLost(set(false)),
	)
	return m, err
}

func (m *member) Poll() ([]scenarios.Record, error) { return poll(m.client, 500) }
func (m *member) Commit() error                     { return m.client.CommitUncommittedOffsets(within()) }
func (m *member) Close() error                      { m.client.Close(); return nil }

func (m *member) Assignment() ([]int32, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	found := []int32{}
	for partition := range m.assigned {
		found = append(found, partition)
	}
	sort.Slice(found, func(a, b int) bool { return found[a] < found[b] })
	return found, nil
}

func (f *franz) Committed(group, topic string) (map[int32]int64, error) {
	answer, err := f.admin.FetchOffsets(within(), group)
	found := map[int32]int64{}
	answer.Each(func(offset kadm.OffsetResponse) { found[offset.Partition] = offset.At })
	return found, err
}

func (f *franz) Groups() ([]string, error) {
	found, err := f.admin.ListGroups(within())
	return found.Groups(), err
}

func (f *franz) Describe(group string) (string, int, error) {
	found, err := f.admin.DescribeGroups(within(), group)
	return found[group].State, len(found[group].Members), errors.Join(err, found[group].Err)
}
