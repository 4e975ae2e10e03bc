//! The text rule: which words the simulator says, as a pure function of the request.
//!
//! `tests/oracle.py` implements the same rule independently; a test compares the two. The rule
//! itself stands in the docs of [`simulator`](super).

use sha2::{Digest, Sha256};

/// What the words are drawn from. The order is part of the rule.
pub(super) const WORDS: [&str; 64] = [
    "mill", "stream", "wheel", "river", "water", "stone", "grain", "flour", "bread", "meadow",
    "willow", "heron", "otter", "trout", "reed", "moss", "bridge", "bank", "brook", "spring",
    "rain", "cloud", "mist", "dawn", "dusk", "lantern", "barge", "sail", "oar", "ferry", "harbour",
    "café", "naïve", "über", "gentle", "quiet", "steady", "bright", "silver", "golden", "amber",
    "green", "deep", "clear", "slow", "swift", "turning", "flowing", "winding", "resting",
    "singing", "drifting", "carries", "gathers", "returns", "follows", "under", "over", "along",
    "beyond", "between", "and", "with", "toward",
];

/// The golden-ratio increment of splitmix64; also what separates the texts of two attempts.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What separates the texts of two choices of one request.
const CHOICE: u64 = 0xD1B5_4A32_D192_ED03;

/// One token in `WORDS.len()`: the low six bits of the mixed seed.
const MASK: u64 = 63;

/// The endless text of one choice: tokens are computed when they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Text {
    seed: u64,
}

impl Text {
    /// The text of choice 0 of a request at its first attempt, from its canonical form.
    pub(super) fn of(canonical: &str) -> Self {
        let digest = Sha256::digest(canonical.as_bytes());
        let seed = digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
        Self { seed }
    }

    /// The text at attempt `attempt` (from 1) when the simulator varies its answers.
    pub(super) fn at_attempt(self, attempt: u32) -> Self {
        Self { seed: self.seed.wrapping_add(GOLDEN.wrapping_mul(u64::from(attempt))) }
    }

    /// The text of choice `index` (from 0).
    pub(super) fn for_choice(self, index: u32) -> Self {
        Self { seed: self.seed.wrapping_add(CHOICE.wrapping_mul(u64::from(index))) }
    }

    /// The seed, from which IDs of tool calls and the counts per request are derived as well.
    pub(super) fn seed(self) -> u64 {
        self.seed
    }

    /// The tokens `from..until` as they are streamed: each but the very first brings the space
    /// before it.
    pub(super) fn piece(self, from: u32, until: u32) -> String {
        let mut piece = String::new();
        for index in from..until {
            if index > 0 {
                piece.push(' ');
            }
            piece.push_str(self.token(index));
        }
        piece
    }

    fn token(self, index: u32) -> &'static str {
        let mixed = splitmix64(self.seed.wrapping_add(u64::from(index))) & MASK;
        usize::try_from(mixed).ok().and_then(|at| WORDS.get(at)).copied().unwrap_or_default()
    }
}

/// One step of splitmix64 (Steele, Lea and Flood, 2014; the constants of Vigna's public-domain
/// version).
fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_published_first_outputs() {
        // Vigna's splitmix64.c seeded with 1234567.
        assert_eq!(splitmix64(1_234_567), 6_457_827_717_110_365_317);
        assert_eq!(splitmix64(1_234_567_u64.wrapping_add(GOLDEN)), 3_203_168_211_198_807_973);
    }

    #[test]
    fn pieces_join_into_the_whole_text() {
        let text = Text::of("m\nuser:hello\n");
        let pieces =
            [(0, 1), (1, 4), (4, 4), (4, 9)].map(|(from, until)| text.piece(from, until)).concat();
        assert_eq!(pieces, text.piece(0, 9));
        assert_eq!(pieces.split(' ').count(), 9);
    }

    #[test]
    fn no_word_occurs_twice() {
        let distinct: std::collections::HashSet<_> = WORDS.iter().collect();
        assert_eq!(distinct.len(), WORDS.len());
    }
}
