// kafka-go: readers, writers and its low-level client.
package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"chronik.test/clients/scenarios"
)

type kafkaGo struct {
	bootstrap string
	client    *kafka.Client
}

func main() {
	scenarios.Main(func(bootstrap string) (scenarios.Client, error) {
		return &kafkaGo{bootstrap, &kafka.Client{Addr: kafka.TCP(scenarios.Brokers(bootstrap)...), Timeout: scenarios.Deadline}}, nil
	})
}

func within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), scenarios.Deadline)
	context.AfterFunc(ctx, cancel)
	return ctx
}

func (k *kafkaGo) Name() string { return "kafka-go" }

// EmptyIsNull: the reader gives nil for both.
func (k *kafkaGo) EmptyIsNull() bool { return true }

func (k *kafkaGo) Create(topic string, partitions int) error {
	answer, err := k.client.CreateTopics(within(), &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{
			Topic: topic, NumPartitions: partitions, ReplicationFactor: int(scenarios.Replicas()),
		}},
	})
	if err != nil {
		return err
	}
	if errors.Is(answer.Errors[topic], kafka.TopicAlreadyExists) {
		return scenarios.ErrExists
	}
	return answer.Errors[topic]
}

func (k *kafkaGo) Delete(topic string) error {
	answer, err := k.client.DeleteTopics(within(), &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	if err != nil {
		return err
	}
	return answer.Errors[topic]
}

func (k *kafkaGo) Partitions(topic string) (int, error) {
	answer, err := k.client.Metadata(within(), &kafka.MetadataRequest{})
	if err != nil {
		return 0, err
	}
	for _, found := range answer.Topics {
		if found.Name == topic {
			return len(found.Partitions), found.Error
		}
	}
	return 0, nil
}

// byRecord sends a record to the partition that its writer data names, and others by key.
type byRecord struct{ byKey kafka.Hash }

func (b *byRecord) Balance(message kafka.Message, partitions ...int) int {
	if partition, fixed := message.WriterData.(int); fixed {
		return partition
	}
	return b.byKey.Balance(message, partitions...)
}

func (k *kafkaGo) Produce(topic string, records []scenarios.Record, codec string, idempotent bool) error {
	if idempotent {
		return fmt.Errorf("an idempotent producer is %w", scenarios.ErrAbsent)
	}
	codecs := map[string]kafka.Compression{
		"gzip": kafka.Gzip, "snappy": kafka.Snappy, "lz4": kafka.Lz4, "zstd": kafka.Zstd,
	}
	writer := &kafka.Writer{
		Addr: kafka.TCP(scenarios.Brokers(k.bootstrap)...), Topic: topic, Balancer: &byRecord{}, RequiredAcks: kafka.RequireAll,
		BatchTimeout: 20 * time.Millisecond, BatchBytes: 1 << 20, Compression: codecs[codec],
	}
	var out []kafka.Message
	for _, r := range records {
		message := kafka.Message{Key: r.Key, Value: r.Value}
		if r.Partition >= 0 {
			message.WriterData = int(r.Partition)
		}
		for _, h := range r.Headers {
			message.Headers = append(message.Headers, kafka.Header(h))
		}
		if r.Timestamp != 0 {
			message.Time = time.UnixMilli(r.Timestamp)
		}
		out = append(out, message)
	}
	return errors.Join(writer.WriteMessages(within(), out...), writer.Close())
}

func toRecord(m kafka.Message) scenarios.Record {
	record := scenarios.Record{
		Key: m.Key, Value: m.Value, Timestamp: m.Time.UnixMilli(), Partition: int32(m.Partition), Offset: m.Offset,
	}
	for _, h := range m.Headers {
		record.Headers = append(record.Headers, scenarios.Header(h))
	}
	return record
}

func take(reader *kafka.Reader, count int) ([]scenarios.Record, error) {
	var read []scenarios.Record
	ctx := within()
	for len(read) < count {
		message, err := reader.ReadMessage(ctx)
		if err != nil {
			return read, fmt.Errorf("%d of %d records: %w", len(read), count, err)
		}
		read = append(read, toRecord(message))
	}
	return read, nil
}

func (k *kafkaGo) reader(topic string, partition int) *kafka.Reader {
	return kafka.NewReader(kafka.ReaderConfig{
		Brokers: scenarios.Brokers(k.bootstrap), Topic: topic, Partition: partition,
		MinBytes: 1, MaxBytes: 4 << 20, MaxWait: 200 * time.Millisecond,
	})
}

// Read reads a partition after the other: a reader has one.
func (k *kafkaGo) Read(topic string, partitions, count int) ([]scenarios.Record, error) {
	bounds, err := k.Bounds(topic)
	if err != nil {
		return nil, err
	}
	var read []scenarios.Record
	for p := range partitions {
		reader := k.reader(topic, p)
		more, err := take(reader, int(bounds[int32(p)][1]))
		if err = errors.Join(err, reader.Close()); err != nil {
			return read, err
		}
		read = append(read, more...)
	}
	if len(read) != count {
		return read, fmt.Errorf("%d records, not %d", len(read), count)
	}
	return read, nil
}

func (k *kafkaGo) SeekAndRead(topic string, offset int64, count int) ([]scenarios.Record, error) {
	reader := k.reader(topic, 0)
	defer reader.Close()
	if _, err := take(reader, 1); err != nil {
		return nil, err
	}
	if err := reader.SetOffset(offset); err != nil {
		return nil, err
	}
	return take(reader, count)
}

func (k *kafkaGo) listOffsets(topic string, asked ...kafka.OffsetRequest) ([]kafka.PartitionOffsets, error) {
	answer, err := k.client.ListOffsets(within(), &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{topic: asked},
	})
	if err != nil {
		return nil, err
	}
	for _, partition := range answer.Topics[topic] {
		err = errors.Join(err, partition.Error)
	}
	return answer.Topics[topic], err
}

func (k *kafkaGo) Bounds(topic string) (map[int32][2]int64, error) {
	partitions, err := k.Partitions(topic)
	if err != nil {
		return nil, err
	}
	var asked []kafka.OffsetRequest
	for p := range partitions {
		asked = append(asked, kafka.FirstOffsetOf(p), kafka.LastOffsetOf(p))
	}
	found, err := k.listOffsets(topic, asked...)
	bounds := map[int32][2]int64{}
	for _, partition := range found {
		bounds[int32(partition.Partition)] = [2]int64{partition.FirstOffset, partition.LastOffset}
	}
	return bounds, err
}

func (k *kafkaGo) OffsetAt(topic string, timestamp int64) (int64, error) {
	found, err := k.listOffsets(topic, kafka.TimeOffsetOf(0, time.UnixMilli(timestamp)))
	if err != nil {
		return 0, err
	}
	for offset := range found[0].Offsets {
		return offset, nil
	}
	return -1, nil
}

type member struct {
	reader *kafka.Reader
	last   []kafka.Message
}

func (k *kafkaGo) Member(group, topic string) (scenarios.Member, error) {
	return &member{reader: kafka.NewReader(kafka.ReaderConfig{
		Brokers: scenarios.Brokers(k.bootstrap), GroupID: group, Topic: topic, StartOffset: kafka.FirstOffset,
		HeartbeatInterval: 500 * time.Millisecond, SessionTimeout: 10 * time.Second,
		MinBytes: 1, MaxBytes: 4 << 20, MaxWait: 200 * time.Millisecond,
	})}, nil
}

func (m *member) Poll() ([]scenarios.Record, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	var read []scenarios.Record
	for len(read) < 500 {
		message, err := m.reader.FetchMessage(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			return read, nil
		}
		if err != nil {
			return read, err
		}
		m.last = append(m.last, message)
		read = append(read, toRecord(message))
	}
	return read, nil
}

func (m *member) Assignment() ([]int32, error) { return nil, scenarios.ErrAbsent }
func (m *member) Commit() error                { return m.reader.CommitMessages(within(), m.last...) }
func (m *member) Close() error                 { return m.reader.Close() }

func (k *kafkaGo) Committed(group, topic string) (map[int32]int64, error) {
	partitions, err := k.Partitions(topic)
	if err != nil {
		return nil, err
	}
	var asked []int
	for p := range partitions {
		asked = append(asked, p)
	}
	answer, err := k.client.OffsetFetch(within(), &kafka.OffsetFetchRequest{
		GroupID: group, Topics: map[string][]int{topic: asked},
	})
	if err != nil {
		return nil, err
	}
	found := map[int32]int64{}
	for _, partition := range answer.Topics[topic] {
		found[int32(partition.Partition)] = partition.CommittedOffset
		err = errors.Join(err, partition.Error)
	}
	return found, errors.Join(err, answer.Error)
}

func (k *kafkaGo) Groups() ([]string, error) {
	answer, err := k.client.ListGroups(within(), &kafka.ListGroupsRequest{})
	if err != nil {
		return nil, err
	}
	var found []string
	for _, group := range answer.Groups {
		found = append(found, group.GroupID)
	}
	return found, answer.Error
}

func (k *kafkaGo) Describe(group string) (string, int, error) {
	answer, err := k.client.DescribeGroups(within(), &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
	if err != nil {
		return "", 0, err
	}
	if len(answer.Groups) != 1 {
		return "", 0, errors.New(strconv.Itoa(len(answer.Groups)) + " groups described")
	}
	found := answer.Groups[0]
	return found.GroupState, len(found.Members), found.Error
}
