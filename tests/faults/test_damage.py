"""The short form of faults/damage.py: every kind of damage, to some of the files."""

import pytest

import damage


@pytest.fixture
def quick(monkeypatch):
    """Data stay in memory between cases, and little is drawn."""
    for place, name in (
        (damage.execute, "build_problem"),
        (damage.report_files, "write_comparison"),
        (damage.report_files, "write_finding"),
    ):
        monkeypatch.setattr(place, name, getattr(place, name))  # so that the changes of `keep_quick` are undone
    # torch.export prints much, which pytest would keep.
    monkeypatch.setattr(damage, "COMMANDS", tuple(name for name in damage.COMMANDS if name != "export"))
    damage.keep_quick()


@pytest.mark.slow
def test_damage_to_any_file_is_noticed_and_named_or_nothing_comes_of_it(quick, tmp_path):
    told: list[str] = []
    damage.build(tmp_path)
    counts = damage.campaign(tmp_path, 60, 0, told.append)
    assert not told, told
    assert counts["same"] + counts["refused"] + counts["not applicable"] == 60
    assert min(counts["same"], counts["refused"]) > 12


@pytest.mark.slow
def test_the_campaign_sees_a_wrong_result(quick, tmp_path, monkeypatch):
    """Without checksums a changed digit is taken as it is."""
    told: list[str] = []
    damage.build_run("means", damage.config_of(keep_checkpoints="means"), tmp_path / "own")
    case = damage.Case("means", "metrics.jsonl", "digit", "compare", 0)
    monkeypatch.setattr("swamp.runs.directory.verify_checksum", lambda value, where: (without_provenance(value), {}))
    monkeypatch.setattr("swamp.runs.directory.verify_owner", lambda *_, **__: None)
    for seed in range(6):
        try:
            damage.check(damage.replace(case, seed=seed), tmp_path)
        except damage.WrongError as error:
            told.append(str(error))
    assert any("gives another output" in text for text in told)


def without_provenance(value):
    return {key: inner for key, inner in value.items() if key != "provenance"}
