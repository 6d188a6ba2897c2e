"""Safetensors in and out: what we write others read, what is damaged is named."""

import hashlib
import json

import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lite_c2f.errors import ModelError
from lite_c2f.fine import shards


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_written_file_loads_bit_for_bit(tmp_path):
    tensors = {
        "wide": torch.randn(5, 7),
        "half": torch.randn(3, 3).half(),
        "brain": torch.randn(2, 9).bfloat16(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "ä 名": torch.arange(3, dtype=torch.uint8),
    }
    codes = {"wide": "F32", "half": "F16", "brain": "BF16", "empty": "F32", "scalar": "F32", "ä 名": "U8"}
    layout = [(name, codes[name], tuple(tensor.shape)) for name, tensor in tensors.items()]
    content = b"".join(raw(tensor) for tensor in tensors.values())
    file = tmp_path / "a.safetensors"
    digest = shards.write_shard(file, layout, [content[start : start + 11] for start in range(0, len(content), 11)])
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    loaded = load_file(file)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0


def test_too_few_bytes_are_a_bug(tmp_path):
    with pytest.raises(RuntimeError, match="12 bytes of data, its header says 16"):
        shards.write_shard(tmp_path / "a.safetensors", [("a", "F32", (4,))], [b"x" * 12])


def test_header_and_chunks_of_a_file_by_the_library(tmp_path):
    tensors = {"b": torch.randn(4, 6), "a": torch.randn(9).bfloat16()}
    save_file(tensors, tmp_path / "a.safetensors")
    entries = {entry.name: entry for entry in shards.read_header(tmp_path / "a.safetensors")}
    assert (entries["b"].dtype, entries["b"].shape, entries["b"].size) == ("F32", (4, 6), 96)
    for name, tensor in tensors.items():
        rows = [shards.part_of(entries[name], row, 1) for row in range(len(tensor))]
        assert b"".join(shards.read_bytes(row).tobytes() for row in rows) == raw(tensor)
        assert shards.read_bytes(entries[name]).tobytes() == raw(tensor)


@pytest.mark.parametrize("in_order", [True, False])
def test_reader_hashes_the_whole_file(tmp_path, in_order):
    save_file({"b": torch.randn(4, 6), "a": torch.randn(9).bfloat16()}, tmp_path / "a.safetensors")
    with shards.Reader(tmp_path / "a.safetensors", in_order) as reader:
        for entry in shards.read_header(tmp_path / "a.safetensors"):
            reader.read(shards.part_of(entry, 0, 2))
            reader.read(shards.part_of(entry, 2, entry.shape[0] - 2))
        found = reader.hash()
    assert found == xxhash.xxh3_128((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert found == shards.hash_of(tmp_path / "a.safetensors")


def header_file(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{not json", b""),
        (b"[]", b""),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234567"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"123456789"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678"),
        ({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, b"12345678"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"12345678"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            b"12345678",
        ),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"12345678"),
        ({"a": 3}, b""),
    ],
)
def test_damaged_header_is_refused_with_the_file(tmp_path, header, data):
    header_file(tmp_path / "broken.safetensors", header, data)
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        shards.read_header(tmp_path / "broken.safetensors")


def test_short_and_missing_files_are_refused_with_the_file(tmp_path):
    file = tmp_path / "broken.safetensors"
    for content in (b"", b"1234", (2**60).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"broken\.safetensors"):
            shards.read_header(file)
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        shards.read_header(tmp_path / "gone.safetensors")


def test_file_cut_while_reading(tmp_path):
    file = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(100)}, file)
    (entry,) = shards.read_header(file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"cut\.safetensors.*'a'"):
        shards.read_bytes(entry)
    with shards.Reader(file, True) as reader, pytest.raises(ModelError, match=r"cut\.safetensors.*'a'"):
        reader.read(entry)


def test_folder_in_several_files(pico):
    files = shards.read_model(pico["sharded"])
    assert len(files) > 3
    names = sorted(entry.name for entries in files.values() for entry in entries)
    assert names == sorted(load_file(pico["instruct"] / "model.safetensors"))


def test_index_that_does_not_fit(editable, edit_json):
    folder = editable("sharded")
    index = folder / shards.INDEX
    weight_map = json.loads(index.read_text())["weight_map"]
    name, shard = "model.norm.weight", weight_map["model.norm.weight"]
    other = next(file for file in weight_map.values() if file != shard)
    fewer = {key: value for key, value in weight_map.items() if key != name}
    for wrong in ({**weight_map, name: other}, {**weight_map, "ghost.weight": shard}, fewer):
        edit_json(index, weight_map=wrong)
        with pytest.raises(ModelError, match=r"model\.norm\.weight|ghost\.weight"):
            shards.read_model(folder)
    for wrong in ({}, {name: "../other/model.safetensors"}, {name: "weights.bin"}, {name: 3}, [name]):
        edit_json(index, weight_map=wrong)
        with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
            shards.read_model(folder)
    edit_json(index, weight_map=weight_map)
    (folder / shard).rename(folder / "elsewhere")
    with pytest.raises(ModelError, match=shard):
        shards.read_model(folder)


def test_tensor_in_two_files_is_refused(tmp_path):
    for file in ("a.safetensors", "b.safetensors"):
        save_file({"twice": torch.ones(1), file: torch.ones(1)}, tmp_path / file)
    shards.write_index(tmp_path, {name: name for name in ("a.safetensors", "b.safetensors")}, 16)
    with pytest.raises(ModelError, match="'twice'"):
        shards.read_model(tmp_path)


def test_pickles_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        shards.weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pickle 'pytorch_model\.bin'"):
        shards.weight_files(tmp_path)


def test_other_files_are_those_without_weights(tmp_path):
    keep = ["chat_template.jinja", "config.json", "sub/vocab.json", "tokenizer.model"]
    leave = ["model.safetensors", "consolidated.safetensors", "x.pth", "q.gguf", ".git/config", "pytorch_model.bin"]
    leave += ["model.safetensors.index.json", "pytorch_model.bin.index.json", "original/consolidated.00.pth"]
    for name in keep + leave:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [str(path) for path in shards.other_files(tmp_path)] == keep
