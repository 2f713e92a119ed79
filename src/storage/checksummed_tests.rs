use super::*;
use crate::storage::{
    blocks::HEADER,
    faulty_disk::{Fault, FaultyDisk, SECTOR},
};

const PAGE: u64 = BLOCK as u64;

fn made(blocks: u64) -> (FaultyDisk, Checksummed) {
    let disk = FaultyDisk::default();
    let file = Checksummed::create(Medium::other(Box::new(disk.clone())), 0).expect("made");
    file.set_len(blocks * PAGE).expect("longer");
    file.write(0, b"header").expect("written");
    file.sync_data().expect("synced");
    (disk, file)
}

fn opened(disk: &FaultyDisk) -> io::Result<Checksummed> {
    Checksummed::open(Medium::other(Box::new(disk.clone())))
}

fn page(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK]
}

fn read(file: &Checksummed, block: u64) -> io::Result<u8> {
    let mut out = page(0);
    file.read(block * PAGE, &mut out)?;
    assert!(out.iter().all(|byte| *byte == out[0]));
    Ok(out[0])
}

fn header(file: &Checksummed) -> Vec<u8> {
    let mut out = [0; 320];
    file.read(0, &mut out).expect("readable");
    out.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// What the error says, which must be one of damage.
fn told<T: fmt::Debug>(result: io::Result<T>) -> String {
    let error = result.expect_err("damage");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    error.to_string()
}

#[test]
fn what_is_written_is_read() {
    let (disk, file) = made(9);
    assert_eq!(file.len().expect("open"), 9 * PAGE);
    file.write(PAGE, &[page(1), page(2), page(3)].concat())
        .expect("written");
    file.write(8 * PAGE, &page(8)).expect("written");
    file.sync_data().expect("synced");
    for file in [file, opened(&disk).expect("whole")] {
        assert_eq!(file.len().expect("open"), 9 * PAGE);
        let mut out = vec![0; 3 * BLOCK];
        file.read(PAGE, &mut out).expect("readable");
        assert_eq!(out, [page(1), page(2), page(3)].concat());
        assert_eq!(read(&file, 8).expect("readable"), 8);
        assert_eq!(header(&file), b"header");
    }
}

#[test]
fn a_block_that_was_never_written_is_not_zeros() {
    let (_, file) = made(9);
    let error = told(read(&file, 4));
    assert!(
        error.contains("block 4 at byte 36888 is all zeros"),
        "{error}"
    );
    assert!(
        told(read(&file, 9)).contains("it has 36864"),
        "beyond the end"
    );
}

#[test]
fn a_block_in_the_place_of_another_is_found() {
    let (disk, file) = made(9);
    file.write(PAGE, &[page(1), page(2)].concat())
        .expect("written");
    let bytes = disk.bytes();
    let at = |block| file.layout().physical(block) as usize;
    disk.scribble(at(2), &bytes[at(1)..at(2)]);
    assert!(told(read(&file, 2)).contains("block 2 at byte 28680"));
    let (other, second) = made(9);
    second.write(PAGE, &page(7)).expect("written");
    disk.scribble(at(1), &other.bytes()[at(1)..at(2)]);
    assert!(told(read(&file, 1)).contains("block 1"), "of another file");
}

#[test]
fn each_flipped_bit_of_a_block_is_found() {
    let (disk, file) = made(3);
    file.write(PAGE, &page(1)).expect("written");
    for bit in (0..STORED * 8).step_by(11) {
        disk.flip(file.layout().data_start() as usize * 8 + bit);
        assert!(read(&file, 1).is_err(), "bit {bit}");
        disk.flip(file.layout().data_start() as usize * 8 + bit);
    }
    assert_eq!(read(&file, 1).expect("mended"), 1);
}

/// Whatever sectors of a header's write are there after a power loss.
#[test]
fn a_torn_header_is_the_old_or_the_new_one() {
    for number in 0..4 {
        for kept in 0..4_usize {
            let (disk, file) = made(3);
            for number in 0..=number {
                file.write(0, format!("old {number}").as_bytes())
                    .expect("written");
                file.sync_data().expect("synced");
            }
            file.write(0, b"new").expect("written");
            let mut copy = 0;
            disk.lose_power(|_| {
                copy += 1;
                kept & copy != 0
            });
            assert_eq!(copy, 2, "two sectors");
            for _ in 0..2 {
                let file = opened(&disk).expect("whole");
                let old = format!("old {number}").into_bytes();
                let expected = if kept == 0 { old } else { b"new".to_vec() };
                assert_eq!(header(&file), expected);
                // What was read once is there for good.
                disk.lose_power(|_| false);
            }
        }
    }
}

#[test]
fn a_rotten_copy_of_a_header_is_mended_from_its_twin() {
    let (disk, file) = made(3);
    file.write(0, b"before").expect("written");
    file.write(0, b"last").expect("written");
    file.sync_data().expect("synced");
    for page in 0..6 {
        let rotten = disk.copy();
        rotten.scribble(page * BLOCK, &[0xff; SECTOR]);
        let file = opened(&rotten).expect("a whole twin");
        assert_eq!(header(&file), b"last", "page {page}");
        assert_eq!(file.damaged_copies(), 1);
        // At the latest when both pairs were written again.
        file.write(0, b"one").expect("written");
        file.write(0, b"two").expect("written");
        file.sync_data().expect("synced");
        assert_eq!(opened(&rotten).expect("whole").damaged_copies(), 0);
    }
}

#[test]
fn two_rotten_copies_are_refused_by_name() {
    let (disk, file) = made(3);
    file.write(0, b"before").expect("written");
    file.write(0, b"last").expect("written");
    file.sync_data().expect("synced");
    for (pages, says) in [
        ([1, 3], "both copies of a header, at bytes 4096 and 12288"),
        ([2, 4], "both copies of a header, at bytes 8192 and 16384"),
        ([0, 5], "both copies of its preamble"),
    ] {
        let rotten = disk.copy();
        for page in pages {
            rotten.scribble(page * BLOCK, &[0; SECTOR]);
        }
        let error = told(opened(&rotten));
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_header_that_the_disk_did_not_keep_is_noticed() {
    let (disk, file) = made(3);
    let before = disk.bytes();
    for text in ["one", "two", "three"] {
        file.write(0, text.as_bytes()).expect("written");
    }
    file.sync_data().expect("synced");
    // Both copies of the last one are as they were two writes before.
    let [first, second] = blocks::places(file.0.header().number);
    for at in [first as usize, second as usize] {
        disk.scribble(at, &before[at..at + HEADER]);
    }
    assert!(told(opened(&disk)).contains("the disk lost a write"));
}

/// The next header goes over the one before the last: if that last one was only in the cache, the
/// power would leave neither.
#[test]
fn an_opening_makes_sure_of_what_it_read() {
    let (disk, file) = made(3);
    file.write(0, b"confirmed").expect("written");
    file.sync_data().expect("synced");
    file.write(0, b"in the cache").expect("written");
    disk.plan_failing_sync(0);
    assert!(file.sync_data().is_err());
    let file = opened(&disk).expect("whole");
    assert_eq!(header(&file), b"in the cache");
    file.write(0, b"next").expect("written");
    disk.lose_power(|_| false);
    assert_eq!(header(&opened(&disk).expect("whole")), b"in the cache");
    // And if the opening cannot, it fails, and so does each until it can.
    let file = opened(&disk).expect("whole");
    file.write(0, b"next").expect("written");
    disk.plan_failing_sync(0);
    assert!(file.sync_data().is_err());
    disk.plan_failing_sync(0);
    assert!(opened(&disk).is_err());
    assert_eq!(header(&opened(&disk).expect("whole")), b"next");
    disk.lose_power(|_| false);
    assert_eq!(header(&opened(&disk).expect("whole")), b"next");
}

#[test]
fn nothing_follows_a_failure() {
    for fault in [Fault::Fails, Fault::FailsHalfway] {
        let (disk, file) = made(3);
        disk.plan(0, fault);
        assert!(file.write(PAGE, &page(1)).is_err());
        assert!(file.write(PAGE, &page(1)).is_err());
        assert!(file.sync_data().is_err());
        assert!(file.set_len(9 * PAGE).is_err());
        assert!(read(&file, 1).is_err());
        assert!(file.len().is_err());
        let first = file.first_failure().expect("noted").to_string();
        assert!(first.contains("os error 5"), "{first}");
    }
}

#[test]
fn what_was_revoked_reads_and_writes_no_more() {
    let (disk, file) = made(3);
    let newer = opened(&disk).expect("whole");
    file.revoke();
    let before = disk.bytes();
    assert!(file.write(PAGE, &page(1)).is_err());
    assert!(file.write(0, b"late").is_err());
    assert!(file.set_len(0).is_err());
    assert!(file.sync_data().is_err());
    assert!(read(&file, 1).is_err());
    assert!(file.scrub(0, 1).is_err());
    assert!(disk.bytes() == before, "nothing reached the disk");
    newer.write(PAGE, &page(1)).expect("alive");
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    let (disk, _) = made(3);
    let before = disk.bytes();
    let file = Checksummed::open_read_only(Medium::other(Box::new(disk.clone()))).expect("whole");
    assert!(file.write(PAGE, &page(1)).is_err());
    assert!(file.write(0, b"late").is_err());
    assert!(file.set_len(0).is_err());
    assert!(disk.bytes() == before);
}

/// The header says how long the file is at least: cut off it would be grown again, and its pages
/// given to others.
#[test]
fn a_file_becomes_shorter_only_on_purpose() {
    let (disk, file) = made(9);
    file.set_len(5 * PAGE).expect("shorter");
    assert_eq!(opened(&disk).expect("whole").len().expect("open"), 5 * PAGE);
    let cut_off = disk.copy();
    cut_off.cut(cut_off.bytes().len() - STORED);
    assert!(told(opened(&cut_off)).contains("the file has 36888 bytes, and had 40992"));
    // At each point of making it shorter the power may go.
    for change in 0..5 {
        for keeps in [false, true] {
            let disk = disk.copy();
            let file = opened(&disk).expect("whole");
            disk.plan(change, Fault::PowerFails);
            let _may_fail = file.set_len(3 * PAGE);
            disk.lose_power(|_| keeps);
            let length = opened(&disk).expect("whole").len().expect("open");
            assert!([3 * PAGE, 5 * PAGE].contains(&length), "{length}");
        }
    }
}

#[test]
fn scrubbing_goes_on_where_it_stopped() {
    let (disk, file) = made(20);
    for block in 1..15 {
        file.write(block * PAGE, &page(block as u8))
            .expect("written");
    }
    for block in [4, 11] {
        disk.flip(file.layout().physical(block) as usize * 8 + 5);
    }
    disk.flip(3 * BLOCK * 8);
    let (mut next, mut suspects, mut blocks) = (Some(0), Vec::new(), 0);
    while let Some(from) = next {
        let scrubbed = file.scrub(from, 3).expect("readable");
        blocks += scrubbed.blocks;
        suspects.extend(scrubbed.suspects.into_iter().map(|(block, _)| block));
        next = scrubbed.next;
    }
    assert_eq!((blocks, suspects), (20, vec![0, 4, 11]));
    assert_eq!(file.scrub(99, 3).expect("readable").next, None);
}

#[test]
fn scrubbing_beside_writes_takes_none_for_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(directory.path().join("file"))
        .expect("made");
    let storage = redb::backends::FileBackend::new(file).expect("a file");
    let file = Checksummed::create(Medium::other(Box::new(storage)), 0).expect("made");
    file.set_len(64 * PAGE).expect("longer");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..200_u64 {
                let pages = [page(round as u8), page(1), page(2), page(3)].concat();
                file.write((1 + round % 3) * PAGE, &pages).expect("written");
                file.write(0, &round.to_le_bytes()).expect("written");
            }
        });
        while !writer.is_finished() {
            let scrubbed = file.scrub(0, 8).expect("readable");
            assert_eq!(scrubbed.suspects, []);
        }
    });
}
