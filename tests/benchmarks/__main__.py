"""All benchmarks, or one of them with its arguments.

    python tests/benchmarks                    all, a table or two each
    python tests/benchmarks crf --photos 4     one; --help lists its arguments

Each runs in a process of its own, so that none finds what another has cached or taken. Figures are for comparison on
one machine that has nothing else to do.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = ("figures", "crf", "sweep", "rrm", "masks", "matting", "memory", "large")


def main(arguments: list[str]) -> int:
    """Run the benchmark that the first argument names with the other arguments, or all with all arguments."""
    if arguments and arguments[0] in NAMES:
        chosen, rest = arguments[:1], arguments[1:]
    elif arguments and not arguments[0].startswith("--shared"):
        print(f"{__doc__}\nBenchmarks: {', '.join(NAMES)}. All take --shared, the folder that holds minivoc.")
        return 0 if arguments[0] in ("-h", "--help") else 2
    else:
        chosen, rest = list(NAMES), arguments
    here = Path(__file__).resolve().parent
    return max(subprocess.run([sys.executable, str(here / f"{name}.py"), *rest]).returncode for name in chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
