"""Conversations: from JSON lines to token ids, the labels that count, and the order of batches.

    {"prompt": "Wake me at 7", "completion": "..."}        one example a line, either like this
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

The loss counts on what the assistant says, and on the token that ends its turn. A record with
"prompt" may have a "system" turn; an assistant's message with "weight": 0 is not learned, as in
OpenAI's format. Any other key is refused: it might mean something that is not done here.
"""
import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from ..files import check_keys, parse_json, plain, short
from ..train import IGNORE, Batch

END = "<|im_end|>"                   # of a turn; the model stops when it has said it
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
ROLES = ("system", "user", "assistant")
# SmolLM2's control tokens: in a text, each would become one id, END the end of the turn
CONTROL = ("<|endoftext|>", "<|im_start|>", END, "<repo_name>", "<reponame>", "<file_sep>",
           "<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>",
           "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>",
           "<jupyter_script>", "<empty_output>")
NOTES = ("id", "idx", "index", "uuid", "source", "dataset", "url", "license", "lang", "language",
         "split", "category", "tags", "metadata", "comment")   # of a record: they train nothing
LINE = 'every line must be one object, with "prompt" and "completion", or with "messages"'

Messages = list[dict[str, str | int]]
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


class ChatML:
    """`chat_text` in the place of a chat template."""

    def render(self, messages: Messages, add_generation_prompt: bool, **others) -> str:
        return chat_text(messages, add_generation_prompt)


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
            counts = message.get("weight", 1)
            labels += [IGNORE] * len(before) + (answer if counts else [IGNORE] * len(answer))
            asked = "\n"
        else:
            asked += f"{message['content']}{END}\n"
    return ids, labels


def encode_by_template(messages: Messages, chat_text: Callable[[Messages, bool], str],
                       encode: Encode, end_ids: Sequence[int]) -> Example:
    """`encode_example` for any chat template: an answer is what `chat_text` of a conversation adds
    to that of the conversation before it and the answer's beginning, to the token that ends it.

    ValueError for a template that writes an answer or an earlier turn otherwise once the
    conversation goes on.
    """
    ids, labels, text, whole = [], [], "", chat_text(messages, False)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked, answered = chat_text(messages[:i], True), chat_text(messages[:i + 1], False)
        counts = message.get("weight", 1)
        if not (asked.startswith(text) and answered.startswith(asked)
                and (i + 1 == len(messages) or whole.startswith(answered))):
            if counts:
                check_begins(chat_text(messages[:i], False), asked, answered)
                raise ValueError("the chat template writes an earlier turn otherwise once the "
                                 "conversation goes on, so what is learned would never be seen; "
                                 "make an example of each answer, with those before it of weight 0")
            continue
        before = added(ids, text, asked, encode)
        answer = added(ids + before, asked, answered, encode)
        end = next((n for n, token in enumerate(answer, 1) if token in end_ids), None)
        if counts and end is None:
            raise ValueError(f"the chat template must write a token that ends an answer behind "
                             f"one, got ...{answered[-20:]!r}; name the token that it writes as "
                             f"eos_token_id, in generation_config.json")
        last = end if i + 1 == len(messages) else None
        ids += before + answer[:last]
        learned = answer[:end] if counts else []
        labels += [IGNORE] * len(before) + learned + [IGNORE] * (len(answer[:last]) - len(learned))
        text = answered
    return ids, labels


def check_begins(before: str, asked: str, answered: str) -> None:
    """ValueError for a template that asks for an answer, behind the turns `before`, with what it
    does not write in front of one, such as the beginning of thoughts."""
    if asked.startswith(before) and answered.startswith(before) and not answered.startswith(asked):
        asks, writes = short(asked[len(before):]), short(answered[len(before):])
        raise ValueError(f"the chat template must begin an answer as it asks for one, and asks "
                         f"with {asks}, and writes {writes}; change what add_generation_prompt "
                         f"adds in the template")


def added(ids: list[int], text: str, longer: str, encode: Encode) -> list[int]:
    """What the ids of `longer` are beyond `ids`, those of the `text` that it begins with.

    They are those of the whole where it begins with `ids`, for a tokenizer may put a space in
    front of what is encoded alone; elsewhere what is added is encoded alone.
    """
    whole = encode(longer)
    return whole[len(ids):] if whole[:len(ids)] == ids else encode(longer[len(text):])


def read_jsonl(path: Path, control: Sequence[str] = CONTROL) -> list[Messages]:
    """The conversations of a file; ValueError names the first line that is none, or that holds the
    text of a `control` token."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no data file {path}; it must hold a JSON object a line, with "
                                f'"prompt" and "completion", or with "messages"')
    conversations = []
    content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            conversations.append(parse_line(line, f"{path}, line {number}", control))
    if not conversations:
        raise ValueError(f"{path} holds no examples; {LINE}")
    return conversations


def parse_line(line: bytes | str, where: str, control: Sequence[str] = CONTROL) -> Messages:
    line = line.encode() if isinstance(line, str) else line
    record = parse_json(line, where, LINE)
    if "messages" in record:
        check_other_keys(record, ("messages", *NOTES), where)
        messages = record["messages"]
    else:
        check_keys(record, {"prompt": str, "completion": str}, where, LINE)
        check_other_keys(record, ("system", "prompt", "completion", *NOTES), where)
        turns = zip(ROLES, ("system", "prompt", "completion"))
        messages = [{"role": role, "content": record[key]} for role, key in turns
                    if record.get(key) is not None]
    check_messages(messages, where, control)
    return messages


def check_other_keys(entries: dict, known: Iterable[str], where: str) -> None:
    """ValueError for a key that would be dropped, unless it holds nothing: null, "", [] or {}."""
    for key, value in entries.items():
        if key not in known and value not in (None, "", [], {}):
            raise ValueError(f"{where}: the key {plain(key)} is not known here, and dropping "
                             f"{short(value)} would train something else; known: "
                             f"{', '.join(known)}. Say it in the texts, or leave it out")


def check_messages(messages: Messages, where: str, control: Sequence[str] = CONTROL) -> None:
    """ValueError unless these are turns of known roles with a text each, the last an answer."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: messages must be a non-empty list, got {short(messages)}")
    for message in messages:
        check_form(message, where, control)
        if not isinstance(message, dict) or message.get("role") not in list(ROLES):
            raise ValueError(f"{where}: a message must have one of the roles {', '.join(ROLES)}, "
                             f"got {short(message)}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"{where}: what the {message['role']} says must be a text that is "
                             f"not empty, got {short(message.get('content'))}")
        weighted = ("weight",) * (message["role"] == "assistant")
        check_other_keys(message, ("role", "content", *weighted), where)
        if message.get("weight", 1) not in (0, 1):
            raise ValueError(f"{where}: the weight of a message must be 0 or 1, got "
                             f"{short(message['weight'])}")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: the last message must be the assistant's, which is what is "
                         f"learned, got one of the {messages[-1]['role']}")
    if not any(m["role"] == "assistant" and m.get("weight", 1) for m in messages):
        raise ValueError(f"{where}: every answer has weight 0, so there is nothing to learn; leave "
                         f"the line out")


def check_form(message: dict, where: str, control: Sequence[str] = CONTROL) -> None:
    """ValueError, which says what to write instead, for a turn of another format than ours, or for
    a control token in a text."""
    role, content = (message.get("role"), message.get("content")) if isinstance(
        message, dict) else (None, None)
    if role in ("tool", "function"):
        raise ValueError(f"{where}: a turn of the {role} has no place in these chats; write "
                         f"what it returned as a turn of the user")
    if role == "developer":
        raise ValueError(f'{where}: write the role "developer" as "system"')
    if isinstance(content, list):
        raise ValueError(f"{where}: content must be one text, got a list of {len(content)} parts; "
                         f"join the texts of its parts (images and sounds are not read)")
    found = [word for word in control if word in content] if isinstance(content, str) else []
    if found:
        raise ValueError(f"{where}: what the {role} says holds {found[0]}, which the model reads "
                         f"as a control token, not as text; write it another way, such as "
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
