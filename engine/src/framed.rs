//! Values as bytes that outlive the program that wrote them: one version byte, then bincode's standard configuration.
//!
//! It knows neither the values nor what a version means: a caller that changes a type takes another version for it.
//!
//! - I1: decoding is total and bounded: any bytes give a value or an error, and claim no more memory than the limit.
//! - I2: nothing may follow the value, so that a value has one encoding only.

/// Why bytes are not a value, or a value cannot be made bytes.
#[derive(Debug, thiserror::Error)]
pub enum FramedError {
    /// There are none.
    #[error("empty")]
    Empty,
    /// Written by another version of the program.
    #[error("format version {version} is not known")]
    Version {
        /// The version.
        version: u8,
    },
    /// Not the format.
    #[error("malformed")]
    Malformed {
        /// What bincode says.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// There is something after the end.
    #[error("{bytes} bytes follow the end")]
    Trailing {
        /// How many bytes.
        bytes: usize,
    },
    /// It cannot be written; never for plain data, as encoding to memory does not fail.
    #[error("cannot be encoded")]
    Encode {
        /// What bincode says.
        #[source]
        source: bincode::error::EncodeError,
    },
}

/// The bytes of a value in this version of its format.
pub fn encode(version: u8, value: impl bincode::Encode) -> Result<Vec<u8>, FramedError> {
    let mut bytes = vec![version];
    bincode::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(|source| FramedError::Encode { source })?;
    Ok(bytes)
}

/// The value in these bytes, if they are of this version. It may claim at most `BYTES_MAX` of memory.
pub fn decode<T: bincode::Decode<()>, const BYTES_MAX: usize>(
    version: u8,
    bytes: &[u8],
) -> Result<T, FramedError> {
    let (&found, body) = bytes.split_first().ok_or(FramedError::Empty)?;
    if found != version {
        return Err(FramedError::Version { version: found });
    }
    let bounded = bincode::config::standard().with_limit::<BYTES_MAX>();
    let (value, read) = bincode::decode_from_slice(body, bounded)
        .map_err(|source| FramedError::Malformed { source })?;
    if read != body.len() {
        return Err(FramedError::Trailing { bytes: body.len() - read });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<u64>, FramedError> {
        decode::<Vec<u64>, 1024>(3, bytes)
    }

    #[test]
    fn given_a_value_when_framed_then_the_version_leads_and_it_is_read_back() {
        let bytes = encode(3, vec![1_u64, 2]).unwrap();
        assert_eq!(bytes, [3, 2, 1, 2]);
        assert_eq!(read(&bytes).unwrap(), [1, 2]);
    }

    #[test]
    fn given_bytes_that_are_no_value_when_decoded_then_each_fault_is_told_apart() {
        assert!(matches!(read(&[]), Err(FramedError::Empty)));
        assert!(matches!(read(&[4, 0]), Err(FramedError::Version { version: 4 })));
        assert!(matches!(read(&[3, 2, 1]), Err(FramedError::Malformed { .. })));
        assert!(matches!(read(&[3, 0, 7, 7]), Err(FramedError::Trailing { bytes: 2 })));
    }

    #[test]
    fn given_more_than_the_limit_when_decoded_then_it_is_refused_though_it_is_whole() {
        let fits = encode(3, vec![1_u64; 100]).unwrap();
        assert!(read(&fits).is_ok());
        let large = encode(3, vec![1_u64; 200]).unwrap();
        assert!(matches!(read(&large), Err(FramedError::Malformed { .. })));
    }
}
