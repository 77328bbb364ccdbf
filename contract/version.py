"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "3d649268576a11a33293b33f920b8892d4edca1e1b1c92e43f4820b8845233d7"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
