//! Output files that appear whole or not at all.

use critbeta::{Error, Result};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempPath;

/// A file that is being written beside its target. A commit replaces the target by it.
///
/// A drop without a commit leaves the target unchanged and nothing beside it. The same holds for a process
/// that calls [`remove_unfinished`] before a signal ends it. A process that is killed outright leaves
/// `.critbeta.xxxxxx.tmp`. A target that is not a regular file (a pipe, a device, /dev/stdout) is written
/// directly.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    file: BufWriter<File>,
    /// `None` for a target that is written directly.
    replaces: Option<(Beside, PathBuf)>,
}

/// A temporary file. [`remove_unfinished`] knows it for as long as it exists.
#[derive(Debug)]
struct Beside(TempPath);

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of all outputs of this process. A signal handler calls it.
pub fn remove_unfinished() {
    for path in unfinished().drain(..) {
        // A file that is gone was committed or dropped just now.
        let _gone = fs::remove_file(path);
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        unfinished().retain(|path| path != &*self.0);
    }
}

/// Rows are written in small pieces. At 64 KiB the write calls no longer cost time.
const BUFFER: usize = 64 << 10;

impl Output {
    /// Begins to write the file that will be `path`. A symbolic link stays one: the file that it leads to is
    /// replaced by one with the same permissions.
    ///
    /// Errors: [`Error::Io`] for a directory, a read-only target, a missing or read-only parent, looped
    /// links.
    pub fn create(path: &Path) -> Result<Output> {
        let fail = |e| Error::io(path, e);
        let found = fs::metadata(path).ok();
        if found.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(fail(io::ErrorKind::IsADirectory.into()));
        }
        if found.as_ref().is_some_and(|found| found.permissions().readonly()) {
            return Err(fail(io::ErrorKind::PermissionDenied.into()));
        }
        let (file, replaces) = if is_stream(path) || found.as_ref().is_some_and(|found| !found.is_file()) {
            // This appends, because /dev/stdout may be a file that the shell has opened with >>.
            (OpenOptions::new().append(true).open(path).map_err(fail)?, None)
        } else {
            let target = resolve(path).map_err(fail)?;
            let (directory, _) = split(&target).map_err(fail)?;
            fs::metadata(directory).map_err(fail)?;
            let (file, beside) = beside(directory).map_err(fail)?;
            if let Some(found) = found {
                file.set_permissions(found.permissions()).map_err(fail)?;
            }
            (file, Some((beside, target)))
        };
        Ok(Output { path: path.to_owned(), file: BufWriter::with_capacity(BUFFER, file), replaces })
    }

    /// The path as it was given. Errors of writing name it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file at [`Output::path`] by what was written.
    ///
    /// Errors: [`Error::Io`] if the disk is full or the target cannot be replaced. The target stays as it
    /// was.
    pub fn commit(mut self) -> Result<()> {
        self.settle()?;
        self.publish()
    }

    /// Writes all bytes to the disk.
    fn settle(&mut self) -> Result<()> {
        let flushed = self.file.flush();
        let settled = match self.replaces {
            // Some file systems report a full disk or quota only here.
            Some(_) => flushed.and_then(|()| self.file.get_ref().sync_all()),
            None => flushed,
        };
        settled.map_err(|e| Error::io(&self.path, e))
    }

    fn publish(self) -> Result<()> {
        let Some((beside, target)) = self.replaces else { return Ok(()) };
        fs::rename(&beside.0, target).map_err(|e| Error::io(&self.path, e))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Commits all of them, or none if the bytes of any cannot be written.
///
/// Errors: those of [`Output::commit`]. If a rename fails, the renames before it stay.
pub fn commit_all(mut outputs: Vec<Output>) -> Result<()> {
    outputs.iter_mut().try_for_each(Output::settle)?;
    outputs.into_iter().try_for_each(Output::publish)
}

/// Checks that no two paths lead to the same file, be they outputs or inputs.
///
/// Errors: [`Error::File`] names a path that leads to the same file as an earlier one. [`Error::Io`] says
/// that a parent directory cannot be resolved.
pub fn distinct(paths: &[&Path]) -> Result<()> {
    let mut seen = HashSet::new();
    for &path in paths {
        let target = if is_stream(path) { path.to_owned() } else { place(path)? };
        if !seen.insert(target) {
            return Err(Error::file(path, "is named twice: every input and output needs a file of its own"));
        }
    }
    Ok(())
}

/// One name for all paths that lead to the same file. The file need not exist.
fn place(path: &Path) -> Result<PathBuf> {
    let target = resolve(path).map_err(|e| Error::io(path, e))?;
    let (directory, name) = split(&target).map_err(|e| Error::io(path, e))?;
    let directory = fs::canonicalize(directory).map_err(|e| Error::io(directory, e))?;
    Ok(directory.join(name))
}

/// Whether a path names an open file of this process. A rename over it would not reach its reader.
fn is_stream(path: &Path) -> bool {
    ["/dev/stdout", "/dev/stderr"].iter().any(|stream| path == Path::new(stream))
        || path.starts_with("/dev/fd")
        || path.starts_with("/proc/self/fd")
}

/// Follows symbolic links to a file that need not exist.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other(format!("more than {LINKS} symbolic links")))
}

fn split(target: &Path) -> io::Result<(&Path, &OsStr)> {
    let name = target.file_name().ok_or_else(|| io::Error::other("is no name of a file"))?;
    let parent = target.parent().unwrap_or(Path::new(""));
    Ok((if parent == Path::new("") { Path::new(".") } else { parent }, name))
}

fn beside(directory: &Path) -> io::Result<(File, Beside)> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".critbeta.").suffix(".tmp");
    #[cfg(unix)]
    {
        // A temporary file is private by default. An output is as open as the umask allows.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let (file, path) = builder.tempfile_in(directory)?.into_parts();
    unfinished().push(path.to_path_buf());
    Ok((file, Beside(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.csv");
        fs::write(&path, "old").unwrap();
        let mut output = Output::create(&path).unwrap();
        output.write_all(&vec![b'x'; 3 * BUFFER]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(output);
        assert_eq!(names(directory.path()), ["rows.csv"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let mut output = Output::create(&path).unwrap();
        output.write_all(b"new").unwrap();
        output.commit().unwrap();
        assert_eq!(names(directory.path()), ["rows.csv"]);
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn all_are_committed_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.csv");
        let both = |other: &str| {
            let mut outputs = vec![Output::create(&path).unwrap(), Output::create(Path::new(other)).unwrap()];
            outputs.iter_mut().for_each(|output| output.write_all(b"row").unwrap());
            commit_all(outputs)
        };
        if cfg!(target_os = "linux") {
            let error = both("/dev/full").unwrap_err().to_string();
            assert!(error.starts_with("/dev/full: "), "{error}");
            assert!(names(directory.path()).is_empty());
        }
        both("/dev/null").unwrap();
        assert_eq!(names(directory.path()), ["rows.csv"]);
    }

    #[test]
    fn a_full_disk_is_an_error_of_write_or_of_commit() {
        if cfg!(target_os = "linux") {
            let mut output = Output::create(Path::new("/dev/full")).unwrap();
            let error = output.write_all(&vec![0; 2 * BUFFER]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(output.path(), Path::new("/dev/full"));
        }
    }

    #[test]
    fn what_cannot_be_a_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let refuse = |path: &Path| Output::create(path).unwrap_err().to_string();
        assert!(refuse(directory.path()).contains("directory"));
        let missing = directory.path().join("absent");
        assert!(refuse(&missing.join("rows.csv")).starts_with(&*missing.to_string_lossy()));
        assert!(refuse(Path::new("/")).starts_with("/: "));
        assert!(refuse(Path::new("")).contains("name of a file"));
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_and_permissions_are_those_of_any_new_file() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let directory = tempfile::tempdir().unwrap();
        let [plain, link, far] = ["plain", "link", "far"].map(|name| directory.path().join(name));
        fs::write(&plain, "").unwrap();
        symlink("far", &link).unwrap();
        for text in ["through a dangling link", "through a link"] {
            let mut output = Output::create(&link).unwrap();
            output.write_all(text.as_bytes()).unwrap();
            output.commit().unwrap();
            assert_eq!(fs::read_to_string(&far).unwrap(), text);
            assert_eq!(fs::read_link(&link).unwrap(), Path::new("far"));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&far), mode(&plain));
        fs::set_permissions(&far, fs::Permissions::from_mode(0o600)).unwrap();
        Output::create(&far).unwrap().commit().unwrap();
        assert_eq!(mode(&far) & 0o777, 0o600);
        fs::set_permissions(&far, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(Output::create(&far).unwrap_err().to_string().contains("denied"));
        let turning = directory.path().join("turning");
        symlink("turning", &turning).unwrap();
        assert!(Output::create(&turning).unwrap_err().to_string().contains("symbolic links"));
    }

    #[cfg(unix)]
    #[test]
    fn two_outputs_to_one_file_are_refused_however_it_is_spelled() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| directory.path().join(name));
        let a_again = directory.path().join(".").join("a");
        std::os::unix::fs::symlink("a", &link).unwrap();
        distinct(&[&a, &b]).unwrap();
        for path in [&a, &a_again, &link] {
            let error = distinct(&[&b, &a, path]).unwrap_err().to_string();
            assert!(error.starts_with(&*path.to_string_lossy()), "{error}");
        }
        assert!(distinct(&[Path::new("/dev/stdout"); 2]).is_err());
        assert!(distinct(&[&directory.path().join("absent/a")]).is_err());
    }
}
