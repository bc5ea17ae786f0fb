// Package scenarios has the scenarios once for all Go clients: what is done and what must come back.
//
// A client's program gives a Client; nothing here knows one. Every check prints one line of JSON, also when it fails or
// when the client has no such feature. ../../README.md names scenarios, checks and data.
package scenarios

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	records    = 1000
	keys       = 50
	partitions = 3
	large      = 900 * 1024
	timeBase   = int64(1_690_000_000_000)
	// Deadline is how long anything may take.
	Deadline = 30 * time.Second
)

var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

var (
	// ErrExists is what Create gives for a topic that is there.
	ErrExists = errors.New("the topic exists")
	// ErrAbsent says that the client has no such feature; wrap it with which.
	ErrAbsent = errors.New("not in this client")
)

// Header of a record.
type Header struct {
	Key   string
	Value []byte
}

// Record as it is sent and as it is read. Partition -1 leaves the choice to the client's partitioner by key.
type Record struct {
	Key, Value []byte
	Headers    []Header
	Timestamp  int64
	Partition  int32
	Offset     int64
}

// Client is what a program implements; every call blocks until it is done or fails.
type Client interface {
	Name() string
	Create(topic string, partitions int) error
	Delete(topic string) error
	// Partitions is how many the topic has; 0 where there is none.
	Partitions(topic string) (int, error)
	Produce(topic string, records []Record, codec string, idempotent bool) error
	// Read assigns all partitions from their beginning and reads count records.
	Read(topic string, partitions, count int) ([]Record, error)
	// SeekAndRead assigns partition 0 from its beginning, reads a record, seeks to offset, reads count records.
	SeekAndRead(topic string, offset int64, count int) ([]Record, error)
	Bounds(topic string) (map[int32][2]int64, error)
	// OffsetAt is the offset in partition 0 for a time; -1 where no record is that young.
	OffsetAt(topic string, timestamp int64) (int64, error)
	Member(group, topic string) (Member, error)
	Committed(group, topic string) (map[int32]int64, error)
	Groups() ([]string, error)
	// Describe gives the state and how many members there are.
	Describe(group string) (string, int, error)
}

// EmptyIsNull is implemented by a client that cannot tell an empty key or value from none.
type EmptyIsNull interface{ EmptyIsNull() bool }

// Member of a group, subscribed. Poll waits a fraction of a second.
type Member interface {
	Poll() ([]Record, error)
	// Assignment is nil with ErrAbsent where the client does not tell.
	Assignment() ([]int32, error)
	Commit() error
	Close() error
}

func want(found, wanted any, what string) error {
	if reflect.DeepEqual(found, wanted) {
		return nil
	}
	return fmt.Errorf("%s: found %.300s, not %.300s", what, fmt.Sprint(found), fmt.Sprint(wanted))
}

// WaitUntil looks until probe is true or fails.
func WaitUntil(what string, probe func() (bool, error)) error {
	for until := time.Now().Add(Deadline); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if found, err := probe(); found || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: not within %v", what, Deadline)
}

func sample(codec string) []Record {
	sent := make([]Record, records)
	for n := range sent {
		sent[n] = Record{
			Key:       fmt.Appendf(nil, "key-%02d", n%keys),
			Value:     fmt.Appendf(nil, "%s-%04d-%s", codec, n, strings.Repeat("x", 100)),
			Headers:   []Header{{"n", []byte(strconv.Itoa(n))}, {"empty", []byte{}}},
			Partition: -1,
		}
	}
	return sent
}

// shape is what a record must keep. A header without a value and one with an empty value are one to most Go clients.
func shape(r Record) string {
	return fmt.Sprintf("%q (null %t) %q (null %t) %q", r.Key, r.Key == nil, r.Value, r.Value == nil, r.Headers)
}

// compare wants all of sample, each once, in the order of its key, with offsets that rise by one from 0.
func compare(codec string, read []Record) error {
	wanted := map[string]string{}
	for _, r := range sample(codec) {
		wanted[string(r.Value)] = shape(r)
	}
	next, partitionOf, lastOf := map[int32]int64{}, map[string]int32{}, map[string]string{}
	for _, r := range read {
		key, value := string(r.Key), string(r.Value)
		if err := want(r.Offset, next[r.Partition], fmt.Sprint("offset in partition ", r.Partition)); err != nil {
			return err
		}
		next[r.Partition]++
		if err := want(shape(r), wanted[value], "a record, sent once"); err != nil {
			return err
		}
		delete(wanted, value)
		if before, there := partitionOf[key]; there && before != r.Partition {
			return fmt.Errorf("%s in partitions %d and %d", key, before, r.Partition)
		}
		partitionOf[key] = r.Partition
		if lastOf[key] >= value {
			return fmt.Errorf("out of order: %.20s after %.20s", value, lastOf[key])
		}
		lastOf[key] = value
	}
	if err := want(len(wanted), 0, "records missing"); err != nil {
		return err
	}
	return want(len(next), partitions, "partitions used")
}

type run struct{ client Client }

// Brokers are the addresses that the program was given.
func Brokers(bootstrap string) []string { return strings.Split(bootstrap, ",") }

// Replicas is how many the topics have.
func Replicas() int16 {
	replicas, err := strconv.ParseInt(os.Getenv("CHRONIK_TEST_REPLICAS"), 10, 16)
	if err != nil {
		return 1
	}
	return int16(replicas)
}

// Main runs the scenarios that the command line names.
func Main(connect func(bootstrap string) (Client, error)) {
	client, err := connect(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "connecting:", err)
		os.Exit(1)
	}
	r := run{client}
	all := map[string]func(){"topics": r.topics, "records": r.records, "offsets": r.offsets, "groups": r.groups}
	for _, scenario := range os.Args[2:] {
		all[scenario]()
	}
	printLine(map[string]any{"done": os.Args[2:]})
}

func printLine(line map[string]any) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

// check runs one; the topic it gives, if any, is for the harness to look at.
func (r run) check(name string, body func() (string, error)) {
	line := map[string]any{"check": name, "result": "ok"}
	topic, err := body()
	if topic != "" {
		line["topic"] = topic
	}
	if errors.Is(err, ErrAbsent) {
		line["result"], line["detail"] = "absent", err.Error()
	} else if err != nil {
		line["result"], line["detail"] = "failed", err.Error()
	}
	printLine(line)
}

func (r run) fresh(what string) string {
	random := make([]byte, 4)
	_, _ = rand.Read(random)
	return r.client.Name() + "-" + what + "-" + hex.EncodeToString(random)
}

func (r run) waitPartitions(topic string, wanted int) error {
	return WaitUntil(fmt.Sprint(topic, " with partitions: ", wanted), func() (bool, error) {
		found, err := r.client.Partitions(topic)
		return found == wanted, err
	})
}

func (r run) topic(what string, partitions int) (string, error) {
	topic := r.fresh(what)
	if err := r.client.Create(topic, partitions); err != nil {
		return topic, err
	}
	return topic, r.waitPartitions(topic, partitions)
}

func (r run) topics() {
	topic := r.fresh("life")
	r.check("topics.create", func() (string, error) {
		found, err := r.client.Partitions(topic)
		if err = errors.Join(err, want(found, 0, "partitions before it was created")); err != nil {
			return "", err
		}
		if err := r.client.Create(topic, partitions); err != nil {
			return "", err
		}
		return "", r.waitPartitions(topic, partitions)
	})
	r.check("topics.create_again", func() (string, error) {
		err := r.client.Create(topic, partitions)
		if errors.Is(err, ErrExists) {
			return "", nil
		}
		return "", fmt.Errorf("created twice, or another error: %v", err)
	})
	r.check("topics.delete", func() (string, error) {
		if err := r.client.Delete(topic); err != nil {
			return "", err
		}
		return "", r.waitPartitions(topic, 0)
	})
}

func (r run) roundTrip(name, codec string, idempotent bool) (string, error) {
	topic, err := r.topic(name, partitions)
	if err != nil {
		return "", err
	}
	if err := r.client.Produce(topic, sample(name), codec, idempotent); err != nil {
		return "", err
	}
	read, err := r.client.Read(topic, partitions, records)
	if err != nil {
		return "", err
	}
	return topic, compare(name, read)
}

func (r run) records() {
	for _, codec := range codecs {
		r.check("records."+codec, func() (string, error) { return r.roundTrip(codec, codec, false) })
	}
	r.check("records.idempotent", func() (string, error) { return r.roundTrip("idempotent", "none", true) })
	r.check("records.shapes", func() (string, error) {
		empty := []byte{}
		if quirk, has := r.client.(EmptyIsNull); has && quirk.EmptyIsNull() {
			empty = nil
		}
		return "", r.sendAndExpect("shapes", []Record{
			{Key: nil, Value: []byte("no key")},
			{Key: []byte("no value"), Value: nil},
			{Key: empty, Value: empty},
			{Key: []byte("k"), Value: []byte("v"), Headers: []Header{
				{"h", []byte("1")}, {"h", []byte("2")}, {"bytes", []byte{0, 255}}, {"empty", []byte{}},
			}},
		})
	})
	r.check("records.large", func() (string, error) {
		value := bytes.Repeat([]byte("0123456789abcdef"), large/16)
		return "", r.sendAndExpect("large", []Record{{Key: []byte("large"), Value: value}})
	})
}

func (r run) sendAndExpect(what string, sent []Record) error {
	topic, err := r.topic(what, 1)
	if err != nil {
		return err
	}
	if err := r.client.Produce(topic, sent, "none", false); err != nil {
		return err
	}
	read, err := r.client.Read(topic, 1, len(sent))
	if err != nil {
		return err
	}
	for n := range sent {
		if err := want(shape(read[n]), shape(sent[n]), fmt.Sprint("record ", n)); err != nil {
			return err
		}
	}
	return nil
}

func (r run) offsets() {
	var topic string
	r.check("offsets.list", func() (_ string, err error) {
		if topic, err = r.topic("offsets", 1); err != nil {
			return "", err
		}
		for start := 0; start < 100; start += 10 {
			var batch []Record
			for n := start; n < start+10; n++ {
				value := []byte(strconv.Itoa(n))
				batch = append(batch, Record{Key: []byte("k"), Value: value, Timestamp: timeBase + int64(n)*1000})
			}
			if err := r.client.Produce(topic, batch, "none", false); err != nil {
				return "", err
			}
		}
		bounds, err := r.client.Bounds(topic)
		return "", errors.Join(err, want(bounds, map[int32][2]int64{0: {0, 100}}, "earliest and latest"))
	})
	r.check("offsets.by_time", func() (string, error) {
		for at, wanted := range map[int64]int64{-1: 0, 4_500: 5, 50_000: 50, 98_001: 99, 99_000: 99, 99_001: -1} {
			found, err := r.client.OffsetAt(topic, timeBase+at)
			if err = errors.Join(err, want(found, wanted, fmt.Sprint("offset at ", at))); err != nil {
				return "", err
			}
		}
		return "", nil
	})
	r.check("offsets.seek", func() (string, error) { return "", r.seekAndExpect(topic, 37, 63) })
	r.check("offsets.seek_time", func() (string, error) {
		offset, err := r.client.OffsetAt(topic, timeBase+50_500)
		if err != nil {
			return "", err
		}
		return "", r.seekAndExpect(topic, offset, 49)
	})
}

// seekAndExpect wants the last count of the 100 records.
func (r run) seekAndExpect(topic string, offset int64, count int) error {
	read, err := r.client.SeekAndRead(topic, offset, count)
	if err != nil {
		return err
	}
	var found, wanted []string
	for n, record := range read {
		found = append(found, fmt.Sprint(record.Offset, string(record.Value), record.Timestamp))
		at := int64(100 - count + n)
		wanted = append(wanted, fmt.Sprint(at, strconv.FormatInt(at, 10), timeBase+at*1000))
	}
	return errors.Join(want(len(read), count, "records"), want(found, wanted, "records"))
}

func ordered(read []Record) []Record {
	sort.SliceStable(read, func(a, b int) bool {
		if read[a].Partition != read[b].Partition {
			return read[a].Partition < read[b].Partition
		}
		return read[a].Offset < read[b].Offset
	})
	return read
}

// pollFor polls until at least count records came.
func pollFor(member Member, count int) ([]Record, error) {
	var read []Record
	err := WaitUntil(fmt.Sprint(count, " records consumed"), func() (bool, error) {
		more, err := member.Poll()
		read = append(read, more...)
		return len(read) >= count, err
	})
	return read, err
}

func (r run) groups() {
	var topic string
	group := r.fresh("group")
	r.check("groups.consume", func() (_ string, err error) {
		if topic, err = r.topic("grouped", partitions); err != nil {
			return "", err
		}
		if err := r.client.Produce(topic, sample("none"), "none", false); err != nil {
			return "", err
		}
		member, err := r.client.Member(group, topic)
		if err != nil {
			return "", err
		}
		read, err := pollFor(member, records)
		if err == nil {
			err = compare("none", ordered(read))
		}
		return "", errors.Join(err, member.Commit(), member.Close())
	})
	r.check("groups.committed", func() (string, error) {
		bounds, err := r.client.Bounds(topic)
		if err != nil {
			return "", err
		}
		ends := map[int32]int64{}
		for partition, bound := range bounds {
			ends[partition] = bound[1]
		}
		found, err := r.client.Committed(group, topic)
		return "", errors.Join(err, want(found, ends, "committed offsets"))
	})
	r.check("groups.resume", func() (string, error) {
		member, err := r.client.Member(group, topic)
		if err != nil {
			return "", err
		}
		// Whatever is found before this record would have been read a second time.
		late := []Record{{Key: []byte("late"), Value: []byte("late"), Partition: 1}}
		if err := r.client.Produce(topic, late, "none", false); err != nil {
			return "", err
		}
		read, err := pollFor(member, 1)
		if err == nil && (len(read) != 1 || string(read[0].Value) != "late") {
			err = fmt.Errorf("%d records found again, the first at offset %d", len(read), read[0].Offset)
		}
		return "", errors.Join(err, member.Close())
	})
	r.twoMembers()
}

// polled is a member with a goroutine of its own, so that two can rebalance at once.
type polled struct {
	member   Member
	lock     sync.Mutex
	read     []Record
	stopping chan struct{}
	done     chan error
}

func poll(member Member) *polled {
	p := &polled{member: member, stopping: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		for {
			select {
			case <-p.stopping:
				p.done <- member.Close()
				return
			default:
			}
			more, err := member.Poll()
			p.lock.Lock()
			p.read = append(p.read, more...)
			p.lock.Unlock()
			if err != nil {
				fmt.Fprintln(os.Stderr, "poll:", err)
				time.Sleep(100 * time.Millisecond)
			}
		}
	}()
	return p
}

func (p *polled) records() []Record {
	p.lock.Lock()
	defer p.lock.Unlock()
	return append([]Record(nil), p.read...)
}

// readers says who read which partition.
func readers(members []*polled) map[int32]map[int]bool {
	found := map[int32]map[int]bool{}
	for index, member := range members {
		for _, record := range member.records() {
			if found[record.Partition] == nil {
				found[record.Partition] = map[int]bool{}
			}
			found[record.Partition][index] = true
		}
	}
	return found
}

func (r run) twoMembers() {
	group := r.fresh("pair")
	var members []*polled
	r.check("groups.share", func() (string, error) {
		topic, err := r.topic("shared", partitions)
		if err != nil {
			return "", err
		}
		for range 2 {
			member, err := r.client.Member(group, topic)
			if err != nil {
				return "", err
			}
			members = append(members, poll(member))
		}
		if err := r.waitSpread(group, members); err != nil {
			return "", err
		}
		if err := r.client.Produce(topic, sample("none"), "none", false); err != nil {
			return "", err
		}
		var read []Record
		err = WaitUntil("all records consumed", func() (bool, error) {
			read = append(members[0].records(), members[1].records()...)
			return len(read) >= records, nil
		})
		if err != nil {
			return "", err
		}
		for partition, by := range readers(members) {
			if err := want(len(by), 1, fmt.Sprint("readers of partition ", partition)); err != nil {
				return "", err
			}
		}
		if len(members[0].records()) == 0 || len(members[1].records()) == 0 {
			return "", errors.New("one member read everything")
		}
		return "", compare("none", ordered(read))
	})
	r.check("groups.list", func() (string, error) {
		groups, err := r.client.Groups()
		for _, found := range groups {
			if found == group {
				return "", nil
			}
		}
		return "", errors.Join(err, errors.New("the group is not in the list"))
	})
	r.check("groups.describe", func() (string, error) {
		state, count, err := r.client.Describe(group)
		return "", errors.Join(err, want(fmt.Sprint(state, " ", count), "Stable 2", "state and members"))
	})
	for _, member := range members {
		close(member.stopping)
		select {
		case <-member.done:
		case <-time.After(Deadline):
		}
	}
}

// waitSpread waits until both have partitions: as they tell it, or, of a client that does not tell, as the group does.
func (r run) waitSpread(group string, members []*polled) error {
	return WaitUntil("both have partitions", func() (bool, error) {
		seen := map[int32]bool{}
		for _, member := range members {
			assigned, err := member.member.Assignment()
			if errors.Is(err, ErrAbsent) {
				state, count, err := r.client.Describe(group)
				return state == "Stable" && count == 2, err
			}
			if err != nil || len(assigned) == 0 {
				return false, err
			}
			for _, partition := range assigned {
				if seen[partition] {
					return false, nil
				}
				seen[partition] = true
			}
		}
		return len(seen) == partitions, nil
	})
}
