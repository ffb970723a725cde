//! Times decode attention of one sequence and kv head beside a streaming read of the same bytes.
//!
//! `cargo run --release --example 06_decode_speed -- LEN GROUP DIM FAMILY [PAGE]`, where FAMILY is the
//! deviation of Gaussian scores, or a safetensors file with `layer10.q` and `layer10.k` in f16. The cache is
//! cold: each call takes the next of many copies, COLD_MIB in all (256). RAYON_NUM_THREADS sets the threads.

use critbeta::Rescaling;
use critbeta::attention::{
    BlockTable, DecodeCall, PagedKv, Pages, Queries, Sequences, decode, first_scores, measure,
};
use half::f16;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use std::hint::black_box;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| args.get(at).map_or(Ok(default), |arg| arg.parse());
    let (n, group, dim) = (number(0, 32_768)?, number(1, 8)?, number(2, 128)?);
    let family = args.get(3).map_or("1", |arg| arg);
    let page = number(4, n)?;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut normal = || -> f32 { rng.sample(StandardNormal) };
    let (queries, keys): (Vec<f32>, Vec<f16>) = match family.parse::<f32>() {
        Ok(deviation) => (
            (0..group * dim).map(|_| normal() * deviation).collect(),
            (0..n * dim).map(|_| f16::from_f32(normal())).collect(),
        ),
        Err(_) => real_rows(&std::fs::read(family)?, n, group, dim),
    };
    let values: Vec<f16> = (0..n * dim).map(|_| f16::from_f32(normal())).collect();

    // Copies of the cache, with their pages in random order.
    let cold = std::env::var("COLD_MIB").map_or(Ok(256), |mib| mib.parse::<usize>())? << 20;
    let (blocks, copies) = (n.div_ceil(page), cold.div_ceil(4 * n * dim));
    let mut ids: Vec<i32> = (0..(blocks * copies) as i32).collect();
    if page < n {
        ids.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(2));
    }
    let mut pools =
        [vec![f16::ZERO; blocks * copies * page * dim], vec![f16::ZERO; blocks * copies * page * dim]];
    for (pool, from) in pools.iter_mut().zip([&keys, &values]) {
        for (i, &id) in ids.iter().enumerate() {
            let vectors = &from[i % blocks * page * dim..];
            let vectors = &vectors[..vectors.len().min(page * dim)];
            pool[id as usize * page * dim..][..vectors.len()].copy_from_slice(vectors);
        }
    }
    let sizes = [blocks * copies, page, 1, dim];
    let kv = PagedKv::new(Pages::nhd(&pools[0], sizes)?, Pages::nhd(&pools[1], sizes)?)?;
    let k = Pages::nhd(&pools[0], sizes)?;
    let queries = Queries::dense(&queries, [1, group, dim])?;
    let lens = [n];
    let (identity, critical) = (["identity".parse::<Rescaling>()?], ["critical:cap=50,resolve=0.7".parse()?]);
    let mut out = vec![0.0f32; group * dim];

    let calls: Vec<(&str, &[Rescaling], f64)> = vec![
        ("eps 0", &identity, 0.0),
        ("eps 1e-3", &identity, 1e-3),
        ("eps 1e-2", &identity, 1e-2),
        ("critical 0", &critical, 0.0),
        ("critical 1e-3", &critical, 1e-3),
    ];
    let names = ["stream", "stream k", "k phase", "measure"];
    let mut times = vec![Vec::new(); names.len() + calls.len()];
    let mut keep = vec![0.0; calls.len()];
    for round in 0..(5 * copies).max(cold.div_ceil(4 * n * dim * 8).max(300)) {
        let copy = round % copies;
        let ids = &ids[copy * blocks..][..blocks];
        let sequences = Sequences::new(BlockTable::rows(ids, [1, blocks], blocks)?, &lens[..])?;
        let call = DecodeCall::new(&identity);
        // Each call of a round takes another copy, so that none finds its bytes in a cache.
        let which = round % times.len();
        let start = Instant::now();
        match which {
            0 => drop(black_box(read(&pools, ids, page * dim))),
            1 => drop(black_box(read(&pools[..1], ids, page * dim))),
            2 => drop(black_box(first_scores(&queries, &k, &sequences, &call)?)),
            3 => drop(black_box(measure(&queries, &k, &sequences, &call)?)),
            _ => {
                let (_, rule, eps) = calls[which - names.len()];
                let mut call = DecodeCall::new(rule);
                call.eps = eps;
                let rows = decode(&queries, &kv, &sequences, &call, &mut out)?;
                keep[which - names.len()] = rows[0].kept as f64 / n as f64;
            }
        }
        times[which].push(start.elapsed().as_secs_f64());
    }
    let mut medians = Vec::new();
    for times in &mut times {
        times.sort_by(f64::total_cmp);
        medians.push([times[times.len() / 10], times[times.len() / 2]]);
    }
    println!("n {n} group {group} dim {dim} {family} page {page}, {} threads", rayon::current_num_threads());
    let all = names.iter().copied().chain(calls.iter().map(|call| call.0)).zip(&medians);
    for (i, (name, [tenth, median])) in all.enumerate() {
        let beside = match i {
            1 | 2 => medians[1],
            3 => medians[2],
            _ => medians[4],
        };
        let kept = if i >= names.len() { keep[i - names.len()] } else { 1.0 };
        println!(
            "  {name:14} {:8.1} us (tenth {:8.1})  x {:.3} ({:.3})  keep {kept:.3}",
            median * 1e6,
            tenth * 1e6,
            median / beside[1],
            tenth / beside[0]
        );
    }
    Ok(())
}

/// Reads pages and adds their words.
fn read(pools: &[Vec<f16>], ids: &[i32], page_elements: usize) -> u64 {
    let of = |&id: &i32| {
        let pages = pools.iter().map(|pool| &pool[id as usize * page_elements..][..page_elements]);
        pages.flat_map(bytemuck::cast_slice::<f16, u64>).fold(0u64, |sum, word| sum.wrapping_add(*word))
    };
    ids.iter().map(of).fold(0, u64::wrapping_add)
}

/// The first `n` keys of a layer and the queries of the last row that sees no more than those.
fn real_rows(file: &[u8], n: usize, group: usize, dim: usize) -> (Vec<f32>, Vec<f16>) {
    let header = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
    let text = std::str::from_utf8(&file[8..8 + header]).unwrap();
    let tensor = |name: &str| {
        let entry = &text[text.find(&format!("\"{name}\":")).expect("a tensor of this name")..];
        let offsets = &entry[entry.find("data_offsets").unwrap()..];
        let numbers = &offsets[offsets.find('[').unwrap() + 1..offsets.find(']').unwrap()];
        let ends: Vec<usize> = numbers.split(',').map(|v| v.trim().parse().unwrap()).collect();
        &file[8 + header..][ends[0]..ends[1]]
    };
    let halves = |name: &str| -> Vec<f16> {
        tensor(name).chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect()
    };
    let layer = std::env::var("LAYER").unwrap_or("layer10".to_owned());
    let (q, k) = (halves(&format!("{layer}.q")), halves(&format!("{layer}.k")));
    let positions: Vec<i64> =
        tensor("positions").chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let row = positions.iter().rposition(|&p| p < n as i64).unwrap();
    println!("{layer}, query at {} of {n} keys", positions[row]);
    let heads = (0..group).flat_map(|h| &q[(h * positions.len() + row) * dim..][..dim]);
    (heads.map(|q| q.to_f32()).collect(), k[..n * dim].to_vec())
}
