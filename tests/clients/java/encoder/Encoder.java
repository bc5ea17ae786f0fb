// Every advertised version of every API, asked in Apache Kafka's own encoding and read by its own decoder.
//
// java Encoder HOST:PORT [API...]  prints one line of JSON for each variety of each version; see ../../README.md.

import java.io.*;
import java.nio.ByteBuffer;
import java.util.*;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.message.ApiMessageType;
import org.apache.kafka.common.protocol.*;

public class Encoder {
    private static final int PRODUCE_VERSION_MIN = 3;

    private final Wire wire;
    private final World world;
    private int failures = 0;

    private Encoder(String host, int port) throws IOException {
        this.wire = new Wire(host, port);
        this.world = new World(wire, host, port);
    }

    public static void main(String[] args) throws IOException {
        int colon = args[0].lastIndexOf(':');
        new Encoder(args[0].substring(0, colon), Integer.parseInt(args[0].substring(colon + 1)))
            .run(List.of(args).subList(1, args.length));
    }

    /** Asks all that is advertised, or of the APIs with these keys. */
    private void run(List<String> only) throws IOException {
        var answer = wire.ask(ApiMessageType.API_VERSIONS, 4,
            Messages.struct("client_software_name", "encoder", "client_software_version", "1.0"));
        int asked = 0;
        for (Object row : (List<?>) answer.get("api_keys")) {
            short key = (short) Messages.number(row, "api_key");
            if (!only.isEmpty() && !only.contains(String.valueOf(key))) continue;
            int before = failures;
            Messages.Names requested = new Messages.Names(), expected = new Messages.Names();
            for (long version = Messages.number(row, "min_version"); version <= Messages.number(row, "max_version"); version++) {
                of(key, (short) version, requested, expected);
                asked++;
            }
            // Where a comparison failed, not all of the answer was looked at.
            boolean isSlip = !requested.unknown().isEmpty() || !expected.unknown().isEmpty();
            if (failures == before && isSlip)
                throw new IllegalStateException("api " + key + ": no version has " + requested.unknown() + " in the request, "
                    + expected.unknown() + " in the answer");
        }
        System.out.println("{\"done\": " + asked + "}");
    }

    interface Check { void run() throws IOException; }

    private void check(short key, short version, String variety, Check check) throws IOException {
        String line = "{\"api\": " + key + ", \"version\": " + version + ", \"variety\": \"" + variety + "\", \"detail\": ";
        try {
            check.run();
            System.out.println(line + "null}");
        } catch (IOException | RuntimeException | AssertionError error) {
            failures++;
            wire.close();
            System.out.println(line + quote(error.toString()) + "}");
        }
    }

    private static String quote(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') out.append('\\').append(c);
            else if (c < ' ' || c > '~') out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        return out.append('"').toString();
    }

    private void of(short key, short version, Messages.Names requested, Messages.Names expected) throws IOException {
        if (key == ApiMessageType.PRODUCE.apiKey() && version < PRODUCE_VERSION_MIN) {
            check(key, version, "refused", () -> refused(version));
            return;
        }
        ApiMessageType api = ApiMessageType.fromApiKey(key);
        check(key, version, "meant", () -> meant(api, version, Wire.PLAIN, requested, expected));
        if (Messages.isFlexible(api.requestSchemas()[version])) {
            var tagged = new Wire.Form(Messages.Rest.FILLED, true, Wire.CLIENT_ID);
            check(key, version, "tagged", () -> meant(api, version, tagged, requested, expected));
        }
        check(key, version, "filled", () -> any(api, version, Messages.Rest.FILLED));
        check(key, version, "null", () -> any(api, version, Messages.Rest.NULL));
        check(key, version, "default", () -> any(api, version, Messages.Rest.DEFAULT));
    }

    /** Requests that mean something, and answers that show that it was understood. */
    private void meant(ApiMessageType api, short version, Wire.Form form, Messages.Names requested, Messages.Names expected)
            throws IOException {
        List<World.Meaning> meanings = new RecordMeanings(world).of(api, version);
        if (meanings == null) meanings = new GroupMeanings(world).of(api, version);
        if (meanings == null) meanings = new AdminMeanings(world).of(api, version);
        if (meanings == null) throw new AssertionError("nobody says what " + api + " means: add it");
        for (World.Meaning meaning : meanings) {
            var answer = wire.ask(api, version, meaning.request(), form, requested);
            try {
                Messages.compare(meaning.answer(), answer, expected, "");
                meaning.after().look();
            } catch (AssertionError error) {
                throw new AssertionError(error.getMessage() + "; asked " + meaning.request() + ", answered " + answer);
            }
        }
    }

    /** Any request that can be written; whatever it means, it is answered. */
    private void any(ApiMessageType api, short version, Messages.Rest rest) throws IOException {
        // One that wants no acknowledgement has no answer.
        Map<String, Object> values = api == ApiMessageType.PRODUCE ? Messages.struct("acks", 1) : Map.of();
        var form = new Wire.Form(rest, false, rest == Messages.Rest.NULL ? null : Wire.CLIENT_ID);
        wire.ask(api, version, values, form, new Messages.Names());
    }

    /** A version that is advertised and not served: the connection is closed, as Kafka does. */
    private void refused(short version) throws IOException {
        ByteBuffer frame = ByteBuffer.allocate(64);
        frame.putShort(ApiMessageType.PRODUCE.apiKey()).putShort(version).putInt(1).putShort((short) -1);
        // Acknowledgements, how long to wait, no topics.
        frame.putShort((short) 1).putInt(1_000).putInt(0).flip();
        try {
            ByteBuffer answer = wire.exchange(frame);
            throw new AssertionError("answered with " + answer.remaining() + " bytes");
        } catch (EOFException closed) {
            wire.close();
        }
    }
}
