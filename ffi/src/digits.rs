//! Numbers as text without the formatting machinery: the text of a record is mostly numbers.
#![forbid(unsafe_code)]

/// Appends `n` in decimal.
pub fn push_dec(out: &mut Vec<u8>, n: u64) {
    push_dec_padded(out, n, 1);
}

/// Appends `n` in decimal with zeros in front up to `width` digits (1 to 20); never cuts.
pub fn push_dec_padded(out: &mut Vec<u8>, mut n: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while n > 0 {
        at -= 1;
        digits[at] = b'0' + low_byte(n % 10);
        n /= 10;
    }
    out.extend_from_slice(&digits[at.min(digits.len().saturating_sub(width))..]);
}

/// Appends `n` in lower-case hexadecimal.
pub fn push_hex(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [b'0'; 16];
    let mut at = digits.len();
    while n > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[usize::from(low_byte(n & 0xf))];
        n >>= 4;
    }
    out.extend_from_slice(&digits[at.min(digits.len() - 1)..]);
}

const fn low_byte(n: u64) -> u8 {
    n.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(push: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = b"x".to_vec();
        push(&mut out);
        String::from_utf8(out).unwrap().split_off(1)
    }

    #[test]
    fn the_ends_of_the_range_are_right() {
        for n in [0, 1, 9, 10, 15, 16, u64::MAX] {
            assert_eq!(text(|out| push_dec(out, n)), n.to_string());
            assert_eq!(text(|out| push_hex(out, n)), format!("{n:x}"));
        }
    }

    proptest! {
        #[test]
        fn numbers_are_as_the_standard_library_prints_them(n in any::<u64>(), shift in 0..64, width in 1usize..21) {
            let n = n >> shift;
            prop_assert_eq!(text(|out| push_dec(out, n)), n.to_string());
            prop_assert_eq!(text(|out| push_hex(out, n)), format!("{n:x}"));
            prop_assert_eq!(text(|out| push_dec_padded(out, n, width)), format!("{n:0width$}"));
        }
    }
}
