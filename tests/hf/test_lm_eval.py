"""lm-eval scores heedful models as its own, and its figures are those computed by hand from the native decoder.

The tasks, their data and the tokenizer lie in the test's own folder; a test that opens a connection fails.
"""

import json
import socket

import datasets
import huggingface_hub
import pytest
import torch
from small_hf import KERNELS, LICENSE, byte_tokenizer, model_of

CHOICES_TASK = """\
task: local_choices
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""
LAST_WORD_TASK = """\
task: local_last_word
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: loglikelihood
test_split: train
doc_to_text: "{{{{text.rsplit(' ', 1)[0]}}}}"
doc_to_target: "{{{{' ' + text.rsplit(' ', 1)[1]}}}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
WORDS = LICENSE.read_text(encoding="utf-8").split()
QUESTIONS = [
    {
        "question": " ".join(WORDS[index : index + 6]),
        "choices": [WORDS[index + 6], WORDS[index + 70], " ".join(WORDS[index + 90 : index + 92])],
        "answer": index % 3,
    }
    for index in range(0, 240, 20)
]
SENTENCES = [{"text": " ".join(WORDS[index : index + 7])} for index in range(300, 400, 10)]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Refuse every connection, and tell the libraries not to try."""

    def refuse(*arguments, **_):
        raise AssertionError(f"a test of lm-eval opens a connection: {arguments[1:]}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def local_tasks(folder):
    """Write data and task files, and return lm-eval's manager of these tasks alone."""
    from lm_eval.tasks import TaskManager

    for name, rows, task in (("choices", QUESTIONS, CHOICES_TASK), ("last_word", SENTENCES, LAST_WORD_TASK)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(task.format(data=data), encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(model, folder, **options):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    tasks = ["local_choices", "local_last_word"]
    scored = HFLM(pretrained=model, device="cpu", **options)
    answer = lm_eval.simple_evaluate(
        model=scored, tasks=tasks, task_manager=local_tasks(folder), bootstrap_iters=0, num_fewshot=0
    )
    return answer["results"]["local_choices"], answer["results"]["local_last_word"], answer["samples"]


def model_and_tokenizer(attention, length=128):
    tokenizer = byte_tokenizer()
    return model_of(attention, scale=0.3, vocab_size=len(tokenizer), max_position_embeddings=length), tokenizer


@torch.no_grad()
def loglikelihood(decoder, tokenizer, context, continuation):
    """ln p(continuation | context), and whether each of its tokens is the likeliest."""
    start, end = tokenizer(context)["input_ids"], tokenizer(continuation)["input_ids"]
    logits = decoder(torch.tensor([start + end])[:, :-1])[0][0, len(start) - 1 :].log_softmax(-1)
    target = torch.tensor(end)
    return float(logits.gather(-1, target[:, None]).sum()), bool((logits.argmax(-1) == target).all())


def by_hand(model, tokenizer):
    """What the two tasks should report."""
    decoder = model.to_decoder()
    right = right_by_length = 0
    for row in QUESTIONS:
        scores = [loglikelihood(decoder, tokenizer, row["question"], f" {choice}")[0] for choice in row["choices"]]
        by_length = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        right += max(range(3), key=scores.__getitem__) == row["answer"]
        right_by_length += max(range(3), key=by_length.__getitem__) == row["answer"]
    last = []
    for row in SENTENCES:
        context, word = row["text"].rsplit(" ", 1)
        last.append(loglikelihood(decoder, tokenizer, context, f" {word}"))
    mean = sum(score for score, _ in last) / len(last)
    return {
        "acc": right / len(QUESTIONS),
        "acc_norm": right_by_length / len(QUESTIONS),
        "perplexity": float(torch.tensor(-mean, dtype=torch.float64).exp()),
        "last_acc": sum(greedy for _, greedy in last) / len(last),
        "scores": [score for score, _ in last],
    }


def assert_equal(results, expected):
    choices, last_word, samples = results
    assert choices["acc,none"] == pytest.approx(expected["acc"])
    assert choices["acc_norm,none"] == pytest.approx(expected["acc_norm"])
    assert last_word["perplexity,none"] == pytest.approx(expected["perplexity"], rel=1e-4)
    assert last_word["acc,none"] == pytest.approx(expected["last_acc"])
    scores = [sample["filtered_resps"][0][0] for sample in samples["local_last_word"]]
    assert [float(score) for score in scores] == pytest.approx(expected["scores"], rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "attention",
    ["standard", KERNELS, "boosted+nonlinear-query", "differential"],
    ids=["standard", "multi-token", "boosted+nonlinear-query", "differential"],
)
def test_a_model_object_gets_the_figures_of_the_native_decoder(attention, batch_size, tmp_path):
    model, tokenizer = model_and_tokenizer(attention)
    results = evaluate(model, tmp_path, tokenizer=tokenizer, batch_size=batch_size)
    assert_equal(results, by_hand(model, tokenizer))


def test_a_saved_folder_gets_the_figures_of_the_native_decoder(tmp_path):
    model, tokenizer = model_and_tokenizer(KERNELS)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    results = evaluate(str(tmp_path / "model"), tmp_path, batch_size=2)
    assert_equal(results, by_hand(model, tokenizer))


def test_a_text_longer_than_the_model_is_scored_in_rolling_windows(tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = model_and_tokenizer(KERNELS, length=64)
    text = " ".join(WORDS[:40])
    tokens = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    assert len(tokens) > 3 * model.config.max_position_embeddings
    scored = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1)
    assert scored.max_length == 64
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (score,) = scored.loglikelihood_rolling([request], disable_tqdm=True)
    assert score == pytest.approx(rolling_by_hand(model.to_decoder(), tokens, 64), rel=1e-4)


@torch.no_grad()
def rolling_by_hand(decoder, tokens, length):
    """The sum over windows of `length` tokens to be predicted, the last one moved back so that it is full."""
    total, count = 0.0, len(tokens) - 1
    for start in range(0, count, length):
        end = min(start + length, count)
        first = max(0, end - length)
        logits = decoder(torch.tensor([tokens[first:end]]))[0][0].log_softmax(-1)
        scores = logits.gather(-1, torch.tensor(tokens[first + 1 : end + 1])[:, None])
        total += float(scores[start - first :].sum())
    return total
