package main

import (
	"encoding/binary"
	"fmt"

	"lukechampine.com/blake3"
)

const contentIDContext = "staddle.v1 content id"

// content computes a file's content id from its chunks, as Content.content_id defines it.
type content struct {
	count uint64
	first [32]byte
	list  []byte
}

// chunk takes the next chunk's bytes.
func (of *content) chunk(data []byte) {
	digest := blake3.Sum256(data)
	if of.count == 0 {
		of.first = digest
	}
	of.count++
	of.list = binary.LittleEndian.AppendUint32(of.list, uint32(len(data)))
	of.list = append(of.list, digest[:]...)
}

// chunks takes bytes that are whole chunks of these lengths.
func (of *content) chunks(data []byte, lengths []uint32) error {
	for _, length := range lengths {
		if uint64(length) > uint64(len(data)) {
			return fmt.Errorf("a chunk of %d bytes, and only %d are left in its part", length, len(data))
		}
		of.chunk(data[:length])
		data = data[length:]
	}
	if len(data) > 0 {
		return fmt.Errorf("%d bytes belong to no chunk", len(data))
	}
	return nil
}

func (of *content) id() []byte {
	switch of.count {
	case 0:
		empty := blake3.Sum256(nil)
		return empty[:]
	case 1:
		return of.first[:]
	default:
		id := make([]byte, 32)
		blake3.DeriveKey(id, contentIDContext, of.list)
		return id
	}
}
