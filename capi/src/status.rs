//! How a call ends: a status, and the text of what went wrong.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The call did what it says.
pub const CRITBETA_OK: i32 = 0;
/// An argument is NULL, misaligned, or of another size, shape, dtype or device than expected, memory
/// overlaps, or a rule makes no sense.
pub const CRITBETA_INVALID: i32 = 1;
/// This device or this build does not do it.
pub const CRITBETA_UNSUPPORTED: i32 = 2;
/// A calibration file cannot be read, or does not cover a head.
pub const CRITBETA_FILE: i32 = 3;
/// There is no CUDA driver, no such GPU, or no kernels for it.
pub const CRITBETA_NO_DEVICE: i32 = 4;
/// The CUDA driver refused a call, or the simulator found a fault.
pub const CRITBETA_DEVICE: i32 = 5;
/// A defect of this library. The outputs of the call hold nothing of use.
pub const CRITBETA_INTERNAL: i32 = 6;

/// What a failed call says: its status and its text.
#[derive(Debug)]
pub struct Failure {
    pub status: i32,
    pub text: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

/// The failure of an argument: its name, and what was expected.
pub fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Failure { status: CRITBETA_INVALID, text: text.into() })
}

pub fn unsupported<T>(text: impl Into<String>) -> Result<T> {
    Err(Failure { status: CRITBETA_UNSUPPORTED, text: text.into() })
}

impl From<critbeta::Error> for Failure {
    fn from(error: critbeta::Error) -> Failure {
        use critbeta::Error::*;
        let status = match error {
            NotBuilt { .. } => CRITBETA_UNSUPPORTED,
            Io { .. } | File { .. } => CRITBETA_FILE,
            NoDriver { .. } | NoGpu { .. } | NoImage { .. } => CRITBETA_NO_DEVICE,
            Cuda { .. } | Simulated { .. } => CRITBETA_DEVICE,
            _ => CRITBETA_INVALID,
        };
        Failure { status, text: error.to_string() }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps the text of a failure for this thread.
fn keep(text: &str) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // At the end of a thread the place may be gone; then nobody asks for the text.
    let _ = LAST.try_with(|last| last.replace(text));
}

/// The text of the last failure on this thread.
pub fn last() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Runs the body of an entry. No panic leaves it.
pub fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = format!("defect of critbeta, please report it: {}", text_of(&*panic));
        // What the panic carries may panic again while it is dropped. A leak is the lesser evil.
        std::mem::forget(panic);
        Err(Failure { status: CRITBETA_INTERNAL, text })
    });
    if let Err(failure) = &done {
        keep(&failure.text);
    }
    done
}

/// The status of [`guarded`].
pub fn status(body: impl FnOnce() -> Result<()>) -> i32 {
    guarded(body).map_or_else(|failure| failure.status, |()| CRITBETA_OK)
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no text").to_owned()
}
