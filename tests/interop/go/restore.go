package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	staddle "staddle.dev/interop/gen/staddle/v1"
)

// restorer writes what a Restore stream brings below a new directory, and checks it.
type restorer struct {
	target string
	// The directories that this run made: nothing is written anywhere else, whatever a path says.
	made map[string]bool
	// Directories get their mode and times last, since writing into them changes those.
	directories []*staddle.Entry

	open     *staddle.Entry
	file     *os.File
	content  content
	received uint64

	entryCount, dataBytes, damageCount uint64
	backup                             *staddle.Backup
	end                                *staddle.End
}

// restore writes the newest backup of a dataset to a directory that is not there yet.
func restore(ctx context.Context, client staddle.StaddleServiceClient, dataset, directory string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Restore(ctx, &staddle.RestoreRequest{Dataset: dataset})
	if err != nil {
		return err
	}
	to := &restorer{target: directory, made: map[string]bool{}}
	defer to.abandon()
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, part := range message.GetParts() {
			if err := to.part(part); err != nil {
				return err
			}
		}
	}
	if err := to.complete(); err != nil {
		return err
	}
	err = printLine(map[string]any{
		"backup": to.backup.GetId(), "entries": to.entryCount, "bytes": to.dataBytes, "damaged": to.damageCount,
	})
	if err == nil && to.damageCount > 0 {
		return errDamaged
	}
	return err
}

func (to *restorer) part(part *staddle.RestorePart) error {
	switch {
	case to.end != nil:
		return errors.New("a part came after the end")
	case to.backup == nil && part.GetHeader() == nil:
		return errors.New("the first part is not the header")
	}
	switch each := part.GetPart().(type) {
	case *staddle.RestorePart_Header:
		to.backup = each.Header.GetBackup()
		to.made["."] = true
		return os.Mkdir(to.target, 0o700)
	case *staddle.RestorePart_Entry:
		return to.entry(each.Entry)
	case *staddle.RestorePart_Data:
		return to.data(each.Data)
	case *staddle.RestorePart_EntryEnd:
		return to.entryEnd(each.EntryEnd)
	case *staddle.RestorePart_Damage:
		return to.damage(each.Damage)
	case *staddle.RestorePart_End:
		to.end = each.End
		return nil
	default:
		return fmt.Errorf("a part that was not asked for: %T", each)
	}
}

// place is where a path of the backup is written; an error if that is not below what this run made.
func (to *restorer) place(path string) (string, error) {
	if path == "" {
		return to.target, nil
	}
	for _, component := range strings.Split(path, "/") {
		if component == "" || component == "." || component == ".." || strings.ContainsRune(component, 0) {
			return "", fmt.Errorf("%q is not a path that a backup may have", path)
		}
	}
	if !to.made[filepath.Dir(path)] {
		return "", fmt.Errorf("%q came before its directory, or below something that is none", path)
	}
	return filepath.Join(to.target, path), nil
}

func (to *restorer) entry(entry *staddle.Entry) error {
	path := pathOf(entry.GetPath(), entry.GetRawPath())
	if to.open != nil {
		return fmt.Errorf("%q came before the end of the file before it", path)
	}
	name, err := to.place(path)
	if err != nil {
		return err
	}
	to.entryCount++
	switch entry.GetType() {
	case staddle.EntryType_ENTRY_TYPE_DIRECTORY:
		to.directories = append(to.directories, entry)
		if path == "" {
			return nil
		}
		to.made[path] = true
		return os.Mkdir(name, 0o700)
	case staddle.EntryType_ENTRY_TYPE_SYMLINK:
		if err := os.Symlink(pathOf(entry.GetLinkTarget(), entry.GetRawLinkTarget()), name); err != nil {
			return err
		}
		return setTime(name, entry)
	case staddle.EntryType_ENTRY_TYPE_FILE:
		return to.begin(name, entry)
	default:
		return fmt.Errorf("%q: this client knows files, directories and symbolic links only", path)
	}
}

// begin makes the file. With its data inline it is complete; an empty file is so, too.
func (to *restorer) begin(name string, entry *staddle.Entry) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	to.open, to.file, to.content, to.received = entry, file, content{}, 0
	size := entry.GetContent().GetSizeBytes()
	if entry.Data == nil && size > 0 {
		return nil
	}
	if len(entry.Data) > 0 {
		if err := to.write(entry.Data, []uint32{uint32(len(entry.Data))}); err != nil {
			return err
		}
	}
	return to.close(size, entry.GetContent().GetContentId())
}

func (to *restorer) data(data *staddle.Data) error {
	if to.open == nil {
		return errors.New("data came without a file")
	}
	if data.GetZeroBytes() == 0 {
		return to.write(data.GetData(), data.GetChunkLengths())
	}
	var zeros uint64
	for _, length := range data.GetChunkLengths() {
		zeros += uint64(length)
		if err := to.write(make([]byte, length), []uint32{length}); err != nil {
			return err
		}
	}
	if zeros != data.GetZeroBytes() {
		return fmt.Errorf("%q: %d zero bytes are not the %d of their chunks", to.file.Name(), data.GetZeroBytes(), zeros)
	}
	return nil
}

func (to *restorer) write(data []byte, lengths []uint32) error {
	if err := to.content.chunks(data, lengths); err != nil {
		return fmt.Errorf("%q: %w", to.file.Name(), err)
	}
	to.received += uint64(len(data))
	_, err := to.file.Write(data)
	return err
}

func (to *restorer) entryEnd(end *staddle.EntryEnd) error {
	if to.open == nil {
		return errors.New("a file ended that had not begun")
	}
	if end.SizeBytes == nil || end.GetSizeBytes() != to.open.GetContent().GetSizeBytes() {
		return fmt.Errorf("%q: its end does not state the size that its beginning did", to.file.Name())
	}
	if !bytes.Equal(end.GetContentId(), to.open.GetContent().GetContentId()) {
		return fmt.Errorf("%q: its end does not state the content id that its beginning did", to.file.Name())
	}
	return to.close(end.GetSizeBytes(), end.GetContentId())
}

// close checks the open file against its size and content id, and finishes it.
func (to *restorer) close(size uint64, id []byte) error {
	name, entry := to.file.Name(), to.open
	if to.received != size {
		return fmt.Errorf("%q: %d bytes came of %d", name, to.received, size)
	}
	if computed := to.content.id(); !bytes.Equal(computed, id) {
		return fmt.Errorf("%q: its content id is %x, and %x was stated", name, computed, id)
	}
	to.dataBytes += size
	to.open = nil
	if err := to.file.Close(); err != nil {
		return err
	}
	return setMetadata(name, entry)
}

// damage takes away what was written of the open file.
func (to *restorer) damage(damage *staddle.Damage) error {
	path := pathOf(damage.GetPath(), damage.GetRawPath())
	fmt.Fprintf(os.Stderr, "interop: %q is damaged: %s\n", path, damage.GetMessage())
	to.damageCount++
	if to.open == nil {
		return nil
	}
	if path != pathOf(to.open.GetPath(), to.open.GetRawPath()) {
		return fmt.Errorf("%q is damaged, and %q was open", path, to.file.Name())
	}
	to.open = nil
	return errors.Join(to.file.Close(), os.Remove(to.file.Name()))
}

// complete: a stream without its end is a failure, and so is one that sent other counts than it states.
func (to *restorer) complete() error {
	if to.end == nil {
		return errors.New("the stream ended without its end: this is not the whole backup")
	}
	if to.open != nil {
		return fmt.Errorf("%q did not end", to.file.Name())
	}
	got := [3]uint64{to.entryCount, to.dataBytes, to.damageCount}
	stated := [3]uint64{to.end.GetEntryCount(), to.end.GetDataBytes(), to.end.GetDamageCount()}
	if got != stated {
		return fmt.Errorf("entries, bytes, damages: %d came, and %d were stated", got, stated)
	}
	for index := len(to.directories) - 1; index >= 0; index-- {
		entry := to.directories[index]
		path := pathOf(entry.GetPath(), entry.GetRawPath())
		if err := setMetadata(filepath.Join(to.target, path), entry); err != nil {
			return err
		}
	}
	return nil
}

// abandon closes the file that a failure left open.
func (to *restorer) abandon() {
	if to.open != nil {
		to.file.Close()
	}
}

func setMetadata(name string, entry *staddle.Entry) error {
	if entry.Mode != nil {
		if err := unix.Chmod(name, entry.GetMode()); err != nil {
			return fmt.Errorf("%q: mode: %w", name, err)
		}
	}
	return setTime(name, entry)
}

func setTime(name string, entry *staddle.Entry) error {
	if entry.MtimeNs == nil {
		return nil
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(entry.GetMtimeNs())}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: time: %w", name, err)
	}
	return nil
}
