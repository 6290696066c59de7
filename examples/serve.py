"""A small HTTP endpoint for an exported network: requests that come together are answered by one call of it.

python examples/serve.py runs/x/export.safetensors              serves on http://127.0.0.1:8000
python examples/serve.py runs/x/export.safetensors --measure 5  sparse and dense in turns, five seconds each

    curl -d '{"inputs": [[0.1, 0.2, ...]]}' http://127.0.0.1:8000

The body holds one or more inputs of the network's shape; the answer holds as many outputs. Only this machine is served.
"""

import argparse
import http.client
import json
import queue
import statistics
import threading
import time
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from torch import Tensor, nn

import swamp
from swamp.runtime import read

LARGEST = 64 * 2**20


class Batcher:
    """Puts what waits together, up to `most` examples, and runs the network on it."""

    def __init__(self, module: nn.Module, most: int = 128) -> None:
        self.module, self.most = module, most
        self.waiting: queue.Queue[tuple[Tensor, Future[Tensor]]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, inputs: Tensor) -> Tensor:
        answer: Future[Tensor] = Future()
        self.waiting.put((inputs, answer))
        return answer.result()

    def _work(self) -> None:
        while True:
            taken = [self.waiting.get()]
            # No waiting for more: while the network runs, the next ones gather by themselves.
            while sum(len(inputs) for inputs, _ in taken) < self.most:
                try:
                    taken.append(self.waiting.get_nowait())
                except queue.Empty:
                    break
            try:
                with torch.no_grad():
                    outputs = self.module(torch.cat([inputs for inputs, _ in taken]))
                for part, (_, answer) in zip(outputs.split([len(x) for x, _ in taken]), taken, strict=True):
                    answer.set_result(part)
            except Exception as error:  # each caller is told
                for _, answer in taken:
                    answer.set_exception(error)


def server(module: nn.Module, shape: tuple[int, ...], port: int) -> ThreadingHTTPServer:
    """An endpoint on 127.0.0.1 for inputs of `shape`; port 0 takes a free one."""
    batcher = Batcher(module)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", 0))
                if not 0 < length <= LARGEST:
                    raise ValueError("a body of at most 64 MiB is expected")
                inputs = torch.tensor(json.loads(self.rfile.read(length))["inputs"], dtype=torch.float32)
                if inputs.dim() != len(shape) + 1 or tuple(inputs.shape[1:]) != shape or not len(inputs):
                    raise ValueError(f"inputs have shape {tuple(inputs.shape)}, expected (any, {shape})")
            except (ValueError, KeyError, TypeError) as error:
                return self.answer(400, {"error": str(error)})
            return self.answer(200, {"outputs": batcher(inputs).tolist()})

        def answer(self, status: int, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            if status != 200:
                self.close_connection = True

        def log_message(self, *given: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def load(port: int, shape: tuple[int, ...], seconds: float, clients: int = 4, rows: int = 16) -> tuple[float, float]:
    """(examples a second, median milliseconds a request) of so many clients that ask one after the other."""
    body = json.dumps({"inputs": torch.zeros(rows, *shape).tolist()})
    until = time.perf_counter() + seconds
    times: list[float] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < until and len(times) < 100_000:
            began = time.perf_counter()
            connection.request("POST", "/", body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            times.append(time.perf_counter() - began)
        connection.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows * len(times) / (time.perf_counter() - began), 1e3 * statistics.median(times)


def measure(file: str, shape: tuple[int, ...], seconds: float) -> None:
    modules = {"sparse": swamp.load(file, batch=(16, 64)), "dense": swamp.load(file, dense=True)}
    servers = {name: server(module, shape, 0) for name, module in modules.items()}
    for one in servers.values():
        threading.Thread(target=one.serve_forever, daemon=True).start()
    rounds = 3
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, one in servers.items():
            found[name].append(load(one.server_address[1], shape, seconds / rounds))
    rates = {name: statistics.median(rate for rate, _ in own) for name, own in found.items()}
    for name, own in found.items():
        print(f"{name}: {rates[name]:,.0f} examples/s, {statistics.median(ms for _, ms in own):.2f} ms a request of 16")
    print(f"sparse / dense: {rates['sparse'] / rates['dense']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--measure", type=float, default=0.0)
    given = parser.parse_args()
    (one,) = read(given.file).inputs
    shape = tuple(size for size in one.shape[1:] if size is not None)
    if given.measure:
        measure(given.file, shape, given.measure)
        return
    running = server(swamp.load(given.file, batch=(1, 16, 128)), shape, given.port)
    print(f"serving {given.file} on http://127.0.0.1:{running.server_address[1]}; inputs have the shape {shape}")
    running.serve_forever()


if __name__ == "__main__":
    main()
