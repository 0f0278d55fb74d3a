"""The real huggingface_hub client in a process of its own, against a hub on this machine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.numpy
from checkpoints import write_checkpoint, write_tokenizer
from fake_hub import Fault, Running, running_hub

from chopjax.checkpoint.safetensors_file import open_header

MODEL = "somebody/tiny-llama"
KEEP = "0,3"

# Small records, and short waits between attempts.
DRIVER = """
import sys, time
from chopjax.checkpoint import hub_download
hub_download.RECORD_BYTES, hub_download.PIECE_BYTES = 1 << 14, 1 << 17
hub_download.LONGEST_WAIT = 0.1
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 20)
from chopjax import cli
code = cli.main(sys.argv[1:])
loaded = [m for m in ("jax", "transformers", "torch") if m in sys.modules]
assert not loaded, loaded
sys.exit(code)
"""


@pytest.fixture
def hub():
    with running_hub() as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("hub") / "model", intermediate_size=512)
    return write_tokenizer(folder)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "sharded"
    return write_checkpoint(folder, intermediate_size=512, max_shard_size="300KB")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", DRIVER, *arguments]


@pytest.fixture
def client(hub: Running, tmp_path):
    """Runs the driver with these arguments; HF_HOME is `tmp_path/home`."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            env=hub.environment(tmp_path / "home", **environment),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def wanted_bytes(file: Path) -> int:
    """Header and kept tensors of a weight file."""
    header = open_header(file).tensors
    first = min(tensor.start for tensor in header.values())
    gone = (".layers.1.", ".layers.2.")
    return first + sum(t.nbytes for n, t in header.items() if not any(g in n for g in gone))


def assert_chopped(out: Path, parent: Path) -> None:
    def tensors(folder: Path) -> dict:
        return {
            name: tensor
            for file in folder.glob("*.safetensors")
            for name, tensor in safetensors.numpy.load_file(file).items()
        }

    before, after = tensors(parent), tensors(out)
    assert len(after) < len(before)
    for name, tensor in after.items():
        assert (tensor == before[name.replace(".layers.1.", ".layers.3.")]).all(), name


def failure(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_only_kept_layers_are_transferred_and_only_once(hub, client, model, tmp_path):
    commit = hub.hub.add(MODEL, model)
    done = client("chop", MODEL, "out", "--keep", KEEP, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert_chopped(tmp_path / "out", model)
    assert hub.hub.bytes_of("model.safetensors") == wanted_bytes(model / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    record = json.loads((tmp_path / "out" / "chopjax.json").read_text())
    assert record["parent"] == {"name": MODEL, "revision": commit, "num_layers": 4}
    # The token goes to the hub and never to the CDN.
    for request, headers in hub.hub.requests:
        headers = {key.lower(): value for key, value in headers.items()}
        assert ("authorization" in headers) == ("/cdn/" not in request)
    # Adjacent tensors come together: two requests for the header, two pieces for either run.
    assert len(hub.hub.sent["model.safetensors"]) == 2 + 4
    hub.hub.forget()
    done = client("chop", MODEL, "again", "--keep", KEEP)
    assert done.returncode == 0, done.stderr
    assert_chopped(tmp_path / "again", model)
    assert not hub.hub.sent
    # One more layer: that one alone.
    done = client("chop", MODEL, "more", "--keep", "0,1,3", "--json")
    header = open_header(model / "model.safetensors").tensors
    layer = sum(t.nbytes for name, t in header.items() if ".layers.1." in name)
    assert hub.hub.bytes_of("model.safetensors") == layer
    assert json.loads(done.stdout)["revision"] == commit


def test_a_model_is_quantized_without_jax(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    done = client("quantize", MODEL, "out", "--weights", "int8", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["matrices"] == 28
    record = json.loads((tmp_path / "out" / "chopjax.json").read_text())
    assert record["parent"]["name"] == MODEL


def test_shards(hub, client, sharded, tmp_path):
    hub.hub.add(MODEL, sharded)
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 2
    done = client("chop", MODEL, "out", "--keep", KEEP)
    assert done.returncode == 0, done.stderr
    assert_chopped(tmp_path / "out", sharded)
    for file in files:
        assert hub.hub.bytes_of(file.name) == wanted_bytes(file)


def test_dry_run_reads_headers_only(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    done = client("chop", MODEL, "out", "--keep", KEEP, "--dry-run", "--json")
    assert json.loads(done.stdout)["removed_layers"] == [1, 2]
    assert hub.hub.bytes_of("model.safetensors") < 10_000
    assert not (tmp_path / "out").exists()


def test_connections_that_drop(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    hub.hub.faults = [
        Fault("HEAD .*/model.safetensors", status=503),
        Fault("GET /api/models", status=502, times=2),
        Fault("GET /cdn/", drop_after=3, times=2),
        Fault("GET /cdn/", drop_after=50_000, times=6),
        Fault("GET /cdn/", drop_after=0, times=2),
        Fault("GET /cdn/", status=500, times=2),
    ]
    done = client("chop", MODEL, "out", "--keep", KEEP)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("HTTP Error 502") == 2
    assert "HTTP Error 503" in done.stderr
    assert "HTTP Error 500" in done.stderr
    assert "going on from byte" in done.stderr
    assert_chopped(tmp_path / "out", model)
    # A dropped connection costs nothing that had come: requests go on where it ended.
    wanted = wanted_bytes(model / "model.safetensors")
    assert hub.hub.bytes_of("model.safetensors") <= wanted + 20_000


def test_a_hub_that_stays_broken(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    hub.hub.faults = [Fault("GET /cdn/.*", status=503, times=1000)]
    error = failure(client("chop", MODEL, "out", "--keep", KEEP))
    assert "503 Service Unavailable" in error
    assert "Run the same command again later" in error
    assert not (tmp_path / "out").exists()


def test_patience_with_429(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    hub.hub.faults = [
        Fault("GET .*/resolve/.*/model.safetensors", status=429, headers={"Retry-After": "1"}),
        Fault("GET /api/models", status=429, headers={"Retry-After": "1"}),
    ]
    done = client("chop", MODEL, "out", "--keep", KEEP)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Waiting 2.0s before retry") == 2
    assert_chopped(tmp_path / "out", model)


def test_429_that_does_not_end(hub, client, model):
    hub.hub.add(MODEL, model)
    hub.hub.faults = [Fault("GET /api", status=429, times=9)]
    error = failure(client("chop", MODEL, "out", "--keep", KEEP))
    assert "429 Too Many Requests" in error
    assert "Run the same command again later" in error


def test_every_request_has_a_fresh_signature(hub, client, model, tmp_path):
    """The hub's signed addresses expire: what goes on after a drop begins at the hub again."""
    hub.hub.add(MODEL, model)
    hub.hub.signed_once = True
    hub.hub.faults = [
        Fault("GET /cdn/", drop_after=3, times=2),
        Fault("GET /cdn/", status=500, times=2),
        Fault("GET /cdn/", drop_after=50_000, times=2),
    ]
    done = client("chop", MODEL, "out", "--keep", KEEP)
    assert done.returncode == 0, done.stderr
    assert_chopped(tmp_path / "out", model)


def test_a_slow_start(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    hub.hub.faults = [Fault("GET /cdn/", delay=1.5, times=2)]
    done = client("chop", MODEL, "out", "--keep", KEEP, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert done.returncode == 0, done.stderr
    assert "timed out" in done.stderr
    assert_chopped(tmp_path / "out", model)


def test_whole_files_instead_of_ranges_corrupt_nothing(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    hub.hub.faults = [Fault("GET /cdn/", ignore_range=True)]
    error = failure(client("chop", MODEL, "out", "--keep", KEEP))
    assert "does not serve parts of files" in error
    assert "hf download" in error
    # Nothing of it was taken for the file's bytes: the same command, when the server has mended.
    done = client("chop", MODEL, "out", "--keep", KEEP)
    assert done.returncode == 0, done.stderr
    assert_chopped(tmp_path / "out", model)


def test_killed_downloads_resume(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    hub.hub.bytes_per_second = 400_000
    wanted = wanted_bytes(model / "model.safetensors")
    for signum in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            command("chop", MODEL, "out", "--keep", KEEP),
            env=hub.environment(tmp_path / "home"),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        journal = "home/chopjax/models--somebody--tiny-llama/*/model.safetensors.ranges"
        lines = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob(journal))
        while time.monotonic() < deadline:
            found = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob(journal))
            if found >= max(lines, 3) + 3:  # after the journal's head and the header's two ranges
                break
            time.sleep(0.01)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == (-9 if signum == signal.SIGKILL else 130), errors
    assert not (tmp_path / "out").exists()
    hub.hub.bytes_per_second = None
    time.sleep(0.3)  # the server notices that nobody listens
    sent_before = hub.hub.bytes_of("model.safetensors")
    assert sent_before > 100_000
    hub.hub.forget()
    done = client("chop", MODEL, "out", "--keep", KEEP)
    assert done.returncode == 0, done.stderr
    assert_chopped(tmp_path / "out", model)
    assert hub.hub.bytes_of("model.safetensors") < wanted - 6 * (1 << 14)


def test_a_branch_that_moves_does_not_mix(hub, model, tmp_path):
    """Opened at one commit, fetched after the branch has moved: still that commit."""
    other = write_checkpoint(tmp_path / "other", seed=7, intermediate_size=512)
    first = hub.hub.add(MODEL, model)
    code = """
import sys
from chopjax.checkpoint.open import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
print(checkpoint.revision, flush=True)
input()
name = "model.layers.3.mlp.up_proj.weight"
try:
    checkpoint.array(name)
except RuntimeError as error:
    print(error, flush=True)
checkpoint.fetch([name])
print(float(checkpoint.array(name).sum()))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, MODEL],
        env=hub.environment(tmp_path / "home"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == first
    second = hub.hub.add(MODEL, other, "new")
    hub.hub.repositories[MODEL]["main"] = hub.hub.repositories[MODEL]["new"]
    out, _ = process.communicate("\n", timeout=30)
    refusal, total = out.strip().splitlines()
    assert "not downloaded" in refusal
    name = "model.layers.3.mlp.up_proj.weight"
    held = safetensors.numpy.load_file(model / "model.safetensors")
    assert float(total) == float(held[name].sum())
    assert second != first


def test_revisions(hub, client, model, tmp_path):
    other = write_checkpoint(tmp_path / "other", seed=7, intermediate_size=512)
    hub.hub.add(MODEL, model)
    commit = hub.hub.add(MODEL, other, "refs/pr/1")
    done = client("chop", MODEL, "out", "--keep", KEEP, "--revision", "refs/pr/1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["revision"] == commit
    assert_chopped(tmp_path / "out", other)
    error = failure(client("chop", MODEL, "out2", "--keep", KEEP, "--revision", "v9"))
    assert "Revision Not Found" in error
    assert "check" in error.lower()
    assert "--revision" in error
    error = failure(client("chop", str(model), "out2", "--keep", KEEP, "--revision", "v9"))
    assert "--revision is for hub ids" in error


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Fault("GET /api", 401, {"X-Error-Code": "GatedRepo"}), "gated repo"),
        (Fault("GET /api", 403, {"X-Error-Code": "GatedRepo"}), "gated repo"),
        (Fault("GET /api", 404, {"X-Error-Code": "RepoNotFound"}), "Repository Not Found"),
        (Fault("GET /api", 404), "404 Not Found"),
        (Fault("GET /api", 401), "401 Unauthorized"),
        (Fault("GET /api", 403), "403 Forbidden"),
        (Fault("HEAD .*config.json", 403, {"X-Error-Code": "GatedRepo"}), "gated repo"),
        (Fault("HEAD .*/model.safetensors", 401, {"X-Error-Code": "GatedRepo"}), "gated repo"),
        (Fault("GET .*/resolve/.*/model.safetensors", 403), "403 Forbidden"),
    ],
)
def test_refusals_say_what_to_do(hub, client, model, tmp_path, fault, complaint):
    hub.hub.add(MODEL, model)
    fault.times = 1000
    hub.hub.faults = [fault]
    error = failure(client("chop", MODEL, "out", "--keep", KEEP))
    assert len(error.splitlines()) == 1
    for words in (MODEL, complaint, "no such folder here", "Check the spelling", "HF_TOKEN"):
        assert words in error
    assert not (tmp_path / "out").exists()


def test_offline(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    error = failure(client("chop", MODEL, "out", "--keep", KEEP, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE" in error
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    error = failure(client("chop", MODEL, "out", "--keep", KEEP, **dead))
    assert "cannot be reached" in error
    assert "HF_ENDPOINT" in error
    assert client("chop", MODEL, "out", "--keep", KEEP).returncode == 0
    # What has been downloaded serves without a connection.
    for number, environment in enumerate(({"HF_HUB_OFFLINE": "1"}, dead)):
        done = client("chop", MODEL, f"off{number}", "--keep", KEEP, **environment)
        assert done.returncode == 0, done.stderr
        assert_chopped(tmp_path / f"off{number}", model)
    error = failure(client("chop", MODEL, "out1", "--keep", "0,1", HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE" in error


def test_a_cache_that_cannot_be_written(hub, client, model, tmp_path):
    hub.hub.add(MODEL, model)
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")
    error = failure(client("chop", MODEL, "out", "--keep", KEEP, HF_HOME=home))
    assert "Not a directory" in error
    assert home in error


def test_weights_in_the_cache_of_huggingface_hub_are_used(hub, client, model, tmp_path):
    commit = hub.hub.add(MODEL, model)
    code = f"from huggingface_hub import hf_hub_download as d; d({MODEL!r}, 'model.safetensors')"
    subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path / "home"), check=True)
    hub.hub.forget()
    done = client("chop", MODEL, "out", "--keep", KEEP)
    assert done.returncode == 0, done.stderr
    assert_chopped(tmp_path / "out", model)
    assert not hub.hub.bytes_of("model.safetensors")
    assert commit in json.loads((tmp_path / "out" / "chopjax.json").read_text())["parent"].values()


def test_pickles_are_refused(hub, client, model, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.hub.add(MODEL, folder)
    error = failure(client("chop", MODEL, "out", "--keep", KEEP))
    assert "pytorch_model.bin" in error
    assert "runs whatever code" in error
    assert "save_pretrained" in error
    assert not hub.hub.bytes_of("pytorch_model.bin")


@pytest.mark.parametrize("name", ["../escape.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_points_elsewhere(hub, client, sharded, tmp_path, name):
    folder = tmp_path / "evil"
    shutil.copytree(sharded, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.hub.add(MODEL, folder)
    assert "names files that" in failure(client("chop", MODEL, "out", "--keep", KEEP))


def test_names_that_are_no_hub_ids(client):
    for name in ("./nowhere", "a/b/c", "somebody/tiny..llama", "-x"):
        assert "no such folder" in failure(client("chop", "--keep", KEEP, "--", name, "out"))
