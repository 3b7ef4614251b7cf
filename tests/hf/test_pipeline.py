"""transformers' text-generation pipeline with a heedful model."""

import pytest
import torch
from small_hf import MECHANISMS, byte_tokenizer, model_of
from transformers import pipeline

mechanisms = pytest.mark.parametrize("attention", MECHANISMS.values(), ids=MECHANISMS)
PROMPTS = ["Licensed under", "the", "You may obtain a copy of"]
GREEDY = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}


def generator_of(model, tokenizer):
    return pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")


def tokenizer_and_model(attention):
    tokenizer = byte_tokenizer()
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return tokenizer, model_of(attention, scale=0.3, vocab_size=len(tokenizer), **ends)


@mechanisms
def test_a_batch_with_left_padding_continues_as_single_prompts_do(attention):
    tokenizer, model = tokenizer_and_model(attention)
    generate = generator_of(model, tokenizer)
    together = [answer[0]["generated_text"] for answer in generate(PROMPTS, batch_size=3, **GREEDY)]
    alone = [generate(prompt, **GREEDY)[0]["generated_text"] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) == 3


@mechanisms
def test_the_pipeline_continues_as_the_native_decoder_does(attention):
    tokenizer, model = tokenizer_and_model(attention)
    answer = generator_of(model, tokenizer)(PROMPTS[0], **GREEDY)[0]["generated_text"]
    tokens = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    native = model.to_decoder().generate(tokens, max_new_tokens=12, temperature=0.0)
    new = native[0, tokens.shape[1] :].tolist()
    if tokenizer.eos_token_id in new:
        new = new[: new.index(tokenizer.eos_token_id)]
    assert answer == tokenizer.decode(new, skip_special_tokens=True)


def test_the_pipeline_loads_model_and_tokenizer_from_a_folder(tmp_path):
    tokenizer, model = tokenizer_and_model("boosted+nonlinear-query")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = pipeline("text-generation", model=str(tmp_path), device="cpu")
    made = generator_of(model, tokenizer)
    assert loaded(PROMPTS[2], **GREEDY) == made(PROMPTS[2], **GREEDY)
