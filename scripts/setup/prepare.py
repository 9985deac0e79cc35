"""scripts/test's first part: the environment, with what developing and testing need."""

import os
import sys
from pathlib import Path

from scripts.setup.console import Console
from scripts.setup.demo_model import models_folder
from scripts.setup.installation import Installation
from scripts.setup.machine import has_nvidia_gpu, require_linux
from scripts.setup.program import run_program
from scripts.setup.room import installing_needs, require_room

ROOT = Path(__file__).resolve().parents[2]


def prepare(console: Console) -> int:
    require_linux()
    gpu = has_nvidia_gpu()
    installation = Installation(ROOT, console, gpu=gpu, dev=True, environ=os.environ)
    if not installation.is_current():
        require_room(installing_needs(ROOT, models_folder(), gpu, os.environ))
        installation.run()
    return 0


if __name__ == "__main__":
    sys.exit(run_program(prepare))
