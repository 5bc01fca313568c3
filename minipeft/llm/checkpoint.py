"""Any model of the Llama family from a HuggingFace folder, one tensor at a time.

    model, tokenizer = load("Qwen2.5-0.5B-Instruct")             # a GPT in float32
    model, tokenizer = load("Llama-3.2-1B", torch.bfloat16, four_bit=True)

    config.json                     sizes and family: hf_config.read
    model.safetensors               the tensors, under the names that GPT has; or several such files
    model.safetensors.index.json    and which tensor lies in which of them
    tokenizer.json ...              tokenizer.read_tokenizer

A tensor is mapped from its file, copied in the wanted dtype, for `four_bit` quantized, and let go
before the next: beside the model as it will be, one weight is in memory. Names, shapes and dtypes
are compared with the config before the first is read.
"""
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapter import replace_modules
from ..adapter_file import check_shapes
from ..files import opened_tensors, plain, read_json, short, write_json
from ..gpt import GPT, GPTConfig
from ..nf4 import NF4Linear
from . import hf_config
from .tokenizer import FolderTokenizer, read_tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
FLOATS = ("F64", "F32", "F16", "BF16")
# of old conversions of Llama: what rope_table computes
COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DO = "fetch the folder again"


def load(folder: Path | str, dtype: torch.dtype = torch.float32,
         four_bit: bool = False) -> tuple[GPT, FolderTokenizer]:
    """The model, in evaluation mode, and its tokenizer; nothing is downloaded.

    four_bit: every linear layer but the head in NF4, as quantize_model(model) would leave it.
    ValueError or FileNotFoundError, which name the file, for a folder that is incomplete, damaged,
    or another model than GPT computes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"a model is a folder with {CONFIG}, {WEIGHTS} and tokenizer.json,"
                                 f" got {folder}, which is none")
    config = read_config(folder)
    shards = find_shards(folder)
    model = empty_model(config, shards, folder)
    tokenizer = read_tokenizer(folder, config, read_json(folder / CONFIG, DO))
    for name, tensor in tensors(shards):
        if name == HEAD and config.tie_word_embeddings:
            check_tied(tensor, model, shards)
        else:
            put(model, name, tensor.to(dtype, copy=True), four_bit, shards[name])
    model.tie_weights()
    return model.eval(), tokenizer


def write_transformers_files(model: GPT, tokenizer: FolderTokenizer, folder: Path) -> None:
    """What `transformers` and `load` need beside model.safetensors: config.json of the model as it
    is now, and the tokenizer's files as they were read."""
    source = read_json(tokenizer.folder / CONFIG, DO)
    ids = {key: source[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")
           if key in source}
    dtype = str(model.model.norm.weight.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, {**hf_config.entries_of(model.config),
                                 "tie_word_embeddings": model.tied, **ids, "dtype": dtype})
    tokenizer.copy_files(folder)


def read_config(folder: Path) -> GPTConfig:
    """ValueError for what hf_config.read refuses, and for a window that ends within the context."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}; {DO}. (A run's folder is an "
                                f"adapter: generate takes it so, merge makes a model of it)")
    found = hf_config.read(folder / CONFIG)
    longest = found.config.max_position_embeddings
    if found.window is not None and found.window < longest:
        raise ValueError(f"{folder / CONFIG}: sliding_window must be null, or not below "
                         f"max_position_embeddings {longest}, got {found.window}; minipeft's GPT "
                         f"sees all tokens before one. With max_position_embeddings "
                         f"{found.window} it is the same model for shorter texts")
    return found.config


def find_shards(folder: Path) -> dict[str, Path]:
    """The file of each tensor. ValueError if index and files do not name the same."""
    index, single = folder / INDEX, folder / WEIGHTS
    others = sorted(path for path in folder.glob("model-*.safetensors")
                    if SHARD.fullmatch(path.name))
    if not index.exists():
        if others or not single.exists():
            wanted = INDEX if others else f"{WEIGHTS}, and no {INDEX}"
            raise FileNotFoundError(f"{folder} holds no {wanted}; {DO} (pytorch_model.bin and other"
                                    f" formats are not read)")
        return dict.fromkeys(names_in(single), single)
    shards = read_index(index)
    unnamed = set(others) - set(shards.values())
    if unnamed:
        raise ValueError(f"{index} does not name {min(unnamed).name}, which lies beside it; {DO}")
    for path in sorted(set(shards.values())):
        inside, named = set(names_in(path)), {name for name in shards if shards[name] == path}
        for name in sorted(inside ^ named)[:1]:
            place = ("holds", "does not name") if name in inside else ("does not hold", "names")
            raise ValueError(f"{path} {place[0]} {plain(name)}, which {INDEX} {place[1]} there; "
                             f"{DO}")
    return shards


def read_index(index: Path) -> dict[str, Path]:
    """weight_map, with files that lie beside it."""
    shards = {}
    for name, file in read_json(index, DO, keys={"weight_map": dict})["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(
                ".safetensors"):
            raise ValueError(f"{index}: weight_map must name safetensors files beside it, got "
                             f"{short(file)} for {plain(name)}; {DO}")
        shards[name] = index.parent / file
    single = index.parent / WEIGHTS
    if single.exists() and set(shards.values()) - {single}:
        raise ValueError(f"{index.parent} holds {WEIGHTS} and {INDEX}, which names other files; "
                         f"delete the one that is not the model's")
    absent = sorted(path.name for path in set(shards.values()) if not path.is_file())
    if absent:
        raise FileNotFoundError(f"{index} names {', '.join(map(plain, absent[:3]))}"
                                f"{', ...' if absent[3:] else ''}, not there; {DO}")
    if not shards:
        raise ValueError(f"{index} names no tensor; {DO}")
    return shards


def names_in(path: Path) -> list[str]:
    with opened_tensors(path, DO) as file:
        return list(file.keys())


def empty_model(config: GPTConfig, shards: dict[str, Path], folder: Path) -> GPT:
    """The model on the meta device. ValueError, which names the tensor, unless `shards`, less what
    is not needed, hold what it has."""
    for name in [name for name in shards if COMPUTED.fullmatch(name)]:
        del shards[name]
    if config.num_hidden_layers > len(shards):              # before as many layers are built
        raise ValueError(f"{folder / CONFIG}: num_hidden_layers is {config.num_hidden_layers}, and "
                         f"the files hold {len(shards)} tensors; {DO}")
    with torch.device("meta"):
        model = GPT(config)
    wanted = model.state_dict()
    if config.tie_word_embeddings and HEAD not in shards:
        del wanted[HEAD]
    missing = sorted(wanted.keys() - shards.keys())
    if missing:
        names = INDEX if (folder / INDEX).exists() else WEIGHTS
        raise ValueError(f"{folder / names} lacks {len(missing)} tensors of the model in {CONFIG}, "
                         f"such as {missing[0]}; {DO}")
    for path in sorted(set(shards.values())):
        found = shapes_in(path, shards)
        check_shapes({name: wanted[name] for name in found if name in wanted}, found, path)
    return model


def shapes_in(path: Path, shards: Mapping[str, Path]) -> dict[str, Tensor]:
    """Tensors on the meta device for those of a file that count; ValueError for another dtype."""
    found = {}
    with opened_tensors(path, DO) as file:
        for name in (name for name in file.keys() if name in shards):
            part = file.get_slice(name)
            if part.get_dtype() not in FLOATS:
                raise ValueError(f"{path}: {plain(name)} must be of {', '.join(FLOATS)}, got "
                                 f"{part.get_dtype()}; a quantized model is not read, take the one "
                                 f"that it was made from")
            found[name] = torch.empty(part.get_shape(), device="meta")
    return found


def tensors(shards: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that counts, as its file has it, mapped and not copied; the head comes last."""
    for path in sorted(set(shards.values())):
        with opened_tensors(path, DO) as file:
            for name in file.keys():
                if name in shards and name != HEAD:
                    yield name, file.get_tensor(name)
    if HEAD in shards:
        with opened_tensors(shards[HEAD], DO) as file:
            yield HEAD, file.get_tensor(HEAD)


def put(model: GPT, name: str, tensor: Tensor, four_bit: bool, path: Path) -> None:
    """Let a tensor stand under its name, a layer's weight for `four_bit` as its codes."""
    place, _, kind = name.rpartition(".")
    module = model.get_submodule(place)
    old = getattr(module, kind)
    setattr(module, kind, nn.Parameter(tensor, requires_grad=old.requires_grad))
    if four_bit and type(module) is nn.Linear and kind == "weight" and name != HEAD:
        try:
            replace_modules(model, {place: NF4Linear.from_linear(module)})
        except ValueError as error:
            raise ValueError(f"{path}: {plain(name)} cannot be quantized: {error}") from None


def check_tied(head: Tensor, model: GPT, shards: Mapping[str, Path]) -> None:
    """ValueError unless a head that the config ties to the embedding is equal to it."""
    embedding = model.model.embed_tokens.weight
    if embedding.is_meta or not torch.equal(head.to(embedding.dtype), embedding):
        raise ValueError(f"{shards[HEAD]}: {HEAD} differs from {EMBEDDING}, and {CONFIG} says "
                         f"tie_word_embeddings; make it false there to keep both")
