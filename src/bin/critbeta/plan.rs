//! `critbeta plan`.

use crate::args::{Cli, Plan as Args};
use critbeta::Device;
use critbeta::cuda::{Arch, Family, Plan, Problem};

pub fn run(args: &Args, cli: &Cli) -> anyhow::Result<()> {
    let arch = match &args.arch {
        Some(name) => Arch::named(name)?,
        None => match crate::device(cli)? {
            Device::Cuda(engine) => engine.arch().clone(),
            Device::Cpu => Arch::named("sm_90")?,
        },
    };
    let family = if args.profile { Family::GapProfile } else { Family::CriticalSoftmax };
    let problem = Problem { rows: args.rows, cols: args.len, dtype: args.dtype, family };
    let plan = Plan::choose(&problem, &arch)?;
    crate::print(|out| writeln!(out, "{plan}"))?;
    Ok(())
}
