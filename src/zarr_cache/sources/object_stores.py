"""Names of obstore's object stores: a function for each class, and the table of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr_cache.sources import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def of_object_store(store: Any) -> str | None:
    """The name of an object store; None if it is not known or cannot be distinguished.

    Raises
    ------
    urls.NoNameError
        The same, with the reason.
    """
    name = OBJECT_STORES.get(type(store).__name__)
    return name(store) if name else None


def _config(store: Any) -> Mapping[str, Any]:
    return getattr(store, "config", None) or {}


def _prefix(store: Any) -> str:
    return str(getattr(store, "prefix", None) or "")


def _of_http(store: Any) -> str:
    urls.refuse_loopback(store.url)
    headers = (getattr(store, "client_options", None) or {}).get("default_headers") or {}
    urls.check_neutral(headers)
    return urls.of_url(store.url, urls.users_of(headers.items()))


def _of_local(store: Any) -> str | None:
    folder = Path(_prefix(store))
    # Where a link, or the working directory, led when the store was made is not known.
    return folder.as_uri() if _prefix(store) and folder == folder.resolve() else None


def _of_s3(store: Any) -> str | None:
    config = _config(store)
    if not config.get("bucket"):
        return None
    # The configuration of an obstore lacks what obstore takes from the environment.
    endpoint = config.get("endpoint") or _environment(
        "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"
    )
    region = (
        config.get("region")
        or config.get("default_region")
        or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
    )
    return urls.of_s3(f"{config['bucket']}/{_prefix(store)}", endpoint, region)


def _of_gcs(store: Any) -> str | None:
    config = _config(store)
    if not config.get("bucket"):
        return None
    return urls.of_gcs(f"{config['bucket']}/{_prefix(store)}", _gcs_endpoint(config))


def _of_azure(store: Any) -> str | None:
    config, prefix = _config(store), _prefix(store)
    if not config.get("container_name"):
        return None
    path = f"{config['container_name']}/{prefix}"
    account = config.get("account_name") or _environment("AZURE_STORAGE_ACCOUNT_NAME")
    endpoint = config.get("endpoint") or _environment("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    emulator = config.get("use_emulator") or _environment("AZURE_STORAGE_USE_EMULATOR")
    if not account or str(emulator).lower() in {"1", "on", "true", "yes", "y"}:
        return None
    if endpoint:
        base = urls.of_endpoint(endpoint)
        return urls.of_object("az", path, base, account) if base else None
    fabric = str(config.get("use_fabric_endpoint")).lower() == "true"
    host = "blob.fabric.microsoft.com" if fabric else "blob.core.windows.net"
    return urls.of_object("az", path, f"https://{account}.{host}")


def _environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _gcs_endpoint(config: Mapping[str, Any]) -> str | None:
    """The endpoint of Google's storage, which the key of a service account may name."""
    key = config.get("service_account_key") or _environment("GOOGLE_SERVICE_ACCOUNT_KEY")
    file = (
        config.get("service_account")
        or config.get("service_account_path")
        or _environment("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")
    )
    try:
        if not key and file:
            key = Path(str(file)).read_text(encoding="utf-8")
        endpoint = json.loads(str(key or "{}")).get("gcs_base_url")
    except (OSError, ValueError, AttributeError):
        endpoint = None  # a key that obstore does not read either
    base = config.get("base_url") or endpoint
    return str(base) if base else None


OBJECT_STORES: Mapping[str, Callable[[Any], str | None]] = {
    "AzureStore": _of_azure,
    "GCSStore": _of_gcs,
    "HTTPStore": _of_http,
    "LocalStore": _of_local,
    "S3Store": _of_s3,
}
