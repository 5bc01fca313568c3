"""A small GPT in the Llama dialect, with HuggingFace's module names.

    x = embed_tokens(ids)                                        (B, T, C)
    x = x + self_attn(input_layernorm(x))                        in every layer,
    x = x + mlp(post_attention_layernorm(x))                     num_hidden_layers times
    logits = lm_head(norm(x))                                    (B, T, V)

Touvron et al. 2023 (RMSNorm, SwiGLU, rotary positions); Ainslie et al. 2023 (grouped-query heads).
Letters: B batch, T tokens, P prompt or prefix slots, S = P + T keys, C width, H heads, D = C / H,
V vocabulary. The same class is the tiny GPT of the notebooks, SmolLM2-135M with its real weights,
Llama-2-7B on the meta device, and, by the last fields of its config, Llama 3, Mistral, Qwen2 and
Qwen3. It helps the adapters with two lines, marked (adapters).
"""
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LLAMA = dict(vocab_size=32000)
_LLAMA_2 = dict(vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5)
_LLAMA_3 = dict(vocab_size=128256, num_key_value_heads=8, max_position_embeddings=8192,
                rope_theta=500000.0, rms_norm_eps=1e-5)
_7B = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
_13B = dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
_33B = dict(hidden_size=6656, intermediate_size=17920, num_hidden_layers=60, num_attention_heads=52)
_65B = dict(hidden_size=8192, intermediate_size=22016, num_hidden_layers=80, num_attention_heads=64)
_70B = {**_65B, "intermediate_size": 28672, "num_key_value_heads": 8}

PRESETS = {  # from the models' own config.json files
    "tiny": dict(vocab_size=400, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                 num_attention_heads=4, max_position_embeddings=256, rope_theta=100.0),
    "smollm2-135m": dict(vocab_size=49152, hidden_size=576, intermediate_size=1536,
                         num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                         max_position_embeddings=8192, rope_theta=100000.0, rms_norm_eps=1e-5,
                         tie_word_embeddings=True),
    "llama-7b": {**_LLAMA, **_7B},
    "llama-13b": {**_LLAMA, **_13B},
    "llama-33b": {**_LLAMA, **_33B},
    "llama-65b": {**_LLAMA, **_65B},
    "llama-2-7b": {**_LLAMA_2, **_7B},
    "llama-2-13b": {**_LLAMA_2, **_13B},
    "llama-2-70b": {**_LLAMA_2, **_70B},
    "llama-3-8b": {**_LLAMA_3, **_7B, "intermediate_size": 14336},
    "llama-3-70b": {**_LLAMA_3, **_70B},
}


COLDEST = 1e-30                # temperature: a logit divided by less may leave float32's range
LARGEST_SIZE = 2**24        # of anything below: no product of two overflows where bytes are counted
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class RopeScaling:
    """Slower rotary positions, so that a long text turns no pair further than the short texts did
    on which a model was first trained:

        frequency  becomes  keep * frequency + (1 - keep) * frequency / factor

    "linear" keeps 0 of every pair (Chen et al. 2023). "llama3" (Llama 3.1) keeps 0 of a pair that
    makes low_freq_factor turns or fewer in original_max_position_embeddings tokens, 1 of one that
    makes high_freq_factor or more, and in proportion between.
    """

    rope_type: str                           # "linear" or "llama3", which reads the last three
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(f"rope_type must be linear or llama3, got {self.rope_type!r:.80}")
        check_numbers(self)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"low_freq_factor must be below high_freq_factor "
                             f"{self.high_freq_factor}, got {self.low_freq_factor}")

    def slowed(self, frequency: Tensor) -> Tensor:
        """frequency (D / 2,), in radians a token."""
        if self.rope_type == "linear":
            return frequency / self.factor
        turns = self.original_max_position_embeddings / (2 * math.pi / frequency)
        keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = keep.clamp(0, 1)
        return (1 - keep) * frequency / self.factor + keep * frequency


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT, under the names of HuggingFace's LlamaConfig. The last four fields are what
    other models of the Llama family have more; their defaults are Llama 2."""

    vocab_size: int                          # V
    hidden_size: int                         # C
    intermediate_size: int                   # width inside the MLP
    num_hidden_layers: int
    num_attention_heads: int                 # H
    num_key_value_heads: int | None = None   # fewer than H: grouped-query attention; None: H
    max_position_embeddings: int = 2048      # longest sequence, virtual tokens included
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False        # lm_head.weight is embed_tokens.weight
    head_dim: int | None = None              # D; None becomes C / H, which `replace` then keeps
    biases: tuple[str, ...] = ()             # those of PROJECTIONS that add one; Qwen2: q, k and v
    qk_norm: bool = False                    # Qwen3: each head's query and key through an RMSNorm
    rope_scaling: RopeScaling | None = None

    def __post_init__(self):
        check_numbers(self)
        if self.head_dim is None and self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(f"hidden_size must be an even multiple of num_attention_heads "
                             f"{self.num_attention_heads} (rotary positions turn pairs), "
                             f"got {self.hidden_size}")
        if self.head_dim is None:           # a number from here on, as in HuggingFace's configs
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary positions turn pairs), got "
                             f"{self.head_dim}")
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(f"num_key_value_heads must divide num_attention_heads "
                             f"{self.num_attention_heads}, got {self.kv_heads}")
        if not isinstance(self.biases, tuple) or set(self.biases) - set(PROJECTIONS):
            raise ValueError(f"biases must be a tuple of names among {', '.join(PROJECTIONS)}, "
                             f"got {self.biases!r:.80}")

    @property
    def kv_heads(self) -> int:
        return (self.num_attention_heads if self.num_key_value_heads is None
                else self.num_key_value_heads)

    @classmethod
    def preset(cls, name: str) -> "GPTConfig":
        """The sizes of a known model; ValueError lists the known names."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return cls(**PRESETS[name])


def check_numbers(config: GPTConfig | RopeScaling) -> None:
    """ValueError that names the field unless every number is one that a model can have."""
    for name, kind in config.__annotations__.items():
        value = getattr(config, name)
        if kind is int or (kind == int | None and value is not None):
            if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
                raise ValueError(f"{name} must be a whole number, 1 to {LARGEST_SIZE}, got "
                                 f"{value!r:.80}")
        elif kind is float and (type(value) not in (int, float) or not 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive, finite number, got {value!r:.80}")
        elif kind is bool and type(value) is not bool:
            raise ValueError(f"{name} must be True or False, got {value!r:.80}")


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), in float32.    Zhang and Sennrich 2019"""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


@functools.lru_cache(maxsize=16)   # a pure function: the same table for every layer and step
def rope_table(dim: int, length: int, theta: float, device: torch.device,
               scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/dim), (length, dim) float32 each.    Su et al. 2021

    float32 whatever the model's dtype: a buffer would be rounded by `model.to(torch.bfloat16)`.
    """
    with torch.inference_mode(False):   # or a table first made there could not be trained through
        frequency = 1 / theta ** (torch.arange(0, dim, 2, device=device) / dim)    # (dim / 2,)
        frequency = frequency if scaling is None else scaling.slowed(frequency)
        angle = torch.arange(length, device=device)[:, None] * frequency       # (length, dim / 2)
        angle = torch.cat([angle, angle], dim=-1)                              # (length, dim)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle; x (B, H, T, D), cos (T, D), or
    (B, 1, T, D) where the rows have positions of their own."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class KVCache:
    """The keys and values one layer has computed for the tokens so far, (B, H_kv, T, D) each.

    `attention_mask` (B, at most T) is False where a row has padding; tokens beyond it are text.
    """

    def __init__(self):
        self.k = self.v = self.attention_mask = None

    def __len__(self) -> int:
        return 0 if self.k is None else self.k.shape[2]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
        return self.k, self.v

    def share(self, length: int, rows: int) -> None:
        """One row's first `length` keys and values become those of `rows` rows, without a copy."""
        self.k, self.v = (t[:, :, :length].expand(rows, -1, -1, -1) for t in (self.k, self.v))
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[:, :length].expand(rows, -1)

    def expect(self, attention_mask: Tensor, T: int) -> None:
        """This is the mask of the next T tokens; virtual ones before its own are no padding."""
        new = F.pad(attention_mask.bool(), (T - attention_mask.shape[1], 0), value=True)
        held = self.mask_with(0)
        held = new.new_ones(len(new), len(self)) if held is None else held
        self.attention_mask = torch.cat([held, new], dim=1)

    def mask_with(self, T: int) -> Tensor | None:
        """The mask of these tokens and of T more, (B, S), if any of them is padding."""
        mask, S = self.attention_mask, len(self) + T
        return None if mask is None else F.pad(mask, (0, S - mask.shape[1]), value=True)


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V over H heads, causal, with rotary positions.

    `prefix_kv`: keys and values (1, H_kv, P, D) put in front of the text's own (adapters); the text
    then stands at positions P, P + 1, ... as in HuggingFace PEFT.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        q, kv = config.num_attention_heads * D, config.kv_heads * D
        self.config = config
        self.q_proj = nn.Linear(C, q, bias="q_proj" in config.biases)
        self.k_proj = nn.Linear(C, kv, bias="k_proj" in config.biases)
        self.v_proj = nn.Linear(C, kv, bias="v_proj" in config.biases)
        self.o_proj = nn.Linear(q, C, bias="o_proj" in config.biases)
        self.q_norm, self.k_norm = (RMSNorm(D, config.rms_norm_eps) if config.qk_norm
                                    else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, cache: KVCache | None = None,
                prefix_kv: tuple[Tensor, Tensor] | None = None) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)   # (B, H, T, D)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        P = 0 if prefix_kv is None else prefix_kv[0].shape[2]
        start = P + (0 if cache is None else len(cache))
        mask = None if cache is None else cache.mask_with(T)
        at = None if mask is None else P + positions_in_row(mask, T)              # (B, 1, T)
        cos, sin = self.positions(start, start + T, x, at)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)
        if prefix_kv is not None:                                                 # (adapters)
            k, v = (torch.cat([p.to(t.dtype).expand(B, -1, -1, -1), t], dim=2)    # (B, H, S, D)
                    for p, t in zip(prefix_kv, (k, v)))
        out = attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))

    def positions(self, start: int, stop: int, x: Tensor,
                  at: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin of start ... stop - 1, (T, D) each, or of the positions `at` below stop."""
        check_length(stop, self.config)
        # a few lengths only, and not all positions of the config, which may be a million
        length = min(max(1024, 2 ** (stop - 1).bit_length()), self.config.max_position_embeddings)
        cos, sin = rope_table(self.config.head_dim, length, self.config.rope_theta, x.device,
                              self.config.rope_scaling)                       # (length, D)
        where = slice(start, stop) if at is None else at
        return cos[where].to(x.dtype), sin[where].to(x.dtype)


def positions_in_row(attention_mask: Tensor, T: int) -> Tensor:
    """Of each row's last T tokens, (B, 1, T): how many before it are no padding."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)[:, None, -T:]


def seen(T: int, S: int, attention_mask: Tensor | None, device: torch.device) -> Tensor:
    """Which of S keys the last T positions see: (T, S), or (B, 1, T, S) where there is padding.

    Query t sees keys 0 ... S - T + t that are no padding. `attention_mask` tells which of the last
    keys are padding; a prefix before them is not. Padding sees itself as well, for a softmax over
    no key at all is NaN.
    """
    causal = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
    if attention_mask is None:
        return causal
    keys = F.pad(attention_mask, (S - attention_mask.shape[1], 0), value=True)    # (B, S)
    return causal & keys[:, None, None] | causal.triu(S - T)


def attend(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Causal attention of the last T of S positions; q (B, H, T, D), k and v (B, H_kv, S, D)."""
    T, S = q.shape[2], k.shape[2]
    mask = None
    if 1 < T < S or attention_mask is not None:     # a prefix, a cache or padding stands in front
        mask = seen(T, S, attention_mask, q.device)
    dtype = q.dtype
    if dtype == torch.bfloat16 and q.device.type == "cpu":   # its backward pass is far slower there
        q, k, v = q.float(), k.float(), v.float()
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and T == S,
                                          enable_gqa=q.shape[1] != k.shape[1]).to(dtype)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), "SwiGLU".    Shazeer 2020"""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cache=cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Everything below the head: token ids (B, T) to normed vectors (B, T, C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, caches: list[KVCache] | None = None,
                attention_mask: Tensor | None = None) -> Tensor:
        T = input_ids.shape[1]
        x = self.embed_tokens(input_ids)     # (B, T, C), or (B, P + T, C) behind a soft prompt
        if caches and len(caches[0]):
            x = x[:, -T:]                    # the soft prompt is in the caches already
        each = [None] * len(self.layers) if caches is None else caches
        if caches is None and attention_mask is not None:
            each = (KVCache() for _ in self.layers)     # for the mask, one layer at a time
        for layer, cache in zip(self.layers, each, strict=True):
            if attention_mask is not None:
                cache.expect(attention_mask, x.shape[1])
            x = layer(x, cache)
        return self.norm(x[:, -T:])          # (B, T, C), without the soft prompt (adapters)


class GPT(nn.Module):
    """Token ids (B, T) to logits (B, T, V)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        if not self.lm_head.weight.is_meta:
            self.init_weights()

    def tie_weights(self) -> None:
        """One parameter with two names, where the config says so (also after `assign=True`)."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one tensor now, whatever the config says."""
        return getattr(self.lm_head, "weight", None) is self.model.embed_tokens.weight

    @torch.no_grad()
    def init_weights(self) -> None:
        """Linears N(0, 1 / in), those that write to the residual stream / sqrt(2 L) (GPT-2's rule).

        Embeddings have standard deviation 1, so that a token is as loud as a layer's output; a tied
        matrix also makes the logits and takes the head's 1 / sqrt(C).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
            elif isinstance(module, nn.Linear):
                residual = name.endswith(("o_proj", "down_proj"))
                depth = 2 * self.config.num_hidden_layers if residual else 1
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features * depth))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, logits_at=None, caches: list[KVCache] | None = None,
                attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); with `logits_at`, an index or mask into (B, T), only those positions'.

        The head is the widest matrix of a small model: training needs it on labels only.

        attention_mask: (B, T), 1 for a token and 0 for padding. Wherever the padding stands, the
        logits of a row's tokens are those of the row without it; its own mean nothing. The mask is
        that of `input_ids`: what stands in the caches keeps the mask it came with. Padding on the
        right needs no mask, for no token sees it.
        """
        check_mask(attention_mask, input_ids)
        x = self.model(input_ids, caches, attention_mask)                  # (B, T, C)
        return self.lm_head(x if logits_at is None else x[logits_at])

    def generate(self, input_ids: Tensor, max_new_tokens: int, temperature: float = 0.0,
                 eos_token_id: int | Sequence[int] | None = None,
                 attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) to (B, T + at most max_new_tokens); greedy at temperature 0, else sampled.

        A row that has produced `eos_token_id`, or one of several, is filled up with it (the first
        of them); all rows done ends early.

        Rows of unequal lengths: `model.generate(**pad_left(rows), max_new_tokens=20)`. Padding is
        what `attention_mask` (B, T) says, 0 on the left of a row and 1 on its tokens; no id means
        padding by itself, so without a mask all of them are text.
        """
        new = list(self.stream(input_ids, max_new_tokens, temperature, eos_token_id,
                               attention_mask))
        return torch.cat([input_ids, *new], dim=1)

    @torch.no_grad()
    def stream(self, input_ids: Tensor, max_new_tokens: int, temperature: float = 0.0,
               eos_token_id: int | Sequence[int] | None = None,
               attention_mask: Tensor | None = None) -> Iterator[Tensor]:
        """The new tokens of `generate` as they are made, (B, 1) each."""
        check_token_ids(input_ids, self.config.vocab_size)
        check_padded_left(attention_mask, input_ids)
        check_sampling(max_new_tokens, temperature)
        check_length(input_ids.shape[1] + max_new_tokens - 1, self.config)
        ends = end_tokens(eos_token_id, self.config.vocab_size).to(input_ids.device)
        caches = [KVCache() for _ in self.model.layers]
        new, done = input_ids, torch.zeros_like(input_ids[:, :1], dtype=torch.bool)
        for _ in range(max_new_tokens):
            logits = self(new, logits_at=(slice(None), -1), caches=caches,
                          attention_mask=attention_mask)                          # (B, V)
            new, attention_mask = sample(logits, temperature), None               # (B, 1)
            if len(ends):
                new = torch.where(done, ends[0], new)
                done = done | torch.isin(new, ends)
            yield new
            if done.all():
                break


def check_sampling(max_new_tokens: int, temperature: float) -> None:
    """ValueError for a number of tokens or a temperature that cannot be meant."""
    if type(max_new_tokens) is not int or max_new_tokens < 1 or not 0 <= temperature < math.inf:
        raise ValueError(f"generate wants max_new_tokens >= 1 and a finite temperature >= 0, "
                         f"got {max_new_tokens} and {temperature}")
    if 0 < temperature < COLDEST:
        raise ValueError(f"temperature must be 0, which takes the likeliest token, or at least "
                         f"{COLDEST:g}, got {temperature}")


def end_tokens(eos_token_id: int | Sequence[int] | None, vocab_size: int) -> Tensor:
    """The ids that end a row, (E,); ValueError unless they are ids of the vocabulary."""
    ids = [] if eos_token_id is None else eos_token_id
    ids = torch.as_tensor([ids] if isinstance(ids, int) else ids).reshape(-1)
    if eos_token_id is not None:
        check_token_ids(ids[None], vocab_size)
    return ids


def check_length(length: int, config: GPTConfig) -> None:
    if length > config.max_position_embeddings:
        raise ValueError(f"the sequence, virtual tokens included, must have at most "
                         f"{config.max_position_embeddings} positions (max_position_embeddings), "
                         f"got {length}; shorten it")


def sample(logits: Tensor, temperature: float) -> Tensor:
    """One token id a row, (B, V) to (B, 1): the likeliest, or one drawn at that temperature.

    FloatingPointError for logits that are not finite: the likeliest of NaN is no answer.
    """
    if not logits.isfinite().all():
        raise FloatingPointError("the model's logits hold NaN or infinity: its weights or its "
                                 "adapter have diverged, or their dtype is too narrow")
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1)


def check_token_ids(input_ids: Tensor, vocab_size: int) -> None:
    """ValueError unless ids are a (B, T) integer tensor with T > 0 and 0 <= id < vocab_size."""
    if not isinstance(input_ids, Tensor):
        raise ValueError(f"token ids must be a (B, T) integer tensor, got {type(input_ids)}; of "
                         f"rows of unequal lengths pad_left makes one, and its attention_mask")
    if input_ids.ndim != 2 or input_ids.numel() == 0 or input_ids.is_floating_point():
        raise ValueError(f"token ids must be a non-empty (B, T) integer tensor, "
                         f"got {input_ids.dtype} {tuple(input_ids.shape)}")
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"token ids must lie in 0 ... {vocab_size - 1}, got {low} ... {high}; "
                         f"is this the model's own tokenizer?")


def check_mask(attention_mask: Tensor | None, input_ids: Tensor) -> None:
    """ValueError unless the mask is None, or integers or booleans of the ids' shape; what they are
    is not looked at, which would make a GPU wait."""
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor) or attention_mask.is_floating_point() or (
            attention_mask.shape != input_ids.shape):
        got = (f"{attention_mask.dtype} {tuple(attention_mask.shape)}"
               if isinstance(attention_mask, Tensor) else type(attention_mask))
        raise ValueError(f"attention_mask must be integers or booleans of the shape of the token "
                         f"ids, {tuple(input_ids.shape)}, got {got}")


def check_padded_left(attention_mask: Tensor | None, input_ids: Tensor) -> None:
    """ValueError unless each row of the mask is zeros, if any, then ones: a row goes on at its end,
    which must be text."""
    check_mask(attention_mask, input_ids)
    if attention_mask is None:
        return
    mask = attention_mask.long()
    wrong = (mask.diff() < 0).any(1) | (mask[:, 0] < 0) | (mask[:, -1] != 1)                 # (B,)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"generate wants padding on the left: each row of attention_mask is 0 on "
                         f"it and 1 from the first token to the end, as pad_left makes it; got for "
                         f"row {row} {mask[row].tolist()!r:.80}")


def pad_left(rows: Iterable[Sequence[int] | Tensor]) -> dict[str, Tensor]:
    """Rows of token ids as one batch for `model.generate(**pad_left(rows), max_new_tokens=20)`.

    input_ids and attention_mask, (B, T) each: 0 and 0 on the left of what is shorter than T.
    """
    rows = [torch.as_tensor(row) for row in rows]
    if not rows or any(row.ndim != 1 or not len(row) or row.is_floating_point() for row in rows):
        raise ValueError(f"pad_left wants rows of token ids, one or more and none of them empty, "
                         f"got {[tuple(row.shape) for row in rows]}")
    pad = functools.partial(nn.utils.rnn.pad_sequence, batch_first=True, padding_side="left")
    return {"input_ids": pad(rows), "attention_mask": pad([torch.ones_like(row) for row in rows])}


def require_gpt(model: nn.Module, method: str) -> None:
    """TypeError unless the model is a GPT, whose (adapters) lines the method needs."""
    if not isinstance(model, GPT):
        raise TypeError(f"{method} adapts a minipeft.GPT, got {type(model).__name__}; load its "
                        f"weights into a GPT (the module names are HuggingFace's), or use LoRA")


def sample_token_ids(n: int, vocab_size: int) -> Tensor:
    """n random token ids, (n,), all different as long as the vocabulary lasts."""
    rounds = -(-n // vocab_size)
    return torch.cat([torch.randperm(vocab_size) for _ in range(rounds)])[:n]
