"""Options of the commands: one frozen dataclass each, filled by flags and TOML files alike."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from rosenblatt.core.errors import OptionError

T = TypeVar("T")
Json = dict[str, Any]


def parse(cls: type[T], words: Sequence[str], prog: str, *, default: T | None = None) -> T:
    """Fill `cls` from command-line words over `default`; raises `OptionError` in one sentence."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(
                cls,
                prog=prog,
                args=list(words),
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_registry(),
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
    raise OptionError(f"{_sentence(complaint.getvalue())}, see {prog} --help.")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str, prog: str, *, default: T | None = None) -> T:
    """Fill `cls` from a TOML or JSON table over `default`, by the same parser as the flags."""
    try:
        return parse(cls, to_words(cls, mapping), prog, default=default)
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def read_toml(path: Path) -> Json:
    """Read a TOML file; raises `OptionError` when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror}); check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: is not TOML ({error}); correct that line.") from None


def to_mapping(options: Any, *, default: Any = None) -> Json:
    """Turn options into JSON values, leaving out those that equal `default`'s; the inverse of `from_mapping`."""
    default = type(options)() if default is None else default
    mapping: Json = {}
    for field in dataclasses.fields(options):
        value, usual = getattr(options, field.name), getattr(default, field.name)
        if value == usual:
            continue
        if dataclasses.is_dataclass(value):
            mapping[field.name] = to_mapping(value, default=usual)
        elif isinstance(value, tuple):
            mapping[field.name] = pairs(value, field.name)
        else:
            mapping[field.name] = "None" if value is None else str(value) if isinstance(value, Path) else value
    return mapping


def to_words(cls: type[Any], mapping: Mapping[str, Any]) -> list[str]:
    """Turn a table of options into command-line words; raises `OptionError` for an unknown key."""
    words: list[str] = []
    kinds = get_type_hints(cls)
    for key, value in mapping.items():
        if key not in kinds:
            raise OptionError(f"option '{key}' is unknown; choose among {', '.join(kinds)}.")
        nested = dataclasses.is_dataclass(kinds[key])
        if (nested or _is_pairs(kinds[key])) and not isinstance(value, Mapping):
            raise OptionError(f"'{key}' must be a table, {value!r} came; write [{key}] above its options.")
        if nested:
            words += to_words(kinds[key], value)
        elif _is_pairs(kinds[key]):
            flag = _flag(cls, key)
            words += [f"{flag}={name}={json.dumps(item)}" for name, item in value.items()]
        elif isinstance(value, Mapping | list):
            raise OptionError(f"'{key}' must be a single value, {value!r} came.")
        elif key in POSITIONAL:
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(_flag(cls, key) if value else f"--no-{key.replace('_', '-')}")
        else:
            words.append(f"{_flag(cls, key)}={value}")
    return words


def pairs(words: Sequence[str], flag: str) -> Json:
    """Read NAME=VALUE words, values being JSON or else plain text; a later one replaces an earlier one.

    TOML knows no null, so None and an infinity stand for it.

    >>> pairs(["hidden=64", "widths=[8, 1]", "activation=relu"], "option")
    {'hidden': 64, 'widths': [8, 1], 'activation': 'relu'}
    """
    found: Json = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise OptionError(f"--{flag}: '{word}' came, NAME=VALUE was expected, as in hidden=256.")
        try:
            found[name.strip()] = _no_value(json.loads(text))
        except ValueError:
            found[name.strip()] = _no_value(text)
    return found


def _no_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_no_value(item) for item in value]
    return None if value in ("None", math.inf, -math.inf) else value


def to_toml(mapping: Mapping[str, Any]) -> str:
    """Write a table of options as TOML that reads back to the same values."""
    plain = {key: value for key, value in mapping.items() if not isinstance(value, Mapping)}
    lines = [f"{_toml_key(key)} = {_toml(value)}" for key, value in plain.items()]
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{_toml_key(key)}]"]
            lines += [f"{_toml_key(name)} = {_toml(item)}" for name, item in value.items()]
    return "\n".join(lines).strip() + "\n"


POSITIONAL = frozenset({"table"})


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml(value: Any) -> str:
    if value is None:
        return '"None"'
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml_key(name)} = {_toml(item)}' for name, item in value.items())}}}"
    return json.dumps(value)


def _is_pairs(kind: Any) -> bool:
    return bool(kind == tuple[str, ...])


def _flag(cls: type[Any], key: str) -> str:
    annotation = get_type_hints(cls, include_extras=True)[key]
    names = [note.name for note in getattr(annotation, "__metadata__", ()) if getattr(note, "name", None)]
    return f"--{(names[0] if names else key).replace('_', '-')}"


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Tell tyro how to show options whose notes stand in the docstring of their class."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.struct_rule
    def described(info: Any) -> Any:
        notes = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", getattr(info.type, "__doc__", "") or "", re.M))
        if not dataclasses.is_dataclass(info.type) or not notes:
            return None
        cls: Any = info.type
        kinds = get_type_hints(cls, include_extras=True)
        usual = info.default if isinstance(info.default, cls) else cls()
        fields = tuple(
            tyro.constructors.StructFieldSpec(
                name=field.name,
                type=kinds[field.name],
                default=getattr(usual, field.name),
                helptext=" ".join(notes[field.name].split()),
            )
            for field in dataclasses.fields(cls)
        )
        return tyro.constructors.StructConstructorSpec(instantiate=cls, fields=fields)

    return registry


def _sentence(box: str) -> str:
    """Find the sentence in the frame, of line-drawing characters or of ASCII, that tyro prints around a complaint."""
    lines = [line.strip("│ ") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    rules = [number for number, line in enumerate(lines) if re.fullmatch("[─-]{4,}", line)]
    if "│" not in box and rules:
        lines, rules = lines[rules[0] + 1 :], [number - rules[0] - 1 for number in rules[1:]]
    head = " ".join(lines[: rules[0]] if rules else lines)
    head = re.sub(r"^Error parsing fit: ", "", head).split(" Got errors:")[0].strip()
    suggestions = (line for line in lines if line.startswith("--") and line.strip("-"))
    meant = next(suggestions, None) if "Unrecognized" in head else None
    return (head.rstrip(".") or "these words were not understood") + (f"; did you mean {meant}" if meant else "")
