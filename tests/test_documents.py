"""The pages match the code: every thing that they define, name or count exists.

Invariants are defined on one page; paths exist; the README's figures are those of the benchmark's page.
"""

import json
import re
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from chassis.policy import read_policy
from chassis.watched import Files
from command_service.bank.configured import read_banks
from command_service.bank.kinds import KINDS
from contract.access import ROLES
from contract.version import SHAPE, VERSION
from prove import canaries
from rig import metrics_page
from rig.reference import descriptors, reference, shape

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHECKS = sorted(path for folder in ("prove", "judge", "tests") for path in (ROOT / folder).rglob("*.py"))
NAME = re.compile(r"\b[IL]\d{1,2}\b")
# The text of a violation begins with its name: "I7", or "I7: acknowledged records are lost".
REPORTED = re.compile(r"(?<!\")\"([IL]\d{1,2})\b")
INVARIANTS = (ROOT / "docs" / "invariants.md").read_text()


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _defined() -> list[str]:
    return re.findall(r"^### ([IL]\d{1,2}): ", INVARIANTS, re.MULTILINE)


def _named_in(paths: list[Path]) -> set[str]:
    return {name for path in paths for name in NAME.findall(path.read_text())}


def test_every_named_invariant_is_defined_once() -> None:
    """In the code that checks, in the tests and in the decisions."""
    defined = _defined()
    assert len(defined) == len(set(defined))
    assert _named_in([*CHECKS, *(ROOT / "docs").glob("adr/*.md")]) <= set(defined)


def test_every_defined_invariant_can_be_reported_as_broken() -> None:
    """By the proof: the page promises no invariant that is not checked."""
    reported = {name for path in CHECKS if "tests" not in path.parts for name in REPORTED.findall(path.read_text())}
    assert set(_defined()) == reported


def test_every_invariant_has_its_promise_its_breach_and_its_check() -> None:
    for section in re.split(r"^### ", INVARIANTS, flags=re.MULTILINE)[1:]:
        assert re.findall(r"^\* \*\*(.+?)\.\*\*", section, re.MULTILINE) == ["Promise", "Broken by", "Checked by"]


def test_every_planted_bug_that_the_page_names_can_be_planted() -> None:
    planted = [
        name
        for bugs in re.findall(r"Planted bugs?: ([^.]*)\.", " ".join(INVARIANTS.split()))
        for name in re.findall(r'"([^"]+)"', bugs)
    ]
    assert planted
    assert set(planted) <= set(canaries.NAMES)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    """Links, and paths in backticks below one of our folders. Folders that are made at run time are not looked for."""
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)#]+[^)]*)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build", "data", ".venv"}
    named = [path for path in re.findall(r"`([\w./-]+)`", text) if path.split("/")[0] in folders and "/" in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


ROW = re.compile(r"^\| ([^|]+) \| ([\d.,]+|-) \| ([^|]+) \| (met|missed|not measured) \|$", re.MULTILINE)


def test_the_readme_has_the_benchmarks_targets_misses_included() -> None:
    """Row for row those of the benchmark's page, and the number of the missed ones."""
    page, readme = ((ROOT / name).read_text() for name in ("docs/benchmark.md", "README.md"))
    rows = ROW.findall(page)
    assert rows
    assert ROW.findall(readme) == rows
    missed, unmeasured = (sum(row[-1] == verdict for row in rows) for verdict in ("missed", "not measured"))
    count = f"{missed} of {len(rows)} targets were missed" + (f", {unmeasured} not measured." if unmeasured else ".")
    assert count in page
    assert count in readme


def test_the_readmes_own_words_have_the_benchmarks_figures() -> None:
    """What is written there by hand in bold is compared with the page that the benchmark fills."""
    measured = {value for _, value, _, _ in ROW.findall((ROOT / "docs" / "benchmark.md").read_text())}
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## The benchmark") : readme.index("<!-- figures")]
    assert set(re.findall(r"\*\*([\d.,]+)\*\*", section)) <= measured


def test_every_line_of_what_is_proved_of_security_names_a_test_that_exists() -> None:
    lines = re.findall(
        r"^\| [^|]+ \| `(tests/[\w/]+\.py)::(test_\w+)` \|$", (ROOT / "docs/security.md").read_text(), re.MULTILINE
    )
    assert len(lines) >= 60
    assert len(lines) == len(set(lines))
    missing = [(file, name) for file, name in lines if f"def {name}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_the_policy_on_the_page_is_one_that_a_server_takes(tmp_path: Path) -> None:
    (page,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/security.md").read_text(), re.DOTALL)
    key = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**key, "kid": "1"}]}))
    (tmp_path / "policy.toml").write_text(page.replace('"..."', f'"{"0" * 64}"'))
    policy = read_policy(tmp_path / "policy.toml", ROLES, Files())
    assert [identity.name for identity in policy.identities] == ["shop-checkout", "query-server"]
    assert len(policy.by_credential) == 5


def test_the_banks_on_the_page_are_some_that_a_server_takes(tmp_path: Path) -> None:
    (page,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/operating.md").read_text(), re.DOTALL)
    (tmp_path / "banks.toml").write_text(page)
    found = read_banks(tmp_path / "banks.toml")
    assert (list(found.banks), len(found.routes), found.unnamed) == (["acme", "other"], 2, "acme")


def test_the_bank_on_the_page_about_stripe_is_one_that_a_server_takes(tmp_path: Path) -> None:
    (page,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/banks.md").read_text(), re.DOTALL)
    (tmp_path / "banks.toml").write_text(page)
    (tmp_path / "stripe.key").write_text("sk_test_1")
    (bank,) = read_banks(tmp_path / "banks.toml").banks.values()
    assert KINDS[bank.kind](bank, httpx.MockTransport(lambda _: httpx.Response(500)), [])


def test_the_example_of_an_adapter_is_as_short_as_its_page_says() -> None:
    assert "in under 200 lines" in (ROOT / "docs/banks.md").read_text()
    assert len((ROOT / "tests/banks/charges_adapter.py").read_text().splitlines()) < 200


def test_the_reference_of_the_contract_is_that_of_its_comments() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert page == reference(descriptors()), "run: python -m rig.reference"


def test_the_page_of_metrics_is_that_of_their_descriptions() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.page(), "run: python -m rig.metrics_page"


def test_each_version_of_the_contract_has_its_entry_in_the_changelog() -> None:
    """So a changed name, number or type is a new version, and users read of it."""
    said = "raise VERSION in contract/version.py, tell the change in CHANGELOG.md, and set SHAPE to: "
    assert shape(descriptors()) == SHAPE, said + shape(descriptors())
    assert f"**Contract {VERSION}**" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readmes_quick_starts_are_the_programs_and_short() -> None:
    """Whole and as they stand; with the line that builds and runs one, each is under 15 lines, empty ones left out."""
    readme = (ROOT / "README.md").read_text()
    section = readme.split("<!-- quick starts -->")[1].split("<!-- end of quick starts -->")[0]
    shown = re.findall(r"^[A-Z]\w+, `([\w/.]+)`:\n\n```\w+\n(.*?)```$", section, re.MULTILINE | re.DOTALL)
    assert len(shown) == 5
    for path, program in shown:
        assert program == (ROOT / path).read_text(), path
        assert len([line for line in program.splitlines() if line.strip()]) + 1 < 15, path
