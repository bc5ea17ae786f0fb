//! A frame as it comes from a socket, without its length: decoding refuses it or gives a request, and takes little memory.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    if frame.len() < 8 {
        return; // no frame is shorter; the assembler sees to it
    }
    _ = chronik_net::decode_request(Bytes::copy_from_slice(frame));
});
