"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "199ef488022f5e38ed98136844af27b20e57e37dfa06b799443ae45a9f7ae30d"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
