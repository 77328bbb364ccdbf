"""Stripe's words: each error of the table, answers that are not Stripe's, amounts, the settings of its kind, and the key."""

import itertools
import json
import pickle
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from chassis.secret import Secret, secret_in
from chassis.settings import SettingsError
from chassis.watched import Unusable, Watched
from command_service.bank.kinds import KINDS as BANK_KINDS
from command_service.bank.kinds import BankSettings
from command_service.bank.stripe import errors
from command_service.bank.stripe.errors import Verdict, reason_of, verdict_of
from command_service.bank.stripe.objects import Failure, intent_in
from command_service.bank.stripe.units import in_minor_units, in_stripes_units
from command_service.bank.transport import Exchange, open_transport
from command_service.values import (
    Answer,
    CallOff,
    Declined,
    DeclineReason,
    Effect,
    Execute,
    Executed,
    InProgress,
    Kind,
    Money,
    NoAnswer,
    Refused,
    RequestToken,
    Token,
)
from contract.currencies import EXPONENTS
from tests.contract.bank_rigs import NO_TLS
from tests.contract.operations import an_operation, following
from tests.contract.stripe_town import KEY, RETURN_URL, Town, stripe_town

VISA = "pm_card_visa"
CHARGE = an_operation(Kind.CHARGE, VISA)


def error(kind: str | None, code: str | None = None) -> dict[str, Any]:
    return {
        "error": {"message": "said by a test", **({"type": kind} if kind else {}), **({"code": code} if code else {})}
    }


# ---------------------------------------------------------------- the table
ROWS = [
    *errors._VERDICTS.items(),
    (("card_error", "card_declined"), Verdict.ENDED),
    (("card_error", "new"), Verdict.ENDED),
]
ROWS += [
    ((kind, "news"), Verdict.UNKNOWN) for kind in ("invalid_request_error", "api_error", "idempotency_error", "news")
]
# What each verdict comes to if the transaction is open, in the token step and in the execute step.
WHEN_OPEN: Mapping[Verdict, tuple[type[Answer], type[Answer]]] = {
    Verdict.REFUSED: (Refused, Declined),
    Verdict.CLASHES: (Refused, Refused),
    Verdict.ENDED: (Refused, Refused),
    Verdict.BUSY: (InProgress, InProgress),
    Verdict.LAPSING: (InProgress, InProgress),
    Verdict.UNKNOWN: (NoAnswer, NoAnswer),
}


@pytest.mark.parametrize(("row", "verdict"), ROWS, ids=str)
async def test_each_error_is_judged_by_its_type_and_code(row: tuple[str, str], verdict: Verdict) -> None:
    """While the transaction is open; what was declined stays so, and what was done in the end is told as done."""
    kind, code = row
    body = error(kind, code or None)
    assert verdict_of(body) is verdict
    status = 402 if kind == "card_error" else 400
    in_token_step, in_execute_step = WHEN_OPEN[verdict]
    async with stripe_town() as town:
        operation = an_operation(Kind.CHARGE, VISA)
        town.instead = [("POST /payment_intents", status, body)] * 2
        assert isinstance(await town.answer(RequestToken(operation, 0)), in_token_step)
        town.instead.clear()
        effect = Execute(operation, await town.token(operation))
        confirm = f"POST /payment_intents/{effect.token}/confirm"
        town.instead = [(confirm, status, body)] * 2
        assert isinstance(await town.answer(effect), in_execute_step)
        town.instead.clear()
        done = await town.answer(effect)
        if in_execute_step is Declined:
            assert done == Declined(DeclineReason.BANK_REFUSED)
        else:
            assert isinstance(done, Executed)
        assert len(town.stripe.movements) == isinstance(done, Executed)


NOT_STRIPES: list[tuple[int, Any]] = [
    *[(status, {"message": "no"}) for status in (400, 402, 404, 409, 422, 500, 503)],
    (400, {"error": "refused"}),
    (404, b"<html>not found</html>"),
    (200, {}),
    (200, {"object": "payment_intent", "id": "pi_1"}),
    (200, {"object": "customer", "id": "cus_1"}),
    (302, error("invalid_request_error", "resource_missing")),
    (400, b'{"error": {"type": "invalid_request_error", "type": "invalid_request_error"}}'),
]


@pytest.mark.parametrize(("status", "body"), NOT_STRIPES)
async def test_what_is_not_stripes_is_no_answer(status: int, body: Any) -> None:
    """A proxy's refusal decides nothing, on any step and on a look-up."""
    async with stripe_town() as town:
        effect = Execute(CHARGE, await town.token(CHARGE))
        off = CallOff(CHARGE, effect.token)
        steps: tuple[Effect, ...] = (RequestToken(CHARGE, 0), effect, off)
        for text, step in itertools.product(("POST", "GET"), steps):
            if text == "GET" and isinstance(step, RequestToken):
                continue
            town.instead = [(text, status, body)] * 4
            assert await town.answer(step) == NoAnswer()
        town.instead = [("GET", status, body)] * 4
        for step in (*steps, CallOff(CHARGE, None)):
            assert await town.answer(step, look_up_first=True) == NoAnswer()
            town.instead = [("GET", status, body)] * 4
        town.instead.clear()
        assert isinstance(await town.answer(effect), Executed)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_stripe_does_not_take_is_a_fault_of_our_set_up(status: int) -> None:
    async with stripe_town() as town:
        effect = Execute(CHARGE, await town.token(CHARGE))
        for text, step in (("POST", RequestToken(CHARGE, 0)), ("GET", effect), ("POST", effect)):
            town.instead = [(text, status, error("invalid_request_error"))]
            assert await town.answer(step) == NoAnswer(our_setup=True)


async def test_a_stripe_that_is_busy_is_left_in_peace_as_long_as_it_says() -> None:
    async with stripe_town() as town:
        town.extra = (("Retry-After", "3"),)
        for status, body, answer in (
            (429, error("invalid_request_error", "rate_limit"), NoAnswer(3.0)),
            (429, error("invalid_request_error", "lock_timeout"), NoAnswer(3.0)),
            (409, error("idempotency_error", "idempotency_key_in_use"), InProgress(3.0)),
        ):
            for text in ("POST", "GET"):
                effect = Execute(CHARGE, "pi_1") if text == "GET" else RequestToken(CHARGE, 0)
                town.instead = [(text, status, body)]
                assert await town.answer(effect) == answer


async def test_the_same_reference_with_other_fields_is_refused() -> None:
    """By Stripe, since it knows the key; nothing else is opened."""
    async with stripe_town() as town:
        await town.token(CHARGE)
        for other in (
            an_operation(Kind.CHARGE, VISA, Money(1251, "EUR"), reference=CHARGE.reference),
            an_operation(Kind.CHARGE, VISA, Money(1250, "USD"), reference=CHARGE.reference),
            an_operation(Kind.CHARGE, "pm_card_mastercard", reference=CHARGE.reference),
            an_operation(Kind.AUTHORIZE, VISA, reference=CHARGE.reference),
        ):
            assert isinstance(await town.answer(RequestToken(other, 0)), Refused)
        assert len(town.stripe.intents) == 1


@pytest.mark.parametrize("code", ["authentication_required", "payment_intent_authentication_failure"])
def test_a_step_that_was_wanted_is_told_as_that(code: str) -> None:
    assert reason_of(Failure(code)) is DeclineReason.AUTHENTICATION_REQUIRED
    assert reason_of(Failure("card_declined", code)) is DeclineReason.AUTHENTICATION_REQUIRED


def test_a_reason_without_a_word_of_ours_is_a_declined_card() -> None:
    assert reason_of(Failure("card_declined", "a_new_code")) is DeclineReason.CARD_DECLINED
    assert reason_of(Failure("card_declined", "insufficient_funds")) is DeclineReason.INSUFFICIENT_FUNDS
    assert reason_of(Failure("expired_card")) is DeclineReason.EXPIRED_CARD
    assert reason_of(Failure()) is DeclineReason.OTHER


# ---------------------------------------------------------------- objects
async def malformed(town: Town, effect: Execute, **changes: object) -> Answer:
    """Look an intent up of which members are other than Stripe's."""
    said = {
        "object": "payment_intent",
        "id": effect.token,
        "status": "succeeded",
        "amount": 1250,
        "amount_received": 1250,
        "currency": "eur",
        "capture_method": "automatic",
        "created": 1,
        "metadata": {"reference": CHARGE.reference, "kind": "charge", "card": VISA},
    }
    town.instead = [("GET", 200, {**said, **changes})]
    return await town.answer(effect, look_up_first=True)


async def test_a_malformed_member_makes_an_intent_no_answer() -> None:
    async with stripe_town() as town:
        effect = Execute(CHARGE, await town.token(CHARGE))
        assert isinstance(await malformed(town, effect), Executed)
        assert isinstance(await malformed(town, effect, livemode=True, a_new_member={"fraction": 0.5}), Executed)
        malformed_ones: tuple[dict[str, object], ...] = (
            {"amount": 1250.0},
            {"amount": True},
            {"amount": "1250"},
            {"status": "a_new_status"},
            {"id": "../charges"},
            {"currency": None},
            {"metadata": {}},
            {"metadata": {"reference": 1, "kind": "charge", "card": VISA}},
            {"metadata": None},
            {"capture_method": "manual"},
            {"latest_charge": {"id": "ch_1"}},
            {"latest_charge": "ch_1"},
            {"object": "charge"},
            {"created": True},
            {"created": -1},
            {"created": 10**15},
            {"created": 10**400},
        )
        for changes in malformed_ones:
            assert await malformed(town, effect, **changes) == NoAnswer(), changes


async def test_without_its_charge_an_intent_tells_of_no_hold_and_of_nothing_left() -> None:
    """A lapsed hold is not taken for an expired token, of which another would be requested."""
    async with stripe_town() as town:
        hold = an_operation(Kind.AUTHORIZE, VISA)
        effect = Execute(hold, await town.executed(hold))
        town.at += 8 * 86_400
        target = f"/v1/payment_intents/{effect.token}"
        said = json.loads(town.stripe.answer("GET", target, {"authorization": f"Bearer {KEY}"}, b"")[2])
        assert isinstance(said["latest_charge"], str)
        refund = following(Kind.REFUND, hold, effect.token)
        for step in (effect, Execute(refund, refund.reference)):
            town.instead = [("GET", 200, said)] * 2
            assert await town.answer(step, look_up_first=True) == NoAnswer()


async def test_a_hold_lapses_at_no_time_that_cannot_be_stored() -> None:
    """The money is held all the same."""
    hold = an_operation(Kind.AUTHORIZE, VISA, CHARGE.amount)
    async with stripe_town() as town:
        effect = Execute(hold, await town.token(hold))
        for capture_before, expires_at in ((1_796_034_481, 1_796_034_481_000_000), (10**15, 0), (10**400, 0), (-1, 0)):
            attempt = {
                "object": "charge",
                "id": "ch_1",
                "status": "succeeded",
                "amount_captured": 0,
                "amount_refunded": 0,
            }
            answer = await malformed(
                town,
                effect,
                status="requires_capture",
                capture_method="manual",
                metadata={"reference": hold.reference, "kind": "authorize", "card": VISA},
                latest_charge=attempt | {"payment_method_details": {"card": {"capture_before": capture_before}}},
            )
            assert answer == Executed(effect.token, expires_at)


def test_fractions_are_read_where_no_amount_stands() -> None:
    """As decimals, and for this bank only."""
    got = Exchange(200, "application/json", None, b'{"exchange_rate": 1.25, "amount": 1}', lambda: None)
    assert got.json_object() is None
    assert got.json_object(takes_fractions=True) == {"exchange_rate": Decimal("1.25"), "amount": 1}
    assert intent_in({"object": "payment_intent", "amount": Decimal("1.0")}) is None


# ---------------------------------------------------------------- amounts
@pytest.mark.parametrize(
    ("currency", "minor_units", "stripes"),
    [
        ("EUR", 1250, 1250),
        ("JPY", 500, 500),
        ("ISK", 5, 500),
        ("UGX", 1200, 120_000),
        ("MGA", 1200, 12),
        ("MGA", 1250, None),
        ("HUF", 1050, 1050),
        ("TWD", 80_045, 80_045),
        ("KWD", 5120, 5120),
    ],
)
def test_amounts_are_told_in_stripes_units(currency: str, minor_units: int, stripes: int | None) -> None:
    assert in_stripes_units(Money(minor_units, currency)) == stripes
    if stripes is not None:
        assert in_minor_units(stripes, currency) == minor_units


def test_what_stripe_tells_in_parts_of_a_minor_unit_is_not_rounded() -> None:
    assert in_minor_units(550, "ISK") is None
    for currency in EXPONENTS:
        assert in_minor_units(in_stripes_units(Money(100, currency)) or 0, currency) == 100


@pytest.mark.parametrize("kind", [Kind.CHARGE, Kind.AUTHORIZE])
async def test_a_charge_in_such_a_currency_moves_the_same_money(kind: Kind) -> None:
    """Kronur in hundredths, ariary without its decimals; half an ariary is refused, and nothing is sent."""
    async with stripe_town() as town:
        for amount in (Money(5, "ISK"), Money(1200, "MGA")):
            opening = an_operation(kind, VISA, amount)
            on = await town.executed(opening)
            follows = following(Kind.REFUND if kind is Kind.CHARGE else Kind.CAPTURE, opening, on, amount)
            await town.executed(follows)
        assert [it.amount for it in town.stripe.movements] == [500, 500, 12, 12]
        calls = len(town.calls)
        assert isinstance(await town.answer(RequestToken(an_operation(kind, VISA, Money(1250, "MGA")), 0)), Refused)
        assert len(town.calls) == calls


# ---------------------------------------------------------------- the settings, and the key
def settings(key_file: Path | None, url: str = "https://api.stripe.com", **options: object) -> BankSettings:
    return BankSettings("acme", "stripe", url, key_file=key_file, options={"return_url": RETURN_URL, **options})


async def test_the_kind_stripe_makes_its_adapter(tmp_path: Path) -> None:
    """With a key file that is watched."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    watched: list[Watched[Any]] = []
    bank = BANK_KINDS["stripe"](settings(tmp_path / "key"), open_transport(max_connections=1, verify=NO_TLS), watched)
    assert [it.value.reveal() for it in watched] == [KEY]
    assert bank.remembers_seconds == 72_000
    await bank.close()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"return_url": None}, "return_url must be"),
        ({"return_url": "app://back"}, "return_url must be"),
        ({"customer_seconds": 1}, "customer_seconds must be"),
        ({"customer_seconds": "long"}, "customer_seconds must be"),
        ({"retrun_url": RETURN_URL}, "retrun_url"),
        ({"url": "http://api.example"}, "url must be https"),
        ({"key_file": None}, "key_file"),
        ({"key_file": "nowhere"}, "no such file"),
        ({"key_file": "two words"}, "holds no secret"),
    ],
)
async def test_settings_that_cannot_be_used_are_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "two words").write_text("sk_test_of the_town")
    name = changes.pop("key_file", "key")
    chosen = settings(name and tmp_path / name, **changes)
    transport = open_transport(max_connections=1, verify=NO_TLS)
    with pytest.raises(SettingsError, match=told) as raised:
        BANK_KINDS["stripe"](chosen, transport, [])
    assert "sk_test" not in str(raised.value)
    await transport.aclose()


async def test_a_replaced_key_is_shown_from_the_next_request_on(tmp_path: Path) -> None:
    """A key that is no longer taken is a fault of our set-up until then. A file that holds none changes nothing."""
    file = tmp_path / "key"
    file.write_text("sk_test_of_last_year")
    watched = secret_in(file)
    async with stripe_town() as town:
        town.key = watched.value
        assert await town.answer(RequestToken(CHARGE, 0)) == NoAnswer(our_setup=True)
        file.write_text("\n")
        assert not watched.refresh()
        file.write_text(f"{KEY}\n")
        assert watched.refresh()
        town.key = watched.value
        assert isinstance(await town.answer(RequestToken(CHARGE, 0)), Token)


def test_a_secret_shows_itself_to_nobody(tmp_path: Path) -> None:
    """In no text that is made of it, no copy, and no error of its file."""
    secret = Secret(KEY)
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", repr([secret]), repr({"key": secret})):
        assert KEY not in text
        assert "Secret(hidden)" in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret.reveal() == KEY
    for content in (b"", b"\xff\xfe", b"two words", b"a\r\nb", b"x" * 5000, "geheim\u00e4".encode()):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(Unusable) as raised:
            secret_in(tmp_path / "key")
        assert "two words" not in str(raised.value)
