//! Words, texts and marks.

use std::fmt;
use std::iter::Peekable;
use std::ops::RangeInclusive;
use std::str::Chars;

use super::SyntaxError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A name or a number.
    Word(String),
    /// What stands in quotes.
    Text(Vec<u8>),
    /// Anything else.
    Mark(char),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Text(text) => write!(f, "\"{}\"", text.escape_ascii()),
            Self::Mark(mark) => write!(f, "`{mark}`"),
        }
    }
}

pub(super) struct Tokens<'a> {
    rest: Peekable<Chars<'a>>,
    /// The line that `rest` is on.
    line: usize,
    /// What comes next, where it was looked at, and the line after it.
    next: Option<(Option<Token>, usize)>,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text.chars().peekable(), line: 1, next: None }
    }

    /// The line of the token that was taken last.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn next(&mut self) -> Result<Option<Token>, SyntaxError> {
        match self.next.take() {
            Some((token, line)) => {
                self.line = line;
                Ok(token)
            }
            None => self.read(),
        }
    }

    pub(super) fn peek(&mut self) -> Result<Option<Token>, SyntaxError> {
        if let Some((token, _)) = &self.next {
            return Ok(token.clone());
        }
        let line = self.line;
        let token = self.read()?;
        self.next = Some((token.clone(), std::mem::replace(&mut self.line, line)));
        Ok(token)
    }

    /// Takes a mark if it comes next.
    pub(super) fn take_mark(&mut self, mark: char) -> Result<bool, SyntaxError> {
        let comes = self.peek()? == Some(Token::Mark(mark));
        if comes {
            self.next()?;
        }
        Ok(comes)
    }

    fn read(&mut self) -> Result<Option<Token>, SyntaxError> {
        self.skip();
        let Some(&c) = self.rest.peek() else { return Ok(None) };
        Ok(Some(match c {
            '"' | '\'' => Token::Text(self.text()?),
            c if is_word(c) => Token::Word(self.word()),
            mark => {
                self.advance();
                Token::Mark(mark)
            }
        }))
    }

    fn advance(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    /// Passes over spaces and comments.
    fn skip(&mut self) {
        while let Some(&c) = self.rest.peek() {
            match c {
                '#' => {
                    while self.rest.peek().is_some_and(|&c| c != '\n') {
                        self.advance();
                    }
                }
                c if c.is_whitespace() || c == '\u{feff}' => drop(self.advance()),
                _ => return,
            }
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(&c) = self.rest.peek() {
            // The sign of an exponent belongs to its number.
            let is_sign = (c == '-' || c == '+')
                && word.starts_with(|c: char| c.is_ascii_digit() || c == '.')
                && !word.starts_with("0x")
                && word.ends_with(['e', 'E']);
            if !is_word(c) && !is_sign {
                break;
            }
            word.push(c);
            self.advance();
        }
        word
    }

    fn text(&mut self) -> Result<Vec<u8>, SyntaxError> {
        let line = self.line;
        let refuse = |reason: &str| Err(SyntaxError { line, reason: reason.to_owned() });
        let quote = self.advance();
        let mut text = Vec::new();
        loop {
            match self.advance() {
                None | Some('\n') => return refuse("a text has no closing quote on its line"),
                c if c == quote => return Ok(text),
                Some('\\') => match self.escaped() {
                    Some(Escaped::Byte(byte)) => text.push(byte),
                    Some(Escaped::Char(c)) => push(&mut text, c),
                    None => return refuse("a text holds an escape that does not exist; `\\\\` is a backslash"),
                },
                Some(c) => push(&mut text, c),
            }
        }
    }

    /// What follows a backslash.
    fn escaped(&mut self) -> Option<Escaped> {
        let byte = |byte| Some(Escaped::Byte(byte));
        match self.advance()? {
            'a' => byte(7),
            'b' => byte(8),
            't' => byte(b'\t'),
            'n' => byte(b'\n'),
            'v' => byte(11),
            'f' => byte(12),
            'r' => byte(b'\r'),
            c @ ('\\' | '\'' | '"' | '?') => Some(Escaped::Char(c)),
            'x' | 'X' => byte(u8::try_from(self.number(16, 0, 1..=2)?).ok()?),
            'u' => char::from_u32(self.number(16, 0, 4..=4)?).map(Escaped::Char),
            'U' => char::from_u32(self.number(16, 0, 8..=8)?).map(Escaped::Char),
            first => byte(u8::try_from(self.number(8, first.to_digit(8)?, 0..=2)?).ok()?),
        }
    }

    /// Digits that follow the number `begun`, as many as there may be; `None` where there are too few.
    fn number(&mut self, radix: u32, begun: u32, digits: RangeInclusive<usize>) -> Option<u32> {
        let (mut number, mut taken) = (begun, 0);
        while taken < *digits.end()
            && let Some(digit) = self.rest.peek().and_then(|c| c.to_digit(radix))
        {
            self.advance();
            number = number.checked_mul(radix)?.checked_add(digit)?;
            taken += 1;
        }
        (taken >= *digits.start()).then_some(number)
    }
}

enum Escaped {
    Byte(u8),
    Char(char),
}

fn push(text: &mut Vec<u8>, c: char) {
    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}
