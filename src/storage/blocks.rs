//! The layout of a checksummed file: what lies where, and what vouches for it.
//!
//! ```text
//! page 0      preamble: magic, layout, block size, the file's random salt, bytes of an area, checksum
//! page 1, 3   both copies of the headers with even numbers
//! page 2, 4   both copies of the headers with odd numbers
//! page 5      the preamble again
//!             behind either preamble, in a sector of its own: the number of a commit that is durable
//! then        both areas of the log
//! then        blocks 1, 2, 3 ...: 4096 bytes of data and 8 of checksum each
//! ```
//!
//! Block 0 is the header that the engine writes in place; it has no block of its own. Each write of
//! it is numbered and goes to both copies of one pair, in turn, so that the pair of the write before
//! is whole while this one is written. A copy fits one sector: after a power loss it is the old or
//! the new one, and a copy that is neither has rotted. Its twin then says what it was. Neighbours
//! among the pages belong to different pairs.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of data in a block, and of a page of the file's beginning.
pub(super) const BLOCK: usize = 4096;
/// Bytes of a block in the file: its data, then its checksum.
pub(super) const STORED: usize = BLOCK + CHECKSUM;
/// Where the log begins in the file.
const LOG_START: u64 = 6 * BLOCK as u64;
/// Where the copies of the preamble are.
pub(super) const PREAMBLES: [u64; 2] = [0, 5 * BLOCK as u64];
/// Bytes of a preamble.
pub(super) const PREAMBLE: usize = 48;
/// Where the number of a commit that is durable stands.
pub(super) const WATERMARKS: [u64; 2] = [HEADER as u64, 5 * BLOCK as u64 + HEADER as u64];
/// Bytes of that number with its checksum.
pub(super) const WATERMARK: usize = 8 + CHECKSUM;
/// Bytes of a header's copy: one sector.
pub(super) const HEADER: usize = 512;
/// Bytes that the engine may write as its header.
pub(super) const PAYLOAD: usize = HEADER - 3 * 8 - CHECKSUM;

const CHECKSUM: usize = 8;
const MAGIC: [u8; 16] = *b"governance-store";
const LAYOUT: u32 = 1;
/// Keeps the checksums of preambles and headers apart from those of blocks.
const OF_PREAMBLES: u64 = 1 << 62;
const OF_HEADERS: u64 = 1 << 63;
const OF_LOGS: u64 = 3 << 62;

/// What tells this file's blocks from those of any other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Salt(u64);

/// Why bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// All zeros, as the file system fills what nobody wrote.
    NeverWritten,
    /// The checksum does not fit: changed, of another place, or of another file.
    Changed,
}

impl Salt {
    pub(super) fn random() -> Self {
        Self(rand::random())
    }

    /// The number of a durable commit as it is stored at `place`.
    pub(super) fn watermark(self, place: u64, commit: u64) -> Vec<u8> {
        let mut bytes = commit.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.of_log(place, &commit.to_le_bytes()));
        bytes
    }

    /// The number that stands at `place`. `None` if none does, or it is damaged.
    pub(super) fn read_watermark(self, place: u64, bytes: &[u8]) -> Option<u64> {
        let commit = number(bytes, 0, 8)?;
        (bytes == self.watermark(place, commit)).then_some(commit)
    }

    /// What vouches for bytes of the log at `place` of the file.
    pub(super) fn of_log(self, place: u64, bytes: &[u8]) -> [u8; CHECKSUM] {
        self.checksum(OF_LOGS | place, bytes)
    }

    fn checksum(self, place: u64, bytes: &[u8]) -> [u8; CHECKSUM] {
        // Zero stands for "never written".
        let seed = self.0 ^ place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        xxh3_64_with_seed(bytes, seed).max(1).to_le_bytes()
    }

    /// Appends a block as it is stored.
    pub(super) fn seal(self, block: u64, data: &[u8], stored: &mut Vec<u8>) {
        stored.extend_from_slice(data);
        stored.extend_from_slice(&self.checksum(block, data));
    }

    /// The data of a stored block.
    pub(super) fn unseal(self, block: u64, stored: &[u8]) -> Result<&[u8], Flaw> {
        let (data, checksum) = stored.split_at_checked(BLOCK).ok_or(Flaw::Changed)?;
        if checksum == self.checksum(block, data) {
            Ok(data)
        } else if stored.iter().all(|byte| *byte == 0) {
            Err(Flaw::NeverWritten)
        } else {
            Err(Flaw::Changed)
        }
    }
}

/// What a file's preamble says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) salt: Salt,
    /// Bytes of one area of the log: whole blocks. Without any there is no log.
    pub(super) area: u64,
}

impl Layout {
    /// Where an area of the log begins in the file.
    pub(super) fn area_start(self, area: Area) -> u64 {
        match area {
            Area::First => LOG_START,
            Area::Second => LOG_START.saturating_add(self.area),
        }
    }

    /// Where block 1 begins in the file.
    pub(super) fn data_start(self) -> u64 {
        LOG_START.saturating_add(self.area.saturating_mul(2))
    }

    /// Where a block is in the file. Block 0 is in the headers.
    pub(super) fn physical(self, block: u64) -> u64 {
        let before = block.saturating_sub(1).saturating_mul(STORED as u64);
        self.data_start().saturating_add(before)
    }

    /// The file's length for so many bytes of data.
    pub(super) fn physical_length(self, length: u64) -> u64 {
        self.physical((length / BLOCK as u64).max(1))
    }

    /// Bytes of data in a file of this length. `None` if no file of ours has it.
    pub(super) fn logical_length(self, physical: u64) -> Option<u64> {
        let stored = physical.checked_sub(self.data_start())?;
        if !stored.is_multiple_of(STORED as u64) {
            return None;
        }
        match stored / STORED as u64 {
            0 => Some(0),
            blocks => (blocks + 1).checked_mul(BLOCK as u64),
        }
    }
}

/// A half of the log. One is written while what the other has goes into the tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Area {
    #[default]
    First,
    Second,
}

impl Area {
    pub(super) const BOTH: [Self; 2] = [Self::First, Self::Second];

    pub(super) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// A preamble as it is stored.
pub(super) fn preamble(layout: Layout) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREAMBLE);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&LAYOUT.to_le_bytes());
    bytes.extend_from_slice(&(BLOCK as u32).to_le_bytes());
    bytes.extend_from_slice(&layout.salt.0.to_le_bytes());
    bytes.extend_from_slice(&layout.area.to_le_bytes());
    let checksum = Salt(0).checksum(OF_PREAMBLES, &bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// What a preamble says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preamble {
    /// This file's.
    Ours(Layout),
    /// Written whole, in a layout of another version.
    OtherLayout(u32),
    /// Not a preamble of ours, or a damaged one.
    Unreadable,
}

/// Reads a preamble.
pub(super) fn read_preamble(bytes: &[u8]) -> Preamble {
    let Some((content, checksum)) = bytes.split_at_checked(PREAMBLE - CHECKSUM) else {
        return Preamble::Unreadable;
    };
    if !content.starts_with(&MAGIC) || checksum != Salt(0).checksum(OF_PREAMBLES, content) {
        return Preamble::Unreadable;
    }
    match (
        number(content, 16, 4),
        number(content, 20, 4),
        number(content, 24, 8),
        number(content, 32, 8),
    ) {
        (Some(layout), Some(block), Some(salt), Some(area))
            if layout == u64::from(LAYOUT)
                && block == BLOCK as u64
                && area.is_multiple_of(BLOCK as u64) =>
        {
            Preamble::Ours(Layout {
                salt: Salt(salt),
                area,
            })
        }
        (Some(layout), ..) => Preamble::OtherLayout(layout as u32),
        _ => Preamble::Unreadable,
    }
}

/// The engine's header, as of one write of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// One more with each write.
    pub(super) number: u64,
    /// Bytes of data that the file had at least when it was written.
    pub(super) length: u64,
    /// What the engine wrote.
    pub(super) payload: Vec<u8>,
}

impl Header {
    /// Where the copies of this header are.
    pub(super) fn places(&self) -> [u64; 2] {
        places(self.number)
    }

    /// The copy that is stored at `place`. The payload is at most [`PAYLOAD`] bytes.
    pub(super) fn encode(&self, salt: Salt, place: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes.resize(HEADER - CHECKSUM, 0);
        let checksum = salt.checksum(OF_HEADERS | place, &bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// The header in a copy. `None` if it is not what was written there.
    pub(super) fn decode(salt: Salt, place: u64, bytes: &[u8]) -> Option<Self> {
        let (content, checksum) = bytes.split_at_checked(HEADER - CHECKSUM)?;
        if checksum != salt.checksum(OF_HEADERS | place, content) {
            return None;
        }
        let header = Self {
            number: number(content, 0, 8)?,
            length: number(content, 8, 8)?,
            payload: content
                .get(24..)?
                .get(..usize::try_from(number(content, 16, 8)?).ok()?)?
                .to_vec(),
        };
        header.places().contains(&place).then_some(header)
    }
}

/// Where the copies of header `number` are.
pub(super) fn places(number: u64) -> [u64; 2] {
    let first = if number.is_multiple_of(2) { 1 } else { 2 };
    [first * BLOCK as u64, (first + 2) * BLOCK as u64]
}

/// The number that `length` bytes from `at` on are.
pub(super) fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.get(..length)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_fits_its_own_place_in_its_own_file_only() {
        let salt = Salt(7);
        let mut stored = Vec::new();
        salt.seal(3, &[5; BLOCK], &mut stored);
        assert_eq!(salt.unseal(3, &stored), Ok([5; BLOCK].as_slice()));
        assert_eq!(salt.unseal(4, &stored), Err(Flaw::Changed));
        assert_eq!(Salt(8).unseal(3, &stored), Err(Flaw::Changed));
        assert_eq!(salt.unseal(3, &[0; STORED]), Err(Flaw::NeverWritten));
        for bit in 0..stored.len() * 8 {
            stored[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(salt.unseal(3, &stored), Err(Flaw::Changed), "bit {bit}");
            stored[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_header_fits_its_own_place_only() {
        let salt = Salt(7);
        let header = Header {
            number: 9,
            length: 1 << 20,
            payload: vec![3; 320],
        };
        let [first, second] = header.places();
        let copy = header.encode(salt, first);
        assert_eq!(copy.len(), HEADER);
        assert_eq!(Header::decode(salt, first, &copy), Some(header.clone()));
        assert_eq!(Header::decode(salt, second, &copy), None);
        assert_eq!(Header::decode(Salt(8), first, &copy), None);
        let [other, _] = places(10);
        let foreign = header.encode(salt, other);
        assert_eq!(
            Header::decode(salt, other, &foreign),
            None,
            "of the other pair"
        );
    }

    #[test]
    fn lengths_go_forth_and_back() {
        for area in [0, 3 * BLOCK as u64] {
            let layout = Layout {
                salt: Salt(7),
                area,
            };
            for blocks in [0_u64, 2, 3, 1000] {
                let length = blocks * BLOCK as u64;
                let physical = layout.physical_length(length);
                assert_eq!(layout.logical_length(physical), Some(length));
            }
            let odd = layout.physical_length(8192) + 1;
            assert_eq!(layout.logical_length(odd), None);
            assert_eq!(layout.logical_length(layout.data_start() - 1), None);
        }
    }

    #[test]
    fn a_preamble_says_whose_it_is() {
        let layout = Layout {
            salt: Salt(7),
            area: 5 * BLOCK as u64,
        };
        let bytes = preamble(layout);
        assert_eq!(bytes.len(), PREAMBLE);
        assert_eq!(read_preamble(&bytes), Preamble::Ours(layout));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_preamble(&flipped), Preamble::Unreadable);
        }
    }
}
