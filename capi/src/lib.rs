//! The C interface of critbeta, and the same entries by the convention of TVM-FFI, in one shared library.
//!
//! `critbeta.h` is its manual: cbindgen makes it from the comments here, and `tests/header.rs` compares them.
//! `docs/adr/0014-c-abi.md` has the decisions.
//!
//! | file | holds |
//! | --- | --- |
//! | `entries` | what C calls: every function of the header |
//! | `status`, `args` | how a call ends, and how structs of several versions are read |
//! | `tensor` | DLPack tensors, checked |
//! | `engine`, `rules`, `rows`, `attention`, `reports` | what the entries do, in safe Rust |
//! | `tvm` | what TVM-FFI calls, and its types by hand |

mod args;
mod attention;
mod engine;
mod entries;
mod reports;
mod rows;
mod rules;
mod status;
mod tensor;
mod tvm;
