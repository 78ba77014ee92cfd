"""The floor: what Starlette, uvicorn and SQLite cost with nothing of Stateward's around them.

``GET /ID`` is one SELECT, ``POST /ID`` one guarded UPDATE, on one connection with the same durability (WAL,
``synchronous=FULL``).  Usage: python -m tools.bench.floor DATABASE SOCKET-FD INSTANCES
"""

from __future__ import annotations

import json
import socket
import sqlite3
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("PRAGMA synchronous=FULL")
database.execute("CREATE TABLE instances (id TEXT PRIMARY KEY, state TEXT, locked INTEGER, body TEXT)")
body = json.dumps({f"member-{number}": "x" * 40 for number in range(25)})
database.executemany(
    "INSERT INTO instances VALUES (?, 'active', 0, ?)",
    [(str(number), body) for number in range(int(sys.argv[3]))],
)


async def show(request: Request) -> Response:
    """Answer with one SELECT."""
    row = database.execute("SELECT * FROM instances WHERE id = ?", (request.path_params["id"],)).fetchone()
    return JSONResponse({"id": row[0], "state": row[1], "locked": row[2], **json.loads(row[3])})


async def change(request: Request) -> Response:
    """Answer when one guarded UPDATE is on the disk."""
    locked = (await request.json())["locked"]
    changed = database.execute(
        "UPDATE instances SET locked = ? WHERE id = ? AND state = 'active'",
        (locked, request.path_params["id"]),
    )
    return Response(status_code=202 if changed.rowcount else 409)


app = Starlette(routes=[Route("/{id}", show, methods=["GET"]), Route("/{id}", change, methods=["POST"])])
config = uvicorn.Config(
    app, http="httptools", loop="uvloop", lifespan="off", log_config=None, access_log=False
)
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[2]))])
