"""Known holes in what is installed: ``python -m tests.security.audit`` asks the advisory service of PyPI through pip-audit.

Exit codes: 0 when nothing is known, or the service could not be asked (which is said); 1 when a hole is known that does not
stand in :data:`ACCEPTED`.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Advisory to the reason why it does not concern nilatent. A line goes when the package is raised above it.
ACCEPTED: dict[str, str] = {}
# pip-audit calls a package it got no answer about "skipped", and is content. Fewer answers than this are no audit.
LEAST_ANSWERED = 0.9
TIMEOUT_S = 300


def main() -> int:
    """Ask, judge, say."""
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        asked, answer = Path(folder) / "installed.txt", Path(folder) / "audit.json"
        asked.write_text("\n".join(installed()) + "\n", encoding="utf-8")
        arguments = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--output", answer]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip_audit", "--requirement", asked, *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )
            told = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else None
            trouble = (done.stderr.strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired:
            told, trouble = None, f"no answer in {TIMEOUT_S} seconds"
    code, lines = judge(told, trouble)
    print("\n".join(lines))
    return code


def installed() -> list[str]:
    """Every installed package with its version, as the service knows it: ``2.13.0`` for a build called ``2.13.0+cpu``."""
    found = {
        re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower(): package.version.partition("+")[0]
        for package in importlib.metadata.distributions()
    }
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name != "nilatent"]


def judge(told: dict[str, Any] | None, trouble: str = "") -> tuple[int, list[str]]:
    """Exit code and words for an answer of pip-audit; None when there was none."""
    if told is None:
        return 0, [f"NOT AUDITED: the advisory service could not be asked ({trouble})."]
    packages = told["dependencies"]
    silent = [str(package["name"]) for package in packages if "skip_reason" in package]
    holes = [
        (hole["id"], f"{package['name']} {package['version']}: {hole['id']}, mended in {_mended(hole)}")
        for package in packages
        for hole in package.get("vulns", [])
        if not ACCEPTED.keys() & {hole["id"], *hole.get("aliases", [])}
    ]
    lines = [line for _, line in sorted(holes)]
    if len(silent) > (1 - LEAST_ANSWERED) * len(packages):
        lines.append(f"NOT AUDITED: no answer about {len(silent)} of {len(packages)} packages.")
    elif silent:
        lines.append(f"No answer about {', '.join(sorted(silent))}.")
    if not holes and len(silent) < len(packages):
        lines.append(f"No known hole in the other {len(packages) - len(silent)} packages.")
    return int(bool(holes)), lines


def _mended(hole: dict[str, Any]) -> str:
    return ", ".join(hole.get("fix_versions", [])) or "no version yet"


if __name__ == "__main__":
    sys.exit(main())
