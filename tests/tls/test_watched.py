"""Values made from files that change while the server runs."""

import asyncio
import os
from pathlib import Path

import pytest
import structlog.testing

from chassis import watched
from chassis.watched import MAX_BYTES, Files, Unusable, Watched, keep_fresh


def pair(folder: Path) -> Watched[str]:
    """A value of two files that fit each other when they are equal; a third one may be there."""

    def make(files: Files) -> str:
        one, other = files.read(folder / "one"), files.read(folder / "other")
        if one != other:
            raise Unusable(f"{folder / 'other'}: does not fit one")
        if one == b"bug":
            raise ZeroDivisionError("secret")
        return one.decode() + (files.read_if_there(folder / "third") or b"").decode()

    return Watched(make, what="the pair")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "first")
    return tmp_path


def write(folder: Path, text: str, *names: str) -> None:
    for name in names or ("one", "other"):
        (folder / name).write_text(text)


def test_a_value_is_made_again_when_a_file_changes_and_only_then(folder: Path) -> None:
    value = pair(folder)
    assert (value.value, value.refresh()) == ("first", False)
    write(folder, "first")  # the same bytes, another time
    assert not value.refresh()
    write(folder, "second")
    with structlog.testing.capture_logs() as logs:
        assert (value.refresh(), value.value) == (True, "second")
    assert [entry["event"] for entry in logs] == ["changed files are in use"]
    write(folder, "+", "third")  # a file that was not there
    assert (value.refresh(), value.value) == (True, "second+")


def test_a_set_that_is_half_replaced_is_told_once_and_heals_at_the_next_look(folder: Path) -> None:
    value = pair(folder)
    write(folder, "second", "one")
    with structlog.testing.capture_logs() as logs:
        assert not value.refresh()
        assert not value.refresh()
    assert value.value == "first"
    assert [(entry["log_level"], entry["why"]) for entry in logs] == [
        ("error", f"{folder / 'other'}: does not fit one")
    ]
    write(folder, "second", "other")
    assert (value.refresh(), value.value) == (True, "second")


@pytest.mark.parametrize("trouble", ["gone", "a folder", "a pipe", "too large", "a fault of ours"])
def test_files_that_cannot_be_used_leave_the_former_value(folder: Path, trouble: str) -> None:
    value = pair(folder)
    match trouble:
        case "gone":
            (folder / "one").unlink()
        case "a folder":
            (folder / "one").unlink()
            (folder / "one").mkdir()
        case "a pipe":  # nobody writes to it, so that reading it would not end
            (folder / "one").unlink()
            os.mkfifo(folder / "one")
        case "too large":
            write(folder, "x" * (MAX_BYTES + 1))
        case "a fault of ours":
            write(folder, "bug")
    with structlog.testing.capture_logs() as logs:
        assert not value.refresh()
        assert not value.refresh()
    assert value.value == "first"
    assert sum(entry["event"] == "files cannot be used: the former ones stay in use" for entry in logs) == 1
    assert "secret" not in str(logs)
    if trouble == "a folder":
        (folder / "one").rmdir()
    (folder / "one").unlink(missing_ok=True)
    write(folder, "first")  # as it was before
    assert (value.refresh(), value.value) == (True, "first")


def test_without_usable_files_there_is_no_first_value(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="one: there is no such file"):
        pair(tmp_path)
    with pytest.raises(Unusable, match="there is no such file"):
        Files().read(tmp_path / "a name\0that a policy may hold")


def test_a_value_is_made_again_each_day_since_it_may_depend_on_the_date(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "AGAIN_SECONDS", 0.0)
    assert pair(folder).refresh()


async def test_a_running_server_looks_every_second(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched.LOOK_SECONDS == 1.0
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.01)
    value = pair(folder)
    looking = asyncio.create_task(keep_fresh([value]))
    write(folder, "second")
    for _ in range(1_000):
        if value.value == "second":
            break
        await asyncio.sleep(0.01)
    assert value.value == "second"
    looking.cancel()
