package dev.staddle.interop;

import com.google.protobuf.ByteString;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/**
 * Paths as the bytes that they are. Java decodes names with the platform's encoding and loses those that do not fit; only
 * file: URIs keep every byte.
 */
final class RawPath {
    private static final String PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/";

    private RawPath() {}

    /** A path from the two fields that it may be in. */
    static ByteString of(ByteString text, ByteString raw) {
        return raw.isEmpty() ? text : raw;
    }

    /** The path below a directory; the bytes have neither "." nor ".." nor empty components. */
    static Path below(Path directory, ByteString path) {
        return path.isEmpty() ? directory : path("/".concat(escape(bytes(directory))) + "/" + escape(path));
    }

    /** What a path is below a directory that it lies in. */
    static ByteString relative(Path directory, Path path) {
        ByteString base = bytes(directory);
        ByteString whole = bytes(path);
        return whole.size() == base.size() ? ByteString.EMPTY : whole.substring(base.size() + 1);
    }

    static ByteString readLink(Path link) throws IOException {
        Path target = Files.readSymbolicLink(link);
        ByteString whole = bytes(target);
        // A relative target is given below the working directory.
        return target.isAbsolute() ? ByteString.copyFromUtf8("/").concat(whole) : whole.substring(bytes(Path.of("")).size() + 1);
    }

    /** Makes a symbolic link; fails if Java would give it another target. */
    static void makeLink(Path link, ByteString target) throws IOException {
        boolean absolute = target.size() > 0 && target.byteAt(0) == '/';
        Path made = path((absolute ? "" : "/") + escape(target));
        Files.createSymbolicLink(link, absolute ? made : made.subpath(0, made.getNameCount()));
        if (!readLink(link).equals(target)) {
            throw new IOException(link + ": Java cannot make a link to " + target.toStringUtf8());
        }
    }

    /** The bytes of an absolute path, without the slash in front. */
    private static ByteString bytes(Path path) {
        String raw = path.toAbsolutePath().toUri().getRawPath();
        ByteArrayOutputStream bytes = new ByteArrayOutputStream(raw.length());
        for (int at = 1; at < raw.length(); at++) {
            if (raw.charAt(at) == '%') {
                bytes.write(Integer.parseInt(raw.substring(at + 1, at + 3), 16));
                at += 2;
            } else {
                bytes.write(raw.charAt(at));
            }
        }
        byte[] found = bytes.toByteArray();
        // The URI of a directory ends with a slash.
        boolean slash = found.length > 0 && found[found.length - 1] == '/';
        return ByteString.copyFrom(slash ? Arrays.copyOf(found, found.length - 1) : found);
    }

    private static Path path(String escaped) {
        return Path.of(URI.create("file://" + escaped));
    }

    private static String escape(ByteString path) {
        StringBuilder escaped = new StringBuilder();
        for (byte each : path) {
            if (PLAIN.indexOf(each) >= 0) {
                escaped.append((char) each);
            } else {
                escaped.append(String.format("%%%02X", each));
            }
        }
        return escaped.toString();
    }
}
