"""Command-line options from a frozen dataclass: one option a field, the field's default, no name twice."""

import argparse
from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass
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
    given = {field.name: getattr(args, field.name, None) for field in own}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    inner = {f.name: read_options(args, f.type) for f in fields(config) if is_dataclass(f.type)}  # type: ignore[arg-type]
    return config(
        **inner, **{name: None if value == "none" else value for name, value in values.items() if value is not None}
    )


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
