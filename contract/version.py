"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "511cbf270d1bd0e0647a3fc545d13a3cb52d04de4dacca0305c8c6b8df4829c9"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
