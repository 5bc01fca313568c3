"""`minipeft generate`: ask a model, with or without what a run has taught it."""
from pathlib import Path

import torch

from ..llm import base
from ..llm.chat import check_form
from ..llm.run_files import load_base, load_trained
from . import UsageError, seed

EXAMPLE = 'python -m minipeft generate "Wake me at 7:15 am" --adapter runs/tools --compare'


def arguments(parser) -> None:
    parser.add_argument("prompt", nargs="+", help="what the user says")
    parser.add_argument("--adapter", type=Path, help="folder of a run or of an HF PEFT adapter")
    parser.add_argument("--model", help=f"{base.WANTED} (default: the run's, otherwise "
                        f"{base.SMOLLM2})")
    parser.add_argument("--compare", action="store_true", help="the base model's answer as well")
    parser.add_argument("--system", help="the system turn, if the adapter was trained under one of "
                        "its own (default: the chat template's)")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="default: 100")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, the likeliest")
    parser.add_argument("--seed", type=seed, default=0, help="of the sampling (default: 0)")


def asked(args) -> list[dict[str, str]]:
    """The conversation so far."""
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return [*system, {"role": "user", "content": " ".join(args.prompt)}]


def answer(model, tokenizer, args) -> None:
    """Print the answer to the prompt as it is made; a character waits until all its bytes are."""
    torch.manual_seed(args.seed)
    for message in asked(args):
        check_form(message, "the conversation", tokenizer.control_words)
    ids = tokenizer.encode(tokenizer.chat_text(asked(args))).ids
    new, shown = [], ""
    for token in model.stream(torch.tensor([ids]), args.max_new_tokens, args.temperature,
                              tokenizer.end_ids):
        if token.item() not in tokenizer.end_ids:          # special or not, it is no text
            new.append(token.item())
        text = tokenizer.decode(new)
        if not text.endswith("\ufffd"):
            print(text[len(shown):], end="", flush=True)
            shown = text
    print()


def run(args) -> None:
    if args.compare and not args.adapter:
        raise UsageError("--compare wants an --adapter to compare the base model with")
    if not "".join(args.prompt).strip():
        raise UsageError("the prompt is empty")
    if args.system is not None and not args.system.strip():
        raise UsageError("--system is empty; leave it out for the model's own")
    model, tokenizer = load_base(args.model, args.adapter, four_bit=not args.compare)
    if args.compare or not args.adapter:
        print("base     " if args.compare else "", end="")
        answer(model, tokenizer, args)
    if args.adapter:
        trained = load_trained(model, args.adapter)
        print("adapted  " if args.compare else "", end="")
        answer(getattr(trained, "base_model", trained), tokenizer, args)
