//! Reading the backends file, without waiting for anybody.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::parse::Problem;

/// The largest file there may be.
const LARGEST: u64 = 16 << 20;

/// What the file was found to be.
pub(crate) type Reading = Result<Vec<u8>, Problem>;

/// Reads the file's content.
pub(crate) fn read(path: &Path) -> Reading {
    // Asked before it is opened: to open a pipe lets a waiting writer go on.
    check_kind(fs::metadata(path))?;
    let file = open(path)?;
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content).map_err(of_file)?;
    if content.len() as u64 > LARGEST {
        return Err(format!("larger than {LARGEST} bytes").into());
    }
    Ok(content)
}

/// Opens the file, which something else may have replaced since it was looked at.
fn open(path: &Path) -> Result<File, Problem> {
    // Without the flag, to open a pipe waits for a writer.
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let file =
        OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(of_file)?;
    check_kind(file.metadata())?;
    Ok(file)
}

fn check_kind(metadata: io::Result<Metadata>) -> Result<(), Problem> {
    match metadata.map_err(of_file)?.is_file() {
        true => Ok(()),
        false => Err("not a regular file".to_owned().into()),
    }
}

fn of_file(err: io::Error) -> Problem {
    err.to_string().into()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    fn make_pipe(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    }

    /// What `read` does if a pipe is put in the file's place right after the first look.
    #[test]
    fn a_pipe_that_has_just_taken_the_files_place_is_an_error_that_waits_for_no_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        make_pipe(&path);
        let (done, result) = mpsc::channel();
        thread::spawn(move || done.send(open(&path).map(drop).unwrap_err()));
        let problem = result.recv_timeout(Duration::from_secs(20)).expect("it waits for a writer");
        assert_eq!(problem.what, "not a regular file");
    }

    #[test]
    fn a_pipe_is_not_opened_so_its_writer_goes_on_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        make_pipe(&path);
        let (opened, writer) = mpsc::channel();
        let write = path.clone();
        thread::spawn(move || opened.send(OpenOptions::new().write(true).open(write).map(drop)));
        // Until the writer is in `open`, there would be nobody to disturb.
        for _ in 0..20 {
            assert_eq!(read(&path).unwrap_err().what, "not a regular file");
            assert!(writer.recv_timeout(Duration::from_millis(10)).is_err(), "it was opened");
        }
        let _reader = File::open(&path).unwrap();
        assert!(writer.recv().unwrap().is_ok());
    }

    #[test]
    fn an_oversized_file_is_an_error_and_is_not_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let line = "# padding, so that the file has lines wherever it would be cut off\n";
        let mut content = "a=127.0.0.1:1\n".to_owned();
        content += &line.repeat(LARGEST as usize / line.len());
        content.truncate(LARGEST as usize);
        fs::write(&path, &content).unwrap();
        assert_eq!(read(&path).unwrap().len() as u64, LARGEST);
        content.push('\n');
        fs::write(&path, &content).unwrap();
        assert_eq!(read(&path).unwrap_err().what, format!("larger than {LARGEST} bytes"));
    }

    #[test]
    fn a_directory_or_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap_err().what, "not a regular file");
        assert!(read(&dir.path().join("nothing")).unwrap_err().what.contains("No such file"));
    }
}
