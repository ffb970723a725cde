use critbeta::{cpu, Rescaling, Scores};
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (rows, n): (usize, usize) = (args[1].parse().unwrap(), args[2].parse().unwrap());
    let rule: Rescaling = args[3].parse().unwrap();
    let reps: usize = args[4].parse().unwrap();
    let mut x = 88172645463325252u64;
    let mut next = || { let mut s = 0.0f32; for _ in 0..4 { x ^= x << 13; x ^= x >> 7; x ^= x << 17; s += (x >> 40) as f32 / (1u64 << 24) as f32; } (s - 2.0) * 1.7 };
    let data: Vec<f32> = (0..rows * n).map(|_| next()).collect();
    let mut out = vec![0.0f32; rows * n];
    let pos = vec![n as u64 - 1; rows];
    let scores = Scores::dense(&data, rows, n).unwrap();
    let mut best = f64::MAX;
    let mut all = vec![];
    for _ in 0..reps {
        let t = Instant::now();
        cpu::softmax(&scores, &rule, &pos, &mut out).unwrap();
        let s = t.elapsed().as_secs_f64();
        all.push(s);
        best = best.min(s);
    }
    all.sort_by(f64::total_cmp);
    let mut copies = vec![];
    for _ in 0..reps { let t = Instant::now(); out.copy_from_slice(std::hint::black_box(&data)); copies.push(t.elapsed().as_secs_f64()); std::hint::black_box(&mut out); }
    copies.sort_by(f64::total_cmp);
    println!("memcpy one thread ns per 16: best {:.2}", copies[0] * 1e9 / (rows * n / 16) as f64);
    println!("{rows}x{n} {rule}: best {:.3} ms median {:.3} ms  {:.1} GB/s, ns per 16: {:.2}", best * 1e3, all[reps / 2] * 1e3, 8e-9 * (rows * n) as f64 / best, best * 1e9 / (rows * n / 16) as f64);
}
