//! The same entries by the convention of TVM-FFI: `int __tvm_ffi_NAME(self, args, count, result)`.
//!
//! Nothing of libtvm_ffi is linked. Who calls these symbols has loaded it; its functions are found then.

mod entries;
mod runtime;
mod value;
