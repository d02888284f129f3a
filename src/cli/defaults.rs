//! Puts the defaults of the configuration into the help of the flags.

use clap::{Arg, Command};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::{AttachSection, ControllerSection, GatewaySection, ModelSection, WorkerSection};

/// The command line with its defaults shown.
pub(super) fn show(command: Command) -> Command {
    let worker = [values(WorkerSection::defaults()), values(ModelSection::defaults())].concat();
    let mut up = values(GatewaySection::defaults());
    up.retain(|(name, _)| name != "threads"); // there it is the name of the models' flag
    let up = [up, values(ModelSection::defaults()), policy()].concat();
    [
        ("controller", values(ControllerSection::defaults())),
        ("worker", worker),
        ("gateway", values(GatewaySection::defaults())),
        ("attach", values(AttachSection::defaults())),
        ("up", up),
    ]
    .into_iter()
    .fold(command, |command, (verb, defaults)| {
        command.mut_subcommand(verb, |verb| verb.mut_args(|arg| with_default(arg, &defaults)))
    })
}

/// Name and value of each knob that has a default.
fn values(section: impl Serialize) -> Vec<(String, String)> {
    let fields = match serde_json::to_value(section) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(), // a section is an object
    };
    let text = |value: Value| match value {
        Value::Null | Value::Bool(false) => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    fields.into_iter().filter_map(|(name, value)| Some((name, text(value)?))).collect()
}

/// The one knob of the controller that `up` takes as a flag.
fn policy() -> Vec<(String, String)> {
    values(ControllerSection::defaults()).into_iter().filter(|(name, _)| name == "policy").collect()
}

fn with_default(arg: Arg, defaults: &[(String, String)]) -> Arg {
    let Some((_, value)) = defaults.iter().find(|(name, _)| arg.get_id() == name.as_str()) else { return arg };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    arg.help(format!("{help} [default: {value}]"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_help_tells_the_defaults() {
        let mut command = show(super::super::Cli::command());
        for (verb, part) in [
            ("controller", "worker [default: 5s]"),
            ("controller", "shortest_queue, round_robin, power_of_two"),
            ("controller", "[default: shortest_queue]"),
            ("worker", "run together [default: 16]"),
            ("gateway", "one request [default: 3]"),
            ("up", "[default: 8000]"),
            ("attach", "[default: openai]"),
        ] {
            let help = command.find_subcommand_mut(verb).expect("a verb").render_help().to_string();
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(help.contains(part), "{verb}: no `{part}` in:\n{help}");
        }
    }
}
