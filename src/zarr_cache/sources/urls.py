"""URLs without secrets, with all that distinguishes one location from another.

A function that cannot distinguish two locations returns None, or raises `NoNameError` where a user
can be told why: two sources with one name would be served each other's bytes, while a name that is
not shared costs only a request.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import (
    parse_qsl,
    quote,
    quote_from_bytes,
    unquote_to_bytes,
    urlencode,
    urlsplit,
    urlunsplit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from urllib.parse import SplitResult

    # The name of a path in a file system of fsspec.
    type OfFileSystem = Callable[[Any, str], str | None]


# Query parameters that choose between two values of one path, and are no secrets.
_CHOOSING = frozenset({"generation", "snapshot", "version", "version_id", "versionid"})

# Query parameters that grant access and choose nothing, whatever their value. A parameter that is
# in neither list may do either.
_SECRET = frozenset({
    "access_token", "api-key", "api_key", "apikey", "auth_token", "id_token", "jwt", "password",
    "secret", "sig", "signature", "subscription-key", "token",
})  # fmt: skip

_SECRET_PREFIXES = ("x-amz-", "x-goog-")

# Query parameters that belong to a signature and state its holder, its scope and its expiry:
# Azure's SAS, CloudFront, and version 2 of S3 and of Google.
_OF_SIGNATURE = frozenset({
    "awsaccesskeyid", "expires", "googleaccessid", "key-pair-id", "policy", "sdd", "se", "si",
    "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr", "srt", "ss", "st", "sv",
})  # fmt: skip

# Headers that do not choose between two values of one URL.
_NEUTRAL_HEADERS = frozenset({
    "accept", "accept-encoding", "accept-language", "api-key", "authorization", "cache-control",
    "connection", "from", "origin", "pragma", "private-token", "proxy-authorization", "referer",
    "user-agent", "x-api-key", "x-auth-token",
})  # fmt: skip

# Regions of S3 in which a bucket may have the name of a bucket elsewhere: the partitions of
# https://docs.aws.amazon.com/whitepapers/latest/aws-fault-isolation-boundaries/partitions.html
_PARTITIONS = {
    "cn-": "aws-cn",
    "eu-isoe-": "aws-iso-e",
    "eusc-": "aws-eusc",
    "us-gov-": "aws-us-gov",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "us-isof-": "aws-iso-f",
}

# Names of this machine, in /etc/hosts of common systems and in RFC 6761, 6.3. A name below
# "localhost" is one as well.
_LOOPBACK_NAMES = frozenset({
    "ip6-localhost", "ip6-loopback", "localhost", "localhost.localdomain", "localhost6",
    "localhost6.localdomain6",
})  # fmt: skip

# Passwords beside which services take a token as the name of the user.
_NO_PASSWORDS = frozenset({b"", b"api_token", b"x", b"x-oauth-basic"})


class NoNameError(Exception):
    """A source has no name that outlives the process; the message says why, without a secret.

    Attributes
    ----------
    advice
        What a user can do, if it is not to give the source a name.
    location
        Where the source is, if that is known: two of one location are one to the user. It may
        contain a secret.
    """

    def __init__(self, why: str, *, advice: str | None = None, location: str | None = None) -> None:
        super().__init__(why)
        self.advice = advice
        self.location = location


class LoopbackError(NoNameError):
    """The source is a server of this machine: another one may have the address at any time."""


def of_url(url: str, users: Iterable[str] = ()) -> str:
    """The URL of an HTTP server with the name of its user, without passwords and other secrets.

    Parameters
    ----------
    users
        The names of users that the client sends besides, as `users_of` returns them.

    Raises
    ------
    LoopbackError
        Its host is this machine.
    NoNameError
        It has a fragment, a user name that may be a secret, or a parameter of which it is not known
        whether it chooses a value; or there are two users.
    """
    parts = _split(url)
    if parts is None or parts.fragment:
        raise NoNameError("its URL has a fragment, or is not valid")
    refuse_loopback(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    names = {name.lower() for name, _ in query}
    kept = [(name, value) for name, value in query if name.lower() in _CHOOSING]
    ignored = _SECRET | (_OF_SIGNATURE if names & {"sig", "signature"} else set())
    if any(not name.startswith(_SECRET_PREFIXES) for name in names - _CHOOSING - ignored):
        raise NoNameError("a parameter of its URL may choose other values, or be a secret")
    found = {*users, *_users_of_url(parts)}
    if len(found) > 1:
        raise NoNameError("its URL and its client name two users")
    host = "@".join([*found, _host(parts)])
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), urlencode(kept), ""))


def refuse_loopback(url: str) -> None:
    """Return if the URL is not one of this machine. Other reasons for no name count less.

    Raises
    ------
    LoopbackError
        It is one.
    """
    parts = _split(url)
    if parts is not None and is_loopback(parts.hostname or ""):
        raise LoopbackError(
            f"{parts.scheme}://{_host(parts)} is on this machine, where the address may be another "
            "server's later",
            location=url,
        )


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, by its name or its address. No name is resolved."""
    name = host.lower().removesuffix(".")
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return True
    try:
        # As resolvers read an address: 127.1 is one, and so is 0x7f000001.
        address: Any = ipaddress.ip_address(socket.inet_aton(name))
    except (OSError, ValueError):
        try:
            address = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    # A client that connects to 0.0.0.0 or to :: reaches its own machine.
    return bool(address.is_loopback or address.is_unspecified)


def users_of(headers: Iterable[tuple[str, str | bytes]]) -> set[str]:
    """The percent-encoded names of users in headers of Basic authentication (RFC 7617).

    Other schemes carry a token, which does not tell whose it is.

    Raises
    ------
    NoNameError
        A header is malformed, or the name may be a secret.
    """
    users = set()
    for name, value in headers:
        text = value.encode() if isinstance(value, str) else value
        scheme, *credentials = text.split(None, 1)[:2] or [b""]
        if name.lower() != "authorization" or scheme.lower() != b"basic":
            continue
        try:
            decoded = base64.b64decode(b"".join(credentials).strip(), validate=True)
        except binascii.Error:
            decoded = b""
        user, _, password = decoded.partition(b":")
        users.add(_user(user, password))
    return users


def _users_of_url(parts: SplitResult) -> set[str]:
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return {_user(unquote_to_bytes(user), unquote_to_bytes(password))} if user + password else set()


def _user(user: bytes, password: bytes) -> str:
    """The name of a user, percent-encoded, if it is no secret."""
    if not user or password.lower() in _NO_PASSWORDS:
        raise NoNameError("it has a user name without a password, or none: one of them is a token")
    return quote_from_bytes(user, safe="")


def of_endpoint(url: str) -> str | None:
    """Scheme, host, port and path of an endpoint: the rest does not locate it."""
    parts = _split(url if "://" in url else f"//{url}")
    if parts is None:
        return None
    return urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), "", ""))


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number: then it may be part of the user info
    except ValueError:
        return None
    return parts if parts.netloc else None


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2].lower()


def of_object(scheme: str, path: str, *where: str) -> str:
    """The name of a prefix in a bucket. Its characters are those of keys, not of a URL."""
    bucket, slash, prefix = path.strip("/").partition("/")
    bucket = bucket.rpartition("@")[2]
    return " at ".join([f"{scheme}://{quote(bucket + slash + prefix, safe='/:')}", *where])


def of_s3(path: str, endpoint: str | None, region: str | None) -> str | None:
    """The URL of a path in a bucket of S3, or of a server with its protocol."""
    if endpoint:
        base = of_endpoint(endpoint)
        return of_object("s3", path, base) if base else None
    partitions = [
        partition for start, partition in _PARTITIONS.items() if (region or "").startswith(start)
    ]
    return of_object("s3", path, *partitions)


def of_gcs(path: str, endpoint: str | None) -> str | None:
    """The URL of a path in a bucket of Google Cloud Storage."""
    base = of_endpoint(endpoint or "https://storage.googleapis.com")
    if base is None:
        return None
    return of_object("gs", path, *([base] if base != "https://storage.googleapis.com" else []))


def check_neutral(headers: Iterable[str]) -> None:
    """Return if none of the headers changes the bytes that a server sends to a user.

    Raises
    ------
    NoNameError
        One may.
    """
    if not {name.lower() for name in headers} <= _NEUTRAL_HEADERS:
        raise NoNameError("a header that its client sends may choose other values")


def is_local(name: str) -> bool:
    """Whether the name has a local path in it, which may lead elsewhere at another time."""
    return "file://" in name


def class_name(cls: type) -> str:
    """The name of a class with its module, as the tables have it without importing the class."""
    return f"{cls.__module__}.{cls.__qualname__}"
