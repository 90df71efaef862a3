//! A quick hash: its inputs come from the file system's own numbering, and the tables that use it are
//! bounded by the window.
#![forbid(unsafe_code)]

use std::hash::Hasher;

use lcap_policy_sdk::Fid;

/// A name within a directory, as one number. Two names with one number only keep records apart
/// that could have been folded.
pub(crate) fn name_key(parent: Fid, name: &[u8]) -> u64 {
    let mut mixer = Mixer(parent.seq);
    mixer.write_u32(parent.oid);
    mixer.write(name);
    mixer.finish()
}

/// An object, as one number; objects may share it.
pub(crate) fn fid_key(fid: Fid) -> u64 {
    let mut mixer = Mixer(fid.seq);
    mixer.write_u64(u64::from(fid.oid) << 32 | u64::from(fid.ver));
    mixer.finish()
}

/// The hash.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let n = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        n ^ n >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(23) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
