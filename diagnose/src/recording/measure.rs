//! The measurement of the rows of a call. Many short rows share one job of a thread.

use super::bytes::{contiguous, parts};
use crate::input::elements::append_values;
use crate::qk::{Attended, QkBlock, blocks};
use crate::records::record::{RowPlace, RowRecord};
use crate::settings::Settings;
use critbeta::DType;
use critbeta::cpu::Workspace;
use ndarray::{ArrayView3, s};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Scores that are worth the hand-over to another thread. Each row costs as much as this many more.
const WORTH: usize = 1 << 15;
const ROW: usize = 512;

/// Some rows of a text.
pub(super) struct Measured<'a> {
    pub layer: Arc<str>,
    pub first_head: u64,
    /// Their indices.
    pub rows: Vec<usize>,
    pub positions: Vec<u64>,
    pub scores: Rows<'a>,
}

/// Where the scores of the rows of a text come from.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// Products of queries and keys.
    Products(TextProducts<'a>),
    /// A tile [heads, rows, keys].
    Scores(ArrayView3<'a, f32>),
}

/// Queries and keys of a text, as bytes.
#[derive(Clone, Copy)]
pub(super) struct TextProducts<'a> {
    /// Element types of queries and keys.
    pub dtypes: [DType; 2],
    /// [rows, heads, bytes of a query].
    pub q: ArrayView3<'a, u8>,
    /// [kv_heads, keys, bytes of a key].
    pub k: ArrayView3<'a, u8>,
    /// The factor of the products.
    pub scale: f64,
}

/// Some rows of them.
struct Pair<'s, 'a> {
    of: &'s TextProducts<'a>,
    rows: &'s [usize],
    positions: &'s [u64],
}

/// A block of rows: these of each of these heads.
type Block<'s, 'a> = (&'s Measured<'a>, Range<usize>, Range<usize>);

/// The memory of one thread.
#[derive(Default)]
struct Scratch {
    workspace: Workspace,
    block: QkBlock,
}

/// The records of all rows, in order.
pub(super) fn measured(texts: &[Measured], settings: &Settings) -> Vec<RowRecord> {
    let (mut jobs, mut worth): (Vec<Vec<Block>>, _) = (Vec::new(), WORTH);
    for block in texts.iter().flat_map(blocks_of) {
        if worth >= WORTH {
            jobs.push(Vec::new());
            worth = 0;
        }
        worth += block.1.len() * block.2.len() * (ROW + block.0.width());
        jobs.last_mut().expect("the first block begins one").push(block);
    }
    let measure = |scratch: &mut Scratch, job: &Vec<Block>| {
        let mut records =
            Vec::with_capacity(job.iter().map(|(_, heads, rows)| heads.len() * rows.len()).sum());
        job.iter().for_each(|block| scratch.measure(block, settings, &mut records));
        records
    };
    match &jobs[..] {
        [job] => measure(&mut Scratch::default(), job),
        _ => jobs.par_iter().map_init(Scratch::default, measure).flatten_iter().collect(),
    }
}

fn blocks_of<'s, 'a>(text: &'s Measured<'a>) -> Vec<Block<'s, 'a>> {
    match &text.scores {
        Rows::Products(of) => blocks(&text.pair(of)).map(|(heads, rows)| (text, heads, rows)).collect(),
        Rows::Scores(tile) => {
            (0..tile.dim().0).map(|head| (text, head..head + 1, 0..text.rows.len())).collect()
        }
    }
}

impl Scratch {
    fn measure(&mut self, block: &Block, settings: &Settings, records: &mut Vec<RowRecord>) {
        let (text, heads, rows) = block;
        let Scratch { workspace, block } = self;
        if let Rows::Products(of) = &text.scores {
            block.fill(&text.pair(of), heads.clone(), rows.clone());
        }
        let all = heads.clone().flat_map(|head| rows.clone().map(move |row| (head, row)));
        for (index, (head, row)) in all.enumerate() {
            let position = text.positions[row];
            let scores = match &text.scores {
                Rows::Products(_) => block.row(index, position),
                Rows::Scores(tile) => contiguous(tile.slice_move(s![head, text.rows[row], ..])),
            };
            let report = workspace.report(scores, settings.beta, settings.measure);
            let layer = Arc::clone(&text.layer);
            let head = text.first_head + head as u64;
            let place = RowPlace { layer, head, row: row as u64, position };
            records.push(RowRecord::new(place, &report, 0.0, settings.measure.top_k.is_some()));
        }
    }
}

impl<'a> Measured<'a> {
    fn pair<'s>(&'s self, of: &'s TextProducts<'a>) -> Pair<'s, 'a> {
        Pair { of, rows: &self.rows, positions: &self.positions }
    }

    /// Scores of the widest row.
    fn width(&self) -> usize {
        match &self.scores {
            Rows::Products(of) => of.k.dim().1,
            Rows::Scores(tile) => tile.dim().2,
        }
    }
}

impl Attended for Pair<'_, '_> {
    fn heads(&self) -> [usize; 2] {
        [self.of.q.dim().1, self.of.k.dim().0]
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn keys(&self) -> usize {
        self.of.k.dim().1
    }

    fn head_dim(&self) -> usize {
        self.of.q.dim().2 / self.of.dtypes[0].size_bytes()
    }

    fn scale(&self) -> f64 {
        self.of.scale
    }

    fn position(&self, row: usize) -> u64 {
        self.positions[row]
    }

    fn append_queries(&self, head: usize, rows: Range<usize>, out: &mut Vec<f32>) {
        for &row in &self.rows[rows] {
            append_values(self.of.dtypes[0], contiguous(self.of.q.slice_move(s![row, head, ..])), out);
        }
    }

    fn append_keys(&self, kv_head: usize, keys: Range<usize>, out: &mut Vec<f32>) {
        let of_head = self.of.k.slice_move(s![kv_head, keys, ..]);
        parts(of_head).for_each(|part| append_values(self.of.dtypes[1], part, out));
    }
}
