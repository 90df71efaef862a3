//! Words and signs of an expression.

use std::fmt::{self, Write as _};

use crate::{FilterError, MAX_EXPRESSION_BYTES};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A bare word: keyword, field or value.
    Word(String),
    /// A quoted value: never a keyword.
    Quoted(Vec<u8>),
    /// `(`, `)`, `,`, or an operator.
    Sign(&'static str),
}

/// Longer signs before their beginnings.
const SIGNS: [&str; 16] =
    ["==", "!=", "!~", "<=", ">=", "&&", "||", "=", "<", ">", "~", "&", "!", "(", ")", ","];

/// Splits an expression; each token comes with its offset.
pub(crate) fn split(text: &str) -> Result<Vec<(usize, Token)>, FilterError> {
    if text.len() > MAX_EXPRESSION_BYTES {
        let problem = format!("longer than {MAX_EXPRESSION_BYTES} bytes");
        return Err(FilterError { at: MAX_EXPRESSION_BYTES, problem });
    }
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let first = rest.chars().next().unwrap_or(' ');
        if first.is_whitespace() {
            at += first.len_utf8();
        } else if first == '"' || first == '\'' {
            let (value, used) = quoted(rest, first)
                .map_err(|problem| FilterError { at, problem: problem.to_owned() })?;
            tokens.push((at, Token::Quoted(value)));
            at += used;
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            tokens.push((at, Token::Sign(sign)));
            at += sign.len();
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "()=<>~&|,\"'".contains(c));
            let word = rest.get(..end.unwrap_or(rest.len())).unwrap_or(rest);
            if word.is_empty() {
                return Err(FilterError { at, problem: format!("`{first}` means nothing here") });
            }
            tokens.push((at, Token::Word(word.to_owned())));
            at += word.len();
        }
    }
    Ok(tokens)
}

/// A quoted value and its length with quotes. `\xNN` is a byte; a backslash before the quote or before
/// itself is taken off, before anything else it stays, so that patterns can be quoted.
fn quoted(text: &str, quote: char) -> Result<(Vec<u8>, usize), &'static str> {
    let mut value = Vec::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Ok((value, at + 1));
        }
        if c != '\\' {
            value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next() {
            Some((_, next)) if next == quote => {
                value.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            }
            Some((at, 'x')) => {
                let hex = text.get(at + 1..at + 3).ok_or("\\x needs two hexadecimal digits")?;
                let byte =
                    u8::from_str_radix(hex, 16).map_err(|_| "\\x needs two hexadecimal digits")?;
                value.push(byte);
                chars.nth(1);
            }
            Some((_, next)) => {
                value.push(b'\\');
                value.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            }
            None => break,
        }
    }
    Err("the quote is not closed")
}

/// Writes a value so that [`split`] reads it back.
pub(crate) fn quote(value: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_char('"')?;
    for &byte in value {
        match byte {
            b'"' => f.write_str("\\\"")?,
            // `\x` in a value would be read as a byte otherwise.
            b'\\' => f.write_str("\\x5c")?,
            0x20..=0x7e => f.write_char(char::from(byte))?,
            _ => write!(f, "\\x{byte:02x}")?,
        }
    }
    f.write_char('"')
}
