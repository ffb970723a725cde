//! How a call ends, in the file of the library itself: a shared library has no door for Rust.
#![allow(unsafe_code, dead_code, missing_docs)]

#[path = "../src/status.rs"]
mod status;

use status::{CRITBETA_INTERNAL, CRITBETA_INVALID, CRITBETA_OK, Failure};
use std::ffi::CStr;

fn last() -> String {
    // SAFETY: a text that ends in a zero byte, of this thread.
    unsafe { CStr::from_ptr(status::last()) }.to_str().unwrap().to_owned()
}

#[test]
fn a_panic_ends_in_a_status_with_its_text() {
    assert_eq!(last(), "");
    assert_eq!(status::status(|| panic!("seven {}", 7)), CRITBETA_INTERNAL);
    assert!(last().contains("seven 7"), "{}", last());
    assert_eq!(status::status(|| status::invalid("a\0b")), CRITBETA_INVALID);
    assert_eq!(last(), "a b");
    // A success leaves the text as it was.
    assert_eq!(status::status(|| Ok(())), CRITBETA_OK);
    assert_eq!(last(), "a b");
    // The text is that of its thread.
    std::thread::spawn(|| assert_eq!(last(), "")).join().unwrap();
}

#[test]
fn errors_of_the_library_have_their_status() {
    let status = |error: critbeta::Error| Failure::from(error).status;
    assert_eq!(status("criticl".parse::<critbeta::Rescaling>().unwrap_err()), CRITBETA_INVALID);
    let missing = critbeta::Error::io("no".as_ref(), std::io::ErrorKind::NotFound.into());
    assert_eq!(status(missing), status::CRITBETA_FILE);
    assert_eq!(status(critbeta::Error::NotBuilt { what: "a", remedy: "b" }), status::CRITBETA_UNSUPPORTED);
    let refused = critbeta::Error::Cuda { call: "a".into(), code: 1, name: "b".into() };
    assert_eq!(status(refused), status::CRITBETA_DEVICE);
}
