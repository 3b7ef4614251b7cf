"""The battery: every cell of the support table is true, and every missing cell is really missing."""

import checks
import pytest

from heedful.support import FEATURES, PART_COMBINATIONS, cells, mechanisms

ALL = list(cells())
CHECKS = {feature: getattr(checks, feature.replace("-", "_")) for feature in FEATURES}


def name(cell):
    return f"{cell.feature}-{cell.mechanism}-{cell.backend}"


@pytest.mark.parametrize("cell", [cell for cell in ALL if cell.reason is None], ids=name)
def test_supported(cell):
    CHECKS[cell.feature](cell.mechanism, cell.backend)


@pytest.mark.parametrize("cell", [cell for cell in ALL if cell.reason is not None], ids=name)
def test_unsupported_cells_are_refused_or_false(cell):
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        CHECKS[cell.feature](cell.mechanism, cell.backend)


@pytest.mark.parametrize("mechanism", ["multi-token", "multi-token-v1", "talking-heads"])
def test_the_map_changing_parts_start_as_the_identity(mechanism):
    checks.identity_start_without_head_output(mechanism)


def test_every_preset_and_every_combination_of_parts_is_in_the_table():
    from heedful.nn import PRESETS

    named = {cell.mechanism for cell in ALL}
    assert set(PRESETS) | set(mechanisms()) | set(PART_COMBINATIONS) == named
    assert len(PART_COMBINATIONS) == 15
