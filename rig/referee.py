"""The bank's side, over its own HTTP: faults to order, the calls that it got, and the money that it moved."""

import re
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from judge.files import movements_of
from judge.history import BankCall, Movement

PATIENT_SECONDS = 25.0  # longer than any call takes on a busy machine


class Referee:
    """Orders faults at the mock bank, and reads its calls and movements. `gateway_mock` lists the faults."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        # Most banks here speak plain HTTP: loading certificates would take longer than most tests.
        self.http = httpx.AsyncClient(base_url=url, timeout=PATIENT_SECONDS, trust_env=False, verify=tls or False)
        """A client of the bank, for calls behind the servers' back."""

    # ------------------------------------------------------------ faults
    async def trouble(self, on: str, fault: str, **details: Any) -> int:
        """The next calls of a step go wrong. Returns the fault's number."""
        ordered = await self.http.post("/faults", json={"on": on, "fault": fault, **details})
        return int(ordered.raise_for_status().json()["id"])

    async def faults(self) -> list[dict[str, Any]]:
        """All ordered faults, each with the number of times that it has fired."""
        return list((await self.http.get("/faults")).raise_for_status().json())

    async def unfired(self) -> list[str]:
        """The faults that have not come up as often as they were ordered."""
        return [fault["fault"] for fault in await self.faults() if fault["fired"] < fault["times"]]

    async def has_fired(self) -> bool:
        """Whether any has met a call."""
        return any(fault["fired"] for fault in await self.faults())

    async def no_more_of(self, number: int) -> None:
        """Forget one fault."""
        (await self.http.delete(f"/faults/{number}")).raise_for_status()

    async def no_more_trouble(self) -> None:
        """Forget all faults."""
        (await self.http.delete("/faults")).raise_for_status()

    # ------------------------------------------------------------ the customer
    async def press(self, url: str, button: str) -> httpx.Response:
        """Open the page of a step as its customer's browser does, and press "Confirm" or "Refuse". Returns what then comes."""
        page = (await self.http.get(url)).raise_for_status().text
        forms = re.findall(r'<form method="post" action="([^"]+)"><button>(\w+)</button></form>', page)
        (action,) = [action for action, word in forms if word == button]
        return await self.http.post(action)

    # ------------------------------------------------------------ calls and money
    async def calls(self, after: int = 0) -> list[dict[str, Any]]:
        """The calls since its start, or after the call of a number."""
        return list((await self.http.get(f"/calls?after={after}")).raise_for_status().json())

    async def bank_calls(self) -> list[BankCall]:
        """The same, as the history checker judges them."""
        return [bank_call(call) for call in await self.calls()]

    async def asked(self, charge_id: str) -> list[str]:
        """The steps that it was asked for about a charge, in order: token, execute, cancel, look_up."""
        return [
            step_of(call) for call in await self.calls() if call["reference"] == charge_id or charge_id in call["path"]
        ]

    async def movements(self, charge_id: str | None = None) -> list[Movement]:
        """The money that moved, of all charges or of one, by the bank's statement."""
        moved = movements_of((await self.http.get("/statement")).raise_for_status().json())
        return [movement for movement in moved if charge_id in (None, movement.reference)]

    async def __aenter__(self) -> "Referee":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()


def bank_call(call: Mapping[str, Any]) -> BankCall:
    """A call as the history checker judges it."""
    reference = call["reference"] or ""
    match step_of(call):
        case "look_up":
            return BankCall("look_up", reference, call["token"] or "")
        case "execute" | "cancel" as step:
            return BankCall(step, reference, call["token"] or "")
        case _:
            return BankCall("token", reference)  # the token it has is the answer's


def step_of(call: Mapping[str, Any]) -> str:
    """The step that a call asks for: token, execute, cancel, look_up."""
    if call["method"] == "GET":
        return "look_up"
    last = call["path"].rsplit("/", 1)[1]
    return {"execute": "execute", "cancel": "cancel", "payments": "execute"}.get(last, "token")
