//! The name that was probably meant.

/// Most letters in which a name may differ from the one that was meant; a short one, in a third of its own.
const FAR: usize = 3;

/// The candidate that differs least from `name`, where it differs little enough to be meant.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let most = FAR.min(name.chars().count().div_ceil(3));
    let near = candidates.map(|candidate| (distance(name, candidate), candidate));
    near.filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|n| n.1)
}

/// How many letters have to be added, left out, replaced, or swapped with their neighbour (optimal string
/// alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_hand_is_understood_and_no_more() {
        let keys = ["worker.concurrency", "worker.block", "redis.url", "log.format"];
        for (met, meant) in [
            ("worker.concurency", Some("worker.concurrency")),
            ("wroker.block", Some("worker.block")),
            ("redis.ulr", Some("redis.url")),
            ("redis_url", Some("redis.url")),
            ("log.fromat", Some("log.format")),
            ("nonsense", None),
            ("a", None),
        ] {
            assert_eq!(nearest(met, keys.into_iter()), meant, "{met}");
        }
        assert_eq!(
            [distance("", "abc"), distance("ca", "ac"), distance("kitten", "sitting")],
            [3, 1, 3]
        );
    }
}
