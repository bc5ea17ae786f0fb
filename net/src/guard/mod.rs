//! Walks a request's bytes before anything decodes them.
//!
//! kafka-protocol reserves memory for as many elements as a count claims, so a frame of twenty bytes
//! could ask for gigabytes. This walker follows a description of each served request
//! ([`schema`]) over the bytes, allocates nothing, and refuses what does not add up. Bounding what
//! the decoder reserves is all it is for; it never looks at values.
//!
//! I1 A count is at most the bytes left in the frame, and all elements together at most
//!    [`ELEMENTS_MAX`].
//! I2 What decoding will allocate is at most [`DECODED_BYTES_BASE`] + [`DECODED_BYTES_FACTOR`] times
//!    the frame; checked before the count that asks for it is believed.
//! I3 An accepted request ends within its frame. Bytes behind it are ignored, as Apache Kafka does:
//!    librdkafka leaves some behind a Metadata request for all topics. They are not decoded.

mod schema;

use std::ops::Range;

use kafka_protocol::messages::ApiKey;

use crate::error::FrameError;
use schema::{Element, Field, Kind, Schema, Struct, Tag, schema_of};

/// Array elements of one request, over all its arrays.
const ELEMENTS_MAX: usize = 1_000_000;
/// Memory that a request may decode into whatever its size: room for honest requests whose names
/// are a few bytes long.
const DECODED_BYTES_BASE: usize = 1 << 20;
/// Memory that a request may decode into, per byte of its frame.
const DECODED_BYTES_FACTOR: usize = 8;
/// Unknown tagged fields of one structure. No client sends any; a map entry is kept for each.
const TAGS_MAX: u32 = 64;
/// What an unknown tagged field costs once decoded: a map entry with its share of a node.
const TAG_DECODED_BYTES: usize = 128;

/// Where the parts of a walked request are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) client_id: Option<Range<usize>>,
    /// From behind the header to where the walk ended: what the decoder may see.
    pub(crate) body: Range<usize>,
}

/// Walks header and body of a frame (without its length prefix).
pub(crate) fn check_request(
    api_key: ApiKey,
    version: i16,
    frame: &[u8],
) -> Result<Layout, FrameError> {
    let schema = schema_of(api_key).ok_or(FrameError::UnknownApi { api_key: api_key as i16 })?;
    let mut walk = Walk {
        bytes: frame,
        position: 0,
        version,
        flexible: version >= schema.flexible_from,
        elements: 0,
        decoded_bytes: 0,
        decoded_bytes_max: DECODED_BYTES_BASE + DECODED_BYTES_FACTOR * frame.len(),
    };
    let client_id = walk.header(&schema)?;
    let body_start = walk.position;
    walk.structure(schema.body)?;
    Ok(Layout { client_id, body: body_start..walk.position })
}

struct Walk<'a> {
    bytes: &'a [u8],
    position: usize,
    version: i16,
    flexible: bool,
    elements: usize,
    decoded_bytes: usize,
    decoded_bytes_max: usize,
}

impl Walk<'_> {
    /// API key, version, correlation id, client id (never compact), and tags from header 2 on.
    fn header(&mut self, schema: &Schema) -> Result<Option<Range<usize>>, FrameError> {
        self.skip(8)?;
        let position = self.position;
        let length = i16::from_be_bytes(self.take::<2>()?);
        let client_id = match usize::try_from(length) {
            Ok(length) => {
                let start = self.position;
                self.skip(length)?;
                Some(start..self.position)
            }
            Err(_) if length == -1 => None,
            Err(_) => {
                return Err(FrameError::NegativeFieldLength { length: length.into(), position });
            }
        };
        if self.version >= schema.flexible_from {
            self.tags(&[])?;
        }
        Ok(client_id)
    }

    fn structure(&mut self, structure: &Struct) -> Result<(), FrameError> {
        for field in structure.fields {
            if self.version >= field.from && self.version <= field.to {
                self.field(field)?;
            }
        }
        if self.flexible {
            self.tags(structure.tags)?;
        }
        Ok(())
    }

    fn field(&mut self, field: &Field) -> Result<(), FrameError> {
        let nullable = self.version >= field.nullable_from;
        match &field.kind {
            Kind::Fixed(size) => self.skip(*size),
            Kind::String => self.string(nullable),
            Kind::Bytes => match self.length(nullable)? {
                Some(length) => self.skip(length),
                None => Ok(()),
            },
            Kind::Array(element) => self.array(element, nullable),
            Kind::Struct(structure) => self.structure(structure),
            Kind::OptionalStruct(structure) => match self.take::<1>()? {
                [1] => self.structure(structure),
                _ => Ok(()),
            },
        }
    }

    fn string(&mut self, nullable: bool) -> Result<(), FrameError> {
        let length = if self.flexible {
            self.length(nullable)?
        } else {
            let position = self.position;
            let length = i16::from_be_bytes(self.take::<2>()?);
            self.nullable_length(length.into(), nullable, position)?
        };
        match length {
            Some(length) => self.skip(length),
            None => Ok(()),
        }
    }

    fn array(&mut self, element: &Element, nullable: bool) -> Result<(), FrameError> {
        let position = self.position;
        let Some(count) = self.length(nullable)? else { return Ok(()) };
        let left = self.left();
        if count > left {
            return Err(FrameError::CountTooLarge { count: count as u64, left, position });
        }
        self.elements += count;
        if self.elements > ELEMENTS_MAX {
            return Err(FrameError::TooManyElements { count_max: ELEMENTS_MAX });
        }
        self.charge(count * element.decoded_bytes())?;
        match element {
            Element::Fixed(size) => self.skip(count * size),
            Element::String => (0..count).try_for_each(|_| self.string(false)),
            Element::Struct(structure) => (0..count).try_for_each(|_| self.structure(structure)),
        }
    }

    /// The tagged fields of a structure: ascending, each exactly as long as it says.
    fn tags(&mut self, known: &[Tag]) -> Result<(), FrameError> {
        let position = self.position;
        let count = self.uvarint()?;
        if count > TAGS_MAX {
            return Err(FrameError::TooManyTags { count, position });
        }
        let mut next_tag = 0u32;
        for _ in 0..count {
            let position = self.position;
            let tag = self.uvarint()?;
            if tag < next_tag {
                return Err(FrameError::TagOrder { tag, position });
            }
            next_tag = tag.saturating_add(1);
            let size = self.uvarint()?;
            let size = self.checked_length(size)?;
            let end = self.position + size;
            match known.iter().find(|row| row.tag == tag && self.version >= row.from) {
                // The decoder reads a known field by its type and ignores the size.
                Some(row) => {
                    self.field(&row.field)?;
                    if self.position != end {
                        return Err(FrameError::TagSize { tag, position });
                    }
                }
                None => {
                    self.charge(TAG_DECODED_BYTES)?;
                    self.skip(size)?;
                }
            }
        }
        Ok(())
    }

    /// The length of bytes or of an array; `None` is null.
    fn length(&mut self, nullable: bool) -> Result<Option<usize>, FrameError> {
        let position = self.position;
        if !self.flexible {
            let length = i32::from_be_bytes(self.take::<4>()?);
            return self.nullable_length(length, nullable, position);
        }
        match self.uvarint()? {
            0 if nullable => Ok(None),
            0 => Err(FrameError::NegativeFieldLength { length: -1, position }),
            length => self.checked_length(length - 1).map(Some),
        }
    }

    fn nullable_length(
        &self,
        length: i32,
        nullable: bool,
        position: usize,
    ) -> Result<Option<usize>, FrameError> {
        match u32::try_from(length) {
            Ok(length) => self.checked_length(length).map(Some),
            Err(_) if length == -1 && nullable => Ok(None),
            Err(_) => Err(FrameError::NegativeFieldLength { length, position }),
        }
    }

    /// Nothing that follows can be longer, or more numerous, than the bytes left.
    fn checked_length(&self, length: u32) -> Result<usize, FrameError> {
        let left = self.left();
        match usize::try_from(length) {
            Ok(length) if length <= left => Ok(length),
            _ => {
                let position = self.position;
                Err(FrameError::FieldTooLong { length: length.into(), left, position })
            }
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), FrameError> {
        self.decoded_bytes += bytes;
        if self.decoded_bytes > self.decoded_bytes_max {
            return Err(FrameError::DecodesTooLarge { bytes_max: self.decoded_bytes_max });
        }
        Ok(())
    }

    fn uvarint(&mut self) -> Result<u32, FrameError> {
        let position = self.position;
        let mut value = 0u32;
        for shift in [0u32, 7, 14, 21, 28] {
            let [byte] = self.take::<1>()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(FrameError::BadVarint { position })
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn skip(&mut self, size: usize) -> Result<(), FrameError> {
        if size > self.left() {
            return Err(FrameError::Truncated { position: self.position });
        }
        self.position += size;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let Some(bytes) = self.bytes[self.position..].first_chunk::<N>() else {
            return Err(FrameError::Truncated { position: self.position });
        };
        self.position += N;
        Ok(*bytes)
    }
}
