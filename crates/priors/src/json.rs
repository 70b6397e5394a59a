//! Reading diffusers' configuration files: leniently, but nothing that changes the arithmetic is
//! passed over in silence.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Error;

/// A value for a message; what is in a file may be long.
pub(crate) fn short(value: &Value) -> String {
    value.to_string().chars().take(100).collect()
}

/// Parses JSON text; `origin` names it in errors.
pub(crate) fn parse(text: &[u8], origin: &Path) -> Result<Value, Error> {
    serde_json::from_slice(text).map_err(|why| {
        Error::input(
            origin,
            format!("is not JSON ({why}); download or copy it again"),
        )
    })
}

/// Turns a JSON value into a configuration.
pub(crate) fn config<T: DeserializeOwned>(value: &Value, origin: &Path) -> Result<T, Error> {
    serde_json::from_value(value.clone()).map_err(|why| {
        Error::input(
            origin,
            format!("does not describe such a model ({why}); check which file this is"),
        )
    })
}

/// Refuses a configuration whose `key` is present and not one of `allowed`.
pub(crate) fn only(
    value: &Value,
    origin: &Path,
    key: &str,
    allowed: &[Value],
) -> Result<(), Error> {
    match value.get(key) {
        None => Ok(()),
        Some(got) if allowed.contains(got) => Ok(()),
        Some(got) => {
            let allowed = allowed
                .iter()
                .map(Value::to_string)
                .collect::<Vec<_>>()
                .join(" or ");
            let got = short(got);
            let what =
                format!("\"{key}\": {got} is not supported, only {allowed}; use another model");
            Err(Error::unsupported(origin, what))
        }
    }
}

/// Refuses a norm's epsilon that makes no norm: real ones are 1e-6 and 1e-5.
pub(crate) fn epsilon(eps: f64, key: &str, origin: &Path) -> Result<(), Error> {
    within(eps, 1e-12..=1e-2, key, origin)
}

/// Refuses a number outside a range.
pub(crate) fn within(
    value: f64,
    range: std::ops::RangeInclusive<f64>,
    key: &str,
    origin: &Path,
) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = range.into_inner();
    let what = format!(
        "\"{key}\": {value:e} must be from {least:e} to {most:e}; take config.json from the model's own folder"
    );
    Err(Error::input(origin, what))
}

/// Refuses sizes that no known transformer has, before any of them is allocated or walked: 0, widths above 65,536, more than
/// 1,000 blocks.
pub(crate) fn sizes(sizes: &[usize], blocks: usize, origin: &Path) -> Result<(), Error> {
    if sizes.iter().any(|size| !(1..=1 << 16).contains(size)) || !(1..=1000).contains(&blocks) {
        let what = "a size is 0 or beyond any known transformer; take config.json from the model's own folder";
        return Err(Error::input(origin, what));
    }
    Ok(())
}
