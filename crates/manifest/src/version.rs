//! Versions as BOSH orders them: `release[-pre-release][+post-release]`, each a dotted list.

use std::cmp::Ordering;

/// Orders two versions: numbers as numbers, before texts; missing segments of the release part count as 0; a
/// pre-release is older than the release, a post-release newer.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (Parts::of(a), Parts::of(b));
    segments(a.release, b.release, Some("0"))
        .then_with(|| match (a.pre, b.pre) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) => segments(a, b, None),
        })
        .then_with(|| match (a.post, b.post) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(a), Some(b)) => segments(a, b, None),
        })
}

struct Parts<'t> {
    release: &'t str,
    pre: Option<&'t str>,
    post: Option<&'t str>,
}

impl<'t> Parts<'t> {
    fn of(text: &'t str) -> Self {
        let (rest, post) = text
            .split_once('+')
            .map_or((text, None), |(rest, post)| (rest, Some(post)));
        let (release, pre) = rest
            .split_once('-')
            .map_or((rest, None), |(release, pre)| (release, Some(pre)));
        Self { release, pre, post }
    }
}

fn segments(a: &str, b: &str, filler: Option<&str>) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let order = match (a.next().or(None), b.next()) {
            (None, None) => return Ordering::Equal,
            (Some(a), Some(b)) => segment(a, b),
            (Some(a), None) => filler.map_or(Ordering::Greater, |filler| segment(a, filler)),
            (None, Some(b)) => filler.map_or(Ordering::Less, |filler| segment(filler, b)),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn segment(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_ascend() {
        let ascending = [
            "1",
            "1.1-rc.1",
            "1.1-rc.2",
            "1.1-rc.10",
            "1.1",
            "1.1+dev.1",
            "1.1+dev.9",
            "1.1.1",
            "1.9",
            "1.10",
            "2-alpha",
            "2.0.0",
            "2.0.0.1",
            "2.a",
        ];
        for pair in ascending.windows(2) {
            assert_eq!(
                compare(pair[0], pair[1]),
                Ordering::Less,
                "{} < {}",
                pair[0],
                pair[1]
            );
            assert_eq!(
                compare(pair[1], pair[0]),
                Ordering::Greater,
                "{} > {}",
                pair[1],
                pair[0]
            );
        }
        assert_eq!(compare("1.0", "1"), Ordering::Equal);
    }
}
