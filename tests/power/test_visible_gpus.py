"""CUDA_VISIBLE_DEVICES by CUDA's rules; torch's own parser is the oracle."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.power.visible_gpus import hidden_gpus, visible_gpus

A, B, C, D = "GPU-aaaa1111", "GPU-aaab2222", "GPU-cccc3333", "GPU-dddd4444"
SAME = [(uuid, "V100") for uuid in (A, B, C, D)]
MIXED = [(A, "T4"), (B, "A100"), (C, "T4"), (D, "A100")]
MIG = {"MIG-1111": B, "MIG-2222": B}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (A, B, C, D)),
        ("0", (A,)),
        ("2,0", (C, A)),
        (" 1 , 3 ", (B, D)),
        ("", ()),
        ("-1", ()),
        ("0,-1,2", (A,)),
        ("0,9,2", (A,)),
        ("0,x,2", (A,)),
        ("NoDevFiles", ()),
        ("1,1", ()),
        ("1gpu,2", (B, C)),
        (A, (A,)),
        ("GPU-cccc", (C,)),
        (f"{D},GPU-c", (D, C)),
        ("GPU-aaa", ()),  # fits two
        (f"{A},GPU-zzz,{C}", (A,)),
        (f"{A},2", (A,)),  # forms do not mix
        (f"{A},{A}", ()),
        ("MIG-1111", (B,)),
        ("MIG-1111,MIG-2222", (B,)),
        (f"MIG-{C}/1/0", (C,)),
    ],
)
def test_visible_devices(value, expected):
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert visible_gpus(environ, SAME, MIG).uuids == expected


@pytest.mark.parametrize("value", ["", "-1", "7", "1,1", "GPU-aaa", f"{A},{A}", "MIG-9999"])
def test_no_visible_gpu_always_has_a_reason(value):
    visible = visible_gpus({"CUDA_VISIBLE_DEVICES": value}, SAME)
    assert visible.uuids == ()
    assert visible.problem or visible.notes


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.lists(st.sampled_from(["0", "1", "2", "3", "4", "-1", "", " 2", "1x", "x", "+3", "00", "2 1"]), max_size=5))
def test_ordinals_agree_with_torch(entries):
    torch_cuda = pytest.importorskip("torch.cuda")
    value = ",".join(entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", value)
        ordinals = torch_cuda._parse_visible_devices()
    shown = []
    for ordinal in ordinals:  # as torch.cuda._device_count_nvml: the first that does not exist ends the list
        if ordinal >= 4:
            break
        shown.append(SAME[ordinal][0])
    assert list(visible_gpus({"CUDA_VISIBLE_DEVICES": value}, SAME).uuids) == shown


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.sampled_from([A, B, C, "GPU-c", "GPU-aaa", "GPU-", "GPU-zz", "1", ""]), min_size=1, max_size=4))
def test_uuids_agree_with_torch(entries):
    torch_cuda = pytest.importorskip("torch.cuda")
    if not entries[0].startswith("GPU-"):
        entries = [A, *entries]
    value = ",".join(entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", value)
        names = torch_cuda._parse_visible_devices()
    ordinals = torch_cuda._transform_uuid_to_ordinals(names, [uuid for uuid, _ in SAME])
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": value}, SAME).uuids == tuple(SAME[index][0] for index in ordinals)


def test_ordinals_of_mixed_gpus_need_the_bus_order():
    doubtful = visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}, MIXED)
    assert doubtful.uuids == ()
    assert "set CUDA_DEVICE_ORDER=PCI_BUS_ID" in doubtful.problem
    sure = visible_gpus({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, MIXED)
    assert sure.uuids == (B,)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,2,1,0"}, MIXED).uuids == (
        D,
        C,
        B,
        A,
    )  # all of them: the order does not matter
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": B}, MIXED).uuids == (B,)


def test_running_cuda_settles_every_doubt():
    environ = {"CUDA_VISIBLE_DEVICES": "1"}
    assert visible_gpus(environ, MIXED, cuda_uuids=["aaab2222"]).uuids == (B,)
    assert visible_gpus(environ, MIXED, MIG, cuda_uuids=["1111"]).uuids == (B,)
    assert "CUDA uses ffff, which NVML does not list" in visible_gpus(environ, MIXED, cuda_uuids=["ffff"]).problem


def test_mig_instance_counts_as_its_whole_gpu():
    visible = visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-2222"}, SAME, MIG, mig_gpus={B})
    assert "MIG-2222 is a part of GPU-aaab2222" in visible.notes[0]
    assert "no power reading for a MIG instance, so the whole GPU is counted" in visible.notes[1]


# ---- AMD's and Intel's variables

RUNTIMES = {  # what the runtimes' sources do (ROCR-Runtime's amd_filter_device.cpp, clr's rocdevice.cpp, NEO's parser)
    "ROCR_VISIBLE_DEVICES": {"": "", "1,0": "01", " 1 , 2 ": "12", "0,0,1": "0", "0,9,1": "0", "0,-1,1": "0", "x": ""},
    "HIP_VISIBLE_DEVICES": {"": "012", "1, 2": "1", "0,0,1": "01", "0,9,1": "0", "-1": "", "NoDevFiles": ""},
    "ZE_AFFINITY_MASK": {"": "012", "1,0": "01", "0.1,2": "02", "9,1": "1"},
}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [(name, value, shown) for name, cases in RUNTIMES.items() for value, shown in cases.items()],
)
def test_gpus_hidden_by_amds_and_intels_variables(name, value, shown):
    maker = "i915" if name.startswith("ZE") else "amdgpu"
    ids = [f"{maker} {index}" for index in range(3)]
    hidden, notes = hidden_gpus(ids, {name: value})
    assert "".join(gpu[-1] for gpu in ids if gpu not in hidden) == shown
    assert set(hidden.values()) <= {f"{name}={value} hides it"}
    ends = value in ("0,0,1", "0,9,1", "0,-1,1", "x", "1, 2", "-1", "NoDevFiles") and maker == "amdgpu"
    assert len(notes) == (ends and shown != "01")


def test_uuids_of_amds_gpus_hide_none_and_a_note_says_so():
    ids = ["amdgpu 0", "amdgpu 1"]
    hidden, notes = hidden_gpus(ids, {"ROCR_VISIBLE_DEVICES": "GPU-deadbeefdeadbeef", "HIP_VISIBLE_DEVICES": "0"})
    assert hidden == {}
    assert notes == [
        "ROCR_VISIBLE_DEVICES=GPU-deadbeefdeadbeef names GPUs by UUID, so it hides none here; use numbers to leave "
        "some out"
    ]
