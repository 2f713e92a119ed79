//! From the format that a store is in to the one of this version.

use prost::Message;
use tracing::info;

use super::{
    backup_error::BackupError,
    batch::Batch,
    copying::{Copied, Source, check_same, check_whole, copy_rows},
    embedded::CopyWriter,
    engine::{Engine, Snapshot},
    error::StoreError,
    noted::RowName,
    owner::{META, read_format, write_format},
    sidecar::put,
};

const MIGRATING_KEY: &[u8] = b"migrating";

/// The ways from one format to the next. One is added with each new format, and none ever changes:
/// a store of format 1 goes through all of them.
pub(super) const MIGRATIONS: &[Migration] = &[];

/// The way from one format to the next one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Migration {
    /// The format that it begins with; it ends with the next one.
    pub(super) from: u32,
    /// What is to be changed next, given what is there, and where the step before ended (nothing
    /// at the beginning). A step changes about a commit's worth, some MiB at most. A crash between two
    /// steps does no harm, since nobody opens a store in between; one is not repeated that was
    /// committed.
    pub(super) step: TakeStep,
}

/// Makes the next step of what is there and of where the step before ended.
type TakeStep = fn(&dyn Snapshot, Option<&[u8]>) -> Result<Step, StoreError>;

/// One commit of a migration.
#[derive(Debug, Clone, Default)]
pub(super) struct Step {
    pub(super) batch: Batch,
    /// Where it goes on; nothing when it is done.
    pub(super) next: Option<Vec<u8>>,
}

/// A migration that has begun: the store has the new format's number already, so that no earlier
/// version takes it for its own.
#[derive(Clone, PartialEq, Message)]
struct UnderWay {
    #[prost(uint32, tag = "1")]
    from: u32,
    #[prost(bytes = "vec", tag = "2")]
    after: Vec<u8>,
}

/// Brings a store, open at commit `last`, to format `ours`; its last commit. Before the first change
/// an engine that is a file is copied beside itself, as `store.redb.format-N`: what goes wrong with
/// a new version is undone by the version before and that copy. A migration that was cut short goes
/// on where it ended.
///
/// # Errors
///
/// `Format` when it is newer than ours, or there is no way from it; when it cannot be copied, read
/// or written. It is then as it was, or will go on the next time.
pub(super) fn migrate(
    engine: &dyn Engine,
    mut last: u64,
    ours: u32,
    migrations: &[Migration],
) -> Result<u64, StoreError> {
    let place = engine.place();
    let refused = |found, advice| StoreError::Format {
        place: place.clone(),
        found,
        ours,
        advice,
    };
    loop {
        let snapshot = engine.snapshot()?;
        let format = read_format(&place, &*snapshot)?;
        if format > ours {
            return Err(refused(
                format,
                "it was written by a newer version: run that one, or go back to the copy that it \
                 made of the store before it changed it",
            ));
        }
        let under_way = under_way(&place, &*snapshot)?;
        let from = match &under_way {
            Some(under_way) => under_way.from,
            None if format == ours => return Ok(last),
            None => format,
        };
        let migration = migrations.iter().find(|one| one.from == from);
        let migration = migration.ok_or_else(|| {
            refused(
                from,
                "this version has no way from it: run the versions in between, one after the other",
            )
        })?;
        if under_way.is_none() {
            info!(
                store = place,
                from,
                to = from + 1,
                "the store's format changes"
            );
            keep_copy(engine, from, last)?;
        }
        let after = under_way
            .as_ref()
            .map(|under_way| under_way.after.as_slice());
        let Step { mut batch, next } = (migration.step)(&*snapshot, after)?;
        drop(snapshot);
        write_format(from + 1, &mut batch);
        match next {
            Some(after) => {
                batch.put(
                    META,
                    MIGRATING_KEY,
                    UnderWay { from, after }.encode_to_vec(),
                );
            }
            None => batch.remove(META, MIGRATING_KEY),
        }
        engine.commit(last + 1, &[batch])?;
        last += 1;
    }
}

fn under_way(place: &str, snapshot: &dyn Snapshot) -> Result<Option<UnderWay>, StoreError> {
    let stored = snapshot.get(META.name(), MIGRATING_KEY)?;
    let decoded = stored.map(|stored| UnderWay::decode(stored.as_slice()));
    decoded.transpose().map_err(|error| StoreError::Damaged {
        place: place.to_owned(),
        reason: format!("migration: {error}"),
    })
}

/// Copies the store beside itself, if it is a file.
fn keep_copy(engine: &dyn Engine, format: u32, commit: u64) -> Result<(), StoreError> {
    let Some(new) = engine.copy_place() else {
        return Ok(());
    };
    let kept = new.with_extension(format!("format-{format}"));
    let copy = || -> Result<(), BackupError> {
        let source = Still(engine);
        let mut go_on = |_| std::ops::ControlFlow::Continue(());
        let mut writer = CopyWriter::create(&new)?;
        copy_rows(&source, &mut writer, &mut go_on)?;
        writer.finish(commit)?;
        let copied = Copied::of(&*engine.snapshot()?)?;
        let file = check_same(&new, &copied)?;
        check_whole(&new, file, &mut go_on)?;
        put(&new, &kept)
    };
    copy().map_err(|error| match error {
        BackupError::Store(fault) => fault,
        error => StoreError::Io {
            place: kept.display().to_string(),
            operation: "keep a copy of the store before its format changes",
            reason: error.to_string(),
            advice: "make room on its disk; the store is as it was",
        },
    })
}

/// An engine that nobody commits to meanwhile.
struct Still<'a>(&'a dyn Engine);

impl Source for Still<'_> {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        self.0.snapshot()
    }

    fn noted_bytes(&self) -> usize {
        0
    }

    fn take_noted(&self) -> std::collections::BTreeSet<RowName> {
        std::collections::BTreeSet::new()
    }
}
