// Kafka's generated message classes, filled and read by their schemas: what a version has is filled, all of it.

import java.lang.reflect.Method;
import java.lang.reflect.ParameterizedType;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.function.Predicate;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.protocol.Message;
import org.apache.kafka.common.protocol.types.*;
import org.apache.kafka.common.record.*;

final class Messages {
    /** What becomes of the fields that nobody gives a value. */
    enum Rest { FILLED, NULL, DEFAULT }

    static final String TAGS = "_tagged_fields";
    /** A tag that no version knows; who reads it has to pass over it. */
    static final RawTaggedField UNKNOWN_TAG = new RawTaggedField(10_000, bytes("of a later version"));
    static final Uuid SOME_UUID = new Uuid(0x0102030405060708L, 0x1112131415161718L);

    private Messages() {}

    static byte[] bytes(String text) { return text.getBytes(StandardCharsets.UTF_8); }

    /** A struct by the names of its fields in the schema; values may be null. */
    static Map<String, Object> struct(Object... namesAndValues) {
        Map<String, Object> struct = new LinkedHashMap<>();
        for (int n = 0; n < namesAndValues.length; n += 2) struct.put((String) namesAndValues[n], namesAndValues[n + 1]);
        return struct;
    }

    static List<Object> list(Object... values) { return Arrays.asList(values); }

    static MemoryRecords batch(long timestamp, String value) {
        return MemoryRecords.withRecords(Compression.NONE, new SimpleRecord(timestamp, bytes("key"), bytes(value)));
    }

    /** A field of a version, with how the class sets and gets it. */
    private record Property(String name, Type type, Method setter, Method getter) {
        static Property of(Class<?> of, Field field) {
            StringBuilder camel = new StringBuilder();
            for (String word : field.name.split("_"))
                camel.append(Character.toUpperCase(word.charAt(0))).append(word.substring(1));
            String getter = Character.toLowerCase(camel.charAt(0)) + camel.substring(1);
            for (Method setter : of.getMethods()) {
                if (!setter.getName().equals("set" + camel)) continue;
                try {
                    return new Property(field.name, field.type, setter, of.getMethod(getter));
                } catch (NoSuchMethodException error) {
                    throw new IllegalStateException(error);
                }
            }
            throw new IllegalStateException(of + " cannot set " + field.name);
        }

        Object get(Object message) {
            try {
                return getter.invoke(message);
            } catch (ReflectiveOperationException error) {
                throw new IllegalStateException(error);
            }
        }

        void set(Object message, Object value) {
            try {
                setter.invoke(message, value);
            } catch (ReflectiveOperationException error) {
                throw new IllegalStateException(name + " = " + value, error);
            }
        }

        java.lang.reflect.Type setType() { return setter.getGenericParameterTypes()[0]; }
    }

    private static List<Property> properties(Class<?> of, Schema schema) {
        List<Property> properties = new ArrayList<>();
        for (BoundField field : schema.fields()) {
            if (field.def.type instanceof TaggedFields tagged)
                tagged.fields().values().forEach(tag -> properties.add(Property.of(of, tag)));
            else
                properties.add(Property.of(of, field.def));
        }
        return properties;
    }

    static boolean isFlexible(Schema schema) { return schema.get(TAGS) != null; }

    // Building.

    /** Fills messages; notes which of the names that it was given some version had. */
    static final class Filler {
        private final Rest rest;
        private final boolean isTagged;
        private final Names names;

        Filler(Rest rest, boolean isTagged, Names names) {
            this.rest = rest;
            this.isTagged = isTagged;
            this.names = names;
        }

        void fill(Object message, Schema schema, Map<String, Object> values) { fill(message, schema, values, ""); }

        private void fill(Object message, Schema schema, Map<String, Object> values, String path) {
            names.given(path, values.keySet());
            for (Property property : properties(message.getClass(), schema)) {
                String name = path + property.name();
                if (values.containsKey(property.name())) {
                    names.seen(name);
                    property.set(message, value(property.setType(), property.type(), values.get(property.name()), name));
                } else if (rest == Rest.NULL && isNullable(property, message)) {
                    property.set(message, null);
                } else if (rest != Rest.DEFAULT) {
                    property.set(message, anything(property.setType(), property.type(), name));
                }
            }
            if (isTagged && isFlexible(schema)) ((Message) message).unknownTaggedFields().add(UNKNOWN_TAG);
        }

        private static boolean isNullable(Property property, Object message) {
            // The schema of a struct does not say it, its default does.
            return property.type().isNullable() || (property.type() instanceof Schema && property.get(message) == null);
        }

        private Object value(java.lang.reflect.Type wanted, Type type, Object given, String path) {
            if (given == null) return null;
            if (type.isArray()) {
                List<Object> elements = new ArrayList<>();
                for (Object element : (List<?>) given)
                    elements.add(value(elementOf(wanted), type.arrayElementType().get(), element, path));
                return collection(wanted, elements);
            }
            if (type instanceof Schema schema) return structOf(wanted, schema, asStruct(given), path);
            Class<?> raw = (Class<?>) wanted;
            if (given instanceof Number number) return number(raw, number.longValue());
            if (given instanceof byte[] bytes && raw == ByteBuffer.class) return ByteBuffer.wrap(bytes);
            return given;
        }

        /** A value that is not the default one. */
        private Object anything(java.lang.reflect.Type wanted, Type type, String path) {
            if (type.isArray()) {
                Type element = type.arrayElementType().get();
                return collection(wanted, List.of(anything(elementOf(wanted), element, path)));
            }
            if (type instanceof Schema schema) return structOf(wanted, schema, Map.of(), path);
            Class<?> raw = (Class<?>) wanted;
            if (raw == String.class) return "é-" + path;
            if (raw == boolean.class) return true;
            if (raw == Uuid.class) return SOME_UUID;
            if (raw == byte[].class) return bytes(path);
            if (raw == ByteBuffer.class) return ByteBuffer.wrap(bytes(path));
            if (raw == BaseRecords.class) return batch(1, "anything");
            if (raw == double.class) return 1.5;
            return number(raw, 3);
        }

        private static Object number(Class<?> wanted, long value) {
            if (wanted == byte.class || wanted == Byte.class) return (byte) value;
            if (wanted == short.class || wanted == Short.class) return (short) value;
            if (wanted == int.class || wanted == Integer.class) return (int) value;
            if (wanted == long.class || wanted == Long.class) return value;
            throw new IllegalStateException("no number: " + wanted);
        }

        private Object structOf(java.lang.reflect.Type wanted, Schema schema, Map<String, Object> values, String path) {
            try {
                Object struct = ((Class<?>) wanted).getConstructor().newInstance();
                fill(struct, schema, values, path + ".");
                return struct;
            } catch (ReflectiveOperationException error) {
                throw new IllegalStateException(error);
            }
        }

        private static java.lang.reflect.Type elementOf(java.lang.reflect.Type collection) {
            if (collection instanceof ParameterizedType list) return list.getActualTypeArguments()[0];
            return ((ParameterizedType) ((Class<?>) collection).getGenericSuperclass()).getActualTypeArguments()[0];
        }

        @SuppressWarnings("unchecked")
        private static Object collection(java.lang.reflect.Type wanted, List<Object> elements) {
            if (wanted instanceof ParameterizedType) return new ArrayList<>(elements);
            try {
                var collection = (Collection<Object>) ((Class<?>) wanted).getConstructor().newInstance();
                collection.addAll(elements);
                return collection;
            } catch (ReflectiveOperationException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> asStruct(Object value) { return (Map<String, Object>) value; }

    // Reading.

    /** What a message says in the fields of a version: structs as maps, arrays as lists, numbers as longs. */
    static Map<String, Object> read(Object message, Schema schema) {
        Map<String, Object> struct = new LinkedHashMap<>();
        for (Property property : properties(message.getClass(), schema))
            struct.put(property.name(), readValue(property.get(message), property.type()));
        return struct;
    }

    private static Object readValue(Object value, Type type) {
        if (value == null) return null;
        if (value instanceof Collection<?> elements) {
            List<Object> list = new ArrayList<>();
            for (Object element : elements) list.add(readValue(element, type.arrayElementType().get()));
            return list;
        }
        if (type instanceof Schema schema) return read(value, schema);
        if (value instanceof ByteBuffer buffer) {
            byte[] bytes = new byte[buffer.remaining()];
            buffer.duplicate().get(bytes);
            return bytes;
        }
        return value instanceof Number number && !(value instanceof Double) ? (Object) number.longValue() : value;
    }

    /** A step into what was read: a name or an index. */
    static Object at(Object from, Object... steps) {
        for (Object step : steps)
            from = step instanceof Integer index ? ((List<?>) from).get(index) : asStruct(from).get(step);
        return from;
    }

    static long number(Object from, Object... steps) { return (Long) at(from, steps); }

    /**
     * Compares what was read with what was wanted of it. A struct may want some of its fields only, and names that the
     * version has not got are passed over; a list wants each of its elements, in this order or in any.
     */
    static void compare(Object wanted, Object found, Names names, String path) {
        if (wanted instanceof Map<?, ?> && found instanceof Map<?, ?>) {
            names.given(path.isEmpty() ? "" : path + ".", asStruct(wanted).keySet());
            asStruct(wanted).forEach((name, value) -> {
                String field = path.isEmpty() ? name : path + "." + name;
                if (!asStruct(found).containsKey(name)) return;
                names.seen(field);
                compare(value, asStruct(found).get(name), names, field);
            });
        } else if (wanted instanceof List<?> list && found instanceof List<?> elements && list.size() == elements.size()) {
            for (int n = 0; n < list.size(); n++) compare(list.get(n), elements.get(n), names, path);
        } else if (wanted instanceof InAnyOrder some && found instanceof List<?> list && some.elements.size() == list.size()) {
            for (Object element : some.elements) compareWithOneOf(element, list, names, path);
        } else if (wanted instanceof Is is) {
            if (!is.test.test(found)) throw new AssertionError(path + " is " + text(found) + ", not " + is.what);
        } else if (!isSame(wanted, found)) {
            throw new AssertionError(path + " is " + text(found) + ", not " + text(wanted));
        }
    }

    private static void compareWithOneOf(Object wanted, List<?> found, Names names, String path) {
        for (Object element : found) {
            try {
                compare(wanted, element, names, path);
                return;
            } catch (AssertionError another) {
                // The next may be it.
            }
        }
        throw new AssertionError(path + " has none like " + wanted);
    }

    private static boolean isSame(Object wanted, Object found) {
        if (wanted instanceof Number one && found instanceof Number other) return one.longValue() == other.longValue();
        if (wanted instanceof byte[] one && found instanceof byte[] other) return Arrays.equals(one, other);
        return Objects.equals(wanted, found);
    }

    /** Elements that are wanted, and no other ones. */
    record InAnyOrder(List<?> elements) {}

    /** Something that is wanted and is no single value. */
    record Is(String what, Predicate<Object> test) {}

    static String text(Object value) {
        return value instanceof byte[] bytes ? new String(bytes, StandardCharsets.ISO_8859_1) : String.valueOf(value);
    }

    /** Names of fields that requests and expectations speak of: one that no version has is a slip of the pen. */
    static final class Names {
        private final Set<String> given = new TreeSet<>(), seen = new TreeSet<>();

        void given(String path, Set<String> names) { names.forEach(name -> given.add(path + name)); }

        void seen(String path) { seen.add(path); }

        Set<String> unknown() {
            Set<String> unknown = new TreeSet<>(given);
            unknown.removeAll(seen);
            return unknown;
        }
    }
}
