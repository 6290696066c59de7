"""The short form of faults/damage.py: every kind of damage, to some of the files."""

import pytest

import damage


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directories that are damaged; data stay in memory between cases, and little is drawn."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        for place, name in (
            (damage.execute, "build_problem"),
            (damage.report_files, "write_comparison"),
            (damage.report_files, "write_finding"),
        ):
            patch.setattr(place, name, getattr(place, name))  # and so is put back
        # torch.export tells a great deal, which pytest would keep.
        patch.setattr(damage, "COMMANDS", tuple(name for name in damage.COMMANDS if name != "export"))
        damage.build(folder)
        yield folder


@pytest.mark.slow
def test_damage_to_any_file_is_noticed_and_named_or_nothing_comes_of_it(built):
    told: list[str] = []
    counts = damage.campaign(built, 120, 0, told.append)
    assert not told, told
    assert counts["same"] + counts["refused"] + counts["not applicable"] == 120
    assert min(counts["same"], counts["refused"]) > 24


def test_the_campaign_sees_a_wrong_result(built, monkeypatch):
    """Without checksums a changed digit is taken as it is."""
    told: list[str] = []
    case = damage.Case("means", "metrics.jsonl", "digit", "compare", 0)
    monkeypatch.setattr("swamp.runs.directory.verify_checksum", lambda value, where: (without_provenance(value), {}))
    monkeypatch.setattr("swamp.runs.directory.verify_owner", lambda *_, **__: None)
    for seed in range(6):
        try:
            damage.check(damage.replace(case, seed=seed), built)
        except damage.WrongError as error:
            told.append(str(error))
    assert any("gives another output" in text for text in told)


def without_provenance(value):
    return {key: inner for key, inner in value.items() if key != "provenance"}
