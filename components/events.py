"""What a running step says: one JSON object per line, read by the local runner and by the operator alike."""

import json
from collections.abc import Callable
from typing import IO, Any

Emit = Callable[..., None]
"""`emit("progress", done=3, total=10, unit="trials", best=0.51)`: the event's name, then its facts."""


def emitter(stream: IO[str]) -> Emit:
    """An `Emit` that writes to `stream` and flushes every line."""

    def emit(event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), file=stream, flush=True)

    return emit
