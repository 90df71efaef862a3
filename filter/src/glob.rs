//! Shell patterns on bytes: names are not text.

use std::fmt;

/// `*`, `?`, `[a-z]`, `[!a-z]`, and `\` before a character that is meant itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob {
    source: Vec<u8>,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Byte(u8),
    Any,
    Star,
    Set { negated: bool, ranges: Vec<(u8, u8)> },
}

impl Glob {
    /// Compiles a pattern. A `[` without its `]` means itself, as in a shell.
    pub fn new(pattern: &[u8]) -> Self {
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            let part = match byte {
                b'*' => Part::Star,
                b'?' => Part::Any,
                b'\\' => match rest.split_first() {
                    Some((&meant, tail)) => {
                        rest = tail;
                        Part::Byte(meant)
                    }
                    None => Part::Byte(b'\\'),
                },
                b'[' => match set(rest) {
                    Some((part, tail)) => {
                        rest = tail;
                        part
                    }
                    None => Part::Byte(b'['),
                },
                other => Part::Byte(other),
            };
            // Several stars are one, so matching stays quick.
            if part != Part::Star || parts.last() != Some(&Part::Star) {
                parts.push(part);
            }
        }
        Self { source: pattern.to_vec(), parts }
    }

    /// The pattern as it was given.
    pub fn source(&self) -> &[u8] {
        &self.source
    }

    /// Whether the whole of `text` fits. Takes at most `text × pattern` steps.
    pub fn matches(&self, text: &[u8]) -> bool {
        let (mut at, mut part) = (0, 0);
        let mut last_star: Option<(usize, usize)> = None;
        loop {
            match (self.parts.get(part), text.get(at)) {
                (None, None) => return true,
                (Some(Part::Star), _) => {
                    last_star = Some((part, at));
                    part += 1;
                    continue;
                }
                (Some(one), Some(&byte)) if one.fits(byte) => {
                    at += 1;
                    part += 1;
                    continue;
                }
                _ => {}
            }
            // Let the last star take one byte more.
            match last_star {
                Some((star, from)) if from < text.len() => {
                    last_star = Some((star, from + 1));
                    at = from + 1;
                    part = star + 1;
                }
                _ => return false,
            }
        }
    }
}

impl Part {
    fn fits(&self, byte: u8) -> bool {
        match self {
            Self::Byte(meant) => *meant == byte,
            Self::Any => true,
            Self::Star => false,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|&(from, to)| from <= byte && byte <= to) != *negated
            }
        }
    }
}

/// What stands after a `[`, up to its `]`.
fn set(after: &[u8]) -> Option<(Part, &[u8])> {
    let (negated, mut rest) = match after.split_first() {
        Some((b'!' | b'^', rest)) => (true, rest),
        _ => (false, after),
    };
    let mut ranges = Vec::new();
    loop {
        let (&from, tail) = rest.split_first()?;
        if from == b']' && !ranges.is_empty() {
            return Some((Part::Set { negated, ranges }, tail));
        }
        match tail {
            [b'-', to, tail @ ..] if *to != b']' => {
                ranges.push((from, *to));
                rest = tail;
            }
            _ => {
                ranges.push((from, from));
                rest = tail;
            }
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::lex::quote(&self.source, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("*.tmp", &[".tmp", "a.tmp", "a.tmp.tmp"], &["tmp", "a.tmp2", ""]),
            ("", &[""], &["a"]),
            ("*", &["", "anything"], &[]),
            ("a*b*c", &["abc", "aXbYc", "abbbcc", "abcc"], &["ab", "acb", "abcd"]),
            ("?", &["x"], &["", "xy"]),
            ("[a-cx]1", &["a1", "c1", "x1"], &["d1", "1", "aa1"]),
            ("[!a-c]", &["d"], &["b", ""]),
            ("[]]", &["]"], &["["]),
            ("[a", &["[a"], &["a"]),
            ("a\\*", &["a*"], &["ab", "a\\*"]),
            ("**a**", &["a", "bab"], &["b"]),
        ];
        for (pattern, good, bad) in cases {
            let glob = Glob::new(pattern.as_bytes());
            for text in *good {
                assert!(glob.matches(text.as_bytes()), "{pattern} {text}");
            }
            for text in *bad {
                assert!(!glob.matches(text.as_bytes()), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn many_stars_are_answered() {
        // With naive backtracking this would take longer than the universe has.
        let glob = Glob::new(format!("{}b", "*a".repeat(100)).as_bytes());
        assert!(!glob.matches("a".repeat(200).as_bytes()));
    }
}
