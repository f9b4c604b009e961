package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	staddle "staddle.dev/interop/gen/staddle/v1"
)

const (
	// Up to here a file goes inline, in its entry.
	inlineBytesMax = 64 << 10
	// A message is sent when it holds this much; no part is larger.
	messageBytes = 1 << 20
	// What a part takes beside its data, roughly: a message of many empty files must end, too.
	partOverheadBytes = 128
)

// sender gathers the parts of a Backup stream into messages, and counts what Finish states.
type sender struct {
	stream     staddle.StaddleService_BackupClient
	parts      []*staddle.BackupPart
	bytes      int
	entryCount uint64
	dataBytes  uint64
}

// backup sends everything in a directory as one Backup stream: a new FULL backup of the dataset.
func backup(ctx context.Context, client staddle.StaddleServiceClient, directory, dataset string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Backup(ctx)
	if err != nil {
		return err
	}
	to := &sender{stream: stream}
	begin := &staddle.BeginUploadRequest{Dataset: dataset, Kind: staddle.BackupKind_BACKUP_KIND_FULL}
	err = to.add(&staddle.BackupPart{Part: &staddle.BackupPart_Begin{Begin: begin}}, 0)
	if err == nil {
		err = to.tree(directory)
	}
	if err == nil {
		err = to.finish()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	// After io.EOF, the server has ended the stream: its answer says why.
	answer, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	made := answer.GetBackup()
	return printLine(map[string]any{
		"backup": made.GetId(), "number": made.GetNumber(), "entries": made.GetEntryCount(), "bytes": made.GetDataBytes(),
	})
}

// tree sends the directory itself, as the root, and all that lies in it.
func (to *sender) tree(directory string) error {
	return filepath.WalkDir(directory, func(name string, found fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path, err := filepath.Rel(directory, name)
		if err != nil {
			return err
		}
		if path == "." {
			path = ""
		}
		info, err := found.Info()
		if err != nil {
			return err
		}
		return to.one(name, path, info)
	})
}

// one sends what is at a path.
func (to *sender) one(name, path string, info fs.FileInfo) error {
	entry := &staddle.Entry{}
	if utf8.ValidString(path) {
		entry.Path = path
	} else {
		entry.RawPath = []byte(path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: this system does not tell a file's mode and times", name)
	}
	entry.Mode = proto.Uint32(stat.Mode & 0o7777)
	entry.MtimeNs = proto.Int64(info.ModTime().UnixNano())
	switch info.Mode().Type() {
	case 0:
		entry.Type = staddle.EntryType_ENTRY_TYPE_FILE
		return to.file(name, entry)
	case fs.ModeDir:
		entry.Type = staddle.EntryType_ENTRY_TYPE_DIRECTORY
	case fs.ModeSymlink:
		entry.Type = staddle.EntryType_ENTRY_TYPE_SYMLINK
		target, err := os.Readlink(name)
		if err != nil {
			return err
		}
		if utf8.ValidString(target) {
			entry.LinkTarget = target
		} else {
			entry.RawLinkTarget = []byte(target)
		}
	default:
		return fmt.Errorf("%s: this client knows files, directories and symbolic links only", name)
	}
	return to.entry(entry)
}

// file sends a file: inline if it is small, else as Data parts and an EntryEnd.
func (to *sender) file(name string, entry *staddle.Entry) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	first := make([]byte, inlineBytesMax+1)
	count, err := io.ReadFull(file, first)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		entry.Data = first[:count]
		to.dataBytes += uint64(count)
		return to.entry(entry)
	}
	if err != nil {
		return err
	}
	if err := to.entry(entry); err != nil {
		return err
	}
	return to.data(io.MultiReader(bytes.NewReader(first), file))
}

// data sends the bytes of the open entry, and ends it.
func (to *sender) data(source io.Reader) error {
	var size uint64
	for {
		piece := make([]byte, messageBytes)
		count, err := io.ReadFull(source, piece)
		if count > 0 {
			size += uint64(count)
			part := &staddle.BackupPart_Data{Data: &staddle.Data{Data: piece[:count]}}
			if err := to.add(&staddle.BackupPart{Part: part}, count); err != nil {
				return err
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	to.dataBytes += size
	end := &staddle.BackupPart_EntryEnd{EntryEnd: &staddle.EntryEnd{SizeBytes: proto.Uint64(size)}}
	return to.add(&staddle.BackupPart{Part: end}, 0)
}

func (to *sender) entry(entry *staddle.Entry) error {
	to.entryCount++
	return to.add(&staddle.BackupPart{Part: &staddle.BackupPart_Entry{Entry: entry}}, len(entry.Path)+len(entry.Data))
}

func (to *sender) finish() error {
	finish := &staddle.Finish{EntryCount: to.entryCount, DataBytes: to.dataBytes}
	if err := to.add(&staddle.BackupPart{Part: &staddle.BackupPart_Finish{Finish: finish}}, 0); err != nil {
		return err
	}
	return to.flush()
}

// add puts a part into the message, and sends the message once it is large enough.
func (to *sender) add(part *staddle.BackupPart, bytes int) error {
	to.parts = append(to.parts, part)
	to.bytes += bytes + partOverheadBytes
	if to.bytes < messageBytes {
		return nil
	}
	return to.flush()
}

func (to *sender) flush() error {
	message := &staddle.BackupRequest{Parts: to.parts}
	to.parts, to.bytes = nil, 0
	return to.stream.Send(message)
}
