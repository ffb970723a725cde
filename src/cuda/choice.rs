//! The choice of a scope for a problem, and how much of a row each CTA of it holds.

use super::arch::Arch;
use super::ladder::*;
use super::params::*;
use super::problem::Problem;
use super::variants::{Family, Scope};

/// Bytes of dynamic shared memory that each CTA can have when `ctas` of them share an SM.
pub(super) fn shared_bytes(arch: &Arch, ctas: u32) -> u32 {
    let shared = (arch.shared_per_sm_bytes / ctas).saturating_sub(RESERVED_PER_CTA);
    shared.min(arch.shared_per_block_bytes).saturating_sub(STATIC_BYTES)
}

/// Bytes of shared memory in front of the part of a row that each CTA (in the warp scope: each warp) keeps.
pub(super) fn control_bytes(scope: Scope, threads: u32) -> u32 {
    match scope {
        Scope::Warp => WARP_CONTROL_BYTES,
        Scope::Block => BLOCK_CONTROL_BYTES,
        Scope::Cluster if threads > THREADS => WIDE_CLUSTER_CONTROL_BYTES,
        Scope::Cluster => CLUSTER_CONTROL_BYTES,
        Scope::Split => SPLIT_CONTROL_BYTES,
    }
}

/// Vectors of a row that each CTA can keep when `ctas` of them share an SM. A CTA alone has many threads.
fn row_vectors(arch: &Arch, scope: Scope, ctas: u32) -> u64 {
    let threads = if ctas == 1 { MANY_THREADS } else { THREADS };
    u64::from(shared_bytes(arch, ctas).saturating_sub(control_bytes(scope, threads)) / 16)
}

/// A scope, and how much of a row each of its CTAs holds.
pub(super) struct Choice {
    pub scope: Scope,
    /// Threads of each CTA: those of a kernel of this scope.
    pub threads: u32,
    pub ctas: u32,
    pub per_cta: u64,
    /// Every CTA, cluster or group takes each so many-th row: as many as run at once where they take rows in
    /// turn, else all rows.
    pub groups: u32,
    pub why: &'static str,
}

impl Choice {
    /// The choice for rows that touch `vectors` 16-byte vectors each.
    pub fn of(problem: &Problem, arch: &Arch, vectors: u64) -> Choice {
        let Problem { rows, cols, .. } = *problem;
        match resident_choice(problem, vectors, arch) {
            Some(choice) if is_few_and_long(rows, cols, choice.ctas, arch) => {
                few_in_a_cluster(problem, vectors, arch).unwrap_or_else(|| {
                    split(problem, arch, vectors, "rows are long and too few to fill the GPU: each is split")
                })
            }
            Some(choice) => choice,
            None if arch.clusters => {
                split(problem, arch, vectors, "no cluster holds the row: CTAs of the grid share it")
            }
            None => split(problem, arch, vectors, "no CTA holds the row: CTAs of the grid share it"),
        }
    }

    /// The choice that only the columns and the GPU decide, not the number of rows: then the sums of a row
    /// have the same bits in any batch.
    pub fn of_columns(problem: &Problem, arch: &Arch, vectors: u64) -> Choice {
        let choice = |scope, threads, ctas: u32, why| {
            let per_cta = vectors.div_ceil(ctas.into());
            Choice { scope, threads, ctas, per_cta, groups: problem.rows as u32, why }
        };
        // Of so many rows the number decides nothing.
        let many = || {
            let choice = Choice::of(&Problem { rows: MANY_ROWS, ..*problem }, arch, vectors);
            Choice { groups: choice.groups.min(problem.rows as u32), ..choice }
        };
        if !arch.clusters {
            return many();
        }
        if vectors <= row_vectors(arch, Scope::Block, 1) {
            return choice(Scope::Block, THREADS, 1, "one CTA for each row, whatever their number is");
        }
        match smallest_cluster(problem.family, vectors, arch) {
            Some((per_sm, ctas)) => {
                let threads = if per_sm == 1 { MANY_THREADS } else { THREADS };
                choice(Scope::Cluster, threads, ctas, "a cluster for each row, whatever their number is")
            }
            None => many(),
        }
    }
}

/// The narrowest scope that holds a whole row, or `None` if only the split scope is left.
fn resident_choice(problem: &Problem, vectors: u64, arch: &Arch) -> Option<Choice> {
    let Problem { rows, cols, family, .. } = *problem;
    let choice = |scope, threads, ctas: u32, why| {
        let per_cta = vectors.div_ceil(ctas.into());
        Some(Choice { scope, threads, ctas, per_cta, groups: rows as u32, why })
    };
    let warp_bytes = u64::from(WARPS) * (u64::from(WARP_CONTROL_BYTES) + 16 * vectors);
    if cols <= WARP_COLS && warp_bytes <= u64::from(shared_bytes(arch, 1)) {
        return choice(Scope::Warp, 32 * WARPS, 1, "a short row keeps one warp busy");
    }
    let most = |scope, threads| resident_ctas(family, scope, threads, arch.sm);
    // Only the first that fits: more threads or CTAs a row than it needs cost more than turns save.
    let in_turns = |scope, of: &[(u32, u32, u32)]| {
        let mut of =
            of.iter().map(|&(threads, per_sm, ctas)| (threads, per_sm.min(most(scope, threads)), ctas));
        let (threads, per_sm, ctas) = of.find(|&(_, per_sm, ctas)| {
            2 * vectors.div_ceil(ctas.into()) <= row_vectors(arch, scope, per_sm)
        })?;
        let groups = groups_at_once(arch, per_sm, ctas);
        let why = "rows are taken in turn, and the next one is loaded beside the work on this one";
        let choice = choice(scope, threads, ctas, why)?;
        (rows >= 2 * u64::from(groups)).then_some(Choice { groups, ..choice })
    };
    let blocks = IN_TURNS.map(|(threads, per_sm)| (threads, per_sm, 1));
    if let Some(choice) = in_turns(Scope::Block, &blocks) {
        return Some(choice);
    }
    if vectors <= row_vectors(arch, Scope::Block, FEW_THREADS_CTAS_PER_SM) {
        let why = "CTAs of few threads: twice as many rows share an SM and overlap their phases";
        return choice(Scope::Block, FEW_THREADS, 1, why);
    }
    let per_sm = BLOCK_CTAS_PER_SM.min(most(Scope::Block, THREADS));
    if vectors <= row_vectors(arch, Scope::Block, per_sm) {
        let why = match per_sm {
            2 => "two such CTAs, all that have registers, share an SM and overlap their phases",
            _ => "three such CTAs share an SM and overlap their phases",
        };
        return choice(Scope::Block, THREADS, 1, why);
    }
    if !arch.clusters {
        let why = "no clusters here: one CTA takes the SM for itself";
        let fits = vectors <= row_vectors(arch, Scope::Block, 1);
        return if fits { choice(Scope::Block, MANY_THREADS, 1, why) } else { None };
    }
    if family == Family::CriticalSoftmax {
        let fitting = CLUSTERS_IN_TURNS.iter().filter(|&&ctas| ctas <= arch.max_cluster).count();
        let clusters = CLUSTERS_IN_TURNS.map(|ctas| (THREADS, BLOCK_CTAS_PER_SM, ctas));
        if let Some(choice) = in_turns(Scope::Cluster, &clusters[..fitting]) {
            return Some(choice);
        }
    }
    let (per_sm, ctas) = smallest_cluster(family, vectors, arch)?;
    match per_sm {
        1 => choice(Scope::Cluster, MANY_THREADS, ctas, "the row needs all shared memory of its SMs"),
        _ => {
            let why = "the smallest cluster whose CTAs still share their SM with others";
            choice(Scope::Cluster, THREADS, ctas, why)
        }
    }
}

/// CTAs that share an SM, and those of the cluster: the first of [`CLUSTERS`] that holds a row.
fn smallest_cluster(family: Family, vectors: u64, arch: &Arch) -> Option<(u32, u32)> {
    let mut sizes = CLUSTERS.iter().flat_map(|&(per_sm, sizes)| sizes.map(|ctas| (per_sm, ctas)));
    sizes.find(|&(per_sm, ctas)| {
        ctas <= arch.max_cluster
            && per_sm <= resident_ctas(family, Scope::Cluster, THREADS, arch.sm)
            && vectors.div_ceil(ctas.into()) <= row_vectors(arch, Scope::Cluster, per_sm)
    })
}

/// Clusters of so many CTAs, or single CTAs, that surely run at once where `per_sm` CTAs share an SM. Where a
/// GPU runs fewer clusters, the launch makes them fewer.
pub(super) fn groups_at_once(arch: &Arch, per_sm: u32, ctas: u32) -> u32 {
    let of_part = |sms: u32| sms * per_sm / ctas;
    match arch.sm_count / SMS_OF_A_GPC {
        0 => of_part(arch.sm_count).max(1),
        _ if ctas == 1 => of_part(arch.sm_count),
        gpcs => (gpcs * of_part(SMS_OF_A_GPC)).max(1),
    }
}

fn is_few_and_long(rows: u64, cols: u64, ctas: u32, arch: &Arch) -> bool {
    cols >= SPLIT_COLS && 2 * rows * u64::from(ctas) < u64::from(arch.sm_count)
}

/// The largest cluster, where the table prefers it to a share of the grid.
fn few_in_a_cluster(problem: &Problem, vectors: u64, arch: &Arch) -> Option<Choice> {
    let &(_, cols) = FEW_IN_A_CLUSTER.iter().find(|&&(rows, _)| problem.rows <= rows)?;
    let ctas = CLUSTERS[0].1.into_iter().filter(|&ctas| ctas <= arch.max_cluster).max()?;
    let per_cta = vectors.div_ceil(ctas.into());
    let fits = arch.clusters && per_cta <= row_vectors(arch, Scope::Cluster, 1);
    let at_once = problem.rows * u64::from(ctas) <= u64::from(arch.sm_count);
    let why =
        "rows are long and few: CTAs of a cluster wait for each other a quarter as long as those of the grid";
    (problem.cols <= cols && fits && at_once).then_some(Choice {
        scope: Scope::Cluster,
        threads: MANY_THREADS,
        ctas,
        per_cta,
        groups: problem.rows as u32,
        why,
    })
}

/// The split scope has at most one CTA per SM, so that all of them run at once and can wait for each other.
fn split(problem: &Problem, arch: &Arch, vectors: u64, why: &'static str) -> Choice {
    let (sms, most) = (u64::from(arch.sm_count.min(SPLIT_CTAS)), row_vectors(arch, Scope::Split, 1));
    let needed = vectors.div_ceil(most).min(sms);
    // As many rounds as the most groups need, and no more groups than fill them all.
    let rounds = problem.rows.div_ceil(sms / needed);
    let groups = problem.rows.div_ceil(rounds);
    let ctas = (sms / groups).min((vectors / SPLIT_VECTORS).max(needed));
    Choice {
        scope: Scope::Split,
        threads: MANY_THREADS,
        ctas: ctas as u32,
        per_cta: vectors.div_ceil(ctas).min(most),
        groups: groups as u32,
        why,
    }
}
