"""Files of torch.save: read as torch reads them, without running anything; what claims too much is refused."""
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pixart.weights import CheckpointError, Kind, open_weights

KIND = Kind("weights")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
          torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]


def read(path: Path) -> dict[str, Tensor]:
    return dict(open_weights(path, KIND).tensors)


def refusal(path: Path) -> str:
    """The message, which must come quickly."""
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert time.process_time() - started < 5 and path.name in str(caught.value)
    return str(caught.value)


def same(found: Tensor, wanted: Tensor) -> bool:
    return found.dtype == wanted.dtype and found.shape == wanted.shape and torch.equal(
        found.contiguous().view(-1).view(torch.uint8), wanted.contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_data_type_is_read_as_torch_reads_it(dtype, zipped, tmp_path):
    base = torch.arange(60).to(dtype)
    tensors = {"whole": base.view(5, 12), "turned": base.view(5, 12).T, "slice": base[7:23].view(4, 4),
               "same storage": base, "one": base[3:4].view(1, 1, 1), "scalar": base[5], "empty": base[:0].view(0, 3)}
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "a.pth")
    assert list(found) == list(tensors) and all(same(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_protocols_and_what_trainers_put_beside_the_weights(protocol, zipped, tmp_path):
    import argparse
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {"state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.5,
               "args": argparse.Namespace(lr=1e-4, betas=(0.9, 0.99), name="run"), "device": torch.device("cpu"),
               "size": torch.Size([2, 3]), "dtype": torch.float16, "tags": {"a", "b"}, "raw": b"\x00\x01"}
    torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found, wanted = read(tmp_path / "a.pth"), network.state_dict()
    assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)


def test_parameters_and_tensors_with_attributes_are_tensors(tmp_path):
    parameter = nn.Parameter(torch.randn(3))
    parameter.note = "trained"
    torch.save(OrderedDict(a=parameter, b=nn.Parameter(torch.ones(2), requires_grad=False)), tmp_path / "a.pth")
    found = read(tmp_path / "a.pth")
    assert same(found["a"], parameter.detach()) and same(found["b"], torch.ones(2))


def test_writing_to_what_was_read_leaves_the_file_alone(tmp_path):
    torch.save({"a": torch.zeros(9)}, tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    read(tmp_path / "a.pth")["a"].add_(1)
    assert (tmp_path / "a.pth").read_bytes() == before


# --- claims that the file does not keep ----------------------------------------------------------------------------

def changed_record(path: Path, change) -> None:
    """Write the archive anew, each record through change(name, bytes)."""
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_storage_shorter_than_its_tensor_is_refused(share, tmp_path):
    torch.save({"weight": torch.ones(100), "other": torch.zeros(1000)}, tmp_path / "a.pth")
    changed_record(tmp_path / "a.pth", lambda name, content: content[:int(len(content) * share)] if name.endswith(
        "data/0") else content)
    assert f"weight has {int(400 * share)} of 400 bytes" in refusal(tmp_path / "a.pth")


def test_numbers_of_another_byte_order_are_refused(tmp_path):
    torch.save({"weight": torch.ones(100)}, tmp_path / "a.pth")
    changed_record(tmp_path / "a.pth", lambda name, content: b"big" if name.endswith("byteorder") else content)
    assert "another byte order" in refusal(tmp_path / "a.pth")


def test_a_program_is_no_weights(tmp_path):
    torch.save({"weight": torch.ones(100)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        table = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(table.replace("data.pkl", "constants.pkl"), b"\x80\x02).")
    assert "a TorchScript program" in refusal(tmp_path / "a.pth")


def test_a_missing_storage_is_refused(tmp_path):
    torch.save({"weight": torch.ones(100)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, content in records.items():
            if not name.endswith("data/0"):
                archive.writestr(name, content)
    assert "weight has no bytes at all" in refusal(tmp_path / "a.pth")


def written_by_hand(path: Path, pickled: bytes, storage: bytes = bytes(400)) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
    return path


def tensor_pickle(elements: int = 100, offset: int = 0, shape: tuple = (100,), stride: tuple = (1,),
                  view: tuple = ()) -> bytes:
    """What torch.save writes for {"a": tensor}, with any claim."""
    class Storage:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", elements, *view) if isinstance(value, Storage) else None

    class Claim:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, OrderedDict())

    import io
    stream = io.BytesIO()
    Writer(stream, 2).dump({"a": Claim()})
    return stream.getvalue()


@pytest.mark.parametrize("claims, message", [
    ({"elements": 101}, "a has 400 of 404 bytes"), ({"elements": 10 ** 12}, "a has 400 of 4000000000000 bytes"),
    ({"shape": (101,)}, "a is larger than what is stored of it"), ({"offset": 1}, "reaches beyond"),
    ({"shape": (50, 2), "stride": (3, 1)}, "reaches beyond"),
    ({"shape": (10 ** 9, 10 ** 9), "stride": (0, 0)}, "larger"),
    ({"shape": (2, 2)}, "is larger"), ({"shape": (-1,)}, "damaged torch file"), ({"offset": -5}, "damaged torch file"),
    ({"shape": "abc"}, "damaged torch file"), ({"elements": 1.5}, "damaged torch file"),
    ({"shape": (1,) * 70, "stride": (1,) * 70}, "damaged torch file"),
    ({"view": (("0", 4, 96),)}, "a view of a storage, as torch before 0.4 wrote it"),
])
def test_tensors_that_claim_more_than_is_stored_are_refused(claims, message, tmp_path):
    for right in (tensor_pickle(), tensor_pickle(view=(None,))):
        assert same(read(written_by_hand(tmp_path / "right.pth", right))["a"], torch.zeros(100))
    assert message in refusal(written_by_hand(tmp_path / "a.pth", tensor_pickle(**claims)))


def test_an_archive_whose_directory_promises_more_than_the_file_has_is_refused(tmp_path):
    path = written_by_hand(tmp_path / "a.pth", tensor_pickle(elements=300, shape=(300,)))
    whole = bytearray(path.read_bytes())
    struct.pack_into("<II", whole, whole.rindex(b"PK\x01\x02") + 20, 1200, 1200)
    path.write_bytes(whole)
    assert "of 1200 bytes in the file" in refusal(path)


def test_a_stream_that_ends_within_its_last_numbers_is_refused(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-1])
    assert "truncated or damaged torch file (it ends within its numbers)" in refusal(tmp_path / "a.pth")


PICKLES = {
    "stops at once": b"\x80\x02.", "protocol 200": b"\x80\xc8}.", "no stop": b"\x80\x02}q\x00",
    "rebuild of numbers": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03tR.",
    "rebuild without arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "call of a number": b"\x80\x02K\x01)R.", "pop of nothing": b"\x80\x020000.", "a mark as content": b"\x80\x02(.",
    "memory that was never filled": b"\x80\x02h\x07.", "a list as name": b"\x80\x02}]K\x01s.",
    "a tuple as name": b"\x80\x02}(K\x01K\x02\x86K\x03u.", "odd table": b"\x80\x02}(K\x01u.",
    "state for a number": b"\x80\x02K\x01}b.", "text that is cut": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "number of a million digits": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "extension": b"\x80\x02\x82\x01.", "instance of a class": b"\x80\x02(ios\nsystem\n.",
    "a huge place in memory": b"\x80\x02}r\xff\xff\xff\x7f0K\x01.",
    "table that contains itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "deep tuples": b"\x80\x02N" + b"\x85" * 300_000 + b".",
    "deep tuples as a name": b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.",
    "deep tables": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 100_000 + b"N" + b"s" * 100_000 + b".",
    "opcodes without end": b"\x80\x02" + b"N0" * 200_000 + b".",
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("container", ["zip", "stream", "plain"])
def test_pickles_that_are_no_weights_are_refused_at_once(kind, container, tmp_path):
    path, content = tmp_path / "a.pth", PICKLES[kind]
    if container == "zip":
        written_by_hand(path, content)
    elif container == "plain":
        path.write_bytes(content)
    else:
        start = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(b"".join([*start, content, pickle.dumps([], 2)]))
    assert refusal(path)


@pytest.mark.parametrize("number", [7, 2 ** 70])
def test_a_number_as_the_name_of_a_tensor_is_refused(number, tmp_path):
    torch.save({number: torch.zeros(2)}, tmp_path / "a.pth")
    assert "for a name" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("call", ["os\nsystem", "builtins\neval", "torch\nload", "torch.storage\n_load_from_bytes",
                                  "torch._utils\n_rebuild_sparse_tensor", "pathlib\nPath.touch", "builtins\ngetattr"])
def test_every_other_call_is_refused_by_name(call, tmp_path):
    path = written_by_hand(tmp_path / "a.pth", f"\x80\x02c{call}\n".encode("latin1") + b"X\x02\x00\x00\x00lsR.".replace(
        b"R", b"\x85R"))
    message = refusal(path)
    assert call.replace("\n", ".") in message and "nothing in it ran" in message


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * (20 << 20) + b".")
    assert path.stat().st_size < 1 << 20 and "compressed" in refusal(path)


def test_a_table_of_names_without_end_is_not_read(tmp_path):
    path = written_by_hand(tmp_path / "a.pth", b"\x80\x02" + b"N0" * (3 << 20) + b".")
    assert "table of names has more than" in refusal(path)


def test_compressed_numbers_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle())
        archive.writestr("archive/data/0", bytes(400))
    assert "compressed" in refusal(path)


def test_many_tensors_over_one_storage_are_refused(tmp_path):
    """A file of 4 MB must not become 4 GB when its tensors are copied one by one."""
    one = torch.zeros(1 << 20)
    torch.save({str(number): one.view(1024, 1024) for number in range(1000)}, tmp_path / "a.pth")
    assert "times larger than the file" in refusal(tmp_path / "a.pth")


def test_a_truncated_directory_or_wrong_place_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    directory = whole.index(b"PK\x01\x02")
    moved = bytearray(whole)
    struct.pack_into("<I", moved, whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"data/0")) + 42, whole.index(bytes(64)))
    for content in (whole[:-1], whole[:-30], whole[:directory], bytes(moved), whole[:50]):
        (tmp_path / "a.pth").write_bytes(content)
        assert "truncated or damaged torch file" in refusal(tmp_path / "a.pth")
