"""What MkDocs does not do itself: pages written from the code, formulas as MathML, and a look at what pages load.

A hook of mkdocs.yml. Formulas are ```math blocks, which GitHub shows too; here latex2mathml writes MathML, which
browsers draw without a script.
"""

import argparse
import json
import os
import re
from html import escape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

os.environ["COLUMNS"] = "110"  # of the help texts

PYTHON = (
    "alignet_client.client",
    "alignet_client.aio",
    "alignet_client.results",
    "alignet_client.errors",
    "alignet_client.retrieval",
    "alignet_client.migration",
    "contract.triplets",
    "contract.pixels",
    "contract.bundle",
    "contract.manifest",
    "contract.files",
)
EXAMPLES = sorted(Path("examples").rglob("*.py"))
FOREIGN = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*?href=[\"']?(?:https?:)?//[^>]*>"
)


def math(source: str, *_: Any, **__: Any) -> str:
    """A ```math block as MathML."""
    return f'<div class="math">{convert(source, display="block")}</div>'


def on_config(config: Any) -> Any:
    """Teach the Markdown parser the math block."""
    fence = {"name": "math", "class": "math", "format": math}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages written from the code, and the programs that pages link."""
    pages = {"reference/cli.md": command_line(), "reference/python.md": python()}
    pages["reference/http.md"], pages["reference/openapi.json"] = http()
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    for example in EXAMPLES:
        files.append(File.generated(config, example.as_posix(), content=example.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """README's commands for the first page; links that leave docs/ lead to copies of the programs, or are text."""
    if page.file.src_uri == "index.md":
        readme = Path("README.md").read_text()
        section = re.search(r"^## Two commands\n(.*?)^## Layout", readme, re.DOTALL | re.MULTILINE)
        if section is None:
            raise PluginError("README.md lacks the sections that the first page shows")
        markdown = markdown.replace("<!-- README -->", re.sub(r"\]\(docs/", "](", section[1]))
    markdown = re.sub(r"\]\(\.\./(examples/[^)]+\.py)\)", r"](\1)", markdown)
    return re.sub(r"\[([^]]+)\]\(\.\./(?:examples|README|NOTICE|training|app)[^)]*\)", r"\1", markdown)


def on_post_build(config: Any) -> None:
    """Refuse a site that would load something from another host."""
    for page in Path(config.site_dir).rglob("*.html"):
        found = FOREIGN.search(page.read_text())
        if found:
            raise PluginError(f"{page} loads from another host: {found[0]}")


def command_line() -> str:
    """The help of every command, as its own parser prints it."""
    import alignet_client.__main__ as client
    import app.__main__ as service
    import export.__main__ as exporting
    import training.__main__ as training
    from app import bulk
    from app.judging import export as judgments

    parsers = {
        "alignet-serve": service.parser(),
        "alignet-serve bulk": bulk.parser(),
        "alignet-serve judgments": judgments.parser(),
        "alignet": client.parser(),
        "python -m training": training.parser(),
        "python -m export": exporting.parser(),
    }
    page = ["# Command line", "", "Written from the parsers when the site is built."]
    for name, parser in parsers.items():
        page += ["", f"## {name}", "", *_help(parser)]
        for command, sub in _commands(parser).items():
            page += ["", f"### {name} {command}", "", *_help(sub)]
    return "\n".join(page)


def _help(parser: argparse.ArgumentParser) -> list[str]:
    return ["```text", parser.format_help().rstrip(), "```"]


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def python() -> str:
    """A directive of mkdocstrings for each public module."""
    parts = "\n\n".join(f"::: {module}" for module in PYTHON)
    return f"# Python\n\nWritten from the docstrings when the site is built.\n\n{parts}\n"


def http() -> tuple[str, str]:
    """The page of the service's paths, and the OpenAPI document."""
    from app.main import create_app
    from app.settings import Settings

    document = create_app(Settings()).openapi()
    rows = [
        f"| `{method.upper()} {path}` | {escape(operation.get('summary', ''))} | {_first(operation)} |"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    page = [
        "# HTTP paths",
        "",
        "Written when the site is built, from [the OpenAPI document](openapi.json), which the running service gives at "
        "`/openapi.json`. What a schema cannot say is in [the HTTP API](../api.md).",
        "",
        "| path | | |",
        "|---|---|---|",
        *rows,
    ]
    return "\n".join(page), json.dumps(document, indent=1)


def _first(operation: dict[str, Any]) -> str:
    return escape(str(operation.get("description", "")).partition("\n\n")[0].replace("\n", " ").replace("|", "\\|"))
