//! `critbeta families`.

use crate::args::{Cli, Families};
use crate::report::{keep_whole, table};
use crate::{json_output, print, write_json};
use anyhow::Result;
use critbeta_diagnose::Device;
use critbeta_diagnose::output::Output;
use critbeta_diagnose::selftest::{Check, check_on};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Report<'a> {
    families: &'a [Check],
}

/// Returns whether every family measures as it should.
pub fn run(args: &Families, cli: &Cli) -> Result<bool> {
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    let device = Device::open(cli.device)?;
    let out = args.json.as_deref().filter(|_| !to_stdout).map(Output::create).transpose()?;
    let bar = crate::progress(cli, 0, "families");
    let checks = check_on(&device, cli.seed, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let report = Report { families: &checks };
    if let Some(out) = out {
        json_output(out, &report)?.commit()?;
    }
    let failed = failures(&checks);
    if to_stdout {
        print(|out| write_json(out, &report))?;
    } else {
        let mut rows = table(["family", "expected", "measured", "tolerance", "", "what"]);
        for Check { name, expected, measured, tolerance, pass, what } in &checks {
            let [expected, measured] = [expected, measured].map(|v| format!("{v:.5}"));
            let pass = if *pass { "ok" } else { "OFF" };
            rows.add_row([name, &expected, &measured, &format!("{tolerance:.1e}"), pass, what]);
        }
        keep_whole(&mut rows, 0..5);
        print(|out| writeln!(out, "{rows}"))?;
    }
    if failed > 0 {
        eprintln!("error: {failed} of {} families are off", checks.len());
    }
    Ok(failed == 0)
}

fn failures(checks: &[Check]) -> usize {
    checks.iter().filter(|check| !check.pass).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_family_that_is_off_fails_them_all() {
        let check = |pass| Check {
            name: "a".into(),
            expected: 1.0,
            measured: 2.0,
            tolerance: 0.1,
            pass,
            what: String::new(),
        };
        assert_eq!(failures(&[check(true), check(false), check(true)]), 1);
        assert_eq!(failures(&[check(true)]), 0);
    }
}
