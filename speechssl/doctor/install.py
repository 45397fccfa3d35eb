"""What of the installation works here: each part is tried, and what is missing comes with the command for it."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from speechssl.environment import PAIR, check_pair
from speechssl.errors import UserError

GIB = 2**30
# Shared memory that several workers need to hand over batches.
SHARED_GIB = 1


@dataclass(frozen=True)
class Check:
    """One part: whether it works (None: it is not here and nothing needs it), what was found, and the mend."""

    name: str
    works: bool | None
    found: str
    mend: str = ""


def examine() -> list[Check]:
    """Every part of the installation."""
    checks = [_python(), _torch()]
    if checks[-1].works:
        checks += [_gpu(), _attention(), _processor()]
    checks += [_audio(), _shared_memory(), _disk()]
    return checks + [_package(*package) for package in PACKAGES]


# Module, what it is for, what installs it.
PACKAGES = (
    ("espeakng_loader", "the synthetic corpus", "speechssl[synthetic]"),
    ("flashlight", "decoding with a lexicon", "flashlight-text"),
    ("kenlm", "decoding with a language model", "kenlm"),
    ("huggingface_hub", "hf:NAME as a checkpoint", "speechssl[hub]"),
    ("transformers", "benchmark peer=transformers", "'transformers>=5,<6'"),
    ("onnxruntime", "convert format=onnx", "speechssl[onnx]"),
    ("wandb", "trainer.trackers=[wandb]", "wandb"),
    ("trackio", "trainer.trackers=[trackio]", "trackio"),
)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 10), version, "Python 3.10 or newer")


def _torch() -> Check:
    try:
        check_pair()
    except UserError as error:
        return Check(
            "torch and torchaudio", False, str(error).partition(":")[0], str(error).partition("`")[2].rstrip("`")
        )
    return _try("torch and torchaudio", _import_pair, _pip(PAIR))


def _import_pair() -> str:
    import torch
    import torchaudio

    return f"{torch.__version__} and {torchaudio.__version__}"


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        mend = "update the NVIDIA driver for CUDA " + (torch.version.cuda or "") if driver else ""
        return Check("GPU", False if driver else None, "none that torch sees; training runs on the CPU", mend)

    def use() -> str:
        x = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
        assert bool((x @ x).isfinite().all())
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
        return f"{len(names)} x {names[0]}, {memory:.0f} GiB, CUDA {torch.version.cuda}, bf16 works"

    return _try("GPU", use, "a driver that fits CUDA " + (torch.version.cuda or ""))


def _attention() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("flash attention", None, "a GPU's; on a CPU torch has its own")

    def use() -> str:
        from speechssl.models.packed import attend_packed

        lengths = [70, 1, 33]
        qkv = torch.randn(sum(lengths), 3, 2, 64, device="cuda", dtype=torch.bfloat16)
        found = attend_packed(qkv, lengths, 0.0, causal=False)
        clips = [clip.permute(1, 2, 0, 3).float() for clip in qkv.split(lengths)]
        wanted = torch.cat([torch.nn.functional.scaled_dot_product_attention(*x).transpose(0, 1) for x in clips])
        difference = (found - wanted).abs().max().item()
        assert difference < 0.02, f"of packed clips it is off by {difference:.3f}"
        return f"of packed clips, within {difference:.3f} of torch's fp32"

    return _try("flash attention", use, "a GPU of 2020 or newer, or trainer.precision=fp32")


def _processor() -> Check:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check(
        "processor",
        True,
        f"{cores} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    )


def _audio() -> Check:
    def formats() -> str:
        import soundfile

        known = soundfile.available_formats()
        missing = {"WAV", "FLAC", "OGG", "MP3"} - known.keys()
        assert not missing, f"no {', '.join(sorted(missing))}"
        opus = "OPUS" in soundfile.available_subtypes("OGG")
        return "WAV, FLAC, Ogg, MP3" + (", Opus" if opus else "; no Opus")

    return _try("audio", formats, _pip("--upgrade soundfile"))


def _shared_memory() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("shared memory", None, "not a Linux system")
    free = shutil.disk_usage(folder).free / GIB
    mend = "data.num_workers=0, or more of it (docker run --shm-size=8g)"
    return Check("shared memory", free >= SHARED_GIB, f"{free:.1f} GiB free in /dev/shm", mend)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    return Check("disk", free >= 5, f"{free:.0f} GiB free here", "a run_dir= on a disk with 5 GiB or more")


def _package(module: str, purpose: str, install: str) -> Check:
    if util.find_spec(module) is None:
        return Check(module, None, f"absent; only for {purpose}", _pip(f"'{install}'" if "[" in install else install))

    def load() -> str:
        __import__(module)
        name = module.replace("_", "-") if module != "flashlight" else "flashlight-text"
        if module == "espeakng_loader":
            import espeakng_loader

            ctypes.CDLL(espeakng_loader.get_library_path())
        return metadata.version(name)

    return _try(module, load, _pip(f"--force-reinstall {install}"))


def _try(name: str, use: Callable[[], str], mend: str) -> Check:
    """Whatever goes wrong with a library that is broken is what the check is there to say."""
    try:
        return Check(name, True, use())
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", mend)


def _pip(what: str) -> str:
    return f"{sys.executable} -m pip install {what}"
