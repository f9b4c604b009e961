package dev.staddle.interop;

import com.google.protobuf.ByteString;
import dev.staddle.v1.BackupKind;
import dev.staddle.v1.BackupPart;
import dev.staddle.v1.BackupRequest;
import dev.staddle.v1.BackupResponse;
import dev.staddle.v1.BeginUploadRequest;
import dev.staddle.v1.Data;
import dev.staddle.v1.Entry;
import dev.staddle.v1.EntryEnd;
import dev.staddle.v1.EntryType;
import dev.staddle.v1.Finish;
import dev.staddle.v1.StaddleServiceGrpc.StaddleServiceBlockingV2Stub;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.attribute.BasicFileAttributes;
import java.nio.file.attribute.FileTime;
import java.util.concurrent.TimeUnit;

/** Sends everything in a directory as one Backup stream: a new FULL backup of the dataset. */
final class Backup {
    /** Up to this size a file goes inline, in its entry. */
    private static final int INLINE_BYTES_MAX = 64 << 10;
    /** A message is sent when it holds this much; no part is larger. */
    private static final int MESSAGE_BYTES = 1 << 20;
    /** Roughly what a part takes beside its data, so that a message of many empty files ends, too. */
    private static final int PART_OVERHEAD_BYTES = 128;

    private static final int MODE_BITS = 07777;

    private final BlockingClientCall<BackupRequest, BackupResponse> call;
    private BackupRequest.Builder message = BackupRequest.newBuilder();
    private int messageBytes;
    private long entryCount;
    private long dataBytes;

    private Backup(BlockingClientCall<BackupRequest, BackupResponse> call) {
        this.call = call;
    }

    static void run(StaddleServiceBlockingV2Stub stub, Path directory, String dataset)
            throws IOException, StatusException, InterruptedException {
        BlockingClientCall<BackupRequest, BackupResponse> call = stub.backup();
        Backup to = new Backup(call);
        try {
            to.add(BackupPart.newBuilder()
                    .setBegin(BeginUploadRequest.newBuilder().setDataset(dataset).setKind(BackupKind.BACKUP_KIND_FULL)), 0);
            to.tree(directory.toAbsolutePath());
            to.add(BackupPart.newBuilder()
                    .setFinish(Finish.newBuilder().setEntryCount(to.entryCount).setDataBytes(to.dataBytes)), 0);
            to.flush();
            call.halfClose();
        } catch (Ended ended) {
            // The server has ended the stream: its answer says why.
        } catch (IOException error) {
            call.cancel("the source cannot be read", error);
            throw error;
        }
        BackupResponse answer = call.read();
        if (answer == null) {
            throw new IOException("the server ended the stream without an answer");
        }
        Main.printLine(Listing.summary(answer.getBackup()));
    }

    /** Sends the directory itself, as the root, and all that lies in it. */
    private void tree(Path directory) throws IOException {
        Files.walkFileTree(directory, new SimpleFileVisitor<>() {
            @Override
            public FileVisitResult preVisitDirectory(Path found, BasicFileAttributes attributes) throws IOException {
                return one(found, RawPath.relative(directory, found), attributes);
            }

            @Override
            public FileVisitResult visitFile(Path found, BasicFileAttributes attributes) throws IOException {
                return one(found, RawPath.relative(directory, found), attributes);
            }
        });
    }

    private FileVisitResult one(Path found, ByteString path, BasicFileAttributes attributes) throws IOException {
        Entry.Builder entry = Entry.newBuilder()
                .setMode((Integer) Files.getAttribute(found, "unix:mode", LinkOption.NOFOLLOW_LINKS) & MODE_BITS)
                .setMtimeNs(nanoseconds(attributes.lastModifiedTime()));
        if (path.isValidUtf8()) {
            entry.setPathBytes(path);
        } else {
            entry.setRawPath(path);
        }
        if (attributes.isRegularFile()) {
            file(found, entry.setType(EntryType.ENTRY_TYPE_FILE));
        } else if (attributes.isDirectory()) {
            entry(entry.setType(EntryType.ENTRY_TYPE_DIRECTORY));
        } else if (attributes.isSymbolicLink()) {
            entry.setType(EntryType.ENTRY_TYPE_SYMLINK);
            ByteString target = RawPath.readLink(found);
            entry(target.isValidUtf8() ? entry.setLinkTargetBytes(target) : entry.setRawLinkTarget(target));
        } else {
            throw new IOException(found + ": this client knows files, directories and symbolic links only");
        }
        return FileVisitResult.CONTINUE;
    }

    /** Sends a file: inline if it is small, else as Data parts and an EntryEnd. */
    private void file(Path found, Entry.Builder entry) throws IOException {
        try (InputStream file = Files.newInputStream(found)) {
            byte[] piece = file.readNBytes(INLINE_BYTES_MAX + 1);
            if (piece.length <= INLINE_BYTES_MAX) {
                dataBytes += piece.length;
                entry(entry.setData(ByteString.copyFrom(piece)));
                return;
            }
            entry(entry);
            long size = 0;
            while (piece.length > 0) {
                size += piece.length;
                add(BackupPart.newBuilder().setData(Data.newBuilder().setData(ByteString.copyFrom(piece))), piece.length);
                piece = file.readNBytes(MESSAGE_BYTES);
            }
            dataBytes += size;
            add(BackupPart.newBuilder().setEntryEnd(EntryEnd.newBuilder().setSizeBytes(size)), 0);
        }
    }

    private void entry(Entry.Builder entry) throws IOException {
        entryCount++;
        add(BackupPart.newBuilder().setEntry(entry), entry.getPathBytes().size() + entry.getData().size());
    }

    /** Puts a part into the message, and sends the message once it is large enough. */
    private void add(BackupPart.Builder part, int bytes) throws IOException {
        message.addParts(part);
        messageBytes += bytes + PART_OVERHEAD_BYTES;
        if (messageBytes >= MESSAGE_BYTES) {
            flush();
        }
    }

    private void flush() throws IOException {
        try {
            if (!call.write(message.build())) {
                throw new Ended();
            }
        } catch (StatusException | InterruptedException error) {
            throw new Ended();
        }
        message = BackupRequest.newBuilder();
        messageBytes = 0;
    }

    private static long nanoseconds(FileTime time) {
        return Math.addExact(
                Math.multiplyExact(time.toInstant().getEpochSecond(), TimeUnit.SECONDS.toNanos(1)), time.toInstant().getNano());
    }

    /** The call ended before everything was sent. */
    private static final class Ended extends IOException {}
}
