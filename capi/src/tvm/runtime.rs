//! The functions of libtvm_ffi, found at the first use in the process that loaded it.
#![allow(unsafe_code)]

use super::value::{Any, ByteArray};
use crate::status::{Result, unsupported};
use crate::tensor::DLDevice;
use std::ffi::{CString, c_char, c_void};
use std::sync::OnceLock;

type SetRaised = unsafe extern "C" fn(*const c_char, *const c_char);
type GetStream = unsafe extern "C" fn(i32, i32) -> *mut c_void;
type NewString = unsafe extern "C" fn(*const ByteArray, *mut Any) -> i32;

struct Runtime {
    set_raised: Option<SetRaised>,
    get_stream: Option<GetStream>,
    new_string: Option<NewString>,
}

fn runtime() -> &'static Runtime {
    static FOUND: OnceLock<Runtime> = OnceLock::new();
    // Found with a library or not at all: a caller without libtvm_ffi has no use for an answer that changes.
    FOUND.get_or_init(find)
}

#[cfg(unix)]
fn find() -> Runtime {
    use libloading::os::unix::{Library, RTLD_LAZY};
    /// An open library is returned, and none is loaded (Linux and macOS).
    const RTLD_NOLOAD: i32 = if cfg!(target_os = "macos") { 0x10 } else { 4 };
    // SAFETY: no library is loaded, so no code runs. The types are those of tvm/ffi/c_api.h and
    // tvm/ffi/extra/c_env_api.h (0.1.11 to 0.1.15).
    unsafe {
        let name = if cfg!(target_os = "macos") { "libtvm_ffi.dylib" } else { "libtvm_ffi.so" };
        let places = [Some(Library::this()), Library::open(Some(name), RTLD_LAZY | RTLD_NOLOAD).ok()];
        let places: Vec<Library> = places.into_iter().flatten().collect();
        fn symbol<T: Copy>(places: &[Library], name: &[u8]) -> Option<T> {
            // SAFETY: as above.
            places.iter().find_map(|place| unsafe { place.get::<T>(name) }.ok().map(|found| *found))
        }
        let found = Runtime {
            set_raised: symbol(&places, b"TVMFFIErrorSetRaisedFromCStr\0"),
            get_stream: symbol(&places, b"TVMFFIEnvGetStream\0"),
            new_string: symbol(&places, b"TVMFFIStringFromByteArray\0"),
        };
        // The functions stay in use for ever.
        places.into_iter().for_each(std::mem::forget);
        found
    }
}

#[cfg(not(unix))]
fn find() -> Runtime {
    Runtime { set_raised: None, get_stream: None, new_string: None }
}

fn absent<T>(name: &str) -> Result<T> {
    unsupported(format!("{name} is not in this process: libtvm_ffi is not loaded"))
}

/// Raises an error of this Python name in the caller. Without libtvm_ffi, critbeta_last_error has it alone.
pub fn raise(kind: &str, text: &str) {
    let Some(set_raised) = runtime().set_raised else { return };
    let c = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
    // SAFETY: both are texts that end in a zero byte.
    unsafe { set_raised(c(kind).as_ptr(), c(text).as_ptr()) };
}

/// The stream that the caller's framework has set for a device.
pub fn stream(device: DLDevice) -> Result<*mut c_void> {
    match runtime().get_stream {
        // SAFETY: it takes two numbers.
        Some(get_stream) => Ok(unsafe { get_stream(device.device_type, device.device_id) }),
        None => absent("TVMFFIEnvGetStream"),
    }
}

/// A string that the caller owns.
pub fn string(text: &str) -> Result<Any> {
    let Some(new_string) = runtime().new_string else { return absent("TVMFFIStringFromByteArray") };
    let (bytes, mut made) = (ByteArray { data: text.as_ptr().cast(), size: text.len() }, Any::NONE);
    // SAFETY: `bytes` is alive, and `made` holds nothing that is owned.
    match unsafe { new_string(&bytes, &mut made) } {
        0 => Ok(made),
        code => unsupported(format!("TVMFFIStringFromByteArray returned {code}")),
    }
}
