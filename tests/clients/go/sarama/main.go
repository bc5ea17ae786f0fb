// Sarama, with the protocol version it has by default.
package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"chronik.test/clients/scenarios"
)

type client struct {
	bootstrap string
	admin     sarama.ClusterAdmin
	client    sarama.Client
}

func config() *sarama.Config {
	config := sarama.NewConfig()
	config.Producer.Return.Successes = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Flush.Frequency = 20 * time.Millisecond
	config.Producer.MaxMessageBytes = 1 << 20
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Enable = false
	config.Consumer.Group.Session.Timeout = 10 * time.Second
	config.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	config.Metadata.AllowAutoTopicCreation = false
	return config
}

func main() {
	scenarios.Main(func(bootstrap string) (scenarios.Client, error) {
		base, err := sarama.NewClient(scenarios.Brokers(bootstrap), config())
		if err != nil {
			return nil, err
		}
		admin, err := sarama.NewClusterAdmin(scenarios.Brokers(bootstrap), config())
		return &client{bootstrap, admin, base}, err
	})
}

func (c *client) Name() string { return "sarama" }

func (c *client) Create(topic string, partitions int) error {
	detail := &sarama.TopicDetail{NumPartitions: int32(partitions), ReplicationFactor: scenarios.Replicas()}
	err := c.admin.CreateTopic(topic, detail, false)
	if errors.Is(err, sarama.ErrTopicAlreadyExists) {
		return scenarios.ErrExists
	}
	return err
}

func (c *client) Delete(topic string) error { return c.admin.DeleteTopic(topic) }

func (c *client) Partitions(topic string) (int, error) {
	found, err := c.admin.DescribeTopics([]string{topic})
	if err != nil {
		return 0, err
	}
	if found[0].Err == sarama.ErrUnknownTopicOrPartition {
		return 0, nil
	}
	if found[0].Err != sarama.ErrNoError {
		return 0, found[0].Err
	}
	return len(found[0].Partitions), nil
}

// byRecord sends a record with a partition there and others by key.
type byRecord struct{ byKey, fixed sarama.Partitioner }

func (p byRecord) RequiresConsistency() bool { return true }
func (p byRecord) Partition(m *sarama.ProducerMessage, n int32) (int32, error) {
	if m.Partition >= 0 {
		return p.fixed.Partition(m, n)
	}
	return p.byKey.Partition(m, n)
}

func encoder(bytes []byte) sarama.Encoder {
	if bytes == nil {
		return nil
	}
	return sarama.ByteEncoder(bytes)
}

func (c *client) Produce(topic string, records []scenarios.Record, codec string, idempotent bool) error {
	config := config()
	config.Producer.Compression = map[string]sarama.CompressionCodec{
		"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
		"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
	}[codec]
	config.Producer.Idempotent = idempotent
	if idempotent {
		config.Net.MaxOpenRequests = 1
	}
	config.Producer.Partitioner = func(topic string) sarama.Partitioner {
		return byRecord{sarama.NewHashPartitioner(topic), sarama.NewManualPartitioner(topic)}
	}
	producer, err := sarama.NewSyncProducer(scenarios.Brokers(c.bootstrap), config)
	if err != nil {
		return err
	}
	var out []*sarama.ProducerMessage
	for _, r := range records {
		message := &sarama.ProducerMessage{
			Topic: topic, Key: encoder(r.Key), Value: encoder(r.Value), Partition: r.Partition,
		}
		for _, h := range r.Headers {
			message.Headers = append(message.Headers, sarama.RecordHeader{Key: []byte(h.Key), Value: h.Value})
		}
		if r.Timestamp != 0 {
			message.Timestamp = time.UnixMilli(r.Timestamp)
		}
		out = append(out, message)
	}
	return errors.Join(producer.SendMessages(out), producer.Close())
}

func toRecord(m *sarama.ConsumerMessage) scenarios.Record {
	record := scenarios.Record{
		Key: m.Key, Value: m.Value, Timestamp: m.Timestamp.UnixMilli(), Partition: m.Partition, Offset: m.Offset,
	}
	for _, h := range m.Headers {
		record.Headers = append(record.Headers, scenarios.Header{Key: string(h.Key), Value: h.Value})
	}
	return record
}

func take(consumer sarama.PartitionConsumer, count int) ([]scenarios.Record, error) {
	var read []scenarios.Record
	late := time.After(scenarios.Deadline)
	for len(read) < count {
		select {
		case message := <-consumer.Messages():
			read = append(read, toRecord(message))
		case <-late:
			return read, fmt.Errorf("%d of %d records read", len(read), count)
		}
	}
	return read, nil
}

func (c *client) from(topic string, partition int32, offset int64, count int) ([]scenarios.Record, error) {
	consumer, err := sarama.NewConsumer(scenarios.Brokers(c.bootstrap), config())
	if err != nil {
		return nil, err
	}
	defer consumer.Close()
	assigned, err := consumer.ConsumePartition(topic, partition, offset)
	if err != nil {
		return nil, err
	}
	defer assigned.Close()
	return take(assigned, count)
}

// Read reads a partition after the other.
func (c *client) Read(topic string, partitions, count int) ([]scenarios.Record, error) {
	bounds, err := c.Bounds(topic)
	if err != nil {
		return nil, err
	}
	var read []scenarios.Record
	for p := range int32(partitions) {
		more, err := c.from(topic, p, sarama.OffsetOldest, int(bounds[p][1]))
		if err != nil {
			return read, err
		}
		read = append(read, more...)
	}
	if len(read) != count {
		return read, fmt.Errorf("%d records, not %d", len(read), count)
	}
	return read, nil
}

// SeekAndRead opens the partition anew: Sarama seeks no other way.
func (c *client) SeekAndRead(topic string, offset int64, count int) ([]scenarios.Record, error) {
	return c.from(topic, 0, offset, count)
}

func (c *client) Bounds(topic string) (map[int32][2]int64, error) {
	partitions, err := c.Partitions(topic)
	if err != nil {
		return nil, err
	}
	bounds := map[int32][2]int64{}
	for p := range int32(partitions) {
		first, firstErr := c.client.GetOffset(topic, p, sarama.OffsetOldest)
		last, lastErr := c.client.GetOffset(topic, p, sarama.OffsetNewest)
		bounds[p] = [2]int64{first, last}
		err = errors.Join(err, firstErr, lastErr)
	}
	return bounds, err
}

func (c *client) OffsetAt(topic string, timestamp int64) (int64, error) {
	return c.client.GetOffset(topic, 0, timestamp)
}

// member is the handler of a consumer group; Sarama calls it from goroutines of its own.
type member struct {
	group    sarama.ConsumerGroup
	messages chan *sarama.ConsumerMessage
	failures chan error
	stop     context.CancelFunc
	lock     sync.Mutex
	session  sarama.ConsumerGroupSession
	assigned []int32
	last     []*sarama.ConsumerMessage
	topic    string
}

func (c *client) Member(name, topic string) (scenarios.Member, error) {
	group, err := sarama.NewConsumerGroup(scenarios.Brokers(c.bootstrap), name, config())
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &member{
		group: group, messages: make(chan *sarama.ConsumerMessage), failures: make(chan error, 1), stop: stop, topic: topic,
	}
	go func() {
		for ctx.Err() == nil {
			if err := group.Consume(ctx, []string{topic}, m); err != nil {
				select {
				case m.failures <- err:
				default:
				}
				return
			}
		}
	}()
	return m, nil
}

func (m *member) Setup(session sarama.ConsumerGroupSession) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.session, m.assigned = session, session.Claims()[m.topic]
	return nil
}

func (m *member) Cleanup(sarama.ConsumerGroupSession) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.assigned = nil
	return nil
}

func (m *member) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			select {
			case m.messages <- message:
			case <-session.Context().Done():
				return nil
			}
		case <-session.Context().Done():
			return nil
		}
	}
}

func (m *member) Poll() ([]scenarios.Record, error) {
	var read []scenarios.Record
	late := time.After(200 * time.Millisecond)
	for {
		select {
		case message := <-m.messages:
			m.last = append(m.last, message)
			read = append(read, toRecord(message))
		case err := <-m.failures:
			return read, err
		case <-late:
			return read, nil
		}
	}
}

func (m *member) Assignment() ([]int32, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	found := append([]int32{}, m.assigned...)
	sort.Slice(found, func(a, b int) bool { return found[a] < found[b] })
	return found, nil
}

func (m *member) Commit() error {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.session == nil {
		return errors.New("no session to commit in")
	}
	for _, message := range m.last {
		m.session.MarkMessage(message, "")
	}
	m.session.Commit()
	return nil
}

func (m *member) Close() error {
	m.stop()
	return m.group.Close()
}

func (c *client) Committed(group, topic string) (map[int32]int64, error) {
	answer, err := c.admin.ListConsumerGroupOffsets(group, nil)
	if err != nil {
		return nil, err
	}
	found := map[int32]int64{}
	for partition, block := range answer.Blocks[topic] {
		found[partition] = block.Offset
	}
	return found, nil
}

func (c *client) Groups() ([]string, error) {
	answer, err := c.admin.ListConsumerGroups()
	var found []string
	for name := range answer {
		found = append(found, name)
	}
	return found, err
}

func (c *client) Describe(group string) (string, int, error) {
	answer, err := c.admin.DescribeConsumerGroups([]string{group})
	if err != nil {
		return "", 0, err
	}
	return answer[0].State, len(answer[0].Members), nil
}
