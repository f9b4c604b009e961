package dev.staddle.interop;

import com.google.gson.JsonObject;
import com.google.protobuf.ByteString;
import dev.staddle.v1.Damage;
import dev.staddle.v1.Data;
import dev.staddle.v1.End;
import dev.staddle.v1.Entry;
import dev.staddle.v1.EntryEnd;
import dev.staddle.v1.RestorePart;
import dev.staddle.v1.RestoreRequest;
import dev.staddle.v1.RestoreResponse;
import dev.staddle.v1.StaddleServiceGrpc.StaddleServiceBlockingV2Stub;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.BasicFileAttributeView;
import java.nio.file.attribute.FileTime;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/** Writes what a Restore stream brings below a new directory, and checks it. */
final class Restore {
    private static final int CHUNK_BYTES_MAX = 1 << 20;

    private final Path target;
    /** The directories that this run made: nothing is written anywhere else, whatever a path says. */
    private final Set<ByteString> made = new HashSet<>();
    /** Directories get their mode and times last, since writing into them changes those. */
    private final List<Entry> directories = new ArrayList<>();

    private Entry open;
    private Path openName;
    private OutputStream file;
    private Content content;
    private long received;

    private long entryCount;
    private long dataBytes;
    private long damageCount;
    private dev.staddle.v1.Backup backup;
    private End end;

    private Restore(Path target) {
        this.target = target;
    }

    /** Restores the newest backup of a dataset to a directory that must not exist; answers how many paths are damaged. */
    static long run(StaddleServiceBlockingV2Stub stub, String dataset, Path target)
            throws IOException, StatusException, InterruptedException {
        Restore to = new Restore(target.toAbsolutePath());
        BlockingClientCall<?, RestoreResponse> call =
                stub.restore(RestoreRequest.newBuilder().setDataset(dataset).build());
        try {
            for (RestoreResponse message = call.read(); message != null; message = call.read()) {
                for (RestorePart part : message.getPartsList()) {
                    to.part(part);
                }
            }
        } catch (IOException error) {
            call.cancel("what came cannot be written", error);
            throw error;
        } finally {
            if (to.file != null) {
                to.file.close();
            }
        }
        to.complete();
        JsonObject line = new JsonObject();
        line.addProperty("backup", to.backup.getId());
        line.addProperty("entries", to.entryCount);
        line.addProperty("bytes", to.dataBytes);
        line.addProperty("damaged", to.damageCount);
        Main.printLine(line);
        return to.damageCount;
    }

    private void part(RestorePart part) throws IOException {
        check(end == null, "a part came after the end");
        check(backup != null || part.hasHeader(), "the first part is not the header");
        switch (part.getPartCase()) {
            case HEADER -> {
                check(backup == null, "a second header came");
                backup = part.getHeader().getBackup();
                made.add(ByteString.EMPTY);
                Files.createDirectory(target);
            }
            case ENTRY -> entry(part.getEntry());
            case DATA -> data(part.getData());
            case ENTRY_END -> entryEnd(part.getEntryEnd());
            case DAMAGE -> damage(part.getDamage());
            case END -> end = part.getEnd();
            default -> throw new IOException("a part that was not asked for: " + part.getPartCase());
        }
    }

    /** Where a path of the backup is written; an error if that is not below what this run made. */
    private Path place(ByteString path) throws IOException {
        int start = 0;
        for (int at = 0; at <= path.size() && !path.isEmpty(); at++) {
            if (at == path.size() || path.byteAt(at) == '/') {
                String component = path.substring(start, at).toStringUtf8();
                check(!component.isEmpty() && !component.equals(".") && !component.equals(".."), "no backup has this path", path);
                start = at + 1;
            } else {
                check(path.byteAt(at) != 0, "no backup has this path", path);
            }
        }
        check(path.isEmpty() || made.contains(parent(path)), "it came before its directory, or below something that is none", path);
        return RawPath.below(target, path);
    }

    private static ByteString parent(ByteString path) {
        int slash = path.size() - 1;
        while (slash > 0 && path.byteAt(slash) != '/') {
            slash--;
        }
        return path.substring(0, slash);
    }

    private void entry(Entry entry) throws IOException {
        ByteString path = RawPath.of(entry.getPathBytes(), entry.getRawPath());
        check(open == null, "it came before the end of the file before it", path);
        Path name = place(path);
        entryCount++;
        switch (entry.getType()) {
            case ENTRY_TYPE_DIRECTORY -> {
                directories.add(entry);
                if (!path.isEmpty()) {
                    made.add(path);
                    Files.createDirectory(name);
                }
            }
            case ENTRY_TYPE_SYMLINK -> {
                RawPath.makeLink(name, RawPath.of(entry.getLinkTargetBytes(), entry.getRawLinkTarget()));
                setTime(name, entry);
            }
            case ENTRY_TYPE_FILE -> begin(name, entry);
            default -> throw new IOException(name + ": this client knows files, directories and symbolic links only");
        }
    }

    /** Makes the file. It is complete if its data is inline or it is empty. */
    private void begin(Path name, Entry entry) throws IOException {
        file = Files.newOutputStream(name, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE);
        open = entry;
        openName = name;
        content = new Content();
        received = 0;
        if (!entry.hasData() && entry.getContent().getSizeBytes() != 0) {
            return;
        }
        if (!entry.getData().isEmpty()) {
            write(entry.getData(), List.of(entry.getData().size()));
        }
        close(entry.getContent().getSizeBytes(), entry.getContent().getContentId());
    }

    private void data(Data data) throws IOException {
        check(open != null, "data came without a file");
        if (data.getZeroBytes() == 0) {
            write(data.getData(), data.getChunkLengthsList());
            return;
        }
        long zeros = 0;
        for (int length : data.getChunkLengthsList()) {
            check(length > 0 && length <= CHUNK_BYTES_MAX, "a chunk of " + Integer.toUnsignedString(length) + " bytes came");
            zeros += length;
            write(ByteString.copyFrom(new byte[length]), List.of(length));
        }
        check(zeros == data.getZeroBytes(), openName + ": its zero bytes are not those of their chunks");
    }

    private void write(ByteString data, List<Integer> lengths) throws IOException {
        content.chunks(data, lengths);
        received += data.size();
        data.writeTo(file);
    }

    private void entryEnd(EntryEnd stated) throws IOException {
        check(open != null, "a file ended that had not begun");
        check(stated.hasSizeBytes() && stated.getSizeBytes() == open.getContent().getSizeBytes(),
                openName + ": its end does not state the size that its beginning did");
        check(stated.getContentId().equals(open.getContent().getContentId()),
                openName + ": its end does not state the content id that its beginning did");
        close(stated.getSizeBytes(), stated.getContentId());
    }

    /** Checks the open file against its size and content id, and finishes it. */
    private void close(long size, ByteString id) throws IOException {
        check(received == size, openName + ": " + received + " bytes came of " + size);
        check(content.id().equals(id), openName + ": its bytes do not have the content id that was stated");
        dataBytes += size;
        Entry complete = open;
        open = null;
        file.close();
        file = null;
        setMetadata(openName, complete);
    }

    /** Removes what was written of the open file. */
    private void damage(Damage damage) throws IOException {
        ByteString path = RawPath.of(damage.getPathBytes(), damage.getRawPath());
        System.err.println("interop: '" + path.toStringUtf8() + "' is damaged: " + damage.getMessage());
        damageCount++;
        if (open == null) {
            return;
        }
        check(path.equals(RawPath.of(open.getPathBytes(), open.getRawPath())), "it is damaged, and " + openName + " was open", path);
        open = null;
        file.close();
        file = null;
        Files.delete(openName);
    }

    /** A stream without its end is a failure, and so is one that sent other counts than it states. */
    private void complete() throws IOException {
        check(end != null, "the stream ended without its end: this is not the whole backup");
        check(open == null, openName + " did not end");
        check(entryCount == end.getEntryCount() && dataBytes == end.getDataBytes() && damageCount == end.getDamageCount(),
                entryCount + " entries, " + dataBytes + " bytes and " + damageCount + " damages came, and the end states "
                        + end.getEntryCount() + ", " + end.getDataBytes() + " and " + end.getDamageCount());
        for (int at = directories.size() - 1; at >= 0; at--) {
            Entry each = directories.get(at);
            setMetadata(RawPath.below(target, RawPath.of(each.getPathBytes(), each.getRawPath())), each);
        }
    }

    private static void setMetadata(Path name, Entry entry) throws IOException {
        if (entry.hasMode()) {
            Files.setAttribute(name, "unix:mode", entry.getMode());
        }
        setTime(name, entry);
    }

    private static void setTime(Path name, Entry entry) throws IOException {
        if (entry.hasMtimeNs()) {
            Files.getFileAttributeView(name, BasicFileAttributeView.class, LinkOption.NOFOLLOW_LINKS)
                    .setTimes(FileTime.from(settable(entry.getMtimeNs())), null, null);
        }
    }

    /** The nearest time that Java can set: before 1970 it takes whole seconds, and turns all others into 1970 silently. */
    private static Instant settable(long ns) {
        return ns >= 0 ? Instant.ofEpochSecond(0, ns) : Instant.ofEpochSecond(Math.floorDiv(ns + 500_000_000L, 1_000_000_000L));
    }

    private static void check(boolean holds, String otherwise) throws IOException {
        if (!holds) {
            throw new IOException(otherwise);
        }
    }

    private static void check(boolean holds, String otherwise, ByteString path) throws IOException {
        check(holds, "'" + path.toStringUtf8() + "': " + otherwise);
    }
}
