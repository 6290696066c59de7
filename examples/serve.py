"""A small HTTP server for an exported network; waiting requests are computed together as one batch.

python examples/serve.py runs/x/export.safetensors              serves on http://127.0.0.1:8000
python examples/serve.py runs/x/export.safetensors --measure 5  load test, sparse and dense for 5 seconds each

    curl -d '{"inputs": [[0.1, 0.2, ...]]}' http://127.0.0.1:8000

The body contains one or more inputs of the network; the response contains one output for each. The server accepts
connections only from this machine.
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
from swamp.runtime.archive import read

MAX_BODY_BYTES = 64 * 2**20


class Batcher:
    """Runs the network on waiting requests together, until a batch has `batch` examples or more."""

    def __init__(self, network: nn.Module, batch: int = 128) -> None:
        self.network, self.batch = network, batch
        self.waiting: queue.Queue[tuple[Tensor, Future[Tensor]]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, inputs: Tensor) -> Tensor:
        result: Future[Tensor] = Future()
        self.waiting.put((inputs, result))
        return result.result()

    def _work(self) -> None:
        while True:
            taken = [self.waiting.get()]
            # It does not wait for more requests: they queue up while the network runs.
            while sum(len(inputs) for inputs, _ in taken) < self.batch:
                try:
                    taken.append(self.waiting.get_nowait())
                except queue.Empty:
                    break
            try:
                with torch.no_grad():
                    outputs = self.network(torch.cat([inputs for inputs, _ in taken]))
                for part, (_, result) in zip(outputs.split([len(x) for x, _ in taken]), taken, strict=True):
                    result.set_result(part)
            except Exception as error:  # raised by every caller
                for _, result in taken:
                    result.set_exception(error)


def server(network: nn.Module, shape: tuple[int, ...], port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 for inputs of `shape`; with port 0 the system chooses a free port."""
    batcher = Batcher(network)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", 0))
                if not 0 < length <= MAX_BODY_BYTES:
                    raise ValueError("expected a body of at most 64 MiB")
                inputs = torch.tensor(json.loads(self.rfile.read(length))["inputs"], dtype=torch.float32)
                if inputs.dim() != len(shape) + 1 or tuple(inputs.shape[1:]) != shape or not len(inputs):
                    raise ValueError(f"inputs have shape {tuple(inputs.shape)}, expected a list of {shape}")
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

        def log_message(self, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def load(port: int, shape: tuple[int, ...], seconds: float, clients: int = 4, rows: int = 16) -> tuple[float, float]:
    """(examples per second, median milliseconds of a request) of clients that send requests of `rows` inputs."""
    body = json.dumps({"inputs": torch.zeros(rows, *shape).tolist()})
    end = time.perf_counter() + seconds
    times: list[float] = []

    def send_requests() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < end and len(times) < 100_000:
            start = time.perf_counter()
            connection.request("POST", "/", body)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            times.append(time.perf_counter() - start)
        connection.close()

    start = time.perf_counter()
    threads = [threading.Thread(target=send_requests) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows * len(times) / (time.perf_counter() - start), 1e3 * statistics.median(times)


def measure(file: str, shape: tuple[int, ...], seconds: float) -> None:
    networks = {"sparse": swamp.load(file, batch=(16, 64)), "dense": swamp.load(file, dense=True)}
    servers = {name: server(network, shape, 0) for name, network in networks.items()}
    for one in servers.values():
        threading.Thread(target=one.serve_forever, daemon=True).start()
    rounds = 3
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, one in servers.items():
            results[name].append(load(one.server_address[1], shape, seconds / rounds))
    rates = {name: statistics.median(rate for rate, _ in own) for name, own in results.items()}
    for name, own in results.items():
        milliseconds = statistics.median(ms for _, ms in own)
        print(f"{name}: {rates[name]:,.0f} examples/s, {milliseconds:.2f} ms per request of 16 examples")
    print(f"sparse / dense: {rates['sparse'] / rates['dense']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--measure", type=float, default=0.0)
    args = parser.parse_args()
    (one,) = read(args.file).inputs  # a network with one input
    shape = tuple(size for size in one.shape[1:] if size is not None)
    if args.measure:
        measure(args.file, shape, args.measure)
        return
    running = server(swamp.load(args.file, batch=(1, 16, 128)), shape, args.port)
    print(f"serving {args.file} on http://127.0.0.1:{running.server_address[1]}; inputs have the shape {shape}")
    running.serve_forever()


if __name__ == "__main__":
    main()
