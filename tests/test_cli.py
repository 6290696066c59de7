"""The command line, in process where that is enough and as a real process where signals and streams matter."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from swamp import cli
from swamp.cli.entry import COMMANDS
from swamp.cli.listing import _REGISTRIES
from swamp.fields import check_fields, with_option_names
from swamp.masks import Mask
from swamp.runs.config import RunConfig, flattened
from swamp.training import Training

sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))

from child import Child, forked, started

from .cli.command import swamp

TINY = ["digits-mlp", "--epochs", "2", "--model", "mlp-16", "--sparsity", "0.75", "--swa-fraction", "0.5"]
TINY += ["--barrier-threshold", "1", "--examples", "640"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("imp", "swamp"):
        for seed in (0, 1):
            out = folder / f"{method}-{seed}"
            assert swamp("run", *TINY, "--method", method, "--seed", seed, "--out", out, "--quiet") == 0
    return folder


def test_run_prints_a_line_a_cycle_and_what_it_reached(tmp_path, capsys):
    assert swamp("run", *TINY, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert re.search(r"\n +2 +75\.\d\d % ", out)
    assert "dense" in out
    assert "model.safetensors" in out


def test_run_as_json_prints_one_object_and_nothing_else(tmp_path, capsys):
    assert swamp("run", *TINY, "--out", tmp_path / "run", "--json") == 0
    printed = capsys.readouterr()
    done = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    assert set(done) == {"run", "method", "sparsity", "density", "test", "dense", "cycles", "seconds"}
    assert done.items() <= json.loads((tmp_path / "run" / "summary.json").read_text()).items()
    words = [line.split()[0] for line in printed.err.splitlines()]
    assert words[:5] == ["task", "model", "method", "training:", "cycle"]
    assert words[-3:] == ["0", "1", "2"]


@pytest.mark.slow
def test_the_first_lines_say_what_runs_and_how_many_steps_it_takes(tmp_path, capsys):
    for command in (["run", *TINY, "--out"], ["resume"]):
        assert swamp(*command, tmp_path / "run") == 0
        task, model, method, training, *_ = capsys.readouterr().out.splitlines()
        assert task == "task digits: 640 of 1,438 training examples (144 more for validation), 359 for test"
        assert model == "model mlp-16: 1,210 parameters, 97.9 % prunable"
        assert method == "method swamp: 3 cycles to 75.00 % sparsity, 2 particles per cycle"
        # 640 examples are 10 steps of 64: the ticket's epoch, and 3 cycles of 2 particles of 2 epochs.
        assert training == "training: sgd, lr 0.1, 2 epochs per particle, 130 steps in all"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(record["steps"] for record in records) == 130
    assert swamp("resume", tmp_path / "run", "--quiet") == 0
    assert "task digits" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "epochs", "retrain"), [("lrr", "1 to 2", 1), ("lrr-long", "2 to 4", 1), ("lrr-long", "4", 0)]
)
def test_the_steps_of_retraining_are_announced(method, epochs, retrain, tmp_path, capsys):
    options = ["--method", method, "--retrain-epochs", retrain] if retrain else ["--method", method]
    assert swamp("run", *TINY, *options, "--out", tmp_path / "run") == 0
    training = capsys.readouterr().out.splitlines()[3]
    steps = sum(json.loads(line)["steps"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert training == f"training: sgd, lr 0.1, {epochs} epochs per particle, {steps} steps in all"


@pytest.mark.slow
@pytest.mark.parametrize(("structure", "density"), [("2:4", 0.5), ("1:4", 0.25), ("4:8", 0.5), ("channel", 0.25)])
def test_run_prunes_in_the_pattern_asked_for(structure, density, tmp_path, capsys):
    tiny = [*TINY]
    tiny[tiny.index("--sparsity") + 1] = str(1 - density)
    assert swamp("run", *tiny, "--structure", structure, "--out", tmp_path / "run", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    mask = Mask.load(tmp_path / "run" / "mask.safetensors")
    if structure == "channel":
        assert list(mask) == ["hidden1.weight"]
        assert all(bool(row.all()) or not bool(row.any()) for row in mask["hidden1.weight"])
        # 256 weights of 1,024 are four channels of 64.
        assert mask.density == density
    else:
        n, m = map(int, structure.split(":"))
        assert all((part.sum(1) == n).all() for alive in mask.values() for part in alive.split(m, dim=1))
        assert done["sparsity"] == 1 - density


def test_run_without_out_names_the_directory_by_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert swamp("run", *TINY, "--json") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-mlp-swamp-2-seed0-")
    assert json.loads(capsys.readouterr().out)["run"] == f"runs/{folder.name}"


def test_a_saved_configuration_runs_again_and_options_change_it(tmp_path, runs, capsys):
    config = runs / "imp-0" / "config.json"
    assert swamp("run", "--config", config, "--out", tmp_path / "same", "--json") == 0
    same = json.loads(capsys.readouterr().out)
    assert same["test"] == json.loads((runs / "imp-0" / "summary.json").read_text())["test"]
    assert swamp("run", f"--config={config}", "--lr", "0.05", "--out", tmp_path / "other", "--quiet", "--json") == 0
    assert RunConfig.load(tmp_path / "other" / "config.json").training.lr == 0.05


def test_resume_of_a_finished_run_prints_its_result(runs, capsys):
    assert swamp("resume", runs / "imp-0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["method"] == "imp"
    assert swamp("resume", runs / "imp-0") == 0
    assert "imp:" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_prints_the_table_and_writes_the_files(runs, tmp_path, capsys):
    assert swamp("compare", *sorted(runs.iterdir()), "--out", tmp_path / "cmp") == 0
    out = capsys.readouterr().out
    assert "swamp (2)" in out
    assert "paired by seed" in out
    written = {path.name for path in (tmp_path / "cmp").iterdir()}
    assert written == {"compare.csv", "compare.json", "compare.png", "compare.svg", "comparison.md"}


@pytest.mark.usefixtures("undrawn")
def test_compare_at_equal_cost_keeps_the_sparsities_asked_for(runs, tmp_path, capsys):
    given = [*sorted(runs.iterdir()), "--out", tmp_path / "cmp", "--at", "equal-cost", "--sparsities", "0"]
    assert swamp("compare", *given) == 0
    out = capsys.readouterr().out
    assert out.count("methods by cost") == 1
    assert "against the best" in (tmp_path / "cmp" / "comparison.md").read_text()
    assert swamp("compare", *sorted(runs.iterdir()), "--out", tmp_path / "cmp", "--sparsities", "0.123") == 2
    assert "no run has sparsity 0.123" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_compare_writes_over_no_comparison_of_other_runs_or_options(runs, tmp_path, capsys):
    paths = sorted(runs.iterdir())
    for given, folder in (
        (paths, "cmp"),
        (paths[:2], "cmp-2"),
        ([*paths, "--metric", "nll"], "cmp-3"),
        (paths, "cmp"),
    ):
        assert swamp("compare", *given, "--out", tmp_path / "cmp") == 0
        assert f"written: {tmp_path / folder / 'compare.csv'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "cmp" / "compare.json").read_text())["metric"] == "accuracy"
    (tmp_path / "cmp" / "compare.json").write_text("{}")
    assert swamp("compare", *paths, "--out", tmp_path / "cmp") == 0
    assert "cmp-4" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_compare_as_json_prints_one_object(runs, tmp_path, capsys):
    assert swamp("compare", *sorted(runs.iterdir()), "--out", tmp_path, "--json", "--metric", "nll") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["baseline"] == "imp"
    assert printed.err == ""


def summary(registered: object) -> str:
    """What describes an entry of a registry: a string, or its summary, or the first line of its docstring."""
    text = registered if isinstance(registered, str) else getattr(registered, "summary", registered.__doc__)
    return text.strip().splitlines()[0]


@pytest.mark.parametrize("what", _REGISTRIES)
def test_list_prints_each_name_of_the_registry_with_its_summary(what, capsys):
    module, name = _REGISTRIES[what]
    registry = getattr(import_module(module), name)
    # Other tests of this process register tasks of their own.
    own = {name: entry for name, entry in registry.items() if getattr(entry, "__module__", "swamp").startswith("swamp")}
    entries = {name: summary(entry) for name, entry in own.items()}
    assert swamp("list", what, "--json") == 0
    listed = json.loads(capsys.readouterr().out)[what]
    if what == "models":
        assert "timm" in listed.pop("timm:NAME")
    assert list(listed.items()) == list(entries.items())
    assert all(entries.values())
    assert swamp("list", what) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][: len(entries)] == list(entries)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "unknown command 'rum'. Did you mean run"),
        (["run", "mnist1d-mpl"], "Did you mean mnist1d-mlp"),
        (["run", *TINY, "--method", "swmp"], "unknown method 'swmp'"),
        (["run", *TINY, "--sparsity", "1.5"], r"sparsity must lie in \[0, 1\)"),
        (["run", *TINY, "--particles", "0"], "particles must be 1 or more"),
        (["run", *TINY, "--optimizer", "sdg"], "unknown optimizer 'sdg'. Did you mean"),
        (["run", *TINY, "--exclude", "*"], "nothing to prune"),
        (["run", "digits-mlp", "--structure", "2:5"], "groups of 5"),
        (["run", *TINY, "--structure", "2:4", "--allocation", "erk"], "'erk' has no effect"),
        (["run", *TINY, "--ticket-epochs", "9"], "the training has 2"),
        (["run", *TINY, "--method", "imp-ensemble", "--sparsity", "0.9999"], "would keep 0 of"),
        (["run", *TINY, "--task", "fashion-mnist", "--folder", "/nowhere"], "/nowhere"),
        (["run", *TINY, "--device", "cuda:9"], "torch sees"),
        (["run", *TINY, "--device", "meta"], "device 'meta' cannot be used here"),
        (["run", "--config", "x.json"], "cannot read the configuration x.json"),
        (["run", "--config"], "--config needs the path"),
        (["resume", "/nowhere"], "holds no run"),
        (["compare"], "no run was given"),
        (["compare", "/nowhere"], "/nowhere is not a run directory"),
        (["list", "everything"], "invalid choice|everything"),
        (["run", *TINY, "--epochs", "many"], "epochs"),
        (["run", *TINY, "--epoch", "3"], "unknown option --epoch. Did you mean --epochs"),
        (["run", *TINY, "--alpha", "0.3"], r"unknown option --alpha. Did you mean --prune-fraction\?"),
        (["run", *TINY, "--path_every=3"], r"unknown option --path-every. Did you mean --trajectory-every\?"),
        (["study", "demo", "--worker", "3"], "unknown option --worker. Did you mean --workers"),
    ],
)
def test_bad_input_gets_a_clear_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert swamp(*arguments) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err + printed.out)
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_and_a_configuration_exclude_each_other(runs, capsys):
    assert swamp("run", "digits-mlp", "--config", runs / "imp-0" / "config.json") == 2
    assert "not both" in capsys.readouterr().err


def test_help_explains_every_command(capsys):
    assert swamp("--help") == 0
    overview = capsys.readouterr().out
    for command in ("run", "resume", "compare", "list"):
        assert command in overview
        assert swamp(command, "--help") == 0
        assert len(capsys.readouterr().out) > 200
    assert swamp() == 2
    capsys.readouterr()
    assert swamp("--version") == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_without_a_run_torch_is_not_imported():
    """Help, version, a wrong name and every list, one after another in one process."""
    commands = [["--help"], ["--version"], ["rum"], [], *(["list", what] for what in _REGISTRIES)]
    code = f"""
import sys
from swamp import cli
from swamp.cli.entry import COMMANDS
from swamp.cli.listing import _REGISTRIES
for arguments in {commands}:
    try:
        cli.main(arguments)
    except SystemExit:
        pass
    assert "torch" not in sys.modules, arguments
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_command_can_be_imported():
    from swamp.cli import entry

    assert all(callable(entry._command(name)) for name in entry.COMMANDS)


@pytest.mark.parametrize("command", ["run", "ticket", "tune"])
def test_help_shows_the_options_used_most_and_help_all_shows_all(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert swamp(command, "--help") == 0
    short = capsys.readouterr().out
    assert swamp(command, "--help-all") == 0
    complete = capsys.readouterr().out
    common = {"--recipe", "--task", "--model", "--epochs", "--batch-size", "--lr", "--seed", "--device", "--out"}
    shown = set(re.findall(r"^  (--[a-z-]+)", short, re.MULTILINE))
    assert common <= shown
    assert len(shown) < 30
    assert "--help-all" in short
    every = {"--" + name.rpartition(".")[2].replace("_", "-") for name in flattened(RunConfig().to_json())}
    assert len(every) > 60
    assert shown | every <= set(re.findall(r"--[a-z-]+", complete))
    for text in (short, complete):
        # Each example has its own line.
        assert len(re.findall(rf"^ *swamp {command}", text, re.MULTILINE)) >= 3


def test_short_help_has_the_text_and_the_default_of_each_option(capsys):
    assert swamp("run", "digits-mlp", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--lr FLOAT Peak learning rate. (default: 0.1)" in text
    assert "--particles INT|auto ... Particles N per cycle" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_looks_the_same(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert swamp(command, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: swamp {command}")
    # Names that only a reader of the code knows.
    assert not re.findall(r"None|False|True|STR\b|NoneType|Literal|\(default: \)", text)
    # Examples keep their lines; sentences end at the width of the terminal.
    assert all(len(line.rstrip()) <= 100 or line.startswith("  swamp ") for line in text.splitlines())


@pytest.mark.slow
def test_the_completion_script_completes_commands_and_options(tmp_path, capsys):
    assert swamp("completion", "bash") == 0
    script = tmp_path / "swamp.bash"
    script.write_text(capsys.readouterr().out)
    for words, expected in (("swamp ru", "run"), ("swamp analyze --cu", "--curvature-examples --curvature-particles")):
        code = f"""source {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _tyro_swamp; echo "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.split() == expected.split()


def test_help_of_run_shows_the_defaults_of_the_recipe_named(capsys):
    swamp("run", "fashion-mnist-lenet", "--help")
    assert "fashion-mnist" in capsys.readouterr().out


def process(arguments: list[object], log: Path) -> Child:
    return started([sys.executable, "-m", "swamp", *arguments], log)


LONG = [*TINY, "--epochs", "30", "--out"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The summary of a run of a second that no signal reached."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert swamp("run", *LONG, path, "--quiet") == 0
    return json.loads((path / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "begin"), [(signal.SIGINT, 130, process), (signal.SIGTERM, 143, forked)])
def test_a_signal_saves_prints_how_to_resume_and_the_result_is_the_same(number, code, begin, whole, tmp_path, capsys):
    child = begin(["run", *LONG, tmp_path / "run"], tmp_path / "log")
    while not (tmp_path / "run" / "ticket.safetensors").exists():
        assert child.code() is None
        time.sleep(0.01)
    child.signal(number)
    assert child.wait() == code
    assert f"swamp resume {tmp_path / 'run'}" in child.told().replace("\n", "")
    assert list((tmp_path / "run").rglob("unfinished-*"))
    assert swamp("resume", tmp_path / "run", "--json") == 0
    resumed = json.loads(capsys.readouterr().out)
    assert [c["test"] for c in resumed["cycles"]] == [c["test"] for c in whole["cycles"]]


def test_warnings_go_to_standard_error_and_json_stays_clean(tmp_path, capfd):
    unstable = ["--barrier-threshold", "0", "--lr", "0.5", "--ticket-epochs", "0"]
    assert swamp("run", *TINY, *unstable, "--json", "--out", tmp_path / "run") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["method"] == "swamp"
    assert "warning: cycle 0" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_closed_pipe_is_no_fault(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "swamp", "list", "models"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_progress_bars_appear_on_a_terminal(tmp_path):
    import pty

    main, side = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "swamp", "run", *TINY, "--epochs", "15", "--out", str(tmp_path / "run")],
        stdout=side,
        stderr=side,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(side)
    seen = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert child.wait() == 0
    text = seen.decode(errors="replace")
    assert "steps/s" in text
    assert text.startswith("importing torch ...")
    assert "preparing the data and the network" in text
    assert "training particle" in text
    assert "cycles" in text


@pytest.mark.parametrize("command", ["compare", "resume", "report", "export", "study", "masks", "analyze"])
def test_a_path_that_cannot_be_is_named_in_one_line(command, capsys):
    for path in ("x" * 300, "a/" * 3000):
        assert swamp(command, path) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "Traceback" not in said


@pytest.mark.parametrize("given", [["resume", "a/" * 3000], ["run", "--lr", "1" * 5000], ["x" * 5000]])
def test_an_argument_without_end_is_refused_in_a_line(given, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(given)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {len(given)} (" in said
    assert len(said) < 300


def test_a_file_name_that_is_not_valid_utf_8_is_printed_in_the_error(tmp_path, monkeypatch):
    """Standard error takes UTF-8 alone."""
    said = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(said, "utf-8", errors="strict", write_through=True))
    assert swamp("run", *TINY, "--out", tmp_path / os.fsdecode(b"run-\xff")) == 2
    assert b"run-\\udcff" in said.getvalue()
    assert b"is not valid UTF-8" in said.getvalue()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--prune-fraction", "2"], "--prune-fraction, the fraction of the remaining weights"),
        (["--ticket-epochs", "-1"], "--ticket-epochs must be 0 or more"),
        (["--particles", "0"], "--particles must be 1 or more"),
        (["--cycles", "2", "--prune-fraction", ".1", ".2"], "--cycles=2 and --prune-fraction=[0.1, 0.2] end"),
        (["--densities", ".5"], "densities start at 1, the dense cycle 0"),
    ],
)
def test_errors_on_the_command_line_name_options(given, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "digits-mlp", *given])
    assert message in capsys.readouterr().err


def test_names_in_paths_and_configurations_are_not_options():
    check_fields(Training())
    for text in (
        "runs/swa_lr/x is damaged",
        "invalid configuration at $.training.swa_lr: ...",
        "unknown task 'swa_lr'",
    ):
        assert with_option_names(text) == text
    assert with_option_names("the epochs of swa_lr") == "the epochs of --swa-lr"


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("switch it off (swa=False)", "switch it off (--no-swa)"),
        ("use nesterov=True.", "use --nesterov."),
        ('try precision="float32".', "try --precision float32."),
        ("leave it dense: exclude=('head.*',).", "leave it dense: --exclude 'head.*'."),
        ("give swa_fraction=0.25", "give --swa-fraction=0.25"),
        ("prune_fraction=(0.2, 0.5)", "--prune-fraction 0.2 0.5"),
    ],
)
def test_a_value_in_a_message_is_written_for_the_shell(python, shell):
    RunConfig()
    assert with_option_names(python) == shell


def test_the_library_names_no_option_in_python():
    """Messages below the command line have the names of Python, which the command line translates."""
    rooms = ("algorithms", "training", "masks", "scores")
    files = [path for room in rooms for path in (Path(cli.__file__).parents[1] / room).rglob("*.py")]
    assert [path.name for path in files if re.search(r"(?<![\w-])--[a-z]", path.read_text())] == []
