package dev.staddle.interop;

import com.google.gson.JsonObject;
import com.google.protobuf.ByteString;
import dev.staddle.v1.Backup;
import dev.staddle.v1.Entry;
import dev.staddle.v1.ListBackupsRequest;
import dev.staddle.v1.ListBackupsResponse;
import dev.staddle.v1.ListEntriesRequest;
import dev.staddle.v1.ListEntriesResponse;
import dev.staddle.v1.StaddleServiceGrpc.StaddleServiceBlockingV2Stub;
import io.grpc.StatusException;
import java.util.HexFormat;

/** Prints a dataset's backups, newest first, and then the entries of the newest one. */
final class Listing {
    /** Small, so that even a small backup has several pages. */
    private static final int PAGE_SIZE = 5;

    private Listing() {}

    static void run(StaddleServiceBlockingV2Stub stub, String dataset) throws StatusException {
        ListBackupsRequest.Builder request = ListBackupsRequest.newBuilder().setDataset(dataset).setPageSize(PAGE_SIZE);
        ListBackupsResponse page;
        do {
            page = stub.listBackups(request.build());
            page.getBackupsList().forEach(each -> Main.printLine(summary(each)));
            request.setPageToken(page.getNextPageToken());
        } while (!page.getNextPageToken().isEmpty());
        entries(stub, dataset);
    }

    private static void entries(StaddleServiceBlockingV2Stub stub, String dataset) throws StatusException {
        ListEntriesRequest.Builder request =
                ListEntriesRequest.newBuilder().setDataset(dataset).setRecursive(true).setPageSize(PAGE_SIZE);
        ListEntriesResponse page;
        do {
            page = stub.listEntries(request.build());
            page.getEntriesList().forEach(each -> Main.printLine(line(each)));
            request.setPageToken(page.getNextPageToken());
        } while (!page.getNextPageToken().isEmpty());
    }

    /** What is printed of a backup. */
    static JsonObject summary(Backup backup) {
        JsonObject line = new JsonObject();
        line.addProperty("backup", backup.getId());
        line.addProperty("number", backup.getNumber());
        line.addProperty("entries", backup.getEntryCount());
        line.addProperty("bytes", backup.getDataBytes());
        return line;
    }

    private static JsonObject line(Entry entry) {
        JsonObject line = new JsonObject();
        line.addProperty("path_hex", hex(RawPath.of(entry.getPathBytes(), entry.getRawPath())));
        line.addProperty("type", entry.getType().name());
        line.addProperty("bytes", entry.getContent().getSizeBytes());
        line.addProperty("content_id", hex(entry.getContent().getContentId()));
        return line;
    }

    private static String hex(ByteString bytes) {
        return HexFormat.of().formatHex(bytes.toByteArray());
    }
}
