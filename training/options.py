"""Command-line options from a frozen dataclass: one option a field, the field's default, no name twice."""

import argparse
from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

C = TypeVar("C")


def add_options(parser: argparse.ArgumentParser, config: type[Any], *, but: Collection[str] = ()) -> None:
    """Add `--field-name` for every field of `config` but those; a field without a default must be given.

    Understands str, int, float, bool, Literal, tuples of one of these, and each of them or None (`none`). The fields
    of a config within the config are options like its own.
    """
    for field in fields(config):
        if is_dataclass(field.type):
            add_options(parser, field.type)  # type: ignore[arg-type]
            continue
        if field.name in but:
            continue
        required = field.default is MISSING
        shown = "required" if required else f"default {field.default}"
        parser.add_argument(f"--{field.name.replace('_', '-')}", required=required, help=shown, **_kind(field.type))


def read_options(args: argparse.Namespace, config: type[C]) -> C:
    """The config from parsed arguments; what was not given, or is no option, keeps its default.

    Raises what `config` raises.
    """
    own = [field for field in fields(config) if not is_dataclass(field.type)]  # type: ignore[arg-type]
    given = {field.name: _value(getattr(args, field.name, None), field.type) for field in own}
    inner = {f.name: read_options(args, f.type) for f in fields(config) if is_dataclass(f.type)}  # type: ignore[arg-type]
    return config(**inner, **{name: value for name, value in given.items() if value is not MISSING})


def override(args: argparse.Namespace, config: C, *, but: Collection[str] = ()) -> C:
    """The config with what was given in its place; fields in `but` are no options. Raises what the config raises."""
    changes: dict[str, Any] = {}
    for field in fields(config):  # type: ignore[arg-type]
        own = getattr(config, field.name)
        if is_dataclass(own):
            changes[field.name] = override(args, own)
        elif field.name not in but and (value := _value(getattr(args, field.name, None), field.type)) is not MISSING:
            changes[field.name] = value
    return replace(config, **changes)  # type: ignore[type-var]


def _value(given: Any, annotation: Any) -> Any:
    """A field's value from what was parsed; `MISSING` where nothing was given."""
    if given is None:
        return MISSING
    if isinstance(given, list):
        return tuple(given)
    # `none` is None, but for fields that have a choice of that name.
    return None if given == "none" and get_origin(annotation) is not Literal else given


def _kind(annotation: Any) -> dict[str, Any]:
    """Arguments of `add_argument` for one annotation."""
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    if get_origin(annotation) is tuple:
        return {"nargs": "*", "type": get_args(annotation)[0]}
    if isinstance(annotation, UnionType) and NoneType in get_args(annotation):
        (inner,) = (part for part in get_args(annotation) if part is not NoneType)
        return {"type": lambda text: text if text == "none" else inner(text), "metavar": f"{inner.__name__}|none"}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": annotation}
