"""Any sparse model goes to a folder with the layout of the Hub, and comes back; the folder goes to a server."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import pytest
import torch
from tests.api.conftest import OPTIONS, examples, network

import swamp
from swamp.cli import main
from swamp.pretrained import from_pretrained, push_to_hub, save_pretrained
from swamp.runs import execute


@pytest.fixture(scope="module")
def sparse():
    return swamp.prune(network(), examples(), backend="sequential", **OPTIONS)


@pytest.fixture(scope="module")
def folder(sparse, tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "small"
    save_pretrained(sparse, path, method="swamp", example=torch.randn(2, 6))
    return path


def test_a_module_comes_back_bit_for_bit_with_its_mask_and_its_record(sparse, folder):
    given = network(number=1)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    again = from_pretrained(folder, given)
    state = again.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in sparse.model.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert again.mask == sparse.mask
    assert again.cycles[-1].to_json() == sparse.cycles[-1].to_json()
    assert "test accuracy" in repr(again)


def test_the_mask_has_one_bit_a_weight(sparse, folder):
    assert (folder / "mask.safetensors").stat().st_size < sparse.mask.prunable / 8 + 1500


def test_the_folder_is_executed_without_the_class_of_the_model(sparse, folder):
    x = torch.randn(5, 6)
    assert torch.allclose(swamp.load(folder)(x), sparse.model.eval()(x), atol=1e-5)


def test_the_card_is_read_by_the_library_of_the_hub(sparse, folder):
    cards = pytest.importorskip("huggingface_hub")
    card = cards.ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.tags) == ("swamp", ["swamp", "pruned", "sparse"])
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == pytest.approx(sparse.cycles[-1].metrics.test)
    assert f"{sparse.cycles[-1].total.steps:,} steps" in card.text


def test_a_network_that_cannot_be_exported_is_saved_without_the_export(tmp_path):
    class Branching(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    model = Branching(4, 4)
    mask = swamp.Mask.ones(model)
    with pytest.warns(UserWarning, match="has no export.safetensors"):
        save_pretrained(swamp.SparseModel(model, mask, ()), tmp_path / "x", method="none", example=torch.ones(2, 4))
    assert repr(from_pretrained(tmp_path / "x", model)).startswith("SparseModel(Branching")
    with pytest.raises(swamp.SwampError, match=r"no exported network.*swamp\.pretrained\.from_pretrained"):
        swamp.load(tmp_path / "x")


def test_what_does_not_fit_is_refused(sparse, folder, tmp_path):
    with pytest.raises(swamp.SwampError, match=r"class Sequential.*from_pretrained\('.*small', model\)"):
        from_pretrained(folder)
    with pytest.raises(swamp.SwampError, match=r"mask|shape"):
        from_pretrained(folder, network(width=4))
    for name in ("", "hf:some/model", "evil.module:function"):
        config = json.loads((folder / "config.json").read_text())
        config["architecture"] = {"name": name, "shape": [6], "classes": 3}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "mask.safetensors").write_bytes((folder / "mask.safetensors").read_bytes())
        with pytest.raises(swamp.SwampError, match="which the folder does not hold"):
            from_pretrained(tmp_path)
    for damaged in ({"name": "mlp-5", "shape": [6]}, {"name": "mlp-5", "shape": 6, "classes": 3}, ["mlp-5"]):
        (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": damaged}))
        with pytest.raises(swamp.SwampError, match=r"config\.json has no complete architecture.*such as \[1, 8, 8\]"):
            from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "record": {"cycle": 3}}))
    with pytest.raises(swamp.SwampError, match=r"config\.json: the record of a cycle is damaged \(KeyError: 'density'"):
        from_pretrained(tmp_path, network())
    with pytest.raises(swamp.SwampError, match="is not empty, or the working folder"):
        save_pretrained(sparse, ".", method="swamp")
    with pytest.raises(swamp.SwampError, match="no model of swamp"):
        push_to_hub(tmp_path / "none", "me/x")


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that an upload needs: creating, asking how to upload, LFS, the commit."""

    stored: dict[str, bytes]
    created: list[dict]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if b"refused" in body or "refused" in self.path:
            return self.answer({"error": "you may not"}, 403)
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.answer({"url": f"http://{self.headers['Host']}/me/small", "name": "me/small"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            ways = [{"path": file, "uploadMode": "lfs" if file.endswith(".safetensors") else "regular",
                     "shouldIgnore": False} for file in files]  # fmt: skip
            return self.answer({"files": ways})
        if self.path.endswith("/info/lfs/objects/batch"):
            put, objects = f"http://{self.headers['Host']}/lfs/", json.loads(body)["objects"]
            objects = [{**one, "actions": {"upload": {"href": put + one["oid"]}}} for one in objects]
            return self.answer({"transfer": "basic", "objects": objects})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.stored[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.stored[value["path"]] = self.stored.pop(value["oid"])
        return self.answer({"commitUrl": f"http://{self.headers['Host']}/me/small/commit/1", "commitOid": "1" * 40})

    def do_PUT(self):
        self.stored[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_GET(self):
        self.answer({"sha": "0" * 40, "id": "me/small", "siblings": []})

    def answer(self, values, code=200):
        text = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    Hub.stored, Hub.created = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pushed(folder, server):
    """Upload to two repositories in a new process: huggingface_hub reads HF_ENDPOINT when it is imported."""
    code = f"""
import swamp
from swamp.pretrained import push_to_hub
for name in ("me/small", "me/refused"):
    try:
        print(push_to_hub({str(folder)!r}, name, private=True, token="hf_x"))
    except swamp.SwampError as error:
        print("refused:", error)
"""
    address = f"http://127.0.0.1:{server.server_port}"
    own = {
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
    }
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **own, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return *done.stdout.splitlines(), address


@pytest.mark.slow
def test_a_folder_is_uploaded_file_for_file(folder, hub):
    pytest.importorskip("huggingface_hub")
    said, refused, address = pushed(folder, hub)
    assert said == f"{address}/me/small"
    assert "private" in (
        Hub.created[0].get("visibility"),
        *(key for key, value in Hub.created[0].items() if value is True),
    )
    assert Hub.stored == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert refused.startswith(f"refused: could not upload {folder} to me/refused: ")


@pytest.mark.slow
def test_the_command_shares_a_run_that_is_built_and_run_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ["run", "digits-mlp", "--epochs", "2", "--cycles", "1", "--examples", "256", "--quiet", "--json"]
    main([*run, "--out", "run"])
    with monkeypatch.context() as patched:
        patched.setattr(execute, "build_problem", count := Mock(side_effect=execute.build_problem))
        main(["share", "run", "-o", "shared", "--json"])
    count.assert_called_once()  # the data is read once: it may take minutes
    files = {*json.loads(capsys.readouterr().out.splitlines()[-1])["files"]}
    assert files == {"README.md", "run.json", "config.json"} | {
        f"{name}.safetensors" for name in ("export", "mask", "model")
    }
    again, x = from_pretrained("shared"), torch.rand(2, 1, 8, 8)
    assert torch.allclose(swamp.load("shared")(x), again.model.eval()(x), atol=1e-5)
    main(["run", "--config", "shared/run.json", "--out", "again", "--quiet", "--json"])
    one, two = swamp.load_run("run"), swamp.load_run("again")
    assert one.mask == two.mask
