"""The virtual environment in .venv: made, or mended after an installation that was cut off."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.setup.trouble import Trouble


class Environment:
    """Where things lie in ``.venv``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.logs = self.folder / "log"

    @property
    def site_packages(self) -> Path | None:
        return next(iter(sorted(self.folder.glob("lib/python3.*/site-packages"))), None)

    def installed(self) -> set[str]:
        """``name==version`` of all packages, the names as in the lock: small letters, hyphens."""
        site = self.site_packages
        folders = [folder.name.removesuffix(".dist-info") for folder in site.glob("*.dist-info")] if site else []
        parts = [folder.rpartition("-") for folder in folders]
        return {f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}" for name, _, version in parts}

    def works(self) -> bool:
        """Whether its Python starts, is new enough and has pip."""
        test = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
        try:
            return subprocess.run([self.python, "-c", test], capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def create(self) -> None:
        """Made anew, in place of whatever there is."""
        command = [sys.executable, "-m", "venv", "--clear", str(self.folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise Trouble(
                f"Python could not make a virtual environment in {self.folder}:\n"
                f"{(made.stdout + made.stderr).strip()}\n"
                "On Debian and Ubuntu its package python3-venv has to be installed."
            )

    def mend(self) -> list[str]:
        """Forget packages that pip was writing when it was cut off; it takes them for whole. Returns their names.

        pip writes RECORD last, and renames what it replaces to ~something until the new one is there.
        """
        site = self.site_packages
        if site is None:
            return []
        halves = [folder for folder in site.glob("*.dist-info") if not (folder / "RECORD").exists()]
        halves += site.glob("~*")
        for half in halves:
            shutil.rmtree(half) if half.is_dir() else half.unlink()
        return sorted(half.name.removesuffix(".dist-info") for half in halves)


def pip_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The person's settings (index, proxy, certificates) kept; what would make pip put things elsewhere left out."""
    misleading = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_CONSTRAINT"}
    kept = {name: value for name, value in environ.items() if name not in misleading}
    return {**kept, "PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
