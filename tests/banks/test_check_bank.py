"""`check-bank` finds what the fakes get wrong, and nothing else: the command that a user runs on the sandbox of a bank."""

import asyncio
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.banks.fakes import KEY, customers_card, localstripe, stateful_mock

Broken = Mapping[str, Sequence[str]]
"""The kinds of operation for which each check is broken."""


async def broken_rules(fake: str, folder: Path, kind: str, *options: str, cards: Sequence[str]) -> Broken:
    """Run the command on a fake; it must find something broken."""
    (folder / "key").write_text(KEY)
    table = ("[banks.fake]", f'kind = "{kind}"', f'url = "http://{fake}"', 'key_file = "key"', *options)
    (folder / "banks.toml").write_text("\n".join(table))
    command = ("-m", "tests.banks.command", "check-bank", "fake", "--json", *cards)
    with (folder / "progress.log").open("wb") as progress:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command),
            env={**os.environ, "COMMAND_BANKS": str(folder / "banks.toml")},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=progress,
        )
        printed, _ = await process.communicate()
    assert process.returncode == 1, (folder / "progress.log").read_text()
    found = defaultdict(list)
    for finding in json.loads(printed):
        if finding["end"] == "broken":
            found[finding["check"]].append(finding["kind"])
    return found


async def test_what_localstripe_gets_wrong(tmp_path: Path) -> None:
    """It knows no keys, so that a repeated request makes one more intent, or one more refund; and it limits no refund."""
    async with localstripe(tmp_path / "fake.log") as fake:
        declined, customers = "pm_card_chargeCustomerFail=card_declined", await customers_card(fake)
        cards = ("--declined-card", declined, "--customer-card", customers, "--look-up-lag", "0")
        found = await broken_rules(fake, tmp_path, "stripe", 'return_url = "https://shop.example/"', cards=cards)
    opening, refund = ["charge", "authorize"], ["refund"]
    assert found == {
        "a repeated token step gives the same transaction": opening,
        "what was called off is given no other token": opening,
        "a repeated execute step is done once": refund,
        "a step is done once though its answers were thrown away": [*opening, "refund"],
        "looked up first, a step ends as it would have": [*opening, "refund"],
        "another amount under a known reference is refused": [*opening, "refund"],
        "another currency under a known reference is refused": [*opening, "refund"],
        "another kind under a known reference is refused": [*opening, "capture", "refund"],
        "another transaction to act on under a known reference is refused": ["capture", "void", "refund"],
        "a refund stays within what was captured and not refunded": refund,
        "of refunds at once no more are executed than there is money": refund,
        "what was not captured is not refunded": refund,
        "a final capture lets the rest go": ["capture"],  # It is found by a refund of more.
    }


async def test_what_stateful_mock_gets_wrong(tmp_path: Path) -> None:
    cards = ("--approved-card", "tok_visa", "--other-card", "tok_mastercard")
    declined = ("--declined-card", "tok_chargeDeclined=card_declined")
    async with stateful_mock(tmp_path / "fake.log") as fake:
        found = await broken_rules(fake, tmp_path, "charges", cards=(*cards, *declined))
    assert found == {
        # It keeps keys by path.
        "another kind under a known reference is refused": ["capture", "void"],
        "another transaction to act on under a known reference is refused": ["capture"],
        # In this API there is no word for it: each capture is final.
        "another word on whether it is final is refused": ["capture"],
        "after a void nothing is captured": ["capture"],
    }
