"""The command line: `python -m app` or `alignet-serve`. Every setting is a flag and an ALIGNET_ variable."""

import argparse
import asyncio
import logging
import os
import signal
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource

from app import garbage, logs
from app.main import create_app
from app.served import ServedModel
from app.server import Protocol, Server
from app.service import VERSION
from app.settings import Settings

OTHER_COMMANDS = """other commands:
  alignet-serve bulk FOLDER --out OUT      embed every photo of a folder
  alignet-serve judgments STUDY --out OUT  write what a study has collected, as training reads it

each has its own --help and --version
"""


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit 1 if the bundle cannot be served, 2 for a wrong setting."""
    if sys.argv[1:2] == ["bulk"]:
        from app import bulk  # here: serving needs nothing of it

        raise SystemExit(bulk.main(sys.argv[2:]))
    if sys.argv[1:2] == ["judgments"]:
        from app.judging import export

        raise SystemExit(export.main(sys.argv[2:]))
    try:
        settings = Settings(_cli_settings_source=_flags()(args=True))  # type: ignore[call-arg]  # BaseSettings takes it
    except ValidationError as error:
        for fault in error.errors(include_input=False, include_url=False):
            print(f"setting {'.'.join(map(str, fault['loc']))}: {fault['msg']}", file=sys.stderr)
        raise SystemExit(2) from None
    logs.configure(settings.log_format, settings.log_level)
    raise SystemExit(_serve(settings))


def _serve(settings: Settings) -> int:
    failures: list[Exception] = []

    def on_failure(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    tasks: list[asyncio.Task[None]] = []

    async def announce(model: ServedModel) -> None:
        garbage.set_apart()
        while not server.started:  # a small bundle is open before the port is
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        host = "localhost" if settings.host in ("0.0.0.0", "127.0.0.1", "::") else settings.host  # noqa: S104
        print(
            f"\nAligNet Serve {VERSION} is ready at http://{host}:{port} (model {model.name}; API at /docs). Try:\n\n"
            f"  curl http://{host}:{port}/odd-one-out -F images=@docs/photos/cat.jpg "
            "-F images=@docs/photos/raccoon.jpg -F images=@docs/photos/rocket.jpg\n",
            flush=True,
        )

    app = create_app(
        settings, on_ready=lambda model: tasks.append(asyncio.create_task(announce(model))), on_failure=on_failure
    )
    config = uvicorn.Config(
        app,
        http=Protocol,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here depends on who the client is
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    server = Server(config, app.state.service, settings.drain_delay)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn drains on these signals, then raises them again for whoever handled them before: that is
    # this function, so a drained process ends with 0, not with "killed by signal".
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.run()
    if app.state.service.hangs:  # Python would wait for that thread without end
        logging.shutdown()
        os._exit(1)
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    """All settings as flags, and the other commands; shells complete and the reference is written from it."""
    return _flags().root_parser


def _flags() -> CliSettingsSource[argparse.ArgumentParser]:
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(Settings, cli_parse_args=False)
    source.root_parser.add_argument("--version", action="version", version=f"alignet-serve {VERSION}")
    source.root_parser.epilog = OTHER_COMMANDS
    return source


if __name__ == "__main__":
    main()
