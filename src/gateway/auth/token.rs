//! Signatures under the gateway's secret: HMAC-SHA256 (RFC 2104), compared in constant time.
//!
//! A browser token lets whoever has it read one job for a short while: a page can follow its job without
//! the tenant's key. It is `EXPIRY.TENANT.SIGNATURE`: milliseconds since the epoch, the tenant in
//! base64url, and the signature of both with the job's ID.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::job::{JobId, Tenant, Timestamp};

/// Signs and verifies. Clones sign alike.
#[derive(Clone)]
pub(in crate::gateway) struct Signer(Option<Hmac<Sha256>>);

impl Signer {
    /// Signs under this secret, or under a random one of this process where it is empty.
    pub(in crate::gateway) fn new(secret: &str) -> Self {
        let random =
            [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes).concat();
        let secret = if secret.is_empty() { &random } else { secret.as_bytes() };
        Self(Hmac::new_from_slice(secret).ok())
    }

    /// The signature of a statement, in base64url.
    pub(super) fn sign(&self, statement: &str) -> String {
        let mac = self.0.clone().map(|mac| mac.chain_update(statement).finalize().into_bytes());
        BASE64.encode(mac.unwrap_or_default())
    }

    /// Whether this is the signature of that statement.
    pub(super) fn verifies(&self, statement: &str, signature: &str) -> bool {
        let signature = BASE64.decode(signature).unwrap_or_default();
        let mac = self.0.clone().map(|mac| mac.chain_update(statement));
        mac.is_some_and(|mac| mac.verify_slice(&signature).is_ok())
    }

    /// A token for one tenant's job.
    pub(in crate::gateway) fn token(
        &self,
        tenant: &Tenant,
        job: JobId,
        expires: Timestamp,
    ) -> String {
        let signature = self.sign(&statement(tenant, job, expires));
        format!("{}.{}.{signature}", expires.0, BASE64.encode(tenant.as_str()))
    }

    /// The tenant whose job this token lets one read at `now`.
    pub(in crate::gateway) fn tenant(
        &self,
        token: &str,
        job: JobId,
        now: Timestamp,
    ) -> Option<Tenant> {
        let mut parts = token.splitn(3, '.');
        let expires = Timestamp(parts.next()?.parse().ok()?);
        let tenant = String::from_utf8(BASE64.decode(parts.next()?).ok()?).ok()?;
        let tenant: Tenant = tenant.parse().ok()?;
        let good = self.verifies(&statement(&tenant, job, expires), parts.next()?);
        (good && expires > now).then_some(tenant)
    }
}

fn statement(tenant: &Tenant, job: JobId, expires: Timestamp) -> String {
    format!("token:{tenant}:{job}:{}", expires.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_job_and_its_time() {
        let (signer, job) = (Signer::new(""), JobId::new());
        let tenant: Tenant = "acme".parse().unwrap();
        let token = signer.token(&tenant, job, Timestamp(1000));
        assert_eq!(signer.tenant(&token, job, Timestamp(999)), Some(tenant.clone()));
        assert_eq!(signer.tenant(&token, job, Timestamp(1000)), None);
        assert_eq!(signer.tenant(&token, JobId::new(), Timestamp(0)), None);
        assert_eq!(Signer::new("").tenant(&token, job, Timestamp(0)), None);
        let later = token.replacen("1000", "9000", 1);
        for forged in [later.as_str(), "", ".", "..", "1.2", "9.!.x", &token[..token.len() - 1]] {
            assert_eq!(signer.tenant(forged, job, Timestamp(0)), None, "{forged}");
        }
    }
}
