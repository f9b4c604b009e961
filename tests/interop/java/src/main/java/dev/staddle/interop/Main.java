package dev.staddle.interop;

import com.google.gson.JsonObject;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.Code;
import com.google.rpc.ErrorInfo;
import dev.staddle.v1.StaddleServiceGrpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Map;

/**
 * A small Staddle client, generated from the protos alone: what another service would write.
 *
 * <pre>
 * interop backup DIR DATASET
 * interop list DATASET
 * interop restore DATASET DIR
 * </pre>
 *
 * <p>STADDLE_SERVER is HOST:PORT and STADDLE_TOKEN a token. Results are JSON lines on standard output. The exit status
 * is 1 after a failure, which is reported as "CODE REASON: message", 2 for wrong usage, and 3 if a path is damaged.
 */
public final class Main {
    private static final String USAGE = "usage: interop backup DIR DATASET | list DATASET | restore DATASET DIR";
    private static final String ERROR_DOMAIN = "staddle";
    private static final int MESSAGE_BYTES_MAX = 4 << 20;
    private static final Map<String, Integer> ARGUMENTS = Map.of("backup", 3, "list", 2, "restore", 3);

    private Main() {}

    public static void main(String[] arguments) {
        if (arguments.length == 0 || !Integer.valueOf(arguments.length).equals(ARGUMENTS.get(arguments[0]))) {
            System.err.println(USAGE);
            System.exit(2);
        }
        System.exit(run(arguments));
    }

    private static int run(String[] arguments) {
        ManagedChannel channel = NettyChannelBuilder.forTarget(System.getenv("STADDLE_SERVER"))
                .usePlaintext() // this client connects to loopback only
                .maxInboundMessageSize(MESSAGE_BYTES_MAX)
                .build();
        try {
            var stub = StaddleServiceGrpc.newBlockingV2Stub(channel)
                    .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(bearer(System.getenv("STADDLE_TOKEN"))));
            switch (arguments[0]) {
                case "backup" -> Backup.run(stub, Path.of(arguments[1]), arguments[2]);
                case "list" -> Listing.run(stub, arguments[1]);
                default -> {
                    if (Restore.run(stub, arguments[1], Path.of(arguments[2])) > 0) {
                        return 3;
                    }
                }
            }
            return 0;
        } catch (StatusException | StatusRuntimeException error) {
            System.err.println("interop: " + describe(error));
        } catch (IOException error) {
            System.err.println("interop: " + error);
        } catch (InterruptedException error) {
            System.err.println("interop: interrupted");
        } finally {
            channel.shutdownNow();
        }
        return 1;
    }

    private static Metadata bearer(String token) {
        Metadata headers = new Metadata();
        headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
        return headers;
    }

    /** An error of the server as its code, the reason in its ErrorInfo, and its message. */
    private static String describe(Exception error) {
        com.google.rpc.Status answer = StatusProto.fromThrowable(error);
        if (answer == null) {
            Status plain = Status.fromThrowable(error);
            String cause = plain.getCause() == null ? "" : " (" + plain.getCause().getMessage() + ")";
            return plain.getCode() + " without a reason: " + plain.getDescription() + cause;
        }
        String reason = "without a reason";
        for (Any detail : answer.getDetailsList()) {
            if (detail.is(ErrorInfo.class)) {
                try {
                    ErrorInfo info = detail.unpack(ErrorInfo.class);
                    reason = info.getDomain().equals(ERROR_DOMAIN) ? info.getReason() : reason;
                } catch (InvalidProtocolBufferException broken) {
                    reason = "with a reason that cannot be read";
                }
            }
        }
        return Code.forNumber(answer.getCode()) + " " + reason + ": " + answer.getMessage();
    }

    /** Writes one JSON line to standard output. */
    static void printLine(JsonObject fields) {
        System.out.println(fields);
    }
}
