//! Device memory that a launch touches, and what must hold of it.

use crate::{Error, Result};

/// Device memory that a launch touches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub name: &'static str,
    pub address: u64,
    pub bytes: u64,
    pub writable: bool,
}

/// The spans of one launch. `fail` makes an error of what is wrong.
pub(super) struct Spans<F> {
    fail: F,
    spans: Vec<Span>,
}

impl<F: Fn(String) -> Error> Spans<F> {
    pub fn new(fail: F) -> Self {
        Spans { fail, spans: Vec::new() }
    }

    /// Records memory. `bytes` is `None` after an overflow.
    pub fn add(
        &mut self,
        name: &'static str,
        address: u64,
        align: u64,
        bytes: Option<u64>,
        writable: bool,
    ) -> Result<()> {
        let Some(bytes) = bytes.filter(|&bytes| address.checked_add(bytes).is_some()) else {
            return Err((self.fail)(format!("{name} at {address:#x} reach beyond the address space")));
        };
        if address == 0 {
            return Err((self.fail)(format!("{name} are at address 0")));
        }
        if !address.is_multiple_of(align) {
            return Err((self.fail)(format!("{name} at {address:#x} are not aligned to {align} bytes")));
        }
        self.spans.push(Span { name, address, bytes, writable });
        Ok(())
    }

    /// The spans, if none that is written overlaps another, but those that `may`. `hint` ends the message.
    pub fn apart(self, may: impl Fn(&Span, &Span) -> bool, hint: &str) -> Result<Vec<Span>> {
        for (i, a) in self.spans.iter().enumerate() {
            for b in &self.spans[i + 1..] {
                let apart = a.address + a.bytes <= b.address || b.address + b.bytes <= a.address;
                if !apart && (a.writable || b.writable) && !may(a, b) {
                    return Err((self.fail)(format!(
                        "{} at {:#x} + {} bytes and {} at {:#x} + {} bytes overlap{hint}",
                        a.name, a.address, a.bytes, b.name, b.address, b.bytes
                    )));
                }
            }
        }
        Ok(self.spans)
    }
}
