"""What a pair means, and laws of it: the order of lines does not matter, days add up, and what is planted is named."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command_service.bank.statement import Line, LineKind, Span
from command_service.reconciling.books import Books, EntriesFile, Pair
from command_service.reconciling.entries import Entry, State
from command_service.reconciling.matching import DIFFERENCES, Finding, FindingKind, Judged, Terms, judge
from command_service.reconciling.words import proposed, told

SECOND = 1_000_000
DAY = 86_400 * SECOND
NOON = DAY // 2
SPAN = Span(DAY, 2 * DAY)
TERMS = Terms(SPAN, Span(DAY - NOON, 2 * DAY + NOON), frozenset(LineKind), lambda at: at // DAY, 60 * SECOND)
KINDS = (LineKind.CHARGE, LineKind.AUTHORIZE, LineKind.CAPTURE, LineKind.VOID, LineKind.REFUND)


def entry(
    minor_units: int = 1250,
    *,
    reference: str = "a",
    kind: LineKind = LineKind.CHARGE,
    state: State = State.MOVED,
    at: int = DAY + NOON,
    began: int | None = None,
) -> Entry:
    """An operation that took two seconds."""
    begun = at - 2 * SECOND if began is None else began
    signed = -minor_units if kind is LineKind.REFUND else minor_units
    return Entry(reference, "c", kind, state, signed, "EUR", f"t-{reference}", begun, at)


def line_of(entry: Entry, at: int | None = None) -> Line:
    """The line that a bank has of it, dated a second before."""
    when = entry.at - SECOND if at is None else at
    return Line(entry.kind, entry.reference, entry.transaction_id, entry.minor_units, entry.currency_code, when)


def kinds(judged: Judged) -> list[FindingKind]:
    return [finding.kind for finding in judged.findings]


def difference(judged: Judged) -> int:
    return sum(each.bank_minor - each.journal_minor for each in judged.sums)


def test_equal_sides_are_matched() -> None:
    for kind in KINDS:
        judged = judge(Pair(entry(kind=kind), [line_of(entry(kind=kind))]), TERMS)
        assert not judged.findings
        assert sum(each.matched for each in judged.sums) == 1
        assert difference(judged) == 0


def test_a_payment_stands_for_a_charge_and_for_a_capture_and_not_for_a_refund() -> None:
    for kind, is_matched in ((LineKind.CHARGE, True), (LineKind.CAPTURE, True), (LineKind.REFUND, False)):
        ours = entry(kind=kind)
        paid = line_of(ours)._replace(kind=LineKind.PAYMENT)
        assert (kinds(judge(Pair(ours, [paid]), TERMS)) == []) is is_matched


def test_each_difference_has_its_kind_and_its_sum() -> None:
    ours = entry()
    same = line_of(ours)
    for pair, kind, sum_of_it in (
        (Pair(ours, []), FindingKind.MISSING_AT_BANK, -1250),
        (Pair(None, [same]), FindingKind.MISSING_HERE, 1250),
        (Pair(ours, [same._replace(minor_units=1251)]), FindingKind.AMOUNT_DIFFERS, 1),
        (Pair(ours, [same._replace(transaction_id="t-other")]), FindingKind.STATUS_DIFFERS, 0),
        (Pair(entry(state=State.NOT_MOVED), [same]), FindingKind.STATUS_DIFFERS, 1250),
        (Pair(entry(state=State.UNDER_WAY), [same]), FindingKind.STATUS_DIFFERS, 1250),
        (Pair(entry(state=State.IN_REVIEW), [same]), FindingKind.STATUS_DIFFERS, 1250),
        (Pair(ours, [same._replace(has_moved=False)]), FindingKind.STATUS_DIFFERS, -1250),
        (Pair(ours, [same, same]), FindingKind.TWICE, 1250),
        (Pair(ours, [same, same._replace(transaction_id="t-second")]), FindingKind.TWICE, 1250),
    ):
        judged = judge(pair, TERMS)
        assert kinds(judged) == [kind], pair
        assert difference(judged) == sum_of_it, pair


def test_an_id_that_may_not_be_kept_is_no_second_execution() -> None:
    """The journal has the operation under a name that people gave it."""
    for transaction_id, said in (("4111111111111111", "may not be kept"), ("t-other", "executed twice")):
        line = line_of(entry())._replace(transaction_id=transaction_id)
        (finding,) = judge(Pair(entry(), [line]), TERMS).findings
        assert finding.kind is FindingKind.STATUS_DIFFERS
        assert said in told(finding)


def test_another_currency_differs_in_both_currencies() -> None:
    judged = judge(Pair(entry(), [line_of(entry())._replace(currency_code="JPY")]), TERMS)
    assert kinds(judged) == [FindingKind.AMOUNT_DIFFERS]
    assert "1250 JPY at the bank, and 12.50 EUR in the journal" in told(judged.findings[0])
    assert {each.currency_code: each.bank_minor - each.journal_minor for each in judged.sums} == {
        "EUR": -1250,
        "JPY": 1250,
    }


def test_what_the_bank_has_not_moved_either_is_no_finding() -> None:
    for state in (State.NOT_MOVED, State.UNDER_WAY, State.IN_REVIEW):
        for lines in ([], [line_of(entry())._replace(has_moved=False)]):
            assert judge(Pair(entry(state=state), lines), TERMS) == Judged([], [])


def test_a_statement_without_holds_does_not_miss_them() -> None:
    settled = Terms(
        SPAN, TERMS.covers, frozenset({LineKind.CHARGE, LineKind.CAPTURE, LineKind.REFUND}), TERMS.day_of, 0
    )
    for kind in (LineKind.AUTHORIZE, LineKind.VOID):
        assert not judge(Pair(entry(kind=kind), []), settled).findings
        assert kinds(judge(Pair(entry(kind=kind), []), TERMS)) == [FindingKind.MISSING_AT_BANK]


def test_a_movement_about_midnight_counts_on_the_banks_day_and_in_one_run_only() -> None:
    """Executed at 23:59:59.9 by the bank's clock and stored at 00:00 by ours, and the other way round."""
    for ours_at, banks_at, day in ((2 * DAY, 2 * DAY - SECOND // 10, 1), (2 * DAY - 1, 2 * DAY, 2)):
        ours = entry(at=ours_at)
        for run in (0, 1, 2):
            span = Span(run * DAY, (run + 1) * DAY)
            covers = Span(span.begin - NOON, span.end + NOON)
            judged = judge(Pair(ours, [line_of(ours, banks_at)]), Terms(span, covers, KINDS, TERMS.day_of, 60 * SECOND))
            assert not judged.findings
            assert sum(each.matched for each in judged.sums) == (1 if run == day else 0)


def test_at_the_edge_of_files_that_end_at_midnight_nothing_is_called_missing() -> None:
    only_the_day = Terms(SPAN, SPAN, KINDS, TERMS.day_of, 60 * SECOND)
    for at in (2 * DAY - SECOND, DAY + SECOND):
        judged = judge(Pair(entry(at=at), []), only_the_day)
        assert kinds(judged) == [FindingKind.AT_EDGE]
        assert difference(judged) == 0
    for at in (DAY + NOON, 2 * DAY - 62 * SECOND, DAY + 63 * SECOND):
        assert kinds(judge(Pair(entry(at=at), []), only_the_day)) == [FindingKind.MISSING_AT_BANK]
    # One that took all night may have been executed before the day began.
    assert kinds(judge(Pair(entry(began=DAY - NOON), []), only_the_day)) == [FindingKind.AT_EDGE]


def test_a_line_that_did_not_move_takes_back_only_its_own_transaction() -> None:
    ours = entry()
    rejected = line_of(ours)._replace(transaction_id="t-first", has_moved=False)
    assert judge(Pair(ours, [rejected, line_of(ours)]), TERMS).findings == []
    lines = [line_of(ours), *(rejected._replace(transaction_id=f"t-{n}") for n in range(3))]
    assert judge(Pair(ours, lines), TERMS).findings == []
    both = [line_of(ours), line_of(ours)._replace(has_moved=False)]
    assert kinds(judge(Pair(ours, both), TERMS)) == [FindingKind.STATUS_DIFFERS]
    unnamed = [each._replace(transaction_id="") for each in both]
    assert judge(Pair(ours, unnamed), TERMS).findings == []


def test_a_rejected_try_hides_no_payment() -> None:
    """Neither one without an id, nor an earlier one with the id of the payment."""
    paid = line_of(entry())
    for nameless in (False, True):
        ours = entry(state=State.NOT_MOVED)
        rejected, settled = paid._replace(at=paid.at - SECOND, has_moved=False), paid
        lines = [each._replace(transaction_id="") if nameless else each for each in (rejected, settled)]
        for found, kind in ((None, FindingKind.MISSING_HERE), (ours, FindingKind.STATUS_DIFFERS)):
            judged = judge(Pair(found, lines), TERMS)
            assert (kinds(judged), difference(judged)) == ([kind], 1250)


def test_money_that_went_back_is_a_difference_however_long_ago_it_moved() -> None:
    """Neither the movement nor its entry need be among what is read."""
    for kind, sum_of_it in ((LineKind.CHARGE, -1250), (LineKind.REFUND, 1250), (LineKind.VOID, 0)):
        paid = line_of(entry(kind=kind))
        back = paid._replace(at=paid.at + SECOND, has_moved=False, is_reversal=True)
        for pair in (Pair(None, [back]), Pair(entry(kind=kind), [paid, back]), Pair(entry(kind=kind), [back])):
            judged = judge(pair, TERMS)
            assert (kinds(judged), difference(judged)) == ([FindingKind.STATUS_DIFFERS], sum_of_it), pair
        assert "went back" in told(judge(Pair(None, [back]), TERMS).findings[0])
        assert judge(Pair(None, [paid, back]), TERMS) == Judged([], [])
        nameless = back._replace(transaction_id="")
        assert kinds(judge(Pair(entry(kind=kind), [paid, nameless]), TERMS)) == [FindingKind.STATUS_DIFFERS]
        other = back._replace(transaction_id="t-other")
        judged = judge(Pair(entry(kind=kind), [paid, other]), TERMS)
        assert (kinds(judged), difference(judged)) == ([FindingKind.STATUS_DIFFERS], sum_of_it)
        assert judge(Pair(None, [back._replace(at=3 * DAY)]), TERMS) == Judged([], [])


def test_an_outcome_is_proposed_only_if_one_equal_line_proves_it() -> None:
    ours = entry(state=State.IN_REVIEW)._replace(transaction_id="")
    line = line_of(ours)._replace(transaction_id="txn_9")
    for lines, word in (
        ([line], "propose"),
        ([line._replace(kind=LineKind.PAYMENT)], "propose"),
        ([line._replace(minor_units=10)], "ask-bank"),
        ([line._replace(currency_code="USD")], "ask-bank"),
        ([line._replace(kind=LineKind.REFUND)], "ask-bank"),
        ([line, line._replace(transaction_id="txn_8")], "ask-bank"),
        ([line, line._replace(kind=LineKind.REFUND, minor_units=-1250)], "ask-bank"),
        ([line._replace(transaction_id="")], "ask-bank"),
        ([line._replace(transaction_id="\x1b[2Jtxn")], "ask-bank"),
        ([line._replace(transaction_id="txn\u202e9")], "ask-bank"),
        ([line._replace(transaction_id="t" * 200)], "ask-bank"),
    ):
        for finding in judge(Pair(ours, lines), TERMS).findings:
            command = proposed(finding, "acme")
            assert command.split()[2] == word, lines
            assert command.isprintable()
            assert "12.50 EUR" in told(finding) or finding.kind is FindingKind.TWICE


def test_a_line_whose_reference_nobody_knows_here_is_found_by_its_transaction(tmp_path: Path) -> None:
    """Such as a refund in the bank's own pages, which two people have made known at the desk."""
    ours = entry(kind=LineKind.REFUND)
    lines = [line_of(ours)._replace(reference="portal-77")]
    (judged,) = compared(tmp_path, [ours], lines, TERMS)
    assert not judged.findings
    assert [each.matched for each in judged.sums] == [1]
    (_, theirs) = compared(tmp_path, [ours], [lines[0]._replace(transaction_id="t-other")], TERMS)
    assert kinds(theirs) == [FindingKind.MISSING_HERE]
    assert "is not found" in told(theirs.findings[0])


def test_a_capture_whose_answer_is_lost_is_found_by_its_hold(tmp_path: Path) -> None:
    hold = entry(reference="c", kind=LineKind.AUTHORIZE)
    first = entry(kind=LineKind.CAPTURE, state=State.NOT_MOVED, reference="a", began=DAY)._replace(transaction_id="")
    second = entry(kind=LineKind.CAPTURE, state=State.UNDER_WAY, reference="b")._replace(transaction_id="")
    line = line_of(second)._replace(reference="", transaction_id="ch_1", hold="c")
    judged = compared(tmp_path, [hold, first, second], [line_of(hold), line], TERMS)
    (finding,) = (finding for each in judged for finding in each.findings)
    assert finding.kind is FindingKind.STATUS_DIFFERS
    assert finding.entry is not None
    assert finding.entry.reference == "b"
    assert "refund nothing" in told(finding)
    assert proposed(finding, "stripe").startswith("chargeonce desk try c ")


def on_days(entry: Entry | None, lines: Sequence[Line], *days: int) -> list[tuple[list[FindingKind], int]]:
    """What runs over single days find, each of which reads all lines: the findings and the difference."""
    judged = [
        judge(
            Pair(entry, lines), Terms(Span(day * DAY, (day + 1) * DAY), TERMS.covers, KINDS, TERMS.day_of, 60 * SECOND)
        )
        for day in days
    ]
    return [(kinds(each), difference(each)) for each in judged]


def test_what_went_back_on_a_later_day_counts_there_whatever_else_was_tried() -> None:
    """A rejected try with an id of its own speaks for nobody else. The first day stays as it was found."""
    ours = entry()
    paid = line_of(ours)
    tried = paid._replace(at=paid.at - SECOND, transaction_id="a-try", has_moved=False)
    back = paid._replace(at=paid.at + DAY, has_moved=False, is_reversal=True)
    same_id = back._replace(is_reversal=False)
    differs = ([FindingKind.STATUS_DIFFERS], -1250)
    for lines in ([paid, back], [tried, paid, back], [tried, paid, same_id]):
        assert on_days(ours, lines, 1, 2) == [([], 0), differs]
        assert on_days(None, lines, 1, 2) == [([FindingKind.MISSING_HERE], 1250), differs]
        assert all(told(each) for each in judge(Pair(None, lines), TERMS).findings)
    assert on_days(ours, [tried, back], 1, 2) == [([], 0), differs]


def test_a_rejected_try_about_midnight_does_not_speak_for_the_payment_in_the_next_file() -> None:
    only_the_day = Terms(SPAN, SPAN, KINDS, TERMS.day_of, 60 * SECOND)
    late = entry(at=2 * DAY - SECOND)
    for transaction_id in ("a-try", ""):
        tried = line_of(late)._replace(transaction_id=transaction_id, has_moved=False)
        judged = judge(Pair(late, [tried]), only_the_day)
        assert (kinds(judged), difference(judged)) == ([FindingKind.AT_EDGE], 0)
    assert kinds(judge(Pair(entry(), [tried._replace(transaction_id="a-try")]), TERMS)) == [FindingKind.MISSING_AT_BANK]
    before = line_of(entry(), at=DAY - SECOND)._replace(has_moved=False)
    assert kinds(judge(Pair(entry(), [before]), TERMS)) == [FindingKind.MISSING_AT_BANK]
    on_the_day = before._replace(at=DAY)  # the date is all that it tells
    assert kinds(judge(Pair(entry(), [on_the_day]), TERMS)) == [FindingKind.STATUS_DIFFERS]


# ---------------------------------------------------------------- laws
@st.composite
def sides(draw: st.DrawFn) -> tuple[list[Entry], list[Line]]:
    """Entries and lines of two days, most of them equal, about every kind of difference."""
    entries, lines = list[Entry](), list[Line]()
    for number in range(draw(st.integers(0, 12))):
        ours = entry(
            draw(st.integers(1, 3)),
            reference=f"r{number}",
            kind=draw(st.sampled_from(KINDS)),
            state=draw(st.sampled_from((State.MOVED,) * 4 + tuple(State))),
            at=draw(st.integers(DAY + 3 * SECOND, 2 * DAY - SECOND)),
        )
        if draw(st.integers(0, 9)):
            entries.append(ours)
        for _ in range(draw(st.sampled_from((0, 1, 1, 1, 1, 2, 3)))):
            same, shift = line_of(ours), draw(st.sampled_from((0, SECOND, -SECOND, NOON // 2, -NOON // 2)))
            later = min(max(same.at + shift, SPAN.begin), SPAN.end - 1)
            changed = draw(
                st.sampled_from(
                    (same,) * 5
                    + (
                        same._replace(minor_units=same.minor_units + 1),
                        same._replace(transaction_id="other"),
                        same._replace(has_moved=False, at=later),
                        same._replace(has_moved=False, at=later, is_reversal=True),
                        same._replace(has_moved=False, at=later, is_reversal=True, transaction_id=""),
                        same._replace(currency_code="USD"),
                    )
                )
            )
            lines.append(changed)
    return entries, lines


def compared(folder: Path, entries: Sequence[Entry], lines: Sequence[Line], terms: Terms) -> list[Judged]:
    """Compare them through the file, as the command does."""
    for name in ("lines.db", "entries.db"):
        (folder / name).unlink(missing_ok=True)
    books, theirs = Books(folder / "lines.db"), EntriesFile(folder / "entries.db")
    for each in lines:
        books.add_lines([each])
    theirs.add(iter(entries), lambda: None)
    theirs.close()
    books.take(folder / "entries.db")
    books.name_lines()
    judged = [judge(pair, terms) for pair in books.pairs()]
    books.close()
    return judged


def totals(judged: Sequence[Judged]) -> Counter[tuple[int, str, str]]:
    found = Counter[tuple[int, str, str]]()
    for each in judged:
        for one in each.sums:
            found[one.day, one.currency_code, "matched"] += one.matched
            found[one.day, one.currency_code, "bank"] += one.bank_minor
            found[one.day, one.currency_code, "journal"] += one.journal_minor
    return found


def named(judged: Sequence[Judged]) -> Counter[tuple[FindingKind, str]]:
    return Counter((finding.kind, _reference(finding)) for each in judged for finding in each.findings)


def _reference(finding: Finding) -> str:
    return finding.line.reference if finding.line is not None else finding.entry.reference if finding.entry else ""


LAWS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@LAWS
@given(sides(), st.randoms(use_true_random=False))
def test_the_order_of_lines_and_entries_does_not_matter(
    tmp_path: Path, both: tuple[list[Entry], list[Line]], chance: random.Random
) -> None:
    entries, lines = both
    first = compared(tmp_path, entries, lines, TERMS)
    chance.shuffle(entries)
    chance.shuffle(lines)
    second = compared(tmp_path, entries, lines, TERMS)
    assert named(first) == named(second)
    assert totals(first) == totals(second)


@LAWS
@given(sides(), st.integers(DAY, 2 * DAY))
def test_two_runs_over_the_parts_of_a_span_find_what_one_run_finds(
    tmp_path: Path, both: tuple[list[Entry], list[Line]], cut: int
) -> None:
    """Wherever the span is cut in two, as long as each run reads all of the statement."""
    entries, lines = both
    whole = compared(tmp_path, entries, lines, TERMS)
    parts = [
        judged
        for span in (Span(SPAN.begin, cut), Span(cut, SPAN.end))
        for judged in compared(
            tmp_path, entries, lines, Terms(span, TERMS.covers, KINDS, TERMS.day_of, TERMS.clock_difference)
        )
    ]
    assert named(whole) == named(parts)
    assert totals(whole) == totals(parts)


@LAWS
@given(sides())
def test_the_sums_are_those_of_the_sides(tmp_path: Path, both: tuple[list[Entry], list[Line]]) -> None:
    """Whatever is found, no money is counted twice and none is left out."""
    entries, lines = both
    judged = compared(tmp_path, entries, lines, TERMS)
    with_money = (LineKind.CHARGE, LineKind.CAPTURE, LineKind.REFUND)
    bank = sum((each.minor_units if each.has_moved else -each.minor_units) for each in lines if each.kind in with_money)
    undone = sum(1 for each in lines if not each.has_moved)
    ours = sum(each.minor_units for each in entries if each.kind in with_money and each.state is State.MOVED)
    sums = totals(judged)
    if not undone:  # a line that takes back what never moved is no money
        assert sum(number for (_, _, name), number in sums.items() if name == "bank") == bank
    assert sum(number for (_, _, name), number in sums.items() if name == "journal") == ours


@LAWS
@given(sides())
def test_no_difference_is_found_in_a_statement_that_is_made_of_the_journal(
    tmp_path: Path, both: tuple[list[Entry], list[Line]]
) -> None:
    entries, _ = both
    lines = [line_of(each) for each in entries if each.state is State.MOVED]
    anonymous = [each._replace(reference="") for each in lines]
    for statement in (lines, anonymous):
        judged = compared(tmp_path, entries, statement, TERMS)
        assert not [finding for each in judged for finding in each.findings if finding.kind in DIFFERENCES]
        assert sum(one.matched for each in judged for one in each.sums) == len(lines)
