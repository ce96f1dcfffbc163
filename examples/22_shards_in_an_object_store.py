"""Shards in an object store: packed here, read there, shuffled, and resumed in a new process."""

import argparse
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from headrace import DataLoader
from headrace.data import TarDataset, write_shards

SERVER = """
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def object_store(paths):
    """Run a small server of S3 with the shards in it; yours is there already."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        for name, data in [("digits", b""), *((f"digits/{p.name}", p.read_bytes()) for p in paths)]:
            request = urllib.request.Request(f"{endpoint}/{name}", data=data, method="PUT")
            request.add_header("Content-Type", "application/octet-stream")
            request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=x/2026/us-east-1/s3/x")
            urllib.request.urlopen(request).close()
        yield endpoint
    finally:
        server.kill()
        server.communicate()


def sample_of(number, digits):
    """Make the files of one sample: a picture and its class."""
    pixels = torch.from_numpy(digits.images[number] * 15).to(torch.uint8)
    return {
        "__key__": f"{number:05d}",
        "png": pixels.expand(3, 8, 8),
        "cls": int(digits.target[number]),
    }


def main(folder, workers):
    digits = load_digits()
    samples = (sample_of(number, digits) for number in range(len(digits.images)))
    paths = write_shards(samples, folder / "shards/{:03d}.tar", shard_bytes=256 << 10)
    print(f"{len(digits.images):,} digits in {len(paths)} shards")

    with object_store(sorted((folder / "shards").iterdir())) as endpoint:
        options = {
            "endpoint": endpoint,
            "access_key_id": "someone",
            "secret_access_key": "something",
            "region": "us-east-1",
        }

        def make_loader():
            data = TarDataset(
                f"s3://digits/{{000..{len(paths) - 1:03d}}}.tar",
                storage_options=options,
                shuffle_shards=3,  # so many are mixed at a time
                cache_dir=folder / "cache",
                cache_bytes=100 << 20,  # shards that were read from are kept on disk
            )
            return DataLoader(data, batch_size=64, shuffle=True, seed=0, num_workers=workers)

        loader = make_loader()
        print(f"{len(loader.dataset):,} samples, {len(loader)} batches")
        seen = []
        for step, batch in enumerate(loader):
            seen.append(batch["cls"])
            if step == 9:
                state = loader.state_dict()
        print(f"a batch: {tuple(batch['png'].shape)} {batch['png'].dtype}, {batch['__key__'][0]!r}")
        print(f"each class once an epoch: {torch.cat(seen).bincount().tolist()}")

        loader = make_loader()  # as in a new process
        loader.load_state_dict(state)
        rest = [batch["cls"] for batch in loader]
        same = all(map(torch.equal, rest, seen[10:]))
        print(f"resumed behind batch 10: {len(rest)} batches, the same: {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), arguments.workers)
