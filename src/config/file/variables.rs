//! `${NAME}` in the file: puts variables in the place of their names, so that no value can change what the rest says.
//!
//! This follows YAML just so far as to know what surrounds a name: a quoted text, a value of its own, or other text.

use std::fmt;

/// What the file says with its variables put in.
#[derive(Debug, Default)]
pub(super) struct Filled {
    /// YAML, line for line as in the file.
    pub(super) text: String,
    variables: Vec<Variable>,
}

/// A variable that was put in.
#[derive(Debug)]
struct Variable {
    name: String,
    value: String,
    /// Where its name is in the file.
    place: Place,
    /// Characters of `${NAME}`, and of what stands there now.
    width: (usize, usize),
}

/// A place in a text, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl Filled {
    /// The place in the file that belongs to a place in [`Self::text`].
    pub(super) fn in_file(&self, place: Place) -> Place {
        let mut shift = 0isize; // how much further right things are than in the file
        for variable in self.variables.iter().filter(|variable| variable.place.line == place.line) {
            let begin = variable.place.column.saturating_add_signed(shift);
            if place.column < begin + variable.width.1 {
                let inside = place.column >= begin;
                return if inside { variable.place } else { shifted(place, shift) };
            }
            shift += variable.width.1 as isize - variable.width.0 as isize;
        }
        shifted(place, shift)
    }

    /// `message` with the names of variables instead of their values.
    pub(super) fn hide(&self, message: &str) -> String {
        let mut variables: Vec<&Variable> =
            self.variables.iter().filter(|variable| !variable.value.is_empty()).collect();
        variables.sort_by_key(|variable| std::cmp::Reverse(variable.value.len()));
        variables.into_iter().fold(message.to_owned(), |message, Variable { name, value, .. }| {
            let name = format!("${{{name}}}");
            let debug = format!("{value:?}"); // as serde shows strings
            message.replace(&debug, &name).replace(value.as_str(), &name)
        })
    }
}

fn shifted(place: Place, shift: isize) -> Place {
    Place { column: place.column.saturating_add_signed(-shift), ..place }
}

/// Puts variables in the place of their names.
///
/// # Errors
/// With the place, and without any value, when there is no such variable or its value cannot stand there.
pub(super) fn fill(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Filled, String> {
    let mut scan = Scan { filled: Filled::default(), lookup, state: State::default() };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        scan.line(number + 1, line)?;
    }
    Ok(scan.filled)
}

/// What surrounds a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Around {
    /// Nothing: it is a value of its own.
    Nothing,
    /// A text in double quotes.
    Double,
    /// A text in single quotes.
    Single,
    /// Text without quotes.
    Text,
}

impl Around {
    /// `value` as YAML.
    fn write(self, value: &str) -> Result<String, &'static str> {
        match self {
            Self::Nothing => Ok(format!("\"{}\"", escape(value))),
            Self::Double => Ok(escape(value)),
            Self::Single if value.contains(char::is_control) => Err("holds line breaks; put double quotes around it"),
            Self::Single => Ok(value.replace('\'', "''")),
            Self::Text if !value.ends_with(':') && value.chars().all(is_harmless) => Ok(value.to_owned()),
            Self::Text => Err("holds characters that mean something in YAML; put double quotes around the whole text"),
        }
    }
}

/// `value` as it stands between double quotes.
fn escape(value: &str) -> String {
    // A JSON string is a YAML string; but YAML wants a few more characters escaped.
    let json = serde_json::Value::from(value).to_string();
    let escape = |c: char| {
        if c.is_control() || "\u{2028}\u{2029}\u{feff}".contains(c) {
            format!("\\u{:04x}", u32::from(c))
        } else {
            c.to_string()
        }
    };
    json[1..json.len() - 1].chars().map(escape).collect()
}

/// Whether a character means nothing in YAML, wherever in a text without quotes it stands.
fn is_harmless(c: char) -> bool {
    c.is_alphanumeric() || "_-./:@+=".contains(c)
}

/// Where the scan is.
#[derive(Debug)]
struct State {
    /// The quote that is open.
    quote: Option<char>,
    /// How many `[` and `{` are open.
    depth: usize,
    /// Whether the next character begins a value or a key.
    fresh: bool,
    /// Column of the key or dash to which what follows belongs; text without quotes goes on in lines further right.
    parent: Option<usize>,
    /// Whether a text with `|` or `>` is open.
    block: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { quote: None, depth: 0, fresh: true, parent: None, block: false }
    }
}

struct Scan<Lookup> {
    filled: Filled,
    lookup: Lookup,
    state: State,
}

impl<Lookup: Fn(&str) -> Option<String>> Scan<Lookup> {
    fn line(&mut self, number: usize, line: &str) -> Result<(), String> {
        let content = line.trim_start_matches(' ');
        let indent = line.len() - content.len();
        let text = self.begin_line(indent, content);
        let mut rest = line;
        let mut column = 0; // of `rest`, in characters, from 0
        let mut token = indent; // column at which the key or value began
        let mut last = ' ';
        while let Some(c) = rest.chars().next() {
            let after = &rest[c.len_utf8()..];
            let next = after.chars().next().unwrap_or('\n');
            let in_text = text && self.state.quote.is_none();
            let mut taken = c.len_utf8();
            if c == '#' && last.is_whitespace() && self.state.quote.is_none() && !(text && self.state.block) {
                break; // a comment
            } else if c == '$' && next == '{' {
                let place = Place { line: number, column: column + 1 };
                let name = after[1..].split_once('}').map(|(name, _)| name).filter(|name| !name.contains('\n'));
                let name = name.ok_or_else(|| format!("{place}: `${{` without `}}`"))?;
                taken = name.len() + "${}".len();
                let around = if in_text { Around::Text } else { self.around(&rest[taken..]) };
                self.put(place, name, around)?;
                if self.state.fresh {
                    token = column;
                }
                self.state.fresh = false;
                (column, rest, last) = (column + rest[..taken].chars().count(), &rest[taken..], '}');
                continue;
            } else if let Some(quote) = self.state.quote {
                let escape = quote == '"' && c == '\\' || quote == '\'' && c == '\'' && next == '\'';
                if escape && next != '\n' {
                    taken += next.len_utf8();
                } else if c == quote {
                    self.state.quote = None;
                }
            } else if !in_text {
                if self.state.fresh && !c.is_whitespace() {
                    token = column;
                }
                self.note(c, next, last, token);
            }
            self.filled.text.push_str(&rest[..taken]);
            column += rest[..taken].chars().count();
            (rest, last) = (&rest[taken..], c);
        }
        self.filled.text.push_str(rest);
        Ok(())
    }

    /// Whether the whole line is text without quotes: more of a `|`, or of a value that began on a line before.
    fn begin_line(&mut self, indent: usize, content: &str) -> bool {
        let state = &mut self.state;
        if state.quote.is_some() || state.depth > 0 {
            return false;
        }
        if content.starts_with("---") || content.starts_with("...") {
            *state = State::default();
            return false;
        }
        let inner = content.trim().is_empty() || state.parent.is_none_or(|parent| indent > parent);
        let first = state.parent.is_none() && state.fresh;
        if inner && !first && (state.block || !state.fresh) {
            return true;
        }
        (state.block, state.fresh) = (false, true);
        false
    }

    /// Follows one character outside of quotes.
    fn note(&mut self, c: char, next: char, last: char, token: usize) {
        let state = &mut self.state;
        let ends = next.is_whitespace();
        match c {
            _ if c.is_whitespace() => {}
            '"' | '\'' if state.fresh => (state.quote, state.fresh) = (Some(c), false),
            '|' | '>' if state.fresh && state.depth == 0 => (state.block, state.fresh) = (true, false),
            '[' | '{' if state.fresh => state.depth += 1,
            ']' | '}' if state.depth > 0 => (state.depth, state.fresh) = (state.depth - 1, false),
            ',' if state.depth > 0 => state.fresh = true,
            ':' if ends || state.depth > 0 && ("\"'".contains(last) || ",[]{}".contains(next)) => {
                state.fresh = true;
                if state.depth == 0 {
                    state.parent = Some(token);
                }
            }
            '-' | '?' if ends && state.fresh => {
                if state.depth == 0 {
                    state.parent = Some(token);
                }
            }
            _ => state.fresh = false,
        }
    }

    /// What surrounds a name that `rest` follows.
    fn around(&self, rest: &str) -> Around {
        let alone = || {
            let ends = rest.is_empty() || rest.starts_with(char::is_whitespace);
            let next = rest.trim_start();
            match next.chars().next() {
                None | Some('\n') => true,
                Some('#') => ends,
                Some(',' | ']' | '}') => self.state.depth > 0,
                Some(':') => next[1..].is_empty() || next[1..].starts_with(char::is_whitespace),
                Some(_) => false,
            }
        };
        match self.state.quote {
            Some('"') => Around::Double,
            Some(_) => Around::Single,
            None if self.state.fresh && alone() => Around::Nothing,
            None => Around::Text,
        }
    }

    fn put(&mut self, place: Place, name: &str, around: Around) -> Result<(), String> {
        let value = (self.lookup)(name);
        let value = value.ok_or_else(|| format!("{place}: the environment has no variable `{name}`"))?;
        let written = around.write(&value).map_err(|why| format!("{place}: the variable `{name}` {why}"))?;
        self.filled.text.push_str(&written);
        let width = (name.chars().count() + "${}".len(), written.chars().count());
        self.filled.variables.push(Variable { name: name.to_owned(), value, place, width });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// What YAML makes of `text` when `V` holds `value`.
    fn read(text: &str, value: &str) -> Result<Value, String> {
        let filled = fill(text, |name| (name == "V").then(|| value.to_owned()))?;
        serde_saphyr::from_str(&filled.text).map_err(|error| format!("{error} in {}", filled.text))
    }

    #[test]
    fn every_place_is_told_apart() {
        let nasty = "a: b # \"c\" 'd' [x, y]";
        for (text, expected) in [
            ("k: ${V}", json!({ "k": nasty })),
            ("k: ${V} # ${NO}", json!({ "k": nasty })),
            ("# ${NO}\nk: \"<${V}>\"", json!({ "k": format!("<{nasty}>") })),
            ("k: '<${V}> it''s'", json!({ "k": format!("<{nasty}> it's") })),
            ("k: \"\\\"${V}\"", json!({ "k": format!("\"{nasty}") })),
            ("k: [${V}, \"${V}\", '${V}']", json!({ "k": [nasty, nasty, nasty] })),
            ("k: [a b\n  , ${V}]", json!({ "k": ["a b", nasty] })),
            ("- ${V}\n- a: ${V}\n  b: ${V}\n", json!([nasty, { "a": nasty, "b": nasty }])),
            ("k:\n  ${V}\nl: 1", json!({ "k": nasty, "l": 1 })),
            ("${V}: 1", json!({ (nasty): 1 })),
            ("{\"k\":\"${V}\",\"l\":${V}}", json!({ "k": nasty, "l": nasty })),
            ("k: \"a\n  ${V}\"", json!({ "k": format!("a {nasty}") })),
            ("j: it's\nk: ${V}", json!({ "j": "it's", "k": nasty })),
            ("j: say \"hi\nk: ${V}", json!({ "j": "say \"hi", "k": nasty })),
            ("j: a, \"b\nk: ${V}", json!({ "j": "a, \"b", "k": nasty })),
            ("j: a\n  \"b\nk: ${V}", json!({ "j": "a \"b", "k": nasty })),
            ("j: |\n  \"b # c\nk: ${V}", json!({ "j": "\"b # c\n", "k": nasty })),
        ] {
            assert_eq!(read(text, nasty), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_text_takes_harmless_values_only() {
        assert_eq!(read("k: http://${V}:80/x", "10.0.0.1"), Ok(json!({ "k": "http://10.0.0.1:80/x" })));
        for text in
            ["k: x${V}", "k: ${V} y", "k: a\n  ${V}", "k: |\n  ${V}\n", "k: |\n  # ${V}", "k: !t ${V}", "k: [a ${V}]"]
        {
            for value in ["a b", "a: b", "x:", "x\ny: 1", "\"", "{", "a,b", "*x", "#"] {
                let error = read(text, value).expect_err(text);
                assert!(error.contains("the variable `V` holds characters") && error.starts_with("line "), "{error}");
            }
        }
        let error = read("k: 'x${V}'", "two\nlines").expect_err("line break");
        assert_eq!(error, "line 1, column 6: the variable `V` holds line breaks; put double quotes around it");
    }

    #[test]
    fn missing_variables_and_braces_are_named_with_their_place() {
        assert_eq!(
            read("a: 1\nb: ${NO}", "").expect_err("no such variable"),
            "line 2, column 4: the environment has no variable `NO`"
        );
        assert_eq!(read("a: ${V\n", "").expect_err("no brace"), "line 1, column 4: `${` without `}`");
    }

    #[test]
    fn places_are_those_of_the_file() {
        let filled = fill("k: [${V}, ${V}, x]", |_| Some("0123456789".to_owned())).expect("it is there");
        assert_eq!(filled.text, r#"k: ["0123456789", "0123456789", x]"#);
        for (now, in_file) in [(1, 1), (4, 4), (5, 5), (12, 5), (17, 9), (19, 11), (33, 17)] {
            let place = |column| Place { line: 1, column };
            assert_eq!(filled.in_file(place(now)), place(in_file));
            assert_eq!(filled.in_file(Place { line: 2, column: now }), Place { line: 2, column: now });
        }
    }

    proptest! {
        /// Whatever a variable holds, the file says that and nothing else.
        #[test]
        fn a_value_changes_nothing_around_it(value in any::<String>()) {
            let text = "a: ${V}\nb: \"<${V}>\"\nc: [${V}, {d: ${V}}]\n";
            let whole = json!({ "a": value, "b": format!("<{value}>"), "c": [value, { "d": value }] });
            prop_assert_eq!(read(text, &value), Ok(whole));
            if let Ok(read) = read("a: '<${V}>'", &value) {
                prop_assert_eq!(read, json!({ "a": format!("<{value}>") }));
            }
            if let Ok(read) = read("a: x${V}y", &value) {
                prop_assert_eq!(read, json!({ "a": format!("x{value}y") }));
            }
        }
    }
}
