//! The cases that a bench measures: shapes, dtypes and families.

use crate::Device;
use crate::input::elements;
use critbeta::families::Family;
use critbeta::{DType, Error, Result};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

/// Rows of one shape, dtype and family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub n: u64,
    /// f32, f16 or bf16.
    pub dtype: DType,
    /// The family that the scores are drawn from.
    pub family: Family,
    /// Whether each row has its scores in a random order instead of the family's own.
    pub is_shuffled: bool,
}

/// The test families, in the order and under the names that every script uses.
pub const FAMILIES: [&str; 9] =
    ["gaussian", "sink", "needles", "student-t", "log-grid", "equal", "masked", "bf16", "ascending"];

/// A GPU's cases with many rows have this many bytes of scores: several times any L2 cache.
const MANY_BYTES: u64 = 256 << 20;
/// A CPU's have this many, and as many of probabilities: several times most L3 caches. A sort takes 0.5 s.
const MANY_BYTES_CPU: u64 = 64 << 20;
/// This many scores are drawn at most. Further rows repeat them.
const DRAWN_SCORES: u64 = 1 << 22;

impl Case {
    /// A case of `family`, which is a name in [`FAMILIES`], with or without a parameter.
    ///
    /// Errors: [`Error::Settings`] for an unknown family, zero rows or columns, f64, or too many bytes.
    pub fn new(rows: u64, n: u64, dtype: DType, family: &str) -> Result<Case> {
        let family = family.parse().map_err(|detail| Error::Settings { detail })?;
        let fail = |expected| {
            let detail = format!("a bench of {rows} rows x {n} {dtype}: expected {expected}");
            Err(Error::Settings { detail })
        };
        if rows == 0 || n == 0 || dtype == DType::F64 {
            return fail("rows, columns and f32, f16 or bf16");
        }
        // The scores, the probabilities, and the counts need room.
        let bytes = rows.checked_mul(n).and_then(|scores| scores.checked_mul(8 * dtype.size_bytes() as u64));
        match bytes.map(usize::try_from) {
            Some(Ok(_)) => Ok(Case { rows, n, dtype, family, is_shuffled: false }),
            _ => fail("scores that fit in memory"),
        }
    }

    /// The same case with the scores of every row in a random order.
    pub fn shuffled(self) -> Case {
        Case { is_shuffled: true, ..self }
    }

    /// A case with as many rows of `n` scores as make 256 MiB.
    ///
    /// Errors: as [`Case::new`].
    pub fn many(n: u64, dtype: DType, family: &str) -> Result<Case> {
        Case::filling(MANY_BYTES, n, dtype, family)
    }

    /// A case that is larger than the caches of `device`: 64 MiB of scores on a CPU, else [`Case::many`].
    ///
    /// Errors: as [`Case::new`].
    pub fn many_on(device: &Device, n: u64, dtype: DType, family: &str) -> Result<Case> {
        match device {
            Device::Cpu => Case::filling(MANY_BYTES_CPU, n, dtype, family),
            Device::Cuda(_) => Case::many(n, dtype, family),
        }
    }

    fn filling(bytes: u64, n: u64, dtype: DType, family: &str) -> Result<Case> {
        let row_bytes = n.saturating_mul(dtype.size_bytes() as u64);
        Case::new((bytes / row_bytes.max(1)).max(1), n, dtype, family)
    }

    /// The family's name, and its parameter where that is not the default.
    pub fn family_name(&self) -> String {
        let is_default = Family::ALL.contains(&self.family);
        if is_default { self.family.name().into() } else { self.family.to_string() }
    }

    /// The family's name, and `shuffled` if the scores are.
    pub fn family_label(&self) -> String {
        let order = if self.is_shuffled { ", shuffled" } else { "" };
        self.family_name() + order
    }

    /// Draws rows from `seed` in the case's dtype. Beyond 4 Mi scores it draws only those that the others
    /// repeat.
    pub fn draw(&self, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let one = |_| {
            let (mut row, mut bytes) = (Vec::new(), Vec::new());
            self.family.draw(self.n as usize, &mut rng, &mut row);
            if self.is_shuffled {
                row.shuffle(&mut rng);
            }
            elements::write(self.dtype, &row, &mut bytes);
            elements::decode_row(self.dtype, &bytes, 0, &mut row);
            row
        };
        (0..(DRAWN_SCORES / self.n).clamp(1, self.rows)).map(one).collect()
    }

    /// Bytes that a softmax must move: it reads each score once and writes one probability of the same dtype.
    pub fn moved_bytes(&self) -> u64 {
        2 * self.rows * self.n * self.dtype.size_bytes() as u64
    }
}

/// The default cases of `critbeta bench`. The simulator gets [`small`], because it would take days for more.
///
/// Errors: only those of [`Case::new`], which would be a defect of the table.
pub fn of(device: &Device) -> Result<Vec<Case>> {
    match device {
        Device::Cpu => cpu_ladder(),
        Device::Cuda(engine) if engine.is_simulated() => small(),
        Device::Cuda(_) => ladder(),
    }
}

/// A CPU measures 64 MiB in many, some and few rows, one long row, 16-bit rows, every family at 256 x 65,536,
/// and a shuffled log grid. This takes about a minute on two cores, and the sorts take most of it.
fn cpu_ladder() -> Result<Vec<Case>> {
    let shapes = [(4096, 1 << 12), (256, 1 << 16), (16, 1 << 20), (1, 1 << 20)];
    let plain = shapes.map(|(rows, n)| Case::new(rows, n, DType::F32, "gaussian"));
    let narrow = [DType::F16, DType::Bf16].map(|dtype| Case::new(256, 1 << 16, dtype, "gaussian"));
    let families = FAMILIES.into_iter().filter(|&family| family != "gaussian");
    let families = families.map(|family| Case::new(256, 1 << 16, DType::F32, family));
    let shuffled = Case::new(256, 1 << 16, DType::F32, "log-grid").map(Case::shuffled);
    plain.into_iter().chain(narrow).chain(families).chain([shuffled]).collect()
}

/// A GPU measures many rows of 4K to 1M in f32 and bf16, every family at two lengths, and 1 to 8 long rows.
fn ladder() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::Bf16] {
        for log_n in 12..=20 {
            cases.push(Case::many(1 << log_n, dtype, "gaussian")?);
        }
    }
    for family in FAMILIES.into_iter().filter(|&family| family != "gaussian") {
        for n in [1 << 15, 1 << 18] {
            cases.push(Case::many(n, DType::F32, family)?);
        }
    }
    for rows in [1, 2, 4, 8] {
        for log_n in 17..=20 {
            cases.push(Case::new(rows, 1 << log_n, DType::F32, "gaussian")?);
        }
    }
    for rows in [1, 8] {
        for n in [1 << 17, 1 << 20] {
            cases.push(Case::new(rows, n, DType::Bf16, "gaussian")?);
        }
    }
    Ok(cases)
}

/// A case for each scope and family, small enough for the simulator and a memory checker. Times mean nothing.
///
/// Errors: as [`of`].
pub fn small() -> Result<Vec<Case>> {
    let shapes =
        [(5, 300, DType::F32), (3, 5000, DType::Bf16), (2, 40_000, DType::F32), (1, 220_000, DType::F16)];
    let case = |((rows, n, dtype), family)| Case::new(rows, n, dtype, family);
    shapes.into_iter().cycle().zip(FAMILIES).map(case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_of_a_cpu_has_every_family_shape_and_dtype() {
        let cases = of(&Device::Cpu).unwrap();
        for family in FAMILIES {
            assert!(cases.iter().any(|of| of.n == 1 << 16 && of.family_name() == family), "{family}");
        }
        for (rows, n) in [(4096, 1 << 12), (256, 1 << 16), (16, 1 << 20), (1, 1 << 20)] {
            assert!(
                cases.iter().any(|of| (of.rows, of.n, of.dtype) == (rows, n, DType::F32)),
                "{rows} x {n}"
            );
        }
        assert!([DType::F16, DType::Bf16].iter().all(|&dtype| cases.iter().any(|of| of.dtype == dtype)));
        let unique = |of: &Case| cases.iter().filter(|other| *other == of).count() == 1;
        assert!(cases.iter().all(unique));
    }

    #[test]
    fn rows_are_drawn_as_their_dtype_holds_them_and_no_more_than_are_needed() {
        let case = Case::new(3, 1000, DType::Bf16, "student-t").unwrap();
        let rows = case.draw(7);
        assert_eq!((rows.len(), case.moved_bytes()), (3, 12_000));
        assert!(rows.iter().flatten().all(|&score| half::bf16::from_f32(score).to_f32() == score));
        assert_eq!(rows, case.draw(7));
        assert_ne!(rows, case.draw(8));
        assert_eq!(Case::new(1000, 1 << 20, DType::F32, "equal").unwrap().draw(1).len(), 4);
        assert_eq!(Case::new(9, 1 << 23, DType::F32, "equal").unwrap().draw(1).len(), 1);
    }

    #[test]
    fn many_rows_are_64_mib_on_a_cpu_and_one_where_that_is_longer() {
        let rows = |n, dtype| Case::many_on(&Device::Cpu, n, dtype, "gaussian").unwrap().rows;
        assert_eq!(rows(1 << 12, DType::F32), 4096);
        assert_eq!(rows(1 << 12, DType::Bf16), 8192);
        assert_eq!(rows(1 << 25, DType::F32), 1);
        assert!(Case::many_on(&Device::Cpu, 0, DType::F32, "gaussian").is_err());
    }
}
