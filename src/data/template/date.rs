//! The date that templates may ask for. It is the same on every day, so that a run repeats; `SOURCE_DATE_EPOCH` sets another.
use chrono::{
    DateTime, Utc,
    format::{Item, StrftimeItems},
};
use minijinja::{Error, ErrorKind};

/// 26 July 2024, the date that Llama 3's templates fall back to, in seconds since 1970.
const DEFAULT: i64 = 1_721_952_000;

/// The date that templates are told, UTC.
pub(super) fn now() -> Result<DateTime<Utc>, String> {
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("SOURCE_DATE_EPOCH is `{text}`: seconds since 1970 were expected"))?,
        Err(_) => DEFAULT,
    };
    DateTime::from_timestamp(seconds, 0).ok_or_else(|| format!("SOURCE_DATE_EPOCH {seconds} is no date"))
}

/// Python's `datetime.now().strftime(format)`.
pub(super) fn strftime(format: &str) -> Result<String, Error> {
    let invalid = |text: String| Error::new(ErrorKind::InvalidOperation, text);
    let items: Vec<Item> = StrftimeItems::new(format).collect();
    if format.len() > 256 || items.contains(&Item::Error) {
        return Err(invalid(format!("strftime_now: the format {format:?} is not known")));
    }
    Ok(now().map_err(invalid)?.format_with_items(items.iter()).to_string())
}
