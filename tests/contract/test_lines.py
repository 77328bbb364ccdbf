"""The choice among the lines to several banks, with a mock bank behind each: one that does not answer is passed over."""

from random import Random

import structlog.testing

from command_service.bank import Bank
from command_service.bank.breaker import NEW_CHARGE_SECONDS, UNANSWERED_TO_OPEN, Breaker
from command_service.bank.line import Line
from command_service.bank.lines import Choice, Lines
from command_service.bank.unconfigured import Unconfigured
from command_service.values import Execute, Executed, Kind, NoAnswer, RequestToken
from tests.contract.bank_rigs import Rig
from tests.contract.operations import an_operation, opened
from tests.contract.test_line import Clock
from tests.core.stories import REQUEST


def lines_to(banks: dict[str, Bank], clock: Clock, *, order: tuple[str, ...], unnamed: str = "") -> Lines:
    def line(bank: Bank) -> Line:
        return Line(bank, Breaker(clock, Random(1)), calls_at_once=8)

    return Lines(
        {name: line(bank) for name, bank in banks.items()},
        lambda _: order,
        lambda name: line(Unconfigured(name)),
        unnamed=unnamed,
    )


async def charge_at(line: Line, step: Execute) -> object:
    performed = await line.perform(step, look_up_first=False)
    assert performed is not None
    return performed.answer


async def steps(rig: Rig, bank: Bank, count: int) -> list[Execute]:
    """Execute steps of charges that the bank has opened."""
    return [await opened(bank, RequestToken(an_operation(Kind.CHARGE, rig.approved_card), 0)) for _ in range(count)]


async def spare(rig: Rig, line: Line, bank: Bank) -> None:
    """Let a bank fail until it is spared."""
    failing = await steps(rig, bank, UNANSWERED_TO_OPEN)
    rig.trouble("execute", "error_before", times=UNANSWERED_TO_OPEN)
    for step in failing:
        assert not line.is_spared
        await charge_at(line, step)
    assert line.is_spared


async def test_a_spared_bank_is_passed_over_until_one_new_charge_in_a_while_finds_it_again(rig: Rig) -> None:
    """Nobody waits at it, so that no probe of theirs would find it."""
    clock = Clock()
    async with rig.adapter() as bank, rig.adapter() as other:
        lines = lines_to({"a": bank, "b": other}, clock, order=("a", "b"))
        assert lines.choose(REQUEST, is_new=True) == Choice("a", may_begin=True)
        unanswered, answered = await steps(rig, bank, 2)
        await spare(rig, lines.at("a"), bank)
        for _ in range(3):
            clock.now += NEW_CHARGE_SECONDS / 4
            assert lines.choose(REQUEST, is_new=True) == Choice("b", may_begin=True)
        clock.now += NEW_CHARGE_SECONDS / 4
        assert [lines.choose(REQUEST, is_new=True).bank for _ in range(3)] == ["a", "b", "b"]
        rig.trouble("execute", "error_before")
        assert isinstance(await charge_at(lines.at("a"), unanswered), NoAnswer)
        assert lines.choose(REQUEST, is_new=True) == Choice("b", may_begin=True)
        clock.now += NEW_CHARGE_SECONDS
        assert lines.choose(REQUEST) == Choice("b", may_begin=True), "the key may be known"
        assert lines.want_new_charge(REQUEST)
        assert lines.choose(REQUEST, is_new=True) == Choice("a", may_begin=True)
        assert not lines.want_new_charge(REQUEST)
        assert isinstance(await charge_at(lines.at("a"), answered), Executed)
        assert [lines.choose(REQUEST, is_new=True).bank for _ in range(3)] == ["a"] * 3


async def test_where_all_banks_are_spared_no_charge_begins_but_a_probe(rig: Rig) -> None:
    """As with the only bank. The one that may be probed now is named."""
    clock = Clock()
    async with rig.adapter() as bank, rig.adapter() as other:
        lines = lines_to({"a": bank, "b": other}, clock, order=("a", "b"))
        await spare(rig, lines.at("b"), other)
        clock.now += 0.6
        await spare(rig, lines.at("a"), bank)
        assert lines.choose(REQUEST, is_new=True) == Choice("a", may_begin=False)
        assert not lines.at("a").may_probe
        clock.now += 0.6
        assert lines.choose(REQUEST, is_new=True) == Choice("b", may_begin=False)
        assert lines.at("b").may_probe


async def test_the_only_bank_of_a_rule_is_tried_in_a_while_too(rig: Rig) -> None:
    """Whatever other charges are about: under their load none might ever be alone, and so the probe."""
    clock = Clock()
    async with rig.adapter() as bank:
        lines = lines_to({"a": bank}, clock, order=("a",))
        await spare(rig, lines.at("a"), bank)
        for _ in range(2):
            assert lines.choose(REQUEST, is_new=True) == Choice("a", may_begin=False)
            clock.now += NEW_CHARGE_SECONDS
            assert lines.choose(REQUEST, is_new=True) == Choice("a", may_begin=True)


async def test_a_charge_that_names_no_bank_is_at_the_unnamed_one(rig: Rig) -> None:
    async with rig.adapter() as bank, rig.adapter() as other:
        banks: dict[str, Bank] = {"a": bank, "b": other}
        named = lines_to(banks, Clock(), order=("a",), unnamed="b")
        assert named.at("") is named.at("b") is not named.at("a")
        assert named.lead_to("")
        assert not lines_to(banks, Clock(), order=("a",)).lead_to("")
        assert [name for name, _ in named] == ["a", "b"]


async def test_to_a_bank_that_no_setting_names_nothing_is_sent(rig: Rig) -> None:
    """It is a fault of our set-up, so that no charge is given up for it; other banks are called as ever."""
    async with rig.adapter() as bank:
        lines = lines_to({"a": bank}, Clock(), order=("a",))
        assert not lines.lead_to("gone")
        assert lines.at("gone") is lines.at("gone") is not lines.at("")
        (step,) = await steps(rig, bank, 1)
        with structlog.testing.capture_logs() as logs:
            for name in ("gone", ""):
                assert await charge_at(lines.at(name), step) == NoAnswer(our_setup=True)
        assert ["`unnamed`" in entry["why"] for entry in logs] == [False, True], "the log tells the way out"
        assert isinstance(await charge_at(lines.at("a"), step), Executed)
