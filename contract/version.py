"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "e4b26c253810f8d41a00a28c621b6d49cdd136ac0e6e20c2e780609ef70eb551"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
