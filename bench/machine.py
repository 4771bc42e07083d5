"""What the figures were measured on: the first row of a run."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any


def field(file: str, name: str) -> str | None:
    """The value of ``name : value`` in one of Linux's files; None where there is none."""
    path = Path(file)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def machine(versions: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Cores, processor, memory, what else the machine was doing, and what each peer says of itself."""
    memory = field("/proc/meminfo", "MemTotal")
    return {
        "machine": platform.machine(),
        "processor": field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(int(memory.split()[0]) * 1024 / 1e9, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "load": round(os.getloadavg()[0], 2),
        "peers": versions,
    }
