use super::*;
use crate::system::accounts;
use std::{
    io::{Seek, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
};

const ALL: Rules = Rules { is_left_out: |_| false, only_grows: |_| false };

fn same() -> Owners {
    let own = accounts::own();
    let both = Accounts { user: own.clone(), resource: own };
    Owners::between(&both, &both)
}

struct Two {
    _dir: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
}

impl Two {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).expect("mkdir");
        Self { _dir: dir, from, to }
    }

    fn mirror(&self, rules: Rules) -> Mirror {
        Mirror::new(&self.from, &self.to, same(), rules, Way::Copy)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.from.join(name), text).expect("write");
    }

    fn got(&self, name: &str) -> String {
        fs::read_to_string(self.to.join(name)).unwrap_or_default()
    }
}

fn pass(mirror: &mut Mirror) -> Passed {
    let synced = sync(&mirror.from).expect("sync");
    mirror.pass(Some(synced), &|| false).expect("copied")
}

#[test]
fn a_copy_has_modes_times_links_of_both_kinds_holes_and_attributes_of_its_source() {
    let two = Two::new();
    two.put("a", "one");
    fs::hard_link(two.from.join("a"), two.from.join("b")).expect("link");
    fs::create_dir(two.from.join("d")).expect("mkdir");
    symlink("../a", two.from.join("d/link")).expect("link");
    symlink("/etc/passwd", two.from.join("outside")).expect("link");
    nix::unistd::mkfifo(&two.from.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let _socket = std::os::unix::net::UnixListener::bind(two.from.join("socket")).expect("socket");
    let mut sparse = fs::File::create(two.from.join("sparse")).expect("create");
    sparse.set_len(64 << 20).expect("length");
    sparse.seek(io::SeekFrom::Start(32 << 20)).expect("seek");
    sparse.write_all(b"middle").expect("write");
    let attribute = rustix::fs::setxattr(two.from.join("a"), "user.kept", b"yes", rustix::fs::XattrFlags::empty());
    fs::set_permissions(two.from.join("a"), fs::Permissions::from_mode(0o640)).expect("chmod");
    fs::set_permissions(two.from.join("d"), fs::Permissions::from_mode(0o500)).expect("chmod");
    fs::File::open(two.from.join("a")).expect("open").set_modified(std::time::UNIX_EPOCH).expect("times");
    pass(&mut two.mirror(ALL));
    let about = |name: &str| fs::symlink_metadata(two.to.join(name)).expect(name);
    assert_eq!(two.got("a"), "one");
    assert_eq!((about("a").ino(), about("a").nlink()), (about("b").ino(), 2));
    assert_eq!((about("a").mode() & 0o7777, about("a").mtime()), (0o640, 0));
    assert_eq!(about("d").mode() & 0o7777, 0o500);
    assert_eq!(fs::read_link(two.to.join("d/link")).expect("a link"), Path::new("../a"));
    assert_eq!(fs::read_link(two.to.join("outside")).expect("a link"), Path::new("/etc/passwd"));
    assert!(about("fifo").file_type().is_fifo() && fs::symlink_metadata(two.to.join("socket")).is_err());
    assert_eq!((about("sparse").len(), about("sparse").blocks() < 1000), (64 << 20, true));
    assert_eq!(&fs::read(two.to.join("sparse")).expect("read")[32 << 20..][..6], b"middle");
    if attribute.is_ok() {
        let mut value = [0_u8; 8];
        let length = rustix::fs::getxattr(two.to.join("a"), "user.kept", &mut value[..]).expect("an attribute");
        assert_eq!(&value[..length], b"yes");
    }
}

#[test]
fn a_later_pass_copies_what_changed_removes_what_is_gone_and_leaves_the_rest_alone() {
    let two = Two::new();
    for name in ["same", "edited", "gone", "replaced", "becomes-directory"] {
        two.put(name, "old");
    }
    fs::create_dir_all(two.from.join("d/inner")).expect("mkdir");
    two.put("d/inner/file", "x");
    two.put("first", "linked");
    fs::hard_link(two.from.join("first"), two.from.join("second")).expect("link");
    let mut mirror = two.mirror(ALL);
    pass(&mut mirror);
    // Stamps of a moment ago are older than the next sync once a tick of the clock is over.
    nix::unistd::sleep(1);
    pass(&mut mirror);
    assert_eq!(pass(&mut mirror), Passed::default(), "nothing has changed");
    two.put("edited", "new");
    fs::remove_file(two.from.join("gone")).expect("remove");
    two.put("beside", "new");
    fs::rename(two.from.join("beside"), two.from.join("replaced")).expect("rename");
    fs::remove_file(two.from.join("becomes-directory")).expect("remove");
    fs::create_dir(two.from.join("becomes-directory")).expect("mkdir");
    two.put("becomes-directory/x", "x");
    fs::remove_dir_all(two.from.join("d")).expect("remove");
    symlink("/etc", two.from.join("d")).expect("link");
    // No name is added: the file that both names lead to is another one's only now.
    fs::remove_file(two.from.join("second")).expect("remove");
    two.put("second", "alone");
    let passed = pass(&mut mirror);
    assert_eq!((two.got("edited"), two.got("replaced"), two.got("same")), ("new".into(), "new".into(), "old".into()));
    assert_eq!((two.got("first"), two.got("second")), ("linked".into(), "alone".into()));
    assert!(!two.to.join("gone").exists() && two.got("becomes-directory/x") == "x");
    assert_eq!(fs::read_link(two.to.join("d")).expect("a link"), Path::new("/etc"));
    assert!(passed.files < 7, "{passed:?}");
}

#[test]
fn what_may_change_without_a_new_stamp_is_copied_again() {
    let two = Two::new();
    two.put("just-now", "x");
    let mut mirror = two.mirror(ALL);
    assert_eq!(pass(&mut mirror).files, 1);
    assert_eq!(pass(&mut mirror).files, 1, "its stamp is younger than the sync before it was copied");
    assert_eq!(mirror.pass(None, &|| false).expect("copied").files, 1, "without a sync nothing is sure");
}

#[test]
fn a_file_that_only_grows_is_copied_from_where_it_ended() {
    let two = Two::new();
    two.put("log", "12345");
    let rules = Rules { only_grows: |path| path == Path::new("log"), ..ALL };
    let mut mirror = two.mirror(rules);
    assert_eq!(pass(&mut mirror).bytes, 5);
    two.put("log", "123456789");
    assert_eq!((pass(&mut mirror).bytes, two.got("log")), (4, "123456789".into()));
    two.put("log", "new");
    assert_eq!((pass(&mut mirror).bytes, two.got("log")), (3, "new".into()), "a shorter one is another one");
}

#[test]
fn what_is_left_out_is_not_there_and_a_copy_can_be_stopped() {
    let two = Two::new();
    fs::create_dir(two.from.join("private")).expect("mkdir");
    two.put("private/x", "x");
    two.put("public", "x");
    let rules = Rules { is_left_out: |path| path == Path::new("private"), ..ALL };
    pass(&mut two.mirror(rules));
    assert!(!two.to.join("private").exists() && two.to.join("public").exists());
    let stopped = two.mirror(ALL).pass(None, &|| true).expect_err("stopped");
    assert_eq!(stopped.source.kind(), io::ErrorKind::Interrupted);
    let nothing = Mirror::new(&two.from.join("missing"), &two.to, same(), ALL, Way::Copy).pass(None, &|| false);
    assert_eq!(nothing.expect("nothing is there"), Passed::default());
}

#[test]
fn a_tree_that_is_exchanged_for_links_while_it_is_copied_leads_nowhere() {
    let two = Two::new();
    let outside = two.to.with_file_name("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("secret"), "secret").expect("write");
    fs::create_dir(two.from.join("swings")).expect("mkdir");
    two.put("swings/mine", "mine");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swing = scope.spawn(|| {
            let (at, aside) = (two.from.join("swings"), two.from.join("aside"));
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                fs::rename(&at, &aside).expect("rename");
                symlink(&outside, &at).expect("link");
                fs::remove_file(&at).expect("remove");
                fs::rename(&aside, &at).expect("rename");
            }
        });
        for _ in 0..200 {
            let mut mirror = two.mirror(ALL);
            mirror.pass(None, &|| false).expect("copied");
            assert!(!two.to.join("swings/secret").exists() || two.to.join("swings").is_symlink());
            let secret = fs::symlink_metadata(two.to.join("swings")).is_ok_and(|about| about.is_dir())
                && two.to.join("swings/secret").exists();
            assert!(!secret);
            removal::remove(&two.to).expect("removed");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        swing.join().expect("ended");
    });
}

#[test]
fn a_tree_deeper_than_any_is_refused_with_its_reason() {
    let two = Two::new();
    let mut at = two.from.clone();
    for _ in 0..DEEPEST {
        at.push("d");
    }
    fs::create_dir_all(at).expect("mkdir");
    let error = two.mirror(ALL).pass(None, &|| false).expect_err("refused");
    assert!(error.to_string().contains("deep"), "{error}");
}

#[test]
fn a_copy_that_would_take_the_room_of_others_is_refused_as_on_a_full_disk() {
    let two = Two::new();
    has_room(&two.from, 0).expect("there is some");
    let error = has_room(&two.from, u64::MAX).expect_err("refused");
    assert!(crate::system::disk::is_full(&error.source) && !error.hint.is_empty(), "{error:?}");
}
