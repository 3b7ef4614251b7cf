"""Train a small native model, save it as a Hugging Face folder, load it with transformers and generate.

    python examples/train_save_generate.py
    python examples/train_save_generate.py --text my-text.txt --mechanism multi-token --steps 2000 --folder my-model

Without --text the model reads the source text of Python's standard library. After a minute of training it writes words,
not sense.
"""

import tempfile
from pathlib import Path

import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer

from heedful import DecoderLM, decoder_config
from heedful.data import DataConfig, LanguageModelBatches, prepare
from heedful.hf import export_pretrained  # from this import on the Auto classes know heedful's models
from heedful.train import OptimizerConfig, ScheduleConfig, TrainConfig, evaluate_perplexity, train


def main(
    text: str = "python-stdlib",
    mechanism: str = "boosted+nonlinear-query",
    steps: int = 200,
    hidden_size: int = 128,
    num_layers: int = 4,
    context_length: int = 128,
    vocab_size: int = 1024,
    prompt: str = "def main(",
    folder: Path | None = None,
    seed: int = 1,
) -> None:
    """Train, save, load, generate.

    Args:
        text: a text file or a folder of them; "python-stdlib" is on every machine.
        mechanism: preset names, such as "multi-token" or "boosted+nonlinear-query"; `heedful info` lists them.
        steps: optimizer steps, of 16 rows each.
        hidden_size: width of the model, a multiple of 32.
        num_layers: layers of the model.
        context_length: tokens of a row.
        vocab_size: entries of the tokenizer, which is trained on the text.
        prompt: what the model continues.
        folder: where the model goes; a temporary folder if there is none.
        seed: of the initial weights and the order of the rows.
    """
    data = prepare(DataConfig(corpus=text, vocab_size=vocab_size, max_eval_tokens=20_000), report=print)
    torch.manual_seed(seed)
    model = DecoderLM(
        decoder_config(
            mechanism,
            vocab_size=data.vocab_size,
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=hidden_size // 32,
            max_positions=2 * context_length,
        )
    )

    def evaluate(model):
        score = evaluate_perplexity(
            model, data.valid, context_length=context_length, batch_size=16, end_of_text=data.tokenizer.end_of_text
        )
        return {"val/loss": score.loss}

    with tempfile.TemporaryDirectory() as temporary:
        destination = Path(temporary) / "model" if folder is None else folder
        result = train(
            model,
            LanguageModelBatches(data.train, context_length=context_length, batch_size=16, seed=seed),
            TrainConfig(
                steps=steps,
                batch_size=16,
                context_length=context_length,
                evaluate_every=steps,
                device="cpu",
                optimizer=OptimizerConfig(learning_rate=3e-3),
                schedule=ScheduleConfig(warmup_steps=steps // 10),
            ),
            Path(temporary) / "run",
            evaluate=evaluate,
            report=lambda line: None,
        )
        print(f"trained {result.steps} steps; held-out loss {evaluate(model)['val/loss']:.3f} nats per token")

        export_pretrained(model, destination, tokenizer=data.tokenizer)
        print("saved", ", ".join(sorted(path.name for path in destination.iterdir())))

        loaded = AutoModelForCausalLM.from_pretrained(destination)
        tokenizer = AutoTokenizer.from_pretrained(destination)
        tokens = tokenizer(prompt, return_tensors="pt")
        torch.manual_seed(seed)
        answer = loaded.generate(
            **tokens, max_new_tokens=context_length // 2, do_sample=True, temperature=0.8, top_p=0.9
        )
        print(tokenizer.decode(answer[0], skip_special_tokens=True))


if __name__ == "__main__":
    tyro.cli(main)
