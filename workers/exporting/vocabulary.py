"""A model's tokenizer as llama.cpp reads it: tokens with their kinds, how text is split, which tokens end an answer.

There are three kinds of tokenizers in both worlds, and of each only what means the same in both is written:

gpt2     byte-level BPE: merges, and the name of the expression that splits text before them
llama    SentencePiece's BPE: scores in place of merges, and tokens for single bytes
t5       Unigram: a score for each piece
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import TokenType
from gguf.gguf_writer import GGUFWriter
from transformers import PreTrainedTokenizerBase

from workers.exporting.chats import Chats
from workers.modeling import model_folder
from workers.modeling.model_folder import unusable

SPACE = "▁"
"""What SentencePiece writes for a space."""
END_SLOTS = ("eos", "eot", "eom")
"""The places that a GGUF file has for tokens that end an answer; readers know some more by their text."""
ENDS_BY_TEXT = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
}
"""Those of the texts by which llama.cpp knows them, since long ago."""

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_REST_WITH_SLASH = _REST.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[tuple[str, ...], str] = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (f"{_SHORT_FORMS}|{_WORDS}|\\p{{N}}|{_REST}",): "qwen2",
    (f"{_SHORT_FORMS}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",): "llama-bpe",
    (f"{_CASED[0]}|{_CASED[1]}|\\p{{N}}|{_REST_WITH_SLASH}",): "tekken",
    (f"{_CASED[0]}{_SHORT_FORMS}?|{_CASED[1]}{_SHORT_FORMS}?|\\p{{N}}{{1,3}}|{_REST_WITH_SLASH}",): "gpt-4o",
    (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK): "deepseek-v3",
}
"""llama.cpp's names for the ways in which text is split before merges, by the expressions that do it."""
WHOLE_WORDS = {"llama-bpe": "dbrx"}
"""Names that say that a word in the vocabulary is never split, and those of the same expression that do not."""


@dataclass
class Vocabulary:
    """``kinds`` are values of ``gguf.TokenType``; tokens and kinds are one for each embedding."""

    model: str
    tokens: list[str]
    kinds: list[int]
    pre: str = "default"
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    space_prefix: bool | None = None
    extra_spaces_removed: bool | None = None
    charsmap: bytes = b""
    special: dict[str, int] = field(default_factory=dict)
    """Ids of special tokens by what they are called in the file."""
    ends: list[int] = field(default_factory=list)
    """Every token that ends an answer."""
    begins_with_bos: bool = False
    ends_with_eos: bool = False

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.charsmap:
            writer.add_precompiled_charsmap(self.charsmap)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        if self.extra_spaces_removed is not None:
            writer.add_remove_extra_whitespaces(self.extra_spaces_removed)
        for name, id in self.special.items():
            getattr(writer, f"add_{name}_token_id")(id)
        # Ollama stops at any of these.
        writer.add_array("tokenizer.ggml.eos_token_ids", self.ends)
        writer.add_add_bos_token(self.begins_with_bos)
        writer.add_add_eos_token(self.ends_with_eos)


def read(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int, chats: Chats) -> Vocabulary:
    """The tokenizer of a model with ``rows`` embeddings. Raises ``RunError`` for one that llama.cpp reads otherwise."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise unusable("has a tokenizer without a tokenizer.json, of which no GGUF can be made")
    settings = json.loads(backend.to_str())
    kind, steps = settings["model"]["type"], _steps(settings["pre_tokenizer"], "pretokenizers")
    if kind == "BPE" and any(step["type"] == "ByteLevel" for step in steps):
        made = _byte_level(settings, steps)
    elif kind == "BPE" and settings["model"].get("byte_fallback"):
        made = _sentencepiece(settings, steps, chats)
    elif kind == "Unigram":
        made = _unigram(settings, steps, chats)
    else:
        raise unusable(
            f"has a tokenizer of the kind '{kind}'. GGUF files are made of byte-level BPE, SentencePiece's BPE and "
            "Unigram"
        )
    made.ends = model_folder.stop_ids(folder, tokenizer)
    _add_tokens(made, settings, rows)
    _name_special(made, tokenizer, chats)
    return made


def _byte_level(settings: dict[str, Any], steps: Sequence[dict[str, Any]]) -> Vocabulary:
    normalizers = {each["type"] for each in _steps(settings["normalizer"], "normalizers")}
    if not normalizers <= {"NFC"}:
        raise _differently(f"changes text before it splits it ({', '.join(sorted(normalizers))})")
    split = tuple(name for step in steps if (name := _split_name(step)) is not None)
    pre = SPLITS.get(split)
    if pre is None:
        raise _differently(f"splits text in a way of its own ({' then '.join(split)[:200]})")
    if not settings["model"].get("ignore_merges"):
        pre = WHOLE_WORDS.get(pre, pre)
    tokens = _by_id(settings["model"]["vocab"])
    merges = [" ".join(_pair(each)) for each in settings["model"]["merges"]]
    if not merges:
        raise _differently("has no merges")
    return Vocabulary("gpt2", tokens, [TokenType.NORMAL] * len(tokens), pre, merges=merges)


def _split_name(step: dict[str, Any]) -> str | None:
    """What a step of splitting is called in ``SPLITS``; None where it only turns bytes into letters."""
    if step["type"] == "ByteLevel":
        if step["add_prefix_space"]:
            return "bytes with a space before"
        return "bytes" if step["use_regex"] else None
    if step["type"] == "Digits":
        return "digits" if step["individual_digits"] else "numbers"
    if step["type"] == "Split" and "Regex" in step["pattern"] and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"]["Regex"]).replace("?+", "?").replace("++", "+")
    return str(step["type"])


def _sentencepiece(settings: dict[str, Any], steps: Sequence[dict[str, Any]], chats: Chats) -> Vocabulary:
    model = settings["model"]
    tokens = _by_id(model["vocab"])
    known = set(model["vocab"])
    merges = [_pair(each) for each in model["merges"]]
    ranks: dict[str, int] = {}
    last = None
    for left, right in merges:
        made = left + right
        if made != last and made in ranks:
            raise _differently("has merges that are not SentencePiece's")
        last = made
        ranks.setdefault(made, len(ranks))
    listed = set(merges)
    for made in ranks:
        splits = ((made[:cut], made[cut:]) for cut in range(1, len(made)))
        if any(split not in listed for split in splits if split[0] in known and split[1] in known):
            raise _differently("has merges that are not SentencePiece's")
    if missing := [byte for byte in range(256) if f"<0x{byte:02X}>" not in known]:
        raise _differently(f"has no token for the byte {missing[0]}")
    scores = [-float(ranks.get(token, len(ranks))) for token in tokens]
    kinds = [TokenType.BYTE if _is_byte(token) else TokenType.NORMAL for token in tokens]
    made_of = Vocabulary("llama", tokens, kinds, scores=scores, space_prefix=_space_prefix(settings, steps, chats))
    if model.get("unk_token") in known:
        made_of.kinds[model["vocab"][model["unk_token"]]] = TokenType.UNKNOWN
    return made_of


def _unigram(settings: dict[str, Any], steps: Sequence[dict[str, Any]], chats: Chats) -> Vocabulary:
    model = settings["model"]
    if model.get("byte_fallback"):
        raise _differently("writes what it does not know as bytes")
    charsmap, extra_spaces_removed = b"", False
    for each in _steps(settings["normalizer"], "normalizers"):
        if each["type"] == "Precompiled":
            charsmap = base64.b64decode(each["precompiled_charsmap"])
        elif each["type"] == "Replace" and each["pattern"] == {"Regex": " {2,}"}:
            extra_spaces_removed = True
        elif each["type"] not in ("Replace", "Prepend"):
            raise _differently(f"changes text before it splits it ({each['type']})")
    tokens, scores = [piece for piece, _ in model["vocab"]], [float(score) for _, score in model["vocab"]]
    made = Vocabulary(
        "t5",
        tokens,
        [TokenType.NORMAL] * len(tokens),
        scores=scores,
        space_prefix=_space_prefix(settings, steps, chats),
        extra_spaces_removed=extra_spaces_removed,
        charsmap=charsmap,
    )
    if model["unk_id"] is not None:
        made.kinds[model["unk_id"]] = TokenType.UNKNOWN
        made.special["unk"] = model["unk_id"]
    return made


def _space_prefix(settings: dict[str, Any], steps: Sequence[dict[str, Any]], chats: Chats) -> bool:
    """Whether a space is put before a text, and after each special token. Raises where it is neither."""
    prefix = "never"
    for each in _steps(settings["normalizer"], "normalizers"):
        if each["type"] == "Prepend":
            prefix = "always"
        elif each["type"] == "Replace" and each["content"] != SPACE and each["pattern"] != {"Regex": " {2,}"}:
            raise _differently(f"replaces {each['pattern']}")
    for step in steps:
        if step["type"] == "Metaspace":
            prefix = step["prepend_scheme"]
        elif step["type"] != "Split":
            raise _differently(f"splits text by '{step['type']}'")
    # Where only the beginning of all gets a space, a chat that begins with a special token has none.
    return prefix == "always" or (prefix == "first" and not chats.begin_with_a_token)


def _add_tokens(made: Vocabulary, settings: dict[str, Any], rows: int) -> None:
    """Put in the tokens that were added to the vocabulary, and fill it up to one for each embedding."""
    added = {each["id"]: each for each in settings["added_tokens"]}
    most = max([len(made.tokens), *(id + 1 for id in added)])
    if most > rows:
        raise unusable(
            f"has a tokenizer with {most} tokens and {rows} embeddings, so that no GGUF can be made of it. Give the "
            "model an embedding for each token (resize_token_embeddings), or take tokens out of the tokenizer"
        )
    taken = {*made.tokens, *(each["content"] for each in added.values())}
    for id in range(len(made.tokens), rows):
        made.tokens.append(_padding(id, taken))
        made.kinds.append(TokenType.UNUSED)
        if made.scores:
            made.scores.append(-10_000.0)
    for id, each in added.items():
        special = each["special"] or id in made.ends
        if made.kinds[id] != TokenType.UNKNOWN:
            made.kinds[id] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        is_piece = made.model != "gpt2" and not special
        made.tokens[id] = each["content"].replace(SPACE, " ") if is_piece else each["content"]
        if made.scores and made.model == "llama":
            made.scores[id] = -1000.0
    for id, token in enumerate(made.tokens):
        if not token:
            # A place that nothing was trained for.
            made.tokens[id], made.kinds[id] = _padding(id, taken), TokenType.UNUSED
    if len(set(made.tokens)) < len(made.tokens):
        twice = next(token for token in made.tokens if made.tokens.count(token) > 1)
        raise _differently(f"has the token {twice!r} twice")


def _padding(id: int, taken: set[str]) -> str:
    name = f"[PAD{id}]"
    while name in taken:
        name = f"[{name}]"
    taken.add(name)
    return name


def _name_special(made: Vocabulary, tokenizer: PreTrainedTokenizerBase, chats: Chats) -> None:
    for name in ("bos", "unk", "sep", "pad", "mask"):
        id = getattr(tokenizer, f"{name}_token_id", None)
        if id is not None:
            made.special[name] = id
    of_turn = model_folder.end_of_turn(tokenizer)
    order = [id for id in (tokenizer.eos_token_id, of_turn) if id is not None]
    order = list(dict.fromkeys([*order, *made.ends]))
    placed, rest = order[: len(END_SLOTS)], order[len(END_SLOTS) :]
    unknown = [made.tokens[id] for id in rest if made.tokens[id] not in ENDS_BY_TEXT]
    if unknown:
        raise unusable(
            f"ends answers with {len(order)} tokens. A GGUF file has places for {len(END_SLOTS)}, and llama.cpp would "
            f"not stop at {unknown}: take some out of generation_config.json"
        )
    made.special |= dict(zip(END_SLOTS, placed, strict=False))
    ids = tokenizer("a")["input_ids"]
    made.ends_with_eos = bool(ids) and ids[-1] == tokenizer.eos_token_id
    # A chat begins as its template has it; readers take a second one away.
    plain = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    made.begins_with_bos = plain if chats.first is None else chats.begin_with_bos


def _by_id(vocab: dict[str, int]) -> list[str]:
    tokens = [""] * (max(vocab.values()) + 1)
    for token, id in vocab.items():
        tokens[id] = token
    return tokens


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, of which there may be none."""
    if part is None:
        return []
    return [step for each in part[name] for step in _steps(each, name)] if part["type"] == "Sequence" else [part]


def _differently(what: str) -> Exception:
    return unusable(f"has a tokenizer that {what}, which llama.cpp does differently: no GGUF is made of it")
