"""Recipes: what their docstrings must say."""

import re
from importlib import import_module
from pkgutil import iter_modules

import pytest

from training import recipes

NAMES = [found.name for found in iter_modules(recipes.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_its_command_hardware_time_result_and_source(name: str) -> None:
    said = import_module(f"training.recipes.{name}").__doc__ or ""
    found = re.findall(r"^([A-Z][a-z]+) {2,}(.+(?:\n {10}.+)*)", said, re.MULTILINE)
    blocks = {label: " ".join(text.split()) for label, text in found}
    assert sorted(set(blocks) - {"Time", "Choosing"}) == ["Command", "Hardware", "Result", "Source"]
    assert re.search(rf"python -m training .*(run|perceptual|joint|--vice|--recipe) {name}\b", blocks["Command"])
    time = blocks["Hardware"] + blocks.get("Time", "")
    assert re.search(r"\b(seconds?|minutes?|hours?)\b|not timed", time), f"{name}: how long?"
    assert re.search(r"\.\d\d|not measured|docs/log", blocks["Result"])
