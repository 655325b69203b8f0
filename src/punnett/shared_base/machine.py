"""This machine and a base in, what was measured of the two out; kept between runs in the user's cache."""

import contextlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from punnett.bases import models_folder
from punnett.spec.key import digest_of


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts() -> list[int]:
    """Numbers of threads that a pass may run on here: 1, 2, 4, ... and all cores."""
    cores = available_cores()
    return sorted({2**k for k in range(cores.bit_length()) if 2**k <= cores} | {cores})


def free_bytes(device: Any) -> int:
    """Memory that is free where a base lies."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def machine_name() -> str:
    """What a measurement holds for: device or processor, cores and library."""
    import torch

    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    return f"{device}, {available_cores()} cores, torch {torch.__version__}"


def machine_key(location: str, dtype: str, **about: Any) -> str:
    """Names a measurement on this machine of a base of this shape and precision, and `about`."""
    shape = (Path(location) / "config.json").read_text()
    return digest_of([machine_name(), shape, dtype, sorted(about.items())])[:32]


def remembered(key: str) -> dict[str, Any] | None:
    """An earlier measurement, if there is a readable one."""
    try:
        return json.loads(_place(key).read_text())
    except (OSError, ValueError):
        return None


def remember(key: str, measured: dict[str, Any]) -> None:
    """Keep a measurement; a cache that cannot be written costs only the next measurement."""
    try:
        _place(key).parent.mkdir(parents=True, exist_ok=True)
        draft = _place(key).with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(measured, indent=1))
        os.replace(draft, _place(key))
    except OSError:
        pass


def _place(key: str) -> Path:
    return models_folder() / ".speeds" / f"{key}.json"
