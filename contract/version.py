"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "98c89f4a6ad891a3d03cd119dcbcc245696a773de8d1e0e5bf7b5093808feb03"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
