"""The reference of the contract, made of its descriptors and comments: python -m rig.reference writes docs/api.md

No tool was taken for it: protoc-gen-doc is a Go program that has had no release since 2022, and none knows our table of errors.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from contract.errors import Reason, command_refusal, query_refusal
from contract.version import VERSION

PAGE = Path("docs/api.md")
PACKAGE = "charging.v1"
# The place of each kind of thing in descriptor.proto, of which the paths of comments consist.
SERVICE, METHOD, MESSAGE, FIELD, ONEOF, ENUM, VALUE = 6, 2, 4, 2, 8, 5, 2

HEAD = """\
# The API

Contract {version}. This page is made from `protos/charging/v1/` by `python -m rig.reference`; the comments there are its text.
[For clients](clients.md) says how to call the services from each language, [compatibility](compatibility.md) what may change.

"""
ERRORS = """\
## Errors

Each error of a service's own has `google.rpc.ErrorInfo` in its details, with the domain `charging.v1`, a reason, and in the
metadata `advice` ([Advice](#advice)); `BadRequest` with the faults of fields; `RetryInfo` if a time for the next try is known.
The texts are fixed. An error without `ErrorInfo` is gRPC's own: send the same request with the same key.

"""


def reference(descriptors: FileDescriptorSet) -> str:
    """Return the page, in Markdown, of the contract's files among the descriptors, which have their comments."""
    files = _of_contract(descriptors)
    return "".join(
        [
            HEAD.format(version=VERSION),
            *_contents(files),
            *map(_services, files),
            ERRORS,
            _errors(),
            *map(_types, files),
        ]
    )


def _contents(files: Sequence[FileDescriptorProto]) -> Iterator[str]:
    for file in files:
        for service in file.service:
            methods = ", ".join(
                f"[{method.name}](#{_anchor(f'{service.name}.{method.name}')})" for method in service.method
            )
            yield f"* [{service.name}](#{_anchor(service.name)}): {methods}\n"
    yield "* [Errors](#errors)\n"
    for file in files:
        names = sorted([message.name for message in file.message_type] + [enum.name for enum in file.enum_type])
        yield f"* `{Path(file.name).name}`: {', '.join(map(_link, names))}\n"
    yield "\n"


def _services(file: FileDescriptorProto) -> str:
    comments = _comments(file)
    return "".join(_service(service, comments, (SERVICE, at)) for at, service in enumerate(file.service))


def _service(service: ServiceDescriptorProto, comments: "Comments", path: tuple[int, ...]) -> str:
    parts = [f"## {service.name}\n\n{comments.at(path)}\n"]
    for at, method in enumerate(service.method):
        asked, told = (_link(kind.rpartition(".")[2]) for kind in (method.input_type, method.output_type))
        stream = "a stream of " if method.server_streaming else ""
        parts.append(f"### {service.name}.{method.name}\n\nTakes {asked}, returns {stream}{told}.\n\n")
        parts.append(f"{comments.at((*path, METHOD, at))}\n")
    return "".join(parts)


def _types(file: FileDescriptorProto) -> str:
    comments = _comments(file)
    messages = (_message(message, comments, (MESSAGE, at)) for at, message in enumerate(file.message_type))
    enums = (_enum(enum, comments, (ENUM, at)) for at, enum in enumerate(file.enum_type))
    return f"## {Path(file.name).name}\n\n{comments.of_file}\n" + "".join([*messages, *enums])


def _message(message: DescriptorProto, comments: "Comments", path: tuple[int, ...]) -> str:
    parts = [f"### {message.name}\n\n{comments.at(path)}\n"]
    oneof_told = None
    for at, field in enumerate(message.field):
        if (oneof := _oneof(field)) is not None and oneof != oneof_told:
            name = message.oneof_decl[oneof].name
            parts.append(f"* One of these, as `{name}`: {_inner(comments.at((*path, ONEOF, oneof)))}")
        oneof_told = oneof
        text = _inner(comments.at((*path, FIELD, at)))
        parts.append(
            _indented(f"* **{field.name}** = {field.number}, {_type(message, field)}: {text}", oneof is not None)
        )
    return "".join(parts) + "\n"


def _enum(enum: EnumDescriptorProto, comments: "Comments", path: tuple[int, ...]) -> str:
    values = (
        f"* **{value.name}** = {value.number}: {_inner(comments.at((*path, VALUE, at)))}"
        for at, value in enumerate(enum.value)
    )
    return f"### {enum.name}\n\n{comments.at(path)}\n" + "".join(values) + "\n"


def _oneof(field: FieldDescriptorProto) -> int | None:
    return field.oneof_index if field.HasField("oneof_index") else None


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Return a field's type as the .proto file has it, with a link where this page has the type."""
    name = field.type_name.rpartition(".")[2]
    for nested in message.nested_type:
        if nested.name == name and nested.options.map_entry:
            key, value = (_type(nested, each) for each in nested.field)
            return f"map of {key} to {value}"
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.type_name.startswith(f".{PACKAGE}."):
        kind = _link(name)
    elif field.type_name:
        kind = f"`{field.type_name[1:]}`"
    return f"repeated {kind}" if field.label == FieldDescriptorProto.LABEL_REPEATED else kind


def _errors() -> str:
    """Make the table of all reasons; the two servers say some of them in other words."""
    rows = ["| reason | server | code | advice | text |\n|---|---|---|---|---|\n"]
    for reason in Reason:
        for server, refusal in (("command", command_refusal), ("query", query_refusal)):
            if refusal.knows(reason):
                made = refusal(reason)
                rows.append(f"| {made.reason} | {server} | {made.code.name} | {made.advice} | {made.text} |\n")
    return "".join(rows) + "\n"


class Comments:
    """The comments of a file as Markdown, by the paths of what they are about."""

    def __init__(self, texts: Mapping[tuple[int, ...], str]) -> None:
        self._texts = texts

    def at(self, path: tuple[int, ...]) -> str:
        """Return a comment, with a line break at its end."""
        return markdown(self._texts[path])

    @property
    def of_file(self) -> str:
        """The comment above the package's line."""
        return self.at((2,))


def _comments(file: FileDescriptorProto) -> Comments:
    return Comments({tuple(each.path): each.leading_comments for each in file.source_code_info.location})


ITEM = re.compile(r"\* |\d+\. ")


def markdown(comment: str) -> str:
    """Turn a comment, which is Markdown but for the empty lines around its lists, into Markdown.

    >>> print(markdown(" Errors:\\n * NOT_FOUND: none,\\n   ever.\\n Others: none.\\n"), end="")
    Errors:
    <BLANKLINE>
    * NOT_FOUND: none,
      ever.
    <BLANKLINE>
    Others: none.
    """
    lines: list[str] = []
    in_list = False
    for line in (each.removeprefix(" ") for each in comment.rstrip("\n").split("\n")):
        was_in_list, in_list = in_list, bool(ITEM.match(line)) or (in_list and line.startswith(" "))
        if line and lines and lines[-1] and in_list != was_in_list:
            lines.append("")
        lines.append(line.replace("<", "&lt;"))
    return "\n".join(lines) + "\n"


def _inner(text: str) -> str:
    """Put a comment into an item: its further lines are indented."""
    first, *more = text.rstrip("\n").split("\n")
    return "\n".join([first, *(f"  {line}" if line else "" for line in more)]) + "\n"


def _indented(text: str, is_deeper: bool) -> str:
    return "".join(f"  {line}" if is_deeper and line.strip() else line for line in text.splitlines(keepends=True))


def _link(name: str) -> str:
    return f"[{name}](#{_anchor(name)})"


def _anchor(heading: str) -> str:
    """Return the anchor that readers of Markdown give to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def shape(descriptors: FileDescriptorSet) -> str:
    """Return the SHA-256, in hex, of what code is generated from: names, numbers, types and options, no comments."""
    digest = hashlib.sha256()
    for file in sorted(_of_contract(descriptors), key=lambda each: each.name):
        bare = FileDescriptorProto()
        bare.CopyFrom(file)
        bare.ClearField("source_code_info")
        digest.update(json_format.MessageToJson(bare, sort_keys=True).encode())
    return digest.hexdigest()


def _of_contract(descriptors: FileDescriptorSet) -> list[FileDescriptorProto]:
    return [file for file in descriptors.file if file.package == PACKAGE]


def descriptors() -> FileDescriptorSet:
    """Read the installed contract, comments included."""
    return FileDescriptorSet.FromString(resources.files("charging.v1").joinpath("descriptors.binpb").read_bytes())


def main() -> None:
    """Write the page."""
    PAGE.write_text(reference(descriptors()))


if __name__ == "__main__":
    main()
