//! What an error must say.

/// Panics unless `result` is an error whose text has all `parts`.
pub fn refused<T>(result: candle_core::Result<T>, parts: &[&str]) {
    let Err(error) = result else { panic!("not refused: {parts:?}") };
    let text = error.to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}\nlacks one of {parts:?}");
}
