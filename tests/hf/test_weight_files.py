"""A model that does not fit into memory is refused before anything is read."""

import pytest
import torch
from tiny_hf import model_of
from transformers import AutoModelForCausalLM

from heedful.models import weight_files as memory


@pytest.fixture
def folder(tmp_path):
    model_of().save_pretrained(tmp_path)
    return tmp_path


def test_the_bytes_of_a_checkpoint_are_those_of_its_tensors(folder):
    parameters = sum(parameter.numel() for parameter in model_of().parameters())
    assert memory.weight_bytes(folder) == 4 * parameters
    assert memory.weight_bytes(folder, "bfloat16") == memory.weight_bytes(folder, torch.float16) == 2 * parameters
    model_of().to(torch.bfloat16).save_pretrained(folder)
    assert memory.weight_bytes(folder, "auto") == 2 * parameters
    assert memory.weight_bytes(folder.parent / "nothing") == 0


def test_files_beside_the_checkpoint_do_not_count(folder):
    expected = memory.weight_bytes(folder)
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "stray.safetensors").write_bytes(b"damaged")
    assert memory.weight_bytes(folder) == expected
    model_of().save_pretrained(folder / "shards", max_shard_size="20KB")
    assert memory.weight_bytes(folder / "shards") == expected


def test_work_on_several_copies_needs_as_much(folder, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * memory.weight_bytes(folder))
    memory.require_memory(folder, copies=2)
    with pytest.raises(ValueError, match=r"GB while they are changed \(4 times their size\), but"):
        memory.require_memory(folder, copies=4)


def test_what_does_not_fit_is_refused_with_both_sizes(folder, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 90_000)
    with pytest.raises(ValueError, match=r"weights take 0\.0 GB, but 0\.0 GB of memory are available; read them into"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    monkeypatch.setattr(memory, "available_memory", lambda: None)  # an unknown amount refuses nothing
    assert AutoModelForCausalLM.from_pretrained(folder) is not None


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory._group_memory() is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert memory._group_memory() == 400
    assert memory.available_memory() == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._group_memory() is None
    with open("/proc/meminfo", encoding="utf-8") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < memory.available_memory() <= total
