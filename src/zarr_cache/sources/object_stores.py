"""URLs of obstore's object stores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr_cache.sources import urls

if TYPE_CHECKING:
    from collections.abc import Mapping


def of_object_store(store: Any) -> str | None:
    """Where a store of obstore lies."""
    kind, prefix = type(store).__name__, getattr(store, "prefix", None) or ""
    config = getattr(store, "config", None) or {}
    match kind:
        case "HTTPStore":
            headers = (getattr(store, "client_options", None) or {}).get("default_headers") or {}
            return urls.of_url(store.url) if urls.are_neutral(headers) else None
        case "LocalStore" if prefix:
            # Where a link, or the working directory, led when the store was made is not told.
            return Path(prefix).as_uri() if Path(prefix) == Path(prefix).resolve() else None
        case "S3Store" if config.get("bucket"):
            # What obstore takes from the environment is not in its configuration.
            endpoint = config.get("endpoint") or _environment(
                "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"
            )
            region = (
                config.get("region")
                or config.get("default_region")
                or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
            )
            return urls.of_s3(f"{config['bucket']}/{prefix}", endpoint, region)
        case "GCSStore" if config.get("bucket"):
            return urls.of_gcs(f"{config['bucket']}/{prefix}", _gcs_endpoint(config))
        case "AzureStore" if config.get("container_name"):
            return _of_azure(config, str(prefix))
    return None


def _environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _gcs_endpoint(config: Mapping[str, Any]) -> str | None:
    """The endpoint of Google's storage, which obstore takes from the key of a service account."""
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


def _of_azure(config: Mapping[str, Any], prefix: str) -> str | None:
    path = f"{config['container_name']}/{prefix}"
    account = config.get("account_name") or _environment("AZURE_STORAGE_ACCOUNT_NAME")
    endpoint = config.get("endpoint") or _environment("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    emulator = config.get("use_emulator") or _environment("AZURE_STORAGE_USE_EMULATOR")
    if not account or str(emulator).lower() in {"1", "on", "true", "yes", "y"}:
        return None
    if endpoint:
        place = urls.of_endpoint(endpoint)
        return urls.of_object("az", path, place, account) if place else None
    fabric = str(config.get("use_fabric_endpoint")).lower() == "true"
    host = "blob.fabric.microsoft.com" if fabric else "blob.core.windows.net"
    return urls.of_object("az", path, f"https://{account}.{host}")
