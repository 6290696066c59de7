"""A power cut at any moment: the changes of a run up to then, with and without those that were not synced.

All changes of a run to its directory are logged in order. The directory is then rebuilt as a disk may hold it after a
power cut: synced data is there, and all, none or some of the rest. Each time the run is resumed.
"""

import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from campaign import Campaign, main
from child import Fault, traceback_in
from modes import MODES, Faults, Mode, finish, log, undisturbed, warm
from tap import tap

ORDER = ("sequential", "analyze", "threads", "vmapped")


@dataclass
class Disk:
    """The content of a directory, and the part of it that survives a power cut.

    Contents survive once their file is synced; names of files and folders, once their folder is synced.
    """

    names: dict[Path, int] = field(default_factory=dict[Path, int])
    """Path -> number of the file; a folder is number 0."""
    contents: dict[int, bytes] = field(default_factory=dict[int, bytes])
    sure_names: dict[Path, int] = field(default_factory=dict[Path, int])
    sure_contents: dict[int, bytes] = field(default_factory=dict[int, bytes])

    def change(self, operation: str, path: Path, data: bytes) -> None:
        match operation:
            case "mkdir":
                self.names[path] = 0
            case "create" | "open":
                self.names[path] = number = len(self.contents) + 1
                self.contents[number] = b""
            case "write":
                self.contents[self.names[path]] += data
            case "replace":
                self.names[path] = self.names.pop(Path(os.fsdecode(data)))
            case "unlink" | "rmdir":
                self.names.pop(path, None)
            case "fsync" if self.names.get(path, 0):
                self.sure_contents[self.names[path]] = self.contents[self.names[path]]
            case "fsync":
                for name in {*self.names, *self.sure_names}:
                    if name.parent == path:
                        self._sure(name)
            case _:
                pass

    def _sure(self, name: Path) -> None:
        if name in self.names:
            self.sure_names[name] = self.names[name]
        else:
            self.sure_names.pop(name, None)

    def after_cut(self, kept: float, draw: random.Random) -> dict[Path, bytes | None]:
        """State after a power cut: path -> content, None for a folder. kept: share of unsynced changes that survive."""
        found: dict[Path, bytes | None] = {}
        for name in sorted({*self.names, *self.sure_names}):
            names = self.names if draw.random() < kept else self.sure_names
            if name not in names or any(above not in found for above in name.parents if above in self._folders()):
                continue
            number = names[name]
            sure = self.sure_contents.get(number, b"")
            found[name] = None if number == 0 else self.contents[number] if draw.random() < kept else sure
        return found

    def _folders(self) -> set[Path]:
        return {name for name, number in {**self.sure_names, **self.names}.items() if number == 0}


def cuts(campaign: Campaign, modes: Sequence[str] = ORDER) -> None:
    warm()
    histories = {name: _history(MODES[name], campaign.folder) for name in modes}
    for case in range(campaign.cases):
        name = modes[case % len(modes)]
        draw = random.Random(f"{campaign.seed} {case}")
        reference, original, changes = histories[name]
        at = draw.randrange(len(changes) + 1)
        kept = draw.choice([0.0, 1.0, 0.5])
        run = campaign.folder / f"{name}-{case}"
        MODES[name].prepared(run, reference)
        lost = _restore(run, original, changes[:at], kept, draw)
        last = f"{changes[at - 1][0]} {changes[at - 1][1].name}" if at else "nothing"
        what = f"{run.name}: cut after change {at} ({last}), {kept:.0%} of the unsynced changes kept"
        campaign.expect(not lost, f"{what}: lost {lost}")
        codes = finish(MODES[name], run)
        campaign.expect(not any(codes), f"{what}: does not continue: {codes} {log(run).read_text()[-1500:]}")
        campaign.expect(not (told := traceback_in(log(run))), f"{what}: {told}")
        wrong = MODES[name].different(reference, run)
        campaign.expect(not wrong, f"{what}: differs in {wrong}")
        campaign.count(f"cuts in {name}")
        shutil.rmtree(run)
        campaign.progress(case + 1)


History = list[tuple[str, Path, bytes]]


def _history(mode: Mode, folder: Path) -> tuple[Path, Path, History]:
    """The undisturbed run, the path of the logged run, and its changes."""
    reference, _ = undisturbed(mode, folder)
    run, notes = folder / f"{mode.name}-noted", folder / f"{mode.name}.notes"
    mode.prepared(run, reference)

    def noted(number: int) -> Fault:
        def note(operation: str, path: Path, data: bytes) -> None:
            handle = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, (json.dumps([operation, str(path), data.decode("latin-1")]) + "\n").encode())
            os.close(handle)

        return lambda: tap(run, note)

    faults: Faults = noted
    finish(mode, run, faults)
    changes = [json.loads(line) for line in notes.read_text().splitlines()]
    return reference, run, [(operation, Path(path), data.encode("latin-1")) for operation, path, data in changes]


def _restore(run: Path, original: Path, changes: History, kept: float, draw: random.Random) -> list[str]:
    """Rebuild `run` as after the power cut; returns finished files that differ or are missing."""
    # The folder of the run itself is assumed to exist, as changes to its parent are not logged.
    disk = Disk({original: 0}, sure_names={original: 0})
    finished: dict[Path, bytes] = {}
    renamed: Path | None = None
    for operation, path, data in changes:
        disk.change(operation, path, data)
        if operation in ("unlink", "replace"):
            finished.pop(path, None)
        if operation == "replace":
            renamed = path
        elif operation == "fsync" and renamed is not None and renamed.parent == path:
            # The write is complete: the caller relies on it from here on.
            finished[renamed], renamed = disk.contents[disk.names[renamed]], None
    found = disk.after_cut(kept, draw)
    for path, content in found.items():
        place = run / path.relative_to(original)
        if content is None:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.write_bytes(content)
    return [path.name for path, content in finished.items() if found.get(path) != content]


if __name__ == "__main__":
    main(cuts, cases=400)
