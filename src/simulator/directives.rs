//! What one request asks of the simulator: length, pace and faults.

use std::str::FromStr;
use std::time::Duration;

use super::Fault;

/// The most tokens one request may ask for, over all its choices: an answer that does not stream is
/// built in memory.
pub(super) const MAX_TOKENS: u32 = 1_000_000;

/// The directives of one request. `None` means that the request leaves it to the options.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Directives {
    pub(super) tokens: Option<u32>,
    /// Tokens per second; 0 for as fast as possible.
    pub(super) rate: Option<f64>,
    pub(super) ttft: Option<Duration>,
    /// Tokens per chunk.
    pub(super) burst: Option<u32>,
    pub(super) fault: Option<Fault>,
    pub(super) extra: Option<bool>,
    /// Whether the model's name is another's alias.
    pub(super) alias: Option<bool>,
}

impl Directives {
    /// Reads `key=value,key=value`. Nothing at all is no directive.
    ///
    /// # Errors
    ///
    /// A sentence for the client, which names the directive it stumbled over and what is allowed.
    pub(super) fn parse(list: &str) -> Result<Self, String> {
        let mut directives = Self::default();
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            directives.set(key.trim(), value.trim())?;
        }
        Ok(directives)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "tokens" => {
                let allowed = "a whole number from 0 to 1000000";
                self.tokens = Some(read(key, value, allowed, |tokens| *tokens <= MAX_TOKENS)?);
            }
            "rate" => {
                let allowed = "tokens per second, 0 for as fast as possible";
                self.rate =
                    Some(read(key, value, allowed, |rate: &f64| rate.is_finite() && *rate >= 0.0)?);
            }
            "ttft" => {
                let ms: u32 = read(key, value, "a whole number of milliseconds", |_| true)?;
                self.ttft = Some(Duration::from_millis(ms.into()));
            }
            "burst" => {
                let allowed = "a whole number of tokens from 1";
                self.burst = Some(read(key, value, allowed, |burst| *burst > 0)?);
            }
            "extra" => {
                self.extra = Some(read(key, value, "0 or 1", |extra: &u8| *extra <= 1)? == 1);
            }
            "alias" => {
                self.alias = Some(read(key, value, "0 or 1", |alias: &u8| *alias <= 1)? == 1);
            }
            "fault" => {
                self.fault = Some(value.parse().map_err(|error: super::Error| error.to_string())?);
            }
            _ => {
                return Err(format!(
                    "unknown directive `{key}`; allowed are tokens, rate, ttft, burst, fault, extra, alias"
                ));
            }
        }
        Ok(())
    }

    /// These directives, and those of `weaker` where these say nothing.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            tokens: self.tokens.or(weaker.tokens),
            rate: self.rate.or(weaker.rate),
            ttft: self.ttft.or(weaker.ttft),
            burst: self.burst.or(weaker.burst),
            fault: self.fault.or(weaker.fault),
            extra: self.extra.or(weaker.extra),
            alias: self.alias.or(weaker.alias),
        }
    }
}

fn read<T: FromStr>(
    key: &str,
    value: &str,
    allowed: &str,
    valid: impl Fn(&T) -> bool,
) -> Result<T, String> {
    let refusal = || format!("directive `{key}` is `{value}`, which is not {allowed}");
    value.parse().ok().filter(valid).ok_or_else(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stronger_directive_wins_key_by_key() {
        let header = Directives::parse("tokens=3, fault=drop:1*2").unwrap();
        let suffix = Directives::parse("tokens=9,rate=2.5,ttft=40,burst=2,extra=1").unwrap();
        let both = header.or(suffix);
        assert_eq!(both.tokens, Some(3));
        assert_eq!(both.fault.unwrap().to_string(), "drop:1*2");
        assert_eq!((both.rate, both.ttft), (Some(2.5), Some(Duration::from_millis(40))));
        assert_eq!((both.burst, both.extra), (Some(2), Some(true)));
        assert_eq!(Directives::parse("").unwrap(), Directives::default());
    }

    #[test]
    fn a_wrong_directive_is_named() {
        for (list, named) in [
            ("speed=3", "`speed`"),
            ("tokens=many", "`many`"),
            ("tokens=1000001", "1000000"),
            ("rate=-1", "`-1`"),
            ("rate=NaN", "`NaN`"),
            ("burst=0", "`burst`"),
            ("extra=2", "0 or 1"),
            ("alias=", "`alias`"),
            ("fault=rain", "`rain`"),
            ("ttft", "`ttft`"),
        ] {
            let message = Directives::parse(list).unwrap_err();
            assert!(message.contains(named), "{message}");
        }
    }
}
