"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "f979d00a07cbfa2f55bdb6b05e8b760f552d1748813621afaeac347081b5ca5e"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
