"""Run as a script: load exported folders in a process that has no heedful, and write down what it computes.

Arguments: a folder of exported models by name (each with tokens.pt beside it), and where to write the results. With
`--with-heedful` the installed classes are registered first.
"""

import json
import sys
import warnings
from pathlib import Path

import torch


class Refuse:
    """Nothing of heedful, and nothing that only its development needs, can be imported."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("heedful", "jaxtyping", "beartype"):
            raise ModuleNotFoundError(f"No module named {name!r}: refused here")


def main(models, results, *options):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    if "--with-heedful" in options:
        import heedful.hf  # noqa: F401
    else:
        sys.meta_path.insert(0, Refuse())
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    results = Path(results)
    found = {"transformers": transformers.__version__, "models": {}}
    for folder in sorted(Path(models).iterdir()):
        if not (folder / "config.json").is_file():
            continue
        tokens = torch.tensor(json.loads((Path(models) / "tokens.json").read_text()))
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        torch.save(compute(model, tokens), results / f"{folder.name}.pt")
        about = {"module": type(model).__module__, "file": sys.modules[type(model).__module__].__file__}
        if (folder / "tokenizer.json").is_file():  # all that a user would do, once
            tokenizer = AutoTokenizer.from_pretrained(folder)
            about["ids"] = tokenizer("hello <|endoftext|> é")["input_ids"]
            about["class"] = type(tokenizer).__name__
            model.save_pretrained(results / "saved")
            again = AutoModelForCausalLM.from_pretrained(results / "saved", trust_remote_code=True)
            torch.save(compute(again, tokens), results / "again.pt")
            torch.save(compute(model, tokens), results / "after.pt")  # two copies of the code do not meet
            torch.manual_seed(0)
            classes = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=3, pad_token_id=0, trust_remote_code=True
            )
            about["classes"] = list(classes(tokens).logits.shape)
            about["score"] = type(classes).__module__
            try:
                AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation="triton")
            except ValueError as error:
                about["triton"] = str(error)
        found["models"][folder.name] = about
    (results / "found.json").write_text(json.dumps(found))


@torch.no_grad()
def compute(model, tokens):
    """Logits of a batch, and a greedy continuation."""
    model.eval()
    new = model.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    return {"logits": model(tokens).logits, "new": new, "cut": model(tokens, logits_to_keep=1).logits}


if __name__ == "__main__":
    main(*sys.argv[1:])
