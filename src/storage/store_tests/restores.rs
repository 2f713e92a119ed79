//! Stores made of backups.

use std::{fs, ops::ControlFlow, path::PathBuf};

use super::{super::*, support::*};

struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A store with these keys, backed up; both by name.
    fn backed_up(&self, store: &str, backup: &str, key: &str) -> Backup {
        let (faulty, opened) = disk_store(&self.path(store));
        self.put(&opened, key);
        let made = opened.backup(&self.path(backup), &mut go_on).expect("made");
        drop((opened, faulty));
        made
    }

    fn put(&self, store: &Store, key: &str) {
        let a = register(store, "a");
        let generation = a.opened();
        let ticket = a.put(generation, key);
        a.committed(generation, ticket);
    }

    fn restore(
        &self,
        backup: &str,
        store: &str,
        replace: Replace,
    ) -> Result<RestoreReport, BackupError> {
        let (backup, store) = (self.path(backup), self.path(store));
        restore(&backup, &store, replace, Some(&owner("one")), &mut go_on)
    }
}

#[test]
fn a_restored_store_has_the_backups_rows_and_says_that_it_was_restored() {
    let scene = Scene::new();
    let made = scene.backed_up("old", "backup", "one");
    let report = scene
        .restore("backup", "new", Replace::Nothing)
        .expect("restored");
    assert_eq!(report.backup, made);
    assert_eq!(report.restored.backup_commit, made.commit);
    assert_eq!(report.restored.backup_at, made.made_at);
    assert_eq!(report.replaced, None);
    let store = reopened(&scene.path("new"));
    assert_eq!(store.restored(), Some(&report.restored));
    assert_eq!(store.identity().store_id, made.store_id);
    // The mark is one commit, the opening another.
    assert_eq!(store.condition().confirmed, made.commit + 2);
    assert_eq!(keys(&store, "a"), ["one", "one'"]);
    scene.put(&store, "two");
    drop(store);
    // It stays what it is; each restore has a name of its own.
    let again = reopened(&scene.path("new"));
    assert_eq!(again.restored(), Some(&report.restored));
    drop(again);
    assert_eq!(reopened(&scene.path("old")).restored(), None);
    let other = scene
        .restore("backup", "other", Replace::Nothing)
        .expect("restored");
    assert_ne!(other.restored.restore_id, report.restored.restore_id);
}

#[test]
fn what_is_in_the_way_is_told_by_name() {
    let scene = Scene::new();
    let made = scene.backed_up("store", "backup", "one");
    // A process has it.
    let store = reopened(&scene.path("store"));
    for replace in [Replace::Nothing, Replace::Older, Replace::Anything] {
        let refused = scene.restore("backup", "store", replace);
        let held = |error| matches!(error, BackupError::Store(StoreError::Held { .. }));
        assert!(refused.is_err_and(held), "{replace:?}");
    }
    scene.put(&store, "two");
    let confirmed = store.condition().confirmed;
    drop(store);
    // A store is there, and it is newer.
    match scene.restore("backup", "store", Replace::Nothing) {
        Err(BackupError::NotEmpty { found, .. }) => assert_eq!(found, "a store"),
        other => panic!("{other:?}"),
    }
    match scene.restore("backup", "store", Replace::Older) {
        Err(error @ BackupError::Newer { .. }) => {
            let text = error.to_string();
            assert!(text.contains(&confirmed.to_string()), "{text}");
            assert!(text.contains(&made.commit.to_string()), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(keys(&reopened(&scene.path("store")), "a").len(), 4);
    // Another one is there, and one that cannot be read.
    scene.backed_up("other", "other-backup", "three");
    let incomparable = |error| matches!(error, BackupError::Incomparable { .. });
    let refused = scene.restore("backup", "other", Replace::Older);
    assert!(refused.is_err_and(incomparable));
    fs::write(scene.path("other").join("store.redb"), "no store").expect("written");
    let refused = scene.restore("backup", "other", Replace::Older);
    assert!(refused.is_err_and(incomparable));
    // Something else is there.
    fs::create_dir(scene.path("home")).expect("made");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(scene.path("home"), private).expect("set");
    fs::write(scene.path("home").join("journal.redb"), "x").expect("written");
    match scene.restore("backup", "home", Replace::Nothing) {
        Err(BackupError::NotEmpty { found, .. }) => assert_eq!(found, "`journal.redb`"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_owners_backup_or_store_is_refused_by_name_before_anything_is_touched() {
    let scene = Scene::new();
    scene.backed_up("store", "backup", "one");
    let backup = scene.path("backup");
    let others = [
        ("node", owner("two")),
        (
            "chain",
            Owner {
                chain_id: "other".to_owned(),
                ..owner("one")
            },
        ),
        (
            "network",
            Owner {
                network: "bitcoin".to_owned(),
                ..owner("one")
            },
        ),
    ];
    let before = fs::read(scene.path("store").join("store.redb")).expect("read");
    for (expected, other) in others {
        for place in ["new", "store"] {
            let place = scene.path(place);
            let refused = restore(
                &backup,
                &place,
                Replace::Anything,
                Some(&other),
                &mut |_| panic!("nothing is read"),
            );
            match refused {
                Err(BackupError::Foreign { what, .. }) => assert_eq!(what, expected),
                refused => panic!("{refused:?}"),
            }
        }
        let refused = restore_in_place(&scene.path("store"), Some(&other));
        let foreign = |error| matches!(error, BackupError::Store(StoreError::Foreign { what, .. }) if what == expected);
        assert!(refused.is_err_and(foreign));
    }
    assert!(!scene.path("new").exists());
    let after = ReadOnlyFile::inspect(&scene.path("store")).expect("opened");
    assert_eq!(
        Restored::read("store", &*after.snapshot().expect("read")),
        Ok(None)
    );
    assert_eq!(before.len() as u64, after.usage().expect("read").bytes);
}

#[test]
fn what_is_replaced_is_kept() {
    let scene = Scene::new();
    scene.backed_up("store", "backup", "one");
    // A store of the backup's own commit is no newer.
    fs::create_dir(scene.path("older")).expect("made");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(scene.path("older"), private).expect("set");
    fs::copy(scene.path("backup"), scene.path("older").join("store.redb")).expect("copied");
    let report = scene.restore("backup", "older", Replace::Older);
    let kept = report.expect("restored").replaced.expect("kept");
    assert_eq!(
        fs::read(kept).expect("there"),
        fs::read(scene.path("backup")).expect("there")
    );
    // One restored since has a history of its own.
    let refused = scene.restore("backup", "older", Replace::Older);
    let incomparable = |error| matches!(error, BackupError::Incomparable { .. });
    assert!(refused.is_err_and(incomparable));
    scene
        .restore("backup", "older", Replace::Anything)
        .expect("restored");
    assert_eq!(keys(&reopened(&scene.path("older")), "a"), ["one", "one'"]);
}

#[test]
fn a_restore_that_is_cut_short_leaves_what_was_there() {
    let scene = Scene::new();
    scene.backed_up("store", "backup", "one");
    // It is told each time that it reads something: cut short at each of these.
    for cut in 1.. {
        let mut told = 0;
        let (backup, new) = (scene.path("backup"), scene.path("new"));
        let done = restore(&backup, &new, Replace::Nothing, None, &mut |_| {
            told += 1;
            if told == cut {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if told < cut {
            done.expect("restored, when nothing cuts it short");
            assert!(cut > 3);
            break;
        }
        assert_eq!(done.expect_err("cut short"), BackupError::Cancelled);
        assert!(!new.join("store.redb").exists(), "{cut}");
    }
    assert_eq!(keys(&reopened(&scene.path("new")), "a"), ["one", "one'"]);
}

#[test]
fn a_store_that_went_back_unnoticed_is_marked_where_it_is() {
    let scene = Scene::new();
    let made = scene.backed_up("store", "backup", "one");
    let first = restore_in_place(&scene.path("store"), None).expect("marked");
    assert!(first.backup_commit >= made.commit);
    let store = reopened(&scene.path("store"));
    assert_eq!(store.restored(), Some(&first));
    assert_eq!(keys(&store, "a"), ["one", "one'"]);
    let held = restore_in_place(&scene.path("store"), None);
    assert!(matches!(
        held,
        Err(BackupError::Store(StoreError::Held { .. }))
    ));
    drop(store);
    let second = restore_in_place(&scene.path("store"), None).expect("marked");
    assert_ne!(first.restore_id, second.restore_id);
}
