//! The address of an endpoint, and the key that its calls carry.

use async_openai::config::{Config, OpenAIConfig};
use reqwest::{
    Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue},
};

use super::{Error, OPENAI, Options};

/// Where the calls go: routes stand behind the address's path, and its query behind them.
#[derive(Debug)]
pub(super) struct Endpoint {
    inner: OpenAIConfig,
    has_key: bool,
    query: Vec<(String, String)>,
}

impl Endpoint {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let mut url = address(&options.base_url)?;
        let query = url.query_pairs().into_owned().collect();
        url.set_query(None);
        let base = url.as_str().trim_end_matches('/');
        let inner = OpenAIConfig::new().with_api_base(base).with_api_key(&options.api_key);
        Ok(Self { inner, has_key: !options.api_key.is_empty(), query })
    }
}

/// An endpoint's address, which may have blanks around it; [`OPENAI`] where there is none.
fn address(text: &str) -> Result<Url, Error> {
    let text = text.trim();
    let refused = || Error::Address(crate::mask::url(text));
    let url = Url::parse(if text.is_empty() { OPENAI } else { text }).map_err(|_| refused())?;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    if is_web && url.fragment().is_none() { Ok(url) } else { Err(refused()) }
}

/// Whether an address can be called.
pub(crate) fn is_address(text: &str) -> bool {
    address(text).is_ok()
}

impl Config for Endpoint {
    fn headers(&self) -> HeaderMap {
        let mut headers = self.inner.headers();
        if !self.has_key {
            headers.remove(AUTHORIZATION);
        }
        // A compressed stream comes in blocks: tokens would wait for each other.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers
    }

    fn url(&self, path: &str) -> String {
        self.inner.url(path)
    }

    fn query(&self) -> Vec<(&str, &str)> {
        self.query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    fn api_base(&self) -> &str {
        self.inner.api_base()
    }

    fn api_key(&self) -> &secrecy::SecretString {
        self.inner.api_key()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blank behind the address became a part of the path, and a query stood in the middle of it.
    #[test]
    fn routes_stand_between_path_and_query() {
        for (base, url, query) in [
            (" http://h/v1/ \n", "http://h/v1/models", &[][..]),
            ("", "https://api.openai.com/v1/models", &[]),
            (
                "https://h/openai/deployments/d?api-version=2024-10-21&x=a%20b",
                "https://h/openai/deployments/d/models",
                &[("api-version", "2024-10-21"), ("x", "a b")],
            ),
        ] {
            let options = Options { base_url: base.to_owned(), ..Options::default() };
            let endpoint = Endpoint::new(&options).unwrap();
            assert_eq!((endpoint.url("/models").as_str(), &endpoint.query()[..]), (url, query));
            assert!(!endpoint.headers().contains_key(AUTHORIZATION), "an empty key was sent");
        }
        for text in
            ["h/v1", "ftp://h/v1", "http://", "http://h/v1#part", "http://h h/v1", "http:///v1"]
        {
            assert!(text == "http:///v1" || !is_address(text), "{text}");
        }
        let options = Options { api_key: "key".to_owned(), ..Options::default() };
        assert_eq!(Endpoint::new(&options).unwrap().headers()[AUTHORIZATION], "Bearer key");
    }
}
