"""The shape annotations are true: checked at run time over every operation, one layer of each preset, and a decoder."""

import subprocess
import sys
from pathlib import Path


def test_shape_annotations_hold_for_right_calls_and_stop_wrong_ones():
    source = Path(__file__).parents[1] / "src"
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("annotated_calls.py"))],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(source), "PATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "all calls checked\n"
