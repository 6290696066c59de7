"""No file makes swamp run code, no archive or name leads out of its folder, no secret is written down."""

import ast
import io
import json
import os
import pickle
import shutil
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loaders import loaders, tried
from swamp import cli
from swamp.datasets.cache import checksum_of, download
from swamp.datasets.cifar import CIFAR_10, _from_archive
from swamp.errors import SwampError
from swamp.runs.config import RunConfig
from swamp.runs.directory import add_checksum, write_json
from swamp.runs.study_queue import StudyDirectory
from swamp.runtime import kernels

LOADERS = loaders()
SOURCE = Path(__file__).parents[2] / "src" / "swamp"
FORBIDDEN = {
    *("pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "yaml"),
    *("eval", "exec", "compile", "__import__"),
    *("torch.load", "torch.save", "os.system", "os.popen", "tempfile.mktemp", "tempfile.mkstemp"),
    *("np.load", "numpy.load", "pandas.read_pickle", "shutil.unpack_archive", "extractall"),
}


def _calls_and_imports(tree: ast.AST) -> set[str]:
    """Names of all that is imported, and of all that is called: `eval`, `torch.load`, of methods the last part too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if words.get("allow_pickle") != "False":  # np.load without pickle reads arrays only
                found.add(ast.unparse(node.func))
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("extractall", "unpack_archive"):
                found.add(node.func.attr)
            found.update("shell" for word in node.keywords if word.arg == "shell")
            found.update(
                "remote code"
                for word in node.keywords
                if word.arg == "trust_remote_code" and ast.unparse(word.value) != "False"
            )
    return found


@pytest.mark.slow
def test_nothing_in_the_source_unpickles_evaluates_or_calls_a_shell():
    for path in sorted(SOURCE.rglob("*.py")):
        used = _calls_and_imports(ast.parse(path.read_text()))
        assert not used & {*FORBIDDEN, "shell", "remote code"}, path


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "archive.extractall()",
        "from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(code):
    used = _calls_and_imports(ast.parse(code))
    assert used & {*FORBIDDEN, "shell", "remote code"}


class Malicious:
    """Unpickled, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_the_canary_would_sing(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(LOADERS))
def test_no_loader_runs_what_a_pickle_asks_for(name, tmp_path):
    canary = tmp_path / "canary"
    stored = io.BytesIO()
    torch.save({"weights": Malicious(canary)}, stored)
    plain = [pickle.dumps(Malicious(canary), protocol) for protocol in (0, 2, 5)]
    for data in (*plain, stored.getvalue(), LOADERS[name].whole + plain[1], plain[1] + LOADERS[name].whole):
        assert tried(LOADERS[name], data, tmp_path) in ("loaded", "refused")
    assert not canary.exists()


def _archive(path: Path, members: dict[str, bytes | str]) -> Path:
    """A tar with these files; a text instead of bytes is a symbolic link to it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def _tiny(path: Path):
    md5 = checksum_of(path.read_bytes(), "md5")
    return replace(CIFAR_10, train=("a.bin",), test="b.bin", train_records=1, test_records=1, md5=md5)


def test_an_archive_leads_nowhere_and_a_link_in_it_to_nothing(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    members = {"../out": b"x", "/tmp/out-of-swamp": b"x", "cifar-10-batches-bin/a.bin": str(tmp_path / "secret")}
    path = _archive(inside / "a.tar.gz", {**members, "cifar-10-batches-bin/b.bin": b"b"})
    with pytest.raises(SwampError, match=r"a\.tar\.gz"):
        _from_archive(_tiny(path), path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"secret", "inside"}
    assert [entry.name for entry in inside.iterdir()] == ["a.tar.gz"]


def test_a_decompression_bomb_is_unpacked_only_to_the_size_of_a_valid_file(tmp_path):
    folder = "cifar-10-batches-bin"
    path = _archive(tmp_path / "a.tar.gz", {f"{folder}/a.bin": bytes(2**24), f"{folder}/b.bin": b"b"})
    assert path.stat().st_size < 2**15
    assert len(_from_archive(_tiny(path), path)["a.bin"]) == 3074


@pytest.mark.parametrize(
    ("url", "checksum", "message"),
    [
        ("http://example.org/data.gz", f"sha256:{'0' * 64}", "only https"),
        ("ftp://example.org/data.gz", f"sha256:{'0' * 64}", "only https"),
        ("file:///etc/passwd", f"sha256:{'0' * 64}", "only https"),
        ("https://example.org/data.gz", "", "without a checksum"),
        ("https://example.org/data.gz", "sha256:0", "without a checksum"),
    ],
)
def test_nothing_is_fetched_in_the_open_or_without_a_checksum(url, checksum, message, monkeypatch):
    monkeypatch.setattr("swamp.datasets.cache.need", lambda *_: pytest.fail("it was asked for"))
    with pytest.raises(SwampError, match=message):
        download(url, checksum, "some-task")


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "..", ".", "a/b", "study.json", "", "\ud800", "x" * 300]
)
def test_a_study_names_no_run_outside_its_folder(name, tmp_path):
    listed = {"runs": {name: RunConfig().to_json()}, "compare": {}}
    (tmp_path / "study.json").write_text(json.dumps(add_checksum(listed)))
    with pytest.raises(SwampError, match=r"cannot be the name of a run|half of a character"):
        StudyDirectory.open(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a compiler")
@pytest.mark.parametrize("planted", ["folder", "above", "file", "of another"])
def test_kernels_that_another_user_can_replace_are_not_loaded(planted, tmp_path, monkeypatch):
    cache, own, flags = tmp_path / "cache", tmp_path / "own", (*kernels._FLAGS, "-O0")
    monkeypatch.setattr(kernels, "_cache_folders", lambda: [cache / "kernels", own / "kernels"])
    first = kernels._compiled(kernels._compiler(), flags)
    assert first.is_relative_to(cache)
    if planted == "folder":
        first.parent.chmod(0o777)
    elif planted == "above":
        cache.chmod(0o777)
    elif planted == "file":
        first.chmod(0o666)
    elif os.getuid():
        pytest.skip("only root can give a folder away")
    else:
        os.chown(first.parent, 65534, 65534)
    second = kernels._compiled(kernels._compiler(), flags)
    assert second != first or stat.S_IMODE(second.stat().st_mode) & 0o022 == 0
    assert second.is_relative_to(cache if planted == "file" else own)


SECRETS = {
    "WANDB_API_KEY": "planted-wandb-key",
    "HF_TOKEN": "planted-hf-token",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "HTTPS_PROXY": "http://user:planted-proxy-password@proxy.invalid:1",
}


def test_no_secret_of_the_environment_is_written_into_a_run_or_its_report(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    short = ["--epochs", "2", "--model", "mlp-4", "--sparsity", "0.5", "--swa-fraction", "1", "--examples", "64"]
    cli.main(["run", "digits-mlp", *short, "--out", str(tmp_path / "run"), "--quiet"])
    cli.main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "report.html")])
    cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "export.safetensors")])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        assert b"planted" not in path.read_bytes(), path


def test_a_file_is_never_written_through_a_link_that_lies_there(tmp_path):
    """The name beside is random, and the rename replaces a link instead of following it."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "file.json").symlink_to("victim")
    write_json(tmp_path / "file.json", {"a": 1})
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "file.json").is_symlink()
