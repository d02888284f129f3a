"""Writes the right answers into cases.json, from Python's own Jinja with the settings of transformers.

    pip install jinja2 && python3 expected.py

The settings are those of `_compile_jinja_template` in transformers' `utils/chat_template_utils.py`. What muster does to a
message before the template sees it (see `variable` in chat_template.rs) is written in the cases as it comes out.
"""

import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent


class Generation(jinja2.ext.Extension):
    """`{% generation %}` blocks; transformers also notes where they are."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def answer(case):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: "never asked for here"
    template = environment.from_string((HERE / case["template"]).read_text())
    variables = {"bos_token": "<bos>", "eos_token": "<eos>", "tools": None, "documents": None}
    variables |= {"add_generation_prompt": True} | case["arguments"]
    try:
        return {"prompt": template.render(messages=case["seen"], **variables)}
    except jinja2.exceptions.UndefinedError:
        return {"fails": True}
    except jinja2.exceptions.TemplateError as error:
        return {"raises": str(error)}


def main():
    path = HERE / "cases.json"
    cases = json.loads(path.read_text())
    for case in cases:
        case["seen"] = case.get("seen", case["messages"])
        case["answer"] = answer(case)
        if case["seen"] == case["messages"]:
            del case["seen"]
    path.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


main()
