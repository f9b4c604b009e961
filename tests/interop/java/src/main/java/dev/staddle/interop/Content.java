package dev.staddle.interop;

import com.google.protobuf.ByteString;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.List;
import org.apache.commons.codec.digest.Blake3;

/** Computes a file's content id from its chunks, as Content.content_id defines it. */
final class Content {
    private static final byte[] CONTEXT = "staddle.v1 content id".getBytes(StandardCharsets.US_ASCII);
    private static final int DIGEST_BYTES = 32;

    private final Blake3 list = Blake3.initKeyDerivationFunction(CONTEXT);
    private long count;
    private byte[] first = Blake3.hash(new byte[0]);

    /** Takes bytes that are whole chunks of these lengths. */
    void chunks(ByteString data, List<Integer> lengths) throws IOException {
        int at = 0;
        for (int length : lengths) {
            if (length < 0 || length > data.size() - at) {
                throw new IOException(
                        "a chunk of " + Integer.toUnsignedString(length) + " bytes, and only " + (data.size() - at) + " are left in its part");
            }
            chunk(data.substring(at, at + length).toByteArray());
            at += length;
        }
        if (at < data.size()) {
            throw new IOException((data.size() - at) + " bytes belong to no chunk");
        }
    }

    private void chunk(byte[] data) {
        byte[] digest = Blake3.hash(data);
        if (count++ == 0) {
            first = digest;
        }
        list.update(ByteBuffer.allocate(Integer.BYTES).order(ByteOrder.LITTLE_ENDIAN).putInt(data.length).array());
        list.update(digest);
    }

    ByteString id() {
        return ByteString.copyFrom(count <= 1 ? first : list.doFinalize(DIGEST_BYTES));
    }
}
