"""No map ever exists as a whole, nothing but inputs is saved, and hidden blocks are not computed."""

import pytest
import torch
from multi_token_cases import draw_inputs, draw_parts, masks

from heedful.ops import AttentionMask, multi_token_attention
from heedful.ops.multi_token.lines import DescribedLines, lines_of
from heedful.ops.multi_token.parts import Reach
from heedful.ops.multi_token.tiles import rounded_width, tiles
from heedful.ops.multi_token.walk import block_sizes
from heedful.train.memory import peak_tensor_bytes

ALL = ("kq_pre", "kq_post", "head_pre", "head_post")


def float32(tensors):
    return [t.detach().float().requires_grad_() for t in tensors]


def call(length, heads=4, backend="blockwise"):
    inputs = float32(draw_inputs(length, heads=heads, batch=1, kv_heads=heads, width=16, value_width=16))
    parts = dict(zip(ALL, float32(draw_parts(ALL, heads=heads).values()), strict=True))

    def run():
        output = multi_token_attention(*inputs, **parts, backend=backend)
        return torch.autograd.grad(output.square().sum(), [*inputs, *parts.values()])

    return run, [*inputs, *parts.values()]


def test_a_training_step_never_holds_a_map_and_grows_with_the_length_not_its_square():
    heads, lengths = 4, (2048, 4096)
    peaks = []
    for length in lengths:
        run, resident = call(length, heads)
        peaks.append(peak_tensor_bytes(run, resident=resident))
    assert peaks[1] <= 2.2 * peaks[0], peaks
    assert peaks[1] < 4 * heads * lengths[1] ** 2 / 2, "less than half of one map of all heads, everything together"


def test_the_reference_needs_many_times_the_memory():
    run, resident = call(1024)
    maps, maps_resident = call(1024, backend="reference")
    assert 4 * peak_tensor_bytes(run, resident=resident) < peak_tensor_bytes(maps, resident=maps_resident)


def test_only_inputs_are_saved_for_the_backward_pass():
    inputs, parts = draw_inputs(40), draw_parts(ALL)
    mask = masks(40)["everything"]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        multi_token_attention(*inputs, **parts, mask=mask, dropout_p=0.2, backend="blockwise")
    given = {t.data_ptr() for t in (*inputs, *parts.values(), mask.key_padding, mask.document_ids)}
    others = [t for t in saved if t.data_ptr() not in given]
    assert len(saved) >= len(given)
    assert [t.shape for t in others] == [()], "the seed of the dropped weights"


def computed(mask, length, block=64, reach=None):
    """How many map entries are computed."""
    reach = Reach(5, 5, 5) if reach is None else reach
    lines = lines_of(mask, length, length, is_causal=True, gap=5)
    device = torch.device("cpu")
    return sum(t.map.rows * t.map.columns for t in tiles(lines, 0, block, reach, Reach(), device))


def test_windows_and_documents_skip_the_blocks_that_they_exclude():
    length = 4096
    whole = computed(AttentionMask(), length)
    assert 0.5 * length**2 <= whole <= 0.56 * length**2
    assert computed(AttentionMask(window=256), length) <= length * 1.15 * (256 + 64)
    ids = (torch.arange(length) // 512)[None]
    assert computed(AttentionMask(document_ids=ids), length) <= 1.35 * whole / 8
    padded = torch.arange(length)[None] < 1024
    assert computed(AttentionMask(key_padding=padded), length) <= 1.1 * whole / 16


def test_empty_lines_keep_documents_apart():
    lines = lines_of(
        AttentionMask(document_ids=torch.tensor([[0, 0, 1, 1, 1], [3, 3, 3, 3, 3]])), 5, 5, is_causal=True, gap=2
    )
    assert isinstance(lines, DescribedLines)
    assert lines.count == 7
    assert lines.line is not None
    assert lines.line.tolist() == [[0, 1, 4, 5, 6], [0, 1, 2, 3, 4]]
    assert lines.last.tolist() == [[0, 1, -1, -1, 2, 3, 4], [0, 1, 2, 3, 4, -1, -1]]
    assert lines.first[0, [0, 1, 4, 5, 6]].tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys", "expected"),
    [
        (1, 8, 1024, 1024, (128, 1)),
        (1, 8, 2048, 2048, (128, 1)),
        (1, 8, 4096, 4096, (64, 1)),
        (1, 8, 32768, 32768, (64, 1)),
        (16, 4, 128, 128, (128, 16)),
        (4, 16, 128, 128, (128, 4)),
        (64, 8, 512, 512, (64, 8)),
        (1, 8, 1, 4096, (1, 1)),
    ],
)
def test_the_rule_of_the_block_sizes(batch, heads, queries, keys, expected):
    assert block_sizes(batch, heads, queries, keys) == expected


def test_few_widths_occur_and_little_is_added():
    widths = {rounded_width(columns) for columns in range(1, 8193)}
    assert len(widths) <= 8 + 8 * 7
    assert all(
        columns <= rounded_width(columns) <= max(columns * 1.125 + 1, columns + 15) for columns in range(1, 8193)
    )
