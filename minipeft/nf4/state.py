"""What is stored beside the packed codes, under bitsandbytes' names and in its file layout."""
import json
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..files import parse_json, short
from .reference import STATE2_BLOCKSIZE

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)       # that codes are restored to
PACKED_KEY = "quant_state.bitsandbytes__nf4"
KINDS = {"absmax": (Tensor,), "quant_map": (Tensor,), "blocksize": (int,), "dtype": (str,),
         "quant_type": (str,), "shape": (list, tuple), "offset": (float, int)}    # of as_dict


def restored_as(dtype: torch.dtype) -> torch.dtype:
    """What codes are restored to on the way to any float dtype: itself, or float32."""
    return dtype if dtype in DTYPES else torch.float32


@dataclass(frozen=True, eq=False)
class QuantState:
    """All that packed codes need to become weights again; n weights in N blocks.

    Raises ValueError if the pieces disagree. As `state2`, it describes the quantized absmax: it has
    no shape of its own and is checked by the state that owns it.
    """
    absmax: Tensor                          # (N,) float32, or uint8 with double quantization
    shape: torch.Size | None                # of the weight
    code: Tensor                            # (16,) float32, sorted; state2: (256,)
    blocksize: int                          # weights that one absmax serves
    quant_type: str | None                  # the code's name: nf4, int4, fp4, e2m1 or custom
    dtype: torch.dtype                      # of the weight before quantization
    offset: Tensor | None = None            # () float32, mean of the absmax
    state2: "QuantState | None" = None

    def __post_init__(self):
        if self.shape is not None:
            object.__setattr__(self, "shape", torch.Size(self.shape))
            check_state(self)

    @property
    def nested(self) -> bool:
        """Whether absmax is itself quantized."""
        return self.state2 is not None

    def to(self, device) -> "QuantState":
        """The same state on another device."""
        pieces = {name: getattr(self, name) for name in ("absmax", "code", "offset", "state2")}
        return replace(self, **{name: piece.to(device)
                                for name, piece in pieces.items() if piece is not None})

    def as_dict(self, packed: bool = False) -> dict:
        """bitsandbytes' dictionary; packed: tensors only, the rest as JSON bytes in one of them."""
        entries = {"quant_type": self.quant_type, "absmax": self.absmax,
                   "blocksize": self.blocksize, "quant_map": self.code,
                   "dtype": dtype_name(self.dtype), "shape": tuple(self.shape)}
        if self.nested:
            entries |= {"nested_absmax": self.state2.absmax,
                        "nested_blocksize": self.state2.blocksize,
                        "nested_quant_map": self.state2.code.clone(),
                        "nested_dtype": dtype_name(self.state2.dtype),
                        "nested_offset": self.offset.item()}
        return pack(entries) if packed else entries

    @classmethod
    def from_dict(cls, entries: dict, device="cpu") -> "QuantState":
        """The inverse of as_dict, of ours and of bitsandbytes', packed or not."""
        return state_from_entries(unpack(entries)).to(device)


def check_state(state: QuantState) -> None:
    """ValueError unless every piece of the state fits the others."""
    if state.blocksize not in BLOCKSIZES:
        raise ValueError(f"blocksize must be one of {BLOCKSIZES}, got {state.blocksize}")
    if state.dtype not in DTYPES:
        raise ValueError(f"QuantState.dtype must be one of {DTYPES}, got {state.dtype}")
    n_blocks = -(-prod(state.shape) // state.blocksize)
    absmax_dtype = torch.uint8 if state.nested else torch.float32
    check_piece("absmax", state.absmax, (n_blocks,), absmax_dtype, state.absmax.device)
    check_piece("code", state.code, (16,), torch.float32, state.absmax.device)
    if (state.offset is None) != (state.state2 is None):
        raise ValueError("QuantState needs offset and state2 together (double quantization) or "
                         f"neither, got offset={state.offset}, state2={state.state2}")
    if state.nested:
        check_state2(state, n_blocks)


def check_state2(state: QuantState, n_blocks: int) -> None:
    """The same for the pieces that double quantization adds."""
    if state.state2.blocksize != STATE2_BLOCKSIZE:
        raise ValueError(f"state2.blocksize must be {STATE2_BLOCKSIZE}, "
                         f"got {state.state2.blocksize}")
    n_blocks2 = -(-n_blocks // STATE2_BLOCKSIZE)
    device = state.absmax.device
    check_piece("state2.absmax", state.state2.absmax, (n_blocks2,), torch.float32, device)
    check_piece("state2.code", state.state2.code, (256,), torch.float32, device)
    check_piece("offset", state.offset, (), torch.float32, device)


def check_piece(name: str, tensor, shape: tuple, dtype: torch.dtype, device: torch.device) -> None:
    """ValueError unless the tensor has this shape, dtype and device and is contiguous."""
    if (isinstance(tensor, Tensor) and tensor.shape == shape and tensor.dtype == dtype
            and tensor.device == device and tensor.is_contiguous()):
        return
    wanted = f"QuantState.{name} must be contiguous, {dtype}, shape {tuple(shape)}, on {device}"
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{wanted}; got {type(tensor).__name__}")
    raise ValueError(f"{wanted}; got {tensor.dtype}, shape {tuple(tensor.shape)}, on "
                     f"{tensor.device}, contiguous: {tensor.is_contiguous()}")


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def pack(entries: dict) -> dict[str, Tensor]:
    """Tensors as they are, everything else as one JSON string in a uint8 tensor."""
    if entries["quant_type"] != "nf4":
        raise ValueError("bitsandbytes' file layout names the code only by its type, so as_dict("
                         f"packed=True) is for nf4, not {entries['quant_type']!r}; packed=False")
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    rest = {key: value for key, value in entries.items() if key not in tensors}
    text = bytearray(json.dumps(rest), "utf-8")
    device = entries["absmax"].device
    return tensors | {PACKED_KEY: torch.frombuffer(text, dtype=torch.uint8).to(device)}


def unpack(entries: dict) -> dict:
    """The inverse of pack; entries that are not packed come back as they are."""
    entries = dict(entries)
    if PACKED_KEY in entries:
        packed = entries.pop(PACKED_KEY)
        if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
            raise ValueError(f"{PACKED_KEY} must be a uint8 tensor, got {short(packed)}")
        entries |= parse_json(bytes(packed.flatten().tolist()), PACKED_KEY, "save it again")
    return entries


def state_from_entries(entries: dict) -> QuantState:
    """ValueError for keys that are missing or not bitsandbytes'."""
    wanted = {"quant_type", "absmax", "blocksize", "quant_map", "dtype", "shape"}
    if any(key.startswith("nested_") for key in entries):
        wanted |= {f"nested_{name}" for name in ("absmax", "blocksize", "quant_map", "dtype",
                                                 "offset")}
    if set(entries) != wanted:
        raise ValueError(f"a QuantState dictionary needs the keys {sorted(wanted)}; "
                         f"missing {sorted(wanted - set(entries))}, "
                         f"unexpected {sorted(set(entries) - wanted)}")
    for name, value in entries.items():
        kind = KINDS[name.removeprefix("nested_")]
        if not isinstance(value, kind):
            raise ValueError(f"a QuantState's {name} must be a {kind[0].__name__}, got "
                             f"{short(value)}")
    if any(type(size) is not int or size < 0 for size in entries["shape"]):
        raise ValueError(f"a QuantState's shape must be whole numbers, got "
                         f"{short(entries['shape'])}")
    offset = state2 = None
    if "nested_absmax" in entries:
        device = entries["absmax"].device
        offset = torch.tensor(entries["nested_offset"], dtype=torch.float32, device=device)
        state2 = QuantState(entries["nested_absmax"], None, entries["nested_quant_map"],
                            entries["nested_blocksize"], None, named_dtype(entries["nested_dtype"]))
    return QuantState(entries["absmax"], torch.Size(entries["shape"]), entries["quant_map"],
                      entries["blocksize"], entries["quant_type"], named_dtype(entries["dtype"]),
                      offset, state2)


def named_dtype(name: str) -> torch.dtype:
    """ "bfloat16" -> torch.bfloat16; ValueError for what is not a weight's dtype."""
    known = {dtype_name(dtype): dtype for dtype in DTYPES}
    if name not in known:
        raise ValueError(f"dtype must be one of {sorted(known)}, got {name!r}")
    return known[name]
