//! PTX text to tokens.

/// A token and where it stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Token<'t> {
    pub kind: Kind<'t>,
    /// Line from 1.
    pub line: u32,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind<'t> {
    /// Letters, digits, `_ $ % .` and `::` inside: names, opcodes, numbers, directives.
    Word(&'t str),
    /// A quoted string without its quotes.
    Text(&'t str),
    /// One punctuation character.
    Mark(u8),
}

/// Which bytes are part of a word.
const WORD: [bool; 256] = {
    let mut word = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let character = byte as u8;
        word[byte] =
            character.is_ascii_alphanumeric() || matches!(character, b'_' | b'$' | b'%' | b'.');
        byte += 1;
    }
    word
};

fn is_word(byte: u8) -> bool {
    WORD[usize::from(byte)]
}

/// Splits `text` into tokens; comments and white space vanish.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4);
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                at += 2;
                while at < bytes.len() && !(bytes[at] == b'*' && bytes.get(at + 1) == Some(&b'/')) {
                    line += u32::from(bytes[at] == b'\n');
                    at += 1;
                }
                at = (at + 2).min(bytes.len());
            }
            b'"' => {
                let start = at + 1;
                at = start;
                while at < bytes.len() && bytes[at] != b'"' {
                    line += u32::from(bytes[at] == b'\n');
                    at += 1;
                }
                out.push(Token {
                    kind: Kind::Text(&text[start..at]),
                    line,
                });
                at += 1;
            }
            _ if is_word(byte) => {
                let start = at;
                at += 1;
                loop {
                    // `.reg.b32` is two words: a directive, and a type
                    at += bytes[at..]
                        .iter()
                        .take_while(|&&next| is_word(next) && !(next == b'.' && byte == b'.'))
                        .count();
                    // `shared::cta` is one word; `label:` is a word and a mark
                    let joined = bytes.get(at) == Some(&b':')
                        && bytes.get(at + 1) == Some(&b':')
                        && bytes.get(at + 2).is_some_and(|&next| is_word(next));
                    if !joined {
                        break;
                    }
                    at += 2;
                }
                out.push(Token {
                    kind: Kind::Word(&text[start..at]),
                    line,
                });
            }
            // white space, the NUL that ends a C string, and stray bytes outside ASCII
            _ if byte.is_ascii_graphic() => {
                out.push(Token {
                    kind: Kind::Mark(byte),
                    line,
                });
                at += 1;
            }
            _ => at += 1,
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_join_over_double_colons_and_stop_at_single_ones() {
        let kinds: Vec<_> = tokens("L1: cp.async.L2::128B [%r1], 4; // x\n/* y\n */ a")
            .into_iter()
            .map(|t| (t.kind, t.line))
            .collect();
        assert_eq!(kinds[0], (Kind::Word("L1"), 1));
        assert_eq!(kinds[1], (Kind::Mark(b':'), 1));
        assert_eq!(kinds[2], (Kind::Word("cp.async.L2::128B"), 1));
        assert_eq!(kinds.last(), Some(&(Kind::Word("a"), 3)));
    }

    #[test]
    fn a_directive_ends_at_the_next_dot_and_an_opcode_does_not() {
        let kinds = |text| tokens(text).into_iter().map(|t| t.kind).collect::<Vec<_>>();
        assert_eq!(kinds(".reg.b32 f"), kinds(".reg .b32 f"));
        assert_eq!(kinds("ld.param.b32").len(), 1);
    }
}
