"""What this machine is: its kind, and whether it has an NVIDIA GPU."""

import platform
import subprocess
import sys
from pathlib import Path

from scripts.setup.trouble import Trouble


def require_linux(system: str = sys.platform, machine: str = platform.machine()) -> None:
    if not system.startswith("linux") or machine not in {"x86_64", "aarch64"}:
        raise Trouble(
            f"This is {system} on {machine}. The engines run on Linux, x86_64 or aarch64: use such a machine, "
            "on Windows the Linux inside it (WSL 2)."
        )


def has_nvidia_gpu(driver: Path = Path("/proc/driver/nvidia/version"), tool: str = "nvidia-smi") -> bool:
    if driver.exists():
        return True
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout
