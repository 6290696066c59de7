import http.client
import re

import pytest

from swamp.errors import SwampError
from swamp.report.serve import LivePage, PageServer

from .runs import cycle, lines_of, write_run


def asked(server, method="GET", path="/", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server.server_port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name in [host] if isinstance(host, str) else host or [f"127.0.0.1:{server.server.server_port}"]:
            connection.putheader("Host", name)
        connection.endheaders()
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", [cycle(0, 1.0, 0.9)])


@pytest.fixture
def server(run):
    with PageServer(LivePage([run]), 0) as server:
        yield server


def test_the_page_is_served_on_127_0_0_1_only_and_reloads(server):
    answer, body = asked(server)
    assert answer.status == 200
    assert server.server.server_address[0] == "127.0.0.1"
    assert b'data-live="5"' in body
    assert b"connect-src &#39;self&#39;" in body
    assert answer.headers["Cache-Control"] == "no-store"
    head, nothing = asked(server, "HEAD")
    assert head.headers["ETag"] == answer.headers["ETag"]
    assert nothing == b""


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "evil.example:80", ["127.0.0.1:1", "evil.example"]])
def test_another_host_name_is_refused(server, host):
    assert asked(server, host=host)[0].status == 403


@pytest.mark.parametrize(
    "path", ["/config.json", "/../config.json", "/%2e%2e/", "/?x", "/run/", "http://evil.example/"]
)
def test_only_the_page_is_served(server, path):
    answer, body = asked(server, path=path)
    assert answer.status == 404
    assert b"metrics.jsonl" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_it_only_reads(server, method):
    assert asked(server, method)[0].status == 501


def test_the_page_changes_with_the_run_and_its_tag_with_it(server, run):
    before = asked(server, "HEAD")[0].headers["ETag"]
    assert asked(server, "HEAD")[0].headers["ETag"] == before
    (run / "metrics.jsonl").write_text(lines_of([cycle(0, 1.0, 0.9), cycle(1, 0.5, 0.85)]))
    answer, body = asked(server)
    assert answer.headers["ETag"] != before
    assert re.search(rb"50[.]00 % sparsity", body)


def test_a_run_without_a_finished_cycle_has_a_page_that_says_so(tmp_path):
    run = write_run(tmp_path / "run", [])
    page, _ = LivePage([run])()
    assert b"no finished cycle yet" in page
    assert b"data-live" in page


def test_a_port_that_is_taken_is_named(server, run):
    with pytest.raises(SwampError, match=f"port {server.server.server_port}"):
        PageServer(LivePage([run]), server.server.server_port)
