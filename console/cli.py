"""The console's command line."""

import os
from collections.abc import Sequence

# Before grpc is loaded: its C core writes to standard error from threads that serve.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from chassis import process, settings, telemetry
from chassis.watched import Unusable
from console.settings import Settings

PROGRAM = "python -m console"


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> None:
    """Run the console. See --help."""
    process.open_standard_streams()
    process.keep_files_private()
    process.server_parser(
        program, "A web page for people who look after charges: see, explain, repair, reconcile.", Settings, os.environ
    ).parse_args(arguments)
    telemetry.configure_logging("console")
    process.run(_serve_until_stopped, (Unusable,))


async def _serve_until_stopped(stop: process.StopRequest) -> None:
    try:
        from console.serving import serve  # noqa: PLC0415  # starlette and uvicorn are an extra
    except ModuleNotFoundError as error:
        raise settings.SettingsError(f"{error.name} is not installed: pip install 'chargeonce[console]'") from None
    async with serve(settings.read(Settings, os.environ)):
        await stop.wait()
