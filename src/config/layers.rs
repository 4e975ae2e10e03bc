//! The layers, and how they become one configuration.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
};

use config::{FileFormat, Value as Setting, ValueKind};
use serde_json::Value;

use super::{Config, Error, Loaded, LogFormat, Origin, mask, nearest::nearest, ranges};

/// What a variable begins with.
const PREFIX: &str = "MILLSTREAM_";
/// Names the file.
const FILE_VARIABLE: &str = "MILLSTREAM_CONFIG";
/// The file that is read when none is named.
const FILE: &str = "config.toml";
/// Variables under names that other programs use too. An empty one counts as unset.
const PLAIN: [(&str, &str); 4] = [
    ("REDIS_URL", "redis.url"),
    ("OPENAI_BASE_URL", "upstream.base_url"),
    ("OPENAI_API_KEY", "upstream.api_key"),
    ("RUST_LOG", "log.filter"),
];
/// Keys that hold an address to listen on.
const ADDRESSES: [&str; 2] = ["gateway.listen", "simulator.listen"];

/// A value that a flag sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag, as it was written.
    pub name: String,
    /// The key.
    pub key: String,
    /// The value as text; a list is separated by commas.
    pub value: String,
}

impl Flag {
    /// A value that the flag `name` sets.
    pub fn new(name: &str, key: &str, value: impl Into<String>) -> Self {
        Self { name: name.to_owned(), key: key.to_owned(), value: value.into() }
    }
}

/// What a configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file, where one is named. Otherwise `MILLSTREAM_CONFIG` names it, or it is
    /// `config.toml` in `directory`, which need not exist.
    pub file: Option<PathBuf>,
    /// Where `config.toml` is looked for.
    pub directory: PathBuf,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// What flags set; a later one overrules an earlier one.
    pub flags: Vec<Flag>,
}

/// This process's environment; what is not UTF-8 cannot be meant for Millstream.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The variables by which a program without file and flags gets this configuration. Secrets stand
/// in them as they are.
pub fn variables(config: &Config) -> Vec<(String, String)> {
    let tree = serde_json::to_value(config).unwrap_or_default();
    let variable = |(key, value): (String, Value)| {
        let name = format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"));
        (name, if value.is_null() { String::new() } else { plain(&value) })
    };
    leaves(&tree).into_iter().map(variable).collect()
}

impl Layers {
    /// Reads and checks the configuration.
    pub fn load(&self) -> Result<Loaded, Error> {
        let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
        let set = self.set(&defaults)?;
        let file = self.file();
        let mut builder = config::Config::builder();
        if let Some(path) = &file {
            builder = builder.add_source(config::File::from_str(&read(path)?, FileFormat::Toml));
        }
        for (key, (text, _)) in &set {
            let setting = setting(at(&defaults, key), text);
            builder = builder.set_override(key, setting).map_err(Error::Layers)?;
        }
        let built = builder.build().map_err(Error::Layers)?;
        let mut tree: Value = built.try_deserialize().map_err(Error::Layers)?;
        let given = tree.clone();
        let origin = |key: &str| match (set.get(key), &file) {
            (Some((_, origin)), _) => origin.clone(),
            (None, Some(path)) if at(&given, key).is_some() => Origin::File(path.clone()),
            _ => Origin::Default,
        };
        known(&tree, &defaults, "", &origin)?;
        resolve(&mut tree);
        let config = typed(&tree, &origin)?;
        if let Some(rule) = ranges::rules(&config).into_iter().find(|rule| !rule.holds) {
            return Err(Error::Value {
                met: mask::masked(rule.key, &rule.met),
                origin: origin(rule.key),
                key: rule.key.to_owned(),
                allowed: rule.allowed,
            });
        }
        Ok(Loaded { config, file })
    }

    /// How lines of the log look, as far as that can be told before the rest is known to be right: what
    /// is wrong is told in the same way.
    pub fn log_format(&self) -> LogFormat {
        let variable = format!("{PREFIX}LOG__FORMAT");
        let flag = self.flags.iter().rev().find(|flag| flag.key == "log.format");
        let set = self.environment.iter().find(|(name, _)| *name == variable);
        let told = flag.map(|flag| flag.value.clone()).or(set.map(|(_, value)| value.clone()));
        let of_file = || {
            let table: toml::Table = std::fs::read_to_string(self.file()?).ok()?.parse().ok()?;
            Some(table.get("log")?.get("format")?.as_str()?.to_owned())
        };
        match told.or_else(of_file).as_deref() {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        }
    }

    fn file(&self) -> Option<PathBuf> {
        let variable = self.environment.iter().find(|(name, _)| name == FILE_VARIABLE);
        let named = variable.map(|(_, path)| PathBuf::from(path)).filter(|p| p != Path::new(""));
        self.file.clone().or(named).or_else(|| {
            let path = self.directory.join(FILE);
            path.exists().then_some(path)
        })
    }

    /// What the environment and flags set, by key: the value, and who set it.
    fn set(&self, defaults: &Value) -> Result<BTreeMap<String, (String, Origin)>, Error> {
        let mut set = BTreeMap::new();
        for (name, value) in &self.environment {
            let plain = PLAIN.iter().find(|(plain, _)| plain == name && !value.is_empty());
            if let Some((_, key)) = plain {
                let origin = Origin::Variable(name.clone());
                set.insert((*key).to_owned(), (value.clone(), origin));
            }
        }
        for (name, value) in &self.environment {
            if name.starts_with(PREFIX) && name != FILE_VARIABLE && !is_service_link(name) {
                let key = key_of(name, defaults)?;
                set.insert(key, (value.clone(), Origin::Variable(name.clone())));
            }
        }
        for flag in &self.flags {
            let origin = Origin::Flag(flag.name.clone());
            if at(defaults, &flag.key).is_none_or(Value::is_object) {
                let keys: Vec<String> = leaves(defaults).into_iter().map(|(key, _)| key).collect();
                let allowed: Vec<&str> = keys.iter().map(String::as_str).collect();
                return Err(unknown("", &flag.key, origin, &allowed));
            }
            set.insert(flag.key.clone(), (flag.value.clone(), origin));
        }
        Ok(set)
    }
}

/// Kubernetes puts the addresses of a service called `millstream` into the environment of its
/// neighbours: `MILLSTREAM_SERVICE_HOST`, `MILLSTREAM_PORT_80_TCP_ADDR` and so on.
fn is_service_link(name: &str) -> bool {
    let link = name.ends_with("_SERVICE_HOST")
        || name.ends_with("_PORT")
        || name.contains("_SERVICE_PORT")
        || name
            .split_once("_PORT_")
            .is_some_and(|(_, p)| p.starts_with(|c: char| c.is_ascii_digit()));
    link && !name.contains("__")
}

/// The key that a variable names.
fn key_of(name: &str, defaults: &Value) -> Result<String, Error> {
    let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
    if at(defaults, &key).is_some_and(|value| !value.is_object()) {
        return Ok(key);
    }
    let letters = |key: &str| key.replace(['.', '_'], "");
    let keys: Vec<String> = leaves(defaults).into_iter().map(|(leaf, _)| leaf).collect();
    let meant = keys.iter().find(|leaf| letters(leaf) == letters(&key)).map(String::as_str);
    let hint = match meant.or_else(|| nearest(&key, keys.iter().map(String::as_str))) {
        Some(leaf) => {
            format!("{PREFIX}{} is probably meant", leaf.to_uppercase().replace('.', "__"))
        }
        None => format!(
            "allowed: {FILE_VARIABLE}, or {PREFIX}SECTION__KEY for a key that \
             `millstream config print` shows"
        ),
    };
    Err(Error::UnknownVariable { name: name.to_owned(), hint })
}

/// The value at a dotted key.
fn at<'a>(tree: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(tree, |value, part| value.get(part))
}

/// Every key that holds a value rather than more keys, with its value.
pub(super) fn leaves(tree: &Value) -> Vec<(String, Value)> {
    let Value::Object(fields) = tree else { return Vec::new() };
    let mut found = Vec::new();
    for (name, value) in fields {
        if value.is_object() {
            let below = leaves(value).into_iter();
            found.extend(below.map(|(key, value)| (format!("{name}.{key}"), value)));
        } else {
            found.push((name.clone(), value.clone()));
        }
    }
    found
}

/// Text as the kind of value that the default is. What does not fit stays text, and is refused
/// with its key when the configuration is read.
fn setting(default: Option<&Value>, text: &str) -> Setting {
    let kind = match default {
        Some(Value::Bool(_)) => text.parse().ok().map(ValueKind::Boolean),
        Some(Value::Number(_)) => {
            let whole = text.parse().ok().map(ValueKind::I64);
            let part = || text.parse().ok().filter(|n: &f64| n.is_finite()).map(ValueKind::Float);
            whole.or_else(part)
        }
        Some(Value::Array(items)) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Some(ValueKind::Array(parts.map(|part| setting(items.first(), part)).collect()))
        }
        Some(Value::Null) if text.is_empty() => Some(ValueKind::Nil),
        _ => None,
    };
    Setting::new(None, kind.unwrap_or_else(|| ValueKind::String(text.to_owned())))
}

fn read(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    text.parse::<toml::Table>().map_err(|error| Error::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1),
        message: error.message().replace('\n', ", "),
    })?;
    Ok(text)
}

/// A key that is not among those `allowed` below `above`.
fn unknown(above: &str, key: &str, origin: Origin, allowed: &[&str]) -> Error {
    let full =
        |name: &str| if above.is_empty() { name.to_owned() } else { format!("{above}.{name}") };
    let meant = nearest(key, allowed.iter().copied());
    let meant =
        meant.map(|name| format!("`{}` is probably meant; ", full(name))).unwrap_or_default();
    Error::UnknownKey { key: full(key), origin, meant, allowed: allowed.join(", ") }
}

/// Turns addresses as people write them into those that can be listened on: `localhost:8080`, and `:8080`
/// for this machine alone. What cannot be read stays, and is refused with its key.
fn resolve(tree: &mut Value) {
    for key in ADDRESSES {
        let Some(value) = tree.pointer_mut(&format!("/{}", key.replace('.', "/"))) else {
            continue;
        };
        let Some(text) = value.as_str() else { continue };
        if let Some(addr) = address(text) {
            *value = Value::String(addr.to_string());
        }
    }
}

/// The address that a text means. Of a host with several, IPv4 goes first.
fn address(text: &str) -> Option<SocketAddr> {
    if let Ok(addr) = text.parse() {
        return Some(addr);
    }
    let (host, port) = text.rsplit_once(':')?;
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let found: Vec<SocketAddr> =
        (host, port.parse::<u16>().ok()?).to_socket_addrs().ok()?.collect();
    found.iter().find(|addr| addr.is_ipv4()).or(found.first()).copied()
}

/// Refuses keys that the defaults do not have.
fn known(
    tree: &Value,
    defaults: &Value,
    above: &str,
    origin: &dyn Fn(&str) -> Origin,
) -> Result<(), Error> {
    let (Value::Object(fields), Value::Object(allowed)) = (tree, defaults) else { return Ok(()) };
    for (name, value) in fields {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        if let Some(default) = allowed.get(name) {
            known(value, default, &key, origin)?;
        } else {
            let allowed: Vec<&str> = allowed.keys().map(String::as_str).collect();
            return Err(unknown(above, name, origin(&key), &allowed));
        }
    }
    Ok(())
}

/// A value as it would be written in the environment.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// The tree as a configuration; what does not fit is named with its key.
fn typed(tree: &Value, origin: &dyn Fn(&str) -> Origin) -> Result<Config, Error> {
    serde_path_to_error::deserialize::<_, Config>(tree).map_err(|error| {
        let path = error.path().to_string();
        let key = path.split('[').next().unwrap_or_default().to_owned();
        let met = at(tree, &key).map(plain).unwrap_or_default();
        let rules = ranges::rules(&Config::default());
        let allowed = match rules.into_iter().find(|rule| rule.key == key) {
            Some(rule) => rule.allowed,
            None => mask::without_value(&key, &error.into_inner().to_string()),
        };
        Error::Value { met: mask::masked(&key, &met), origin: origin(&key), key, allowed }
    })
}
