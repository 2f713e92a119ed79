//! The digests of this protocol.

use bitcoin::hashes::{Hash, HashEngine, sha256};

/// BIP-340 tagged SHA-256 over length-prefixed fields, integers little endian.
pub(crate) struct TaggedHash(sha256::HashEngine);

impl TaggedHash {
    pub(crate) fn new(tag: &[u8]) -> Self {
        let tag = sha256::Hash::hash(tag);
        let mut engine = sha256::Hash::engine();
        engine.input(tag.as_byte_array());
        engine.input(tag.as_byte_array());
        Self(engine)
    }
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.input(&[value]);
    }
    pub(crate) fn u32(&mut self, value: u32) {
        self.0.input(&value.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, value: u64) {
        self.0.input(&value.to_le_bytes());
    }
    pub(crate) fn array<const N: usize>(&mut self, value: &[u8; N]) {
        self.0.input(value);
    }
    /// How many of something follow. Messages are far smaller than 4 GiB.
    pub(crate) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }
    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.0.input(value);
    }
    pub(crate) fn finish(self) -> [u8; 32] {
        sha256::Hash::from_engine(self.0).to_byte_array()
    }
}
