"""The campaigns of faults/ in their short forms: other seeds and more cases are tried by `make faults`."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))

import clock
import disk
import frozen
import kill
import load
import memory
import power
import reader
import signals
from campaign import Campaign
from modes import MODES, Analyze


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of two cycles instead of three, and two analyses."""
    command = Analyze.command
    monkeypatch.setattr(Analyze, "command", lambda *given: [*command(*given), "--only", "masks", "barriers"])
    for name, mode in MODES.items():
        plan = replace(mode.config.plan, sparsity=0.5)
        monkeypatch.setitem(MODES, name, replace(mode, config=replace(mode.config, plan=plan)))


def done(campaign: Campaign) -> Campaign:
    assert not campaign.wrong, "\n".join(campaign.wrong)
    return campaign


@pytest.mark.slow
def test_killed_at_any_moment_nothing_finished_is_redone_and_the_end_is_the_same(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 3, seed=345)  # half or two thirds of a run after the start
    kill.kills(campaign, ("sequential", "threads", "ranks"))
    assert sum(number for name, number in done(campaign).counts.items() if name.startswith("killed ")) == 3
    assert campaign.counts["finished particles redone"] == 0


@pytest.mark.slow
def test_a_stopped_run_prints_how_to_resume_and_resumes(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 3, seed=18)  # all three ways to ask
    signals.signals(campaign, ("sequential", "study"))
    done(campaign)


@pytest.mark.slow
def test_ctrl_c_while_torch_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 2)
    signals.impatient(campaign)
    done(campaign)


@pytest.mark.slow
def test_a_disk_that_refuses_any_one_change_loses_nothing(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 4, seed=33)  # four faults that differ
    disk.refusals(campaign, ("sequential", "analyze"))
    done(campaign)


@pytest.mark.slow
def test_after_a_power_cut_finished_work_exists_and_the_run_resumes(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 4)
    power.cuts(campaign, ("sequential", "analyze"))
    done(campaign)


@pytest.mark.slow
def test_a_process_without_memory_says_so(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 2)
    memory.shortages(campaign, ("sequential",))
    done(campaign)


@pytest.mark.slow
def test_a_reader_that_is_killed_or_finds_a_damaged_image_ends_in_words(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    campaign = Campaign(tmp_path, 2)
    reader.readers(campaign)
    done(campaign)


@pytest.mark.slow
def test_a_frozen_rank_is_named(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 1)
    frozen.frozen(campaign)
    done(campaign)


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 1)
    clock.jumps(campaign, ("study",))
    done(campaign)


@pytest.mark.slow
def test_many_runs_on_four_workers_that_are_killed_are_each_done_once(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 16)
    load.load(campaign)
    assert done(campaign).counts["finished"] == 16


@pytest.mark.slow
def test_memory_does_not_grow_by_the_weights_of_each_cycle() -> None:
    """In a process of its own: what other tests left in this one's heap is not the run's."""
    done = subprocess.run(
        [sys.executable, Path(disk.__file__).with_name("leak.py"), "--cases", "100"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 cycles" in done.stdout
