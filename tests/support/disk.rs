//! Disks that are full, hang, fail or may not be written, and files that are not what was written.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{process::data, site::Site};

/// A file system that a test mounted.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(args: &[&str], at: &Path) -> Option<Self> {
        fs::create_dir_all(at).expect("made");
        let mut mount = Command::new("mount");
        let mounted = mount.args(args).arg(at).stderr(Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        skipped("no small file system can be mounted here (needs root on Linux)");
        None
    }

    /// An ext4 of its own for what the node of `site` keeps.
    pub fn ext4(site: &Site) -> Option<Self> {
        let image = site.path().join("disk.img");
        let file = fs::File::create(&image).expect("made");
        file.set_len(32 << 20).expect("sparse");
        let mut format = Command::new("mkfs.ext4");
        let formatted = format.arg("-q").arg(&image).status();
        if !formatted.is_ok_and(|status| status.success()) {
            skipped("there is no mkfs.ext4");
            return None;
        }
        let image = image.to_str().expect("UTF-8");
        let disk = site.path().join("disk");
        let mounted = Self::new(&["-o", "loop", image], &disk)?;
        link_data(site, &disk);
        Some(mounted)
    }

    pub fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        let mut mount = Command::new("mount");
        let done = mount.args(["-o", &option]).arg(&self.0).status();
        assert!(done.expect("runs").success());
    }

    /// Nothing is written to it until what this returns is dropped. Have that happen before a node
    /// is waited for: a process that waits for a frozen disk cannot be killed.
    pub fn freeze(&self) -> Frozen<'_> {
        freeze("-f", &self.0);
        Frozen(&self.0)
    }
}

/// A file system that is frozen.
pub struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        freeze("-u", self.0);
    }
}

fn freeze(how: &str, at: &Path) {
    let done = Command::new("fsfreeze").arg(how).arg(at).status();
    assert!(done.expect("runs").success());
}

/// Has the node of `site` keep its data on `disk`.
pub fn link_data(site: &Site, disk: &Path) {
    let kept = disk.join("data");
    fs::create_dir(&kept).expect("made");
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o700)).expect("set");
    std::os::unix::fs::symlink(kept, data(site.path())).expect("linked");
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Past the test runner, which shows nothing of a test that passes.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Changes a byte of every block but the first few, which hold the header and its copies.
pub fn spoil(file: &Path) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .expect("opens");
    let length = file.metadata().expect("there").len();
    for at in (65_536 + 100..length).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    }
}

/// Puts a copy, private as it has to be, in a file's place.
pub fn replace(file: &Path, copy: &[u8]) {
    let new = file.with_extension("other");
    let mut options = fs::OpenOptions::new();
    let mut made = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .expect("made");
    made.write_all(copy).expect("written");
    fs::rename(new, file).expect("renamed");
}

/// A disk whose sectors fail and come back. The kernel's device mapper makes it.
pub struct Failing {
    name: String,
    loop_device: String,
    sectors: u64,
}

impl Failing {
    pub fn new(image: &Path) -> Self {
        fs::File::create(image)
            .expect("made")
            .set_len(32 << 20)
            .expect("sparse");
        let shown = image.to_str().expect("UTF-8");
        let loop_device = run("losetup", &["-f", "--show", shown]);
        let name = format!("governance-{}", std::process::id());
        let disk = Self {
            name,
            loop_device,
            sectors: (32 << 20) / 512,
        };
        run(
            "dmsetup",
            &["create", &disk.name, "--table", &disk.table("linear")],
        );
        run("mkfs.ext4", &["-q", &disk.device()]);
        disk
    }

    pub fn device(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    pub fn table(&self, target: &str) -> String {
        let Self {
            loop_device,
            sectors,
            ..
        } = self;
        match target {
            "error" => format!("0 {sectors} error"),
            target => format!("0 {sectors} {target} {loop_device} 0"),
        }
    }

    pub fn become_(&self, target: &str) {
        run(
            "dmsetup",
            &["suspend", "--noflush", "--nolockfs", &self.name],
        );
        run(
            "dmsetup",
            &["load", &self.name, "--table", &self.table(target)],
        );
        run("dmsetup", &["resume", &self.name]);
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = Command::new("dmsetup")
            .args(["remove", "-f", &self.name])
            .status();
        let _ = Command::new("losetup")
            .args(["-d", &self.loop_device])
            .status();
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().expect("runs");
    assert!(done.status.success(), "{program} {args:?}: {done:?}");
    String::from_utf8(done.stdout)
        .expect("UTF-8")
        .trim()
        .to_owned()
}
