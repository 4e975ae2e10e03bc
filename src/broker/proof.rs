//! Whether an entry is its job's own. A producer with XADD may write any ID and any run into an entry, so the
//! entry is compared with the job's record.

use sha2::{Digest, Sha256};

use super::entry::Entry;

/// The field of an entry that a dead letter has put back: `LETTER FENCE`.
pub(super) const LETTER: &str = "letter";

/// Bytes of a job's sum.
const SUM: usize = 8;

/// A job's mark among jobs of the same ID, as a record keeps it: the first bytes of the SHA-256 of the job as it
/// stands in its entry, in hexadecimal.
pub(super) fn sum(payload: &[u8]) -> String {
    Sha256::digest(payload)[..SUM].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Entry {
    /// The mark of its job: the same bytes are the same job.
    pub(super) fn sum(&self) -> String {
        sum(self.payload())
    }

    /// Whether its job is that of an idempotency key.
    pub(super) fn is_keyed(&self) -> bool {
        let keyed = self.job.as_ref().ok().filter(|job| job.idempotency_key.is_some());
        keyed.is_some_and(|job| job.assign_id() == self.id)
    }

    /// The fingerprint of its request, where it is a key's. It takes as long as the request is large.
    pub(super) fn fingerprint(&self) -> Option<String> {
        let job = self.job.as_ref().ok().filter(|_| self.is_keyed());
        job.map(|job| job.request.fingerprint())
    }

    /// The dead letter that opened its run, and the fence under which the run before it had failed, as far as the
    /// entry tells: who knows either has read the dead letters.
    pub(super) fn opened_by(&self) -> (String, String) {
        let told = self.fields.iter().find(|(field, _)| field == LETTER.as_bytes());
        let told = told.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        let told = told.unwrap_or_default();
        let (letter, fence) = told.split_once(' ').unwrap_or_default();
        (letter.to_owned(), fence.to_owned())
    }
}
