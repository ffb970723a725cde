//! A plan chooses the kernel, the number of CTAs and the shared memory. It is a pure function of the problem
//! and of the limits of the GPU.
//!
//! ```
//! use critbeta::DType;
//! use critbeta::cuda::{Arch, Plan, Problem};
//! let problem = Problem::softmax(4096, 32_768, DType::F32);
//! let plan = Plan::choose(&problem, &Arch::named("sm_90")?)?;
//! assert_eq!(plan.kernel(), "critical_softmax_f32_cluster256x1");
//! assert!(plan.fits_on_chip());
//! println!("{plan}");
//! # Ok::<(), critbeta::Error>(())
//! ```

use super::arch::Arch;
use super::choice::{Choice, control_bytes, shared_bytes};
use super::ladder::*;
use super::params::*;
use super::problem::Problem;
use super::variants::{Family, Scope, Variant};
use crate::{DType, Error, Result};
use std::fmt;

/// How a problem is launched. A plan prints itself with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(super) problem: Problem,
    pub(super) launch: Launch,
    /// Vectors that a row touches at the worst alignment.
    vectors: u64,
    why: &'static str,
    pub(super) arch: Arch,
}

/// The kernel of a plan and the size of its grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub variant: Variant,
    /// CTAs in the grid.
    pub grid: u32,
    /// Bytes of dynamic shared memory of each CTA.
    pub shared_bytes: u32,
    /// CTAs that work on one row.
    pub ctas: u32,
    /// 16-byte vectors of a row that each CTA (in the warp scope: each warp) keeps in shared memory.
    pub resident: u32,
    /// Every CTA, cluster or group takes each so many-th row: as many as run at once where they take rows in
    /// turn, else all rows.
    pub groups: u32,
    /// See [`Plan::workspace_bytes`].
    pub workspace_bytes: u64,
    /// CTAs that share an SM, as far as their shared memory, threads and registers decide it.
    pub ctas_per_sm: u32,
}

impl Launch {
    /// Whether a CTA or a cluster takes several of `rows`, and loads the next one while it works on this one.
    /// It has room for two.
    pub fn loads_ahead(&self, rows: u64) -> bool {
        self.variant.scope() != Scope::Split && u64::from(self.groups) < rows
    }

    /// CTAs of a cluster; 1 in the scopes without clusters.
    pub fn cluster_ctas(&self) -> u32 {
        if self.variant.scope() == Scope::Cluster { self.ctas } else { 1 }
    }
}

impl Plan {
    /// The plan of `problem` on `arch`.
    ///
    /// Errors: [`Error::Launch`] for zero or too many rows or columns, for f64, and for a GPU that is too
    /// small or too old.
    pub fn choose(problem: &Problem, arch: &Arch) -> Result<Plan> {
        Plan::by(Choice::of, problem, arch)
    }

    /// As [`Plan::choose`], for rows whose bits must not depend on their number, where a cluster holds a row.
    #[doc(hidden)]
    pub fn of_columns(problem: &Problem, arch: &Arch) -> Result<Plan> {
        Plan::by(Choice::of_columns, problem, arch)
    }

    fn by(choice: fn(&Problem, &Arch, u64) -> Choice, problem: &Problem, arch: &Arch) -> Result<Plan> {
        let Problem { rows, cols, dtype, family } = *problem;
        check(problem, arch)?;
        let per_vector = 16 / dtype.size_bytes() as u64;
        // The row may begin anywhere between two 16-byte boundaries.
        let vectors = (cols + per_vector - 1).div_ceil(per_vector);
        let Choice { scope, threads, ctas, per_cta, groups, why } = choice(problem, arch, vectors);
        let variant = Variant::of(family, dtype).find(|v| (v.scope(), v.threads()) == (scope, threads));
        let Some(variant) = variant else {
            return Err(refused(problem, format!("no kernel for {dtype} in {}", family.name())));
        };
        let resident = per_cta as u32;
        let tiles = if scope != Scope::Split && u64::from(groups) < rows { 2 } else { 1 };
        let part_bytes = control_bytes(scope, threads) + tiles * 16 * resident;
        let (shared_bytes, grid) = match variant.scope() {
            Scope::Warp => (WARPS * part_bytes, rows.div_ceil(WARPS.into())),
            _ => (part_bytes, u64::from(groups) * u64::from(ctas)),
        };
        let workspace_bytes = match variant.scope() {
            Scope::Split => u64::from(SPLIT_CTAS * SLOT_BYTES + groups * GROUP_BYTES),
            _ => 0,
        };
        let Some(grid) = u32::try_from(grid).ok().filter(|&grid| u64::from(grid) <= MAX_ROWS) else {
            let message =
                format!("{ctas} CTAs per row make a grid of {grid}, more than {MAX_ROWS}: launch fewer rows");
            return Err(refused(problem, message));
        };
        let by_shared = arch.shared_per_sm_bytes / (shared_bytes + RESERVED_PER_CTA);
        let by_registers = resident_ctas(family, scope, variant.threads(), arch.sm);
        let ctas_per_sm = by_shared.min(arch.threads_per_sm / variant.threads()).min(by_registers).max(1);
        let launch =
            Launch { variant, grid, shared_bytes, ctas, resident, groups, workspace_bytes, ctas_per_sm };
        Ok(Plan { problem: *problem, launch, vectors, why, arch: arch.clone() })
    }

    /// The plan of a kernel that works on no rows: the launch has the given numbers.
    pub(super) fn of_wrappers(
        variant: Variant,
        grid: u32,
        ctas: u32,
        shared_bytes: u32,
        workspace_bytes: u64,
        arch: &Arch,
    ) -> Plan {
        let (groups, resident, ctas_per_sm) = (grid / ctas.max(1), 0, 1);
        Plan {
            problem: Problem { rows: 1, cols: 1, dtype: variant.dtype(), family: variant.family() },
            launch: Launch {
                variant,
                grid,
                shared_bytes,
                ctas,
                resident,
                groups,
                workspace_bytes,
                ctas_per_sm,
            },
            vectors: 1,
            why: "each wrapper of the machine once",
            arch: arch.clone(),
        }
    }

    /// The symbol of the kernel.
    pub fn kernel(&self) -> &'static str {
        self.launch.variant.symbol()
    }

    /// Whether a whole row fits on chip, so that it is read from device memory once.
    pub fn fits_on_chip(&self) -> bool {
        self.on_chip() >= self.vectors
    }

    /// Bytes of device memory that the launch needs beside its operands. It is 0 unless the whole grid shares
    /// a row.
    pub fn workspace_bytes(&self) -> u64 {
        self.launch.workspace_bytes
    }

    /// The launch itself, for tests.
    #[doc(hidden)]
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    fn on_chip(&self) -> u64 {
        u64::from(self.launch.resident) * u64::from(self.launch.ctas)
    }
}

fn check(problem: &Problem, arch: &Arch) -> Result<()> {
    let Problem { rows, cols, dtype, .. } = *problem;
    let fail = |detail: String| Err(refused(problem, detail));
    if !(1..=MAX_ROWS).contains(&rows) {
        return fail(format!("expected 1 to {MAX_ROWS} rows"));
    }
    if !(1..=MAX_COLS).contains(&cols) {
        return fail(format!("expected 1 to {MAX_COLS} columns"));
    }
    if dtype == DType::F64 {
        return fail("no kernel reads f64: expected f32, f16 or bf16".into());
    }
    if arch.sm < Arch::MIN_SM {
        return fail(format!(
            "{} is sm_{}, the kernels need sm_{} or later",
            arch.name,
            arch.sm,
            Arch::MIN_SM
        ));
    }
    // The split scope takes every problem that no other scope holds.
    let needed = SPLIT_CONTROL_BYTES + 16;
    if arch.sm_count == 0 || shared_bytes(arch, 1) < needed {
        let (sms, shared) = (arch.sm_count, arch.shared_per_block_bytes);
        let needed = needed + STATIC_BYTES + RESERVED_PER_CTA;
        return fail(format!(
            "{} has {sms} SMs and {shared} bytes of shared memory per CTA, but {needed} bytes are needed",
            arch.name
        ));
    }
    Ok(())
}

fn refused(problem: &Problem, detail: String) -> Error {
    Error::Launch { rows: problem.rows, cols: problem.cols, detail }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { rows, cols, dtype, family } = self.problem;
        let Launch { variant, grid, shared_bytes, ctas, resident, groups, ctas_per_sm, .. } = self.launch;
        let threads = variant.threads();
        writeln!(
            f,
            "{}: {rows} rows x {cols} {dtype} on {}, {} SMs",
            family.name(),
            self.arch.name,
            self.arch.sm_count
        )?;
        let (whom, of) = match variant.scope() {
            Scope::Warp => (format!("one warp per row, {WARPS} in a CTA"), "warp"),
            Scope::Block => (format!("one CTA of {threads} threads per row"), "CTA"),
            Scope::Cluster => (format!("a cluster of {ctas} CTAs of {threads} threads per row"), "CTA"),
            Scope::Split => (format!("{ctas} CTAs of {threads} threads per row"), "CTA"),
        };
        let at_once =
            if u64::from(groups) < rows { format!(", {groups} rows at once") } else { String::new() };
        writeln!(f, "  kernel     {variant}: {whom}{at_once}")?;
        writeln!(f, "  why        {}", self.why)?;
        writeln!(
            f,
            "  grid       {grid} CTAs, {shared_bytes} bytes of shared memory each, \
             at most {ctas_per_sm} to an SM"
        )?;
        let vectors = self.vectors;
        let share = 100.0 * self.on_chip().min(vectors) as f64 / vectors as f64;
        writeln!(
            f,
            "  on chip    {share:.1} % of a row: {resident} of its {vectors} vectors of 16 bytes in each {of}"
        )?;
        let writes = match family {
            Family::CriticalSoftmax => "1 write",
            _ => "no write",
        };
        match self.fits_on_chip() {
            true => writeln!(f, "  per score  1 global read, {writes}")?,
            false => {
                let rest = 100.0 - share;
                writeln!(
                    f,
                    "  per score  1 global read, {writes}; {rest:.1} % are read again by every pass"
                )?;
            }
        }
        write!(f, "  workspace  {} bytes", self.workspace_bytes())
    }
}
