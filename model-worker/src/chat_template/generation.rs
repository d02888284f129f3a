//! `{% generation %}` blocks, which transformers adds to Jinja to mark what the model itself has said.

/// Turns these blocks into `{% if true %}`: they mean nothing for a prompt, and minijinja does not know them. The tags
/// stay in their places, and with them line numbers and what the tags do to the white space around them. Comments, raw
/// blocks and texts inside of other tags are left alone.
pub(super) fn as_conditions(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = next_tag(rest) {
        result.push_str(&rest[..start]);
        rest = &rest[start..];
        let (tag, after) = rest.split_at(tag_length(rest));
        match tag_name(tag) {
            "generation" => result.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => result.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => result.push_str(tag),
        }
        rest = after;
        if tag_name(tag) == "raw" {
            let (raw, after) = rest.split_at(raw_length(rest));
            result.push_str(raw);
            rest = after;
        }
    }
    result + rest
}

/// Where the next tag, expression or comment begins.
fn next_tag(text: &str) -> Option<usize> {
    text.match_indices('{').map(|(at, _)| at).find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// Length of the tag, expression or comment at the beginning of `text`; all of it when it does not end.
fn tag_length(text: &str) -> usize {
    let end = match &text[..2] {
        "{#" => return text.find("#}").map_or(text.len(), |at| at + 2),
        "{%" => "%}",
        _ => "}}",
    };
    let (mut quote, mut depth, mut escaped) = (None, 0_usize, false);
    for (at, character) in text.char_indices().skip(2) {
        match (quote, character) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(character),
            (None, _) if depth == 0 && text[at..].starts_with(end) => return at + 2,
            (None, '{' | '[' | '(') => depth += 1,
            (None, '}' | ']' | ')') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
    }
    text.len()
}

/// What stands in a `{% tag %}`, when that is a single word; empty for everything else.
fn tag_name(tag: &str) -> &str {
    let inside = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).unwrap_or_default();
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    inside.strip_suffix(['-', '+']).unwrap_or(inside).trim()
}

/// Length of a raw block's contents.
fn raw_length(text: &str) -> usize {
    let ends = |at: &usize| text[*at..].find("%}").is_some_and(|end| tag_name(&text[*at..at + end + 2]) == "endraw");
    text.match_indices("{%").map(|(at, _)| at).find(ends).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::as_conditions;

    #[test]
    fn the_tags_become_conditions_and_keep_their_white_space_control() {
        for (source, right) in [
            ("{% generation %}a{% endgeneration %}", "{% if true %}a{% endif %}"),
            ("a {%- generation -%}\n b {%+ endgeneration +%}", "a {%- if true -%}\n b {%+ endif +%}"),
            ("{%-generation%}\n{{ a }}\n{%   endgeneration\n%}", "{%-if true%}\n{{ a }}\n{%   endif\n%}"),
        ] {
            assert_eq!(as_conditions(source), right);
        }
    }

    #[test]
    fn everything_else_is_left_alone() {
        for source in [
            "{{ '{% generation %}' }} {% set a = \"{% generation %}\" %}",
            "{# {% generation %} ' #} {{ add_generation_prompt }} {% if generation %}{% endif %}",
            "{% raw -%} {% generation %} {{ ' {% endgeneration %} {%- endraw %}",
            "{{ {'a': {'b': '}}{% generation %}'}} }} {{ 'it\\'s {% generation %}' }}",
            "a { b {{ unfinished '",
            "{% generation",
            "{% raw %}{% generation %}",
            "{",
            "{%",
            "世{% if '世' %}界{% endif %}",
        ] {
            assert_eq!(as_conditions(source), source);
        }
    }
}
