//! `millstream keys`: API keys for the gateway.

use std::{io::Write, time::Duration};

use clap::{Subcommand, builder::PossibleValuesParser};

use super::{
    Context, Error, Exit,
    args::{self, Common},
    audit,
    logging::{self, Level},
};
use crate::{
    config::Config,
    gateway::{Right, check_keys, exposed_keys, generate_key},
    job::{Tenant, Timestamp},
};

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(super) enum Keys {
    /// Make a key, let it in, and print it
    ///
    /// Its hash is added to the file `gateway.keys`, which running gateways read again by themselves;
    /// where no file is configured the lines for it go to standard error. The key itself is printed to
    /// standard output, once: nobody can read it again. To take a key back, remove its lines.
    Create {
        /// The key's name, in the file and in logs: a-z, 0-9 and -
        id: String,

        /// Whose jobs it reaches
        #[arg(long, default_value_t)]
        tenant: Tenant,

        /// What it may do, separated by commas
        #[arg(long, value_delimiter = ',', default_value = "enqueue,read",
            value_parser = PossibleValuesParser::new(["enqueue", "read", "admin"]))]
        rights: Vec<String>,

        /// How long it is good, such as 90d [default: for ever]
        #[arg(long, value_name = "DURATION", value_parser = args::duration)]
        expires_in: Option<Duration>,
    },
}

/// Does it.
pub(super) fn run(what: &Keys, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let config = common.load(Vec::new(), cx)?.config;
    logging::start(&config.log, Level::Warn)?;
    let Keys::Create { id, tenant, rights, expires_in } = what;
    if config.gateway.secret.is_empty() {
        return Err(Error::new(
            Exit::Configuration,
            "gateway.secret is not set, and keys are hashed with it",
            "set MILLSTREAM_GATEWAY__SECRET, the same for all gateways (`openssl rand -base64 32`)",
        ));
    }
    let named = |right: &Right| rights.contains(&format!("{right:?}").to_lowercase());
    let rights: Vec<Right> = Right::ALL.into_iter().filter(named).collect();
    let expires = expires_in.map(|time| Timestamp::now().after(time));
    let (key, lines) = generate_key(&config.gateway.secret, id, tenant, &rights, expires)
        .map_err(|cause| Error::new(Exit::Usage, cause, ""))?;
    keep(&config, id, &lines, cx)?;
    audit::other("create_key", id);
    cx.terminal.line(&key)?;
    Ok(Exit::Ok)
}

/// Adds the lines to the file, or shows them.
fn keep(config: &Config, id: &str, lines: &str, cx: &mut Context) -> Result<(), Error> {
    let path = &config.gateway.keys;
    if path.as_os_str().is_empty() {
        cx.terminal.say("no file is configured (gateway.keys); put these lines into one:");
        lines.lines().for_each(|line| cx.terminal.say(line));
        return Ok(());
    }
    let failed = |error: std::io::Error| {
        let cause = format!("cannot write gateway.keys, {}: {error}", path.display());
        Error::new(Exit::Configuration, cause, "name a file that can be written")
    };
    let there = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    let refused = |cause: String, remedy: &str| {
        let cause = format!("gateway.keys, {}: {cause}", path.display());
        Error::new(Exit::Usage, cause, remedy)
    };
    let gap = match &there {
        text if text.is_empty() || text.ends_with("\n\n") => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    // What no gateway would read is not written, whoever has written what is there.
    check_keys(&there).map_err(|cause| refused(cause, "correct the file first"))?;
    check_keys(&format!("{there}{gap}{lines}"))
        .map_err(|cause| refused(cause, "choose another ID, or remove its lines first"))?;
    let mut file = std::fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
    let mut file = file.create(true).append(true).open(path).map_err(failed)?;
    file.write_all(format!("{gap}{lines}").as_bytes()).map_err(failed)?;
    cx.terminal.say(format_args!("key `{id}` added to {}", path.display()));
    if let Some(warning) = exposed_keys(path) {
        cx.terminal.warn(warning);
    }
    Ok(())
}
