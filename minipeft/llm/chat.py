"""Conversations: from JSON lines to token ids, the labels that count, and the order of batches.

    {"prompt": "Wake me at 7", "completion": "..."}        one example a line, either like this
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

The loss counts on what the assistant says, and on the token that ends its turn.
"""
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..train import IGNORE, Batch

END = "<|im_end|>"                   # of a turn; the model stops when it has said it
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
ROLES = ("system", "user", "assistant")
# SmolLM2's control tokens: in a text, each would become one id, END the end of the turn
CONTROL = ("<|endoftext|>", "<|im_start|>", END, "<repo_name>", "<reponame>", "<file_sep>",
           "<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>",
           "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>",
           "<jupyter_script>", "<empty_output>")

Messages = list[dict[str, str]]
Example = tuple[list[int], list[int]]               # token ids and labels of one conversation
Encode = Callable[[str], list[int]]                 # a text to its token ids


def with_system(messages: Messages) -> Messages:
    """SmolLM2 was trained to see SYSTEM where a conversation has no first turn of that role.

    ValueError for a text with a control token in it, which would be more than a text.
    """
    for message in messages:
        check_form(message, "a conversation")
    if messages and messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": SYSTEM}, *messages]


def chat_text(messages: Messages, add_generation_prompt: bool = True) -> str:
    """ChatML: "<|im_start|>role\\ncontent<|im_end|>\\n" a turn, and the start of the answer."""
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}{END}\n" for m in with_system(messages))
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def encode_example(messages: Messages, encode: Encode) -> Example:
    """Token ids of chat_text, and as labels those that the assistant says.

    What is asked and what is answered are encoded apart, as they will be when the model answers.
    """
    ids, labels, asked = [], [], ""
    for message in with_system(messages):
        asked += f"<|im_start|>{message['role']}\n"
        if message["role"] == "assistant":
            before, answer = encode(asked), encode(message["content"] + END)
            ids += before + answer
            labels += [IGNORE] * len(before) + answer
            asked = "\n"
        else:
            asked += f"{message['content']}{END}\n"
    return ids, labels


def read_jsonl(path: Path) -> list[Messages]:
    """The conversations of a file; ValueError names the first line that is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no data file {path}; it must hold a JSON object a line, with "
                                f'"prompt" and "completion", or with "messages"')
    conversations = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                conversations.append(parse_line(line, f"{path}, line {number}"))
    if not conversations:
        raise ValueError(f"{path} holds no examples; it must hold a JSON object a line")
    return conversations


def parse_line(line: str, where: str) -> Messages:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be an object, got {type(record).__name__}")
    if "messages" not in record:
        missing = [key for key in ("prompt", "completion") if key not in record]
        if missing:
            raise ValueError(f'{where}: must have "messages", or "prompt" and "completion"; '
                             f"{', '.join(missing)} missing, it has {', '.join(record)}")
        record = {"messages": [{"role": "user", "content": record["prompt"]},
                               {"role": "assistant", "content": record["completion"]}]}
    check_messages(record["messages"], where)
    return record["messages"]


def check_messages(messages: Messages, where: str) -> None:
    """ValueError unless these are turns of known roles with a text each, the last an answer."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: messages must be a non-empty list, got {messages!r}")
    for message in messages:
        check_form(message, where)
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"{where}: a message must have one of the roles {', '.join(ROLES)}, "
                             f"got {message!r}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"{where}: what the {message['role']} says must be a text that is "
                             f"not empty, got {message.get('content')!r}")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: the last message must be the assistant's, which is what is "
                         f"learned, got one of the {messages[-1]['role']}")


def check_form(message: dict, where: str) -> None:
    """ValueError, which says what to write instead, for a turn of another format than ours, or for
    a control token in a text."""
    role, content = (message.get("role"), message.get("content")) if isinstance(
        message, dict) else (None, None)
    if role in ("tool", "function"):
        raise ValueError(f"{where}: a turn of the {role} has no place in SmolLM2's chats; write "
                         f"what it returned as a turn of the user")
    if role == "developer":
        raise ValueError(f'{where}: write the role "developer" as "system"')
    if isinstance(content, list):
        raise ValueError(f"{where}: content must be one text, got a list of {len(content)} parts; "
                         f"join the texts of its parts (images and sounds are not read)")
    found = [word for word in CONTROL if word in content] if isinstance(content, str) else []
    if found:
        raise ValueError(f"{where}: what the {role} says holds {found[0]}, which SmolLM2 reads as "
                         f"a control token, not as text; write it another way, such as "
                         f"{found[0][0]} {found[0][1:]}")


def fitting(examples: list[Example], max_length: int) -> list[Example]:
    """Those of at most `max_length` tokens: a cut answer would teach the model never to end."""
    kept = [example for example in examples if len(example[0]) <= max_length]
    if not kept:
        raise ValueError(f"all {len(examples)} examples are longer than {max_length} tokens, the "
                         f"shortest has {min(len(ids) for ids, _ in examples)}; "
                         f"allow more, or cut them into shorter ones")
    return kept


def split(examples: list[Example], n_validation: int, seed: int) -> tuple[list, list]:
    """(training, validation), drawn at random: n_validation, but at most a tenth, at least one."""
    if len(examples) < 2:
        raise ValueError(f"a split into training and validation wants at least 2 examples, got "
                         f"{len(examples)}; add examples, or give a validation file")
    n = min(n_validation, max(1, len(examples) // 10))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    return [examples[i] for i in order[n:]], [examples[i] for i in order[:n]]


def batch_plan(lengths: list[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Which examples make each step, for ever: an epoch in random order after the other.

    What does not fill a batch is left out of that epoch. Within 16 steps the examples are sorted by
    length, so that little of a batch is padding.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = len(lengths) // batch_size * batch_size
    while whole:
        order = torch.randperm(len(lengths), generator=generator).tolist()[:whole]
        for start in range(0, len(order), 16 * batch_size):
            pool = sorted(order[start:start + 16 * batch_size], key=lambda i: lengths[i])
            batches = [pool[i:i + batch_size] for i in range(0, len(pool), batch_size)]
            for i in torch.randperm(len(batches), generator=generator).tolist():
                yield batches[i]


def collate(examples: list[Example], device: torch.device | str = "cpu") -> Batch:
    """One batch, (B, T) each, filled up on the right.

    Filled-up positions have no label and stand behind every token that has one, so causal attention
    needs no mask for them. They are found by length, never by id: the pad id may be END's.
    """
    T = max(len(ids) for ids, _ in examples)
    input_ids = [ids + [0] * (T - len(ids)) for ids, _ in examples]
    labels = [labels + [IGNORE] * (T - len(labels)) for _, labels in examples]
    return torch.tensor(input_ids, device=device), torch.tensor(labels, device=device)
