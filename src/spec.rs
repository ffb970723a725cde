//! The text form of rescalings, for command lines and files: `name` or `name:key=value,...`.
//!
//! A printed text parses to the same value. The first parameter is always printed, and the others if they
//! differ from their default.

use crate::laws::{LAWS, LawEntry};
use crate::rescaling::{Calibrated, Critical, Law, Rescaling};
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The `key=value` list of one spec. Keys are taken out one by one.
pub(crate) struct Parameters<'a> {
    spec: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Parameters<'a> {
    pub(crate) fn parse(spec: &'a str, text: &'a str) -> Result<Self> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for item in text.split(',').filter(|_| !text.is_empty()) {
            let Some((key, value)) = item.split_once('=') else {
                return Err(Error::spec(spec, format!("expected key=value, found {item:?}")));
            };
            if pairs.iter().any(|&(seen, _)| seen == key) {
                return Err(Error::spec(spec, format!("{key:?} is given twice")));
            }
            pairs.push((key, value));
        }
        Ok(Parameters { spec, pairs })
    }

    pub(crate) fn take_text(&mut self, key: &str) -> Option<&'a str> {
        let at = self.pairs.iter().position(|&(k, _)| k == key)?;
        Some(self.pairs.remove(at).1)
    }

    pub(crate) fn take(&mut self, key: &str) -> Result<Option<f64>> {
        let spec = self.spec;
        self.take_text(key).map(|text| number(spec, key, text)).transpose()
    }

    /// Refuses the keys that are left.
    pub(crate) fn finish(self, known: &str) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => {
                Err(Error::spec(self.spec, format!("unknown parameter {key:?}; expected {known}")))
            }
        }
    }
}

fn number(spec: &str, key: &str, text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if !value.is_nan() => Ok(value),
        _ => Err(Error::spec(spec, format!("{key} must be a number, found {text:?}"))),
    }
}

fn checked(spec: &str, key: &str, value: f64, wanted: &str, ok: bool) -> Result<f64> {
    if ok { Ok(value) } else { Err(Error::spec(spec, format!("{key} must be {wanted}, found {value}"))) }
}

fn finite(spec: &str, key: &str, value: f64) -> Result<f64> {
    checked(spec, key, value, "finite", value.is_finite())
}

fn not_negative(spec: &str, key: &str, value: f64) -> Result<f64> {
    checked(spec, key, value, "finite and at least 0", value.is_finite() && value >= 0.0)
}

pub(crate) fn length(spec: &str, key: &str, value: f64) -> Result<f64> {
    checked(spec, key, value, "a finite length above 1", value.is_finite() && value > 1.0)
}

impl FromStr for Rescaling {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self> {
        let (name, text) = spec.split_once(':').unwrap_or((spec, ""));
        if name == "fixed" {
            return Ok(Rescaling::Fixed(not_negative(spec, "beta", number(spec, "beta", text)?)?));
        }
        let mut given = Parameters::parse(spec, text)?;
        match name {
            "identity" => {
                given.finish("none")?;
                Ok(Rescaling::Identity)
            }
            "critical" => critical(given),
            "calibrated" => {
                let mut required = |key| {
                    given
                        .take(key)?
                        .ok_or_else(|| Error::spec(spec, format!("{key} is missing: expected c=,xi=")))
                };
                let c = not_negative(spec, "c", required("c")?)?;
                let xi = finite(spec, "xi", required("xi")?)?;
                let anchor = given.take("anchor")?.map(|n| length(spec, "anchor", n)).transpose()?;
                given.finish("c, xi, anchor")?;
                Ok(Rescaling::Calibrated(Calibrated { c, xi, anchor }))
            }
            _ => match LawEntry::named(name) {
                Some(entry) => law(given, entry),
                None => Err(Error::spec(spec, format!("unknown name {name:?}; expected {}", names()))),
            },
        }
    }
}

fn names() -> String {
    let laws = LAWS.iter().map(|law| law.name);
    ["identity", "fixed", "critical", "calibrated"].into_iter().chain(laws).collect::<Vec<_>>().join(", ")
}

fn critical(mut given: Parameters) -> Result<Rescaling> {
    let spec = given.spec;
    let default = Critical::default();
    let ratio = not_negative(spec, "ratio", given.take("ratio")?.unwrap_or(default.ratio))?;
    let resolve = not_negative(spec, "resolve", given.take("resolve")?.unwrap_or(default.resolve))?;
    let floor = not_negative(spec, "floor", given.take("floor")?.unwrap_or(default.floor))?;
    let cap = given.take("cap")?.unwrap_or(default.cap);
    checked(spec, "cap", cap, "at least the floor", cap >= floor)?;
    given.finish("ratio, resolve, floor, cap")?;
    Ok(Rescaling::Critical(Critical { ratio, resolve, floor, cap }))
}

fn law(mut given: Parameters, entry: &'static LawEntry) -> Result<Rescaling> {
    let spec = given.spec;
    let mut values = Vec::new();
    for parameter in entry.parameters {
        let key = parameter.name;
        let value = given.take(key)?.or(parameter.default).ok_or_else(|| {
            Error::spec(spec, format!("{key} is missing, for example {key}={}", parameter.example))
        })?;
        // The error here names the whole spec. `Law::new` makes the same checks for values that come without
        // a text.
        values.push(if parameter.is_length { length(spec, key, value)? } else { finite(spec, key, value)? });
    }
    let known: Vec<&str> = entry.parameters.iter().map(|p| p.name).collect();
    given.finish(if known.is_empty() { "none".into() } else { known.join(", ") }.as_str())?;
    Ok(Rescaling::Law(Law::new(entry, values)?))
}

/// Prints `name:`, then the first parameter, and then the others that are not at their default.
fn print<'a>(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    parameters: impl IntoIterator<Item = (&'a str, f64, Option<f64>)>,
) -> fmt::Result {
    f.write_str(name)?;
    let mut separator = ':';
    for (i, (key, value, default)) in parameters.into_iter().enumerate() {
        if i == 0 || default != Some(value) {
            write!(f, "{separator}{key}={}", Number(value))?;
            separator = ',';
        }
    }
    Ok(())
}

/// Prints a number in the shortest form that parses back.
pub(crate) struct Number(pub f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size == 0.0 || size.is_infinite() || (1e-5..1e16).contains(&size) {
            write!(f, "{}", self.0)
        } else {
            write!(f, "{:e}", self.0)
        }
    }
}

impl fmt::Display for Rescaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rescaling::Identity => f.write_str("identity"),
            Rescaling::Fixed(beta) => write!(f, "fixed:{}", Number(*beta)),
            Rescaling::Law(law) => {
                let pairs = law.entry().parameters.iter().zip(law.values());
                print(f, law.entry().name, pairs.map(|(p, &value)| (p.name, value, p.default)))
            }
            Rescaling::Critical(c) => {
                let d = Critical::default();
                let all = [
                    ("ratio", c.ratio, d.ratio),
                    ("resolve", c.resolve, d.resolve),
                    ("floor", c.floor, d.floor),
                    ("cap", c.cap, d.cap),
                ];
                print(f, "critical", all.map(|(key, value, default)| (key, value, Some(default))))
            }
            Rescaling::Calibrated(Calibrated { c, xi, anchor }) => {
                let anchor = anchor.map(|n| ("anchor", n, None));
                print(f, "calibrated", [("c", *c, None), ("xi", *xi, None)].into_iter().chain(anchor))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_texts_print_as_they_were_written() {
        for text in [
            "identity",
            "fixed:1.3",
            "fixed:0",
            "chen:gamma=1e-300",
            "rem:c=-0.5",
            "ssmax:s=0.43",
            "ssmax:s=0.43,b=-2",
            "su:base=512",
            "qwen-logn:train=8192",
            "grok2:train=8192",
            "yarn:scale=4",
            "llama4:scale=0.1",
            "llama4:scale=0.1,floor=4096",
            "mistral3:train=8192,b=0.2",
            "velickovic",
            "asentmax:delta=1,b=2,g=0.5",
            "critical:ratio=1",
            "critical:ratio=1,resolve=0.69,floor=0.5,cap=8",
            "calibrated:c=1.5,xi=0.61",
            "calibrated:c=1.5,xi=0.61,anchor=8192",
        ] {
            assert_eq!(text.parse::<Rescaling>().unwrap().to_string(), text);
        }
        assert_eq!("su".parse::<Rescaling>().unwrap().to_string(), "su:base=512");
        assert_eq!("critical:cap=8".parse::<Rescaling>().unwrap().to_string(), "critical:ratio=1,cap=8");
        assert_eq!("critical:cap=inf".parse::<Rescaling>().unwrap().to_string(), "critical:ratio=1");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, message) in [
            ("", "unknown name"),
            ("logn", "expected identity, fixed"),
            ("identity:x=1", "unknown parameter \"x\"; expected none"),
            ("fixed", "beta must be a number"),
            ("fixed:-1", "at least 0"),
            ("fixed:inf", "finite"),
            ("fixed:nan", "beta must be a number"),
            ("ssmax", "s is missing, for example s=0.43"),
            ("ssmax:s=0.43,s=1", "given twice"),
            ("ssmax:s=0.43,q=1", "unknown parameter \"q\"; expected s, b"),
            ("ssmax:0.43", "expected key=value"),
            ("ssmax:s=,b=1", "s must be a number"),
            ("ssmax:s=1,", "expected key=value"),
            ("qwen-logn:train=1", "above 1"),
            ("su:base=inf", "above 1"),
            ("critical:floor=2,cap=1", "cap must be at least the floor"),
            ("critical:ratio=-1", "ratio must be"),
            ("critical:resolve=inf", "resolve must be"),
            ("calibrated:c=1", "xi is missing"),
            ("calibrated:c=-1,xi=1", "c must be"),
        ] {
            let error = text.parse::<Rescaling>().unwrap_err().to_string();
            assert!(error.contains(message) && error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }
}
