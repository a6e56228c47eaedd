"""Row 1 of the queue: `tests/device` on the device that jax finds, counted."""

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """The status is 1 where a test failed or none passed; result.json is there in any case."""
    parser = argparse.ArgumentParser(prog="python -m experiments.accelerator.device_tests", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for result.json")
    parser.add_argument("--platform", default=None, help="gpu, tpu or cpu (default: what jax finds)")
    parser.add_argument("--file", default="", help="one file of tests/device (default: all)")
    options = parser.parse_args(arguments)
    platform = options.platform
    if platform is None:
        from experiments.accelerator.device import describe

        platform = describe()["platform"]
    options.out.mkdir(parents=True, exist_ok=True)
    xml = options.out / "tests.xml"
    tests = f"tests/device/{options.file}"
    command = ["-m", "pytest", tests, "-n0", "-q", "-p", "no:cacheprovider", f"--junitxml={xml}"]
    subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | {"JAXFAST_TEST_PLATFORM": platform})
    result = counted(xml) | {"platform": platform}
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(result["failed"]) or not result["passed"])


def counted(xml: Path) -> dict:
    """{"passed", "failed", "skipped", "seconds", "failures": {test: first line}} of pytest's JUnit file."""
    cases = list(ElementTree.parse(xml).getroot().iter("testcase"))
    wrong = {"failure", "error"}
    failures = {
        case.get("name", ""): (child.get("message") or "").splitlines()[:1]
        for case in cases
        for child in case
        if child.tag in wrong
    }
    skipped = sum(child.tag == "skipped" for case in cases for child in case)
    return {
        "passed": len(cases) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "seconds": sum(float(case.get("time", 0)) for case in cases),
        "failures": {name: "".join(line) for name, line in failures.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
