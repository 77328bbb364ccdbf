"""The addresses to which people are sent: the customer to the bank's page, and back to the client's."""

import re

from command_service.card_numbers import card_number_in

MAX_ADDRESS_BYTES = 2_048
# http or https in lower case, a host with or without a port, and then the characters of RFC 3986. No user and password before
# the host: browsers show those as if they were the host. No backslash, which browsers read as a slash.
_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_ADDRESS = re.compile(rf"https?://{_HOST}(?:[/?#][A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*)?")


def is_address(text: str) -> bool:
    """Whether a text is an http or https address to which people can be sent, and which may be stored."""
    return len(text) <= MAX_ADDRESS_BYTES and _ADDRESS.fullmatch(text) is not None and not card_number_in(text)
