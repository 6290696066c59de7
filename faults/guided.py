"""Tests one loader with bytes that atheris chooses by code coverage; loaders.py starts it if atheris is installed."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["swamp", "gzip", "csv", "tomllib"]):
    import loaders
    from sandbox import limit_memory


def main(name: str, cases: str, seed: str) -> None:
    """Try `cases` inputs and print @loaded, @refused or @fault for each. Does not return."""
    loader = loaders.loaders()[name]
    folder = Path(tempfile.mkdtemp())
    (folder / "corpus").mkdir()
    (folder / "corpus" / "whole").write_bytes(loader.whole)
    limit_memory()

    def one(data: bytes) -> None:
        outcome = loaders.tried(loader, data, folder)
        if outcome not in ("loaded", "refused"):
            print(f"{name}: {data[:300]!r}: {outcome}", flush=True)
            outcome = "fault"
        print(f"@{outcome}", flush=True)

    options = [f"-runs={cases}", f"-seed={int(seed) + 1}", "-max_len=20000", "-rss_limit_mb=0", "-timeout=600"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(folder / "corpus")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
