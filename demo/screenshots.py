"""`make screenshots`: the README's pictures of the console, of real servers with some trouble. They go into docs/."""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
from playwright.async_api import Browser

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, Resolution
from charging.v1.operator_pb2 import HoldBackRequest, ProposeResolutionRequest
from charging.v1.operator_pb2_grpc import OperatorServiceStub
from chassis.server import CHANNEL_OPTIONS
from rig.browser import browser
from rig.processes import Town
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import BRIEF_SECONDS, a_hold, a_request, heard

FOLDER = Path("docs")
ALWAYS = 1_000_000
# The small plots need a few samples, one every five seconds.
PLOTTED_SECONDS = 32.0
_PICTURES: Sequence[tuple[str, str, dict[str, Any]]] = [
    ("console-now", "/", {"viewport": {"width": 1100, "height": 860}}),
    ("console-charge", "/search?q=order-1042", {"viewport": {"width": 1100, "height": 1000}}),
    ("console-servers", "/servers", {"viewport": {"width": 1100, "height": 760}, "color_scheme": "dark"}),
    ("console-phone", "/search?q=order-1042", {"viewport": {"width": 360, "height": 760}, "color_scheme": "dark"}),
]


async def taken(folder: Path) -> list[Path]:
    """Start everything, bring charges into trouble, and take the pictures. Raises DidNotStart, FileNotFoundError."""
    with tempfile.TemporaryDirectory() as files:
        async with Town(Path(files)) as town:
            await town.start_query()
            await town.start_console()
            async with (
                Referee(town.bank_url) as referee,
                grpc.aio.insecure_channel(town.command.listen, options=CHANNEL_OPTIONS) as channel,
            ):
                await _trouble(referee, CommandServiceStub(channel), OperatorServiceStub(channel))
                async with browser() as chromium:
                    return [
                        await _taken(chromium, f"http://{town.console.listen}", folder, *picture)
                        for picture in _PICTURES
                    ]


async def _trouble(referee: Referee, commands: Any, desk: Any) -> None:
    """Bring charges into every kind of trouble that the pictures show."""

    async def charge(request: ChargeRequest, seconds: float = PATIENT_SECONDS) -> Any:
        return await heard(lambda: commands.Charge(request, timeout=seconds))

    for number in range(1030, 1040):
        await charge(a_request(f"order-{number}", user_id=("alice", "bob", "carol")[number % 3]))
    await charge(a_request("order-1040", card=Card(token="tok_declined")))  # noqa: S106  # a token of the mock bank's
    await charge(a_hold("order-1041", user_id="carol"))
    await referee.trouble("execute", "wrong_amount")
    await referee.trouble("look_up", "wrong_amount", times=ALWAYS)
    reviewed = await charge(a_request("order-1042", user_id="bob"))
    await referee.no_more_trouble()
    transaction = (await referee.movements(reviewed.charge_id))[0].transaction_id
    await desk.ProposeResolution(
        ProposeResolutionRequest(
            charge_id=reviewed.charge_id,
            resolution=Resolution.RESOLUTION_EXECUTED,
            transaction_id=transaction,
            evidence="Line 12 of the bank's statement of today",
            reason="The bank moved the money, and told another amount",
        )
    )
    await referee.trouble("execute", "lose_answer", times=ALWAYS)
    held = await charge(a_request("order-1043", user_id="alice"), BRIEF_SECONDS)
    await desk.HoldBack(HoldBackRequest(charge_id=held.charge_id, reason="The bank asked us to wait"))
    await charge(a_request("order-1044", user_id="bob"), BRIEF_SECONDS)


async def _taken(chromium: Browser, url: str, folder: Path, name: str, place: str, options: dict[str, Any]) -> Path:
    context = await chromium.new_context(**options)
    page = await context.new_page()
    await page.goto(url + place)
    if place == "/servers":
        await page.wait_for_timeout(PLOTTED_SECONDS * 1_000)
    path = folder / f"{name}.png"
    await page.screenshot(path=path)
    await context.close()
    return path


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(prog="python -m demo.screenshots", description="Takes pictures of the console.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"where (default: {FOLDER})")
    for path in asyncio.run(taken(parser.parse_args().folder)):
        print(path)


if __name__ == "__main__":
    main()
