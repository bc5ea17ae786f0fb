//! The four codecs of record batches, and none.
//!
//! What a client compressed is stored and served as it came; it is undone only where records must be looked at. Never
//! on a core's hot path for anything large.
//!
//! - I1: no input makes [`decompress`] panic, or hold more than twice `output_max` bytes beside the codec's own window
//!   (which zstd bounds at 128 MiB, and fills only with what it has decoded): output is produced as a stream that stops
//!   at the bound, and a length that the input states is never trusted for an allocation beyond it.

use std::fmt;
use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy blocks, framed as snappy-java does or bare.
    Snappy,
    /// The LZ4 frame format.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

impl Codec {
    /// All of them, in the order of their ids.
    pub const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    /// The codec of an id as it stands in the lowest three bits of a batch's attributes.
    #[must_use]
    pub fn from_id(id: i16) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| codec.id() == id)
    }

    /// Its id in a batch's attributes.
    #[must_use]
    pub fn id(self) -> i16 {
        match self {
            Codec::None => 0,
            Codec::Gzip => 1,
            Codec::Snappy => 2,
            Codec::Lz4 => 3,
            Codec::Zstd => 4,
        }
    }

    /// Its name in Kafka's configurations (`none` is what a topic calls `uncompressed`).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why compression could not be undone.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The content is larger than allowed.
    #[error("{codec} content of more than {output_max} bytes")]
    TooLarge {
        /// How it is compressed.
        codec: Codec,
        /// The bound.
        output_max: usize,
    },
    /// The input is not what the codec writes.
    #[error("invalid {codec} content")]
    Corrupt {
        /// How it should be compressed.
        codec: Codec,
        /// What the codec says.
        #[source]
        source: io::Error,
    },
}

/// Undoes compression. Fails where more than `output_max` bytes would come out. Without compression the input itself
/// comes back, not a copy.
pub fn decompress(
    codec: Codec,
    input: &Bytes,
    output_max: usize,
) -> Result<Bytes, CompressionError> {
    let output = match codec {
        Codec::None if input.len() > output_max => {
            return Err(CompressionError::TooLarge { codec, output_max });
        }
        Codec::None => return Ok(input.clone()),
        Codec::Gzip => read_bounded(codec, MultiGzDecoder::new(&input[..]), output_max),
        Codec::Snappy => snappy::decompress(input, output_max),
        Codec::Lz4 => {
            read_bounded(codec, lz4_flex::frame::FrameDecoder::new(&input[..]), output_max)
        }
        Codec::Zstd => match zstd::stream::read::Decoder::with_buffer(&input[..]) {
            Ok(decoder) => read_bounded(codec, decoder, output_max),
            Err(source) => Err(CompressionError::Corrupt { codec, source }),
        },
    };
    output.map(Bytes::from)
}

/// Compresses for a batch that this program itself makes, at the codec's usual level.
pub fn compress(codec: Codec, input: &[u8]) -> io::Result<Vec<u8>> {
    match codec {
        Codec::None => Ok(input.to_vec()),
        Codec::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(input)?;
            encoder.finish()
        }
        Codec::Snappy => snappy::compress(input),
        Codec::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(input)?;
            encoder.finish().map_err(io::Error::other)
        }
        Codec::Zstd => zstd::stream::encode_all(input, zstd::DEFAULT_COMPRESSION_LEVEL),
    }
}

fn read_bounded(
    codec: Codec,
    reader: impl Read,
    output_max: usize,
) -> Result<Vec<u8>, CompressionError> {
    let mut output = Vec::new();
    let mut bounded = reader.take(output_max as u64 + 1);
    let read = bounded.read_to_end(&mut output);
    if output.len() > output_max {
        return Err(CompressionError::TooLarge { codec, output_max });
    }
    match read {
        Ok(_) => Ok(output),
        Err(source) => Err(CompressionError::Corrupt { codec, source }),
    }
}

/// Snappy knows blocks only; how several make a stream is not part of it. The Java client frames them as the
/// snappy-java library ("xerial") does, librdkafka may send one bare block.
mod snappy {
    use std::io;

    use super::{Codec, CompressionError};

    const MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
    const VERSION: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1]; // version, compatible with version
    const HEADER_BYTES: usize = 16;
    const BLOCK_BYTES: usize = 32 << 10;
    /// A block of input makes at most 64 bytes of output out of 3: a stated length above is a lie.
    const RATIO_MAX: usize = 22;

    pub(super) fn decompress(input: &[u8], output_max: usize) -> Result<Vec<u8>, CompressionError> {
        let mut output = Vec::new();
        if !input.starts_with(MAGIC) {
            block(input, output_max, &mut output)?;
            return Ok(output);
        }
        let mut rest = input;
        while !rest.is_empty() {
            if rest.starts_with(MAGIC) {
                // Streams may be joined end to end, each with its header.
                rest = rest.get(HEADER_BYTES..).ok_or_else(|| corrupt("a cut header"))?;
                continue;
            }
            let (len, after) = rest.split_first_chunk().ok_or_else(|| corrupt("a cut length"))?;
            let len = usize::try_from(i32::from_be_bytes(*len))
                .map_err(|_| corrupt("a negative length"))?;
            let content = after.get(..len).ok_or_else(|| corrupt("a cut block"))?;
            block(content, output_max, &mut output)?;
            rest = &after[len..];
        }
        Ok(output)
    }

    fn block(
        input: &[u8],
        output_max: usize,
        output: &mut Vec<u8>,
    ) -> Result<(), CompressionError> {
        let stated = snap::raw::decompress_len(input).map_err(corrupt)?;
        if stated > input.len().saturating_mul(RATIO_MAX) {
            return Err(corrupt("a stated length beyond what the block can hold"));
        }
        if stated > output_max - output.len() {
            return Err(CompressionError::TooLarge { codec: Codec::Snappy, output_max });
        }
        let start = output.len();
        output.resize(start + stated, 0);
        let written =
            snap::raw::Decoder::new().decompress(input, &mut output[start..]).map_err(corrupt)?;
        output.truncate(start + written);
        Ok(())
    }

    pub(super) fn compress(input: &[u8]) -> io::Result<Vec<u8>> {
        let mut output = Vec::with_capacity(HEADER_BYTES + input.len() / 2);
        output.extend_from_slice(MAGIC);
        output.extend_from_slice(&VERSION);
        for chunk in input.chunks(BLOCK_BYTES) {
            let block = snap::raw::Encoder::new().compress_vec(chunk).map_err(io::Error::other)?;
            let len = i32::try_from(block.len()).map_err(io::Error::other)?;
            output.extend_from_slice(&len.to_be_bytes());
            output.extend_from_slice(&block);
        }
        Ok(output)
    }

    fn corrupt(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CompressionError {
        let source = io::Error::new(io::ErrorKind::InvalidData, source);
        CompressionError::Corrupt { codec: Codec::Snappy, source }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    fn round_trip(codec: Codec, content: &[u8]) {
        let compressed = Bytes::from(compress(codec, content).unwrap());
        assert_eq!(decompress(codec, &compressed, content.len()).unwrap(), content, "{codec}");
    }

    #[test]
    fn given_bomb_when_decompressed_then_too_large_for_every_codec() {
        let zeroes = vec![0; 4 * MIB];
        for codec in Codec::ALL {
            let bomb = Bytes::from(compress(codec, &zeroes).unwrap());
            let error = decompress(codec, &bomb, MIB).unwrap_err();
            let too_large =
                matches!(error, CompressionError::TooLarge { output_max, .. } if output_max == MIB);
            assert!(too_large, "{codec}: {error}");
            assert_eq!(decompress(codec, &bomb, 4 * MIB).unwrap(), zeroes, "{codec}");
        }
    }

    #[test]
    fn given_bare_snappy_block_when_decompressed_then_content() {
        let block = snap::raw::Encoder::new().compress_vec(b"abcabcabcabc").unwrap();
        let content = decompress(Codec::Snappy, &Bytes::from(block), 100).unwrap();
        assert_eq!(&content[..], b"abcabcabcabc");
    }

    #[test]
    fn given_joined_snappy_streams_when_decompressed_then_both() {
        let mut joined = compress(Codec::Snappy, b"first").unwrap();
        joined.extend(compress(Codec::Snappy, b"second").unwrap());
        let content = decompress(Codec::Snappy, &Bytes::from(joined), 100).unwrap();
        assert_eq!(&content[..], b"firstsecond");
    }

    #[test]
    fn given_snappy_block_that_lies_about_its_length_when_decompressed_then_corrupt() {
        let lie = Bytes::from_static(&[0xFF, 0xFF, 0xFF, 0x7F, 0]); // 256 MiB out of five bytes
        let error = decompress(Codec::Snappy, &lie, usize::MAX).unwrap_err();
        assert!(matches!(error, CompressionError::Corrupt { .. }), "{error}");
    }

    #[test]
    fn given_lz4_frame_with_sizes_and_checksums_when_decompressed_then_content() {
        let content = vec![7; 100_000];
        let info = lz4_flex::frame::FrameInfo::new()
            .content_size(Some(100_000))
            .block_checksums(true)
            .content_checksum(true)
            .block_mode(lz4_flex::frame::BlockMode::Linked);
        let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(&content).unwrap();
        let frame = Bytes::from(encoder.finish().unwrap());
        assert_eq!(decompress(Codec::Lz4, &frame, 100_000).unwrap(), content);
    }

    #[test]
    fn given_empty_and_one_byte_when_compressed_then_they_come_back() {
        for codec in Codec::ALL {
            round_trip(codec, b"");
            round_trip(codec, b"x");
            assert_eq!(Codec::from_id(codec.id()), Some(codec));
        }
        assert_eq!(Codec::from_id(5), None);
    }

    fn codec() -> impl Strategy<Value = Codec> {
        proptest::sample::select(&Codec::ALL[..])
    }

    proptest! {
        #[test]
        fn given_any_content_when_compressed_then_it_comes_back(
            codec in codec(),
            seed in proptest::collection::vec(any::<u8>(), 1..200),
            repeat in 1usize..2000,
        ) {
            round_trip(codec, &seed.repeat(repeat));
        }

        #[test]
        fn given_noise_when_decompressed_then_error_or_bounded(
            codec in codec(),
            noise in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Ok(content) = decompress(codec, &Bytes::from(noise), 10_000) {
                prop_assert!(content.len() <= 10_000);
            }
        }

        #[test]
        fn given_damaged_content_when_decompressed_then_error_or_bounded(
            codec in codec(),
            content in proptest::collection::vec(any::<u8>(), 1..2000),
            at: prop::sample::Index,
            xor in 1u8..,
            keep: prop::sample::Index,
        ) {
            let mut damaged = compress(codec, &content.repeat(3)).unwrap();
            let at = at.index(damaged.len());
            damaged[at] ^= xor;
            damaged.truncate(keep.index(damaged.len()) + 1);
            if let Ok(content) = decompress(codec, &Bytes::from(damaged), 20_000) {
                prop_assert!(content.len() <= 20_000);
            }
        }
    }
}
