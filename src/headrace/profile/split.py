"""What making a batch consists of, and at which lines of the program: from clocks and stacks.

The clocks at the seams give the seconds of the dataset, the collation and the handing over. The
dataset's part is divided by the stacks that were seen in it: each goes to reading, decoding or
transforming by what its innermost known function or line does.
"""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from collections import defaultdict
from dataclasses import dataclass

from headrace.profile.gathered import Watched
from headrace.profile.stacks import Frame

_MODULES = {  # parts of a path, to what is done there
    "decode": ("/PIL/ImageFile.py", "/cv2/", "/simplejpeg", "/soundfile", "/torchvision/io/"),
    "transform": (
        "/torchvision/transforms/",
        "/albumentations/",
        "/kornia/",
        "/PIL/ImageOps.py",
        "/PIL/ImageFilter.py",
        "/PIL/ImageEnhance.py",
        "/scipy/",
        "/skimage/",
    ),
    "read": (
        "/gzip.py",
        "/bz2.py",
        "/lzma.py",
        "/zipfile",
        "/tarfile.py",
        "/socket.py",
        "/ssl.py",
        "/http/",
        "/urllib",
        "/h5py/",
        "/lmdb/",
        "/pathlib.py",
        "/fsspec/",
        "/boto",
        "/sqlite3/",
    ),
}
_CALLS = {  # what is called, by its dotted name
    "decode": re.compile(r"imdecode|imread|Image\.open|decode", re.IGNORECASE),
    "read": re.compile(
        r"(^|\.)(open|read\w*|get_object|urlopen|fromfile|pread|memmap|recv\w*)$"
        r"|^(np|numpy|torch)\.load$|^requests\."
    ),
}
_LOADER = f"{os.sep}torch{os.sep}utils{os.sep}data{os.sep}"


@dataclass(frozen=True)
class Part:
    """A part of making a batch: its kind, mean seconds a batch, and the hottest line in it."""

    kind: str
    seconds: float
    line: str = ""
    function: str = ""


def parts_of(loader: Watched) -> list[Part]:
    """Return what making a batch of a loader consists of, the longest first."""
    batches = loader.batches
    if not batches:
        return []
    number = len(batches)
    made = sum(len(worker.batches) for worker in loader.workers)
    collate_s = sum(batch[2] for batch in batches) / number
    dataset_s = sum(batch[1] - batch[0] for batch in batches) / number - collate_s
    pack_s = sum(worker.pack_s for worker in loader.workers) / made
    hand_over_s = pack_s + max(loader.unpack_s / max(1, loader.steps), in_transit_s(loader))
    parts = [
        *_dataset_parts(loader, dataset_s),
        Part("collate", collate_s, *_hottest(loader, "collate")),
        Part("hand over", hand_over_s),
    ]
    return sorted((part for part in parts if part.seconds > 0), key=lambda part: -part.seconds)


def in_transit_s(loader: Watched) -> float:
    """Return the mean seconds that the program waited for batches which were made already.

    Of torch's loader with processes, which gives its batches out to them in turn.
    """
    if loader.facts.get("ours", True):
        return 0.0
    of_pid = {worker.pid: worker.batches for worker in loader.workers}
    waited = []
    for epoch in loader.epochs:
        until = epoch.steps[-1][1] if epoch.steps else 0.0
        made = [
            [b for b in of_pid.get(pid, []) if epoch.began <= b[0] <= until]
            for pid in epoch.workers
        ]
        for number, (began, ended) in enumerate(epoch.steps):
            if not made:
                break
            turn, worker = divmod(number, len(made))
            if turn < len(made[worker]):
                finished = made[worker][turn][1]
                if finished <= ended:
                    waited.append(ended - max(began, finished))
    return sum(waited) / len(waited) if waited else 0.0


def _dataset_parts(loader: Watched, dataset_s: float) -> list[Part]:
    seconds: dict[str, float] = defaultdict(float)
    lines: dict[str, dict[tuple[str, str], float]] = defaultdict(lambda: defaultdict(float))
    for seam, stack, _, wall_s, _ in loader.stacks:
        if seam == "dataset":
            kind = kind_of(stack)
            seconds[kind] += wall_s
            lines[kind][line_of(stack)] += wall_s
    total = sum(seconds.values())
    if not total:
        return [Part("transform", dataset_s)]
    return [
        Part(kind, dataset_s * some / total, *max(lines[kind], key=lines[kind].__getitem__))
        for kind, some in seconds.items()
    ]


def _hottest(loader: Watched, seam: str) -> tuple[str, str]:
    lines: dict[tuple[str, str], float] = defaultdict(float)
    for where, stack, _, wall_s, _ in loader.stacks:
        if where == seam:
            lines[line_of(stack)] += wall_s
    return max(lines, key=lines.__getitem__) if lines else ("", "")


def kind_of(stack: tuple[str, ...]) -> str:
    """Return what is done there: "read", "decode" or "transform"."""
    for frame in map(Frame.read, reversed(stack)):  # the innermost that says anything
        for kind, known in _MODULES.items():
            if any(part in frame.file for part in known):
                return kind
        for kind, pattern in _CALLS.items():
            if pattern.search(frame.calls):
                return kind
    return "transform"


def line_of(stack: tuple[str, ...]) -> tuple[str, str]:
    """Return the innermost line that is the user's own, else the outermost of a library's."""
    frames = [Frame.read(frame) for frame in stack]
    for frame in reversed(frames):
        if is_users(frame.file):
            return f"{frame.file}:{frame.line}", frame.function
    for frame in frames:
        if _LOADER not in frame.file and not _is_ours(frame.file):
            return f"{frame.file}:{frame.line}", frame.function
    return "", ""


def is_users(file: str) -> bool:
    """Say whether a file is neither Python's, nor of an installed package, nor ours."""
    return not file.startswith(_INSTALLED) and not _is_ours(file)


def _is_ours(file: str) -> bool:
    return file.startswith(_OURS)


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INSTALLED = (
    "<",
    *{
        os.path.join(os.path.realpath(path), "")
        for path in (
            *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
            *site.getsitepackages(),
            os.path.dirname(os.__file__),
        )
    },
    *{os.path.join(path, "") for path in sys.path if path.endswith("site-packages")},
)
