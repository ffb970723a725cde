//! The text form of what a user writes: a rescaling, or the name of a calibration file with a rule for each
//! head.
//!
//! `calibrated:FILE` names the file. A name may have JSON quotes. It needs them only if it begins with a
//! quote, looks like a law (`c=1`, without a folder), or ends like a parameter (`,anchor=`).

use crate::spec::{Number, Parameters, length};
use crate::{Error, Rescaling, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The measured quantity that a calibration follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CalibratedOn {
    /// Lambda.
    #[default]
    Critical,
    /// Lambda(r), at the r of the diagnosis that wrote the file.
    Resolved,
}

impl CalibratedOn {
    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            CalibratedOn::Critical => "critical",
            CalibratedOn::Resolved => "resolved",
        }
    }
}

/// A rescaling as a user writes it.
#[derive(Debug, Clone, PartialEq)]
pub enum RescalingSpec {
    /// One rule for every head.
    Uniform(Rescaling),
    /// `calibrated:FILE`: c and xi per layer and head, as `diagnose --calibration` writes them.
    PerHead {
        /// The calibration file.
        file: PathBuf,
        /// Which fits of the file to use.
        of: CalibratedOn,
        /// The anchor length N0; see [`Calibrated::anchor`](crate::rescaling::Calibrated::anchor).
        anchor: Option<f64>,
    },
}

impl FromStr for RescalingSpec {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self> {
        let Some(text) = spec.strip_prefix("calibrated:") else {
            return Ok(RescalingSpec::Uniform(spec.parse()?));
        };
        let (file, rest) = if text.starts_with('"') {
            let mut names = serde_json::Deserializer::from_str(text).into_iter::<String>();
            let file = names.next().transpose().ok().flatten();
            let file = file.ok_or_else(|| Error::spec(spec, "the quoted file name is not a JSON string"))?;
            (file, &text[names.byte_offset()..])
        } else {
            let file = without_options(text);
            if is_law(file) {
                return Ok(RescalingSpec::Uniform(spec.parse()?));
            }
            (file.to_owned(), &text[file.len()..])
        };
        if file.is_empty() {
            return Err(Error::spec(spec, "expected calibrated:FILE or calibrated:c=,xi="));
        }
        let rest = match rest.strip_prefix(',') {
            None if !rest.is_empty() => {
                return Err(Error::spec(spec, "expected a comma after the file name"));
            }
            rest => rest.unwrap_or(""),
        };
        let mut given = Parameters::parse(spec, rest)?;
        let anchor = given.take("anchor")?.map(|n| length(spec, "anchor", n)).transpose()?;
        let of = match given.take_text("of") {
            None => CalibratedOn::default(),
            Some(name) => [CalibratedOn::Critical, CalibratedOn::Resolved]
                .into_iter()
                .find(|of| of.name() == name)
                .ok_or_else(|| {
                    Error::spec(spec, format!("of must be critical or resolved, found {name:?}"))
                })?,
        };
        given.finish("anchor, of")?;
        Ok(RescalingSpec::PerHead { file: PathBuf::from(file), of, anchor })
    }
}

/// Whether the text behind `calibrated:` is a law, `c=1.5,xi=0.61`, and not a path such as
/// `runs/c=1,seed=3/cal.json`.
fn is_law(text: &str) -> bool {
    let is_path = text.contains(['/', '\\']) || text.ends_with(".json");
    let key = text.split_once('=').map(|(key, _)| key.trim());
    !is_path && key.is_some_and(|key| ["c", "xi", "anchor"].contains(&key))
}

/// The path without the parameters behind it. It may hold commas itself.
fn without_options(text: &str) -> &str {
    let is_option =
        |last: &str| (last.starts_with("anchor=") || last.starts_with("of=")) && !last.contains(['/', '\\']);
    match text.rsplit_once(',') {
        Some((path, last)) if is_option(last) => without_options(path),
        _ => text,
    }
}

impl fmt::Display for RescalingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, of, anchor) = match self {
            RescalingSpec::Uniform(rescaling) => return rescaling.fmt(f),
            RescalingSpec::PerHead { file, of, anchor } => (file.to_string_lossy(), of, anchor),
        };
        let plain = !file.contains([',', '=', '"']) && !file.contains(char::is_control);
        if plain {
            write!(f, "calibrated:{file}")?;
        } else {
            write!(f, "calibrated:{}", serde_json::Value::from(file.as_ref()))?;
        }
        if let Some(length) = anchor {
            write!(f, ",anchor={}", Number(*length))?;
        }
        match of {
            CalibratedOn::Critical => Ok(()),
            CalibratedOn::Resolved => write!(f, ",of={}", of.name()),
        }
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}
serde_as_text!(Rescaling);
serde_as_text!(RescalingSpec);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_texts_print_as_they_were_written_and_pass_through_json() {
        for text in [
            "ssmax:s=0.43",
            "calibrated:c=1.5,xi=0.61,anchor=8192",
            "calibrated:cal.json",
            "calibrated:a dir/cal.json,anchor=8192,of=resolved",
            r#"calibrated:"c=1,x=\"2\"",anchor=8192"#,
        ] {
            let spec: RescalingSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<RescalingSpec>(&json).unwrap(), spec);
        }
    }

    #[test]
    fn paths_may_hold_equals_signs_and_commas() {
        for path in [
            "runs/lr=0.1,seed=3/cal.json",
            "c=1,xi=2/cal.json",
            "c=1.json",
            r"C:\runs\c=1,b=2",
            "a,b",
            "lr=0.1,seed=3",
            "./of=1,x/cal",
            "runs/lr=0.1,anchor=4096/cal.json",
        ] {
            for (given, anchor) in
                [("", None), (",anchor=8192", Some(8192.0)), (",anchor=8192,of=critical", Some(8192.0))]
            {
                let text = format!("calibrated:{path}{given}");
                let spec: RescalingSpec = text.parse().unwrap();
                let wanted = RescalingSpec::PerHead { file: path.into(), of: CalibratedOn::Critical, anchor };
                assert_eq!(spec, wanted, "{text}");
                assert_eq!(spec.to_string().parse::<RescalingSpec>().unwrap(), wanted, "{text}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, message) in [
            ("calibrated:", "expected calibrated:FILE"),
            ("calibrated:f.json,of=both", "critical or resolved"),
            ("calibrated:f.json,anchor=0", "above 1"),
            (r#"calibrated:"f.json"#, "JSON string"),
            (r#"calibrated:"f.json"x"#, "comma"),
            (r#"calibrated:"""#, "expected calibrated:FILE"),
            ("calibrated:c=1", "xi is missing"),
        ] {
            let error = text.parse::<RescalingSpec>().unwrap_err().to_string();
            assert!(error.contains(message) && error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }
}
