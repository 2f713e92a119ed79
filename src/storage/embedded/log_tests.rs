use proptest::{collection::vec, prelude::*};

use super::*;

const AREA: usize = 16 * BLOCK;

fn layout() -> Layout {
    Layout {
        salt: Salt::random(),
        area: AREA as u64,
    }
}

fn change(key: u64, size: usize) -> Change {
    Change {
        table: "test/rows".into(),
        key: key.to_be_bytes().to_vec(),
        value: (!key.is_multiple_of(5)).then(|| vec![key as u8; size]),
    }
}

fn changes(number: u64) -> Vec<Change> {
    let sizes = [0, 1, 3000, 9000];
    (0..number % 4)
        .map(|key| change(number * 10 + key, sizes[key as usize % 4]))
        .collect()
}

/// Areas with these commits, one after the other from the beginning of each.
fn written(layout: Layout, commits: [&[u64]; 2]) -> [Vec<u8>; 2] {
    let mut areas = [vec![0; AREA], vec![0; AREA]];
    for ((area, bytes), commits) in Area::BOTH.into_iter().zip(&mut areas).zip(commits) {
        let mut at = 0;
        for number in commits {
            let changes = changes(*number);
            let changes: Vec<&Change> = changes.iter().collect();
            let place = layout.area_start(area) + at as u64;
            let entry = encode(layout.salt, *number, place, &changes);
            assert_eq!(entry.len(), entry_bytes(&changes));
            bytes[at..at + entry.len()].copy_from_slice(&entry);
            at += entry.len();
        }
    }
    areas
}

fn numbers(found: Result<Found, String>) -> Result<Vec<u64>, String> {
    let found = found?;
    for (_, entry) in &found.entries {
        assert_eq!(entry.changes, changes(entry.number));
    }
    Ok(found
        .entries
        .iter()
        .map(|(_, entry)| entry.number)
        .collect())
}

#[test]
fn entries_of_both_areas_are_read_in_order() {
    let layout = layout();
    let areas = written(layout, [&[7, 8], &[4, 5, 6]]);
    assert_eq!(numbers(read(layout, &areas, 3)), Ok(vec![4, 5, 6, 7, 8]));
    assert_eq!(numbers(read(layout, &areas, 5)), Ok(vec![6, 7, 8]));
    assert_eq!(numbers(read(layout, &areas, 8)), Ok(vec![]));
    let found = read(layout, &areas, 3).expect("whole");
    let of_second = |(area, _): &&(Area, Entry)| *area == Area::Second;
    assert_eq!(found.entries.iter().filter(of_second).count(), 3);
    assert_eq!(found.damaged_copies, 0);
    let missing = numbers(read(layout, &areas, 2)).expect_err("commit 3 is missing");
    assert!(
        missing.contains("commit 3 is damaged or missing"),
        "{missing}"
    );
}

#[test]
fn a_log_of_another_file_or_place_is_none() {
    let ours = layout();
    let areas = written(layout(), [&[1, 2], &[]]);
    assert_eq!(numbers(read(ours, &areas, 0)), Ok(vec![]));
    let [first, second] = written(ours, [&[1, 2], &[]]);
    assert_eq!(numbers(read(ours, &[second, first], 0)), Ok(vec![]));
}

/// One flipped bit anywhere: nothing is lost, or it is refused.
#[test]
fn a_flipped_bit_is_mended_from_the_twin() {
    let layout = layout();
    let areas = written(layout, [&[5, 6, 7], &[3, 4]]);
    for area in 0..2 {
        for bit in (0..AREA * 8).step_by(61) {
            let mut areas = areas.clone();
            areas[area][bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                numbers(read(layout, &areas, 2)),
                Ok(vec![3, 4, 5, 6, 7]),
                "area {area}, bit {bit}"
            );
        }
    }
}

#[test]
fn an_entry_that_is_gone_before_a_later_one_is_damage() {
    let layout = layout();
    let mut areas = written(layout, [&[1, 2, 3], &[]]);
    let first = entry_bytes(&changes(1).iter().collect::<Vec<_>>());
    areas[0][first..first + 2 * BLOCK].fill(0xff);
    areas[0][first + BLOCK * 2] ^= 1;
    let second = entry_bytes(&changes(2).iter().collect::<Vec<_>>());
    areas[0][first..first + second].fill(0);
    let error = numbers(read(layout, &areas, 0)).expect_err("damage");
    assert!(error.contains("commit 2 is damaged or missing"), "{error}");
    // The last one is what a power loss may cut short.
    areas[0][first..].fill(0);
    assert_eq!(numbers(read(layout, &areas, 0)), Ok(vec![1]));
}

fn any_change() -> impl Strategy<Value = Change> {
    let value = prop::option::of(vec(any::<u8>(), 0..300));
    ("[a-z]{0,8}/[a-z]{0,8}", vec(any::<u8>(), 0..40), value).prop_map(|(table, key, value)| {
        Change {
            table: table.into(),
            key,
            value,
        }
    })
}

proptest! {
    #[test]
    fn changes_go_forth_and_back(changes in vec(any_change(), 0..40)) {
        let layout = layout();
        let place = layout.area_start(Area::First);
        let listed: Vec<&Change> = changes.iter().collect();
        let mut bytes = encode(layout.salt, 9, place, &listed);
        bytes.resize(AREA, 0);
        let found = read(layout, &[bytes, vec![0; AREA]], 8).expect("whole");
        let expected = Entry { number: 9, place, changes };
        prop_assert_eq!(found.entries, vec![(Area::First, expected)]);
        prop_assert_eq!(found.damaged_copies, 0);
    }

    /// A power loss leaves any sectors of the last entry: it is there or not, those before are.
    #[test]
    fn a_torn_entry_is_there_or_not(kept in vec(any::<bool>(), 200)) {
        let layout = layout();
        let [before, other] = written(layout, [&[1, 2], &[]]);
        let [mut torn, _] = written(layout, [&[1, 2, 3], &[]]);
        for (sector, bytes) in torn.chunks_exact_mut(512).enumerate() {
            if !kept[sector % kept.len()] {
                bytes.copy_from_slice(&before[sector * 512..(sector + 1) * 512]);
            }
        }
        let found = numbers(read(layout, &[torn, other], 0)).expect("readable");
        prop_assert!(found == [1, 2] || found == [1, 2, 3]);
    }

    #[test]
    fn arbitrary_bytes_are_no_entries(bytes in vec(any::<u8>(), 0..3 * BLOCK)) {
        let layout = layout();
        prop_assert_eq!(numbers(read(layout, &[bytes, Vec::new()], 0)), Ok(vec![]));
    }
}
