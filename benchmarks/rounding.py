"""How much of what was learned is left when weights that were trained in float32 are stored in bfloat16.

    python -m benchmarks.rounding [--updates 60]

The demo's base model, stored in bfloat16, is trained in float32 towards the right answers at small learning rates. What
it learned is the rise of the mean probability that it gives the right answer to 2,000 additions, read off and not
sampled; what is left is the rise of the same model with its weights rounded, as a share.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import report
from workers import demo
from workers.modeling import rounding

SETTINGS = ((1e-6, 0), (1e-5, 8), (1e-5, 0), (1e-4, 8))
"""Learning rates and ranks; the first two are the defaults of a job."""
ROWS, BATCH = 2000, 64
Rounding = Callable[[Tensor, str], Tensor]


def nearest(weight: Tensor, name: str) -> Tensor:
    return weight.to(torch.bfloat16)


def stochastic(weight: Tensor, name: str) -> Tensor:
    return rounding.stochastically(weight, torch.bfloat16, name)


def diffused(weight: Tensor, name: str) -> Tensor:
    """To the nearest, each weight's error added to the next one of its row."""
    rounded, error = torch.empty(weight.shape, dtype=torch.bfloat16), torch.zeros(weight.shape[:-1])
    for column in range(weight.shape[-1]):
        exact = weight[..., column] + error
        rounded[..., column] = exact.to(torch.bfloat16)
        error = exact - rounded[..., column].float()
    return rounded


ROUNDINGS: dict[str, Rounding] = {"nearest": nearest, "error diffusion": diffused, "stochastic": stochastic}


def right_answers(tokenizer: object, number: int, generator: torch.Generator) -> Tensor:
    return demo.write_page(tokenizer, number, 1.0, generator)  # type: ignore[arg-type]


def probability(model: nn.Module, text: Tensor, padding: int) -> Tensor:
    """The mean probability of the answers in ``text`` ``[B, T]``."""
    targets = text[:, demo.PROMPT :]
    log_probs = model(text[:, :-1]).logits[:, demo.PROMPT - 1 :].log_softmax(-1)
    told = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    mean: Tensor = (told * (targets != padding)).sum(-1).exp().mean()
    return mean


def train(base: nn.Module, rate: float, rank: int, updates: int, tokenizer: object, padding: int) -> nn.Module:
    model = copy.deepcopy(base)
    if rank:
        torch.manual_seed(0)
        config = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear")
        model = get_peft_model(model, config)  # type: ignore[arg-type]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        probability(model, right_answers(tokenizer, BATCH, generator), padding).neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.merge_and_unload() if rank else model  # type: ignore[operator,no-any-return]


@torch.no_grad()
def rounded(model: nn.Module, how: Rounding, base: nn.Module) -> tuple[nn.Module, float]:
    """A copy with its weights rounded, and the share of them that are then the base model's."""
    copied, theirs = copy.deepcopy(model), dict(base.named_parameters())
    same = count = 0
    for name, parameter in copied.named_parameters():
        parameter.copy_(how(parameter, name))
        same, count = same + int((parameter == theirs[name]).sum()), count + parameter.numel()
    return copied, same / count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--updates", type=int, default=60)
    updates = parser.parse_args().updates
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base"
        demo.build(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float().eval()
    padding = tokenizer.pad_token_id
    held_out = right_answers(tokenizer, ROWS, torch.Generator().manual_seed(99))

    def success(model: nn.Module) -> float:
        with torch.no_grad():
            return float(probability(model, held_out, padding))

    before, rows = success(base), []
    for rate, rank in SETTINGS:
        model = train(base, rate, rank, updates, tokenizer, padding)
        after = success(model)
        for name, how in ROUNDINGS.items():
            copied, unchanged = rounded(model, how, base)
            left = (success(copied) - before) / (after - before)
            kind = f"LoRA {rank}" if rank else "all"
            rows.append((f"{rate:g}", kind, f"{before:.4f} → {after:.4f}", name, f"{left:.0%}", f"{unchanged:.0%}"))
    header = ["learning rate", "trained", "right in float32", "rounding", "of that left", "weights unchanged"]
    intro = (
        f"`python -m benchmarks.rounding`: the demo's base model in bfloat16, {updates} updates. {report.machine()}."
    )
    body = f"{intro}\n\n{report.table(header, rows)}"
    report.write_section("rounding", "What 16 bits keep of what was learned", body)


if __name__ == "__main__":
    main()
