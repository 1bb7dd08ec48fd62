"""Which values of a record are the text of a document: one key, or several that a template joins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.files import listed, printable
from corpus.conversations.records import KEYS, holds_conversation

DEFAULT_KEY = "text"
# What a record may have beside its text, by which no other key becomes ambiguous.
_METADATA = re.compile(
    r"_?id|uuid|ur[il]|link|source|src|date|time(stamp)?|(cre|upd)ated_at|lang(uage)?|license|file(_?name|_path)?|path|dump|category|tag"
)
_KEY = re.compile(r"[\w.-][\w .-]{0,39}")
_PLACE = re.compile(r"\{([^{}]+)\}")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
_SHOWN = (12, 40)  # keys, and characters of each


@dataclass(frozen=True)
class TextFields:
    """The key of the text, or a template such as "{title}\\n{content}"."""

    key: str = DEFAULT_KEY
    template: str | None = None
    conversations: bool = False
    """Whether the file holds conversations, perhaps beside texts."""

    def names(self) -> list[str]:
        """Return the keys that are read."""
        if self.template is not None:
            return list(dict.fromkeys(_PLACE.findall(self.template)))
        return [self.key, *KEYS] if self.conversations else [self.key]

    def is_conversation(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is a conversation: it has the keys of one, and no text, and no flag names another."""
        return self.template is None and self.key == DEFAULT_KEY not in record and holds_conversation(record)

    def text_of(self, record: Mapping[str, Any]) -> str:
        """Return the text of a record; KeyError if a key is missing, TypeError if a value is not a text.

        A template takes numbers as they are written, and an absent value (null) as nothing.
        """
        if self.template is None:
            value = record[self.key]
            if not isinstance(value, str):
                raise TypeError
            return value
        values = {name: record[name] for name in self.names()}
        if any(isinstance(value, (dict, list)) for value in values.values()):
            raise TypeError
        if not any(values.values()):
            return ""
        return _PLACE.sub(lambda place: _written(values[place.group(1)]), self.template)


def _written(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


TEXT_KEY = TextFields()


def parse_template(text: str) -> str:
    """Return a template as it is used, with \\n and \\t as they are typed in a shell; UserError if it has no key."""
    if not _PLACE.search(text):
        raise UserError(f'--text_template {text!r}: name the keys in braces, such as "{{title}}\\n{{content}}"')
    return re.sub(r"\\[nt\\]", lambda escape: _ESCAPES[escape.group()], text)


def choose_fields(name: str, records: Sequence[Mapping[str, Any]], given: TextFields | None) -> tuple[TextFields, str]:
    """Return which fields of a file are its text, and a remark if that is no matter of course.

    `records` are the first ones of the file `name`, `given` what the flags say. Without them it is the key "text", or
    else the only key with text in it. UserError shows the keys that are there if that is not clear.
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    known = listed(keys, *_SHOWN)
    if given is not None:
        missing = [key for key in given.names() if keys and key not in keys]
        if missing:
            flag = "--text_key" if given.template is None else "--text_template"
            raise UserError(f"{name}: has no {listed(missing, *_SHOWN)}; its keys are {known}: change {flag}")
        return given, ""
    if any(map(TEXT_KEY.is_conversation, records)):
        return TextFields(conversations=True), ""
    if not records or DEFAULT_KEY in keys:
        return TEXT_KEY, ""
    texts = [key for key in keys if any(isinstance(record.get(key), str) for record in records)]
    candidates = [key for key in texts if not _METADATA.fullmatch(key.lower())]
    if len(candidates) == 1 and _KEY.fullmatch(candidates[0]):
        others = [key for key in keys if key != candidates[0]]
        beside = f" (not read: {listed(others, *_SHOWN)})" if others else ""
        return TextFields(candidates[0]), f'the text is taken from "{candidates[0]}"{beside}'
    if not candidates:
        raise UserError(f'{name}: no key "text", and no other with text; its keys are {known}')
    template = "\\n".join(f"{{{key}}}" for key in candidates[:3])
    raise UserError(
        f'{name}: no key "text"; its keys are {known}: say which is the text with --text_key '
        f"{printable(max(candidates, key=lambda key: _length(records, key)), 40)}, or join several with "
        f'--text_template "{printable(template, 80)}"'
    )


def _length(records: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(len(value) for record in records if isinstance(value := record.get(key), str))
