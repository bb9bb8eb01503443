import json

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.components import from_record
from sae_bench.documents import Document, Text, content_hash, is_held_out
from sae_bench.errors import InputError
from sae_bench.folders import cache_root
from sae_bench.text import After, Documentation, HubText, LocalText, resolve_text


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, texts, row_group=2):
    table = pyarrow.table({"text": texts, "other": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group)
    return path


def pairs(text):
    return [(document.id, document.text) for document in text.documents()]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    write_jsonl(folder / "b" / "lines.jsonl", [{"text": "one"}, {"text": " "}, {"text": "two"}])
    write_parquet(folder / "c.parquet", ["three", None, "four"])
    (folder / "a.txt").write_text("\ufeffnaïve\n\ncafé", encoding="utf-8")
    (folder / "readme.md").write_text("not text of the corpus")
    (folder / ".hidden.txt").write_text("not text of the corpus either")
    return folder


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("SAE_BENCH_CACHE")
    assert cache_root() == tmp_path / "xdg" / "sae_bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "sae_bench"


def test_a_folder_is_read_in_order_without_blank_documents(corpus):
    assert pairs(LocalText(corpus)) == [
        ("a.txt", "naïve\n\ncafé"),
        ("b/lines.jsonl:1", "one"),
        ("b/lines.jsonl:3", "two"),
        ("c.parquet:1", "three"),
        ("c.parquet:3", "four"),
    ]
    assert pairs(LocalText(corpus / "c.parquet")) == [
        ("c.parquet:1", "three"),
        ("c.parquet:3", "four"),
    ]


def test_reading_streams(tmp_path):
    rows = [*({"text": f"{number}"} for number in range(3)), {"broken": 1}]
    documents = LocalText(write_jsonl(tmp_path / "c.jsonl", rows)).documents()
    assert [next(documents).text for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"^c\.jsonl:4: no field 'text' \(it has broken\)"):
        next(documents)


def test_parquet_rows_are_counted_across_row_groups_and_batches(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", [f"t{i}" for i in range(700)], row_group=300)
    assert pairs(LocalText(path)) == [(f"p.parquet:{i + 1}", f"t{i}") for i in range(700)]


def test_fingerprint_names_content_not_place(corpus, tmp_path):
    before = LocalText(corpus).fingerprint()
    assert LocalText(str(corpus)).fingerprint() == before
    moved = corpus.rename(tmp_path / "moved")
    assert LocalText(moved).fingerprint() == before
    (moved / "a.txt").rename(moved / "aa.txt")
    renamed = LocalText(moved).fingerprint()
    (moved / "aa.txt").write_text("other")
    changed = LocalText(moved).fingerprint()
    assert len({before, renamed, changed}) == 3


def test_fingerprint_knows_the_field(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", [{"text": "a", "body": "b"}])
    assert LocalText(path).fingerprint() != LocalText(path, field="body").fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"text": "a"}\n{"text": \n', r"c\.jsonl:2: not a line of JSON"),
        ("c.jsonl", b'{"text": "\xff"}\n', r"c\.jsonl:1: not a line of JSON.*utf-8"),
        ("c.jsonl", b'["text"]\n', r"c\.jsonl:1: no field 'text' \(it has no fields at all\)"),
        ("c.jsonl", b'{"text": 3}\n', r"c\.jsonl:1: field 'text' holds int, not text"),
        ("c.jsonl", b'{"text": ""}\n\n', r"the corpus is empty"),
        ("c.txt", b"abc\xff", r"c\.txt: not UTF-8 at byte 3"),
        ("c.parquet", b"PAR1 no parquet", r"c\.parquet: cannot be read"),
        ("c.csv", b"text\na\n", r"no \.txt, \.jsonl, \.parquet file in"),
    ],
)
def test_bad_files_are_named_before_anything_is_hashed(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        for _ in LocalText(tmp_path / name).documents():
            pass
    assert "\n" not in str(caught.value)
    if "jsonl:2" not in message:  # the first document shows the mistake
        with pytest.raises(InputError, match=message):
            LocalText(tmp_path / name).fingerprint()


def test_a_missing_parquet_column_is_named_with_those_there_are(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", ["a"])
    with pytest.raises(InputError, match=r"p\.parquet:1: no field 'body' \(it has text, other\)"):
        LocalText(path, field="body").fingerprint()


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no \.txt, \.jsonl, \.parquet file"):
        LocalText(tmp_path).fingerprint()


@given(st.text())
def test_documents_are_valid_unicode_and_whole(text):
    assert Document("d", text).text == text
    assert Document("d", text + "\ud800").text == text + "?"


def test_held_out_is_a_matter_of_the_text_and_has_its_share():
    documents = [Document(str(number), f"text {number}") for number in range(20_000)]
    held = [is_held_out(document) for document in documents]
    assert abs(sum(held) / len(held) - 0.1) < 0.01
    assert held == [is_held_out(Document("copy", document.text)) for document in documents]
    more = [is_held_out(document, share=0.2) for document in documents]
    assert all(b for a, b in zip(held, more, strict=True) if a)  # a larger share adds documents
    assert not any(is_held_out(document, share=0.0) for document in documents)
    assert all(is_held_out(document, share=1.0) for document in documents)


def test_content_hash_sees_where_a_document_ends():
    a = [Document("a", "bc"), Document("d", "e")]
    assert content_hash(a) == content_hash(list(a))
    assert content_hash(a) != content_hash([Document("ab", "c"), Document("d", "e")])
    assert content_hash(a) != content_hash(a[::-1])


# The hub's library, on a local folder and with its network calls replaced


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def test_hub_text_streams_through_datasets(offline, tmp_path):
    folder = tmp_path / "set"
    path = write_jsonl(folder / "train.jsonl", [{"text": "one"}, {"text": ""}, {"text": "two"}])
    write_jsonl(folder / "test.jsonl", [{"text": "three"}])
    text = HubText(str(folder))
    assert pairs(text) == [(f"{folder}/train:1", "one"), (f"{folder}/train:3", "two")]
    assert pairs(HubText(str(folder), split="test")) == [(f"{folder}/test:1", "three")]
    before = text.fingerprint()
    assert before == HubText(str(folder)).fingerprint()
    assert before != HubText(str(folder), split="test").fingerprint()
    path.write_text('{"text": "changed"}\n')
    assert before != text.fingerprint()


def test_hub_text_names_a_wrong_split_or_field(offline, tmp_path):
    folder = write_jsonl(tmp_path / "set" / "train.jsonl", [{"text": "one"}]).parent
    with pytest.raises(InputError, match=r"cannot be had.*split") as caught:
        next(HubText(str(folder), split="nosuch").documents())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"train:1: no field 'body' \(it has text\)"):
        next(HubText(str(folder), field="body").documents())


@pytest.mark.parametrize("name", ["nosuch/data-set", "json"])
def test_an_unreachable_hub_is_one_line_that_says_what_works(offline, name):
    for attempt in (HubText(name).fingerprint, lambda: next(HubText(name).documents())):
        with pytest.raises(InputError, match=r'"documentation" need no hub') as caught:
            attempt()
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_hub_text_asks_once_for_its_commit_and_streams_that(monkeypatch):
    asked, loaded = [], []

    class Info:
        sha = "a" * 40

    def dataset_info(self, name, revision, timeout):
        asked.append((name, revision))
        return Info

    def load_dataset(name, config, **options):
        loaded.append((name, config, options))
        return [{"text": "one"}]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = HubText("owner/set", config="en", revision="main")
    assert pairs(text) == [("owner/set/en/train:1", "one")]
    name = text.fingerprint()
    assert asked == [("owner/set", "main")]
    options = {"split": "train", "revision": "a" * 40, "streaming": True}
    assert loaded == [("owner/set", "en", options)]
    assert name == text.replace(revision="a" * 40).fingerprint()
    assert name != text.replace(revision="b" * 40).fingerprint()
    assert len(asked) == 1  # a commit is not asked about


# By name


def test_resolve_text(corpus, monkeypatch):
    own = LocalText("somewhere", field="body")
    assert resolve_text(own) is own
    assert resolve_text("documentation") == Documentation()
    assert resolve_text(str(corpus)) == resolve_text(corpus) == LocalText(corpus)
    assert resolve_text("owner/some-set") == HubText("owner/some-set")
    monkeypatch.setenv("HOME", str(corpus))
    assert pairs(resolve_text("~/a.txt"))[0][0] == "a.txt"


@pytest.mark.parametrize(
    "spec", ["nosuch.jsonl", "/no/such/folder", "", "a b", "a/b/c", "x" * 5000, "long text. " * 999]
)
def test_a_text_that_is_nothing_is_one_line(spec):
    with pytest.raises(InputError) as caught:
        resolve_text(spec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        LocalText("corpus.jsonl", field="body"),
        HubText("owner/set", config="en"),
        Documentation(libraries=("numpy", "scipy")),
    ],
)
def test_records_come_back_equal(text):
    assert from_record(Text, json.loads(json.dumps(text.record()))) == text


def test_the_documents_after_the_first_ones(corpus):
    text = LocalText(corpus)
    whole = pairs(text)
    assert pairs(After(text, 0)) == whole
    rest = list(After(text, 2).read())
    assert rest == list(text.read())[2:]
    prints = {text.fingerprint(), After(text, 0).fingerprint(), After(text, 2).fingerprint()}
    assert len(prints) == 3
    assert from_record(Text, json.loads(json.dumps(After(text, 2).record()))) == After(text, 2)
    with pytest.raises(InputError, match="skipped must not be negative"):
        After(text, -1)
