"""An S3 server of its own process: in one process, moto's servers share their buckets.

Prints its URL, and ends with its input. What it was asked is at ``/requests-so-far``, and is
forgotten when that is deleted: `s3.S3Server` reads it.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING, Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from collections.abc import Iterable

COUNTED = "/requests-so-far"

moto = DomainDispatcherApplication(create_backend_app)
requests: list[dict[str, Any]] = []


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Moto, and what it was asked."""
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if path == COUNTED:
        body = json.dumps(requests).encode()
        if method == "DELETE":
            requests.clear()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    query = environ["QUERY_STRING"]
    asked = {"method": method, "path": path, "query": query, "status": 0, "nbytes": 0}
    requests.append(asked)

    def started(status: str, *rest: Any) -> Any:
        asked["status"] = int(status.split(maxsplit=1)[0])
        return start_response(status, *rest)

    body = b"".join(moto(environ, started))
    asked["nbytes"] = 0 if method == "HEAD" else len(body)
    return [body]


server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
thread = threading.Thread(target=server.serve_forever, daemon=True)
thread.start()
sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
sys.stdout.flush()
sys.stdin.read()
server.shutdown()
