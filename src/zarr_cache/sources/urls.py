"""Where a remote store lies: its URL and whatever else tells it from another, without secrets.

Each function returns None where it cannot tell two sources apart: to share a name with another
source would be to answer with its bytes, while a name of its own costs a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from urllib.parse import SplitResult


if TYPE_CHECKING:
    type OfFileSystem = Callable[[Any, str], str | None]


# Parameters of a query that tell two values of one path apart, and are no secrets.
_TELLING = frozenset({"generation", "snapshot", "version", "version_id", "versionid"})


# Parameters that let one in and tell nothing, whatever their value. A parameter that is in neither
# list may be either.
_SECRET = frozenset({
    "access_token", "api-key", "api_key", "apikey", "auth_token", "id_token", "jwt", "password",
    "secret", "sig", "signature", "subscription-key", "token",
})  # fmt: skip


_SECRET_PREFIXES = ("x-amz-", "x-goog-")


# What comes with a signature and tells for whom, what and how long it holds: Azure's SAS,
# CloudFront, and version 2 of S3 and of Google.
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


# Regions of S3 in which the name of a bucket may be taken once more: the partitions of
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


def of_url(url: str) -> str | None:
    """The URL without user info and secrets of its query.

    None if it has a fragment, or a parameter that may be a secret and may be a choice.
    """
    parts = _split(url)
    if parts is None or parts.fragment:
        return None
    query = parse_qsl(parts.query, keep_blank_values=True)
    names = {name.lower() for name, _ in query}
    kept = [(name, value) for name, value in query if name.lower() in _TELLING]
    ignored = _SECRET | (_OF_SIGNATURE if names & {"sig", "signature"} else set())
    if any(not name.startswith(_SECRET_PREFIXES) for name in names - _TELLING - ignored):
        return None
    return urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), urlencode(kept), ""))


def of_endpoint(url: str) -> str | None:
    """Scheme, host, port and path of an endpoint: nothing else of it tells where it is."""
    parts = _split(url if "://" in url else f"//{url}")
    if parts is None:
        return None
    return urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), "", ""))


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number: then it may be half of some user info
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
    """The URL of a path in a bucket of S3, or of what serves its protocol."""
    if endpoint:
        place = of_endpoint(endpoint)
        return of_object("s3", path, place) if place else None
    partitions = [
        partition for start, partition in _PARTITIONS.items() if (region or "").startswith(start)
    ]
    return of_object("s3", path, *partitions)


def of_gcs(path: str, endpoint: str | None) -> str | None:
    """The URL of a path in a bucket of Google Cloud Storage."""
    place = of_endpoint(endpoint or "https://storage.googleapis.com")
    if place is None:
        return None
    return of_object("gs", path, *([place] if place != "https://storage.googleapis.com" else []))


def are_neutral(headers: Iterable[str]) -> bool:
    """Whether none of the headers changes what a server answers."""
    return {name.lower() for name in headers} <= _NEUTRAL_HEADERS


"""What tells where a path lies, by the name of the class: none of them is loaded for its sake."""


def class_name(cls: type) -> str:
    """The name of a class with its module, by which it is known whether or not it is loaded."""
    return f"{cls.__module__}.{cls.__qualname__}"
