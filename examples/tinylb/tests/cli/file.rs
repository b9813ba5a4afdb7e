//! The backends file, as it is written and replaced by people and programs.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, FileType, Mode};

use super::*;

/// A backends file that is replaced in one step.
struct BackendsFile {
    dir: tempfile::TempDir,
}

impl BackendsFile {
    fn new(content: impl AsRef<[u8]>) -> Self {
        let file = Self { dir: tempfile::tempdir().unwrap() };
        file.write(content);
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("backends")
    }

    fn write(&self, content: impl AsRef<[u8]>) {
        let new = self.dir.path().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    #[track_caller]
    fn start(&self, args: &str) -> Cli {
        Cli::start(&format!("--control --backends {} {args}", self.path().display()))
    }
}

#[test]
fn the_file_has_one_backend_a_line_with_comments_and_blank_lines() {
    let file = BackendsFile::new(
        "\u{feff}# who serves\n\n  a=127.0.0.1:1  \r\n\t# b=127.0.0.1:2\nc=127.0.0.1:3 # the third\nd=unix:/x#y\n#\ne=localhost:5",
    );
    let mut cli = file.start("");
    assert_eq!(cli.backends(), "a=127.0.0.1:1 c=127.0.0.1:3 d=unix:/x#y e=localhost:5");
}

#[test]
fn a_changed_file_is_reread_and_replaces_only_its_own_backends() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let file = BackendsFile::new(format!("f={}\n", one.addr));
    let mut cli = file.start(&format!("--backend a={}", two.addr));
    let (mut kept, tag) = cli.tagged_client();
    assert_eq!(tag, "two");
    let (mut gone, tag) = cli.tagged_client();
    assert_eq!(tag, "one");
    cli.ask("add c=127.0.0.1:3");
    file.write("g=127.0.0.1:7\n");
    assert_aborted(&mut gone);
    cli.wait_for_backends(&format!("a={} c=127.0.0.1:3 g=127.0.0.1:7", two.addr));
    assert_echo(&mut kept, b"stays");
    fs::write(file.path(), "").unwrap();
    cli.wait_for_backends(&format!("a={} c=127.0.0.1:3", two.addr));
}

#[test]
fn commands_act_on_all_but_the_files_backends() {
    let file = BackendsFile::new("f=127.0.0.1:1\n");
    let mut cli = file.start("--backend a=127.0.0.1:2");
    for command in
        ["set f=127.0.0.1:3", "add b=127.0.0.1:3 f=127.0.0.1:3", "remove f", "remove a f"]
    {
        let answer = cli.ask(command);
        assert!(answer.starts_with("error ") && answer.contains("\"f\""), "{command}: {answer}");
    }
    assert_eq!(cli.backends(), "a=127.0.0.1:2 f=127.0.0.1:1");
    assert_eq!(cli.ask("set b=127.0.0.1:4"), "ok closed=0 cancelled=0 backends=2");
    assert_eq!(cli.ask("set"), "ok closed=0 cancelled=0 backends=1");
    assert_eq!(cli.backends(), "f=127.0.0.1:1");
}

#[test]
fn a_bad_file_is_an_error_that_names_file_and_line_once_and_the_running_set_is_kept() {
    let file = BackendsFile::new("f=127.0.0.1:1\n");
    let mut cli = file.start("--backend a=127.0.0.1:2 --log off");
    let before = cli.backends();
    let bad: [(&[u8], usize, &str); 6] = [
        (b"g=127.0.0.1:1\n\nh\n", 3, "KEY=TARGET"),
        (b"g=127.0.0.1:1\ng=127.0.0.1:2\n", 2, "twice"),
        (b"\n\n\na=127.0.0.1:1\n", 4, "\"a\""),
        (b"g=127.0.0.1:0\n", 1, "port"),
        (b"#\ng=no-such-host.invalid:1\n", 2, "no-such-host.invalid"),
        (b"g=127.0.0.1:1\n\xff=127.0.0.1:1\n", 2, "UTF-8"),
    ];
    for (content, line, reason) in bad {
        file.write(content);
        let complaint = cli.complaint();
        let place = format!("{}:{line}: ", file.path().display());
        assert!(complaint.contains(&place) && complaint.contains(reason), "{complaint}");
    }
    // A repetition would come as soon as the first complaint did. Bad luck can only miss it.
    assert!(cli.stderr.recv_timeout(Duration::from_secs(1)).is_err());
    assert_eq!(cli.backends(), before);
    file.write("z=127.0.0.1:9\n");
    cli.wait_for_backends("a=127.0.0.1:2 z=127.0.0.1:9");
}

#[test]
fn a_hangup_signal_has_the_file_reread() {
    let file = BackendsFile::new("f=127.0.0.1:1\n");
    let cli = file.start("");
    file.write("bad\n");
    let first = cli.complaint();
    cli.signal("HUP");
    assert_eq!(cli.complaint(), first, "said once for each time it is reread");
}

#[test]
fn a_file_that_vanishes_is_an_error_said_once_and_the_running_set_is_kept() {
    let file = BackendsFile::new("f=127.0.0.1:1\n");
    let mut cli = file.start("");
    fs::remove_file(file.path()).unwrap();
    assert!(cli.complaint().contains(&format!("{}: ", file.path().display())));
    assert_eq!(cli.backends(), "f=127.0.0.1:1");
    fs::create_dir(file.path()).unwrap();
    assert!(cli.complaint().contains("not a regular file"));
    fs::remove_dir(file.path()).unwrap();
    file.write("g=127.0.0.1:1\n");
    cli.wait_for_backends("g=127.0.0.1:1");
}

#[test]
fn a_file_that_is_replaced_again_and_again_is_taken_nevertheless() {
    let file = BackendsFile::new("f=127.0.0.1:1\n");
    let mut cli = file.start("");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for version in 2u64.. {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                file.write(format!("f=127.0.0.1:{version}\n"));
                thread::sleep(Duration::from_millis(50 + version * 37 % 130));
            }
        });
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..2 {
                let before = cli.backends();
                wait_for("a change", || (cli.backends() != before).then_some(()));
            }
        }));
        is_over.store(true, Ordering::SeqCst);
        seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_last_line_without_its_end_is_believed_only_when_it_has_stood_for_a_second() {
    let file = BackendsFile::new("f=127.0.0.1:1\ng=127.0.0.1:36169\n");
    let mut cli = file.start("");
    let written = Instant::now();
    fs::write(file.path(), "f=127.0.0.1:1\ng=127.0.0.1:361").unwrap();
    cli.wait_for_backends("f=127.0.0.1:1 g=127.0.0.1:361");
    assert!(written.elapsed() >= Duration::from_secs(1), "{:?}", written.elapsed());
}

#[test]
fn an_empty_file_empties_the_set_only_when_it_has_stood_for_a_second() {
    let file = BackendsFile::new("f=127.0.0.1:1\n");
    let mut cli = file.start("");
    let written = Instant::now();
    fs::write(file.path(), "").unwrap();
    // Not even on request.
    cli.signal("HUP");
    cli.wait_for_backends("");
    assert!(written.elapsed() >= Duration::from_secs(1), "{:?}", written.elapsed());
}

#[test]
fn a_name_that_cannot_be_looked_up_holds_up_no_removal() {
    let file = BackendsFile::new("f=127.0.0.1:1\ng=127.0.0.1:2\n");
    let mut cli = file.start("");
    file.write("g=127.0.0.1:2\nh=no-such-host.invalid:3\n");
    cli.wait_for_backends("g=127.0.0.1:2");
    let complaint = cli.complaint();
    let place = format!("{}:2: ", file.path().display());
    assert!(complaint.contains(&place) && complaint.contains("no-such-host"), "{complaint}");
}

#[test]
fn what_is_no_file_of_backends_is_an_error_that_names_it_and_the_running_set_is_kept() {
    let file = BackendsFile::new("f=127.0.0.1:1\n");
    let mut cli = file.start("");
    let new = file.dir.path().join("new");
    let make: [(&dyn Fn(), &str); 3] = [
        (
            &|| rustix::fs::mknodat(CWD, &new, FileType::Fifo, Mode::RWXU, 0).unwrap(),
            "not a regular file",
        ),
        (&|| fs::write(&new, "# long\n".repeat(3 << 20)).unwrap(), "larger than 16777216 bytes"),
        (&|| drop(UnixListener::bind(&new).unwrap()), "not a regular file"),
    ];
    for (make, reason) in make {
        make();
        fs::rename(&new, file.path()).unwrap();
        let complaint = cli.complaint();
        let expected = format!("{}: {reason}; the running set is kept", file.path().display());
        assert!(complaint.ends_with(&expected), "{complaint}");
        assert_eq!(cli.backends(), "f=127.0.0.1:1");
    }
    file.write("g=127.0.0.1:1\n");
    cli.wait_for_backends("g=127.0.0.1:1");
}

/// As Kubernetes replaces the files of a volume: each is a link through a directory, and that is
/// a link which is replaced in one step.
#[test]
fn a_file_behind_links_is_taken_when_a_link_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let in_dir = |name: &str| dir.path().join(name);
    let publish = |version: &str, content: &str| {
        fs::create_dir(in_dir(version)).unwrap();
        fs::write(in_dir(version).join("backends"), content).unwrap();
        symlink(version, in_dir("..data_tmp")).unwrap();
        fs::rename(in_dir("..data_tmp"), in_dir("..data")).unwrap();
    };
    publish("..1", "f=127.0.0.1:1\n");
    symlink("..data/backends", in_dir("backends")).unwrap();
    let mut cli = Cli::start(&format!("--control --backends {}", in_dir("backends").display()));
    for version in 2..5 {
        publish(&format!("..{version}"), &format!("f=127.0.0.1:{version}\n"));
        fs::remove_dir_all(in_dir(&format!("..{}", version - 1))).unwrap();
        cli.wait_for_backends(&format!("f=127.0.0.1:{version}"));
    }
    assert_eq!(cli.stderr.try_iter().next(), None, "nothing was wrong at any time");
}
