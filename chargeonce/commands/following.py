"""`watch` and `tail`: streams, until they are stopped."""

import contextlib
import json

import click

from chargeonce.commands import words
from chargeonce.commands.asking import Asking, Named, asking, known, named
from chargeonce.commands.exits import HELP, Exit, of_charge
from chargeonce.commands.looking import status_of
from chargeonce.commands.printing import json_of
from chargeonce_client import Charge, Client, Entry, JournalPosition
from chargeonce_client.repeating import reopened
from charging.v1.journal_pb2 import ChargeRequested, SubscribeRequest

_UNDECIDED = (Exit.NOT_KNOWN, Exit.CUSTOMER)
_TIME, _STATUS, _POSITION, _ID, _EVENT = 20, 21, 8, 36, 20


@click.command(epilog=HELP)
@named
@click.option("--forever", is_flag=True, help="Go on when the charge is decided: captures and refunds follow.")
@asking("query")
async def watch(asked: Asking, name: Named, forever: bool) -> Exit:
    """Follow a charge: a line now, and one after each change, until it is decided.

    NAME is its id or its key.
    """
    ends = Exit.NOT_KNOWN
    await known(asked.client, name)
    async with contextlib.aclosing(asked.client.watch(**name)) as changes:
        async for change in changes:
            charge = change.charge
            sums = {
                "captured": charge.captured_minor_units,
                "refunded": charge.refunded_minor_units,
                "held": charge.held_minor_units,
            }
            told = [
                f"{what} {words.amount(units, charge.amount.currency_code)}" for what, units in sums.items() if units
            ]
            asked.printer.line(
                (words.time(charge.updated_at), status_of(charge), ", ".join(told) or words.money(charge.amount)),
                (_TIME, _STATUS),
                json_of(change),
            )
            ends = of_charge(charge.status)
            if ends not in _UNDECIDED and not forever:
                break
    return ends


@click.command(epilog=HELP)
@click.option("--after", type=click.IntRange(min=0), metavar="POSITION", help="Begin after it. Else with what is new.")
@click.option("--user", callback=words.filled, help="Only the charges of this user.")
@click.option("--key", callback=words.filled, help="Only the charge of this key.")
@click.option("--id", "charge_id", callback=words.filled, help="Only the charge of this id.")
@click.option("--until-head", is_flag=True, help="End with the newest record there is.")
@asking("feed", later=("query",))
async def tail(
    asked: Asking, after: int | None, user: str | None, key: str | None, charge_id: str | None, until_head: bool
) -> Exit:
    """Follow the feed: each event of each charge, as it is recorded. A feed that ends is opened again."""
    chosen = _Chosen(asked.client, user, key, charge_id)
    begin = await _head(asked) if after is None else after
    asked.printer.note(f"events after position {begin}", {"after": str(begin)})
    async with contextlib.aclosing(asked.client.follow(after_position=begin, live=not until_head)) as entries:
        async for entry in entries:
            if await chosen.has(entry):
                record = json_of(entry.record)
                place = {name: record[name] for name in ("position", "charge_id", "version", "recorded_at")}
                asked.printer.line(
                    (
                        str(entry.record.position),
                        words.time(entry.record.recorded_at),
                        entry.record.charge_id,
                        entry.name,
                        json.dumps(json_of(entry.content, sparse=True), ensure_ascii=False),
                    ),
                    (_POSITION, _TIME, _ID, _EVENT),
                    {**place, "event": entry.name, "content": json_of(entry.content)},
                )
    return Exit.DONE


async def _head(asked: Asking) -> int:
    """Return the newest position: what the first message of a feed tells. Raises CallFailed."""
    patience, deadline = asked.settings.patience, asked.settings.deadline
    messages = reopened(
        lambda: asked.client.feed.Subscribe(SubscribeRequest(), timeout=deadline), patience=patience, deadline=deadline
    )
    async with contextlib.aclosing(messages):
        return (await anext(messages)).opened.head_position


class _Chosen:
    """The charges that are asked for. A charge's user and key are in its first event only, and the view has them later."""

    def __init__(self, client: Client, user: str | None, key: str | None, charge_id: str | None) -> None:
        self._client, self._user, self._key, self._charge_id = client, user, key, charge_id
        self._known: dict[str, bool] = {}

    async def has(self, entry: Entry) -> bool:
        """Whether an event is of such a charge. Raises CallFailed."""
        charge_id = entry.record.charge_id
        if self._charge_id not in (None, charge_id):
            return False
        if self._user is None and self._key is None:
            return True
        if charge_id not in self._known:
            begun: ChargeRequested | Charge
            if isinstance(entry.content, ChargeRequested):
                begun = entry.content
            else:
                journal_id = entry.journal_id.partition("/")[0]  # without the tenant, if it is a tenant's feed
                place = JournalPosition(journal_id=journal_id, position=entry.record.position)
                begun = (await self._client.get(charge_id=charge_id, after=place)).charge
            self._known[charge_id] = self._user in (None, begun.user_id) and self._key in (None, begun.idempotency_key)
        return self._known[charge_id]
