import json
import textwrap

import pytest

from swamp.tracking.tracker import Tracker


class Recorded(Tracker):
    """Keeps every call."""

    def __init__(self, resume: str = "") -> None:
        self.calls, self.files, self.resume = [], {}, resume

    def start(self, run):
        self.run = run
        self.calls.append(("start", run.resume))
        return "id-1"

    def log(self, values, step):
        self.calls.append(("log", step, dict(values)))

    def image(self, name, file):
        assert file.read_bytes().startswith(b"\x89PNG")
        self.calls.append(("image", name))

    def artifact(self, name, folder):
        self.files[name] = sorted(path.name for path in folder.iterdir())
        self.calls.append(("artifact", name))

    def finish(self, state):
        self.calls.append(("finish", state))

    def rows(self, name):
        """(step, value) of every value with this name."""
        return [(call[1], call[2][name]) for call in self.calls if call[0] == "log" and name in call[2]]


@pytest.fixture
def recorded():
    return Recorded()


@pytest.fixture
def trackio_stand_in(tmp_path, monkeypatch):
    """A library with the calls of trackio that writes them to a file; `broken` is code that `log` executes."""
    calls = tmp_path / "calls.jsonl"

    def install(broken: str = ""):
        folder = tmp_path / "library"
        folder.mkdir(exist_ok=True)
        code = f"""
            import json, os, time
            from types import SimpleNamespace
            count = 0
            def _write(*call):
                with open({str(calls)!r}, "a") as file:
                    file.write(json.dumps([os.getpid(), *call]) + "\\n")
            def init(project, name, config, resume, **more):
                print("printed by the library")
                _write("init", project, name, resume, config["plan.seed"])
                return SimpleNamespace(name=name)
            def log(values, step=None):
                global count
                count += 1
                {broken or "pass"}
                _write("log", sorted(values), step)
            def Image(path):
                return open(path, "rb").read(4)[1:].decode()
            def log_artifact(path, name, type):
                _write("artifact", name, type, sorted(os.listdir(path)))
            def finish():
                _write("finish")
        """
        (folder / "trackio.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(str(folder))

        def read():
            return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

        return read

    return install
