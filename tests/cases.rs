//! `benches/cases.toml` in step with the rows that are drawn and with the definition; `benches/rows.rs` times no other.

#[path = "common/cases.rs"]
mod cases;

/// Scores of the longest rows that are drawn here; the bench itself checks all.
const LONGEST: u64 = 1 << 16;

#[test]
fn every_checksum_is_that_of_the_definition_and_of_the_working_path() {
    let mut wrong = String::new();
    for cases::Expected { case, checksum } in cases::read().iter().filter(|of| of.case.n < LONGEST) {
        let rows = case.draw(cases::SEED);
        let (defined, counted) = (cases::defined(&rows), cases::counted(&rows));
        if &defined != checksum || counted != defined {
            wrong += &format!(
                "{} {}: {checksum}, defined {defined}, counted {counted}\n",
                case.law_name(),
                case.n
            );
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn a_checksum_tells_one_gap_or_rank_from_another() {
    let row = vec![0.0f32, -0.5, -1.0, -3.0];
    let near = vec![0.0f32, -0.5f32.next_up(), -1.0, -3.0];
    let more = vec![0.0f32, -0.5, -0.5, -1.0, -3.0];
    let sums = [&row, &near, &more].map(|row| cases::defined(std::slice::from_ref(row)));
    assert!(sums[0] != sums[1] && sums[1] != sums[2] && sums[0] != sums[2], "{sums:?}");
    assert_ne!(cases::defined(&[row.clone(), more.clone()]), cases::defined(&[more, row]));
}
