"""``python -P bootstrap.py MODULE [ARGUMENT...]``: runs a module of this checkout, from whatever folder one is in."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
