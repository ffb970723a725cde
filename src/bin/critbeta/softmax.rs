//! `critbeta softmax`.

use crate::args::{Cli, Softmax};
use crate::report::figure;
use anyhow::Result;
use critbeta::diagnose::HeadRescalings;
use critbeta::input::{self, Selection};
use critbeta::output::{self, Output};
use critbeta::probabilities::Probabilities;

pub fn run(args: &Softmax, cli: &Cli) -> Result<()> {
    let input = input::open(&args.file, &Selection { tensor: args.tensor.as_deref(), scale: None })?;
    let rescalings = HeadRescalings::load(args.rescaling.clone())?;
    let plan = Probabilities::plan(&input, &rescalings, args.dtype, &args.out)?;
    output::distinct(&[&args.file, &args.out])?;
    let mut out = Output::create(&args.out)?;
    let bar = crate::progress(cli, input.rows(), "rows");
    let (mut betas, mut poisoned) = (Vec::new(), 0);
    plan.write(&mut out, |rows| {
        betas.extend(rows.iter().map(|row| row.beta));
        poisoned += rows.iter().filter(|row| row.top.poisoned).count();
        bar.inc(rows.len() as u64);
    })?;
    bar.finish_and_clear();
    out.commit()?;
    betas.sort_unstable_by(f64::total_cmp);
    let [low, middle, high] = [0, betas.len() / 2, betas.len() - 1].map(|i| figure(betas[i]));
    let poisoned = if poisoned > 0 { format!("; {poisoned} poisoned by NaN or +inf") } else { String::new() };
    let rows = betas.len();
    crate::print(&format!(
        "{}: {rows} rows; beta {low} .. {high}, median {middle}{poisoned}\n",
        args.out.display()
    ))?;
    Ok(())
}
