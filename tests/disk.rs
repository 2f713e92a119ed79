//! The disk under a node's store fails, with node and governance as processes: what was accepted is
//! kept, what was refused is never signed, and nobody is told that a request is unknown.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]
#![cfg(all(target_os = "linux", feature = "cli"))]

mod support;

use std::{fs, process::Command};

use serde_json::Value;
use support::{
    disk::{Failing, Mounted, link_data, replace, skipped, spoil},
    process::{ask, data, pegout_form, until_healthy, wait_for},
    site::Site,
};

#[test]
fn what_a_full_disk_refused_is_never_signed_and_the_node_goes_on_by_itself() {
    let mut site = Site::new(&[]);
    let kept = data(site.path());
    let options = ["-t", "tmpfs", "-o", "size=40m,mode=0700", "tmpfs"];
    let Some(_disk) = Mounted::new(&options, &kept) else {
        return;
    };
    let node = site.started();
    for round in 0..3 {
        site.accept(5);
        let filler = kept.join("filler");
        // It fills what there is, and then fails.
        let _ = fs::write(&filler, vec![1; 64 << 20]);
        // The engine goes on with what it has.
        while site.submit() {}
        site.until_unhealthy_for("make room");
        // What is small may find a page once in a while, and the store is open until the next commit
        // that does not: what counts is that each call's answer is kept.
        wait_for("an exit code", || {
            let _ = site.submit();
            site.is_told_unwell().then_some(())
        });
        assert!(site.failures("commit", "io") > round);
        // However often it is opened again: that brings everything into the tables first.
        let failures = |site: &Site| site.failures("commit", "io") + site.failures("open", "io");
        let before = failures(&site);
        wait_for("another failure", || {
            let _ = site.submit();
            assert!(site.is_unhealthy(), "the disk is full");
            (failures(&site) > before + 1).then_some(())
        });
        let (id, _) = pegout_form(&site.federation, 0);
        let asked = site.standing(&id).expect("answers");
        assert_ne!(asked.0, 404, "{}", asked.1);
        fs::remove_file(&filler).expect("there is room again");
        until_healthy(site.path());
        site.accept(1);
    }
    site.end(node);
}

#[test]
fn a_file_that_is_removed_from_a_running_node_is_missed_and_never_made_anew() {
    let mut site = Site::new(&[]);
    let node = site.started();
    site.accept(3);
    let (file, aside) = (site.store(), site.store().with_extension("aside"));
    fs::rename(&file, &aside).expect("renamed");
    site.until_unhealthy_for("there is none");
    assert!(site.is_told_unwell());
    assert!(!site.submit());
    wait_for("an opening without it", || {
        (site.failures("open", "absent") > 1).then_some(())
    });
    site.verify_finds(4, "there is none");
    assert!(!file.exists(), "nothing is made in passing");
    fs::rename(&aside, &file).expect("renamed");
    until_healthy(site.path());
    site.accept(1);
    site.end(node);
}

#[test]
fn a_file_that_is_removed_from_a_stopped_node_keeps_it_from_starting() {
    let mut site = Site::new(&[]);
    let node = site.started();
    site.accept(3);
    assert!(node.terminate());
    let (file, aside) = (site.store(), site.store().with_extension("aside"));
    fs::rename(&file, &aside).expect("renamed");
    // `--init` is for an empty directory, and this one is none.
    site.refuses_to_start(1, "it is not made");
    assert!(!file.exists());
    site.verify_finds(4, "there is none");
    fs::rename(&aside, &file).expect("renamed");
    let node = site.started();
    site.end(node);
}

#[test]
fn an_older_copy_in_the_place_of_a_running_nodes_file_is_refused_by_name() {
    let mut site = Site::new(&[]);
    let node = site.started();
    site.accept(2);
    assert!(node.terminate());
    let older = fs::read(site.store()).expect("readable");
    let node = site.started();
    site.accept(3);
    let aside = site.store().with_extension("aside");
    fs::hard_link(site.store(), &aside).expect("linked");
    replace(&site.store(), &older);
    site.until_unhealthy_for("replaced by an older copy");
    assert!(site.is_told_unwell());
    assert!(!site.submit());
    site.verify_finds(7, "older copy");
    fs::rename(&aside, site.store()).expect("renamed");
    until_healthy(site.path());
    site.end(node);
}

#[test]
fn the_store_of_another_making_in_its_place_is_refused_by_name() {
    let (mut site, other) = (Site::new(&[]), Site::new(&[]));
    assert!(other.started().terminate());
    let node = site.started();
    site.accept(2);
    let aside = site.store().with_extension("aside");
    fs::hard_link(site.store(), &aside).expect("linked");
    let mut foreign = other;
    let another = foreign.started();
    foreign.accept(30);
    assert!(another.terminate());
    replace(&site.store(), &fs::read(foreign.store()).expect("readable"));
    site.until_unhealthy_for("store id");
    assert!(!site.submit());
    fs::rename(&aside, site.store()).expect("renamed");
    until_healthy(site.path());
    site.end(node);
}

#[test]
fn a_file_that_is_cut_off_is_refused_by_name_by_a_running_and_by_a_new_node() {
    let mut site = Site::new(&[]);
    let node = site.started();
    site.accept(3);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(site.store())
        .expect("opens");
    let length = file.metadata().expect("there").len();
    file.set_len(length / 2).expect("cut");
    site.until_unhealthy_for("damaged");
    assert!(!site.submit());
    // A commit that was under way may have written behind the cut; nothing does from now on.
    let left = file.metadata().expect("there").len();
    assert!(left < length);
    site.verify_finds(6, "damaged");
    assert!(!node.terminate(), "nobody knows what is left");
    assert!(site.log().contains("store stats"));
    site.refuses_to_start(6, "damaged");
    site.verify_finds(6, "damaged");
    let found = file.metadata().expect("there").len();
    assert_eq!(found, left, "it is evidence");
}

#[test]
fn damaged_pages_are_found_in_the_file_of_a_running_node() {
    let mut site = Site::new(&[]);
    let node = site.started();
    site.accept(3);
    spoil(&site.store());
    site.verify_finds(6, "block");
    site.until_unhealthy_for("damaged");
    drop(node);
    site.refuses_to_start(6, "damaged");
}

#[test]
fn damaged_pages_are_refused_by_name_when_a_node_starts() {
    let mut site = Site::new(&[]);
    let node = site.started();
    site.accept(3);
    assert!(node.terminate());
    spoil(&site.store());
    site.refuses_to_start(6, "damaged");
    site.verify_finds(6, "damaged");
}

#[test]
fn a_disk_that_may_not_be_written_is_refused_by_name_and_taken_again() {
    let mut site = Site::new(&[]);
    let Some(disk) = Mounted::ext4(&site) else {
        return;
    };
    let node = site.started();
    site.accept(3);
    assert!(node.terminate());
    disk.remount("ro");
    site.refuses_to_start(8, "mount it writable again");
    // A failing disk often ends like this: what is on it can be saved.
    let backup = site.path().join("saved");
    let backup = backup.to_str().expect("text");
    let saved = site.command(&["backup", backup]);
    assert!(saved.status.success(), "{saved:?}");
    disk.remount("rw");
    let node = site.started();
    site.end(node);
}

#[test]
fn a_disk_that_hangs_shows_in_health_and_nothing_is_lost_when_it_comes_back() {
    let mut site = Site::new(&[]);
    let Some(disk) = Mounted::ext4(&site) else {
        return;
    };
    let node = site.started();
    site.accept(3);
    let frozen = disk.freeze();
    let (id, form) = pegout_form(&site.federation, site.next);
    site.next += 1;
    let path = site.path().to_owned();
    let asking = std::thread::spawn(move || ask(&path, "POST", "/requests", &form));
    wait_for("health", || {
        let (_, status) = ask(site.path(), "GET", "/status", &Value::Null)?;
        let health = status["health"].to_string();
        health.contains("has not answered").then_some(())
    });
    drop(frozen);
    until_healthy(site.path());
    // Whatever it was told, what it asked for was handed in and is committed: asked again, it is known.
    let _ = asking.join().expect("no panic");
    let (_, again) = pegout_form(&site.federation, site.next - 1);
    let again = ask(site.path(), "POST", "/requests", &again);
    assert_eq!(again.expect("answers").0, 200);
    site.accepted.insert(id);
    site.end(node);
}

#[test]
fn a_disk_that_returns_errors_is_refused_by_name_and_keeps_what_was_accepted() {
    let version = Command::new("dmsetup").arg("version").output();
    if !version.is_ok_and(|version| version.status.success()) {
        skipped("no disk that returns errors: this kernel has no device mapper (dmsetup)");
        return;
    }
    let mut site = Site::new(&[]);
    let disk = Failing::new(&site.path().join("disk.img"));
    let (device, at) = (disk.device(), site.path().join("disk"));
    let mounted = Mounted::new(&[&device], &at).expect("mounted");
    link_data(&site, &at);
    let node = site.started();
    site.accept(3);
    disk.become_("error");
    while site.submit() {}
    site.until_unhealthy_for("cannot");
    drop(node);
    drop(mounted);
    disk.become_("linear");
    let _mounted = Mounted::new(&[&device], &at).expect("mounted again");
    let node = site.started();
    site.end(node);
}
