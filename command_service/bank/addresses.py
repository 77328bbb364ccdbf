"""The addresses of banks and proxies, as settings give them. One that httpx cannot use would fail each call."""

import re

import httpx

# The labels of a host name, or the digits of an IPv6 address; httpx checks the rest.
_HOST = re.compile(rb"(?:[0-9A-Za-z_-]{1,63}\.)*[0-9A-Za-z_-]{1,63}\.?|[0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*")


def bank_url(value: str) -> str:
    """Read an http or https URL without a trailing slash. Raises ValueError, whose text does not quote it."""
    if _parts(value, "http", "https") is None:
        raise ValueError("must be http://host:port or https://host, with a path if need be, and nothing else")
    return value.rstrip("/")


def proxy_url(value: str) -> str:
    """Read the URL of a proxy: a host and a port. Raises ValueError, whose text does not quote it."""
    url = _parts(value, "http")
    if url is None or url.port is None or url.path not in ("", "/"):
        raise ValueError("must be http://host:port and nothing else: the way to the proxy itself is not encrypted")
    return value.rstrip("/")


def _parts(value: str, *schemes: str) -> httpx.URL | None:
    """Take a URL apart; None if it is not one of these schemes, or has more than a host, a port and a path."""
    try:
        url = httpx.URL(value)
        fits = (
            url.scheme in schemes
            and url.host
            and _HOST.fullmatch(url.raw_host)
            and (url.port is None or 0 < url.port < 65536)
            and not url.userinfo
            and not re.search(r"[?#\s]", value)
        )
    except (httpx.InvalidURL, ValueError):  # a ValueError: a host that IDNA does not know
        return None
    return url if fits else None  # httpx's own texts quote the value, which may hold a password
