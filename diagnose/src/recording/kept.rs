//! Queries, keys and scores that are kept in memory, and the files that they become.

use super::bytes::{contiguous, heads_first, parts};
use super::measure::TextProducts;
use critbeta::DType;
use ndarray::{ArrayView3, Axis, s};
use std::collections::HashMap;

/// The queries, keys and scores of every text, up to `max_bytes` of them.
#[derive(Debug)]
pub(super) struct Kept {
    max_bytes: u64,
    bytes: u64,
    /// Whether `max_bytes` left something out.
    pub full: bool,
    /// The rows that are kept, of all heads.
    pub rows: u64,
    layers: Vec<String>,
    files: Vec<File>,
    /// The file and the member of it that a layer of a text wrote last, by scale.
    last: HashMap<(u64, usize, Option<u64>), (usize, usize)>,
    /// Files by text, take and scale. Keys that do not begin with the known ones begin another take: after a
    /// cache was cut back, or on another beam.
    numbers: HashMap<(u64, u64, Option<u64>), usize>,
}

#[derive(Debug)]
struct File {
    text: u64,
    take: u64,
    /// `None` for scores.
    scale: Option<f64>,
    members: Vec<(usize, Member)>,
}

/// What is kept of a layer.
#[derive(Debug)]
enum Member {
    Pair(Pair),
    Scores(Scores),
}

#[derive(Debug)]
struct Pair {
    dtypes: [DType; 2],
    /// [rows, heads, bytes of a query].
    queries: Vec<u8>,
    /// By head: [keys, bytes of a key].
    keys: Vec<Vec<u8>>,
    key_bytes: usize,
    query_bytes: usize,
    positions: Vec<u64>,
}

#[derive(Debug, Default)]
struct Scores {
    heads: usize,
    /// Scores [heads, rows, keys], with rows and keys.
    parts: Vec<(usize, usize, Vec<f32>)>,
    positions: Vec<u64>,
}

/// What a file holds.
#[derive(Debug)]
pub struct KeptFile {
    /// The number of the text.
    pub text: u64,
    /// The factor of the products; `None` for scores.
    pub scale: Option<f64>,
    /// The tensors by name.
    pub tensors: Vec<(String, KeptTensor)>,
}

/// A tensor of a file.
#[derive(Debug)]
pub struct KeptTensor {
    /// The element type; `None` for positions, which are i64.
    pub dtype: Option<DType>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements in C order.
    pub bytes: Vec<u8>,
}

impl Kept {
    pub(super) fn new(max_bytes: u64) -> Self {
        Kept {
            max_bytes,
            bytes: 0,
            full: false,
            rows: 0,
            layers: Vec::new(),
            files: Vec::new(),
            last: HashMap::new(),
            numbers: HashMap::new(),
        }
    }

    /// The number of a layer.
    pub(super) fn layer(&mut self, name: &str) -> usize {
        self.layers.iter().position(|known| known == name).unwrap_or_else(|| {
            self.layers.push(name.to_owned());
            self.layers.len() - 1
        })
    }

    /// Keeps some rows of queries, and all keys of the text so far.
    pub(super) fn keep_pair(
        &mut self,
        text: u64,
        layer: usize,
        of: &TextProducts,
        rows: &[usize],
        positions: &[u64],
    ) {
        if self.full {
            return;
        }
        let ([_, heads, query_bytes], [kv_heads, keys, key_bytes]) = (of.q.shape(), of.k.shape()) else {
            return;
        };
        let place = (text, layer, Some(of.scale.to_bits()));
        let last = self.last.get(&place).copied();
        let known = last.and_then(|at| self.pair(at)).and_then(|pair| pair.begins(of.k));
        let take = last.map_or(0, |(file, _)| self.files[file].take + u64::from(known.is_none()));
        let more = kv_heads * keys.saturating_sub(known.unwrap_or(0)) * key_bytes;
        if !self.has_room(heads * rows.len() * query_bytes + more) {
            return;
        }
        let at = match last.filter(|_| known.is_some()) {
            Some(at) => at,
            None => self.member(text, take, Some(of.scale), layer, Member::Pair(Pair::new(of))),
        };
        self.last.insert(place, at);
        self.rows += (heads * rows.len()) as u64;
        if let Member::Pair(pair) = &mut self.files[at.0].members[at.1].1 {
            pair.extend(of.k);
            for &row in rows {
                let query = of.q.index_axis_move(Axis(0), row);
                parts(query).for_each(|part| pair.queries.extend_from_slice(part));
            }
            pair.positions.extend_from_slice(positions);
        }
    }

    /// Keeps some rows of scores [heads, rows, keys].
    pub(super) fn keep_scores(
        &mut self,
        text: u64,
        layer: usize,
        tile: ArrayView3<f32>,
        rows: &[usize],
        positions: &[u64],
    ) {
        let (heads, _, keys) = tile.dim();
        if !self.has_room(heads * rows.len() * keys * size_of::<f32>()) {
            return;
        }
        let place = (text, layer, None);
        let at = match self.last.get(&place) {
            Some(&at) => at,
            None => {
                let none = Scores { heads, ..Scores::default() };
                self.member(text, 0, None, layer, Member::Scores(none))
            }
        };
        self.last.insert(place, at);
        self.rows += (heads * rows.len()) as u64;
        if let Member::Scores(kept) = &mut self.files[at.0].members[at.1].1 {
            let mut all = Vec::with_capacity(heads * rows.len() * keys);
            for head in 0..heads {
                rows.iter().for_each(|&row| {
                    all.extend_from_slice(contiguous(tile.slice_move(s![head, row, ..])));
                });
            }
            kept.parts.push((rows.len(), keys, all));
            kept.positions.extend_from_slice(positions);
        }
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        self.full = self.full || self.bytes + bytes as u64 > self.max_bytes;
        self.bytes += if self.full { 0 } else { bytes as u64 };
        !self.full
    }

    fn pair(&self, (file, member): (usize, usize)) -> Option<&Pair> {
        match &self.files[file].members[member].1 {
            Member::Pair(pair) => Some(pair),
            Member::Scores(_) => None,
        }
    }

    /// Adds `member` to the file of its text, take and scale.
    fn member(
        &mut self,
        text: u64,
        take: u64,
        scale: Option<f64>,
        layer: usize,
        member: Member,
    ) -> (usize, usize) {
        let files = &mut self.files;
        let file = *self.numbers.entry((text, take, scale.map(f64::to_bits))).or_insert_with(|| {
            files.push(File { text, take, scale, members: Vec::new() });
            files.len() - 1
        });
        self.files[file].members.push((layer, member));
        (file, self.files[file].members.len() - 1)
    }

    pub(super) fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Files by text. Of one text those of pairs come first.
    pub(super) fn file(&self, index: usize) -> KeptFile {
        let mut order: Vec<usize> = (0..self.files.len()).collect();
        order.sort_by_key(|&file| (self.files[file].text, self.files[file].scale.is_none()));
        let File { text, scale, members, .. } = &self.files[order[index]];
        let tensors = members.iter().flat_map(|(layer, member)| member.tensors(&self.layers[*layer]));
        KeptFile { text: *text, scale: *scale, tensors: tensors.collect() }
    }
}

impl Pair {
    fn new(of: &TextProducts) -> Self {
        Pair {
            dtypes: of.dtypes,
            queries: Vec::new(),
            keys: vec![Vec::new(); of.k.dim().0],
            key_bytes: of.k.dim().2,
            query_bytes: of.q.dim().2,
            positions: Vec::new(),
        }
    }

    fn known(&self) -> usize {
        self.keys.first().map_or(0, Vec::len) / self.key_bytes.max(1)
    }

    /// The number of known keys, if the keys [kv_heads, keys, bytes] begin with them.
    fn begins(&self, k: ArrayView3<u8>) -> Option<usize> {
        let (heads, keys, bytes) = k.dim();
        let known = self.known();
        let fits = (heads, bytes) == (self.keys.len(), self.key_bytes) && keys >= known;
        let begins = |(head, of_head): (usize, &Vec<u8>)| {
            let mut at = 0;
            parts(k.slice_move(s![head, ..known, ..])).all(|part| {
                at += part.len();
                part == &of_head[at - part.len()..at]
            })
        };
        (fits && self.keys.iter().enumerate().all(begins)).then_some(known)
    }

    /// Adds the keys that are not known yet.
    fn extend(&mut self, k: ArrayView3<u8>) {
        let known = self.known();
        for (head, of_head) in self.keys.iter_mut().enumerate() {
            let of = k.index_axis_move(Axis(0), head);
            let more = of.len().saturating_sub(of_head.len());
            if of_head.capacity() < of_head.len() + more {
                // The room grows by half, so n decoding steps do not copy the text n times.
                let room = if of_head.is_empty() { 0 } else { of.len() / 2 };
                of_head.reserve_exact(more + room);
            }
            if more > 0 {
                parts(of.slice_move(s![known.., ..])).for_each(|part| of_head.extend_from_slice(part));
            }
        }
    }
}

impl Member {
    fn tensors(&self, layer: &str) -> Vec<(String, KeptTensor)> {
        let positions = |of: &[u64]| KeptTensor {
            dtype: None,
            shape: vec![of.len()],
            bytes: of.iter().flat_map(|&position| (position as i64).to_le_bytes()).collect(),
        };
        match self {
            Member::Pair(pair) => {
                let rows = pair.positions.len();
                let heads = pair.queries.len() / (rows * pair.query_bytes);
                let dim = pair.key_bytes / pair.dtypes[1].size_bytes();
                let tensor = |dtype, shape: [usize; 3], bytes| KeptTensor {
                    dtype: Some(dtype),
                    shape: shape.to_vec(),
                    bytes,
                };
                let q = heads_first(&pair.queries, rows, heads);
                let q = tensor(pair.dtypes[0], [heads, rows, dim], q);
                let k = tensor(pair.dtypes[1], [pair.keys.len(), pair.known(), dim], pair.keys.concat());
                vec![
                    (format!("{layer}.q"), q),
                    (format!("{layer}.k"), k),
                    (format!("{layer}.positions"), positions(&pair.positions)),
                ]
            }
            Member::Scores(scores) => {
                let width = scores.parts.iter().map(|(_, keys, _)| *keys).max().unwrap_or(0);
                let mut all = Vec::with_capacity(scores.heads * scores.positions.len() * width);
                for head in 0..scores.heads {
                    for (rows, keys, part) in &scores.parts {
                        for row in part[head * rows * keys..][..rows * keys].chunks(*keys) {
                            all.extend_from_slice(row);
                            all.resize(all.len() + width - keys, f32::NEG_INFINITY);
                        }
                    }
                }
                let shape = vec![scores.heads, scores.positions.len(), width];
                let bytes = bytemuck::cast_slice(&all).to_vec();
                let scores_tensor = KeptTensor { dtype: Some(DType::F32), shape, bytes };
                vec![
                    (layer.to_owned(), scores_tensor),
                    (format!("{layer}.positions"), positions(&scores.positions)),
                ]
            }
        }
    }
}
