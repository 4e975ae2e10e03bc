//! Signatures under the gateway's secret: HMAC-SHA256 (RFC 2104), compared in constant time.
//!
//! A browser token lets whoever has it read one job for a short while: a page can follow its job without
//! the tenant's key. It is `EXPIRY.TENANT.KEY.SIGNATURE`: milliseconds since the epoch, the tenant in
//! base64url, the ID of the API key that made it (empty where there is none), and the signature of all these with
//! the job's ID and the key's hash. So a token ends with its key: no other key has that ID and that hash.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Caller;
use crate::job::{JobId, Tenant, Timestamp};

type Secret = Option<Hmac<Sha256>>;

/// Signs and verifies. Clones sign alike.
#[derive(Clone)]
pub(in crate::gateway) struct Signer {
    own: Secret,
    /// Another secret, whose signatures are good as well.
    second: Secret,
    /// Whether no other process signs alike.
    is_of_process: bool,
}

/// What a browser token says of itself. Nothing of it is true before its signature is verified.
pub(in crate::gateway) struct Token<'a> {
    expires: Timestamp,
    pub(super) tenant: Tenant,
    /// The ID of the key that made it; empty for none.
    pub(super) key: &'a str,
    pub(super) signature: &'a str,
}

impl<'a> Token<'a> {
    pub(in crate::gateway) fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(4, '.');
        let expires = Timestamp(parts.next()?.parse().ok()?);
        let tenant = String::from_utf8(BASE64.decode(parts.next()?).ok()?).ok()?;
        let tenant = tenant.parse().ok()?;
        Some(Self { expires, tenant, key: parts.next()?, signature: parts.next()? })
    }
}

fn secret(bytes: &[u8]) -> Secret {
    Hmac::new_from_slice(bytes).ok()
}

fn verified(secret: &Secret, statement: &str, signature: &[u8]) -> bool {
    let mac = secret.clone().map(|mac| mac.chain_update(statement));
    mac.is_some_and(|mac| mac.verify_slice(signature).is_ok())
}

impl Signer {
    /// Signs under this secret, or under a random one of this process where it is empty.
    pub(in crate::gateway) fn new(own: &str) -> Self {
        let random =
            [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes).concat();
        let is_of_process = own.is_empty();
        let own = secret(if is_of_process { &random } else { own.as_bytes() });
        Self { own, second: None, is_of_process }
    }

    /// Verifies signatures under this secret, too, unless it is empty.
    pub(super) fn and(self, second: &str) -> Self {
        let second = if second.is_empty() { None } else { secret(second.as_bytes()) };
        Self { second, ..self }
    }

    /// The signature of a statement, in base64url.
    pub(super) fn sign(&self, statement: &str) -> String {
        let mac = self.own.clone().map(|mac| mac.chain_update(statement).finalize().into_bytes());
        BASE64.encode(mac.unwrap_or_default())
    }

    /// Whether this is the signature of that statement.
    pub(super) fn verifies(&self, statement: &str, signature: &str) -> bool {
        let signature = BASE64.decode(signature).unwrap_or_default();
        verified(&self.own, statement, &signature) || verified(&self.second, statement, &signature)
    }

    /// Whether this is its own signature of that statement, and not one under the second secret.
    pub(super) fn signs(&self, statement: &str, signature: &str) -> bool {
        verified(&self.own, statement, &BASE64.decode(signature).unwrap_or_default())
    }

    /// A name that only gateways of this secret can find for a text. Without a secret, where everybody has all
    /// rights, it is the text.
    pub(in crate::gateway) fn name(&self, text: &str) -> String {
        if self.is_of_process { text.to_owned() } else { self.sign(&format!("name:{text}")) }
    }

    /// A token for one job of this caller's tenant.
    pub(in crate::gateway) fn token(
        &self,
        caller: &Caller,
        job: JobId,
        expires: Timestamp,
    ) -> String {
        let signature = self.sign(&statement(caller, job, expires));
        let (tenant, key) = (BASE64.encode(caller.tenant.as_str()), key(caller));
        format!("{}.{tenant}.{key}.{signature}", expires.0)
    }

    /// Whether this caller has made the token, for this job, and it is still good at `now`.
    pub(in crate::gateway) fn has_made(
        &self,
        token: &Token<'_>,
        caller: &Caller,
        job: JobId,
        now: Timestamp,
    ) -> bool {
        let statement = statement(caller, job, token.expires);
        self.verifies(&statement, token.signature) && token.expires > now
    }
}

fn key(caller: &Caller) -> &str {
    caller.key.as_deref().unwrap_or_default()
}

fn statement(caller: &Caller, job: JobId, expires: Timestamp) -> String {
    let Caller { tenant, hash, .. } = caller;
    format!("token:{tenant}:{}:{hash}:{job}:{}", key(caller), expires.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Right;

    /// Whether a caller has made this text as a token for a job.
    fn made(signer: &Signer, text: &str, caller: &Caller, job: JobId, now: u64) -> bool {
        let token = Token::read(text);
        token.is_some_and(|token| signer.has_made(&token, caller, job, Timestamp(now)))
    }

    #[test]
    fn a_token_is_good_for_its_job_its_time_and_its_key() {
        let (signer, job) = (Signer::new(""), JobId::new());
        let plain = Caller::new("acme".parse().unwrap(), [Right::Read]);
        let keyed = |id: &str, hash: &str| Caller {
            key: Some(id.to_owned()),
            hash: hash.to_owned(),
            ..plain.clone()
        };
        for caller in [plain.clone(), keyed("web", "x")] {
            let token = signer.token(&caller, job, Timestamp(1000));
            assert!(made(&signer, &token, &caller, job, 999));
            assert!(!made(&signer, &token, &caller, job, 1000));
            assert!(!made(&signer, &token, &caller, JobId::new(), 0));
            assert!(!made(&Signer::new(""), &token, &caller, job, 0));
            for other in [keyed("web", "y"), keyed("app", "x")] {
                assert!(!made(&signer, &token, &other, job, 0));
            }
            let later = token.replacen("1000", "9000", 1);
            let short = &token[..token.len() - 1];
            for forged in [later.as_str(), "", ".", "..", "...", "1.2", "9.!.x", "9.YQ.a", short] {
                assert!(!made(&signer, forged, &caller, job, 0), "{forged}");
            }
        }
    }

    /// A secret could not be changed without a moment in which nobody was let in.
    #[test]
    fn a_second_secret_verifies_and_does_not_sign() {
        let (old, new) = (Signer::new("old"), Signer::new("new").and("old"));
        let [by_old, by_new] = [&old, &new].map(|signer| signer.sign("a"));
        assert!(new.verifies("a", &by_old) && !new.signs("a", &by_old));
        assert!(new.verifies("a", &by_new) && new.signs("a", &by_new));
        assert!(!old.verifies("a", &by_new) && !Signer::new("new").and("").verifies("a", &by_old));
    }
}
