"""How much memory processes hold, from /proc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Of one process, MiB: resident now, the part of it that is the process's own, and the most it ever was."""

    resident: float
    own: float
    peak: float

    @classmethod
    def of(cls, pid: int | str = "self") -> Memory | None:
        """None: it has ended."""
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return None
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}
        return cls(sizes["VmRSS"], sizes["RssAnon"], sizes["VmHWM"]) if "VmHWM" in sizes else None

    @classmethod
    def here(cls) -> Memory:
        """Of this process."""
        memory = cls.of()
        assert memory is not None
        return memory

    def __str__(self) -> str:
        return f"{self.resident:.0f} / {self.own:.0f} / {self.peak:.0f}"


def available() -> bool:
    """Whether this system tells; says so if not."""
    if Path("/proc/self/clear_refs").exists():
        return True
    print("skipped: this system has no /proc to read the memory of processes from")
    return False


def forget_peak() -> None:
    """This process's peak is what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
