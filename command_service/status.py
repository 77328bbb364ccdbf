"""The state of a command server, in the words of the contract: the same figures and counts as its metrics."""

from google.protobuf.duration_pb2 import Duration

from charging.v1.operator_pb2 import AnswerCount, BankStatus, GetServerStatusResponse, LimitStatus
from command_service.bank.line import Line
from command_service.codec import answer_kind_out
from command_service.observed import Observed
from command_service.values import AnswerKind
from command_service.vitals import Watched, vitals


def status(watched: Watched, observed: Observed, *, tenant: str, started_at: int, now: int) -> GetServerStatusResponse:
    """Tell the state of a server. Times are in microseconds since 1970.

    A tenant is told of its own charges, and of no figure that is of all tenants; an empty one is told all.
    """
    journal = watched.journal
    taken = vitals(watched, now=now, attention_after_seconds=0.0, tenant=tenant)
    response = GetServerStatusResponse(
        journal_id=journal.journal_id,
        journal_position=taken.journal_position,
        not_accepting=journal.not_accepting,
        unfinished_charges=taken.unfinished_charges,
        charges_held_back=taken.stuck_charges["held_back"],
        oldest_unfinished=_duration(taken.oldest_unfinished_seconds),
        banks=[BankStatus(name=name, is_spared=line.is_spared) for name, line in watched.lines],
    )
    if not tenant:
        for told, (name, line) in zip(response.banks, watched.lines, strict=True):
            _tell_figures(told, name, line, observed)
        response.limits.extend(
            LimitStatus(name=name, used=it.used, limit=it.limit) for name, it in watched.limits.items()
        )
    response.started_at.FromMicroseconds(started_at)
    response.at.FromMicroseconds(now)
    return response


def _tell_figures(told: BankStatus, name: str, line: Line, observed: Observed) -> None:
    histogram = observed.bank_durations
    bounds = histogram.description.bounds
    told.calls_under_way, told.calls_at_once = line.calls_under_way, line.calls_at_once
    told.duration_bounds.extend(map(_duration, bounds))
    answers: dict[tuple[str, str], int] = {}
    counts, seconds = [0] * (len(bounds) + 1), 0.0
    for (bank, step, _, answer), classes in histogram.items():
        if bank == name:
            answers[step, answer] = answers.get((step, answer), 0) + sum(classes.counts)
            counts = [sum(both) for both in zip(counts, classes.counts, strict=True)]
            seconds += classes.total
    for (step, answer), count in sorted(answers.items()):
        told.answers.append(AnswerCount(step=step, answer=answer_kind_out(AnswerKind(answer)), count=count))
    told.answer_time.CopyFrom(_duration(seconds))
    told.duration_counts.extend(counts)


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(round(seconds * 1_000_000_000))
    return made
