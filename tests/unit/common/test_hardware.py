"""The machine as DeepSpeed sees it: GPUs played by a stand-in, processors by their /proc/cpuinfo."""

from types import SimpleNamespace

import pytest

from common import hardware
from common.hardware import detect, peak_flops


def fake_cuda(*gpus):
    properties = [
        SimpleNamespace(name=name, major=major, minor=minor, total_memory=memory) for name, major, minor, memory in gpus
    ]
    return SimpleNamespace(
        device_count=lambda: len(properties),
        get_device_properties=lambda index: properties[index],
    )


def test_two_t4s_have_fp16_and_only_an_emulated_bf16():
    found = hardware._detect_cuda(fake_cuda(("Tesla T4", 7, 5, 15 * 2**30), ("Tesla T4", 7, 5, 15 * 2**30)))
    assert (found.kind, found.count, found.compute_capability) == ("cuda", 2, (7, 5))
    assert found.fp16_supported
    assert not found.bf16_fast
    assert found.peak_flops == {"fp32": 8.1e12, "fp16": 65e12}
    assert found.summary == "2 x Tesla T4 (15.0 GiB, compute capability 7.5)"


def test_of_unlike_gpus_the_weakest_counts():
    a100, t4 = ("NVIDIA A100-SXM4-40GB", 8, 0, 40 * 2**30), ("Tesla T4", 7, 5, 15 * 2**30)
    found = hardware._detect_cuda(fake_cuda(a100, t4))
    assert found.name == "Tesla T4"
    assert not found.bf16_fast


@pytest.mark.parametrize(
    ("capability", "environment", "expected"),
    [
        ((9, 0), {}, True),
        ((7, 0), {}, True),
        ((6, 0), {}, False),
        ((6, 0), {"DS_ALLOW_DEPRECATED_FP16": "1"}, True),
        ((5, 2), {"DS_ALLOW_DEPRECATED_FP16": "1"}, False),
    ],
)
def test_fp16_follows_deepspeeds_rule(capability, environment, expected):
    assert hardware._fp16_on_gpu(capability, environment) is expected


@pytest.mark.parametrize(
    ("name", "fp16"),
    [
        ("Tesla T4", 65e12),
        ("Tesla P100-PCIE-16GB", 18.7e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GeForce RTX 2080 Ti", 53.8e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
    ],
)
def test_datasheet_peaks(name, fp16):
    assert peak_flops(name)["fp16"] == fp16


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA T400",
        "NVIDIA GeForce RTX 3080 Laptop GPU",
        "NVIDIA GeForce RTX 4070 SUPER",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 NVL",
        "NVIDIA GeForce GTX 1080",
        "",
    ],
)
def test_no_figure_for_a_card_that_is_not_in_the_table(name):
    assert peak_flops(name) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu vme avx2 avx512_bf16 avx512f\n", True),
        ("flags\t\t: fpu amx_tile amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu vme avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_bf16_instructions(line, expected):
    info = f"processor\t: 0\nmodel name\t: Some Processor\n{line}power management:\n"
    assert hardware._bf16_instructions(info) is expected


def test_a_cpu_has_no_fp16(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    found = detect()
    assert (found.kind, found.fp16_supported, found.peak_flops) == ("cpu", False, None)
    assert found.count >= 1
    assert found.memory_bytes > 2**28
    assert str(found.count) in found.summary


def test_the_compiler_may_be_named_by_cxx(monkeypatch, tmp_path):
    compiler = tmp_path / "mycxx"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not hardware._has_compiler()
    monkeypatch.setenv("CXX", "mycxx -O2")
    assert hardware._has_compiler()


def test_a_container_has_less_memory_than_its_machine(monkeypatch):
    monkeypatch.setattr(hardware, "_read", lambda path: "1073741824\n" if path.endswith("memory.max") else "")
    assert hardware._memory_bytes() == 2**30
    monkeypatch.setattr(hardware, "_read", lambda path: "max\n")
    assert hardware._memory_bytes() > 0
