//! Renders a conversation by a FastChat worker's template, in all of FastChat's styles.
//!
//! Source: `Conversation.get_prompt` of FastChat 0.2.36, and three styles of later commits.

use muster_shared::fastchat::Conversation;
use muster_shared::generate::{Chat, Message};
use muster_shared::problem::{Kind, Problem};
use serde_json::Value;

/// The prompt of a conversation: the template's examples, the client's turns, and an open turn of the assistant.
///
/// # Errors
/// [`Kind::Invalid`] for what the template has no place for, [`Kind::Upstream`] for a style that nobody knows.
pub(super) fn render(template: &Conversation, chat: &Chat) -> Result<String, Problem> {
    let style = Style::from_number(template.sep_style).ok_or_else(|| {
        let message = format!("the worker's conversation template has the unknown style {}", template.sep_style);
        Problem::new(Kind::Upstream, message)
    })?;
    check_arguments(chat)?;
    let mut system = template.system_message.as_str();
    let mut turns: Vec<(&str, &str)> =
        template.messages.iter().map(|(role, text)| (role.as_str(), text.as_str())).collect();
    let [user, assistant] = &template.roles;
    for message in &chat.messages {
        check_message(message)?;
        let text = message.content.as_deref().unwrap_or_default();
        match message.role.as_str() {
            "system" if !takes_system(template, style) && !text.is_empty() => {
                return Err(Problem::invalid("messages", "this model's FastChat template takes no system message"));
            }
            "system" => system = text, // the last one counts, as in FastChat
            "user" => turns.push((user, text)),
            "assistant" => turns.push((assistant, text)),
            other => {
                let message =
                    format!("FastChat workers know no role `{other}`; expected one of `system`, `user`, `assistant`");
                return Err(Problem::invalid("messages", message));
            }
        }
    }
    turns.push((assistant, ""));
    Ok(Script { template, style, system }.prompt(&turns))
}

/// FastChat has no words for tools and other template variables.
fn check_arguments(chat: &Chat) -> Result<(), Problem> {
    let is_default = |key: &str, value: &Value| key == "add_generation_prompt" && *value == Value::Bool(true);
    match chat.template_arguments.iter().find(|(key, value)| !is_empty(value) && !is_default(key, value)) {
        Some((key, _)) => Err(Problem::invalid(
            key,
            format!("this model is served by a FastChat worker, whose template does not know {key}; leave it out"),
        )),
        None => Ok(()),
    }
}

fn check_message(message: &Message) -> Result<(), Problem> {
    match message.more.iter().find(|(_, value)| !is_empty(value)) {
        Some((key, _)) => Err(Problem::invalid(
            "messages",
            format!("this model is served by a FastChat worker, whose messages have no {key}; leave it out"),
        )),
        None => Ok(()),
    }
}

/// Whether a value says nothing: clients send back whole messages, with `"tool_calls": null` and the like.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Where the client's system message goes in a template's `system_template`.
const SYSTEM: &str = "{system_message}";

fn takes_system(template: &Conversation, style: Style) -> bool {
    style != Style::Gemma && template.system_template.contains(SYSTEM)
}

/// How a template joins the turns; the names are FastChat's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    AddColonSingle = 1,
    AddColonTwo,
    AddColonSpaceSingle,
    NoColonSingle,
    NoColonTwo,
    AddNewLineSingle,
    Llama2,
    ChatGlm,
    ChatMl,
    ChatIntern,
    Dolly,
    Rwkv,
    Phoenix,
    Robin,
    FalconChat,
    ChatGlm3,
    DeepseekChat,
    MetaMath,
    Yuan2,
    Gemma,
    Cllm,
    Default,
}

impl Style {
    /// In the order of their numbers, from 1.
    const ALL: [Self; 22] = [
        Self::AddColonSingle,
        Self::AddColonTwo,
        Self::AddColonSpaceSingle,
        Self::NoColonSingle,
        Self::NoColonTwo,
        Self::AddNewLineSingle,
        Self::Llama2,
        Self::ChatGlm,
        Self::ChatMl,
        Self::ChatIntern,
        Self::Dolly,
        Self::Rwkv,
        Self::Phoenix,
        Self::Robin,
        Self::FalconChat,
        Self::ChatGlm3,
        Self::DeepseekChat,
        Self::MetaMath,
        Self::Yuan2,
        Self::Gemma,
        Self::Cllm,
        Self::Default,
    ];

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&style| style as u32 == number)
    }
}

/// A template with its system message, ready for the turns.
struct Script<'a> {
    template: &'a Conversation,
    style: Style,
    system: &'a str,
}

impl Script<'_> {
    fn prompt(&self, turns: &[(&str, &str)]) -> String {
        // This style's models see one exchange at a time.
        let skipped = if self.style == Style::Cllm { turns.len().saturating_sub(2) } else { 0 };
        let mut prompt = self.prefix();
        for (at, (role, text)) in turns[skipped..].iter().enumerate() {
            prompt += &if text.is_empty() { self.open_turn(at, role) } else { self.turn(at, role, text) };
        }
        if self.style == Style::Yuan2 {
            prompt.truncate(prompt.trim_end_matches(['<', 'n', '>']).len());
            prompt += &self.template.sep;
        }
        prompt
    }

    /// What stands before the turns.
    fn prefix(&self) -> String {
        use Style::*;
        let (system, sep) = (self.system_text(), self.template.sep.as_str());
        let has_message = !self.system.is_empty();
        match self.style {
            AddColonSingle | AddColonTwo | AddColonSpaceSingle | Robin | Cllm => system + sep,
            NoColonSingle | NoColonTwo | ChatIntern | Dolly | Rwkv | Phoenix | DeepseekChat => system,
            AddNewLineSingle | ChatGlm | MetaMath if !system.is_empty() => system + sep,
            ChatMl if !system.is_empty() => system + sep + "\n",
            Llama2 if !has_message => "[INST] ".to_owned(),
            Llama2 => system,
            FalconChat if has_message => system + sep,
            ChatGlm3 if has_message => system,
            Yuan2 if has_message => system + self.sep2(),
            Gemma => "<bos>".to_owned(),
            Default => system + "\n",
            AddNewLineSingle | ChatGlm | MetaMath | ChatMl | FalconChat | ChatGlm3 | Yuan2 => String::new(),
        }
    }

    /// One turn; `at` counts from 0.
    fn turn(&self, at: usize, role: &str, text: &str) -> String {
        use Style::*;
        let (sep, alternating) = (self.template.sep.as_str(), self.alternating(at));
        match self.style {
            AddColonSingle | AddColonSpaceSingle | FalconChat => format!("{role}: {text}{sep}"),
            AddColonTwo | DeepseekChat | Cllm => format!("{role}: {text}{alternating}"),
            NoColonSingle => format!("{role}{text}{sep}"),
            NoColonTwo => format!("{role}{text}{alternating}"),
            AddNewLineSingle => format!("{role}\n{text}{sep}"),
            Llama2 if at == 0 => format!("{text} "),
            Llama2 => format!("{} {text}{alternating}", self.label(at)),
            ChatGlm => format!("{}{role}：{text}{sep}", self.round(at)),
            ChatMl => format!("{role}\n{text}{sep}\n"),
            ChatIntern => format!("{}{role}:{text}{alternating}\n", sentence(at)),
            Dolly => format!("{role}:\n{text}{alternating}{}", if at % 2 == 1 { "\n\n" } else { "" }),
            Rwkv => format!("{role}: {}\n\n", text.replace("\r\n", "\n").replace("\n\n", "\n")),
            Phoenix => format!("{role}: <s>{text}</s>"),
            Robin => format!("{role}:\n{text}{sep}"),
            ChatGlm3 => format!("{role}\n{text}"),
            MetaMath if at.is_multiple_of(2) => format!("{role}:\n{text}{sep}"),
            MetaMath => format!("{role}: {}{text}", self.sep2()),
            Yuan2 => format!("{text}<n>"),
            Gemma => format!("<start_of_turn>{role}\n{text}{sep}"),
            Default => format!("{role}: {text}\n"),
        }
    }

    /// A turn without text, which the model is to write.
    fn open_turn(&self, at: usize, role: &str) -> String {
        use Style::*;
        match self.style {
            AddColonSingle | AddColonTwo | Rwkv | FalconChat | DeepseekChat | Cllm | Default => format!("{role}:"),
            AddColonSpaceSingle => format!("{role}: "),
            NoColonSingle | NoColonTwo | ChatGlm3 => role.to_owned(),
            AddNewLineSingle | ChatMl => format!("{role}\n"),
            Llama2 => self.label(at).to_owned(),
            ChatGlm => format!("{}{role}：", self.round(at)),
            ChatIntern => format!("{}{role}:", sentence(at)),
            Dolly | Robin => format!("{role}:\n"),
            Phoenix => format!("{role}: <s>"),
            MetaMath if at.is_multiple_of(2) => format!("{role}:\n"),
            MetaMath => format!("{role}: {}", self.sep2()),
            Yuan2 => String::new(),
            Gemma => format!("<start_of_turn>{role}\n"),
        }
    }

    /// The system template filled in; doubled braces stand for braces, as in Python's `format`.
    fn system_text(&self) -> String {
        let pieces: Vec<String> = self
            .template
            .system_template
            .split(SYSTEM)
            .map(|piece| piece.replace("{{", "{").replace("}}", "}"))
            .collect();
        pieces.join(self.system)
    }

    fn sep2(&self) -> &str {
        self.template.sep2.as_deref().unwrap_or_default()
    }

    fn alternating(&self, at: usize) -> &str {
        if at.is_multiple_of(2) { &self.template.sep } else { self.sep2() }
    }

    /// The label by the turn's number, whoever speaks.
    fn label(&self, at: usize) -> &str {
        &self.template.roles[at % 2]
    }

    fn round(&self, at: usize) -> String {
        let first = usize::from(self.template.name == "chatglm2");
        if at.is_multiple_of(2) { format!("[Round {}]{}", at / 2 + first, self.template.sep) } else { String::new() }
    }
}

fn sentence(at: usize) -> &'static str {
    if at.is_multiple_of(2) { "<s>" } else { "" }
}

#[cfg(test)]
mod tests;
