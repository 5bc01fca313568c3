"""The tokenizer of a model's folder: a text to token ids, ids to a text, a conversation to a text.

    tokenizer.json            read by the library `tokenizers`
    tokenizer_config.json     names of its control tokens; often the chat template
    special_tokens_map.json   those names, in folders of before 2023
    chat_template.jinja       the chat template, where it has a file of its own
    generation_config.json    the tokens that end an answer; otherwise config.json says them
"""
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files import check_keys, decoded, plain, read_json, short
from ..gpt import GPTConfig
from .chat_template import ChatTemplate

try:
    from tokenizers import Encoding, Tokenizer
except ImportError:             # said by read_tokenizer
    Tokenizer = Encoding = None

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION, NAMES = "generation_config.json", "special_tokens_map.json"
FILES = (TOKENIZER, SETTINGS, NAMES, TEMPLATE, GENERATION)
CONTROL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
           "mask_token")
DO = "restore it"


class FolderTokenizer:
    """`tokenizer` is tokenizers.Tokenizer; `end_ids` end an answer; `control` are the texts of the
    control tokens by name, for the chat template (None where the folder has none)."""

    def __init__(self, folder: Path, tokenizer: "Tokenizer", control: Mapping[str, str],
                 template: ChatTemplate | None, end_ids: tuple[int, ...]):
        self.folder, self.tokenizer, self.control = folder, tokenizer, dict(control)
        self.template, self.end_ids = template, end_ids

    def encode(self, text: str, add_special_tokens: bool = False) -> "Encoding":
        """`.ids` of a text. A conversation's text has its control tokens already; of another text,
        `add_special_tokens` puts those in front that the model was trained to see there."""
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)

    def get_vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def control_words(self) -> list[str]:
        """Texts that are one token each and no text: also one that ends an answer, and that
        tokenizer.json does not call special."""
        added = self.tokenizer.get_added_tokens_decoder()
        return [token.content for i, token in added.items() if token.special or i in self.end_ids]

    def chat_text(self, messages: Sequence[Mapping], add_generation_prompt: bool = True) -> str:
        """A conversation as the model was trained to see it, and the start of an answer.

        ValueError for a folder without a chat template, or one that refuses the conversation.
        """
        if self.template is None:
            raise ValueError(f"{self.folder} holds no chat template, neither {TEMPLATE} nor in "
                             f"{SETTINGS}; take the model's version for conversations, or write a "
                             f"template there")
        messages = [{"role": m["role"], "content": m["content"]} for m in messages]
        return self.template.render(messages=messages, tools=None, documents=None,
                                    add_generation_prompt=add_generation_prompt, **self.control)

    def copy_files(self, folder: Path) -> None:
        """The same tokenizer, template and end tokens beside a model in another folder."""
        for name in FILES:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)


def read_tokenizer(folder: Path, config: GPTConfig, entries: Mapping) -> FolderTokenizer:
    """The tokenizer in `folder`, for the model of that config, whose config.json has `entries`.

    ValueError, which names the file, for one that is damaged or has more tokens than the model.
    """
    tokenizer = read_library_tokenizer(folder / TOKENIZER)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(ids, key=ids.get, default=None)
    if largest is None or ids[largest] >= config.vocab_size:
        raise ValueError(f"{folder / TOKENIZER}: its tokens must have ids below the model's "
                         f"vocab_size {config.vocab_size}, got "
                         + ("none" if largest is None else f"{ids[largest]} for {short(largest)}")
                         + "; is it another model's?")
    path = folder / SETTINGS
    settings = read_json(path, DO) if path.exists() else {}
    check_added(settings.get("added_tokens_decoder"), tokenizer, path)
    return FolderTokenizer(folder, tokenizer, read_control(folder, settings),
                           read_template(folder, settings), read_end_ids(folder, config, entries))


def read_library_tokenizer(path: Path) -> "Tokenizer":
    if Tokenizer is None:
        raise ImportError("a model's folder needs the package tokenizers; install it with: "
                          "pip install tokenizers")
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {TOKENIZER}, which the library tokenizers "
                                f"reads; transformers' tokenizer.save_pretrained(...) writes it")
    try:
        tokenizer = Tokenizer.from_str(decoded(path.read_bytes()))
    except Exception as error:          # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer: {short(error, str)}; {DO}") from None
    tokenizer.no_padding()              # a text is encoded as it is, as transformers does
    tokenizer.no_truncation()
    return tokenizer


def check_added(added, tokenizer: "Tokenizer", path: Path) -> None:
    """ValueError if tokenizer_config.json adds a token that tokenizer.json does not have."""
    for index, token in (added if isinstance(added, dict) else {}).items():
        content = token.get("content") if isinstance(token, dict) else None
        if not index.isdecimal() or not isinstance(content, str) or (
                tokenizer.token_to_id(content) != int(index[:20])):
            raise ValueError(f"{path}: added_tokens_decoder says that {plain(index)} is "
                             f"{short(content)}, which {TOKENIZER} does not; {DO}")


def read_control(folder: Path, settings: Mapping) -> dict[str, str]:
    """The texts of the control tokens by name. Where tokenizer_config.json lists no added tokens,
    special_tokens_map.json counts before it, as in transformers."""
    path, names, found = folder / NAMES, {}, {}
    if path.exists() and "added_tokens_decoder" not in settings:
        names = read_json(path, DO)
    for where, entries in ((folder / SETTINGS, settings), (path, names)):
        found |= {name: control_token(entries[name], name, where) for name in CONTROL
                  if entries.get(name) is not None}
    return found


def control_token(value, name: str, path: Path) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError(f"{path}: {name} must be a text, got {short(value)}; {DO}")
    return text


def read_template(folder: Path, settings: Mapping) -> ChatTemplate | None:
    """From its own file if there is one; of several in tokenizer_config.json the one named
    "default"."""
    if (folder / TEMPLATE).exists():
        try:
            source = decoded((folder / TEMPLATE).read_bytes())
        except ValueError as error:
            raise ValueError(f"{folder / TEMPLATE} is no template: {error}; {DO}") from None
        return ChatTemplate(source, str(folder / TEMPLATE))
    found, where = settings.get("chat_template"), f"{folder / SETTINGS}: chat_template"
    if isinstance(found, list):
        for entry in found:
            check_keys(entry, {"name": str, "template": str}, where, DO)
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{where} must be a text, got {short(found)}; {DO}")
    return None if found is None else ChatTemplate(found, where)


def read_end_ids(folder: Path, config: GPTConfig, entries: Mapping) -> tuple[int, ...]:
    """From generation_config.json if it says them, otherwise from config.json's `entries`."""
    path, found = folder / GENERATION, None
    if path.exists():
        found = read_json(path, DO).get("eos_token_id")
    if found is None:
        path, found = folder / "config.json", entries.get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list) else [found]
    for i in ids:
        if type(i) is not int or not 0 <= i < config.vocab_size:
            raise ValueError(f"{path}: eos_token_id must be ids from 0 to "
                             f"{config.vocab_size - 1}, got {short(found)}; {DO}")
    return tuple(ids)
