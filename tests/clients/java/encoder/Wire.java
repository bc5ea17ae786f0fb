// One connection, and what is asked over it: bytes by Kafka's message classes, headers included.

import java.io.*;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.util.*;
import org.apache.kafka.common.message.*;
import org.apache.kafka.common.protocol.*;
import org.apache.kafka.common.protocol.types.Schema;

final class Wire {
    /** How a request is written beside its values. */
    record Form(Messages.Rest rest, boolean isTagged, String clientId) {}

    static final String CLIENT_ID = "encoder";
    static final Form PLAIN = new Form(Messages.Rest.FILLED, false, CLIENT_ID);
    /** Longer than any answer here is made to wait. */
    private static final int ANSWER_MS_MAX = 20_000;

    private final String host;
    private final int port;
    private Socket socket;
    private int correlation = 0;

    Wire(String host, int port) {
        this.host = host;
        this.port = port;
    }

    /** Asks in the form of most, and checks all that can be of any answer. */
    Map<String, Object> ask(ApiMessageType api, int version, Map<String, Object> values) throws IOException {
        return ask(api, (short) version, values, PLAIN, new Messages.Names());
    }

    /** What is answered, field by field, once it is known to be all of the answer and nothing else. */
    Map<String, Object> ask(
            ApiMessageType api, short version, Map<String, Object> values, Form form, Messages.Names names) throws IOException {
        Schema schema = api.requestSchemas()[version];
        ApiMessage request = api.newRequest();
        new Messages.Filler(form.rest, form.isTagged, names).fill(request, schema, values);
        String what = api + " v" + version;
        try {
            return answer(api, version, exchange(frame(api, version, request, form)));
        } catch (EOFException error) {
            close();
            throw new IOException(what + ": the broker closed the connection on " + request, error);
        } catch (IOException | RuntimeException | AssertionError error) {
            close();
            throw new IOException(what + ": " + error + " at " + request, error);
        }
    }

    private ByteBuffer frame(ApiMessageType api, short version, ApiMessage request, Form form) {
        short headerVersion = api.requestHeaderVersion(version);
        RequestHeaderData header = new RequestHeaderData()
            .setRequestApiKey(api.apiKey()).setRequestApiVersion(version)
            .setCorrelationId(++correlation).setClientId(form.clientId);
        if (form.isTagged && headerVersion >= 2) header.unknownTaggedFields().add(Messages.UNKNOWN_TAG);
        return concat(encode(header, headerVersion), encode(request, version));
    }

    /** The answer to `frame`, without its length. */
    ByteBuffer exchange(ByteBuffer frame) throws IOException {
        if (socket == null) {
            socket = new Socket(host, port);
            socket.setSoTimeout(ANSWER_MS_MAX);
            socket.setTcpNoDelay(true);
        }
        DataOutputStream out = new DataOutputStream(new BufferedOutputStream(socket.getOutputStream()));
        out.writeInt(frame.remaining());
        out.write(frame.array(), frame.position(), frame.remaining());
        out.flush();
        DataInputStream in = new DataInputStream(socket.getInputStream());
        byte[] answer = new byte[in.readInt()];
        in.readFully(answer);
        return ByteBuffer.wrap(answer);
    }

    private Map<String, Object> answer(ApiMessageType api, short version, ByteBuffer bytes) {
        short headerVersion = api.responseHeaderVersion(version);
        ResponseHeaderData header = new ResponseHeaderData();
        ApiMessage response = api.newResponse();
        ByteBuffer rest = bytes.duplicate();
        header.read(new ByteBufferAccessor(rest), headerVersion);
        if (header.correlationId() != correlation)
            throw new AssertionError("the answer to request " + header.correlationId() + ", asked was " + correlation);
        response.read(new ByteBufferAccessor(rest), version);
        if (rest.hasRemaining()) throw new AssertionError(rest.remaining() + " bytes too many behind " + response);
        ByteBuffer again = concat(encode(header, headerVersion), encode(response, version));
        if (!again.equals(bytes))
            throw new AssertionError("Kafka writes this answer in other bytes, from byte " + bytes.mismatch(again) + " of "
                + bytes.remaining() + " on: " + hex(bytes) + ", Kafka: " + hex(again) + ", which is " + response);
        Map<String, Object> read = Messages.read(response, api.responseSchemas()[version]);
        refuseUnknownServerErrors(read);
        return read;
    }

    /** No request here is one at which a broker may be at its wits' end. */
    private static void refuseUnknownServerErrors(Object read) {
        if (read instanceof Map<?, ?> struct) {
            if (Objects.equals(struct.get("error_code"), -1L)) throw new AssertionError("UNKNOWN_SERVER_ERROR in " + struct);
            struct.values().forEach(Wire::refuseUnknownServerErrors);
        } else if (read instanceof List<?> list) {
            list.forEach(Wire::refuseUnknownServerErrors);
        }
    }

    static ByteBuffer encode(Message message, short version) {
        ObjectSerializationCache cache = new ObjectSerializationCache();
        ByteBufferAccessor accessor = new ByteBufferAccessor(ByteBuffer.allocate(message.size(cache, version)));
        message.write(accessor, cache, version);
        accessor.flip();
        return accessor.buffer();
    }

    private static ByteBuffer concat(ByteBuffer first, ByteBuffer second) {
        return ByteBuffer.allocate(first.remaining() + second.remaining()).put(first).put(second).flip();
    }

    private static String hex(ByteBuffer bytes) {
        return HexFormat.of().formatHex(bytes.array(), bytes.position(), bytes.limit());
    }

    /** The next request goes over a new connection. */
    void close() throws IOException {
        if (socket != null) socket.close();
        socket = null;
    }
}
