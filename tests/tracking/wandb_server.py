"""A stand-in for W&B's server, for the few questions that `wandb sweep` and `wandb agent` ask it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT, SWEEP = "ward", "sepsis", "abcd1234"


@dataclass
class WandbServer:
    """Hands out one run after another, then tells the agent to exit.

    runs: {run id: {parameter: value}}. config: the sweep as the client uploaded it, YAML.
    """

    program: str
    runs: dict[str, dict[str, Any]]
    config: str = ""
    handed_out: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of an answer."""
        project = {"id": "p1", "name": PROJECT, "entity": {"id": "e1", "name": ENTITY}}
        if "upsertSweep" in query:
            self.config = variables["config"]
            return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}
        if "SweepWithRuns" in query:
            sweep = {"id": "s1", "name": SWEEP, "config": self.config, "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent1"}}}
        if "agentHeartbeat" in query:
            commands = json.dumps(self._commands(json.loads(variables["runState"])))
            return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": commands}}
        return {"viewer": {"id": "u1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def _commands(self, running: dict[str, Any]) -> list[dict[str, Any]]:
        if running:
            return []
        waiting = [name for name in self.runs if name not in self.handed_out]
        if not waiting:
            return [{"type": "exit"}]
        self.handed_out.append(waiting[0])
        args = {key: {"value": value} for key, value in self.runs[waiting[0]].items()}
        return [{"type": "run", "run_id": waiting[0], "program": self.program, "args": args}]


@contextmanager
def serving(server: WandbServer) -> Iterator[WandbServer]:
    """The server on a port of this machine, for the time of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b"{}"
            read = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/graphql"):  # the client sends its own statistics elsewhere
                asked = json.loads(read)
                data = server.answer(asked["query"], asked.get("variables") or {})
                body = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
