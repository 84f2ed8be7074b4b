"""One file a recipe: its exact command, hardware, time, expected figures and source stand in its docstring."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

R = TypeVar("R")


def recipes_of(kind: type[R]) -> dict[str, R]:
    """Name to recipe, of the files here that hold one of this kind."""
    found = {file.name: import_module(f"{__name__}.{file.name}").RECIPE for file in iter_modules(__path__)}
    return {name: recipe for name, recipe in found.items() if isinstance(recipe, kind)}
