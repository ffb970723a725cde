//! `critbeta laws`.

use crate::args::Laws;
use crate::report::{keep_whole, table};
use critbeta::Rescaling;
use critbeta::laws::LAWS;
use critbeta::rescaling::{Law, RowFacts};

pub fn run(args: &Laws) -> anyhow::Result<()> {
    let mut about = table(["law", "factor on the logits", "varies by", "convention", "source"]);
    about.add_row(["identity", "1", "nothing", "the model as it is", ""]);
    about.add_row(["fixed:BETA", "beta", "nothing", "one number for every row", ""]);
    for law in &LAWS {
        about.add_row([law.name, law.formula, law.granularity, law.convention, law.source]);
    }
    about.add_row([
        "critical",
        "ratio * critical beta(resolve), within floor .. cap",
        "row, measured",
        "parameters ratio=1, resolve=0 (nats), floor=0, cap=inf",
        "this project",
    ]);
    about.add_row([
        "calibrated",
        "c (ln n)^xi; with anchor=N0: (ln n / ln N0)^xi",
        "head and row length",
        "calibrated:c=,xi= or calibrated:FILE of `diagnose --calibration`",
        "this project",
    ]);
    let mut header = vec!["law, parameters as in its source".to_owned()];
    header.extend(args.n.iter().map(|n| format!("n = {n}")));
    let mut values = table(header);
    for entry in &LAWS {
        let rescaling = Rescaling::Law(Law::example(entry, 8192.0));
        let factor = |&n: &u64| {
            let facts = RowFacts::new(n, n - 1);
            if entry.needs_entropy { "by row".to_owned() } else { format!("{:.4}", rescaling.beta(&facts)) }
        };
        values.add_row(std::iter::once(rescaling.to_string()).chain(args.n.iter().map(factor)));
    }
    keep_whole(&mut about, 0..1);
    keep_whole(&mut values, 0..args.n.len() + 1);
    let note = "n = visible keys, i = position of the query from 0 (here n - 1), L = training length, ln \
                unless said.\nA factor below 0 is taken as 0. Theory fixes the order of beta in n, not its \
                constant; parameters are trained or chosen.\n";
    crate::print(|out| write!(out, "{about}\n{note}\n{values}\n"))?;
    Ok(())
}
