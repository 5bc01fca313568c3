"""`minipeft finetune`: teach a model a task from a file of examples, and keep the adapter."""
import contextlib
import hashlib
import importlib
import os
import shlex
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..files import short, write_json
from ..gpt import GPT
from ..llm import base, chat
from ..llm.finetune import Run, RunRecipe, Schedule, faster_dtype, finetune, report
from ..llm.run_files import CURVES, REPORT, RUN, claimed, draw_curves, read_settings
from ..llm.tokenizer import FolderTokenizer
from ..recipes import RECIPES
from ..train import place
from . import UsageError, check_output, seed

EXAMPLE = ("python -m minipeft finetune --data data/tool_calls/train.jsonl --method lora "
           "--out runs/tools")

DEFAULTS = {"model": base.SMOLLM2, "method": "lora", "size": None, "lr": None, "steps": 110,
            "batch_size": 8, "micro_batch": None, "every": 20, "patience": 5, "validation": None,
            "max_length": 512, "dtype": "auto", "recompute": False, "seed": 0}
N_VALIDATION = 48


def arguments(parser) -> None:
    def add(name, help, **how):
        default = DEFAULTS.get(name[2:].replace("-", "_"))
        parser.add_argument(name, help=help + (f" (default: {default})" if default else ""), **how)

    add("--out", "folder of the run: new or empty", type=Path, required=True)
    add("--data", 'JSON lines: {"prompt", "completion"} or {"messages"}', type=Path)
    parser.add_argument("--resume", action="store_true",
                        help="continue the run in --out, with its settings, at its checkpoint")
    add("--model", f"the model: {base.WANTED}; with --resume, where it lies now", type=named)
    add("--method", "what is trained", choices=list(RECIPES))
    add("--size", "rank, virtual tokens or bottleneck (default: the method's)", type=int)
    add("--lr", "peak learning rate (default: the method's)", type=float)
    add("--steps", "AdamW steps", type=int)
    add("--batch-size", "examples a step", type=int)
    add("--micro-batch", "examples a forward pass (default: all of a step); fewer, less memory",
        type=int)
    add("--every", "steps between two validations and checkpoints", type=int)
    add("--patience", "validations without a better loss, then the run ends", type=int)
    add("--validation", f"JSON lines (default: {N_VALIDATION} of the data, at most a tenth)",
        type=Path)
    add("--max-length", "longer examples are left out, in tokens", type=int)
    add("--dtype", "of the frozen weights; auto: what is faster here, timed",
        choices=["auto", "float32", "bfloat16"])
    add("--recompute", "gradient checkpointing: less memory, more time",
        action="store_true", default=None)
    add("--seed", "of the adapter and the order of the data", type=seed)


def named(model: str) -> str:
    """The type of --model: SmolLM2's name, or a path that stays right in another folder."""
    return model if model == base.SMOLLM2 else str(Path(model).absolute())


def settings_of(args) -> dict:
    """Everything that decides the run, as run.json keeps it."""
    given = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    if args.resume:
        moved = {name: given.pop(name) for name in ("model",) if name in given}
        if given or args.data:
            raise UsageError(f"--resume continues with the settings in {args.out / RUN}; "
                             f"leave out {', '.join([*given] + ['data'] * bool(args.data))}")
        return checked(read_settings(args.out), args.out / RUN) | moved
    if args.data is None:
        raise UsageError("--data is wanted: a file of JSON lines, for example "
                         "data/tool_calls/train.jsonl")
    new = {**DEFAULTS, **given}
    usual = RECIPES[new["method"]]
    recipe = {"method": new["method"],
              "size": usual.llm_size if new["size"] is None else new["size"],
              "lr": usual.llm_lr if new["lr"] is None else new["lr"],
              "dtype": new["dtype"], "recompute": new["recompute"], "seed": new["seed"]}
    schedule = {"steps": new["steps"], "batch_size": new["batch_size"],
                "micro_batch": (new["batch_size"] if new["micro_batch"] is None
                                else new["micro_batch"]), "every": new["every"],
                "patience": new["patience"]}
    data = {"training": str(args.data.absolute()), "max_length": new["max_length"],
            "validation": str(new["validation"].absolute()) if new["validation"] else None}
    return {"model": new["model"], "data": data, "recipe": recipe, "schedule": schedule}


def checked(settings: dict, path: Path) -> dict:
    """ValueError, which names the file, for a value in it that no run can have."""
    model, digest = settings["model"], settings.get("model_sha256")
    if (model != base.SMOLLM2 and not Path(model).is_absolute()) or "\0" in model or (
            not isinstance(digest, str if model != base.SMOLLM2 else type(None))):
        raise ValueError(f"{path}: model must be {base.SMOLLM2}, or the path of a model and its "
                         f"model_sha256, got {short(model)} and {short(digest)}; restore it")
    try:
        RunRecipe(**settings["recipe"])
        Schedule(**settings["schedule"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; restore it") from None
    return settings


def encoded(messages: chat.Messages, tokenizer: FolderTokenizer, where: str) -> chat.Example:
    """Token ids and labels; ValueError, which says `where`, for a chat that the model has not."""
    try:
        return chat.encode_by_template(messages, tokenizer.chat_text,
                                       lambda text: tokenizer.encode(text).ids, tokenizer.end_ids)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_data(settings: dict, tokenizer: FolderTokenizer) -> tuple[list, list, int]:
    """(training, validation, how many examples of both were left out as too long)."""
    data, seed = settings["data"], settings["recipe"]["seed"]

    def read(path):
        conversations = chat.read_jsonl(path, tokenizer.control_words)
        return [encoded(messages, tokenizer, f"{path}, conversation {number}")
                for number, messages in enumerate(conversations, start=1)]

    examples = read(data["training"])
    training = chat.fitting(examples, data["max_length"])
    left_out = len(examples) - len(training)
    if data["validation"]:
        examples = read(data["validation"])
        validation = chat.fitting(examples, data["max_length"])
        return training, validation, left_out + len(examples) - len(validation)
    return *chat.split(training, N_VALIDATION, seed), left_out


def check_fit(model: GPT, recipe: RunRecipe, examples: list) -> None:
    """ValueError, before the first step, unless the model has a position for every token. (Of more
    virtual tokens than positions the adapter itself complains.)"""
    config = RECIPES[recipe.method].config
    virtual = 0 if config is None else getattr(config(recipe.size), "num_virtual_tokens", 0)
    room = model.config.max_position_embeddings - virtual
    longest = max((len(ids) for ids, _ in examples), default=0)
    if 0 < room < longest:
        raise ValueError(f"the model has {room} positions for an example ({virtual} more are taken "
                         f"by virtual tokens), and the longest has {longest} tokens; --max-length "
                         f"{room} leaves such examples out")


def check_same_model(settings: dict, args) -> None:
    """Note the model's fingerprint, or on --resume compare it."""
    if args.resume:
        base.check_same(settings["model"], settings.get("model_sha256"), str(args.out))
    elif settings["model"] != base.SMOLLM2:
        settings["model_sha256"] = base.fingerprint(settings["model"])


def check_same_data(settings: dict) -> None:
    """Note the data's sha256, or on --resume compare it."""
    data = settings["data"]
    for name in ("training", "validation"):
        if data[name]:
            digest = hashlib.sha256(Path(data[name]).read_bytes()).hexdigest()
            if data.setdefault(name + "_sha256", digest) != digest:
                raise ValueError(f"{data[name]} has changed since the run began; restore it, or "
                                 f"begin a new run in another folder")


def start_processes() -> torch.device:
    """Under torchrun, join the other processes; the device this one works on."""
    cuda, local = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", 0))
    if "WORLD_SIZE" in os.environ:
        # AdamW imports this; imported later, its default arguments keep the group and its threads
        # alive beyond destroy_process_group, and now and then they abort the process at its end
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(local)
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def own_folder(args) -> contextlib.AbstractContextManager:
    """The folder of the run, claimed by the process that writes."""
    if place()[0] > 0:
        return contextlib.nullcontext()
    check_output(args.out)
    return claimed(args.out, args.resume)


def prepare(args, settings: dict, device: torch.device) -> tuple[Run, list, list]:
    """Data, model and run, ready for the next step; the settings are written when all is well."""
    recipe, usual = settings["recipe"], RECIPES[settings["recipe"]["method"]]
    if recipe["dtype"] == "auto":
        every_weight = usual.config is None
        recipe["dtype"] = "float32" if every_weight else faster_dtype(
            base.read_config(settings["model"]), device)
    recipe = RunRecipe(**recipe)
    # 4 bits are made of float32, and the rest is rounded to the recipe's dtype after that
    dtype = "float32" if usual.four_bit else recipe.dtype
    model, tokenizer = base.load(settings["model"], getattr(torch, dtype), usual.four_bit)
    check_same_model(settings, args)
    training, validation, left_out = read_data(settings, tokenizer)
    check_same_data(settings)
    check_fit(model, recipe, training + validation)
    model.to(device, getattr(torch, recipe.dtype))     # the card sees no float32 that is rounded
    run = Run(recipe.adapt(model), recipe, Schedule(**settings["schedule"]), args.out)
    settings["data"]["left_out"] = left_out
    settings["data"]["examples"] = [len(training), len(validation)]
    if args.resume:
        run.restore()
    elif place()[0] == 0:
        write_json(args.out / RUN, settings)
    return run, training, validation


def train(run: Run, training: list, validation: list) -> None:
    """Take the steps, and show them on stderr."""
    with tqdm(total=run.schedule.steps, initial=run.done, unit="step", file=sys.stderr,
              dynamic_ncols=True, disable=place()[0] > 0) as bar:
        for history in finetune(run, training, validation):
            speed = history["tokens"][-1] / history["seconds"][-1]
            shown = f"loss {history['loss'][-1]:.3f}, {speed:.0f} tokens/s"
            if history["validation"]:
                last = history["validation"][-1]
                shown += f", validation {last['loss']:.3f} ({last['exact_match']:.0%} exact)"
            bar.set_postfix_str(shown, refresh=False)
            bar.update()


def run(args) -> None:
    settings, device = settings_of(args), start_processes()
    with own_folder(args):
        job, training, validation = prepare(args, settings, device)
        try:
            train(job, training, validation)
        except KeyboardInterrupt:
            print(f"\n{job.kept()}; it goes on with: python -m minipeft finetune --resume --out "
                  f"{shlex.quote(str(args.out))}", file=sys.stderr)
            raise
        if place()[0] == 0:
            summary = report(job, settings)
            write_json(args.out / REPORT, summary)
            draw_curves(job.history, args.out / CURVES)
            show(summary, args.out)
    if dist.is_initialized():
        dist.destroy_process_group()


def show(summary: dict, out: Path) -> None:
    data, best, sent = (summary[key] for key in ("settings", "best", "gradient_bytes_per_step"))
    data = data["data"]
    print(f"examples      {data['examples'][0]} training, {data['examples'][1]} validation, "
          f"{data['left_out']} left out (longer than {data['max_length']} tokens)")
    print(f"trained       {summary['trainable_parameters']:,} parameters, "
          f"{summary['steps']} steps, {summary['seconds_per_step']:.2f} s a step, "
          f"{summary['tokens_per_second']:.0f} tokens/s, {summary['settings']['recipe']['dtype']}")
    print(f"validation    loss {best['loss']:.4f}, exact match {best['exact_match']:.1%}, "
          f"at step {best['step']}" + (" (stopped early)" if summary["stopped_early"] else ""))
    print(f"gradients     {sent['this']:,} bytes a step to reduce over {summary['processes']} "
          f"process(es); full fine-tuning: {sent['full']:,}")
    print(f"written       {out}")
