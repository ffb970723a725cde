//! Compiled kernels on disk, for all processes of a user. It knows nothing of CUDA.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How often a compilation says that it goes on.
const TICK: Duration = Duration::from_secs(10);

/// A folder of images. Without a folder that can be written, every process compiles for itself.
pub(super) struct Cache {
    folder: Option<PathBuf>,
    /// Whether it was said that images are not kept.
    said: AtomicBool,
}

impl Cache {
    pub fn in_folder(folder: Option<PathBuf>) -> Cache {
        Cache { folder, said: AtomicBool::new(false) }
    }

    /// The cache of the user: `critbeta` in XDG_CACHE_HOME, LOCALAPPDATA or HOME/.cache.
    pub fn of_user() -> Cache {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || Some(variable("HOME")?.join(".cache"));
        let base = variable("XDG_CACHE_HOME").or_else(|| variable("LOCALAPPDATA")).or_else(home);
        Cache::in_folder(base.map(|base| base.join("critbeta")))
    }

    /// The image of this name, or what `make` makes, which is then put there. `what` says what `make` does.
    ///
    /// Processes that need the same image wait for the first. Where the folder takes no lock, as a read-only
    /// home does not, each makes its own. Errors: those of `make`.
    pub fn image(
        &self,
        name: &str,
        what: &str,
        notice: &(dyn Fn(&str) + Sync),
        make: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<Vec<u8>, String> {
        let path = self.folder.as_ref().map(|folder| folder.join(name));
        let cached = || path.as_deref().and_then(read_cached);
        if let Some(image) = cached() {
            return Ok(image);
        }
        let _alone = self.folder.as_deref().and_then(|folder| locked(folder, notice));
        if let Some(image) = cached() {
            return Ok(image);
        }
        notice(&format!("{what}; this takes seconds"));
        let image = ticking(TICK, what, notice, make)?;
        let failed = match &path {
            None => Some("no HOME".to_owned()),
            Some(path) => write_cached(path, &image).err().map(|e| format!("{}: {e}", path.display())),
        };
        if let Some(failed) = failed.filter(|_| !self.said.swap(true, Ordering::Relaxed)) {
            notice(&format!(
                "the kernels are not cached, so the next process compiles them again ({failed}); \
                 set XDG_CACHE_HOME to a folder that can be written"
            ));
        }
        Ok(image)
    }
}

/// The lock of the folder, held until the file is dropped. `None` where there can be none.
fn locked(folder: &Path, notice: &(dyn Fn(&str) + Sync)) -> Option<fs::File> {
    fs::create_dir_all(folder).ok()?;
    let file = fs::File::options().create(true).append(true).open(folder.join("kernels.lock")).ok()?;
    if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
        notice("another process compiles the CUDA kernels; waiting for it");
        file.lock().ok()?;
    }
    Some(file)
}

/// Does `work`, and gives `notice` a line at every `tick` until it ends.
fn ticking<R>(tick: Duration, what: &str, notice: &(dyn Fn(&str) + Sync), work: impl FnOnce() -> R) -> R {
    let started = Instant::now();
    let (ends, end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while end.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {
                notice(&format!("{what}: {:.0} s so far", started.elapsed().as_secs_f64()));
            }
        });
        let _ends = ends;
        work()
    })
}

/// FNV-1a. It is the same in every build, and enough to distinguish sources and damaged files.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Reads a cached image, which lies behind its hash. `None` for a missing or damaged file, which is then made
/// again.
fn read_cached(path: &Path) -> Option<Vec<u8>> {
    let mut file = fs::read(path).ok()?;
    let cubin = file.split_off(file.len().min(8));
    (file == hash(&cubin).to_le_bytes()).then_some(cubin)
}

/// Writes the file beside its place and renames it, so that no other process ever reads half of it.
fn write_cached(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Each writer has its own number, because threads of one process may compile at the same time.
    static WRITERS: AtomicU32 = AtomicU32::new(0);
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let beside = folder.join(format!(".kernels.{}.{writer}.tmp", std::process::id()));
    let whole = [&hash(cubin).to_le_bytes()[..], cubin].concat();
    let written = fs::write(&beside, whole).and_then(|()| fs::rename(&beside, path));
    written.inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_damaged_cache_file_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/kernels.cubin");
        assert_eq!(read_cached(&path), None);
        write_cached(&path, b"an image").unwrap();
        assert_eq!(read_cached(&path).as_deref(), Some(&b"an image"[..]));
        let whole = fs::read(&path).unwrap();
        for broken in [&whole[..0], &whole[..5], &whole[..whole.len() - 1]] {
            fs::write(&path, broken).unwrap();
            assert_eq!(read_cached(&path), None, "{} bytes", broken.len());
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(read_cached(&path), None);
        write_cached(&path, b"an image").unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn one_compiles_and_the_others_wait_and_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let said = Mutex::new(Vec::new());
        let notice = |text: &str| said.lock().unwrap().push(text.to_owned());
        let first = locked(folder.path(), &notice).unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| locked(folder.path(), &notice).is_some());
            while said.lock().unwrap().is_empty() {
                thread::yield_now();
            }
            assert!(!second.is_finished(), "two at once");
            drop(first);
            assert!(second.join().unwrap());
        });
        assert_eq!(said.lock().unwrap().len(), 1);
        // A file where the folder should be is like a home that cannot be written.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(locked(&file, &notice).is_none());
    }

    #[test]
    fn a_long_compilation_says_that_it_goes_on() {
        let lines = AtomicU32::new(0);
        let notice = |text: &str| {
            assert!(text.starts_with("compiling: ") && text.ends_with(" s so far"), "{text}");
            lines.fetch_add(1, Ordering::Relaxed);
        };
        let wait = || {
            while lines.load(Ordering::Relaxed) < 3 {
                thread::yield_now();
            }
            7
        };
        assert_eq!(ticking(Duration::from_millis(1), "compiling", &notice, wait), 7);
    }

    #[test]
    fn without_a_folder_that_can_be_written_it_makes_and_says_so_once() {
        let folder = tempfile::tempdir().unwrap();
        // A file in the place of the folder is like a home that cannot be written, also for root.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for place in [None, Some(file.join("critbeta"))] {
            let cache = Cache::in_folder(place);
            let said = Mutex::new(Vec::new());
            let notice = |text: &str| said.lock().unwrap().push(text.to_owned());
            for name in ["a", "a", "b"] {
                let made = cache.image(name, "compiling", &notice, || Ok(name.as_bytes().to_vec()));
                assert_eq!(made.as_deref(), Ok(name.as_bytes()));
            }
            assert_eq!(cache.image("c", "compiling", &notice, || Err("a log".into())), Err("a log".into()));
            let said = said.into_inner().unwrap();
            let count = |what| said.iter().filter(|text| text.contains(what)).count();
            assert_eq!((count("compiling;"), count("not cached")), (4, 1), "{said:?}");
        }
    }

    #[test]
    fn a_folder_keeps_each_image_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let cache = || Cache::in_folder(Some(folder.path().join("critbeta")));
        let made = AtomicU32::new(0);
        let make = || {
            made.fetch_add(1, Ordering::Relaxed);
            Ok(b"an image".to_vec())
        };
        for name in ["a", "b", "a"] {
            assert_eq!(cache().image(name, "compiling", &|_| (), make).as_deref(), Ok(&b"an image"[..]));
        }
        assert_eq!(made.into_inner(), 2);
    }
}
