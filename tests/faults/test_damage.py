"""The short form of faults/damage.py: every kind of damage, to some of the files."""

import logging

import damage
import pytest


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    # The campaign keeps the data in memory between cases, and draws little.
    for place, name in (
        (damage.execute, "build_problem"),
        (damage.report, "write_comparison"),
        (damage.report, "write_found"),
    ):
        monkeypatch.setattr(place, name, getattr(place, name))
    logging.disable()  # torch.export tells a great deal, which pytest would keep
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
def test_damage_to_any_file_is_noticed_and_named_or_nothing_comes_of_it(tmp_path):
    told: list[str] = []
    counts = damage.campaign(tmp_path, 120, 0, told.append)
    assert not told
    assert counts["same"] + counts["refused"] + counts["not applicable"] == 120
    assert min(counts["same"], counts["refused"]) > 20


def test_the_campaign_sees_a_wrong_result(tmp_path, monkeypatch):
    """What would be counted as wrong is: checksums are looked away from."""
    monkeypatch.setattr("swamp.runs.seal._checksum", lambda plain, seal: "0" * 16)
    told: list[str] = []
    damage.build(tmp_path)
    for seed in range(6):
        case = damage.Case("means", "metrics.jsonl", "digit", "compare", seed)
        try:
            damage.check(case, tmp_path)
        except damage.WrongError as error:
            told.append(str(error))
    assert told
