"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "71e17365a1fed52aa30371f980ca7ea55f3d733bc4986237fda2e32b94c0bbcc"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
