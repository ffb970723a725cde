//! Runs every wrapper of kernels/simt.cuh once, on the simulator, or on the first GPU with
//! CRITBETA_REQUIRE_GPU=1. Both bodies of that file must write the words that this test computes from the
//! definitions.

#[path = "common/device.rs"]
mod device;

use critbeta::DType;
use critbeta::cuda::internals::{Family, Scope, Variant};
use critbeta::cuda::{Arch, SimtOptions};
use device::engine_of;
use half::{bf16, f16};

fn bits(value: f32) -> u32 {
    if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() }
}

fn wide_bits(value: f64) -> u64 {
    if value.is_nan() { 0x7ff8_0000_0000_0000 } else { value.to_bits() }
}

/// Special values first, then floats of like size, then anything.
fn input() -> Vec<u32> {
    // The arithmetic of thread t takes words t, 7 t + 3 and 13 t + 5, so it covers both pairs of unequal
    // zeros.
    #[rustfmt::skip]
    let special = [
        0, 0x80000000, 1, 0x80000000, 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
        0x7f800000, 0xff800000, 0, 0x3f800000, 0x7fc00001, 0x33800000, 0x80000001, 0x7f000000,
    ];
    let mut state = 1u32;
    let word = |i: usize| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        let w = state ^ state >> 15;
        match i {
            0..16 => special[i],
            16..96 => (w & 0x807f_ffff) | (120 + (w >> 23 & 15)) << 23,
            _ => w,
        }
    };
    (0..512).map(word).collect()
}

/// The larger value, or the one that is a number. Of two zeros, the positive one is larger.
fn larger(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == 0.0 && b == 0.0 => f32::from_bits(a.to_bits() & b.to_bits()),
        _ => {
            if a > b {
                a
            } else {
                b
            }
        }
    }
}

/// a b + c rounded down. The product is exact in f64; `low` is what the sum lost.
fn fused_down(a: f32, b: f32, c: f32) -> f32 {
    let nearest = a.mul_add(b, c);
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let high = product + c;
    let part = high - product;
    let low = (product - (high - part)) + (c - part);
    let above = f64::from(nearest) > high || (f64::from(nearest) == high && low < 0.0);
    if above && high.is_finite() { nearest.next_down() } else { nearest }
}

/// The result of a fold over a warp in one lane. Partners are at distance 16, then 8, 4, 2, 1.
fn folded<V: Copy>(lanes: &[V], lane: usize, mask: usize, merge: fn(V, V) -> V) -> V {
    if mask == 32 {
        return lanes[lane];
    }
    merge(folded(lanes, lane, 2 * mask, merge), folded(lanes, lane ^ mask, 2 * mask, merge))
}

struct Steps {
    threads: usize,
    words: Vec<u32>,
}

impl Steps {
    fn step(&mut self, of_thread: impl Fn(usize) -> u32) {
        self.words.extend((0..self.threads).map(of_thread));
    }

    fn floats(&mut self, of_thread: impl Fn(usize) -> f32) {
        self.step(|t| bits(of_thread(t)));
    }

    fn wide(&mut self, of_thread: impl Fn(usize) -> f64) {
        self.step(|t| wide_bits(of_thread(t)) as u32);
        self.step(|t| (wide_bits(of_thread(t)) >> 32) as u32);
    }
}

fn memory(s: &mut Steps, words: &[u32]) {
    let n = s.threads;
    let byte = |i: usize| words[i / 4] >> (8 * (i % 4)) & 0xff;
    let of_u64 = |t: usize| {
        let even = 0x0123_4567_89ab_cdef_u64.wrapping_mul(t as u64 / 2 * 2 + 1);
        (even >> (32 * (t % 2))) as u32
    };
    let added = |residue: usize, modulus: usize, slope: usize| {
        (residue..n).step_by(modulus).map(|t| (slope * t + 1) as u32).sum()
    };
    // Shared memory.
    s.step(|t| (3 * (n - 1 - t) + 1) as u32);
    s.step(of_u64);
    s.step(|t| of_u64(t) >> 16);
    s.step(|t| of_u64((n + t) / 4) >> (8 * (t % 4)) & 0xff);
    s.step(|t| added(t % 7, 7, 1));
    s.step(|t| ((t ^ 1) * (t ^ 1)) as u32);
    s.step(|t| (t % 7..n).step_by(7).count() as u32);
    s.step(|t| if t % 2 == 0 { 11 } else { 22 });
    s.step(|t| {
        (0..5).fold(0, |sum: u32, turn| {
            let terms = [1u32, 3, 5, 7].iter().zip(&words[4 * (5 + turn + t % (100 - turn))..]);
            terms.fold(sum.wrapping_mul(31), |sum, (factor, word)| {
                sum.wrapping_add(factor.wrapping_mul(*word))
            })
        })
    });
    // Device memory.
    let vector = |t: usize| &words[4 * (n - 1 - t)..][..4];
    s.step(|t| vector(t)[0] ^ vector(t)[3]);
    s.step(|t| byte(2 * t + 2) | byte(2 * t + 3) << 8);
    s.step(|t| byte(t + 3));
    s.step(|t| words[2 * t] >> 16 | words[2 * t + 1] << 16);
    s.step(|t| match (4 * t + 7) % (4 * n) {
        at if at % 4 == 3 => vector(at / 4)[1],
        at => (at / 4 + at % 4) as u32,
    });
    let streamed = |at: usize| (5 * (at / 4) + at % 4) as u32;
    s.step(|t| streamed((4 * t + 7) % (4 * n)));
    s.step(|t| added(t % 5, 5, 2));
}

fn collectives(s: &mut Steps, words: &[u32]) {
    let of_warp = |t: usize| &words[t / 32 * 32..][..32];
    s.step(|t| folded(of_warp(t), t % 32, 1, |a, b| a.wrapping_mul(31).wrapping_add(b)));
    let term = |t: usize| f64::from(words[t] as i32) * 2f64.powi((t % 32 % 21) as i32 * 3 - 40);
    let terms: Vec<f64> = (0..s.threads).map(term).collect();
    s.wide(|t| folded(&terms[t / 32 * 32..], t % 32, 1, |a, b| a + b));
    s.step(|t| of_warp(t)[..t % 32].iter().fold(0, |sum: u32, &word| sum.wrapping_add(word)));
    s.step(|t| of_warp(t).iter().fold(0, |sum: u32, &word| sum.wrapping_add(word)));
    s.step(|t| *of_warp(t).iter().max().unwrap());
    s.step(|t| *of_warp(t).iter().min().unwrap());
    s.step(|t| of_warp(t).iter().rev().fold(0, |votes, word| votes << 1 | word & 1));
    s.step(|t| words[t ^ 5]);
}

/// Where the element of a lane stands in a product of 16 x 16 and 16 x 8 is said in `kernels/simt.cuh`.
fn products(s: &mut Steps) {
    let left = |row: usize, k: usize| ((7 * row + 3 * k) % 13) as f32 - 6.0;
    let right = |k: usize, column: usize| ((5 * k + 11 * column) % 17) as f32 - 8.0;
    for i in [0, 1, 2, 3, 0, 1, 2, 3] {
        s.floats(|t| {
            let (row, column) = (t % 32 / 4 + i / 2 * 8, t % 4 * 2 + i % 2);
            let before = if i == 0 { t as f32 } else { i as f32 };
            (0..16).fold(before, |sum, k| sum + left(row, k) * right(k, column))
        });
    }
}

fn arithmetic(s: &mut Steps, words: &[u32]) {
    let a = |t: usize| f32::from_bits(words[t]);
    let b = |t: usize| f32::from_bits(words[(7 * t + 3) % 128]);
    let c = |t: usize| f32::from_bits(words[(13 * t + 5) % 128]);
    s.floats(|t| a(t) + b(t));
    s.floats(|t| a(t) - b(t));
    s.floats(|t| a(t) * b(t));
    s.floats(|t| a(t) / b(t));
    s.floats(|t| a(t).mul_add(b(t), c(t)));
    let down = |t: usize| fused_down(a(t), b(t), c(t));
    s.floats(down);
    s.floats(|t| if down(t) > 0.0 { down(t).min(1.0) } else { 0.0 });
    s.floats(|t| if a(t).is_nan() || b(t).is_nan() { f32::NAN } else { larger(a(t), b(t)) });
    s.floats(|t| larger(a(t), b(t)));
    s.floats(|t| -larger(-a(t), -b(t)));
    let all_bits = |value: f32, low: u32| f64::from_bits(wide_bits(f64::from(value)) ^ u64::from(low >> 4));
    let x = |t: usize| all_bits(a(t), words[128 + t]);
    let y = |t: usize| all_bits(b(t), words[256 + t]);
    s.wide(|t| x(t) + y(t));
    s.wide(|t| x(t) - y(t));
    s.wide(|t| x(t) * y(t));
    s.wide(|t| x(t) / y(t));
    s.wide(|t| x(t).mul_add(y(t), f64::from(c(t))));
    s.wide(|t| if x(t) < 0.0 { -x(t) } else { x(t) }.sqrt());
    s.step(|t| (words[t] >> (t % 33 % 32)).leading_zeros());
    s.step(|t| words[t].count_ones());
    s.step(|t| words[t] & 0xffff | words[128 + t] << 16);
    s.step(|t| words[t] >> 16 | words[128 + t] & 0xffff_0000);
    let bfloat = |word: u32| {
        let rounded = bf16::from_f32(f32::from_bits(word));
        if rounded.is_nan() { 0x7fc0 } else { u32::from(rounded.to_bits()) }
    };
    s.step(|t| bfloat(words[t]) | bfloat((words[t] & 0xffff_0000) + 0x8000) << 16);
    // Any bits as two floats of 16. A value that had 16 bits has them again.
    let pair = |t: usize, take: fn(f32, f32) -> f32, of: fn(u32) -> f32, back: fn(f32) -> u32| {
        let (x, y) = (words[t], words[(7 * t + 3) % 128]);
        back(take(of(x & 0xffff), of(y & 0xffff))) | back(take(of(x >> 16), of(y >> 16))) << 16
    };
    let half = |value: f32| if value.is_nan() { 0x7e00 } else { u32::from(f16::from_f32(value).to_bits()) };
    let top = |x: f32, y: f32| if x.is_nan() || y.is_nan() { f32::NAN } else { larger(x, y) };
    let least = |x: f32, y: f32| -larger(-x, -y);
    for take in [top, least] {
        s.step(|t| pair(t, take, |h| f16::from_bits(h as u16).to_f32(), half));
        let back = |value: f32| if value.is_nan() { 0x7fc0 } else { bits(value) >> 16 };
        s.step(|t| pair(t, take, |b| f32::from_bits(b << 16), back));
    }
    // The exponential of the hardware is within 2^-22.
    s.step(|t| u32::from(a(t).is_nan()));
}

/// Every half as a float, and the floats around it as halves.
fn halves() -> Vec<u32> {
    let all = (0..=u16::MAX).flat_map(|h| {
        let value = f16::from_bits(h).to_f32();
        let half = |further: u32| {
            let rounded = f16::from_f32(f32::from_bits(value.to_bits() + further));
            if value.is_nan() || rounded.is_nan() { 0x7e00 } else { u32::from(rounded.to_bits()) }
        };
        [bits(value), half(0) | half(0xfff) << 16, half(0x1000) | half(0x1001) << 16]
    });
    all.collect()
}

fn of_block(grid: usize) -> Vec<u32> {
    let words = input();
    let mut s = Steps { threads: 128, words: Vec::new() };
    for cta in 0..grid {
        for id in [|t| t, |_| 128, |t| t % 32, |t| t / 32] as [fn(usize) -> usize; 4] {
            s.step(|t| id(t) as u32);
        }
        s.step(|_| cta as u32);
        s.step(|_| grid as u32);
        memory(&mut s, &words);
        collectives(&mut s, &words);
        products(&mut s);
        arithmetic(&mut s, &words);
    }
    s.words.extend(halves());
    // What the last CTA found.
    s.words.extend(std::iter::once(0).chain((0..grid).map(|cta| 10 * cta as u32 + 3)));
    s.words
}

fn of_cluster(grid: usize) -> Vec<u32> {
    let mut s = Steps { threads: 64, words: Vec::new() };
    for cta in 0..grid {
        let other = cta ^ 1;
        s.step(|_| cta as u32 % 2);
        s.step(|t| (100 * other + 63 - t) as u32);
        s.step(|t| (100 * cta + t) as u32);
        s.step(|t| (1000 * other + 3 * t) as u32);
    }
    s.words
}

/// The word of a thread after this many turns between two CTAs.
fn passed_on(cta: usize, t: usize, turns: u32) -> u32 {
    match turns {
        0 => (10 * cta + t) as u32,
        _ => 3 * passed_on(cta, t, turns - 1) + passed_on(cta ^ 1, (t + 1) % 64, turns - 1),
    }
}

fn of_split(grid: usize) -> Vec<u32> {
    let mut s = Steps { threads: 64, words: Vec::new() };
    for (cta, turns) in (0..grid).flat_map(|cta| [1, 2, 3].map(|turns| (cta, turns))) {
        s.step(|t| passed_on(cta, t, turns));
    }
    s.words
}

#[test]
fn wrappers_do_on_every_machine_what_their_names_say() {
    let test = "wrappers_do_on_every_machine_what_their_names_say";
    for (seed, shadow) in [(1, false), (2, true), (3, true)] {
        let arch = Arch::named("sm_90").unwrap();
        let mut options = SimtOptions::of(arch);
        (options.seed, options.shadow) = (seed, shadow);
        let Some(engine) = engine_of(test, options) else {
            return;
        };
        let mut run = 0;
        for variant in Variant::of(Family::Wrappers, DType::F32) {
            let (grid, ctas, expected) = match variant.scope() {
                Scope::Cluster if !engine.arch().clusters => {
                    eprintln!("skipped {variant} of {test}: no clusters on {}", engine.arch().name);
                    continue;
                }
                Scope::Cluster => (4, 2, of_cluster(4)),
                Scope::Split => (4, 2, of_split(4)),
                _ => (2, 1, of_block(2)),
            };
            let words = engine.run_wrappers(variant, grid, ctas, &input(), expected.len()).unwrap();
            let differs = words.iter().zip(&expected).position(|(word, expected)| word != expected);
            let difference =
                differs.map(|i| format!("word {i} is {:#010x}, not {:#010x}", words[i], expected[i]));
            assert_eq!(difference, None, "{variant}, seed {seed}");
            run += 1;
        }
        assert!(run >= 2, "variants.def has {run} wrappers kernels");
    }
}
