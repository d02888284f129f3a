//! Renders a conversation with the model's own chat template, as transformers does.
//!
//! A template is Jinja text that came with the model. It is run by minijinja with transformers' settings and with Python's
//! ways where they show in a prompt (`python`). What still differs: `a ~ b` writes `true` for Python's `True`; dates are
//! UTC; the contents of a turn are text, and empty where the client sent none.
//!
//! Rendering reads no files: there is no loader, so `include` and `import` find nothing. Its work is bounded in
//! instructions of the template. A template that makes a long text longer and longer is not stopped before memory is:
//! it comes from whoever chose the model, and clients only fill in its variables.

mod date;
mod generation;
mod python;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use minijinja::{Environment, ErrorKind};
use muster_shared::generate::{Chat, Message};
use serde_json::{Map, Value};

/// Instructions one rendering may take: less than a second, and enough for some 100,000 turns.
const FUEL: u64 = 10_000_000;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Why there is no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is broken: nothing can be rendered with it.
    #[error("chat template does not compile, line {line}: {reason}")]
    Compile {
        /// Where, counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// `tokenizer_config.json` holds something else than a template.
    #[error("`chat_template` in tokenizer_config.json is neither text nor a list with a template named `default`")]
    NoTemplate,
    /// The template itself refuses the conversation; its own words, meant for the client.
    #[error("{0}")]
    Raised(String),
    /// The conversation is not what the template expects, or the template has a mistake that shows only now.
    #[error("chat template failed, line {line}: {reason}")]
    Render {
        /// Where, counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The conversation has too many turns, or the template does not end.
    #[error("chat template takes more than {FUEL} steps for this conversation")]
    TooLong,
}

/// The control tokens that templates name as variables, as they stand in the vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of tokenizer_config.json and say it all")]
pub struct SpecialTokens {
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    pub pad_token: Option<String>,
    pub unk_token: Option<String>,
}

impl SpecialTokens {
    /// Reads them from a `tokenizer_config.json`, where each is text, or an object with the text as `content`, or absent.
    pub fn from_config(tokenizer_config: &Value) -> Self {
        let token = |name: &str| {
            let token = &tokenizer_config[name];
            token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
        };
        Self {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            pad_token: token("pad_token"),
            unk_token: token("unk_token"),
        }
    }

    /// An absent token is an undefined variable, as with transformers.
    fn into_variables(self) -> Map<String, Value> {
        let Self { bos_token, eos_token, pad_token, unk_token } = self;
        let tokens =
            [("bos_token", bos_token), ("eos_token", eos_token), ("pad_token", pad_token), ("unk_token", unk_token)];
        tokens.into_iter().filter_map(|(name, token)| Some((name.to_owned(), Value::String(token?)))).collect()
    }
}

/// A compiled chat template; cheap to clone.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Compiles Jinja text.
    ///
    /// # Errors
    /// [`TemplateError::Compile`], with the line.
    pub fn new(source: &str, specials: SpecialTokens) -> Result<Self, TemplateError> {
        Self::with_templates([(DEFAULT, source)], specials)
    }

    /// Finds the template among a model's files: `jinja` is the text of `chat_template.jinja`, which wins;
    /// `tokenizer_config.json` has another in `chat_template`, as text or as a list of `{name, template}`. Of a list,
    /// `default` is taken, and `tool_use`, where there is one, for conversations with tools. `None` when the model has none.
    ///
    /// # Errors
    /// [`TemplateError::Compile`]; [`TemplateError::NoTemplate`] when `chat_template` is something else, or has no default.
    pub fn from_files(jinja: Option<&str>, tokenizer_config: Option<&Value>) -> Result<Option<Self>, TemplateError> {
        let specials = tokenizer_config.map(SpecialTokens::from_config).unwrap_or_default();
        if let Some(source) = jinja {
            return Self::new(source, specials).map(Some);
        }
        match tokenizer_config.and_then(|config| config.get("chat_template")) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(source)) => Self::new(source, specials).map(Some),
            Some(Value::Array(list)) => {
                let named = |name: &'static str| {
                    let entry = list.iter().find(|entry| entry["name"] == name)?;
                    entry["template"].as_str().map(|source| (name, source))
                };
                let default = named(DEFAULT).ok_or(TemplateError::NoTemplate)?;
                Self::with_templates([default].into_iter().chain(named(TOOL_USE)), specials).map(Some)
            }
            Some(_) => Err(TemplateError::NoTemplate),
        }
    }

    fn with_templates<'a>(
        templates: impl IntoIterator<Item = (&'static str, &'a str)>,
        specials: SpecialTokens,
    ) -> Result<Self, TemplateError> {
        let mut environment = python::environment();
        environment.add_function("strftime_now", date::strftime_now);
        environment.set_fuel(Some(FUEL));
        for (name, source) in templates {
            let source = generation::as_conditions(source);
            environment
                .add_template_owned(name, source)
                .map_err(|error| TemplateError::Compile { line: error.line().unwrap_or(1), reason: reason(&error) })?;
        }
        Ok(Self { environment: Arc::new(environment), special_tokens: specials.into_variables() })
    }

    /// The prompt for the next turn.
    ///
    /// The template sees `messages`, the special tokens, `tools` and `documents` (none unless given),
    /// `add_generation_prompt` (true unless given), and whatever else `chat.template_arguments` names.
    ///
    /// Some microseconds a turn: work for a blocking thread when there are thousands.
    ///
    /// # Errors
    /// [`TemplateError::Raised`], [`TemplateError::Render`] or [`TemplateError::TooLong`].
    pub fn render(&self, chat: &Chat) -> Result<String, TemplateError> {
        let mut variables = self.special_tokens.clone();
        variables.insert("tools".to_owned(), Value::Null);
        variables.insert("documents".to_owned(), Value::Null);
        variables.insert("add_generation_prompt".to_owned(), Value::Bool(true));
        variables.extend(chat.template_arguments.clone());
        variables.insert("messages".to_owned(), chat.messages.iter().map(variable).collect());

        let has_tools = variables["tools"].as_array().is_some_and(|tools| !tools.is_empty());
        let for_tools = self.environment.get_template(TOOL_USE).ok().filter(|_| has_tools);
        let template = match for_tools {
            Some(template) => Ok(template),
            None => self.environment.get_template(DEFAULT),
        };
        template.and_then(|template| template.render(variables)).map_err(render_error)
    }
}

/// A turn as templates expect it.
///
/// They write `content` without a look at whether there is any, so a turn without text has an empty one. They expect the
/// arguments of a tool call as an object, which clients send as JSON text. (vLLM does both.)
fn variable(message: &Message) -> Value {
    let mut turn = Map::new();
    turn.insert("role".to_owned(), Value::String(message.role.clone()));
    turn.insert("content".to_owned(), Value::String(message.content.clone().unwrap_or_default()));
    turn.extend(message.more.clone());
    for call in turn.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments") {
            parse_arguments(arguments);
        }
    }
    Value::Object(turn)
}

/// Text that is no JSON object stays: the model once wrote it so.
fn parse_arguments(arguments: &mut Value) {
    let parsed = match arguments.as_str() {
        Some("") => Some(Map::new()),
        Some(text) => serde_json::from_str(text).ok(),
        None => None,
    };
    if let Some(parsed) = parsed {
        *arguments = Value::Object(parsed);
    }
}

fn render_error(error: minijinja::Error) -> TemplateError {
    // An error inside a macro or a loop is the source of the error outside.
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    for cause in chain {
        if let Some(python::Raised(message)) = cause.downcast_ref() {
            return TemplateError::Raised(message.clone());
        }
        if cause.downcast_ref::<minijinja::Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::TooLong;
        }
    }
    TemplateError::Render { line: error.line().unwrap_or(1), reason: reason(&error) }
}

fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
