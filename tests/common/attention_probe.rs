//! A decode call made of any bytes. The tests call it with seeded bytes, the fuzz target with found ones.

use critbeta::Rescaling;
use critbeta::attention::{
    self, BlockTable, DecodeCall, PagedKv, Pages, Queries, Sequences, Strides, decode, scores,
};
use critbeta::cpu::Measure;
use critbeta::reference::Row;

const RULES: [&str; 6] = ["identity", "critical", "critical:cap=4", "fixed:0", "ssmax:s=0.43", "fixed:30"];
const UNTOUCHED: f32 = 7.25;

/// Bytes that are used up; then zeros follow.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.next()) % end
    }

    /// `usual`, but for one byte in 32.
    fn or_odd(&mut self, usual: usize, odd: &[usize]) -> usize {
        let byte = usize::from(self.next());
        if byte < 8 { odd[byte % odd.len()] } else { usual }
    }

    fn pool(&mut self, len: usize) -> Vec<f32> {
        let some: Vec<f32> = (0..61)
            .map(|_| match self.next() as i8 {
                // What poisons a row is rare, or all rows would be poisoned.
                i8::MIN if self.next() == 1 => f32::NAN,
                i8::MAX if self.next() == 1 => f32::INFINITY,
                sixteenths => f32::from(sixteenths) / 16.0,
            })
            .collect();
        some.into_iter().cycle().take(len).collect()
    }
}

/// Makes a call and checks what comes back. Returns how many rows it found, or what was refused.
pub fn call_anything(bytes: &[u8]) -> critbeta::Result<usize> {
    let bytes = &mut Bytes(bytes);
    let (kv_heads, group) = (1 + bytes.below(4), 1 + bytes.below(5));
    let dim = [64, 72, 80, 128][bytes.below(4)];
    let dim = bytes.or_odd(dim, &[0, 8, 63, 264]);
    let (page, pages) = (bytes.or_odd(1 + bytes.0.len() % 18, &[0, 1]), bytes.or_odd(6, &[0, 1]));
    let seqs = bytes.below(4);
    let blocks = bytes.below(5);
    let sizes = [pages, page, kv_heads, dim];
    let strides = match bytes.below(4) {
        0 => [page * kv_heads * dim, kv_heads * dim, dim, 1],
        1 => [page * kv_heads * dim, dim, page * dim, 1],
        2 => [page * kv_heads * dim, 1, page * dim, page],
        _ => [bytes.below(9) * 100, bytes.below(200), bytes.below(200), bytes.below(3)],
    };
    let [of_page, slot, head, element] = strides.map(|stride| bytes.or_odd(stride, &[0, 1, usize::MAX]));
    let strides = Strides { page: of_page, slot, head, element };
    let len = bytes.or_odd(pages * page * kv_heads * dim, &[0, 1, 1000]);
    let (k, v) = (bytes.pool(len), bytes.pool(len));
    let ids: Vec<i32> =
        (0..seqs * blocks).map(|_| bytes.or_odd(bytes.0.len() % 6, &[7, 99]) as i32).collect();
    let ids: Vec<i32> = ids.into_iter().map(|id| if id == 99 { -1 } else { id }).collect();
    let most = blocks * page;
    let lens: Vec<i32> =
        (0..seqs).map(|_| bytes.or_odd(bytes.0.len() % (most + 1), &[most + 1]) as i32).collect();
    let query_lens: Vec<i32> = (0..seqs).map(|_| bytes.or_odd(1 + seqs % 3, &[0, 8, 9]) as i32).collect();
    let tokens = query_lens.iter().sum::<i32>() as usize;
    let heads = bytes.or_odd(kv_heads * group, &[0, kv_heads * group + 1]);
    let q = bytes.pool(tokens * heads * dim);
    let rules: Vec<Rescaling> = (0..[1, heads][bytes.below(2)])
        .map(|_| RULES[bytes.below(RULES.len())].parse().expect("a rule of the list"))
        .collect();
    let eps = [0.0, 1e-6, 0.01, 0.3, 0.99, -1.0, 1.0, f64::NAN][bytes.below(8)];
    let radii = vec![9.0 * dim as f32; pages * kv_heads];

    let mut call = DecodeCall::new(&rules);
    call.eps = eps;
    call.window = [None, None, Some(bytes.below(40))][bytes.below(3)];
    call.softcap = [None, None, Some(5.0)][bytes.below(3)];
    call.v_radius = [None, Some(&radii[..])][bytes.below(2)];
    call.measure = [None, Some(Measure::default())][bytes.below(2)];
    let mut out = vec![UNTOUCHED; tokens * heads * dim];
    let mut run = || -> critbeta::Result<_> {
        let keys = Pages::strided(&k, sizes, strides)?;
        let kv = PagedKv::new(keys, Pages::strided(&v, sizes, strides)?)?;
        let queries = Queries::dense(&q, [tokens, heads, dim])?.with_lens(&query_lens[..]);
        let sequences = Sequences::new(BlockTable::rows(&ids, [seqs, blocks], blocks)?, &lens[..])?;
        let rows = decode(&queries, &kv, &sequences, &call, &mut out)?;
        let mut all = call;
        all.measure = Some(Measure::default());
        let reports = attention::measure(&queries, &keys, &sequences, &all)?;
        Ok((rows, scores(&queries, &keys, &sequences, &call)?, reports))
    };
    let (rows, scores, reports) = match run() {
        Ok(found) => found,
        Err(refused) => {
            assert!(out.iter().all(|out| *out == UNTOUCHED), "{refused}: the output was written");
            return Err(refused);
        }
    };
    assert_eq!([rows.len(), scores.len(), reports.len()], [tokens * heads; 3]);
    for ((row, scores), report) in rows.iter().zip(&scores).zip(&reports) {
        let exact = Row::from_f32(scores);
        assert_eq!((row.row.top.len, row.row.top.poisoned), (exact.n(), exact.is_poisoned()));
        assert!(row.dropped as f64 <= eps * 2f64.powi(32) && row.kept <= exact.n(), "{row:?}, eps {eps}");
        assert!(row.report.is_none() || call.measure.is_some());
        if !exact.is_poisoned() {
            assert_eq!(report.critical.beta.to_bits(), exact.critical_beta().beta.to_bits(), "{scores:?}");
            assert!(row.dropped > 0 || row.kept == exact.n(), "{row:?}");
        }
    }
    Ok(rows.len())
}
