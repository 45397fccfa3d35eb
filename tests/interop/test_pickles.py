"""The reader of pickles: the same tensors as torch.load, and nothing that a hostile file asks for."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import os
import pickle
import struct
import zipfile

import pytest
import torch

from speechssl import cli
from speechssl.errors import UserError
from speechssl.interop import pickles


class Colour(enum.Enum):
    RED = "red"


class Odd:
    def __init__(self):
        self.value = [1, {"a": (2.5, None)}]


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_tensors_are_those_of_torch_load(tmp_path, modern):
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    content = {
        "weights": collections.OrderedDict(a=base, view=base[1:4, ::2], transposed=base.T),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "kinds": [
            torch.arange(4).to(d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
        ],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7.0),
        "plain": (1, -(2**70), 2.5, True, None, "ä", [[]], {"k": 1}),
    }
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=modern)
    found = pickles.load(path)
    assert found["plain"] == content["plain"]
    for a, b in [
        *zip(found["weights"].values(), content["weights"].values(), strict=True),
        *zip(found["kinds"], content["kinds"], strict=True),
        *((found[name], content[name]) for name in ("parameter", "empty", "scalar")),
    ]:
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_other_classes_become_records(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"args": argparse.Namespace(size=3), "colour": Colour.RED, "odd": Odd()}, path)
    found = pickles.load(path)
    assert str(found["args"].kind) == "argparse.Namespace" and found["args"].state == {"size": 3}
    assert found["colour"].args == ("red",)
    assert found["odd"].state == {"value": [1, {"a": (2.5, None)}]}


def archive(path, program, *, storage=b"\0" * 64, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/data/0", storage)
    return path


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_that_a_pickle_calls_runs(tmp_path, protocol):
    witness = tmp_path / "ran"
    calls = [
        Call(os.system, f"touch {witness}"),
        Call(eval, f"open({str(witness)!r}, 'w')"),
        Call(exec, f"open({str(witness)!r}, 'w')"),
        Call(os.mkdir, str(witness)),
        Call(getattr, 1, "real"),
    ]
    for call in calls:
        path = archive(tmp_path / "a.pt", pickle.dumps({"model": call}, protocol=protocol))
        assert isinstance(pickles.load(path)["model"], pickles.Record)
    assert not witness.exists()


def test_the_opcodes_of_old_instances_and_of_state_do_not_run_either(tmp_path):
    witness = tmp_path / "ran"
    inst = b"(S'touch " + str(witness).encode() + b"'\nios\nsystem\n."
    build = b"cspeechssl.interop.pickles\nload\n}S'__doc__'\nS'changed'\nsb."
    for program in (inst, build):
        pickles.load(archive(tmp_path / "a.pt", program))
    assert not witness.exists() and "changed" not in pickles.load.__doc__


def tensor_program(size, stride, *, offset=0, elements=16):
    """A pickle of one tensor of 16 floats, with whatever shape."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", elements) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    Pickler(buffer, 2).dump(Call(rebuild, Storage(), offset, size, stride, False, collections.OrderedDict()))
    return buffer.getvalue()


def test_a_tensor_by_hand_is_read(tmp_path):
    storage = struct.pack("<16f", *range(16))
    found = pickles.load(archive(tmp_path / "a.pt", tensor_program((2, 3), (3, 1), offset=4), storage=storage))
    assert found.tolist() == [[4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    "program",
    [
        tensor_program((10**9,), (0,)),  # one number, a billion times
        tensor_program((4, 5), (5, 1)),  # beyond the end
        tensor_program((4,), (1,), offset=14),
        tensor_program((4,), (-1,), offset=3),
        tensor_program((4,), (1,), offset=-1),
        tensor_program((4,), (1,), elements=10**12),  # a storage that the file does not have
        b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",  # bytes without end
        b"\x80\x02r\xff\xff\xff\x7f.",  # a place in the memo without a value
        b"\x80\x02\x82\x01.",  # an extension's code
        b"\x80\x02]" + b"q\x00" + b"h\x00a" * 3,  # no end
        b"\x80\x02t.",  # a tuple from nowhere
        b"\x80\x02" + b"]q\x00" + b"N" * 9 + b"cos\nsystem\n" + b"h\x00R.",  # arguments that are a list
        b"",
        b"not a pickle",
    ],
)
def test_hostile_and_damaged_programs_are_one_sentence(tmp_path, program):
    with pytest.raises(UserError) as error:
        pickles.load(archive(tmp_path / "a.pt", program))
    assert "\n" not in str(error.value)


def test_entries_are_not_copied_over_and_over(tmp_path):
    program = (
        b"\x80\x02(" + b"(NNtq\x01" + b"h\x01" * 1000 + b"lq\x02" + b"(" + b"ccollections\nOrderedDict\nh\x02\x85R" * 99
    )
    with pytest.raises(UserError, match="over and over"):
        pickles.load(archive(tmp_path / "a.pt", program + b"t."))


def test_keys_that_take_forever_to_hash_are_refused(tmp_path):
    nested = b"N" + b"q\x00h\x00\x86" * 60  # a pair of pairs of pairs
    with pytest.raises(UserError, match="a key is a tuple"):
        pickles.load(archive(tmp_path / "a.pt", b"\x80\x02}" + nested + b"Ns."))


def test_a_compressed_archive_is_refused_before_it_unfolds(tmp_path):
    bomb = archive(
        tmp_path / "a.pt",
        tensor_program((4,), (1,), elements=2**24),
        storage=bytes(2**26),
        compression=zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 2**20
    with pytest.raises(UserError, match="compressed"):
        pickles.load(bomb)


def test_a_hostile_file_fails_convert_with_one_sentence(tmp_path, capsys):
    witness = tmp_path / "ran"
    path = archive(tmp_path / "a.pt", pickle.dumps({"model": Call(os.system, f"touch {witness}")}))
    assert cli.main(["convert", f"source={path}", f"out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not witness.exists()
    path.write_bytes(b"")
    assert cli.main(["convert", f"source={path}", f"out={tmp_path / 'out'}"]) == 2
