"""TensorBoard: event files in the run's folder, which `tensorboard --logdir` reads; written without torch."""

import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swamp.errors import need
from swamp.tracking.tracker import TrackedRun, Tracker

_EXTRA = "swamp[tensorboard]"
_event, _summary, _text, _writer, _tensor = (
    need(f"tensorboard.{name}", _EXTRA)
    for name in (
        "compat.proto.event_pb2",
        "compat.proto.summary_pb2",
        "plugins.text.metadata",
        "summary.writer.event_file_writer",
        "util.tensor_util",
    )
)
_SIZE_AT = 16
"""Byte of a PNG file at which its width and height stand."""


class TensorBoardTracker(Tracker):
    """Writes scalars, figures, and the configuration as text. A resumed run adds a file to the same folder."""

    def start(self, run: TrackedRun) -> str:
        """Open a new event file."""
        self.writer: Any = _writer.EventFileWriter(str(run.folder))
        if not run.resume:
            self._add_text("configuration", f"```json\n{json.dumps(dict(run.config), indent=1)}\n```")
        return str(run.folder)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add scalars."""
        self._add([_summary.Summary.Value(tag=name, simple_value=value) for name, value in values.items()], step)

    def image(self, name: str, file: Path) -> None:
        """Add a picture."""
        data = file.read_bytes()
        width, height = struct.unpack(">II", data[_SIZE_AT : _SIZE_AT + 8])
        picture = _summary.Summary.Image(encoded_image_string=data, width=width, height=height, colorspace=4)
        self._add([_summary.Summary.Value(tag=f"figures/{name}", image=picture)], 0)

    def finish(self, state: str) -> None:
        """Write what is buffered."""
        self.writer.close()

    def _add_text(self, name: str, text: str) -> None:
        about = _text.create_summary_metadata(display_name="", description="")
        self._add(
            [_summary.Summary.Value(tag=name, metadata=about, tensor=_tensor.make_tensor_proto([text.encode()]))], 0
        )

    def _add(self, values: list[Any], step: int) -> None:
        self.writer.add_event(_event.Event(wall_time=time.time(), step=step, summary=_summary.Summary(value=values)))
