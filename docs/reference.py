"""The reference of the API as Markdown, made of the OpenAPI document."""

import re
from collections import defaultdict
from typing import Any

from service.app import create_app

Document = dict[str, Any]

START = """# API reference

Every operation and object, made of the OpenAPI document that a running service gives at `/openapi.json` and shows at
`/docs`. What the document cannot say stands in [the API](api.md).
"""


def reference() -> str:
    document = create_app().openapi()
    by_tag: dict[str, list[str]] = defaultdict(list)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag[operation.get("tags", ["service"])[0]].append(_operation(method, path, operation))
    parts = [START]
    for tag, operations in by_tag.items():
        parts += [f"## {tag.replace('-', ' ').capitalize()}", *operations]
    parts.append("## Objects")
    parts += [_object(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return "\n\n".join(parts) + "\n"


def _operation(method: str, path: str, operation: Document) -> str:
    parts = [f"### {method.upper()} {path}", _prose(operation.get("description") or operation["summary"])]
    parameters = [
        (each["name"], each["in"], each["schema"], each.get("required", False), each.get("description"))
        for each in operation.get("parameters", [])
    ]
    if parameters:
        parts.append("| parameter | in | type | meaning |\n| --- | --- | --- | --- |")
        parts[-1] += "".join(
            f"\n| `{name}` | {where} | {_type(schema)} | {_meaning(schema, required, text)} |"
            for name, where, schema, required, text in parameters
        )
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Body: {_type(content['schema'])}, as `{kind}`.")
    for status, answer in operation["responses"].items():
        for kind, content in answer.get("content", {}).items():
            if status.startswith("2"):
                parts.append(f"Answer {status}: {_type(content.get('schema', {}))}, as `{kind}`.")
    return "\n\n".join(parts)


def _object(name: str, schema: Document) -> str:
    parts = [f"(object-{name.lower()})=\n### {name}", _prose(schema.get("description", ""))]
    fields = schema.get("properties", {})
    if fields:
        needed = schema.get("required", [])
        parts.append("| field | type | meaning |\n| --- | --- | --- |")
        parts[-1] += "".join(
            f"\n| `{field}` | {_type(each)} | {_meaning(each, field in needed, each.get('description'))} |"
            for field, each in fields.items()
        )
    else:
        parts.append(_type(schema) + ".")
    return "\n\n".join(part for part in parts if part)


def _type(schema: Document) -> str:
    """In words, with links to the objects that it names."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#object-{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[several]))
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return _bounds(str(schema.get("format") or schema.get("type") or "anything"), schema)


def _bounds(name: str, schema: Document) -> str:
    said = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said |= {"minLength": "characters from", "maxLength": "characters to"}
    bounds = [f"{word} {schema[key]}" for key, word in said.items() if key in schema]
    return f"{name} ({', '.join(bounds)})" if bounds else name


def _meaning(schema: Document, required: bool, text: str | None) -> str:
    default = f"default `{schema['default']}`" if schema.get("default") not in (None, {}, []) else ""
    words = [_cell(text or schema.get("description") or ""), default, "required" if required else ""]
    return "; ".join(word for word in words if word)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", _prose(text)).replace("|", "\\|")


def _prose(text: str) -> str:
    """Docstrings mark code by two backticks, and options link from the README."""
    return text.replace("``", "`").replace("<", "\\<").replace("](docs/", "](").strip()
