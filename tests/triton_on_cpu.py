"""Triton kernels on the CPU: the interpreter is chosen when Triton is first imported, so this module imports it.

Call `load` before anything imports Triton. The environment variable does not outlive the import, so that nothing else
in the process takes notice of it.
"""

import importlib
import os
import sys

import torch

INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def load():
    """Import Triton and the kernels, interpreted where there is no CUDA device; say whether that succeeded."""
    before = os.environ.get("TRITON_INTERPRET")
    if INTERPRETED:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        from heedful.ops.multi_token import triton_launches, triton_row_launches  # noqa: F401
        from heedful.train import cross_entropy_launches  # noqa: F401

        if INTERPRETED:
            importlib.import_module("triton.experimental.gluon")  # Triton does so later, and it reads the variable too
    finally:
        if INTERPRETED and before is None:
            del os.environ["TRITON_INTERPRET"]
    if not INTERPRETED:
        return True
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or not isinstance(triton_launches.kernels.hide_kernel, interpreter.InterpretedFunction):
        return False
    _let_loops_end_at_arguments(interpreter)
    return True


def _let_loops_end_at_arguments(interpreter):
    """Arguments are arrays of one number to the interpreter, which NumPy 2.4 no longer takes for that number."""
    patch = interpreter._patch_lang_tensor
    if getattr(patch, "takes_arrays", False):
        return

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    patched.takes_arrays = True
    interpreter._patch_lang_tensor = patched
