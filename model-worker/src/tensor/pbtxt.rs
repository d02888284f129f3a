//! Protobuf's text format as a tree with line numbers: the form of Triton's `config.pbtxt`.
//!
//! No schema is needed: what a name means is the reader's affair. Taken are the spellings that protobuf's own parser
//! takes (protobuf.dev, Text Format Language Specification): `name: 1`, `name { … }`, `name < … >`, lists, comments,
//! strings in either quotes that follow one another, and `,` or `;` between fields.

use std::fmt;

mod token;

use token::{Token, Tokens};

/// Depth of messages within messages beyond which nobody's configuration goes.
const DEEPEST: usize = 32;

/// The fields of a message, in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message(pub Vec<Field>);

/// A field of a message; one that is a list has one for each element.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// The line it is on, from 1.
    pub line: usize,
    /// What it is.
    pub value: Value,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// In quotes, with what was escaped.
    Text(Vec<u8>),
    /// Whatever stands there without quotes: a number, `true`, the name of an enum's value.
    Word(String),
    /// Fields of its own.
    Message(Message),
}

/// Why a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct SyntaxError {
    /// The line, from 1.
    pub line: usize,
    /// What was found, and what was expected.
    pub reason: String,
}

/// Reads a text.
///
/// # Errors
/// [`SyntaxError`] for the first place where it is none.
pub fn parse(text: &str) -> Result<Message, SyntaxError> {
    let mut parser = Parser { tokens: Tokens::new(text), depth: 0 };
    let message = parser.fields(None)?;
    Ok(message)
}

struct Parser<'a> {
    tokens: Tokens<'a>,
    depth: usize,
}

impl Parser<'_> {
    fn refuse<T>(&self, reason: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.tokens.line(), reason: reason.into() })
    }

    /// Fields up to `end`, or to the end of the text.
    fn fields(&mut self, end: Option<char>) -> Result<Message, SyntaxError> {
        let mut fields = Vec::new();
        loop {
            match (self.tokens.peek()?, end) {
                (None, None) => return Ok(Message(fields)),
                (None, Some(end)) => return self.refuse(format!("the text ends; expected `{end}`")),
                (Some(Token::Mark(mark)), Some(end)) if mark == end => {
                    self.tokens.next()?;
                    return Ok(Message(fields));
                }
                (Some(Token::Mark(',' | ';')), _) if !fields.is_empty() => drop(self.tokens.next()?),
                _ => self.field(&mut fields)?,
            }
        }
    }

    fn field(&mut self, fields: &mut Vec<Field>) -> Result<(), SyntaxError> {
        let name = self.name()?;
        let line = self.tokens.line();
        let has_colon = self.tokens.take_mark(':')?;
        let mut add = |value| fields.push(Field { name: name.clone(), line, value });
        if self.tokens.take_mark('[')? {
            let mut first = true;
            while !self.tokens.take_mark(']')? {
                if !first && !self.tokens.take_mark(',')? {
                    return self.refuse(format!("expected `,` or `]` in the list `{name}`"));
                }
                add(self.value(&name)?);
                first = false;
            }
            return Ok(());
        }
        let is_message = matches!(self.tokens.peek()?, Some(Token::Mark('{' | '<')));
        if !has_colon && !is_message {
            return self.refuse(format!("expected `:` or `{{` after `{name}`"));
        }
        add(self.value(&name)?);
        Ok(())
    }

    /// A field's name; that of an extension stands in brackets.
    fn name(&mut self) -> Result<String, SyntaxError> {
        match self.tokens.next()? {
            Some(Token::Word(word)) if word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => Ok(word),
            Some(Token::Mark('[')) => {
                let mut name = "[".to_owned();
                loop {
                    match self.tokens.next()? {
                        Some(Token::Word(word)) => name.push_str(&word),
                        Some(Token::Mark('/')) => name.push('/'),
                        Some(Token::Mark(']')) => return Ok(name + "]"),
                        _ => return self.refuse("expected a name in brackets"),
                    }
                }
            }
            Some(token) => self.refuse(format!("found {token}; expected the name of a field")),
            None => self.refuse("the text ends; expected the name of a field"),
        }
    }

    fn value(&mut self, name: &str) -> Result<Value, SyntaxError> {
        match self.tokens.next()? {
            Some(Token::Mark(open @ ('{' | '<'))) => {
                self.depth += 1;
                if self.depth > DEEPEST {
                    return self
                        .refuse(format!("`{name}` is the {DEEPEST}th message within another; that is too deep"));
                }
                let message = self.fields(Some(if open == '{' { '}' } else { '>' }))?;
                self.depth -= 1;
                Ok(Value::Message(message))
            }
            Some(Token::Text(mut text)) => {
                while let Some(Token::Text(more)) = self.tokens.peek()? {
                    self.tokens.next()?;
                    text.extend(more); // strings that follow one another are one
                }
                Ok(Value::Text(text))
            }
            Some(Token::Mark('-')) => match self.tokens.next()? {
                Some(Token::Word(word)) => Ok(Value::Word(format!("-{word}"))),
                _ => self.refuse(format!("expected a number after `-` in `{name}`")),
            },
            Some(Token::Word(word)) => Ok(Value::Word(word)),
            Some(token) => self.refuse(format!("found {token}; expected the value of `{name}`")),
            None => self.refuse(format!("the text ends; expected the value of `{name}`")),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|field| writeln!(f, "{field}"))
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Text(text) => write!(f, "{}: \"{}\"", self.name, text.escape_ascii()),
            Value::Word(word) => write!(f, "{}: {word}", self.name),
            Value::Message(message) => write!(f, "{} {{\n{message}}}", self.name),
        }
    }
}

#[cfg(test)]
mod tests;
