"""Python programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys


def said_by(program: str, *hash_seeds: str) -> set[str]:
    """What a program prints, run once for each seed of the hashes of strings: one answer, if it depends on none."""
    return {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in hash_seeds
    }
