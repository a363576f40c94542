# SPDX-License-Identifier: Apache-2.0
"""Plain YAML values to frozen dataclasses and back. Knows no clipkit configuration in particular."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from clipkit.errors import type_error, value_error

T = TypeVar("T")


class FrozenDict(dict[str, Any]):
    """A dict that refuses changes, for the free-form parts of a configuration that is immutable after start."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a configuration is immutable after start; build a new one instead")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)  # dict's own pickling would set items one by one


def from_plain(kind: type[T], value: Any, path: str = "") -> T:
    """Build the dataclass `kind` from nested mappings.

    Args:
        kind: a dataclass; its annotations (nested dataclasses, tuples, unions, literals, mappings) are the schema.
        value: what `yaml.safe_load` gave. None stands for an empty section.
        path: dotted position of `value`, for messages.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a missing key, a literal outside its choices.
        TypeError: a value of another type than the annotation's.
    """
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise _wrong_type(path or "configuration", value, "a section of `key: value` lines")
    hints = _hints(typing.cast(type, kind))
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise _unknown_key(path, key, fields)
    missing = [name for name, field in fields.items() if name not in value and _is_required(field)]
    if missing:
        names = ", ".join(_join(path, name) for name in missing)
        raise value_error(names, got="nothing", want="a value", fix="add it to the configuration file or with --set")
    return kind(**{name: _convert(hints[name], item, _join(path, name)) for name, item in value.items()})


def to_plain(value: Any) -> Any:
    """The reverse of `from_plain`: dicts, lists, strings and numbers only, ready for YAML and JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def assign(tree: dict[str, Any], kind: type, dotted: str, value: Any) -> None:
    """Set `a.b.c` in nested plain dicts, in place; inside a free-form mapping the rest of the path is one key."""
    keys = dotted.split(".")
    for depth, key in enumerate(keys):
        known = {field.name for field in dataclasses.fields(kind)}
        if key not in known:
            raise _unknown_key(".".join(keys[:depth]), key, known)
        hint = _hints(kind)[key]
        rest = ".".join(keys[depth + 1 :])
        if not rest:
            tree[key] = value
            return
        if tree.get(key) is None:
            tree[key] = {}
        child = tree[key]
        if typing.get_origin(hint) is collections.abc.Mapping and isinstance(child, dict):
            child[rest] = value
            return
        if not dataclasses.is_dataclass(hint) or not isinstance(child, dict):
            raise value_error(
                dotted,
                got=f"a path below {_join('.'.join(keys[:depth]), key)}",
                want="a section there",
                fix=f"that key holds {_describe(hint)}; set it as a whole",
            )
        tree, kind = child, typing.cast(type, hint)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert_alternative([kind for kind in arguments if kind is not type(None)], hint, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            near = _nearest(value, arguments)
            raise value_error(path, got=repr(value), want=" or ".join(map(repr, arguments)), fix=near)
        return value
    if origin is tuple:
        return _convert_sequence(arguments, value, path, hint)
    if origin is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, value, _describe(hint))
        return FrozenDict({str(key): _convert(arguments[1], item, _join(path, key)) for key, item in value.items()})
    if hint is Any:
        return value
    return _convert_scalar(hint, value, path)


def _convert_alternative(kinds: list[Any], hint: Any, value: Any, path: str) -> Any:
    if len(kinds) == 1:
        return _convert(kinds[0], value, path)
    for kind in kinds:
        with contextlib.suppress(TypeError):
            return _convert(kind, value, path)
    raise _wrong_type(path, value, _describe(hint))


def _convert_sequence(arguments: tuple[Any, ...], value: Any, path: str, hint: Any) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _wrong_type(path, value, _describe(hint))
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise value_error(path, got=f"{len(value)} values", want=_describe(hint), fix="give exactly that many")
    return tuple(
        _convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 (no dot) as a string; nobody who writes that means one.
        try:
            return float(value)
        except ValueError:
            raise _wrong_type(path, value, "a number") from None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise _wrong_type(path, value, _describe(hint))


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Any: "anything"}
    if hint in names:
        return names[hint]
    if dataclasses.is_dataclass(hint):
        return "a section with " + ", ".join(field.name for field in dataclasses.fields(hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each item {_describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} ({', '.join(map(_describe, arguments))})"
    if origin is collections.abc.Mapping:
        return "a mapping of names to values"
    return " or ".join("nothing" if argument is type(None) else _describe(argument) for argument in arguments)


def _wrong_type(path: str, value: Any, want: str) -> TypeError:
    return type_error(path, got=f"{value!r} ({type(value).__name__})", want=want, fix="correct it in the file or --set")


def _unknown_key(path: str, key: object, known: collections.abc.Iterable[str]) -> ValueError:
    return value_error(
        _join(path, key), got="an unknown key", want="one of " + ", ".join(sorted(known)), fix=_nearest(key, known)
    )


def _nearest(key: object, known: collections.abc.Iterable[Any]) -> str:
    names = [str(name) for name in known]
    initials = "".join(word[:1] for word in str(key).split("_"))  # learning_rate: lr
    near = initials if initials in names else difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
    return f"did you mean {near!r}?"
