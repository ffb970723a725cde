//! Every compiled kernel by name. build.rs reads them from the rows of `kernels/variants.def`.

use crate::DType;
use std::fmt;

/// What a kernel does with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// It reads the row and writes a report, without probabilities.
    GapProfile,
    /// It measures the row as far as the rescaling needs it, and writes the probabilities.
    CriticalSoftmax,
    /// It writes the scores of queries over keys in pages, as rows for the others.
    AttentionScores,
    /// It finds how much of its rows each key has, from their probabilities.
    AttentionMasses,
    /// It adds the values of keys in pages, weighted by the probabilities of rows.
    AttentionValues,
    /// It does all of attention over keys and values in pages, for betas that are known before.
    AttentionOnePass,
    /// It does all of attention over keys and values in pages, and its scores stay on chip.
    AttentionOnChip,
    /// It measures the betas of queries over keys in pages, and its scores stay on chip.
    AttentionBetas,
    /// It works on no rows: it runs every wrapper of `kernels/simt.cuh` once, for their test on a GPU.
    Wrappers,
}

impl Family {
    /// The name that a plan prints.
    pub fn name(self) -> &'static str {
        match self {
            Family::GapProfile => "gap profile",
            Family::CriticalSoftmax => "critical softmax",
            Family::AttentionScores => "attention scores",
            Family::AttentionMasses => "attention masses",
            Family::AttentionValues => "attention values",
            Family::AttentionOnePass => "attention in one pass",
            Family::AttentionOnChip => "attention on chip",
            Family::AttentionBetas => "attention betas",
            Family::Wrappers => "wrappers of the machine",
        }
    }
}

/// The threads that work together on one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One warp. A CTA holds several rows.
    Warp,
    /// One CTA.
    Block,
    /// A cluster of CTAs that see each other's shared memory.
    Cluster,
    /// CTAs of the whole grid, which share a workspace in device memory.
    Split,
}

macro_rules! variants {
    ($(
        $name:ident, $symbol:literal, $family:ident, $dtype:ident, $scope:ident,
        $threads:literal, $ctas:literal;
    )*) => {
        /// A compiled kernel. Its number is its row in `kernels/variants.def`, and the simulator finds it by
        /// that number.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Variant {
            $(#[doc = concat!("`", $symbol, "`")] $name,)*
        }

        impl Variant {
            /// All variants, in the order of the table.
            pub const ALL: &'static [Variant] = &[$(Variant::$name,)*];

            fn row(self) -> &'static Row {
                const ROWS: &[Row] = &[$(Row {
                    symbol: $symbol,
                    family: Family::$family,
                    dtype: DType::$dtype,
                    scope: Scope::$scope,
                    threads: $threads,
                    ctas: $ctas,
                },)*];
                &ROWS[self as usize]
            }
        }
    };
}

include!(concat!(env!("OUT_DIR"), "/variants.rs"));

struct Row {
    symbol: &'static str,
    family: Family,
    dtype: DType,
    scope: Scope,
    threads: u32,
    ctas: u32,
}

impl Variant {
    /// The compiled kernels of this family and dtype.
    pub fn of(family: Family, dtype: DType) -> impl Iterator<Item = Variant> {
        Variant::ALL.iter().copied().filter(move |v| (v.family(), v.dtype()) == (family, dtype))
    }

    /// Its `extern "C"` name: family_dtype_scopeTHREADSxCTAS.
    pub fn symbol(self) -> &'static str {
        self.row().symbol
    }

    /// What the kernel does with a row.
    pub fn family(self) -> Family {
        self.row().family
    }

    /// Element type of the scores.
    pub fn dtype(self) -> DType {
        self.row().dtype
    }

    /// The threads that work together on a row.
    pub fn scope(self) -> Scope {
        self.row().scope
    }

    /// Threads per CTA.
    pub fn threads(self) -> u32 {
        self.row().threads
    }

    /// CTAs per row. It is 1 in the cluster and split scopes, where the launch chooses their number.
    pub fn ctas(self) -> u32 {
        self.row().ctas
    }
}

/// Its symbol.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.symbol())
    }
}
