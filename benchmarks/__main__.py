"""`python -m benchmarks NAME [OPTIONS]`: run one benchmark, or list them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

NAMES = sorted(
    file.stem for file in Path(__file__).parent.glob("*.py") if "def main(" in file.read_text() and file.stem[0] != "_"
)


def main(arguments: list[str]) -> int:
    """Run the named benchmark; without a name, or with a wrong one, say which there are."""
    if not arguments or arguments[0] not in NAMES:
        print(f"Usage: make bench NAME=<name>, with one of: {', '.join(NAMES)}")
        return 2
    sys.argv = [f"benchmarks {arguments[0]}", *arguments[1:]]
    import_module(f"benchmarks.{arguments[0]}").main()
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]
    raise SystemExit(main(sys.argv[1:]))
